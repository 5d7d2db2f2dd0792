"""When storages live, and how much memory of the chip that takes."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.instructions.control import LOOPS
from simulator.tensor import MemoryRegion, Storage

if TYPE_CHECKING:
    from simulator.program import Program


@dataclass(frozen=True)
class Lifetime:
    """First and last instruction that touch a storage."""

    storage: Storage
    first: int
    last: int


def lifetimes(program: Program) -> list[Lifetime]:
    """The lifetimes of all storages that are touched, in order of first use.

    A storage from outside a dynamic loop lives as long as the loop that touches it. Found
    once for each number of instructions.
    """
    known = program.lifetimes
    if known is None or known[0] != len(program.instructions):
        program.lifetimes = known = (len(program.instructions), _lifetimes(program))
    return known[1]


def _lifetimes(program: Program) -> list[Lifetime]:
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    touched: dict[int, set[int]] = {}  # a loop's begin -> storages from outside it
    stack: list[tuple[int, set[int]]] = []  # (begin position, numbers of the loop)
    ends = set(LOOPS.values())
    for position, instruction in enumerate(program.instructions):
        if instruction.engine == "control":
            name = instruction.spec.name
            if instruction.core and instruction.peer is not None:  # a loop of both cores
                if name in LOOPS:
                    stack[-1][1].add(instruction["number"])
            elif name in LOOPS:
                stack.append((position, {instruction["number"]}))
                touched[position] = set()
            elif name in ends:
                begin, _ = stack.pop()
                for index in touched.pop(begin):
                    first[index] = min(first[index], begin)
                    last[index] = max(last[index], position)
            continue
        for _, tensor in instruction.reads() + instruction.writes():
            index = tensor.storage.index
            if index not in first:
                first[index] = position
            last[index] = position
            if stack:
                scope = tensor.storage.scope
                outer = next((at + 1 for at, (_, s) in enumerate(stack) if scope in s), 0)
                for begin, _ in stack[outer:]:
                    touched[begin].add(index)
    found = [Lifetime(program.storages[i], first[i], last[i]) for i in first]
    return sorted(found, key=lambda lifetime: lifetime.first)


def in_region(program: Program, buffer: MemoryRegion, core: int | None = None) -> list[Lifetime]:
    """The lifetimes in one region (of one core)."""
    return [
        lifetime
        for lifetime in lifetimes(program)
        if lifetime.storage.buffer is buffer and (core is None or lifetime.storage.core == core)
    ]


def footprint(program: Program, storage: Storage) -> int:
    """Bytes per partition that a storage takes: whole banks in PSUM."""
    size = storage.bytes_per_partition
    if storage.buffer is MemoryRegion.psum:
        bank = program.target.psum_bank_bytes
        return -(-size // bank) * bank
    return size


def peak(program: Program, live_together: list[Lifetime]) -> tuple[int, Storage | None]:
    """The most bytes per partition that live at once, and the storage that brings them there."""
    ends: list[tuple[int, int]] = []
    current = most = 0
    at: Storage | None = None
    for lifetime in live_together:
        while ends and ends[0][0] < lifetime.first:
            current -= heapq.heappop(ends)[1]
        size = footprint(program, lifetime.storage)
        heapq.heappush(ends, (lifetime.last, size))
        current += size
        if current > most:
            most, at = current, lifetime.storage
    return most, at


def peak_bytes_per_partition(program: Program, buffer: MemoryRegion) -> tuple[int, Storage | None]:
    """The most bytes per partition of SBUF or PSUM that live at once on any core."""
    peaks = [peak(program, in_region(program, buffer, core)) for core in range(program.lnc)]
    return max(peaks, key=lambda found: found[0])
