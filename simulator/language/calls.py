"""What the functions of nki.language share: new tiles, dtypes, shapes, emitting instructions."""

from __future__ import annotations

from typing import Any

from simulator.context import current_program
from simulator.dtypes import DType, as_dtype
from simulator.errors import NkiValidationError, refuse
from simulator.instructions import INSTRUCTIONS
from simulator.tensor import MemoryRegion, NkiTensor


def emit(instruction: str, **operands: Any) -> None:
    """Append an instruction; parameters left out take their defaults."""
    spec = INSTRUCTIONS[instruction]
    values = zip(spec.parameters, spec.defaults, strict=True)
    current_program().emit(spec, tuple(operands.get(name, default) for name, default in values))


def tile(function: str, name: str, value: Any) -> NkiTensor:
    """`value`, which must be a tile.

    Raises:
        NkiValidationError: it is none.
    """
    if isinstance(value, NkiTensor):
        return value
    raise refuse(
        "operand",
        f"nl.{function} takes a tile as {name}, got {type(value).__name__}",
        "Load or allocate it first",
        instruction=f"nl.{function}",
        operand=name,
        limit="NkiTensor",
        value=type(value).__name__,
    )


def new_tile(shape: tuple[int, ...], dtype: DType) -> NkiTensor:
    """An uninitialised tile in SBUF."""
    return current_program().allocate(tuple(shape), dtype, MemoryRegion.sbuf)


def new_psum_tile(shape: tuple[int, ...], dtype: DType) -> NkiTensor:
    """An uninitialised tile in PSUM."""
    return current_program().allocate(tuple(shape), dtype, MemoryRegion.psum)


def dtype_of(dtype: Any, default: NkiTensor) -> DType:
    """The dtype asked for, else that of a tile."""
    return default.dtype if dtype is None else as_dtype(dtype)


def converted(source: NkiTensor, dtype: DType) -> NkiTensor:
    """The tile itself if it has the dtype, else a copy that has it."""
    if source.dtype is dtype:
        return source
    out = new_tile(source.shape, dtype)
    emit("tensor_copy", dst=out, src=source)
    return out


def wrong_shape(function: str, name: str, limit: Any, found: NkiTensor) -> NkiValidationError:
    """The error for a tile of another shape: nothing is broadcast."""
    return refuse(
        "no-broadcast",
        f"nl.{function} takes tiles of identical shapes",
        "Use nisa.tensor_scalar for a (P, 1) column, or nl.broadcast_to in the free dimensions",
        instruction=f"nl.{function}",
        operand=name,
        limit=str(limit),
        value=str(found.shape),
    )


def same_shape(function: str, first: NkiTensor, **others: Any) -> None:
    """Refuse tiles that have another shape than the first; numbers have none.

    Raises:
        NkiValidationError: a tile has.
    """
    for name, other in others.items():
        if isinstance(other, NkiTensor) and other.shape != first.shape:
            raise wrong_shape(function, name, first.shape, other)


def broadcast(function: str, x: NkiTensor, y: NkiTensor) -> tuple[NkiTensor, NkiTensor]:
    """Two tiles under one shape. The chip has no broadcasting; AWS's simulator repeats as NumPy.

    Raises:
        NkiValidationError: NumPy would not broadcast them either.
    """
    if x.shape == y.shape:
        return x, y
    fault = wrong_shape(function, "y", x.shape, y)
    rank = max(x.ndim, y.ndim)
    shapes = [(1,) * (rank - t.ndim) + t.shape for t in (x, y)]
    if any(a != b and 1 not in (a, b) for a, b in zip(*shapes, strict=True)):
        raise fault
    whole = tuple(max(a, b) for a, b in zip(*shapes, strict=True))
    current_program().lax += fault.violations

    def repeated(tensor: NkiTensor, shape: tuple[int, ...]) -> NkiTensor:
        own = (0,) * (rank - tensor.ndim) + tensor.strides
        strides = tuple(
            0 if size == 1 and count > 1 else stride
            for size, stride, count in zip(shape, own, whole, strict=True)
        )
        return NkiTensor(tensor.storage, whole, strides, tensor.offset, tensor.dtype)

    return repeated(x, shapes[0]), repeated(y, shapes[1])


def spread_over(column: NkiTensor, shape: tuple[int, ...]) -> NkiTensor:
    """A tile of the leading dimensions of `shape`, repeated over the trailing ones."""
    kept = column.shape[: len(shape)]
    matching = [a if a == b else None for a, b in zip(kept, shape, strict=False)]
    strides = tuple(
        column.strides[i] if i < len(matching) and matching[i] is not None else 0
        for i in range(len(shape))
    )
    return NkiTensor(column.storage, shape, strides, column.offset, column.dtype)
