"""On-chip memory is reused: which new tile takes the place of which dead ones.

Tiles allocated in a loop are storages of their own, and the real allocator rotates them through
the memory. Here a new tile takes the bytes of the tiles that died first, so that it waits for
their last use only when memory has run out. PSUM is taken in whole banks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from simulator.tensor import Storage
from simulator.timing.operands import Numbers


@dataclass
class Lives:
    """Births and deaths of the storages of one memory of one core, in order."""

    born: Numbers
    """Storages."""
    born_at: Numbers
    """The instructions that use them first."""
    dead: Numbers
    dead_at: Numbers
    """Those that use them last."""


def sbuf(lives: Lives, sizes: Numbers, capacity: int) -> tuple[Numbers, Numbers]:
    """Rotate storages through SBUF.

    Fresh memory, then the dead storages in the order of their deaths, are a stream of bytes,
    of which each storage takes the next.

    Args:
        lives: of the storages.
        sizes: bytes per partition, of each storage of the Program.
        capacity: bytes per partition.

    Returns:
        Instructions, and the dead storages whose place they take.
    """
    ends = np.cumsum(sizes[lives.born])
    given = np.cumsum(np.append(capacity, sizes[lives.dead]))
    dead = np.searchsorted(lives.dead_at, lives.born_at)
    if (given[dead] < ends).any():
        return _short(lives, sizes, capacity)
    first = np.searchsorted(given, ends - sizes[lives.born], side="right")
    last = np.searchsorted(given, ends, side="left")
    first = np.maximum(first, 1)
    counts = np.maximum(last - first + 1, 0)
    before = np.cumsum(counts) - counts
    places = np.arange(int(counts.sum())) + np.repeat(first - before, counts)
    return np.repeat(lives.born_at, counts), lives.dead[places - 1]


def _short(lives: Lives, sizes: Numbers, capacity: int) -> tuple[Numbers, Numbers]:
    """The same where more lives than fits: what is missing is there all the same."""
    queue: deque[tuple[int, int]] = deque()
    waiting, places = [], []
    deaths = iter([*zip(lives.dead_at.tolist(), lives.dead.tolist(), strict=True), (1 << 62, -1)])
    death = next(deaths)
    for at, storage in zip(lives.born_at.tolist(), lives.born.tolist(), strict=True):
        while death[0] < at:
            queue.append((int(sizes[death[1]]), death[1]))
            death = next(deaths)
        missing = int(sizes[storage]) - capacity
        capacity = max(0, -missing)
        while missing > 0 and queue:
            free, place = queue.popleft()
            waiting.append(at)
            places.append(place)
            if free > missing:
                queue.appendleft((free - missing, place))
            missing -= free
    return np.array(waiting, dtype=np.int64), np.array(places, dtype=np.int64)


def psum(
    lives: Lives, storages: list[Storage], banks: int, bank_bytes: int, first: Numbers
) -> tuple[Numbers, Numbers]:
    """Rotate storages through PSUM: the banks longest dead first.

    Args:
        lives: of the storages.
        storages: of the Program.
        banks: how many there are.
        bank_bytes: of each, per partition.
        first: of each storage of the Program: gets its first bank, counted from 1; 0 if none.

    Returns:
        Instructions, and the dead storages whose place they take.
    """
    free: deque[tuple[int, int]] = deque((bank, -1) for bank in range(1, banks + 1))
    held: dict[int, list[int]] = {}
    waiting, places = [], []
    deaths = iter([*zip(lives.dead_at.tolist(), lives.dead.tolist(), strict=True), (1 << 62, -1)])
    death = next(deaths)
    for at, index in zip(lives.born_at.tolist(), lives.born.tolist(), strict=True):
        while death[0] < at:
            free.extend((bank, death[1]) for bank in held.pop(death[1], ()))
            death = next(deaths)
        storage, taken = storages[index], []
        for step in range(-(-storage.bytes_per_partition // bank_bytes)):
            entry = _bank(free, storage, step, bank_bytes)
            if entry is None:
                break
            taken.append(entry[0])
            if entry[1] >= 0:
                waiting.append(at)
                places.append(entry[1])
        held[index] = taken
        first[index] = taken[0] if taken else 0
    return np.array(waiting, dtype=np.int64), np.array(places, dtype=np.int64)


def _bank(
    free: deque[tuple[int, int]], storage: Storage, step: int, bank_bytes: int
) -> tuple[int, int] | None:
    """Take a bank: the one that the kernel chose, or the one longest dead."""
    if storage.address is None:
        return free.popleft() if free else None
    wanted = storage.address[1] // bank_bytes + 1 + step
    for entry in free:
        if entry[0] == wanted:
            free.remove(entry)
            return entry
    return None
