"""Which parts of a storage conflict, and who touched them last: RAW, WAR and WAW.

A storage is accessed by few views, and most storages of a kernel by the same ones, one loop
iteration after another. So what overlaps what is worked out once per *layout*, the views in
the order in which they first appear, and shared by all storages that grow the same way.
"""

from __future__ import annotations

from typing import Any

Box = tuple[int, int, int, int]
"""Rows [0] to [1] and bytes within a row [2] to [3], ends excluded."""
Form = tuple[Any, ...]
"""Shape, strides, dtype, and whether the address is known on the device only."""
Entry = tuple[int, list[int], list[int], Any]
"""Of a view: its number in the layout, the numbers of the other views with which it has bytes in
common, and of those that it covers; and, of a view that the layout does not have yet, the Layout
that has it."""

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
        self.index: dict[int, Entry] = {}
        """By view: form and offset as one integer."""
        self.boxes: list[Box] = []
        self.grid: dict[tuple[int, int], list[int]] = {}
        self.wide: list[int] = []

    def grow(self, view: int, box: Box) -> Entry:
        """Add a view; returns its entry, which names the layout that has it."""
        if self.own:
            self._add(view, box)
            return self.index[view]
        own = len(self.boxes) >= _SHARED_VIEWS
        grown = Layout(self.row, own)
        for known, (number, clashes, covers, further) in self.index.items():
            if further is None:
                grown.index[known] = (number, [*clashes], [*covers], None)
        grown.boxes = [*self.boxes]
        if own:
            for number, there in enumerate(grown.boxes):
                grown._enter(number, there)
        grown._add(view, box)
        entry = (*grown.index[view][:3], grown)
        if not own:
            self.index[view] = entry
        return entry

    def _add(self, view: int, box: Box) -> None:
        number = len(self.boxes)
        near = self._near(box) if self.own else range(number)
        conflicts = [n for n in near if overlaps(box, self.boxes[n])]
        covered = [n for n in conflicts if contains(box, self.boxes[n])]
        if conflicts:
            found = set(conflicts)
            for other, clashes, covers, _ in self.index.values():
                if other in found:
                    clashes.append(number)
                    if contains(self.boxes[other], box):
                        covers.append(number)
        self.index[view] = (number, conflicts, covered, None)
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

    def add(self, view: int, form: Form, offset: int) -> Entry:
        """A view that no storage of this layout has been accessed by before."""
        box = EVERYTHING if form[3] else box_of(form, offset, self.layout.row)
        entry = self.layout.grow(view, box)
        if entry[3] is None:
            self.enter(self.layout)
        return entry

    def read(self, entry: Entry, here: int, awaited: list[int]) -> list[int]:
        """A read through a view: it waits for the writers; returns the view's readers."""
        number, writers = entry[0], self.writers
        if writers[number] >= 0:
            awaited.append(writers[number])
        for other in entry[1]:
            if writers[other] >= 0:
                awaited.append(writers[other])
        readers = self.readers[number]
        readers.append(here)
        return readers

    def write(self, entry: Entry, here: int, awaited: list[int], everything: bool) -> None:
        """A write through a view: it waits for the readers since, or else for the writers.

        Args:
            entry: the view's.
            here: the number of the access.
            awaited: gets those it waits for.
            everything: whether it writes all bytes of the view.
        """
        number, conflicts, covered, _ = entry
        writers, everyone = self.writers, self.readers
        for other in (number, *conflicts):
            if everyone[other]:
                awaited += everyone[other]
            elif writers[other] >= 0:
                awaited.append(writers[other])
        if everything:
            for other in covered:
                writers[other] = here
                everyone[other] = []
            everyone[number] = []
        writers[number] = here

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


def box_of(form: Form, offset: int, row: int) -> Box:
    """The rows and the bytes within a row that a view may touch."""
    shape, strides, dtype, _ = form
    item = dtype.itemsize
    per_row = max(1, row // item)
    start, column = divmod(offset, per_row)
    rows = columns = 0
    for count, stride in zip(shape, strides, strict=True):
        reach = (count - 1) * abs(stride)
        if stride % per_row == 0:
            rows += reach // per_row
        else:
            columns += reach
    if column + columns >= per_row:  # wraps into the next row: take whole rows
        return (start, start + rows + (column + columns) // per_row + 1, 0, row)
    return (start, start + rows + 1, column * item, (column + columns + 1) * item)
