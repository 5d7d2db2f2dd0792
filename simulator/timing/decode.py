"""A Program as arrays: for each played instruction its cost, queue and dependencies.

One pass over the Program. The cost of an operand signature is found once (`cost.py`), and so
is what overlaps what in storages that are accessed alike (`dependencies.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simulator.instructions.control import LOOPS
from simulator.instructions.table import HBM, InstructionSpec
from simulator.lifetimes import footprint, lifetimes
from simulator.tensor import MemoryRegion, NkiTensor, Storage
from simulator.timing import collectives
from simulator.timing.cost import BANK, BRANCH, ENGINES, MEET, QUEUES, Cost, cost
from simulator.timing.dependencies import Banks, Layout, Memory, State, signature
from simulator.timing.loops import unroll
from simulator.timing.machine import Machine

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

QUEUE_COUNT = len(QUEUES)
_RINGS = frozenset(QUEUES.index(name) for name in ("loads", "stores"))
_TENSOR = QUEUES.index("tensor")
_MANY_READERS = 12
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
    """The state of the pass."""

    def __init__(self, program: Program, machine: Machine, decoded: Decoded) -> None:
        self.program = program
        self.machine = machine
        self.decoded = decoded
        target = program.target
        self.sbuf = [Memory(target.sbuf_bytes_per_partition) for _ in range(program.lnc)]
        self.psum = [Banks(target.psum_banks, target.psum_bank_bytes) for _ in range(program.lnc)]
        self.states: list[State | None] = [None] * len(program.storages)
        self.untracked = _untracked(program)
        self.layouts: dict[tuple[int, int], Layout] = {}
        self.pool: list[State] = []
        """States of dead storages, to be used again."""
        self.numbers: dict[Any, int] = {}
        """Of cost signatures."""
        self.waits: list[int] = []
        """What a new storage's first use waits for."""

    def walk(self, order: Iterable[Instruction], dying: dict[int, list[Storage]]) -> None:
        """Walk through the instructions in program order.

        The hot loop of the model: local names, no calls for what is common.
        """
        decoded, states = self.decoded, self.states
        costs, queues = decoded.costs, decoded.queues
        instructions = decoded.instructions if order is not self.program.instructions else None
        if instructions is None:
            decoded.instructions = self.program.instructions
        depends = decoded.depends
        numbers = self.numbers
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
                state = states[tensor.storage.index]
                if state is None:
                    state = self._state(tensor.storage)
                if tensor is state.tensor:
                    number, signed, conflicts, _, _ = state.entry
                else:
                    layout = state.layout
                    if layout is None or tensor.dynamic is not None:
                        key.append(self._slow(state, tensor, at, raw, None))
                        continue
                    view = (tensor.offset, tensor.shape, tensor.strides, tensor.dtype)
                    entry = layout.index.get(view) or state.add(view, tensor, numbers)
                    number, signed, conflicts, _, grown = state.entry = entry
                    state.tensor = tensor
                    if grown is not None:
                        state.layout = grown
                        state.writers.append(-1)
                        state.readers.append([])
                key.append(signed)
                writer = state.writers[number]
                if writer >= 0:
                    raw.append(writer)
                for other in conflicts:
                    writer = state.writers[other]
                    if writer >= 0:
                        raw.append(writer)
                readers = state.readers[number]
                readers.append(at)
                if len(readers) > _MANY_READERS:
                    _compress(readers, queues)
            for operand in plan.writes:
                tensor = operands[operand]
                if tensor.__class__ is not NkiTensor:
                    key.append(self._others(tensor, at, raw, war))
                    continue
                state = states[tensor.storage.index]
                if state is None:
                    state = self._state(tensor.storage)
                if tensor is state.tensor:
                    number, signed, conflicts, covered, _ = state.entry
                else:
                    layout = state.layout
                    if layout is None or tensor.dynamic is not None:
                        key.append(self._slow(state, tensor, at, raw, war))
                        continue
                    view = (tensor.offset, tensor.shape, tensor.strides, tensor.dtype)
                    entry = layout.index.get(view) or state.add(view, tensor, numbers)
                    number, signed, conflicts, covered, grown = state.entry = entry
                    state.tensor = tensor
                    if grown is not None:
                        state.layout = grown
                        state.writers.append(-1)
                        state.readers.append([])
                key.append(signed)
                writers, everyone = state.writers, state.readers
                if writers[number] >= 0:
                    war.append(writers[number])
                if everyone[number]:
                    war += everyone[number]
                    everyone[number] = []
                if conflicts:
                    for other in conflicts:
                        if writers[other] >= 0:
                            war.append(writers[other])
                        war += everyone[other]
                    for other in covered:
                        writers[other] = at
                        everyone[other] = []
                writers[number] = at
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
            if self.waits:
                war += self.waits
                self.waits = []
            kind = price[1]
            queue = kind + instruction.core * QUEUE_COUNT
            if price[0] == BRANCH:
                at = self._branch(instruction, price)
                continue
            found: Any = None
            if raw or war:
                last: dict[int, int] = {}
                skip = queue if kind == _TENSOR else -1
                for j in raw:
                    other = queues[j]
                    if other != skip and last.get(other, -1) < j:
                        last[other] = j
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
            if price[0] == BANK:
                self._note_bank(operands, plan, at)
            if explicit is not None:
                self._explicit(instruction, at, explicit)
            if instruction.peer is not None and price[0] == MEET:
                self._pair(instruction, at, arrived)
            at += 1
            if position in dying:
                self._bury(dying[position])

    # --- what is rare ----------------------------------------------------------------------

    def _slow(
        self, state: State, tensor: NkiTensor, at: int, raw: list[int], war: list[int] | None
    ) -> int:
        """An access to HBM that nothing waits for, or with an address from the device.

        Args:
            state: of the tensor's storage.
            tensor: what is accessed.
            at: by which instruction.
            raw: gets what a read waits for.
            war: gets what a write waits for; None for a read.
        """
        found_signature = signature(state, tensor, self.numbers)
        if tensor.dynamic is not None:
            for index in tensor.dynamic.tensors():
                self._others((index,), at, raw, None)
        if state.layout is None:
            return found_signature
        static = tensor.dynamic is None
        shape, strides = (tensor.shape, tensor.strides) if static else ((), ())
        view = (tensor.offset if static else -1, shape, strides, tensor.dtype)
        found = state.layout.index.get(view) or state.add(view, tensor, self.numbers)
        number, _, conflicts, covered, grown = found
        if grown is not None:
            state.layout = grown
            state.writers.append(-1)
            state.readers.append([])
        for other in (number, *conflicts):
            if state.writers[other] >= 0:
                (raw if war is None else war).append(state.writers[other])
            if war is not None:
                war += state.readers[other]
        if war is None:
            state.readers[number].append(at)
        else:
            state.readers[number] = []
            state.writers[number] = at
            for other in covered if static else ():
                state.writers[other] = at
                state.readers[other] = []
        return found_signature

    def _others(self, value: Any, at: int, raw: list[int], war: list[int] | None) -> Any:
        """An operand that is a list of tensors, a number, a register or nothing."""
        if not isinstance(value, list | tuple):
            return value is None
        return tuple(
            self._slow(self.states[t.storage.index] or self._state(t.storage), t, at, raw, war)
            for t in value
            if isinstance(t, NkiTensor)
        )

    def _state(self, storage: Storage) -> State:
        """A storage's state at its first use: on chip it gets its memory."""
        core = storage.core or 0
        if not storage.buffer.on_chip:
            layout = None
            if storage.index not in self.untracked:
                layout = self._layout(0, storage.shape[-1] * storage.dtype.itemsize)
            state = State(0, layout)
        elif storage.buffer is MemoryRegion.psum:
            banks = self.psum[core]
            layout = self._layout(2, storage.bytes_per_partition)
            state = self._fresh(2, layout, footprint(self.program, storage), banks)
            self.waits += banks.place(state, storage)
        else:
            size = storage.bytes_per_partition
            memory = self.sbuf[core]
            state = self._fresh(1, self._layout(1, size), size, memory)
            if memory.fresh >= size:
                memory.fresh -= size
            else:
                self.waits += memory.take(size)
        self.states[storage.index] = state
        return state

    def _fresh(self, where: int, layout: Layout, size: int, memory: Memory) -> State:
        """A state as new."""
        if not self.pool:
            return State(where, layout, size, memory)
        state = self.pool.pop()
        state.where, state.layout, state.size, state.memory = where, layout, size, memory
        state.bank = 0
        return state

    def _layout(self, where: int, row: int) -> Layout:
        """The empty layout of storages with rows of this size."""
        found = self.layouts.get((where, row))
        if found is None:
            found = self.layouts[where, row] = Layout(row)
        return found

    def _bury(self, storages: list[Storage]) -> None:
        """Storages that no instruction touches any more."""
        for storage in storages:
            state = self.states[storage.index]
            if state is not None and state.memory is not None:
                state.memory.give(state)
                self.states[storage.index] = state.tensor = None
                state.writers.clear()
                state.readers.clear()
                self.pool.append(state)

    def _note_bank(self, operands: tuple[Any, ...], plan: _Plan, at: int) -> None:
        """Find the PSUM bank an instruction works in."""
        for operand in (*plan.reads, *plan.writes):
            tensor = operands[operand]
            if isinstance(tensor, NkiTensor) and tensor.buffer is MemoryRegion.psum:
                state = self.states[tensor.storage.index]
                if state is not None and state.bank:
                    self.decoded.banks[at] = state.bank

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
    touches: dict[InstructionSpec, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    read: set[int] = set()
    written: set[int] = set()
    nothing: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    for instruction in program.instructions:
        spec = instruction.spec
        places = touches.get(spec)
        if places is None:
            plan = _Plan(spec)
            in_hbm = any(operand.buffers & HBM for operand in spec.operands.values())
            places = touches[spec] = (plan.reads, plan.writes) if in_hbm else nothing
        if places is not nothing:
            for operands, found in zip(places, (read, written), strict=True):
                for operand in operands:
                    value = instruction.operands[operand]
                    for tensor in value if isinstance(value, list | tuple) else (value,):
                        if isinstance(tensor, NkiTensor):
                            found.add(tensor.storage.index)
    return {
        storage.index
        for storage in program.storages
        if not storage.buffer.on_chip and not (storage.index in read and storage.index in written)
    }
