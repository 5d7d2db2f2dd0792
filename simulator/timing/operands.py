"""What the instructions of a Program touch and cost, as arrays, column by column.

Instructions of one kind (row of the table and engine) are looked at together, one operand of
all of them at a time, so that the loops over instructions run in C: `map` with getters from
`operator`, and NumPy. The cost of an operand signature is found once (`cost.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.instructions.table import InstructionSpec
from simulator.tensor import MemoryRegion, NkiTensor
from simulator.timing import collectives
from simulator.timing.cost import Cost, cost
from simulator.timing.machine import Machine

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

Numbers = np.ndarray[Any, np.dtype[Any]]

_CHUNK = 4096
"""Instructions looked at together: few enough for the cache, many enough for NumPy."""
_HBM_ENGINES = frozenset({"dma", "sync"})
"""Engines whose instructions touch HBM; core_barrier, which can run on others, only orders."""
_EXTRAS = frozenset(
    {"op", "perf_mode", "is_transpose", "dge_mode", "engine", "dma_engine", "num_elem_per_idx",
     "num_valid_indices", "n", "axes", "replica_group"}
)  # fmt: skip
"""Operands that are no tensors and yet decide the cost."""
_REGIONS = {region: number for number, region in enumerate(MemoryRegion)}
PSUM, SBUF = _REGIONS[MemoryRegion.psum], _REGIONS[MemoryRegion.sbuf]
_NONE, _OTHER = -1, -2
"""In place of a view's number in cost signatures: no operand; something that is no tensor."""

AT_SHIFT, STORAGE_SHIFT = 13, 39
AT_MASK = (1 << (STORAGE_SHIFT - AT_SHIFT)) - 1
SLOT_MASK = (1 << AT_SHIFT) - 2
"""An access as one integer: storage, instruction, slot (operand, then place within it), and 1
for a write in the last bit. Sorted, they are each storage's history."""
DIRECT = 128
"""The place of an operand that is a tensor; its index tiles come before, list items after."""
FORM_SHIFT = 40
"""A view as one integer: form (shape, strides, dtype), offset."""

_ONLY_TENSORS = {NkiTensor}
_KIND = attrgetter("spec", "engine")
_FORM = attrgetter("shape", "strides", "dtype")
_OFFSET = attrgetter("offset")
_STORAGE = attrgetter("storage.index")
_DYNAMIC = attrgetter("dynamic")


class _Numbering(dict[Any, int]):
    """Numbers its keys in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        self[key] = number = len(self)
        return number


class _Plan:
    """What to look at in the operands of one kind of instruction."""

    def __init__(self, spec: InstructionSpec, engine: str) -> None:
        dma = spec.engines == ("dma",) or spec.name in collectives.NAMES
        reads = sorted(spec.reads, key=lambda name: name in spec.writes)
        self.columns = [(spec.index[name], 0) for name in reads]
        self.columns += [(spec.index[name], 1) for name in spec.writes]
        """Position among the operands, and 1 for those written."""
        self.extras = [
            position
            for position, name in enumerate(spec.parameters)
            if name in _EXTRAS and (name != "engine" or dma)
        ]
        self.hbm = engine in _HBM_ENGINES
        self.memo: dict[Any, int] = {}
        """Operand signature -> position in `Operands.prices`."""


@dataclass
class Operands:
    """What `operands` finds. Arrays over instructions or over accesses."""

    prices: list[Cost]
    """The distinct costs."""
    price: Numbers
    """Of each instruction: its cost's position in `prices`."""
    accesses: Numbers
    """Every access as one integer, see `AT_SHIFT`; in no order."""
    views: Numbers
    """Of each access: the view, see `FORM_SHIFT`."""
    forms: list[tuple[Any, ...]]
    """Shape, strides, dtype, and whether its address is known on the device only: 1 by
    registers, 2 by row numbers, 3 by another index tile."""
    regions: Numbers
    """Of each storage."""
    loops: bool
    """Whether there are dynamic loops."""
    shared: Numbers
    """Of each storage: whether both readers and writers use it, so that some must wait."""


def operands(program: Program, machine: Machine) -> Operands:
    """Look at all operands of a Program.

    Args:
        program: any.
        machine: for the costs.
    """
    reader = _Reader(program, machine)
    return reader.read()


