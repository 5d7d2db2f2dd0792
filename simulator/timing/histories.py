"""Who waits for whom: RAW, WAR and WAW of all storages, from their sorted accesses.

Storages with one view only are worked out by NumPy, all at once; those with several, whose
views overlap in part, one access after another (`dependencies.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.tensor import MemoryRegion
from simulator.timing.dependencies import Layout, State
from simulator.timing.operands import (
    AT_MASK,
    AT_SHIFT,
    FORM_SHIFT,
    SLOT_MASK,
    STORAGE_SHIFT,
    Numbers,
    Operands,
)

if TYPE_CHECKING:
    from simulator.program import Program

_MANY_READERS = 12
_RANK_SHIFT = 14
_BLOCK = 1 << 15
"""Instructions whose pairs are sorted together: what that takes is thrown away again."""
WAR, REUSED = 1 << 12, 2 << 12
"""Ranks of pairs: after all RAW, and after all WAR and WAW."""


@dataclass
class Pairs:
    """Who waits for whom, in parts; the parts of one array belong to those of the others."""

    waiting: list[Numbers] = field(default_factory=list)
    awaited: list[Numbers] = field(default_factory=list)
    ranks: list[Numbers] = field(default_factory=list)
    """The order in which an instruction's are looked at; from WAR on they are no RAW."""

    def add(self, waiting: Numbers, awaited: Numbers, ranks: Numbers) -> None:
        """Add some."""
        self.waiting.append(waiting.astype(np.int32, copy=False))
        self.awaited.append(awaited.astype(np.int32, copy=False))
        self.ranks.append(ranks.astype(np.int16))

    def filter(self, needless: Callable[[Numbers, Numbers, Numbers], Numbers]) -> None:
        """Drop some, part by part."""
        for number, part in enumerate(zip(self.waiting, self.awaited, self.ranks, strict=True)):
            kept = ~needless(*part)
            columns = (self.waiting, self.awaited, self.ranks)
            for column, values in zip(columns, part, strict=True):
                column[number] = values[kept]


@dataclass
class Histories:
    """What is known of storages once all their accesses are known."""

    regions: Numbers
    """Of each storage of the Program."""
    begin: Numbers
    end: Numbers
    """Of each storage of the Program: where its users are in `users`."""
    storages: list[Numbers] = field(default_factory=list)
    firsts: list[Numbers] = field(default_factory=list)
    """Of each of them: instruction and slot of the first access."""
    users: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))
    """Storage by storage, those that touched it last: readers waited for the writer."""


def histories(program: Program, found: Operands, queues: bytearray, pairs: Pairs) -> Histories:
    """Walk through the accesses of all storages.

    Args:
        program: for its storages.
        found: their accesses, with the numbers of played instructions.
        queues: of the played instructions.
        pairs: gets what readers and writers wait for.
    """
    count = len(program.storages)
    storages = found.accesses >> STORAGE_SHIFT
    tracked = found.shared[storages]
    keys, views, storages = found.accesses[tracked], found.views[tracked], storages[tracked]
    found.views = views[:0]
    some = np.zeros(count, dtype=np.int64)
    some[storages] = views
    dynamic = np.array([form[3] > 0 for form in found.forms], dtype=bool)
    several = np.zeros(count, dtype=bool)
    several[storages[some[storages] != views]] = True
    if dynamic.any():
        several[storages[dynamic[views >> FORM_SHIFT]]] = True
    apart = several[storages]
    known = Histories(found.regions, np.zeros(count, np.int64), np.zeros(count, np.int64))
    single, keys, views = keys[~apart], keys[apart], views[apart]
    del storages, tracked, apart
    single.sort()
    users = _single(single, queues, pairs, known)
    del single
    order = np.argsort(keys)
    further = _several(program, found, keys[order], views[order], queues, pairs, known, len(users))
    known.users = np.concatenate([users, further])
    return known


