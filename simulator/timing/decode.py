"""A Program as arrays: for each played instruction its cost, queue and dependencies.

One pass over the Program. The cost of an operand signature is found once (`cost.py`), and so
is what overlaps what in storages that are accessed alike (`dependencies.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simulator.instructions.control import LOOPS
from simulator.instructions.table import InstructionSpec
from simulator.lifetimes import lifetimes
from simulator.tensor import MemoryRegion, NkiTensor, Storage
from simulator.timing import collectives
from simulator.timing.cost import BANK, BRANCH, ENGINES, MEET, QUEUES, Cost, cost
from simulator.timing.dependencies import Banks, Layout, Memory, State
from simulator.timing.loops import unroll
from simulator.timing.machine import Machine

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

QUEUE_COUNT = len(QUEUES)
_RINGS = frozenset(QUEUES.index(name) for name in ("loads", "stores"))
_TENSOR = QUEUES.index("tensor")
_MANY_READERS = 12
_HBM_ENGINES = frozenset({"dma", "sync"})
"""Engines whose instructions touch HBM; core_barrier, which can run on others, only orders."""
_NEW, _UNTRACKED, _STATE = -1, -2, -3
"""In place of a storage's number in cost signatures: not used yet; nothing waits for it; it has
several views."""
_EXTRAS = frozenset(
    {"op", "perf_mode", "is_transpose", "dge_mode", "engine", "dma_engine", "num_elem_per_idx",
     "num_valid_indices", "n", "axes", "replica_group"}
)  # fmt: skip
"""Operands that are no tensors and yet decide the cost."""


@dataclass
class Decoded:
    """What play.py plays. All lists and arrays have one entry per played instruction."""

    instructions: list[Instruction] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
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


class _Plan:
    """What to look at in the operands of one row of the instruction table."""

    __slots__ = ("extras", "key", "memo", "price", "reads", "writes")

    def __init__(self, spec: InstructionSpec) -> None:
        dma = spec.engines == ("dma",) or spec.name in collectives.NAMES
        reads = sorted(spec.reads, key=lambda name: name in spec.writes)
        self.reads = tuple(spec.index[name] for name in reads)
        self.writes = tuple(spec.index[name] for name in spec.writes)
        self.extras = tuple(
            position
            for position, name in enumerate(spec.parameters)
            if name in _EXTRAS and (name != "engine" or dma)
        )
        self.memo: dict[Any, Cost] = {}
        """Operand signature -> cost."""
        self.key: list[Any] = []
        self.price: Any = None
        """The last of them."""


def decode(
    program: Program, machine: Machine, trips: int | Mapping[Any, int] | None = None
) -> Decoded:
    """Turn a Program into arrays.

    Raises:
        ValueError: a dynamic loop's trip count is not known and `trips` does not give it.
    """
    decoded = Decoded()
    order, looped = unroll(program, trips, decoded.assumptions)
    decoder = _Decoder(program, machine, decoded)
    decoder.walk(order, {} if looped else _deaths(program))
    return decoded


class _Decoder:
    """The state of the pass.

    Most storages are accessed through one view only: for them three lists by storage hold all
    there is to know. The others have a `State`.
    """

    def __init__(self, program: Program, machine: Machine, decoded: Decoded) -> None:
        self.program = program
        self.machine = machine
        self.decoded = decoded
        target = program.target
        self.sbuf = [Memory(target.sbuf_bytes_per_partition) for _ in range(program.lnc)]
        self.psum = [Banks(target.psum_banks, target.psum_bank_bytes) for _ in range(program.lnc)]
        self.untracked = _untracked(program)
        count = len(program.storages)
        self.first: list[NkiTensor | None] = [None] * count
        """The only view of a storage so far; None before its first use, and with a State."""
        self.signs: list[int] = [_NEW] * count
        """The number of that view in cost signatures, or one of the marks below."""
        self.writer: list[int] = [-1] * count
        """The instruction that wrote it last."""
        self.readers: list[Any] = [None] * count
        """Those that have read it since: None, one number, or a list."""
        self.states: dict[int, State] = {}
        self.layouts: dict[tuple[MemoryRegion, int], Layout] = {}
        self.numbers: dict[Any, int] = {}
        """Of views in cost signatures: by shape, strides, dtype, memory region and kind of
        address."""
        self.waits: list[int] = []
        """What a new storage's first use waits for."""

    def walk(self, order: Iterable[Instruction], dying: dict[int, list[Storage]]) -> None:
        """Walk through the instructions in program order.

        The hot loop of the model: local names, no calls for what is common.
        """
        decoded = self.decoded
        firsts, signs, writers, everyone = self.first, self.signs, self.writer, self.readers
        costs, queues, depends = decoded.costs, decoded.queues, decoded.depends
        instructions = decoded.instructions if order is not self.program.instructions else None
        if instructions is None:
            decoded.instructions = self.program.instructions
        waits = self.waits
        plans: dict[InstructionSpec, _Plan] = {}
        explicit: dict[int, int] | None = None
        if any(i.after for i in self.program.instructions):
            explicit = {}
        arrived: dict[int, int] = {}
        at = 0
        for position, instruction in enumerate(order):
            spec, operands = instruction.spec, instruction.operands
            plan = plans.get(spec)
            if plan is None:
                plan = plans[spec] = _Plan(spec)
            key: list[Any] = [instruction.engine]
            raw: list[int] = []
            war: list[int] = []
            for operand in plan.reads:
                tensor = operands[operand]
                if tensor.__class__ is not NkiTensor:
                    key.append(self._others(tensor, at, raw, None))
                    continue
                storage = tensor.storage.index
                first = firsts[storage]
                if first is not tensor and (
                    first is None
                    or first.shape != tensor.shape
                    or first.offset != tensor.offset
                    or first.strides != tensor.strides
                    or first.dtype is not tensor.dtype
                    or tensor.dynamic is not None
                ):
                    sign = self._access(tensor, storage, at, raw, None)
                    if sign >= 0:
                        key.append(sign)
                        continue
                key.append(signs[storage])
                writer = writers[storage]
                if writer >= 0:
                    raw.append(writer)
                readers = everyone[storage]
                if readers is None:
                    everyone[storage] = at
                elif readers.__class__ is int:
                    everyone[storage] = [readers, at]
                else:
                    readers.append(at)
                    if len(readers) > _MANY_READERS:
                        _compress(readers, queues)
            for operand in plan.writes:
                tensor = operands[operand]
                if tensor.__class__ is not NkiTensor:
                    key.append(self._others(tensor, at, raw, war))
                    continue
                storage = tensor.storage.index
                first = firsts[storage]
                if first is not tensor and (
                    first is None
                    or first.shape != tensor.shape
                    or first.offset != tensor.offset
                    or first.strides != tensor.strides
                    or first.dtype is not tensor.dtype
                    or tensor.dynamic is not None
                ):
                    sign = self._access(tensor, storage, at, raw, war)
                    if sign >= 0:
                        key.append(sign)
                        continue
                key.append(signs[storage])
                readers = everyone[storage]
                if readers is None:
                    if writers[storage] >= 0:
                        war.append(writers[storage])
                else:  # they waited for the writer
                    if readers.__class__ is int:
                        war.append(readers)
                    else:
                        war += readers
                    everyone[storage] = None
                writers[storage] = at
            for operand in plan.extras:
                value = operands[operand]
                key.append(value if value.__class__ is int else id(value))
            if key == plan.key:
                price = plan.price
            else:
                plan.key = key
                price = plan.memo.get(whole := tuple(key))
                if price is None:
                    price = plan.memo[whole] = cost(instruction, self.machine)
                plan.price = price
            if waits:
                war += waits
                waits.clear()
            kind = price[1]
            queue = kind + instruction.core * QUEUE_COUNT
            if price[0] == BRANCH:
                at = self._branch(instruction, price)
                continue
            found: Any = None
            skip = queue if kind == _TENSOR else -1
            if not war and len(raw) == 1:
                if queues[raw[0]] != skip:
                    found = (raw[0],)
                raw = war
            if raw or war:
                last: dict[int, int] = {}
                for j in raw:
                    other = queues[j]
                    if other != skip and last.get(other, -1) < j:
                        last[other] = j
                if war:
                    skip = -1 if kind in _RINGS else queue
                    for j in war:
                        if j != at:
                            other = queues[j]
                            if other != skip and last.get(other, -1) < j:
                                last[other] = j
                if last:
                    found = tuple(last.values())
            if instructions is not None:
                instructions.append(instruction)
            costs.append(price)
            queues.append(queue)
            depends.append(found)
            if price[0] >= BANK:
                if price[0] == BANK:
                    self._note_bank(operands, plan, at)
                elif price[0] == MEET and instruction.peer is not None:
                    self._pair(instruction, at, arrived)
            if explicit is not None:
                self._explicit(instruction, at, explicit)
            at += 1
            if position in dying:
                self._bury(dying[position])

    # --- off the fast path -------------------------------------------------------------------

    def _access(
        self, tensor: NkiTensor, storage: int, at: int, raw: list[int], war: list[int] | None
    ) -> int:
        """An access by another view than the storage's only one.

        Args:
            tensor: what is accessed.
            storage: its storage.
            at: by which instruction.
            raw: gets what a read waits for.
            war: gets what a write waits for; None for a read.

        Returns:
            The view's number in cost signatures; -1 if it is now the storage's only view, and
            the caller goes on as usual.
        """
        mark = self.signs[storage]
        if mark == _NEW:
            where = tensor.storage
            if where.buffer is MemoryRegion.sbuf:
                memory = self.sbuf[where.core or 0]
                size = where.size // where.shape[0] * where.dtype.itemsize
                if memory.fresh >= size:
                    memory.fresh -= size
                else:
                    self.waits += memory.take(size)
            elif where.buffer is MemoryRegion.psum:
                self.waits += self.psum[where.core or 0].take(where)
            elif storage in self.untracked:
                self.signs[storage] = mark = _UNTRACKED
            if tensor.dynamic is None and mark == _NEW:
                self.first[storage] = tensor
                self.signs[storage] = self._sign(tensor)
                return -1
        if mark == _UNTRACKED:
            if tensor.dynamic is not None:
                self._indices(tensor, at, raw)
            return self._sign(tensor)
        state = self.states.get(storage)
        if state is None:
            state = self._promote(tensor.storage)
        return self._many(state, tensor, at, raw, war)

    def _sign(self, tensor: NkiTensor) -> int:
        """A number for what the cost of an access depends on."""
        region = tensor.storage.buffer._value_
        key: Any = (tensor.shape, tensor.strides, tensor.dtype, region)
        if tensor.dynamic is not None:
            key = (*key, tensor.dynamic.rows is not None)
        found = self.numbers.get(key)
        if found is None:
            found = self.numbers[key] = len(self.numbers)
        return found

    def _promote(self, storage: Storage) -> State:
        """A storage gets its second view, or one whose address is known on the device only."""
        index, on_chip = storage.index, storage.buffer.on_chip
        row = storage.bytes_per_partition if on_chip else storage.shape[-1] * storage.dtype.itemsize
        layout = self.layouts.get((storage.buffer, row))
        if layout is None:
            layout = self.layouts[storage.buffer, row] = Layout(row)
        state = self.states[index] = State(layout)
        first = self.first[index]
        if first is not None:
            view = (first.offset, first.shape, first.strides, first.dtype)
            entry = layout.index.get(view) or state.add(view, first, self.signs[index])
            if entry[4] is not None:
                state.enter(entry[4])
            state.writers[0] = self.writer[index]
            readers = self.readers[index]
            if readers is not None:
                state.readers[0] = [readers] if isinstance(readers, int) else readers
        self.first[index] = None
        self.signs[index] = _STATE
        return state

    def _many(
        self, state: State, tensor: NkiTensor, at: int, raw: list[int], war: list[int] | None
    ) -> int:
        """An access to a storage with several views; arguments as for `_access`."""
        static = tensor.dynamic is None
        if static:
            view: Any = (tensor.offset, tensor.shape, tensor.strides, tensor.dtype)
        else:
            view = (-1, tensor.shape, tensor.strides, tensor.dtype)
            self._indices(tensor, at, raw)
        entry = state.layout.index.get(view) or state.add(view, tensor, self._sign(tensor))
        number, sign, conflicts, covered, grown = entry
        if grown is not None:
            state.enter(grown)
        writers, everyone = state.writers, state.readers
        if war is None:
            if writers[number] >= 0:
                raw.append(writers[number])
            for other in conflicts:
                if writers[other] >= 0:
                    raw.append(writers[other])
            readers = everyone[number]
            readers.append(at)
            if len(readers) > _MANY_READERS:
                _compress(readers, self.decoded.queues)
            return sign
        for other in (number, *conflicts):
            if everyone[other]:
                war += everyone[other]
            elif writers[other] >= 0:
                war.append(writers[other])
        if static:
            for other in covered:
                writers[other] = at
                everyone[other] = []
            everyone[number] = []
        writers[number] = at
        return sign

    def _indices(self, tensor: NkiTensor, at: int, raw: list[int]) -> None:
        """Read the index tiles of a view with an address from the device."""
        assert tensor.dynamic is not None
        self._others(tuple(tensor.dynamic.tensors()), at, raw, None)

    def _others(self, value: Any, at: int, raw: list[int], war: list[int] | None) -> Any:
        """An operand that is a list of tensors, a number, a register or nothing."""
        if not isinstance(value, list | tuple):
            return value is None
        found = []
        for tensor in value:
            if isinstance(tensor, NkiTensor):
                sign = self._access(tensor, tensor.storage.index, at, raw, war)
                if sign < 0:  # its first view: from here on with a State
                    sign = self._many(self._promote(tensor.storage), tensor, at, raw, war)
                found.append(sign)
        return tuple(found)

    def _bury(self, storages: list[Storage]) -> None:
        """On-chip storages that no instruction touches any more."""
        for storage in storages:
            index = storage.index
            readers = self.readers[index]
            if self.signs[index] == _STATE:
                users = self.states.pop(index).users()
            elif readers is None:
                users = [self.writer[index]] if self.writer[index] >= 0 else []
            elif readers.__class__ is int:
                users = [readers]
            else:
                users = readers
            if storage.buffer is MemoryRegion.psum:
                self.psum[storage.core or 0].give(index, users)
            else:
                size = storage.size // storage.shape[0] * storage.dtype.itemsize
                self.sbuf[storage.core or 0].dead.append((size, users))

    def _note_bank(self, operands: tuple[Any, ...], plan: _Plan, at: int) -> None:
        """Find the PSUM bank an instruction works in."""
        for operand in (*plan.reads, *plan.writes):
            tensor = operands[operand]
            if isinstance(tensor, NkiTensor) and tensor.buffer is MemoryRegion.psum:
                bank = self.psum[tensor.storage.core or 0].bank(tensor.storage.index)
                if bank:
                    self.decoded.banks[at] = bank

    def _branch(self, instruction: Instruction, price: Cost) -> int:
        """A loop's end is a branch in every engine's queue of its core."""
        decoded = self.decoded
        if instruction.spec.name not in LOOPS:
            for queue in range(len(ENGINES)):
                decoded.instructions.append(instruction)
                decoded.costs.append(price)
                decoded.queues.append(instruction.core * QUEUE_COUNT + queue)
                decoded.depends.append(None)
        return len(decoded.costs)

    def _explicit(self, instruction: Instruction, at: int, where: dict[int, int]) -> None:
        """What the kernel told it to wait for (`depends_on`)."""
        where[id(instruction)] = at
        told = tuple(where[id(i)] for i in instruction.after if id(i) in where)
        if told:
            self.decoded.depends[at] = (*(self.decoded.depends[at] or ()), *told)

    def _pair(self, instruction: Instruction, at: int, arrived: dict[int, int]) -> None:
        """Find the partner on the other core; neither waits for the other's end."""
        partner = arrived.pop(id(instruction.peer), None)
        if partner is None:
            arrived[id(instruction)] = at
            return
        decoded = self.decoded
        decoded.meets[at], decoded.meets[partner] = partner, at
        decoded.depends[at] = tuple(d for d in decoded.depends[at] or () if d != partner) or None


