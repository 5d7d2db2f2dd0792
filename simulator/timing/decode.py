"""A Program as arrays: for each played instruction its cost, queue and dependencies.

One pass over the Program. The cost of an operand signature is found once (`cost.py`), and a
storage that is always accessed by one view needs no search (`dependencies.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simulator.instructions.control import LOOPS
from simulator.instructions.table import HBM, InstructionSpec
from simulator.lifetimes import footprint, lifetimes
from simulator.tensor import MemoryRegion, NkiTensor, Storage
from simulator.timing import collectives
from simulator.timing.cost import BRANCH, ENGINES, MEET, QUEUES, Cost, cost
from simulator.timing.dependencies import Banks, Memory, Region, State, compress, contains
from simulator.timing.loops import unroll
from simulator.timing.machine import Machine

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

QUEUE_COUNT = len(QUEUES)
_RINGS = frozenset(QUEUES.index(name) for name in ("loads", "stores"))
_TENSOR = QUEUES.index("tensor")
_EXTRAS = frozenset(
    "op perf_mode is_transpose dge_mode engine dma_engine num_elem_per_idx num_valid_indices "
    "n axes replica_group".split()
)
"""Operands that are no tensors and yet decide the cost."""


@dataclass
class Decoded:
    """What play.py plays. All lists and arrays have one entry per played instruction."""

    instructions: list[Instruction] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    queues: bytearray = field(default_factory=bytearray)
    """core * len(QUEUES) + index in QUEUES."""
    banks: bytearray = field(default_factory=bytearray)
    """1 + the PSUM bank that it reads or writes; 0 for none."""
    starts: array[int] = field(default_factory=lambda: array("I", [0]))
    """Where in `depends` its dependencies begin; one entry more at the end."""
    depends: list[int] = field(default_factory=list)
    meets: dict[int, int] = field(default_factory=dict)
    """The partner of each instruction that both cores come to together."""
    assumptions: list[str] = field(default_factory=list)
    """What was assumed about dynamic loops."""


@dataclass(frozen=True)
class _Plan:
    """What to look at in the operands of one row of the instruction table."""

    number: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    extras: tuple[int, ...]


def decode(
    program: Program, machine: Machine, trips: int | Mapping[Any, int] | None = None
) -> Decoded:
    """Turn a Program into arrays.

    Raises:
        ValueError: a dynamic loop's trip count is not known and `trips` does not give it.
    """
    decoded = Decoded()
    order, looped = unroll(program, trips, decoded.assumptions)
    _Decoder(program, machine, decoded).run(order, looped)
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
        self.plans: dict[InstructionSpec, _Plan] = {}
        self.memo: dict[Any, Cost] = {}
        self.waits: list[int] = []
        """What a new storage's first use waits for."""

    def run(self, order: Iterable[Instruction], looped: bool) -> None:
        """Walk through the instructions in program order."""
        dying = self._deaths() if not looped else {}
        after = any(i.after for i in self.program.instructions)
        where: dict[int, int] = {}
        arrived: dict[int, int] = {}
        step = self._step
        for position, instruction in enumerate(order):
            at = step(instruction)
            if after:
                where[id(instruction)] = at
                self._explicit(instruction, where)
            if instruction.peer is not None and self.decoded.costs[at].kind == MEET:
                partner = arrived.pop(id(instruction.peer), None)
                if partner is None:
                    arrived[id(instruction)] = at
                else:
                    self.decoded.meets[at], self.decoded.meets[partner] = partner, at
                    self._drop(at, partner)
            dead = dying.get(position)
            if dead is not None:
                self._bury(dead)

    def _deaths(self) -> dict[int, list[Storage]]:
        found: dict[int, list[Storage]] = {}
        for lifetime in lifetimes(self.program):
            if lifetime.storage.buffer.on_chip:
                found.setdefault(lifetime.last, []).append(lifetime.storage)
        return found

    def _bury(self, storages: list[Storage]) -> None:
        for storage in storages:
            state = self.states[storage.index]
            if state is not None and state.memory is not None:
                state.memory.give(state)
                self.states[storage.index] = None

    def _explicit(self, instruction: Instruction, where: dict[int, int]) -> None:
        for producer in instruction.after:
            at = where.get(id(producer))
            if at is not None:
                self.decoded.depends.append(at)
                self.decoded.starts[-1] += 1

    def _drop(self, at: int, partner: int) -> None:
        """Partners meet: neither waits for the other's end."""
        decoded = self.decoded
        begin = decoded.starts[at]
        kept = [d for d in decoded.depends[begin:] if d != partner]
        decoded.depends[begin:] = kept
        decoded.starts[-1] = begin + len(kept)

    def _step(self, instruction: Instruction) -> int:
        """Append one instruction; returns its index."""
        plan = self.plans.get(instruction.spec)
        if plan is None:
            plan = self._plan(instruction.spec)
        decoded = self.decoded
        at = len(decoded.costs)
        operands = instruction.operands
        states = self.states
        key: list[Any] = [plan.number, instruction.engine]
        raw: list[int] = []
        war: list[int] = []
        touched: list[Region] = []
        bank = 0
        for position in plan.reads:
            tensor = operands[position]
            if tensor.__class__ is not NkiTensor:
                if tensor.__class__ in (list, tuple):
                    for item in tensor:
                        if item.__class__ is NkiTensor:
                            key.append(item.shape)
                            self._read(item, at, raw)
                continue
            state = states[tensor.storage.index]
            if state is None:
                state = self._state(tensor.storage)
            key += (tensor.shape, tensor.strides, tensor.dtype, state.where)
            if tensor.dynamic is not None:
                key.append(self._dynamic(tensor, at, raw))
            if state.row:
                if tensor.offset == state.offset and tensor.shape == state.shape:
                    region = state.first
                else:
                    region = state.region(tensor)
                touched.append(region)  # type: ignore[arg-type]
                for other in region.conflicts:  # type: ignore[union-attr]
                    if other.writer >= 0:
                        raw.append(other.writer)
                bank = state.bank or bank
        read_count = len(touched)
        for position in plan.writes:
            tensor = operands[position]
            if tensor.__class__ is not NkiTensor:
                if tensor.__class__ in (list, tuple):
                    for item in tensor:
                        if item.__class__ is NkiTensor:
                            key.append(item.shape)
                            self._write(item, at, war)
                continue
            state = states[tensor.storage.index]
            if state is None:
                state = self._state(tensor.storage)
            key += (tensor.shape, tensor.strides, tensor.dtype, state.where)
            if tensor.dynamic is not None:
                key.append(self._dynamic(tensor, at, raw))
            if state.row:
                if tensor.offset == state.offset and tensor.shape == state.shape:
                    region = state.first
                else:
                    region = state.region(tensor)
                touched.append(region)  # type: ignore[arg-type]
                for other in region.conflicts:  # type: ignore[union-attr]
                    if other.writer >= 0:
                        war.append(other.writer)
                    war += other.readers
                bank = state.bank or bank
        for position in plan.extras:
            value = operands[position]
            key.append(value if value.__class__ is int else id(value))
        signature = tuple(key)
        price = self.memo.get(signature)
        if price is None:
            price = self.memo[signature] = cost(instruction, self.machine)
        queue = instruction.core * QUEUE_COUNT + price.queue
        if self.waits:
            war += self.waits
            self.waits = []
        if price.kind == BRANCH:
            return self._branch(instruction, price)
        decoded.instructions.append(instruction)
        decoded.costs.append(price)
        decoded.queues.append(queue)
        decoded.banks.append(bank)
        for index, region in enumerate(touched):
            if index < read_count:
                readers = region.readers
                if readers and decoded.queues[readers[-1]] == queue:
                    readers[-1] = at
                else:
                    readers.append(at)
                    compress(readers, decoded.queues)
            else:
                self._wrote(region, at)
        if raw or war:
            self._depend(queue, price.queue, raw, war, at)
        decoded.starts.append(len(decoded.depends))
        return at

    def _depend(self, queue: int, kind: int, raw: list[int], war: list[int], at: int) -> None:
        """Keep, for each queue, the last instruction waited for.

        An engine's own order makes WAR and WAW hold on it; the Tensor engine also accumulates
        into a bank without waiting. DMAs of one ring run side by side.
        """
        queues = self.decoded.queues
        ring = kind in _RINGS
        if len(raw) + len(war) == 1:
            one = (raw or war)[0]
            if queues[one] != queue or ring or (raw and kind != _TENSOR):
                self.decoded.depends.append(one)
            return
        last: dict[int, int] = {}
        skip = queue if kind == _TENSOR and not ring else -1
        for j in raw:
            other = queues[j]
            if other != skip and last.get(other, -1) < j:
                last[other] = j
        skip = -1 if ring else queue
        for j in war:
            if j == at:
                continue
            other = queues[j]
            if other != skip and last.get(other, -1) < j:
                last[other] = j
        self.decoded.depends += last.values()

    def _wrote(self, region: Region, at: int) -> None:
        """A write makes what it covers its own."""
        region.writer = at
        region.readers = []
        if len(region.conflicts) > 1:
            for other in region.conflicts:
                if other is not region and contains(region.box, other.box):
                    other.writer = at
                    other.readers = []

    def _read(self, tensor: NkiTensor, at: int, raw: list[int]) -> None:
        """A read off the fast path: index tiles and lists of tensors."""
        state = self.states[tensor.storage.index] or self._state(tensor.storage)
        if not state.row:
            return
        region = state.region(tensor)
        if state.offset == tensor.offset and state.shape == tensor.shape:
            region = state.first or region
        raw += [other.writer for other in region.conflicts if other.writer >= 0]
        region.readers.append(at)

    def _write(self, tensor: NkiTensor, at: int, war: list[int]) -> None:
        state = self.states[tensor.storage.index] or self._state(tensor.storage)
        if not state.row:
            return
        region = state.region(tensor)
        if state.offset == tensor.offset and state.shape == tensor.shape:
            region = state.first or region
        for other in region.conflicts:
            war += [*other.readers, *([other.writer] if other.writer >= 0 else [])]
        self._wrote(region, at)

    def _dynamic(self, tensor: NkiTensor, at: int, raw: list[int]) -> str:
        """Read the index tiles of a dynamic view; returns what the cost depends on."""
        assert tensor.dynamic is not None
        for index in tensor.dynamic.tensors():
            self._read(index, at, raw)
        return "rows" if tensor.dynamic.rows is not None else "dynamic"

    def _branch(self, instruction: Instruction, price: Cost) -> int:
        """A loop's end is a branch in every engine's queue of its core."""
        decoded = self.decoded
        at = len(decoded.costs)
        if instruction.spec.name in LOOPS:
            return at - 1
        base = instruction.core * QUEUE_COUNT
        for queue in range(len(ENGINES)):
            decoded.instructions.append(instruction)
            decoded.costs.append(price)
            decoded.queues.append(base + queue)
            decoded.banks.append(0)
            decoded.starts.append(len(decoded.depends))
        return at

    def _plan(self, spec: InstructionSpec) -> _Plan:
        by_name = [spec.index[name] for name in spec.parameters if name in _EXTRAS]
        extras = tuple(i for i in by_name if spec.parameters[i] != "engine" or _is_dma(spec))
        results = tuple(
            i for i, n in enumerate(spec.parameters) if n == "reduce_res" and n not in spec.writes
        )
        plan = _Plan(
            len(self.plans),
            tuple(spec.index[n] for n in spec.reads if n not in spec.writes),
            tuple(spec.index[n] for n in spec.writes),
            extras + results,
        )
        updates = tuple(spec.index[n] for n in spec.reads if n in spec.writes)
        plan = _Plan(plan.number, plan.reads + updates, plan.writes, plan.extras)
        self.plans[spec] = plan
        return plan

    def _state(self, storage: Storage) -> State:
        """A storage's state at its first use: on chip it gets its memory."""
        program = self.program
        core = storage.core or 0
        if storage.buffer is MemoryRegion.psum:
            size = footprint(program, storage)
            banks = self.psum[core]
            state = State(2, storage.bytes_per_partition, size, banks)
            self.waits += banks.place(state, storage)
        elif storage.buffer is MemoryRegion.sbuf:
            size = storage.bytes_per_partition
            state = State(1, size, size, self.sbuf[core])
            self.waits += self.sbuf[core].take(size)
        else:
            row = storage.shape[-1] * storage.dtype.itemsize
            state = State(0, 0 if storage.index in self.untracked else row, 0, None)
        self.states[storage.index] = state
        return state


def _is_dma(spec: InstructionSpec) -> bool:
    return spec.engines == ("dma",) or spec.name in collectives.NAMES


def _untracked(program: Program) -> set[int]:
    """HBM storages that are only read, or only written: nothing waits for them."""
    touches = {}
    read: set[int] = set()
    written: set[int] = set()
    for instruction in program.instructions:
        spec = instruction.spec
        known = touches.get(spec)
        if known is None:
            known = touches[spec] = any(o.buffers & HBM for o in spec.operands.values())
        if known:
            for _, tensor in instruction.reads():
                read.add(tensor.storage.index)
            for _, tensor in instruction.writes():
                written.add(tensor.storage.index)
    return {
        storage.index
        for storage in program.storages
        if not storage.buffer.on_chip and not (storage.index in read and storage.index in written)
    }
