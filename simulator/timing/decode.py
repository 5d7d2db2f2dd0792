"""A Program as arrays: for each played instruction its cost, queue and dependencies.

What instructions touch and cost is found once each (`operands.py`), then repeated as often as
dynamic loops run (`loops.py`). Dependencies follow from the histories of the storages
(`histories.py`) and from the reuse of on-chip memory (`rotation.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.instructions.control import LOOPS
from simulator.lifetimes import lifetimes
from simulator.timing import rotation
from simulator.timing.cost import BANK, BRANCH, ENGINES, MEET, QUEUES, Cost
from simulator.timing.histories import REUSED, Histories, Pairs, earliest, histories, ranges
from simulator.timing.loops import unroll
from simulator.timing.machine import Machine
from simulator.timing.operands import (
    AT_MASK,
    AT_SHIFT,
    DIRECT,
    PSUM,
    SBUF,
    SLOT_MASK,
    STORAGE_SHIFT,
    Numbers,
    Operands,
    operands,
)

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

QUEUE_COUNT = len(QUEUES)
_RINGS = ("loads", "stores")


@dataclass
class Decoded:
    """What play.py plays. All lists and arrays have one entry per played instruction."""

    instructions: list[Instruction] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    prices: list[Cost] = field(default_factory=list)
    """The distinct costs, …"""
    price: Numbers = field(default_factory=lambda: np.zeros(0, np.int32))
    """… and the position there of each instruction's."""
    queues: bytearray = field(default_factory=bytearray)
    """core * len(QUEUES) + index in QUEUES."""
    depends: list[tuple[int, ...] | None] = field(default_factory=list)
    """The instructions it waits for: of each queue, the last."""
    banks: dict[int, int] = field(default_factory=dict)
    """Of Vector and Scalar instructions that work in PSUM: 1 + the first bank."""
    meets: dict[int, int] = field(default_factory=dict)
    """The partner of each instruction that both cores come to together."""
    assumptions: list[str] = field(default_factory=list)
    """What was assumed about dynamic loops."""


def decode(
    program: Program, machine: Machine, trips: int | Mapping[Any, int] | None = None
) -> Decoded:
    """Turn a Program into arrays.

    Raises:
        ValueError: a dynamic loop's trip count is not known and `trips` does not give it.
    """
    decoded = Decoded()
    found = operands(program, machine)
    order = unroll(program, trips, decoded.assumptions) if found.loops else None
    _issue(program, found, order, decoded)
    price = found.price
    if order is not None:
        price = _repeat(program, found, order, decoded)
    prices = found.prices
    decoded.prices, decoded.price = prices, price
    decoded.costs = list(map(prices.__getitem__, price.tolist()))
    pairs = Pairs()
    known = histories(program, found, decoded.queues, pairs)
    banks = _rotate(program, known, pairs, mortal=order is None)
    kinds = np.array([one.kind for one in prices], dtype=np.int8)[price]
    _note_banks(found, kinds == BANK, banks, decoded)
    del known, found
    queues = np.arange(QUEUE_COUNT * program.lnc) % QUEUE_COUNT
    tensor = queues == QUEUES.index("tensor")
    rings = np.isin(queues, [QUEUES.index(name) for name in _RINGS])
    decoded.depends = earliest(pairs, decoded.queues, tensor, rings)
    _meet(np.flatnonzero(kinds == MEET), decoded)
    if any(map(attrgetter("after"), program.instructions)):
        _explicit(kinds == BRANCH, decoded)
    return decoded


def _issue(program: Program, found: Operands, order: list[int] | None, decoded: Decoded) -> None:
    """Instructions and their queues."""
    by_price = np.array([price.queue for price in found.prices], dtype=np.uint8)
    queues = by_price[found.price]
    if program.lnc > 1:
        cores = map(attrgetter("core"), program.instructions)
        queues += QUEUE_COUNT * np.fromiter(cores, np.uint8, len(queues))
    decoded.instructions = program.instructions
    decoded.queues = bytearray(queues.tobytes())


def _repeat(program: Program, found: Operands, order: list[int], decoded: Decoded) -> Numbers:
    """Repeat instructions and accesses as dynamic loops do; returns the costs' positions.

    A loop's end is a branch in every engine's queue of its core; its begin takes no time.
    """
    control = np.array([found.prices[i].kind == BRANCH for i in range(len(found.prices))])
    control = control[found.price]
    times = np.where(control, len(ENGINES), 1)
    for position in np.flatnonzero(control).tolist():
        if program.instructions[position].spec.name in LOOPS:
            times[position] = 0
    positions = np.array(order, dtype=np.int64)
    played = np.repeat(positions, times[positions])
    if len(played) > AT_MASK:
        raise ValueError(f"{program.name} plays more than {AT_MASK:,} instructions")
    static = np.frombuffer(decoded.queues, np.uint8)
    queues = static[played]
    branches = np.flatnonzero(control[played])
    engines = np.arange(len(branches)) % len(ENGINES)
    queues[branches] = queues[branches] // QUEUE_COUNT * QUEUE_COUNT + engines
    decoded.queues = bytearray(queues.tobytes())
    instructions = program.instructions
    decoded.instructions = [instructions[position] for position in played.tolist()]
    at = (found.accesses >> AT_SHIFT) & AT_MASK
    by_position = np.argsort(at, kind="stable")
    sizes = np.bincount(at, minlength=len(instructions))
    begins = np.cumsum(sizes) - sizes
    chosen = by_position[ranges(begins[played], sizes[played])]
    moved = np.repeat(np.arange(len(played)) - played, sizes[played])
    found.accesses = found.accesses[chosen] + (moved << AT_SHIFT)
    found.views = found.views[chosen]
    return found.price[played]