def _compress(readers: list[int], queues: bytearray) -> None:
    """Keep the last reader of each queue, as queues are in order, and the present one."""
    last = {queues[reader]: reader for reader in readers[:-1]}
    readers[:] = [*sorted(last.values()), readers[-1]]


def _deaths(program: Program) -> dict[int, list[Storage]]:
    """Position -> the on-chip storages used there for the last time."""
    found: dict[int, list[Storage]] = {}
    for lifetime in lifetimes(program):
        if lifetime.storage.buffer.on_chip:
            found.setdefault(lifetime.last, []).append(lifetime.storage)
    return found


def _untracked(program: Program) -> set[int]:
    """HBM storages that are only read, or only written: nothing waits for them."""
    read: set[int] = set()
    written: set[int] = set()
    plans: dict[InstructionSpec, _Plan] = {}
    for instruction in program.instructions:
        if instruction.engine not in _HBM_ENGINES:
            continue
        plan = plans.get(instruction.spec)
        if plan is None:
            plan = plans[instruction.spec] = _Plan(instruction.spec)
        operands = instruction.operands
        for at in plan.reads:
            value = operands[at]
            if value.__class__ is NkiTensor:
                read.add(value.storage.index)
            elif value.__class__ in (list, tuple):
                read.update(t.storage.index for t in value if isinstance(t, NkiTensor))
        for at in plan.writes:
            value = operands[at]
            if value.__class__ is NkiTensor:
                written.add(value.storage.index)
            elif value.__class__ in (list, tuple):
                written.update(t.storage.index for t in value if isinstance(t, NkiTensor))
    return {
        storage.index
        for storage in program.storages
        if not storage.buffer.on_chip and not (storage.index in read and storage.index in written)
    }
