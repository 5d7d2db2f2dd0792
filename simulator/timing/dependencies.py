"""Which parts of a storage conflict, and who touched them last: RAW, WAR and WAW.

A storage is accessed by few views, and most storages of a kernel by the same ones, one loop
iteration after another. So what overlaps what is worked out once per *layout*, the views in
the order in which they first appear, and shared by all storages that grow the same way.

On-chip memory is reused: tiles allocated in a loop are storages of their own, and the real
allocator rotates them through the memory. Here a new tile takes the bytes of the tiles that
died first, so that it waits for their last use only when memory has run out (`Memory`).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from simulator.tensor import NkiTensor, Storage

Box = tuple[int, int, int, int]
"""Rows [0] to [1] and bytes within a row [2] to [3], ends excluded."""
View = tuple[int, tuple[int, ...], tuple[int, ...], Any]
"""Offset, shape, strides, dtype."""
Entry = tuple[int, int, list[int], list[int], Any]
"""Of a view: its number in the layout, its number in cost signatures, the numbers of the other
views with which it has bytes in common, and of those that it covers; and, of a view that the
layout does not have yet, the Layout that has it."""

EVERYTHING: Box = (0, 1 << 60, 0, 1 << 60)
_SHARED_VIEWS = 16
"""Layouts with more views than this are their storage's own."""
_GRID_CELLS = 64


