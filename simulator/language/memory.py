"""Allocation: nl.ndarray and its relatives, constants, random tiles.

Source: nki_facts.md §2.2.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from simulator import operators
from simulator.context import current_program, feature
from simulator.dtypes import (
    DType,
    as_dtype,
    bfloat16,
    float8_e4m3fn,
    float8_e5m2,
    float8_e8m0fnu,
    float16,
    float32,
    from_numpy,
    int8,
    int16,
    int32,
    uint8,
    uint16,
    uint32,
)
from simulator.errors import refuse
from simulator.language.calls import emit, tile
from simulator.targets import PARTITIONS
from simulator.tensor import MemoryRegion, NkiTensor

_SBUF = MemoryRegion.sbuf
CONSTANT_DTYPES = (
    float32, float16, bfloat16, int32, int16, int8, uint32, uint16, uint8, float8_e4m3fn,
    float8_e5m2, float8_e8m0fnu,
)  # fmt: skip
"""What shared_constant takes (nki_facts.md §2.2)."""
_FILL_BYTES = 8192
"""Bytes per partition of the tile that fills a tensor in HBM."""


def is_sbuf(buffer: Any) -> bool:
    """Whether a memory region is SBUF."""
    return buffer is MemoryRegion.sbuf


def is_psum(buffer: Any) -> bool:
    """Whether a memory region is PSUM."""
    return buffer is MemoryRegion.psum


def is_on_chip(buffer: Any) -> bool:
    """Whether a memory region is SBUF or PSUM."""
    return is_sbuf(buffer) or is_psum(buffer)


def is_hbm(buffer: Any) -> bool:
    """Whether a memory region is in HBM, private or shared."""
    return isinstance(buffer, MemoryRegion) and not buffer.on_chip


class _Ndarray(type):
    """So that `nl.ndarray` is a function, and a type for annotations and isinstance."""

    def __call__(
        cls,
        shape: Any,
        dtype: Any,
        buffer: MemoryRegion = _SBUF,
        name: str = "",
        address: tuple[int, int] | None = None,
    ) -> NkiTensor:
        """Allocate a tensor."""
        return allocate(shape, dtype, buffer, name, address)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, NkiTensor)


class ndarray(metaclass=_Ndarray):
    """`nl.ndarray(shape, dtype, buffer=nl.sbuf, name="", address=None)`: an uninitialised tensor.

    Args:
        shape: a tuple of positive integers; at least two in SBUF and PSUM, where the first is
            the partitions, at most 128.
        dtype: of `nki.language`.
        buffer: nl.sbuf, nl.psum, nl.shared_hbm or nl.private_hbm.
        name: for messages; need not be unique.
        address: (first partition, byte offset in each partition) of an on-chip tensor; a
            multiple of the dtype's size, in PSUM the start of a 2 KiB bank.

    Raises:
        NkiValidationError: a shape or place that cannot be, an unknown dtype or buffer.
    """


def allocate(
    shape: Any,
    dtype: Any,
    buffer: MemoryRegion = _SBUF,
    name: str = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """`nl.ndarray`; see there."""
    if not isinstance(buffer, MemoryRegion):
        raise refuse(
            "buffer",
            f"buffer {buffer!r} is not a memory region",
            "Use nl.sbuf, nl.psum, nl.shared_hbm or nl.private_hbm",
            limit="nl.sbuf, nl.psum, nl.shared_hbm, nl.private_hbm",
            value=repr(buffer),
        )
    sizes = _checked_shape(shape, buffer)
    kind = as_dtype(dtype)
    if kind is float8_e8m0fnu:
        feature("nl.float8_e8m0fnu", since="0.5")
    if address is not None:
        address = _checked_address(sizes, kind, buffer, address)
    return current_program().allocate(sizes, kind, buffer, name, address=address)


def _checked_shape(shape: Any, buffer: MemoryRegion) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n <= 0 for n in sizes):
        raise refuse(
            "shape",
            f"shape must be a tuple of positive integers, got {sizes}",
            "Allocate at least one element per dimension",
            limit=">= 1",
            value=str(sizes),
        )
    if buffer.on_chip and len(sizes) < 2:
        raise refuse(
            "rank",
            "SBUF and PSUM tensors must have at least 2 dimensions (partition-dim and free-dim)",
            "Allocate (P, 1) for a column",
            limit="2",
            value=str(len(sizes)),
        )
    if buffer.on_chip and sizes[0] > PARTITIONS:
        raise refuse(
            "partition-limit",
            f"Size of partition dimension {sizes[0]} exceeds architecture limitation of 128",
            "Split into tiles of at most 128 rows",
            limit=str(PARTITIONS),
            value=str(sizes[0]),
        )
    return sizes


def _checked_address(
    shape: tuple[int, ...], dtype: DType, buffer: MemoryRegion, address: Any
) -> tuple[int, int]:
    """The address, if the tensor can be there."""
    if (
        not buffer.on_chip
        or not isinstance(address, tuple | list)
        or len(address) != 2
        or any(isinstance(n, bool) or not isinstance(n, int) for n in address)
    ):
        raise _bad_address(
            "an address is (partition, byte offset) in SBUF or PSUM",
            "integers, in SBUF or PSUM",
            f"{address!r} in {buffer.value}",
        )
    partition, start = address
    target = current_program().target
    psum = buffer is MemoryRegion.psum
    room = target.psum_bytes_per_partition if psum else target.sbuf_bytes_per_partition
    size = int(np.prod(shape[1:])) * dtype.itemsize
    if partition < 0 or partition + shape[0] > PARTITIONS or start < 0 or start + size > room:
        raise _bad_address(
            f"a tensor of {shape[0]} partitions and {size} bytes each does not fit there",
            f"partitions 0 to {PARTITIONS - 1}, bytes 0 to {room - 1}",
            f"partitions {partition} to {partition + shape[0] - 1}, "
            f"bytes {start} to {start + size - 1}",
        )
    unit = target.psum_bank_bytes if psum else dtype.itemsize
    if start % unit:
        where = "the start of a PSUM bank" if psum else "a multiple of the dtype's size"
        raise _bad_address(
            f"a byte offset in {buffer.value.upper()} must be {where}",
            f"a multiple of {unit}",
            str(start),
        )
    return partition, start


def _bad_address(message: str, limit: str, value: str) -> Exception:
    return refuse(
        "address", message, "Choose another address, or leave it out", limit=limit, value=value
    )


# --- filled tensors --------------------------------------------------------------------------


def full(
    shape: Any, fill_value: Any, dtype: Any, buffer: MemoryRegion = _SBUF, name: str = ""
) -> NkiTensor:
    """A tensor filled with a number: by memset on chip, by DMA of a filled tile in HBM."""
    tensor = allocate(shape, dtype, buffer, name)
    if tensor.buffer.on_chip:
        emit("memset", dst=tensor, value=fill_value)
    else:
        _fill_hbm(tensor, fill_value)
    return tensor


def _fill_hbm(tensor: NkiTensor, value: Any) -> None:
    columns = tensor.shape[-1]
    matrix = tensor.reshape((tensor.size // columns, columns))
    rows = min(matrix.shape[0], PARTITIONS)
    width = min(columns, _FILL_BYTES // tensor.dtype.itemsize)
    filled = allocate((rows, width), tensor.dtype)
    emit("memset", dst=filled, value=value)
    for top in range(0, matrix.shape[0], rows):
        bottom = min(top + rows, matrix.shape[0])
        for left in range(0, columns, width):
            right = min(left + width, columns)
            part = filled[: bottom - top, : right - left]
            emit("dma_copy", dst=matrix[top:bottom, left:right], src=part)


def _number(value: int, dtype: Any) -> int | float:
    """memset takes a number of the dtype's class."""
    return float(value) if as_dtype(dtype).is_float else value


