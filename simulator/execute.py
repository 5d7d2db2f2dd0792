"""Execute: a Program on data.

A `Plan` replays a Program: it resolves every view once, packs on-chip tensors by lifetime
into one arena, and binds arguments and outputs at each call. `Eager` executes instructions
one by one while they are traced. Both carry out the lowerings of the one instruction table.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from simulator.arena import pack
from simulator.contract import contract
from simulator.errors import NkiValidationError, Violation
from simulator.forward import Forwarding, forward
from simulator.instructions.control import LOOPS, wrap32
from simulator.instructions.table import Array, Run
from simulator.lnc import end_of, meets
from simulator.numerics import physical
from simulator.program import Instruction, Program
from simulator.registers import VirtualRegister
from simulator.schedule import accumulator_chains, schedule, workers
from simulator.targets import PARTITIONS
from simulator.tensor import NkiTensor, ScalarOffset, Storage
from simulator.turns import Turns

BUFFER = 512
"""Elements that NumPy takes at a time where operands are broadcast or cast. With its 8192, a
(P, 1) column is copied out to several rows first, which doubles the time of tensor_scalar."""

PRECISE = "NKI_PRECISE_FP"
"""0 keeps low-precision tensors as fp32, to tell rounding from logic errors (§4.1)."""


def precise() -> bool:
    """Whether low-precision dtypes are rounded as on the chip; the default."""
    return os.environ.get(PRECISE, "1") != "0"


UNINITIALISED = 4
"""What AWS's simulator finds in integers that nothing was written to (§4.1)."""


class _Skip(Exception):
    """A dynamic address is out of bounds and the instruction says to skip it."""