class Layout:
    """The views of a storage so far, and which of them overlap."""

    __slots__ = ("boxes", "grid", "index", "own", "row", "wide")

    def __init__(self, row: int, own: bool = False) -> None:
        """Args:
        row: bytes of a row of the storage.
        own: whether only one storage has this layout, so that it may grow in place.
        """
        self.row = row
        self.own = own
        self.index: dict[View, Entry] = {}
        self.boxes: list[Box] = []
        self.grid: dict[tuple[int, int], list[int]] = {}
        self.wide: list[int] = []

    def grow(self, view: View, box: Box, signature: int) -> Entry:
        """Add a view; returns its entry, which names the layout that has it."""
        if self.own:
            self._add(view, box, signature)
            return self.index[view]
        own = len(self.boxes) >= _SHARED_VIEWS
        grown = Layout(self.row, own)
        for known, (number, signed, clashes, covers, further) in self.index.items():
            if further is None:
                grown.index[known] = (number, signed, [*clashes], [*covers], None)
        grown.boxes = [*self.boxes]
        if own:
            for number, there in enumerate(grown.boxes):
                grown._enter(number, there)
        grown._add(view, box, signature)
        entry = (*grown.index[view][:4], grown)
        if not own:
            self.index[view] = entry
        return entry

    def _add(self, view: View, box: Box, signature: int) -> None:
        number = len(self.boxes)
        near = self._near(box) if self.own else range(number)
        conflicts = [n for n in near if overlaps(box, self.boxes[n])]
        covered = [n for n in conflicts if contains(box, self.boxes[n])]
        if conflicts:
            found = set(conflicts)
            for other, _, clashes, covers, _ in self.index.values():
                if other in found:
                    clashes.append(number)
                    if contains(self.boxes[other], box):
                        covers.append(number)
        self.index[view] = (number, signature, conflicts, covered, None)
        self.boxes.append(box)
        if self.own:
            self._enter(number, box)

    def _cells(self, box: Box) -> list[tuple[int, int]] | None:
        """Cells of a coarse grid that a box touches; None if too many."""
        rows, columns = max(1, self._step()[0]), max(1, self._step()[1])
        across = range(box[0] // rows, (box[1] - 1) // rows + 1)
        along = range(box[2] // columns, (box[3] - 1) // columns + 1)
        if len(across) * len(along) > _GRID_CELLS:
            return None
        return [(a, b) for a in across for b in along]

    def _step(self) -> tuple[int, int]:
        """The grid's cell: the extent of the smallest of the first views."""
        first = self.boxes[: _SHARED_VIEWS + 1]
        return min(b[1] - b[0] for b in first), min(b[3] - b[2] for b in first)

    def _enter(self, number: int, box: Box) -> None:
        cells = self._cells(box)
        if cells is None:
            self.wide.append(number)
            return
        for cell in cells:
            self.grid.setdefault(cell, []).append(number)

    def _near(self, box: Box) -> list[int]:
        """The views that may overlap a box."""
        cells = self._cells(box)
        if cells is None:
            return list(range(len(self.boxes)))
        found = set(self.wide)
        for cell in cells:
            found.update(self.grid.get(cell, ()))
        return sorted(found)


class State:
    """What is known about a storage that is accessed through several views."""

    __slots__ = ("layout", "readers", "writers")

    def __init__(self, layout: Layout) -> None:
        """Args:
        layout: its views.
        """
        self.layout = layout
        self.writers: list[int] = []
        """By view: the instruction that wrote it last, or -1."""
        self.readers: list[list[int]] = []
        """By view: the instructions that have read it since."""

    def enter(self, grown: Layout) -> None:
        """Take the layout that has one view more."""
        self.layout = grown
        self.writers.append(-1)
        self.readers.append([])

    def add(self, view: View, tensor: NkiTensor, signature: int) -> Entry:
        """A view that no storage of this layout has been accessed by before."""
        box = EVERYTHING if tensor.dynamic is not None else box_of(tensor, self.layout.row)
        entry = self.layout.grow(view, box, signature)
        if entry[4] is None:
            self.enter(self.layout)
        return entry

    def users(self) -> list[int]:
        """The instructions that touched it last: readers waited for the writer."""
        found: list[int] = []
        for writer, readers in zip(self.writers, self.readers, strict=True):
            if readers:
                found += readers
            elif writer >= 0:
                found.append(writer)
        return found


def overlaps(a: Box, b: Box) -> bool:
    """Whether two boxes have bytes in common."""
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def contains(a: Box, b: Box) -> bool:
    """Whether `a` covers `b`."""
    return a[0] <= b[0] and b[1] <= a[1] and a[2] <= b[2] and b[3] <= a[3]


def box_of(tensor: NkiTensor, row: int) -> Box:
    """The rows and the bytes within a row that a view may touch."""
    item = tensor.dtype.itemsize
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
        """Bytes of dead storages, and the instructions that touched them last."""

    def take(self, size: int) -> list[int]:
        """Allocate; returns the instructions that must have ended before."""
        dead = self.dead
        if not self.fresh and dead and dead[0][0] == size:  # one dies, one of its size is born
            return dead.popleft()[1]
        waits: list[int] = []
        if self.fresh >= size:
            self.fresh -= size
            return waits
        size -= self.fresh
        self.fresh = 0
        while size > 0 and dead:
            free, users = dead.popleft()
            waits += users
            if free > size:
                dead.appendleft((free - size, users))
            size -= free
        return waits


class Banks:
    """PSUM of one core: banks that are taken whole, the longest dead first."""

    def __init__(self, banks: int, bank_bytes: int) -> None:
        """Args:
        banks: how many there are.
        bank_bytes: of each, per partition.
        """
        self.bank_bytes = bank_bytes
        self.free: deque[tuple[int, list[int]]] = deque((b, []) for b in range(1, banks + 1))
        self.held: dict[int, list[int]] = {}
        """Storage -> its banks, counted from 1."""

    def take(self, storage: Storage) -> list[int]:
        """Give a storage its banks; returns the instructions that must have ended before."""
        count = -(-storage.bytes_per_partition // self.bank_bytes)
        wanted = None
        if storage.address is not None:
            wanted = storage.address[1] // self.bank_bytes + 1
        waits: list[int] = []
        taken = self.held[storage.index] = []
        for step in range(count):
            entry = self._bank(None if wanted is None else wanted + step)
            if entry is None:
                break
            taken.append(entry[0])
            waits += entry[1]
        return waits

    def _bank(self, wanted: int | None) -> tuple[int, list[int]] | None:
        if wanted is None:
            return self.free.popleft() if self.free else None
        for entry in self.free:
            if entry[0] == wanted:
                self.free.remove(entry)
                return entry
        return None

    def bank(self, storage: int) -> int:
        """The first bank of a storage; 0 if it got none."""
        taken = self.held.get(storage)
        return taken[0] if taken else 0

    def give(self, storage: int, users: list[int]) -> None:
        """A storage has died."""
        for bank in self.held.pop(storage, ()):
            self.free.append((bank, users))