def zeros(shape: Any, dtype: Any, buffer: MemoryRegion = _SBUF, name: str = "") -> NkiTensor:
    """A tensor of zeros."""
    return full(shape, _number(0, dtype), dtype, buffer, name)


def ones(shape: Any, dtype: Any, buffer: MemoryRegion = _SBUF, name: str = "") -> NkiTensor:
    """A tensor of ones."""
    return full(shape, _number(1, dtype), dtype, buffer, name)


def zeros_like(x: Any, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """Zeros with the shape, and unless given the dtype and memory, of a tensor."""
    like = tile("zeros_like", "x", x)
    return zeros(like.shape, dtype or like.dtype, buffer or like.buffer, name)


def empty_like(x: Any, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """An uninitialised tensor with the shape, dtype and memory of another."""
    like = tile("empty_like", "x", x)
    return allocate(like.shape, dtype or like.dtype, buffer or like.buffer, name)


# --- constants -------------------------------------------------------------------------------


def shared_constant(constant: Any) -> NkiTensor:
    """A tensor in shared HBM that holds compile-time data.

    Args:
        constant: a NumPy array, or the path of a `.npy` file. float32, float16, bfloat16,
            8- to 32-bit integers, float8_e4m3fn, float8_e5m2 or float8_e8m0fnu.

    Raises:
        NkiValidationError: another type or dtype, or no elements.
    """
    if isinstance(constant, str | os.PathLike):
        constant = np.load(constant)
    if not isinstance(constant, np.ndarray) or not constant.size or not constant.ndim:
        raise refuse(
            "constant",
            f"a constant is a NumPy array, got {type(constant).__name__}",
            "Give an array of at least one dimension and element, or the path of a .npy file",
            instruction="nl.shared_constant",
            operand="constant",
            limit="array or path",
            value=repr(getattr(constant, "shape", type(constant).__name__)),
        )
    dtype = from_numpy(constant.dtype)
    if dtype not in CONSTANT_DTYPES:
        raise refuse(
            "dtype",
            f"a constant cannot be {constant.dtype}",
            "Convert it with astype",
            instruction="nl.shared_constant",
            operand="constant",
            limit=", ".join(CONSTANT_DTYPES),
            value=str(constant.dtype),
        )
    data = np.array(constant, order="C")
    return current_program().allocate(
        data.shape, dtype, MemoryRegion.shared_hbm, role="constant", data=data
    )


def shared_identity_matrix(n: int, dtype: Any = uint8, dst: Any = None) -> NkiTensor:
    """The n by n identity in SBUF, loaded from a constant that a core's uses share.

    Args:
        n: at most 128.
        dtype: of the matrix.
        dst: an (n, n) tile to load it into; its dtype is the matrix's.
    """
    kind = as_dtype(dtype) if dst is None else tile("shared_identity_matrix", "dst", dst).dtype
    out = allocate((n, n), kind) if dst is None else dst
    emit("dma_copy", dst=out, src=_identity(n, kind))
    return out


def _identity(n: int, dtype: DType) -> NkiTensor:
    program = current_program()
    name = f"identity_{n}_{dtype}"
    for storage in program.storages:
        if storage.name == name and storage.role == "constant" and storage.core == program.core:
            return NkiTensor(storage, storage.shape, (n, 1))
    data = np.eye(n, dtype=np.float32).astype(dtype.numpy)
    return program.allocate(
        (n, n), dtype, MemoryRegion.private_hbm, name, role="constant", data=data
    )


# --- random numbers ---------------------------------------------------------------------------

_RANDOM_BITS = {float32: 24, float16: 11, bfloat16: 8}
"""As many as the mantissa holds, so that rounding never gives 1."""


def rand(shape: Any, dtype: Any, buffer: MemoryRegion = _SBUF, name: str = "") -> NkiTensor:
    """A tensor of uniform random numbers in [0, 1)."""
    out = allocate(shape, dtype, buffer, name)
    on_chip = out if out.buffer.on_chip else allocate(out.shape, out.dtype)
    count = _RANDOM_BITS.get(out.dtype, 2)
    words = allocate(out.shape, uint32)
    emit("rng", dst=words)
    emit("tensor_scalar", dst=words, data=words, op0=operators.right_shift, operand0=32 - count)
    emit(
        "tensor_scalar", dst=on_chip, data=words, op0=operators.multiply,
        operand0=2.0**-count,
    )  # fmt: skip
    if on_chip is not out:
        emit("dma_copy", dst=out, src=on_chip)
    return out


def random_seed(seed: Any) -> None:
    """Seed nl.rand with a (1, 1) tile of 32 bits."""
    emit("set_rng_seed", src_seeds=seed)
