"""Tensors without data: a view (shape, strides, offset, dtype) of a storage.

Rules and limits: nki_facts.md §2.2, §2.3 and §3.2.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

from simulator.dtypes import DType, as_dtype
from simulator.errors import kernel_location, refuse


class MemoryRegion(Enum):
    """Where a tensor lives."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"

    @property
    def on_chip(self) -> bool:
        """SBUF or PSUM: dimension 0 is the partition dimension."""
        return self in (MemoryRegion.sbuf, MemoryRegion.psum)


class Storage:
    """One allocation: `size` elements of `dtype`, row-major, in a memory region."""

    __slots__ = ("buffer", "dtype", "file", "index", "line", "name", "role", "shape", "size")

    def __init__(
        self,
        index: int,
        name: str,
        shape: tuple[int, ...],
        dtype: DType,
        buffer: MemoryRegion,
        role: str,
    ) -> None:
        """`role` is `argument`, `output` or `temporary`; the line is where it is allocated."""
        self.index = index
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.buffer = buffer
        self.role = role
        self.size = math.prod(shape)
        self.file, self.line = kernel_location()

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def bytes_per_partition(self) -> int:
        """Bytes in each partition; for SBUF and PSUM."""
        return self.bytes // self.shape[0]


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


class DynamicSlice:
    """`nl.ds(start, size)`: `size` elements from `start`."""

    __slots__ = ("size", "start")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size


