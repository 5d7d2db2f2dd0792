"""Which instruction waits for which: RAW, WAR and WAW on the regions of storages.

On-chip memory is reused: tiles allocated in a loop are storages of their own, and the real
allocator rotates them through the memory. Here a new tile takes the bytes of the tiles that
died first, so that it waits for their last use only when memory has run out (`Memory`).
"""

from __future__ import annotations

from collections import deque

from simulator.tensor import NkiTensor, Storage

Box = tuple[int, int, int, int]
_MANY_READERS = 12


class Region:
    """A part of a storage that instructions access as one: who touched it last."""

    __slots__ = ("box", "conflicts", "readers", "writer")

    def __init__(self, box: Box) -> None:
        """Args:
        box: rows [0] to [1] and bytes [2] to [3] (ends excluded).
        """
        self.box = box
        self.writer = -1
        self.readers: list[int] = []
        self.conflicts: list[Region] = [self]
        """Regions with which it has bytes in common, itself first."""


class State:
    """What is known about one storage while the Program is walked through."""

    __slots__ = ("bank", "first", "memory", "offset", "regions", "row", "shape", "size", "where")

    def __init__(self, where: int, row: int, size: int, memory: Memory | None) -> None:
        """Args:
        where: a small number that tells memory regions apart, part of cost signatures.
        row: bytes of a row: of a partition, or of the last dimension in HBM.
        size: bytes of a partition that it takes; 0 for HBM.
        memory: the memory it rotates through.
        """
        self.where = where
        self.row = row
        self.size = size
        self.memory = memory
        self.bank = 0
        self.offset = -1
        self.shape: tuple[int, ...] = ()
        """Of the first region, which most storages are always accessed by."""
        self.first: Region | None = None
        self.regions: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Region] | None = None

    def region(self, tensor: NkiTensor) -> Region:
        """The region a tensor covers; the caller has tried `first`."""
        if self.first is None:
            self.first = Region(box_of(tensor, self.row))
            self.offset, self.shape = tensor.offset, tensor.shape
            return self.first
        if self.regions is None:
            self.regions = {}
        key = (tensor.offset, tensor.shape, tensor.strides)
        found = self.regions.get(key)
        if found is None:
            found = self._add(box_of(tensor, self.row), key)
        return found

    def _add(self, box: Box, key: tuple[int, tuple[int, ...], tuple[int, ...]]) -> Region:
        assert self.regions is not None and self.first is not None
        region = Region(box)
        for other in (self.first, *self.regions.values()):
            if other.box == box:
                self.regions[key] = other
                return other
        for other in dict.fromkeys((self.first, *self.regions.values())):
            if overlaps(box, other.box):
                region.conflicts.append(other)
                other.conflicts.append(region)
        self.regions[key] = region
        return region

    def everyone(self) -> list[int]:
        """The instructions that touched it last."""
        found: list[int] = []
        regions = [self.first] if self.first is not None else []
        if self.regions is not None:
            regions += list(dict.fromkeys(self.regions.values()))
        for region in regions:
            if region is not None:
                found += region.readers
                if region.writer >= 0 and not region.readers:
                    found.append(region.writer)
        return found


def overlaps(a: Box, b: Box) -> bool:
    """Whether two boxes have bytes in common."""
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def contains(a: Box, b: Box) -> bool:
    """Whether `a` covers `b`."""
    return a[0] <= b[0] and b[1] <= a[1] and a[2] <= b[2] and b[3] <= a[3]


def box_of(tensor: NkiTensor, row: int) -> Box:
    """The rows and the bytes within a row that a view may touch.

    A view whose address is known on the device only may touch everything.
    """
    item = tensor.dtype.itemsize
    if tensor.dynamic is not None:
        return (0, 1 << 60, 0, 1 << 60)
    per_row = max(1, row // item)
    start, column = divmod(tensor.offset, per_row)
    rows = columns = 0
    for count, stride in zip(tensor.shape, tensor.strides, strict=True):
        reach = (count - 1) * abs(stride)
        if stride % per_row == 0:
            rows += reach // per_row
        else:
            columns += reach
    if column + columns >= per_row:  # wraps into the next row: take whole rows
        return (start, start + rows + (column + columns) // per_row + 1, 0, row)
    return (start, start + rows + 1, column * item, (column + columns + 1) * item)


class Memory:
    """SBUF of one core as a queue of bytes: the longest dead are taken first."""

    def __init__(self, capacity: int) -> None:
        """Args:
        capacity: bytes per partition.
        """
        self.fresh = capacity
        self.dead: deque[tuple[int, list[int]]] = deque()

    def take(self, size: int) -> list[int]:
        """Allocate; returns the instructions that must have ended before."""
        waits: list[int] = []
        if self.fresh >= size:
            self.fresh -= size
            return waits
        size -= self.fresh
        self.fresh = 0
        while size > 0 and self.dead:
            free, users = self.dead.popleft()
            waits += users
            if free > size:
                self.dead.appendleft((free - size, users))
            size -= free
        return waits

    def give(self, state: State) -> None:
        """A storage has died."""
        self.dead.append((state.size, state.everyone()))


class Banks(Memory):
    """PSUM of one core: banks that are taken whole, the longest dead first."""

    def __init__(self, banks: int, bank_bytes: int) -> None:
        """Args:
        banks: how many there are.
        bank_bytes: of each, per partition.
        """
        super().__init__(banks * bank_bytes)
        self.bank_bytes = bank_bytes
        self.free: deque[tuple[int, list[int]]] = deque((b, []) for b in range(1, banks + 1))
        self.held: dict[int, list[int]] = {}

    def place(self, state: State, storage: Storage) -> list[int]:
        """Give a storage its banks; returns the instructions that must have ended before."""
        count = -(-state.size // self.bank_bytes)
        wanted = None
        if storage.address is not None:
            wanted = storage.address[1] // self.bank_bytes + 1
        waits: list[int] = []
        taken: list[int] = []
        for step in range(count):
            entry = self._bank(None if wanted is None else wanted + step)
            if entry is None:
                break
            taken.append(entry[0])
            waits += entry[1]
        state.bank = taken[0] if taken else 1
        self.held[id(state)] = taken
        return waits

    def _bank(self, wanted: int | None) -> tuple[int, list[int]] | None:
        if wanted is None:
            return self.free.popleft() if self.free else None
        for entry in self.free:
            if entry[0] == wanted:
                self.free.remove(entry)
                return entry
        return None

    def give(self, state: State) -> None:
        """A storage has died."""
        users = state.everyone()
        for bank in self.held.pop(id(state), []):
            self.free.append((bank, users))


def compress(readers: list[int], queues: bytearray) -> None:
    """Keep the last reader of each queue; queues are in order."""
    if len(readers) > _MANY_READERS:
        last = {queues[reader]: reader for reader in readers}
        readers[:] = sorted(last.values())