class _Reader:
    """The state of the pass."""

    def __init__(self, program: Program, machine: Machine) -> None:
        self.program, self.machine = program, machine
        count = len(program.storages)
        buffers = map(attrgetter("buffer"), program.storages)
        self.regions = np.fromiter(map(_REGIONS.__getitem__, buffers), np.int8, count)
        self.used = np.zeros((2, count), dtype=bool)
        """Read, written: by instructions that touch HBM."""
        self.forms = _Numbering()
        self.lists = _Numbering()
        self.kinds = _Numbering()
        self.plans: list[_Plan] = []
        self.prices: list[Cost] = []
        self.price = np.zeros(len(program.instructions), dtype=np.int32)
        self.accesses: list[Numbers] = []
        self.views: list[Numbers] = []

    def read(self) -> Operands:
        """Go through the Program in chunks."""
        count, rest = len(self.program.instructions), iter(self.program.instructions)
        if count > AT_MASK or len(self.program.storages) >= 1 << 24:
            raise ValueError(f"{self.program.name} has more than {AT_MASK:,} instructions")
        for begin in range(0, count, _CHUNK):
            self._chunk(list(islice(rest, _CHUNK)), begin)
        forms = [form if len(form) > 3 else (*form, 0) for form in self.forms]
        on_chip = (self.regions == PSUM) | (self.regions == SBUF)
        return Operands(
            self.prices,
            self.price,
            np.concatenate(self.accesses or [np.zeros(0, np.int64)]),
            np.concatenate(self.views or [np.zeros(0, np.int64)]),
            forms,
            self.regions,
            any(engine == "control" for _, engine in self.kinds),
            on_chip | (self.used[0] & self.used[1]),
        )

    def _chunk(self, block: list[Instruction], begin: int) -> None:
        kinds = np.fromiter(map(self.kinds.__getitem__, map(_KIND, block)), np.int16, len(block))
        for spec, engine in list(self.kinds)[len(self.plans) :]:
            self.plans.append(_Plan(spec, engine))
        order = np.argsort(kinds, kind="stable")
        sort = itemgetter(*order.tolist(), 0)  # one more, so that it always gives a tuple
        chosen = sort(list(map(attrgetter("operands"), block)))
        ends = np.cumsum(np.bincount(kinds, minlength=len(self.plans))).tolist()
        first = 0
        for plan, end in zip(self.plans, ends, strict=True):
            if end > first:
                members = order[first:end].astype(np.int64)
                self._kind(plan, chosen[first:end], members + begin, block)
            first = end

    def _kind(
        self, plan: _Plan, rows: tuple[Any, ...], at: Numbers, block: list[Instruction]
    ) -> None:
        """Instructions of one kind.

        Args:
            plan: of the kind.
            rows: their operands.
            at: their positions in the Program.
            block: the chunk they are in.
        """
        columns = list(zip(*rows, strict=True))
        known: dict[int, tuple[Numbers, Numbers, Numbers] | None] = {}
        signs = []
        for column, (position, write) in enumerate(plan.columns):
            slot, values = column << 9 | write, columns[position]
            if position not in known:  # an operand may be read, then written
                known[position] = self._tensors(values)
            plain = known[position]
            if plain is None:
                signs.append(self._mixed(plan, values, at, slot))
                continue
            storages, views, sign = plain
            self._note(plan, storages, at, slot | DIRECT << 1, views)
            signs.append(sign)
        signs += [_identities(columns[position]) for position in plan.extras]
        unique, members = _groups([sign for sign in signs if len(sign) > 1], len(rows))
        numbers = []
        for i in unique:
            key = tuple(int(sign[i if len(sign) > 1 else 0]) for sign in signs)
            number = plan.memo.get(key)
            if number is None:
                number = plan.memo[key] = len(self.prices)
                self.prices.append(cost(block[int(at[i]) % _CHUNK], self.machine))
            numbers.append(number)
        self.price[at] = numbers[0] if members is None else np.array(numbers, np.int32)[members]

    def _tensors(self, values: tuple[Any, ...]) -> tuple[Numbers, Numbers, Numbers] | None:
        """One operand of instructions of one kind: storages, views, and numbers for signatures.

        None if some are no tensors, or have addresses from the device.
        """
        if set(map(type, values)) != _ONLY_TENSORS:
            return None
        count = len(values)
        if list(map(_DYNAMIC, values)).count(None) != count:
            return None
        forms = np.fromiter(map(self.forms.__getitem__, map(_FORM, values)), np.int64, count)
        offsets = np.fromiter(map(_OFFSET, values), np.int64, count)
        storages = np.fromiter(map(_STORAGE, values), np.int64, count)
        return storages, forms << FORM_SHIFT | offsets, forms << 2 | self.regions[storages]

    def _note(
        self, plan: _Plan, storages: Numbers, at: Numbers, slot: Numbers | int, views: Numbers
    ) -> None:
        self.accesses.append(storages << STORAGE_SHIFT | at << AT_SHIFT | slot)
        self.views.append(views)
        if plan.hbm:
            writes = np.broadcast_to(np.asarray(slot) & 1, storages.shape)
            self.used[writes, storages] = True

    def _mixed(self, plan: _Plan, values: tuple[Any, ...], at: Numbers, slot: int) -> Numbers:
        """A column with lists of tensors, addresses from the device, or no tensors at all.

        Returns numbers for cost signatures; one only if there is no tensor and they are the same.
        """
        classes = set(map(type, values))
        if len(classes) == 1 and not classes & {NkiTensor, list, tuple}:
            return np.array([_NONE if values[0] is None else _OTHER])
        found: list[tuple[int, int, int, int]] = []
        signs = []
        for value, position in zip(values, at.tolist(), strict=True):
            if isinstance(value, NkiTensor):
                signs.append(self._tensor(value, position, slot, DIRECT, found))
            elif isinstance(value, list | tuple):
                place, many = DIRECT, []
                for tensor in value:
                    if isinstance(tensor, NkiTensor):
                        inner = tensor.dynamic.tensors() if tensor.dynamic is not None else []
                        place = min(place + 1 + len(inner), 255)
                        many.append(self._tensor(tensor, position, slot, place, found))
                signs.append(-3 - self.lists[tuple(many)])
            else:
                signs.append(_NONE if value is None else _OTHER)
        if found:
            storages, positions, slots, views = np.array(found, dtype=np.int64).T
            self._note(plan, storages, positions, slots, views)
        return np.array(signs, dtype=np.int64)

    def _tensor(self, tensor: NkiTensor, at: int, slot: int, place: int, found: list[Any]) -> int:
        """Note the access to a tensor and its index tiles; returns its number."""
        form: Any = (tensor.shape, tensor.strides, tensor.dtype)
        offset = tensor.offset
        if tensor.dynamic is not None:
            indices = tensor.dynamic.tensors()
            for before, index in enumerate(indices):
                self._tensor(index, at, slot & ~1, place - len(indices) + before, found)
            form = (*form, 2 if tensor.dynamic.rows is not None else 3 if indices else 1)
            offset = 0
        number, storage = self.forms[form], tensor.storage.index
        found.append((storage, at, slot | place << 1, number << FORM_SHIFT | offset))
        return number << 2 | int(self.regions[storage])


def _identities(values: tuple[Any, ...]) -> Numbers:
    """Numbers of a column that is no tensor: the integers themselves, else which object it is."""
    if len(set(map(id, values))) == 1:
        values = values[:1]
    return np.array([v if v.__class__ is int else id(v) for v in values], dtype=np.int64)


def _groups(columns: list[Numbers], count: int) -> tuple[list[int], Numbers | None]:
    """Rows that agree in all columns.

    Returns:
        One row of each group, and of each row the group; None if they are all one.
    """
    key: Numbers | None = None
    size = 1
    for column in columns:
        least, most = int(column.min()), int(column.max())
        if least == most:
            continue
        column, extent = column - least, most - least + 1
        if extent > 1 << 30:
            column = np.unique(column, return_inverse=True)[1]
            extent = int(column.max()) + 1
        if key is None:
            key, size = column, extent
            continue
        if size * extent >= 1 << 62:
            key = np.unique(key, return_inverse=True)[1]
            size = int(key.max()) + 1
        key, size = key * extent + column, size * extent
    if key is None:
        return [0], None
    _, rows, members = np.unique(key, return_index=True, return_inverse=True)
    return rows.tolist(), members
