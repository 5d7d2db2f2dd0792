"""Memory and views: what lowerings work on, whoever carries them out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from simulator.errors import NkiValidationError, Violation
from simulator.forward import Forwarding
from simulator.instructions.table import Array, Run
from simulator.numerics import physical
from simulator.program import Instruction, Program
from simulator.registers import VirtualRegister
from simulator.targets import PARTITIONS
from simulator.tensor import NkiTensor, ScalarOffset, Storage

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


class Skip(Exception):
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
        return self._repeated(tensor, slot) if 0 in tensor.strides else slot

    def _repeated(self, tensor: NkiTensor, slot: int) -> int:
        """A destination with a step of 0, where kernels drop what they need not: its last
        element stays. An instruction that computes in its destination gets memory for all.
        """
        repeats = any(s == 0 and n > 1 for s, n in zip(tensor.strides, tensor.shape, strict=True))
        written = self._instruction.written if self._instruction else []
        if not repeats or not any(tensor is value for value in written):
            return slot
        dtype, size = physical(tensor.dtype, self.precise), tensor.size
        room = 1 << (size - 1).bit_length()
        name = f"repeated {len(self._after)} {dtype} of {room}"
        memory = self.state(name, lambda: np.empty(room, dtype))[:size].reshape(tensor.shape)
        whole = self._add(memory)

        def before(views: list[Array]) -> None:
            memory[...] = views[slot]

        def after(views: list[Array]) -> None:
            views[slot][...] = memory

        self._before.append(before)
        self._after.append(after)
        return whole

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
        return NOTHING if memory is None else self.resolve(tensor, memory)

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
        slot = self._add(NOTHING)
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
                        raise Skip
                    limit = elements if scalar.limit is None else scalar.limit
                    raise dynamic_out_of_bounds(instruction, tensor, value, limit)
            if lowest + extra < 0 or highest + extra >= elements:
                if skip:
                    raise Skip
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
            except Skip:
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


NOTHING = np.empty(0, np.uint8)


def fill(storage: Storage, machine: Machine) -> Array:
    """New memory for a storage with what is in it before anything is written."""
    memory = np.zeros(machine.bytes_of(storage), np.uint8)
    if storage.data is not None:
        values = memory.view(physical(storage.dtype, machine.precise))
        values[...] = storage.data.reshape(-1)
    else:
        poison(memory, storage, machine)
    return memory


def poison(memory: Array, storage: Storage, machine: Machine) -> None:
    """What is in memory that nothing was written to, as in AWS's simulator (§4.1)."""
    values = memory.view(physical(storage.dtype, machine.precise))
    values[...] = np.nan if storage.dtype.is_float else UNINITIALISED


def flat_bytes(array: Array, is_precise: bool, tensor: NkiTensor) -> Array:
    """An argument's memory as bytes; fp32 for low-precision dtypes if not precise."""
    wanted = physical(tensor.dtype, is_precise)
    if array.dtype.itemsize != wanted.itemsize:
        array = array.astype(wanted)
    return array.reshape(-1).view(np.uint8)