def _rotate(program: Program, known: Histories, pairs: Pairs, mortal: bool) -> Numbers:
    """Let new storages wait for the dead ones whose place they take.

    Args:
        program: the storages' owner.
        known: their first and last users.
        pairs: gets who waits for whom.
        mortal: whether storages die before the end; those in dynamic loops do not.

    Returns:
        Of each storage its first PSUM bank, counted from 1; 0 for none.
    """
    storages, target = program.storages, program.target
    count = len(storages)
    sizes = np.fromiter(map(attrgetter("bytes_per_partition"), storages), np.int64, count)
    owners = np.zeros(count, dtype=np.int64)
    if program.lnc > 1:
        owners[:] = [storage.core or 0 for storage in storages]
    regions = known.regions
    born, firsts = np.concatenate(known.storages), np.concatenate(known.firsts)
    born = born[np.argsort(firsts)]
    firsts = np.sort(firsts) >> AT_SHIFT
    dead, dead_at = _deaths(program) if mortal else (born[:0], born[:0])
    banks = np.zeros(count, dtype=np.int64)
    for core in range(program.lnc):
        for region in (SBUF, PSUM):
            mine = (regions == region) & (owners == core)
            lives = rotation.Lives(
                born[mine[born]], firsts[mine[born]], dead[mine[dead]], dead_at[mine[dead]]
            )
            if region == SBUF:
                capacity = target.sbuf_bytes_per_partition
                waiting, places = rotation.sbuf(lives, sizes, capacity)
            else:
                number, size = target.psum_banks, target.psum_bank_bytes
                waiting, places = rotation.psum(lives, storages, number, size, banks)
            begin, users = known.begin[places], known.end[places] - known.begin[places]
            awaited = known.users[ranges(begin, users)]
            rank = np.int64(REUSED)
            pairs.add(np.repeat(waiting, users), awaited, np.full(len(awaited), rank))
    return banks


def _deaths(program: Program) -> tuple[Numbers, Numbers]:
    """On-chip storages in the order in which they are used for the last time, and when."""
    lives = lifetimes(program)
    last = np.fromiter(map(attrgetter("last"), lives), np.int64, len(lives))
    dead = np.fromiter(map(attrgetter("storage.index"), lives), np.int64, len(lives))
    order = np.argsort(last, kind="stable")
    return dead[order], last[order]


def _note_banks(found: Operands, shared: Numbers, banks: Numbers, decoded: Decoded) -> None:
    """Find the PSUM banks that instructions work in which wait for each other there."""
    keys = found.accesses
    bank = banks[keys >> STORAGE_SHIFT]
    direct = (keys & SLOT_MASK) >> 1 & 255 == DIRECT
    keys = keys[(bank > 0) & direct]
    at = (keys >> AT_SHIFT) & AT_MASK
    keys, at = keys[shared[at]], at[shared[at]]
    order = np.argsort(at << 13 | keys & SLOT_MASK)
    numbers = banks[keys[order] >> STORAGE_SHIFT]
    decoded.banks = dict(zip(at[order].tolist(), numbers.tolist(), strict=True))


def _meet(candidates: Numbers, decoded: Decoded) -> None:
    """Find the partners on the other core; neither waits for the other's end."""
    arrived: dict[int, int] = {}
    for at in candidates.tolist():
        instruction = decoded.instructions[at]
        if instruction.peer is None:
            continue
        partner = arrived.pop(id(instruction.peer), None)
        if partner is None:
            arrived[id(instruction)] = at
            continue
        decoded.meets[at], decoded.meets[partner] = partner, at
        waits = tuple(d for d in decoded.depends[at] or () if d != partner)
        decoded.depends[at] = waits or None


def _explicit(branches: Numbers, decoded: Decoded) -> None:
    """What the kernel told instructions to wait for (`depends_on`)."""
    where: dict[int, int] = {}
    for at in np.flatnonzero(~branches).tolist():
        instruction = decoded.instructions[at]
        where[id(instruction)] = at
        told = tuple(where[id(i)] for i in instruction.after if id(i) in where)
        if told:
            decoded.depends[at] = (*(decoded.depends[at] or ()), *told)
