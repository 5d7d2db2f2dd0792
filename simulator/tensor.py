"""Tensors without data: a view (shape, strides, offset, dtype) of a storage.

Rules and limits: nki_facts.md §2.2, §2.3 and §3.2. Indexing is in `indexing.py`, the view
methods in `views.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from simulator import indexing, patterns, views
from simulator.context import note_lax
from simulator.dtypes import DType
from simulator.errors import kernel_location, refuse
from simulator.indexing import DynamicSlice as DynamicSlice

if TYPE_CHECKING:
    from simulator.registers import VirtualRegister


class MemoryRegion(Enum):
    """Where a tensor lives."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"

    on_chip: bool
    """SBUF or PSUM: dimension 0 is the partition dimension."""

    __hash__ = object.__hash__


for _region in MemoryRegion:
    _region.on_chip = _region in (MemoryRegion.sbuf, MemoryRegion.psum)


class Storage:
    """One allocation: `size` elements of `dtype`, row-major, in a memory region."""

    __slots__ = (
        "address", "buffer", "bytes", "bytes_per_partition", "core", "data", "dtype", "file",
        "index", "line", "name", "role", "scope", "shape", "size",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        name: str,
        shape: tuple[int, ...],
        dtype: DType,
        buffer: MemoryRegion,
        role: str,
        core: int | None = None,
        address: tuple[int, int] | None = None,
    ) -> None:
        """Describe an allocation made at the kernel's current line.

        Args:
            index: its position in the Program's list.
            name: for messages.
            shape: all positive; dimension 0 of on-chip storages is the partitions.
            dtype: of the elements.
            buffer: where it lives.
            role: `argument`, `output`, `constant` or `temporary`.
            core: the core that owns it; None if both cores of an LNC2 launch see it.
            address: (partition, byte offset in the partition) if the kernel chose it.
        """
        self.index = index
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.buffer = buffer
        self.role = role
        self.core = core
        self.address = address
        self.size = math.prod(shape)
        self.bytes = self.size * dtype.itemsize
        self.bytes_per_partition = self.bytes // shape[0]
        """For SBUF and PSUM."""
        self.data: Any = None
        """The values of a `constant`, a NumPy array."""
        self.scope: int | None = None
        """The dynamic loop in whose body it was allocated."""
        self.file, self.line = kernel_location()

    def __deepcopy__(self, memo: Any) -> Storage:
        """A kernel that copies an object which holds tensors copies no memory."""
        return self


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


@dataclass(frozen=True, eq=False)
class ScalarOffset:
    """The address moves by `step` elements for each unit of a value on the device."""

    index: NkiTensor | VirtualRegister
    """A (1, 1) integer tile, or a register."""
    step: int
    limit: int | None = None
    """The value must be below this, where the view says so."""


@dataclass(frozen=True, eq=False)
class Dynamic:
    """What a view's address takes from the device. At most one of rows and elements."""

    scalars: tuple[ScalarOffset, ...] = ()
    rows: NkiTensor | None = None
    """(P, 1) row numbers: row p of the view is row rows[p] of the tensor (vector_offset)."""
    row_stride: int = 0
    """Elements between rows."""
    row_limit: int | None = None
    """Row numbers must be below this; None for as many as the storage has."""
    elements: NkiTensor | None = None
    """Free-element numbers for `.indirect` (gen4)."""
    free_size: int = 0
    """Elements per partition that `elements` counts in."""

    def tensors(self) -> list[NkiTensor]:
        """The index tiles it reads."""
        found = [s.index for s in self.scalars if isinstance(s.index, NkiTensor)]
        return [*found, *(t for t in (self.rows, self.elements) if t is not None)]