def _single(keys: Numbers, queues: bytearray, pairs: Pairs, known: Histories) -> Numbers:
    """Storages with one view: a reader waits for the last writer, a writer for the readers since.

    If there are none, it waits for the last writer. Returns the users of all of them.
    """
    count = len(keys)
    if not count:
        return keys
    storages = (keys >> STORAGE_SHIFT).astype(np.int32)
    at = ((keys >> AT_SHIFT) & AT_MASK).astype(np.int32)
    slots = (keys & (SLOT_MASK | 1)).astype(np.int16)
    writes = (slots & 1).astype(bool)
    slots >>= 1
    here = np.arange(count, dtype=np.int32)
    opens = np.empty(count, dtype=bool)
    opens[0] = True
    np.not_equal(storages[1:], storages[:-1], out=opens[1:])
    starts = np.flatnonzero(opens)
    known.storages.append(storages[starts])
    known.firsts.append(keys[starts] & ((1 << STORAGE_SHIFT) - 1))
    starts = starts.astype(np.int32)
    # the write before each access, or just before the storage's first access
    before = np.where(opens, here - 1, -1)
    before[1:] = np.maximum(before[1:], np.where(writes[:-1] & ~opens[1:], here[:-1], -1))
    np.maximum.accumulate(before, out=before)
    first = starts[np.cumsum(opens) - 1]
    written = before >= first
    raw = np.flatnonzero(~writes & written)
    pairs.add(at[raw], at[before[raw]], slots[raw])
    waw = np.flatnonzero(writes & written & (before == here - 1))
    pairs.add(at[waw], at[before[waw]], slots[waw] | WAR)
    # runs of readers: up to a write, or to the storage's last access
    closing = np.flatnonzero(writes & (here - 1 > before))
    _readers(at, before[closing] + 1, closing, queues, pairs, slots)
    ends = np.append(starts[1:], count)
    begin = np.where(writes[ends - 1], ends - 1, before[ends - 1] + 1)
    users = _compressed(at, begin, ends, queues)
    sizes = np.array([len(users[i]) for i in users], dtype=np.int64)
    extra = count + np.concatenate([[0], np.cumsum(sizes)[:-1]]) if users else sizes
    for (i, _), start, size in zip(users.items(), extra.tolist(), sizes.tolist(), strict=True):
        begin[i], ends[i] = start, start + size
    known.begin[storages[starts]], known.end[storages[starts]] = begin, ends
    return np.concatenate([at, *(np.array(u, dtype=np.int32) for u in users.values())])


def _readers(
    at: Numbers, begin: Numbers, closing: Numbers, queues: bytearray, pairs: Pairs, slots: Numbers
) -> None:
    """Each writer waits for the readers from `begin` to itself."""
    few = _compressed(at, begin, closing, queues)
    plain = np.ones(len(begin), dtype=bool)
    for i, readers in few.items():
        plain[i] = False
        one = int(closing[i])
        rank = np.int16(int(slots[one]) | WAR)
        awaited = np.array(readers, dtype=np.int64)
        pairs.add(np.full(len(readers), at[one]), awaited, np.full(len(readers), rank))
    begin, closing = begin[plain], closing[plain]
    sizes = closing - begin
    writer = np.repeat(closing, sizes)
    pairs.add(at[writer], at[ranges(begin, sizes)], slots[writer] | WAR)


def ranges(begin: Numbers, sizes: Numbers) -> Numbers:
    """begin[0], begin[0] + 1, … (sizes[0] of them), begin[1], …"""
    before = np.cumsum(sizes) - sizes
    found: Numbers = np.arange(int(sizes.sum())) + np.repeat(begin - before, sizes)
    return found


def _compressed(
    at: Numbers, begin: Numbers, end: Numbers, queues: bytearray
) -> dict[int, list[int]]:
    """Of the runs with many readers: those that matter, as queues are in order."""
    found = {}
    for i in np.flatnonzero(end - begin > _MANY_READERS).tolist():
        readers: list[int] = []
        for reader in at[begin[i] : end[i]].tolist():
            readers.append(reader)
            if len(readers) > _MANY_READERS:
                compress(readers, queues)
        found[i] = readers
    return found


def compress(readers: list[int], queues: bytes | bytearray) -> None:
    """Keep the last reader of each queue, as queues are in order, and the present one."""
    last = {queues[reader]: reader for reader in readers[:-1]}
    readers[:] = [*sorted(last.values()), readers[-1]]


def _several(
    program: Program, found: Operands, keys: Numbers, views: Numbers, queues: bytearray,
    pairs: Pairs, known: Histories, first_user: int,
) -> Numbers:  # fmt: skip
    """Storages with several views; returns their users.

    Most are accessed as others were, one loop iteration after another: the same views by the
    same queues in the same order. That is played once, and the result moved to the others.
    """
    storages = keys >> STORAGE_SHIFT
    starts = np.flatnonzero(np.diff(storages, prepend=-1))
    known.storages.append(storages[starts])
    known.firsts.append(keys[starts] & ((1 << STORAGE_SHIFT) - 1))
    at = ((keys >> AT_SHIFT) & AT_MASK).astype(np.int32)
    slots = (keys & (SLOT_MASK | 1)).astype(np.int16)
    used = np.frombuffer(queues, np.uint8)[at]
    layouts: dict[tuple[MemoryRegion, int], Layout] = {}
    alike: dict[Any, list[int]] = {}
    for begin, end in pairwise([*starts.tolist(), len(keys)]):
        storage = program.storages[int(storages[begin])]
        row = storage.bytes_per_partition
        if not storage.buffer.on_chip:
            row = storage.shape[-1] * storage.dtype.itemsize
        span = slice(begin, end)
        access = (views[span].tobytes(), slots[span].tobytes(), used[span].tobytes())
        alike.setdefault((storage.buffer, row, *access), []).append(begin)
    users, count = [], first_user
    for (buffer, row, seen, operand, queue), begins in alike.items():
        layout = layouts.setdefault((buffer, row), Layout(row))
        accesses = np.frombuffer(operand, np.int16).tolist()
        past = _Past(State(layout), found.forms, queue)
        past.play(np.frombuffer(seen, np.int64).tolist(), accesses)
        heads = np.array(begins)
        waiting, awaited = (_moved(at, heads, one) for one in (past.waiting, past.awaited))
        pairs.add(waiting, awaited, np.tile(np.array(past.ranks, dtype=np.int64), len(begins)))
        last = past.state.users()
        users.append(_moved(at, heads, last))
        known.begin[storages[heads]] = count + np.arange(len(begins)) * len(last)
        known.end[storages[heads]] = known.begin[storages[heads]] + len(last)
        count += len(users[-1])
    return np.concatenate(users or [at[:0]])


