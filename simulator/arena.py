"""Where a replay keeps temporaries: one arena, packed by lifetime.

Tensors that only one worker of a parallel segment touches are packed in that worker's part of
the arena, in its order; all others live as long as the segments that touch them.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.lifetimes import lifetimes

if TYPE_CHECKING:
    from simulator.forward import Forwarding
    from simulator.program import Program
    from simulator.schedule import Segment
    from simulator.tensor import Storage

_ALIGNMENT = 64  # bytes: a cache line


@dataclass
class _Life:
    """The positions a storage must keep its memory for, and the workers that touch it."""

    first: int
    last: int
    places: set[tuple[int, int]]
    """(segment, worker)."""


def pack(
    program: Program,
    bytes_of: Callable[[Storage], int],
    forwarding: Forwarding,
    segments: list[Segment],
) -> tuple[dict[int, int], int]:
    """First-fit addresses for all temporaries, reusing bytes whose tensor has died.

    A storage that is a view of another takes no memory, and keeps the other alive.

    Returns:
        Storage index -> byte address in one arena, and the arena's size in bytes.
    """
    parts: dict[int | None, list[tuple[int, int, int]]] = {}  # worker -> (first, last, storage)
    for index, life in _lives(program, forwarding, segments).items():
        worker = None
        if len(life.places) == 1:
            ((segment, lane),) = life.places
            worker = lane if len(segments[segment].lanes) > 1 else None
        if worker is None:
            for segment, _ in life.places:
                if len(segments[segment].lanes) > 1:
                    units = [unit for lane_ in segments[segment].lanes for unit in lane_]
                    life.first = min(life.first, min(unit.first for unit in units))
                    life.last = max(life.last, max(unit.last for unit in units))
        parts.setdefault(worker, []).append((life.first, life.last, index))
    addresses: dict[int, int] = {}
    size = 0
    for lives in parts.values():
        size = _fit(program, bytes_of, sorted(lives), size, addresses)
    for storage in program.storages:  # never touched: an empty result, say
        placed = storage.index in addresses or storage.index in forwarding.aliases
        if storage.role == "temporary" and not placed:
            addresses[storage.index] = size
            size += -(-bytes_of(storage) // _ALIGNMENT) * _ALIGNMENT
    return addresses, size


def _lives(program: Program, forwarding: Forwarding, segments: list[Segment]) -> dict[int, _Life]:
    """The temporaries' lives, by the storage that holds their data."""
    spans = {life.storage.index: (life.first, life.last) for life in lifetimes(program)}
    lives: dict[int, _Life] = {}
    for number, segment in enumerate(segments):
        for worker, lane in enumerate(segment.lanes):
            for unit in lane:
                for instruction in program.instructions[unit.first : unit.last + 1]:
                    for _, tensor in instruction.reads() + instruction.writes():
                        index, storage = tensor.storage.index, tensor.storage
                        while storage.index in forwarding.aliases:
                            storage = forwarding.aliases[storage.index].root.storage
                        if storage.role != "temporary":
                            continue
                        first, last = spans[index]
                        life = lives.setdefault(storage.index, _Life(first, last, set()))
                        life.first, life.last = min(life.first, first), max(life.last, last)
                        life.places.add((number, worker))
    return lives


def _fit(
    program: Program,
    bytes_of: Callable[[Storage], int],
    lives: list[tuple[int, int, int]],
    base: int,
    addresses: dict[int, int],
) -> int:
    """Place storages from `base` on; returns the end."""
    live: list[tuple[int, int, int]] = []  # (start, end, last use)
    size = base
    for first, last, index in lives:
        live = [block for block in live if block[2] >= first]
        needed = -(-bytes_of(program.storages[index]) // _ALIGNMENT) * _ALIGNMENT
        start = base
        for block_start, block_end, _ in live:
            if block_start - start >= needed:
                break
            start = max(start, block_end)
        insort(live, (start, start + needed, last))
        addresses[index] = start
        size = max(size, start + needed)
    return size