class NkiTensor:
    """A view of a storage. Strides and offset count elements of `dtype`."""

    __slots__ = ("dtype", "dynamic", "offset", "shape", "storage", "strides")

    def __init__(
        self,
        storage: Storage,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        offset: int = 0,
        dtype: DType | None = None,
        dynamic: Dynamic | None = None,
    ) -> None:
        self.storage = storage
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.dtype = storage.dtype if dtype is None else dtype
        self.dynamic = dynamic

    @property
    def buffer(self) -> MemoryRegion:
        """Where the storage lives."""
        return self.storage.buffer

    @property
    def name(self) -> str:
        """The storage's name."""
        return self.storage.name

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def free_size(self) -> int:
        """Elements in each partition."""
        return math.prod(self.shape[1:])

    @property
    def free_bytes(self) -> int:
        """Bytes in each partition."""
        return self.free_size * self.dtype.itemsize

    @property
    def start_partition(self) -> int:
        """The first partition; for SBUF and PSUM."""
        storage = self.storage
        free = storage.bytes_per_partition // self.dtype.itemsize
        start = self.offset // free if free else 0
        return start if storage.address is None else storage.address[0] + start

    def __repr__(self) -> str:
        dims = ",".join(map(str, self.shape))
        text = f"{self.name}: {self.dtype}[{dims}] in {self.buffer.value}"
        values = eager_values(self)
        return text if values is None else f"{text}\n{values}"

    def __bool__(self) -> bool:
        """True, as of any object: public kernels ask `if weights:` for `is not None`.

        Raises:
            NkiValidationError: outside a kernel.
        """
        note_lax(
            "tensor-value",
            f"the value of tensor {self.name} is not known while the kernel is compiled: this is "
            "True whatever it holds",
            "Decide on shapes and parameters, or select on the device (e.g. nisa.affine_select); "
            "ask `is not None` for a tensor that may be missing",
        )
        return True

    def __setitem__(self, key: Any, value: Any) -> None:
        """`tile[…] = value`, which only AWS's simulator takes: a copy, or a memset of a number.

        Raises:
            NkiValidationError: the value is neither a tensor nor a number.
        """
        from simulator.instructions.movement import assign

        assign(self[key], value)

    def __iter__(self) -> Any:
        raise refuse(
            "tensor-value",
            f"tensor {self.name} cannot be iterated over",
            "Loop over range(tensor.shape[0]) and slice",
        )

    def __getitem__(self, key: Any) -> NkiTensor:
        return indexing.index(self, key if isinstance(key, tuple) else (key,))

    def is_contiguous(self) -> bool:
        """Whether elements follow each other; on chip, within each partition."""
        first = 1 if self.storage.buffer.on_chip else 0
        expected = 1
        for axis in range(len(self.shape) - 1, first - 1, -1):
            count = self.shape[axis]
            if count != 1:
                if self.strides[axis] != expected:
                    return False
                expected *= count
        return True

    def is_indirect(self) -> bool:
        """Whether its addresses come from an index tile or a register."""
        return self.dynamic is not None

    def get_pattern(self) -> list[list[int]]:
        """The access pattern as [[stride, count], …]."""
        return [[s, n] for s, n in zip(self.strides, self.shape, strict=True)]

    # Filled from views.py and patterns.py: each takes the tensor first and returns a new view.
    ap = patterns.ap
    broadcast = views.broadcast
    expand_dim = views.expand_dim
    flatten_dims = views.flatten_dims
    indirect = patterns.indirect
    permute = views.permute
    rearrange = views.rearrange
    reshape = views.reshape
    reshape_dim = views.reshape_dim
    select = patterns.select
    slice = views.slice_dim
    squeeze_dim = views.squeeze_dim
    vector_select = patterns.vector_select
    view = views.view
    reinterpret_cast = views.view


class OutsideTensor(NkiTensor):
    """A view that leaves its storage or has no elements; `fault` is raised where it is used."""

    __slots__ = ()
    fault: ClassVar[Exception]

    @classmethod
    def of(cls, fault: Exception) -> type[OutsideTensor]:
        """The class of views with this fault, and of all views made of them."""
        return type(cls.__name__, (cls,), {"__slots__": (), "fault": fault})


def eager_values(tensor: NkiTensor) -> Any:
    """The tensor's present values in eager mode, else None."""
    from simulator.context import CURRENT

    program = CURRENT.get()
    return None if program is None or program.eager is None else program.eager.values(tensor)


def _no_operator(symbol: str) -> Any:
    def operator(self: NkiTensor, other: Any = None) -> Any:
        kinds = f"'NkiTensor' and '{type(other).__name__}'"
        raise TypeError(
            f"unsupported operand type(s) for {symbol}: {kinds}; "
            "binary operators on tensors are not supported, use nki.isa directly"
        )

    return operator


for _name, _symbol in {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%",
    "pow": "**", "matmul": "@", "and": "&", "or": "|", "xor": "^",
}.items():  # fmt: skip
    setattr(NkiTensor, f"__{_name}__", _no_operator(_symbol))
    setattr(NkiTensor, f"__r{_name}__", _no_operator(_symbol))
for _name, _symbol in {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(NkiTensor, f"__{_name}__", _no_operator(_symbol))
setattr(NkiTensor, "__neg__", _no_operator("-"))  # noqa: B010