def _moved(at: Numbers, begin: Numbers, places: list[int]) -> Numbers:
    """The instructions of the accesses at some places behind each of `begin`."""
    moved: Numbers = at[begin[:, None] + np.array(places, dtype=np.int64)].reshape(-1)
    return moved


class _Past:
    """The accesses of a storage with several views, numbered from 0."""

    def __init__(self, state: State, forms: list[tuple[Any, ...]], queues: bytes) -> None:
        """Args:
        state: of the storage, before all of them.
        forms: of the views.
        queues: of the instructions that make them.
        """
        self.state, self.forms, self.queues = state, forms, queues
        self.waiting: list[int] = []
        self.awaited: list[int] = []
        self.ranks: list[int] = []

    def play(self, views: list[int], slots: list[int]) -> None:
        """Find who waits for whom."""
        state, forms, awaited = self.state, self.forms, self.awaited
        for here, (view, slot) in enumerate(zip(views, slots, strict=True)):
            form = forms[view >> FORM_SHIFT]
            entry = state.layout.index.get(view)
            if entry is None:
                entry = state.add(view, form, view & ((1 << FORM_SHIFT) - 1))
            if entry[3] is not None:
                state.enter(entry[3])
            rank = slot >> 1
            if slot & 1:
                rank |= WAR
                state.write(entry, here, awaited, everything=not form[3])
            else:
                readers = state.read(entry, here, awaited)
                if len(readers) > _MANY_READERS:
                    compress(readers, self.queues)
            more = len(awaited) - len(self.waiting)
            self.waiting += [here] * more
            self.ranks += [rank] * more


def earliest(pairs: Pairs, queues: bytearray, own: Any, rings: Any) -> list[Any]:
    """Of each instruction, the instructions it waits for: of each queue, the last.

    Args:
        pairs: who waits for whom.
        queues: of the played instructions.
        own: by queue: whether RAW within it needs no waiting (accumulation in order).
        rings: by queue: whether WAR and WAW within it do (DMA rings).
    """
    queue = np.frombuffer(queues, np.uint8)

    def needless(waiting: Numbers, awaited: Numbers, ranks: Numbers) -> Numbers:
        mine = queue[waiting]
        found: Numbers = np.where(ranks < WAR, own[mine], ~rings[mine]) & (mine == queue[awaited])
        found |= waiting == awaited
        return found

    pairs.filter(needless)
    waiting, awaited, ranks = map(np.concatenate, (pairs.waiting, pairs.awaited, pairs.ranks))
    pairs.waiting, pairs.awaited, pairs.ranks = [], [], []
    order = np.argsort(waiting, kind="stable")
    waiting, awaited, ranks = waiting[order], awaited[order], ranks[order]
    found: list[Any] = []
    for begin in range(0, len(queues), _BLOCK):
        end = min(begin + _BLOCK, len(queues))
        part = slice(*np.searchsorted(waiting, (begin, end)).tolist())
        found += _block(waiting[part] - begin, awaited[part], ranks[part], queue, end - begin)
    return found


def _block(
    waiting: Numbers, awaited: Numbers, ranks: Numbers, queue: Numbers, count: int
) -> list[Any]:
    """`earliest` of `count` instructions, numbered from 0 in `waiting`."""
    order = np.argsort(waiting.astype(np.int64) << _RANK_SHIFT | ranks, kind="stable")
    waiting, awaited = waiting[order], awaited[order]
    # of the same queue, the last, in the place of the first
    group = waiting.astype(np.int64) << 8 | queue[awaited]
    order = np.argsort(group, kind="stable")
    grouped = group[order]
    heads = np.flatnonzero(np.diff(grouped, prepend=-1))
    if len(heads) < len(grouped):
        awaited[order[heads]] = np.maximum.reduceat(awaited[order], heads)
        keep = np.zeros(len(awaited), dtype=bool)
        keep[order[heads]] = True
        waiting, awaited = waiting[keep], awaited[keep]
    return _tuples(waiting, awaited, count)


def _tuples(waiting: Numbers, awaited: Numbers, count: int) -> list[Any]:
    """For each of `count` instructions the tuple of its `awaited`, or None."""
    found = np.full(count, None, dtype=object)
    sizes = np.bincount(waiting, minlength=count)
    begins = np.cumsum(sizes) - sizes
    for size in np.unique(sizes).tolist():
        if size:
            chosen = np.flatnonzero(sizes == size)
            columns = [awaited[begins[chosen] + k].tolist() for k in range(size)]
            found[chosen] = np.fromiter(zip(*columns, strict=True), object, len(chosen))
    tuples: list[Any] = found.tolist()
    return tuples