class NkiTensor:
    """A view of a storage. Strides and offset count elements of `dtype`."""

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")

    def __init__(
        self,
        storage: Storage,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        offset: int = 0,
        dtype: DType | None = None,
    ) -> None:
        self.storage = storage
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.dtype = storage.dtype if dtype is None else dtype

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

    def __repr__(self) -> str:
        dims = ",".join(map(str, self.shape))
        return f"{self.name}: {self.dtype}[{dims}] in {self.buffer.value}"

    def __bool__(self) -> bool:
        raise refuse(
            "tensor-value",
            f"the value of tensor {self.name} is not known while the kernel is compiled",
            "Decide on shapes and parameters, or select on the device (e.g. nisa.affine_select)",
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        raise refuse(
            "tensor-assignment",
            "Updating a tile with lvalue assignment is not allowed",
            "Write with an instruction: nisa.tensor_copy(dst=…, src=…)",
        )

    def is_contiguous(self) -> bool:
        """Whether elements follow each other; on chip, within each partition."""
        first = 1 if self.buffer.on_chip else 0
        dims = [
            (n, s) for n, s in zip(self.shape[first:], self.strides[first:], strict=True) if n > 1
        ]
        expected = 1
        for count, stride in reversed(dims):
            if stride != expected:
                return False
            expected *= count
        return True

    def get_pattern(self) -> list[list[int]]:
        """The access pattern as [[stride, count], …]."""
        return [[s, n] for s, n in zip(self.strides, self.shape, strict=True)]

    def __getitem__(self, key: Any) -> NkiTensor:
        return _index(self, key if isinstance(key, tuple) else (key,))

    def reshape(self, shape: tuple[int, ...]) -> NkiTensor:
        """The same elements under another shape; on chip the partition dimension stays."""
        shape = tuple(shape)
        if math.prod(shape) != self.size:
            raise refuse(
                "reshape",
                f"reshape of {self.name} changes the number of elements",
                "Give a shape with as many elements",
                limit=f"{self.size} elements",
                value=f"{shape}",
            )
        if self.buffer.on_chip and (not shape or shape[0] != self.shape[0]):
            raise refuse(
                "reshape",
                "Partition dim size must be preserved",
                "Reshape only the free dimensions; move partitions with a DMA or a transpose",
                limit=str(self.shape[0]),
                value=str(shape[0]) if shape else "()",
            )
        if not self.is_contiguous():
            raise refuse(
                "reshape",
                f"reshape of {self.name}, whose elements do not follow each other",
                "Use .ap() or copy it first",
                limit="contiguous",
                value=f"strides {self.strides}",
            )
        strides = row_major(shape)
        if self.buffer.on_chip:
            strides = (self.strides[0], *strides[1:])
        return NkiTensor(self.storage, shape, strides, self.offset, self.dtype)

    def ap(
        self,
        pattern: Any,
        offset: int | None = None,
        scalar_offset: Any = None,
        vector_offset: Any = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> NkiTensor:
        """An access pattern [[step, count], …] over the whole storage, from `offset`.

        Steps and offset count elements of `dtype` (default: the tensor's own). A step of 0
        repeats. On chip the first entry is the partitions: its step must be the storage's
        free size.
        """
        if scalar_offset is not None or vector_offset is not None:
            raise refuse(
                "unsupported",
                "dynamic offsets in .ap() are not simulated yet",
                "Use a compile-time offset",
                operand="scalar_offset" if scalar_offset is not None else "vector_offset",
            )
        element = self.dtype if dtype is None else as_dtype(dtype)
        start = self.offset if offset is None else offset
        steps = tuple(int(step) for step, _ in pattern)
        counts = tuple(int(count) for _, count in pattern)
        _check_pattern(self, element, start, steps, counts)
        return NkiTensor(self.storage, counts, steps, start, element)

    def view(self, dtype: Any) -> NkiTensor:
        """The same bytes as another dtype; the last dimension is rescaled."""
        new = as_dtype(dtype)
        old_bytes = self.shape[-1] * self.dtype.itemsize
        if self.strides[-1] != 1 or old_bytes % new.itemsize:
            raise refuse(
                "view",
                f"{self.name} cannot be viewed as {new}",
                "The last dimension must be contiguous and a whole number of the new elements",
                limit=f"multiple of {new.itemsize} bytes",
                value=f"{old_bytes} bytes, stride {self.strides[-1]}",
            )
        ratio = self.dtype.itemsize / new.itemsize
        strides = tuple(int(s * ratio) for s in self.strides[:-1])
        shape = (*self.shape[:-1], old_bytes // new.itemsize)
        return NkiTensor(self.storage, shape, (*strides, 1), int(self.offset * ratio), new)


def _check_pattern(
    tensor: NkiTensor,
    element: DType,
    start: int,
    steps: tuple[int, ...],
    counts: tuple[int, ...],
) -> None:
    if not counts or any(count <= 0 for count in counts):
        raise refuse(
            "access-pattern",
            f"ap() of {tensor.name} needs positive counts",
            "Give [[step, count], …] with counts of at least 1",
            limit=">= 1",
            value=str(list(counts)),
        )
    storage = tensor.storage
    if tensor.buffer.on_chip:
        free = storage.bytes_per_partition // element.itemsize
        if steps[0] != free and counts[0] > 1:
            raise refuse(
                "access-pattern",
                "ap() pattern has invalid partition stride",
                "Partition step must equal the storage's free size",
                limit=str(free),
                value=str(steps[0]),
            )
    last = start + sum(step * (count - 1) for step, count in zip(steps, counts, strict=True))
    elements = storage.bytes // element.itemsize
    if start < 0 or last < 0 or last >= elements or max(start, last) >= elements:
        raise refuse(
            "out-of-bounds",
            f"Out-of-bound access pattern for tensor `{tensor.name}`",
            "Make offset and pattern fit the storage",
            limit=f"elements 0 to {elements - 1}",
            value=f"elements {start} to {last}",
        )


def _expand(tensor: NkiTensor, key: tuple[Any, ...]) -> list[Any]:
    """Replace `...` and missing trailing dimensions by full slices."""
    dots = sum(item is Ellipsis for item in key)
    if dots > 1 or len(key) - dots > tensor.ndim:
        raise refuse(
            "index",
            f"too many indices for tensor `{tensor.name}`",
            "Index at most each dimension once",
            limit=str(tensor.ndim),
            value=str(len(key)),
        )
    fill = [slice(None)] * (tensor.ndim - len(key) + dots)
    if not dots:
        return [*key, *fill]
    at = next(i for i, item in enumerate(key) if item is Ellipsis)
    return [*key[:at], *fill, *key[at + 1 :]]


def _out_of_bounds(tensor: NkiTensor, axis: int, value: str) -> Exception:
    return refuse(
        "out-of-bounds",
        f"Out-of-bound access for tensor `{tensor.name}` on dimension {axis}: "
        f"index range {value} exceed dimension size of {tensor.shape[axis]}",
        "Slices are not clamped as in NumPy: bound the end with min(), or pad the tensor",
        limit=str(tensor.shape[axis]),
        value=value,
    )


def _bounds(tensor: NkiTensor, axis: int, item: Any) -> tuple[int, int, int]:
    """Start, count and step of one index."""
    size = tensor.shape[axis]
    if isinstance(item, DynamicSlice):
        item = slice(item.start, item.start + item.size)
    if isinstance(item, bool) or not isinstance(item, int | slice):
        raise refuse(
            "index",
            f"index {item!r} of tensor `{tensor.name}` is a {type(item).__name__}",
            "Index with integers, slices, `...` or nl.ds(start, size)",
            limit="int, slice, ..., nl.ds",
            value=type(item).__name__,
        )
    if isinstance(item, int):
        start = item + size if item < 0 else item
        if not 0 <= start < size:
            raise _out_of_bounds(tensor, axis, f"[{item}, {item}]")
        return start, 1, 1
    start = 0 if item.start is None else item.start
    stop = size if item.stop is None else item.stop
    step = 1 if item.step is None else item.step
    start = start + size if start < 0 else start
    stop = stop + size if stop < 0 else stop
    if step < 1 or start < 0 or stop > size or stop <= start:
        raise _out_of_bounds(tensor, axis, f"[{start}, {stop - 1}] step {step}")
    return start, (stop - start + step - 1) // step, step


def _index(tensor: NkiTensor, key: tuple[Any, ...]) -> NkiTensor:
    offset = tensor.offset
    dims: list[tuple[int, int, bool]] = []
    for axis, item in enumerate(_expand(tensor, key)):
        if isinstance(item, slice) and item == slice(None):
            dims.append((tensor.shape[axis], tensor.strides[axis], True))
            continue
        start, count, step = _bounds(tensor, axis, item)
        stride = tensor.strides[axis]
        offset += start * stride
        keep = not isinstance(item, int) or (axis == 0 and tensor.buffer.on_chip)
        dims.append((count, stride * step, keep))
    kept = [(n, s) for n, s, keep in dims if keep]
    least = 2 if tensor.buffer.on_chip else 1
    if len(kept) < least:  # rank falls no lower: the last dimension is kept as 1
        kept.append((1, 1))
    return NkiTensor(
        tensor.storage,
        tuple(n for n, _ in kept),
        tuple(s for _, s in kept),
        offset,
        tensor.dtype,
    )


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
