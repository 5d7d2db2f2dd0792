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

_NO_ENTRY: Entry = (0, 0, [], [], None)
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
    """What is known about one storage while the Program is walked through."""

    __slots__ = (
        "bank", "entry", "layout", "memory", "readers", "size", "tensor", "where", "writers",
    )  # fmt: skip

    def __init__(
        self, where: int, layout: Layout | None, size: int = 0, memory: Memory | None = None
    ) -> None:
        """Args:
        where: a small number that tells memory regions apart, part of cost signatures.
        layout: its views; None if nothing ever waits for it.
        size: bytes of a partition that it takes; 0 for HBM.
        memory: the memory it rotates through.
        """
        self.where = where
        self.layout = layout
        self.size = size
        self.memory = memory
        self.bank = 0
        self.tensor: NkiTensor | None = None
        """The tensor it was accessed through last, of static address."""
        self.entry: Entry = _NO_ENTRY
        """Of that tensor."""
        self.writers: list[int] = []
        """By view: the instruction that wrote it last, or -1."""
        self.readers: list[list[int]] = []
        """By view: the instructions that have read it since."""

    def add(self, view: View, tensor: NkiTensor, numbers: dict[Any, int]) -> Entry:
        """A view that no storage of this layout has been accessed by before.

        Args:
            view: of the tensor.
            tensor: the tensor.
            numbers: of cost signatures, by what they stand for.
        """
        layout = self.layout
        assert layout is not None
        box = EVERYTHING if tensor.dynamic is not None else box_of(tensor, layout.row)
        entry = layout.grow(view, box, signature(self, tensor, numbers))
        if entry[4] is None:
            self.writers.append(-1)
            self.readers.append([])
        return entry

    def everyone(self) -> list[int]:
        """The instructions that touched it last."""
        found = [writer for writer in self.writers if writer >= 0]
        for readers in self.readers:
            found += readers
        return found


def signature(state: State, tensor: NkiTensor, numbers: dict[Any, int]) -> int:
    """A number for what the cost of an access depends on."""
    mode = 0
    if tensor.dynamic is not None:
        mode = 2 if tensor.dynamic.rows is not None else 1
    key = (tensor.shape, tensor.strides, tensor.dtype, state.where, mode)
    return numbers.setdefault(key, len(numbers))


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