class Machine:
    """Memory and views: what lowerings ask for (`instructions.table.Slots`)."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.precise = precise()
        self.views: list[Array] = []
        self.memory: dict[int, Array] = {}
        """Storage index -> its bytes."""
        self.states: dict[str, Any] = {}
        self._slots: dict[Any, int] = {}
        self._tensors: list[NkiTensor | None] = []
        self._forwarding = Forwarding()
        self._instruction: Instruction | None = None
        self._before: list[Run] = []
        self._after: list[Run] = []
        self._chain = 0
        """Of accumulations: `schedule.accumulator_chains`."""
        self._worker = 0

    # --- slots --------------------------------------------------------------------------

    def _add(self, array: Array, tensor: NkiTensor | None = None) -> int:
        self.views.append(array)
        self._tensors.append(tensor)
        return len(self.views) - 1

    def __call__(self, tensor: NkiTensor) -> int:
        """The index of a tensor's view."""
        if not self.precise and tensor.dtype is not tensor.storage.dtype:
            self._check_bits(tensor)
        if tensor.dynamic is not None:
            return self._dynamic(tensor)
        if tensor.storage.index in self._forwarding.aliases:
            tensor = self._forwarding.root(tensor)
        key = (tensor.storage.index, tensor.offset, tensor.shape, tensor.strides, tensor.dtype)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = self._add(self._now(tensor), tensor)
        return slot

    def _check_bits(self, tensor: NkiTensor) -> None:
        """Without low precision there are no bits of it to take for another dtype."""
        for dtype in (tensor.dtype, tensor.storage.dtype):
            if physical(dtype, False) != dtype.numpy:
                instruction = self._instruction
                where = (instruction.file, instruction.line) if instruction else ("", 0)
                raise NkiValidationError(
                    [
                        Violation(
                            "precise-fp",
                            f"`{tensor.name}`, a {tensor.storage.dtype}, is taken as "
                            f"{tensor.dtype}, but {PRECISE}=0 keeps {dtype} as float32",
                            f"Run this kernel with {PRECISE}=1",
                            *where,
                            instruction.spec.name if instruction else "",
                            limit=f"{PRECISE}=1",
                            value=f"{PRECISE}=0",
                        )
                    ]
                )

    def _now(self, tensor: NkiTensor) -> Array:
        """The tensor's view if its memory is there already."""
        memory = self.memory.get(tensor.storage.index)
        return _NOTHING if memory is None else self.resolve(tensor, memory)

    def register(self, register: VirtualRegister) -> int:
        """The index of a register's value."""
        key = ("register", register.index)
        if key not in self._slots:
            self._slots[key] = self._add(np.zeros((), np.int64))
        return self._slots[key]

    def accumulators(self, engine: str) -> int:
        """The index of an engine's accumulator registers, fp32[128]."""
        core = self._instruction.core if self._instruction else 0
        key = ("accumulators", engine, core, self._chain)
        if key not in self._slots:
            self._slots[key] = self._add(np.zeros(PARTITIONS, np.float32))
        return self._slots[key]

    def state(self, name: str, make: Callable[[], Any]) -> Any:
        """An object of the current core and thread that lives as long as the memory."""
        key = f"{name}:{self._instruction.core if self._instruction else 0}:{self._worker}"
        if key not in self.states:
            self.states[key] = make()
        return self.states[key]

    def is_constant(self, tensor: NkiTensor) -> bool:
        """Whether the view's values cannot change during a run; never known while tracing."""
        return False

    def rows(self, tensor: NkiTensor) -> int:
        """For a view with vector_offset: all rows there are."""
        dynamic = tensor.dynamic
        assert dynamic is not None
        elements = tensor.storage.bytes // tensor.dtype.itemsize
        span = 1 + sum(
            s * (n - 1) for s, n in zip(tensor.strides[1:], tensor.shape[1:], strict=True)
        )
        count = max(0, (elements - tensor.offset - span) // dynamic.row_stride + 1)
        if dynamic.row_limit is not None:
            count = min(count, dynamic.row_limit)
        return self(
            NkiTensor(
                tensor.storage,
                (count, *tensor.shape[1:]),
                (dynamic.row_stride, *tensor.strides[1:]),
                tensor.offset,
                tensor.dtype,
            )
        )

    def resolve(self, tensor: NkiTensor, memory: Array, extra: int = 0) -> Array:
        """The view of a storage's bytes that a tensor describes, `extra` elements further."""
        dtype = physical(tensor.dtype, self.precise)
        size = dtype.itemsize
        return np.ndarray(
            tensor.shape,
            dtype,
            memory.data,
            (tensor.offset + extra) * size,
            tuple([stride * size for stride in tensor.strides]),
        )

    def bytes_of(self, storage: Storage) -> int:
        """Bytes a storage takes in the simulator's memory."""
        return storage.size * physical(storage.dtype, self.precise).itemsize

    def _write_back(self, arguments: Mapping[str, Array]) -> None:
        """With NKI_PRECISE_FP=0: what was written to converted copies of arguments."""
        for name, tensor in self.program.arguments.items():
            array = arguments[name]
            held = self.memory[tensor.storage.index]
            if not np.shares_memory(held, array):
                array[...] = held.view(np.float32).reshape(array.shape).astype(array.dtype)

    # --- dynamic addresses --------------------------------------------------------------

    def _dynamic(self, tensor: NkiTensor) -> int:
        dynamic, instruction = tensor.dynamic, self._instruction
        assert dynamic is not None
        assert instruction is not None
        if dynamic.rows is not None:
            raise AssertionError(f"{instruction.spec.name} does not take vector_offset")
        slot = self._add(_NOTHING)
        sources = [(self._index(scalar), scalar) for scalar in dynamic.scalars]
        if sources or dynamic.elements is None:
            self._before.append(self._scalar_resolver(tensor, slot, sources, instruction))
        if dynamic.elements is not None:
            written = any(tensor is t for _, t in instruction.writes())
            self._elements(tensor, slot, instruction, written)
        return slot

    def _index(self, scalar: ScalarOffset) -> int:
        index = scalar.index
        return self.register(index) if isinstance(index, VirtualRegister) else self(index)

    def _scalar_resolver(
        self,
        tensor: NkiTensor,
        slot: int,
        sources: list[tuple[int, ScalarOffset]],
        instruction: Instruction,
    ) -> Run:
        span = list(zip(tensor.strides, tensor.shape, strict=True))
        offset, elements = tensor.offset, tensor.storage.bytes // tensor.dtype.itemsize
        if tensor.buffer.on_chip:  # it may not leave its partition
            elements = tensor.storage.bytes_per_partition // tensor.dtype.itemsize
            offset, span = offset % elements, span[1:]
        highest = offset + sum(s * (n - 1) for s, n in span if s > 0)
        lowest = offset + sum(s * (n - 1) for s, n in span if s < 0)
        oob = instruction.get("oob_mode")
        skip = oob is not None and oob.name == "skip"
        storage = tensor.storage.index

        def resolve(views: list[Array]) -> None:
            extra = 0
            for at, scalar in sources:
                value = int(views[at].reshape(-1)[0])
                extra += value * scalar.step
                if value < 0 or (scalar.limit is not None and value >= scalar.limit):
                    if skip:
                        raise _Skip
                    limit = elements if scalar.limit is None else scalar.limit
                    raise dynamic_out_of_bounds(instruction, tensor, value, limit)
            if lowest + extra < 0 or highest + extra >= elements:
                if skip:
                    raise _Skip
                raise dynamic_out_of_bounds(instruction, tensor, highest + extra, elements)
            views[slot] = self.resolve(tensor, self.memory[storage], extra)

        return resolve

    def _elements(
        self, tensor: NkiTensor, slot: int, instruction: Instruction, written: bool
    ) -> None:
        """`.indirect`: gather before the instruction, scatter after it."""
        dynamic = tensor.dynamic
        assert dynamic is not None
        assert dynamic.elements is not None
        partitions, count = tensor.shape
        base = NkiTensor(
            tensor.storage,
            (partitions, dynamic.free_size),
            tensor.strides,
            tensor.offset,
            tensor.dtype,
        )
        table, index = self(base), self(dynamic.elements)
        group = 32 if instruction.engine == "tensor" else 16

        def positions(views: list[Array]) -> Array:
            lists = views[index].astype(np.int64)
            owner = np.arange(partitions) // group * group
            owner = owner if lists.shape[0] >= partitions else owner * 0
            i = np.arange(count)
            found: Array = lists.reshape(lists.shape[0], -1)[
                owner[:, None] + i % min(group, lists.shape[0]), i // group
            ]
            if found.min() < 0 or found.max() >= views[table].shape[1]:
                raise dynamic_out_of_bounds(
                    instruction, tensor, int(found.max()), views[table].shape[1]
                )
            return found

        def gather(views: list[Array]) -> None:
            views[slot] = np.take_along_axis(views[table], positions(views), axis=1)

        def scatter(views: list[Array]) -> None:
            np.put_along_axis(views[table], positions(views), views[slot], axis=1)

        self._before.append(gather)
        if written:
            self._after.append(scatter)

    # --- lowering -----------------------------------------------------------------------

    def lower(self, instruction: Instruction) -> Run:
        """One instruction as a function on the views."""
        self._instruction = instruction
        self._before, self._after = [], []
        run = instruction.spec.lower(instruction, self)
        if not self._before:
            return run
        before, after = tuple(self._before), tuple(self._after)

        def dynamic(views: list[Array]) -> None:
            try:
                for resolve in before:
                    resolve(views)
            except _Skip:
                return
            run(views)
            for finish in after:
                finish(views)

        return dynamic


def dynamic_out_of_bounds(
    instruction: Instruction, tensor: NkiTensor, value: int, limit: int
) -> NkiValidationError:
    """The error for an address that only the data made wrong."""
    return NkiValidationError(
        [
            Violation(
                "dynamic-out-of-bounds",
                f"a dynamic address leaves tensor `{tensor.name}`",
                "Bound the index, or use oob_mode.skip where the instruction has it",
                instruction.file,
                instruction.line,
                instruction.spec.name,
                limit=f"below {limit}",
                value=str(value),
            )
        ]
    )


_NOTHING = np.empty(0, np.uint8)


def _fill(storage: Storage, machine: Machine) -> Array:
    """New memory for a storage with what is in it before anything is written."""
    memory = np.zeros(machine.bytes_of(storage), np.uint8)
    if storage.data is not None:
        values = memory.view(physical(storage.dtype, machine.precise))
        values[...] = storage.data.reshape(-1)
    else:
        _poison(memory, storage, machine)
    return memory


def _poison(memory: Array, storage: Storage, machine: Machine) -> None:
    """What is in memory that nothing was written to, as in AWS's simulator (§4.1)."""
    values = memory.view(physical(storage.dtype, machine.precise))
    values[...] = np.nan if storage.dtype.is_float else UNINITIALISED


class Eager(Machine):
    """Executes instructions as they are traced, so that a debugger sees values."""

    def __init__(self, program: Program, arguments: Mapping[str, Array]) -> None:
        super().__init__(program)
        self._arguments = arguments
        self.turns = Turns(program) if program.lnc == 2 else None

    def bind_arguments(self) -> None:
        """Give the arguments, which are allocated by now, their data."""
        for name, tensor in self.program.arguments.items():
            self.memory[tensor.storage.index] = flat_bytes(
                self._arguments[name], self.precise, tensor
            )

    def allocate(self, storage: Storage) -> None:
        """A storage of the Program comes to life."""
        if storage.role != "argument":
            self.memory[storage.index] = _fill(storage, self)

    def execute(self, instruction: Instruction) -> None:
        """Carry out one instruction now; where the cores meet, once both are there."""
        if self.turns is not None and meets(instruction):
            self.turns.meet(instruction, self._execute)
        else:
            self._execute(instruction)

    def _execute(self, instruction: Instruction) -> None:
        with np.errstate(all="ignore"):
            self.lower(instruction)(self.views)

    def results(self) -> list[Array]:
        """The results when the kernel has ended, one array each; arguments are up to date."""
        if not self.precise:
            self._write_back(self._arguments)
        return [self.views[self(result)] for result in self.program.results]

    def values(self, tensor: NkiTensor) -> Array | None:
        """A copy of a tensor's present values; None where an instruction decides what it is."""
        if tensor.dynamic is not None:
            return None
        return self.views[self(tensor)].copy()

    def add_register(self, register: VirtualRegister) -> None:
        """A register comes to life."""
        self.views[Machine.register(self, register)][...] = UNINITIALISED

    def value_of(self, register: VirtualRegister) -> int:
        """A register's present value."""
        return int(self.views[Machine.register(self, register)])

    def set_register(self, register: VirtualRegister, value: int) -> None:
        """Set a loop's variable."""
        self.views[Machine.register(self, register)][...] = wrap32(value)


def flat_bytes(array: Array, is_precise: bool, tensor: NkiTensor) -> Array:
    """An argument's memory as bytes; fp32 for low-precision dtypes if not precise."""
    wanted = physical(tensor.dtype, is_precise)
    if array.dtype.itemsize != wanted.itemsize:
        array = array.astype(wanted)
    return array.reshape(-1).view(np.uint8)


class Plan(Machine):
    """A Program made ready to run. Safe to call from several threads, one at a time."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._lock = threading.Lock()
        self._allocated = False
        self._forwarding = forward(program)
        contract(program, self._forwarding)
        self._segments = self._prepare()
        self._results = [self(result) for result in program.results]
        external = ("argument", "output")
        self._bound = [
            (slot, tensor)
            for slot, tensor in enumerate(self._tensors)
            if tensor is not None and tensor.storage.role in external
        ]
        self._runs = [state for key, state in self.states.items() if key.startswith("runs:")]
        self._outputs = [s for s in program.storages if s.role == "output"]
        self._uncertain = [program.storages[index] for index in sorted(program.uncertain)]
        registers = [slot for key, slot in self._slots.items() if key[0] == "register"]
        self._registers = [self.views[slot] for slot in registers]

    def is_constant(self, tensor: NkiTensor) -> bool:
        """Whether the view shows an argument that the Program does not write."""
        if tensor.dynamic is not None:
            return False
        storage = self._forwarding.root(tensor).storage
        return storage.role == "argument" and storage.name not in self.program.written_arguments

    # --- preparing --------------------------------------------------------------------------

    def _prepare(self) -> list[list[list[Run]]]:
        """The segments of the schedule, each with the steps of its workers."""
        self._schedule = schedule(self.program, self._forwarding, workers())
        chains = accumulator_chains(self.program)
        prepared = []
        for segment in self._schedule:
            lanes = []
            for self._worker, units in enumerate(segment.lanes):
                steps: list[Run] = []
                for unit in units:
                    self._chain = chains.get(unit.first, 0)
                    steps += self._block(unit.first, unit.last + 1)
                lanes.append(steps)
            self._worker = 0
            prepared.append(lanes)
        return prepared

    def _block(self, position: int, stop: int) -> list[Run]:
        """The steps of the instructions from `position` up to `stop`, loops as one step."""
        steps: list[Run] = []
        instructions = self.program.instructions
        while position < stop:
            instruction = instructions[position]
            if instruction.spec.name in LOOPS:
                end = end_of(instructions, position)
                body = self._block(position + 1, end)
                if instruction.peer is None or instruction.core == 0:
                    steps.append(self._loop(instruction, body, instructions[end]))
                else:  # the other core's begin of a loop that both run
                    steps += body
                position = end + 1
                continue
            if position not in self._forwarding.skipped:
                replaced = self._forwarding.replaced.get(position, instruction)
                steps.append(self.lower(replaced))
            position += 1
        return steps

    def _loop(self, begin: Instruction, body: list[Run], end: Instruction) -> Run:
        registers = [self.register(begin["register"])]
        if begin.peer is not None:
            registers.append(self.register(begin.peer["register"]))
        if begin.spec.name == "while_begin":
            return self._while(begin, body, end, registers)
        bounds = [self._bounds(begin)]
        if begin.peer is not None:
            bounds.append(self._bounds(begin.peer))

        def run(views: list[Array]) -> None:
            trips = [bound(views) for bound in bounds]
            if len({len(trip) for trip in trips}) > 1:
                raise _divergent(begin, [len(trip) for trip in trips])
            for values in zip(*trips, strict=True):
                for register, value in zip(registers, values, strict=True):
                    views[register][...] = value
                for step in body:
                    step(views)

        return run

    def _bounds(self, begin: Instruction) -> Callable[[list[Array]], range]:
        def reader(bound: Any) -> Callable[[list[Array]], int]:
            if not isinstance(bound, VirtualRegister):
                return lambda views: int(bound)
            slot = self.register(bound)
            return lambda views: int(views[slot])

        start, stop, step = reader(begin["start"]), reader(begin["stop"]), begin["step"]
        return lambda views: range(start(views), stop(views), step)

    def _while(
        self, begin: Instruction, body: list[Run], end: Instruction, registers: list[int]
    ) -> Run:
        ends = [end] if end.peer is None else [end, end.peer]
        following = [self.register(each["following"]) for each in ends]

        def run(views: list[Array]) -> None:
            while True:
                alive = {bool(views[register]) for register in registers}
                if len(alive) > 1:
                    raise _divergent(begin, [int(views[register]) for register in registers])
                if alive == {False}:
                    return
                for step in body:
                    step(views)
                for register, new in zip(registers, following, strict=True):
                    views[register][...] = views[new]

        return run

    # --- running ----------------------------------------------------------------------------

    def run(self, arguments: Mapping[str, Array]) -> list[Array]:
        """Replay on contiguous arrays, one per tensor argument; arguments may be written.

        Returns:
            One array per result, in order; a result that is an argument is its view.
        """
        with self._lock, np.errstate(all="ignore"):
            np.setbufsize(BUFFER)  # until errstate ends
            self._bind(arguments)
            views = self.views
            for counter in self._runs:
                counter[0] += 1
            for lanes in self._segments:
                others = [_pool().submit(_run_lane, lane, views) for lane in lanes[1:]]
                try:
                    for step in lanes[0]:
                        step(views)
                finally:
                    wait(others)
                for other in others:
                    other.result()
            results = [views[slot] for slot in self._results]
            if not self.precise:
                self._write_back(arguments)
            for slot, tensor in self._bound:  # keep no caller's memory alive
                views[slot] = _NOTHING
                self.memory.pop(tensor.storage.index, None)
        return results

    def _bind(self, arguments: Mapping[str, Array]) -> None:
        if not self._allocated:
            self._allocate()
        memory = self.memory
        for name, tensor in self.program.arguments.items():
            memory[tensor.storage.index] = flat_bytes(arguments[name], self.precise, tensor)
        if self.program.written_arguments:
            self._part_shared_arguments(arguments)
        for storage in self._outputs:
            memory[storage.index] = np.empty(self.bytes_of(storage), np.uint8)
        for storage in self._uncertain:
            _poison(memory[storage.index], storage, self)
        for register in self._registers:
            register[...] = UNINITIALISED
        for slot, tensor in self._bound:
            self.views[slot] = self.resolve(tensor, memory[tensor.storage.index])

    def _part_shared_arguments(self, arguments: Mapping[str, Array]) -> None:
        """An array given twice, and written through one name, is copied for the other."""
        written = self.program.written_arguments
        for name, tensor in self.program.arguments.items():
            if name not in written and any(
                np.may_share_memory(arguments[name], arguments[other]) for other in written
            ):
                index = tensor.storage.index
                self.memory[index] = self.memory[index].copy()

    def _allocate(self) -> None:
        addresses, size = pack(self.program, self.bytes_of, self._forwarding, self._schedule)
        arena = np.zeros(size, np.uint8)
        for storage in self.program.storages:
            if storage.role == "constant":
                self.memory[storage.index] = _fill(storage, self)
            elif storage.role == "temporary" and storage.index in self.program.uncertain:
                self.memory[storage.index] = np.zeros(self.bytes_of(storage), np.uint8)
            elif storage.index in addresses:
                start = addresses[storage.index]
                self.memory[storage.index] = arena[start : start + self.bytes_of(storage)]
        for slot, tensor in enumerate(self._tensors):
            if tensor is not None and tensor.storage.index in self.memory:
                self.views[slot] = self.resolve(tensor, self.memory[tensor.storage.index])
        self._allocated = True


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads for the segments that use more than one."""
    return ThreadPoolExecutor(max(1, workers() - 1), "nki-simulator")


def _run_lane(steps: list[Run], views: list[Array]) -> None:
    """One worker's steps, in its thread."""
    with np.errstate(all="ignore"):
        np.setbufsize(BUFFER)
        for step in steps:
            step(views)


def _divergent(begin: Instruction, found: list[int]) -> NkiValidationError:
    return NkiValidationError(
        [
            Violation(
                "lnc-divergence",
                "the cores run a loop with a barrier a different number of times",
                "Give both cores the same trip count",
                begin.file,
                begin.line,
                begin.spec.name,
                limit="the same on both cores",
                value=" and ".join(map(str, found)),
            )
        ]
    )
