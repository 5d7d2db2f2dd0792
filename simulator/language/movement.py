"""Moving and reshaping tiles: load, store, transposes, matmul, broadcasts, gathers."""

from __future__ import annotations

from typing import Any

from simulator.dtypes import float32
from simulator.errors import refuse
from simulator.language.calls import (
    converted,
    dtype_of,
    emit,
    new_psum_tile,
    new_tile,
    spread_over,
    tile,
    wrong_shape,
)
from simulator.language.memory import allocate
from simulator.tensor import MemoryRegion, NkiTensor

_QUADRANT = 32
"""Partitions that nc_stream_shuffle works on at a time."""


def _in_hbm(function: str, name: str, value: Any) -> NkiTensor:
    tensor = tile(function, name, value)
    if not tensor.buffer.on_chip:
        return tensor
    raise refuse(
        "buffer",
        f"nl.{function} takes a tensor in HBM as {name}",
        "Use nl.copy or nisa.tensor_copy on chip",
        instruction=f"nl.{function}",
        operand=name,
        limit="private_hbm, shared_hbm",
        value=tensor.buffer.value,
    )


def load(src: Any, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with what a tensor in HBM holds, by DMA."""
    source = _in_hbm("load", "src", src)
    out = allocate(source.shape, dtype_of(dtype, source), MemoryRegion.sbuf)
    emit("dma_copy", dst=out, src=source)
    return out


def store(dst: Any, value: Any) -> None:
    """Write an SBUF tile to a tensor in HBM, by DMA."""
    target = _in_hbm("store", "dst", dst)
    emit("dma_copy", dst=target, src=tile("store", "value", value))


def load_transpose2d(src: Any, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with the transpose of a matrix in HBM, by DMA."""
    source = _matrix("load_transpose2d", "src", _in_hbm("load_transpose2d", "src", src))
    out = allocate((source.shape[1], source.shape[0]), source.dtype, MemoryRegion.sbuf)
    emit("dma_transpose", dst=out, src=source)
    return converted(out, dtype_of(dtype, source))


def _matrix(function: str, name: str, tensor: NkiTensor) -> NkiTensor:
    if tensor.ndim == 2:
        return tensor
    raise refuse(
        "rank",
        f"nl.{function} takes a matrix as {name}",
        "Slice or reshape it to two dimensions",
        instruction=f"nl.{function}",
        operand=name,
        limit="2",
        value=str(tensor.ndim),
    )


def transpose(x: Any, dtype: Any = None) -> NkiTensor:
    """The transpose of a tile of at most (128, 128): in PSUM, or in SBUF if dtype differs."""
    source = _matrix("transpose", "x", tile("transpose", "x", x))
    out = new_psum_tile((source.shape[1], source.shape[0]), source.dtype)
    emit("nc_transpose", dst=out, data=source)
    return converted(out, dtype_of(dtype, source))


def matmul(x: Any, y: Any, transpose_x: bool = False) -> NkiTensor:
    """x.T @ y as an fp32 tile in PSUM.

    Args:
        x: (K, M) in SBUF, K and M at most 128.
        y: (K, N) in SBUF, N at most 512.
        transpose_x: must be True: the Tensor engine contracts over partitions.
    """
    if transpose_x is not True:
        raise refuse(
            "matmul-transpose",
            "nl.matmul without transpose_x=True does not compile for hardware",
            "Load x transposed (nl.load_transpose2d) and give transpose_x=True",
            instruction="nl.matmul",
            operand="transpose_x",
            limit="True",
            value=repr(transpose_x),
        )
    stationary, moving = tile("matmul", "x", x), tile("matmul", "y", y)
    out = new_psum_tile((stationary.free_size, *moving.shape[1:]), float32)
    emit("nc_matmul", dst=out, stationary=stationary, moving=moving, accumulate=False)
    return out


def expand_dims(x: Any, axis: int) -> NkiTensor:
    """A view of the tile with a dimension of 1 at `axis`; not before the partitions."""
    source = tile("expand_dims", "x", x)
    rank = source.ndim + 1
    if isinstance(axis, bool) or not isinstance(axis, int) or not -rank < axis < rank or axis == 0:
        raise refuse(
            "view",
            f"nl.expand_dims cannot put a dimension at {axis!r}",
            "Put it after the partitions",
            instruction="nl.expand_dims",
            operand="axis",
            limit=f"1 to {source.ndim}",
            value=repr(axis),
        )
    at = axis % rank
    shape = (*source.shape[:at], 1, *source.shape[at:])
    strides = (*source.strides[:at], 1, *source.strides[at:])
    return NkiTensor(source.storage, shape, strides, source.offset, source.dtype, source.dynamic)


def broadcast_to(x: Any, shape: Any, dtype: Any = None) -> NkiTensor:
    """A tile of `shape` in which dimensions of 1 of x are repeated.

    Free dimensions are repeated by a copy. A single partition is repeated with
    nc_stream_shuffle, 32 partitions at a time. A tile that has the shape and dtype already is
    returned itself.

    Args:
        x: a tile in SBUF or PSUM.
        shape: of the same rank.
        dtype: of the result, default x.dtype.
    """
    source, wanted = tile("broadcast_to", "x", x), tuple(shape)
    pairs = list(zip(source.shape, wanted, strict=False))
    if len(wanted) != source.ndim or any(a not in (1, b) for a, b in pairs):
        raise wrong_shape("broadcast_to", "shape", wanted, source)
    target = dtype_of(dtype, source)
    free = (source.shape[0], *wanted[1:])
    if source.shape != free:
        out = new_tile(free, target)
        emit("tensor_copy", dst=out, src=spread_over(source, free))
        source = out
    source = converted(source, target)
    return source if source.shape == wanted else _over_partitions(source, wanted)


def _over_partitions(row: NkiTensor, shape: tuple[int, ...]) -> NkiTensor:
    """Every partition of a new tile holds what the one of `row` does."""
    out = new_tile(shape, row.dtype)
    for start in range(0, shape[0], _QUADRANT):
        emit(
            "nc_stream_shuffle", dst=out[start : min(start + _QUADRANT, shape[0])], src=row,
            shuffle_mask=[0] * _QUADRANT,
        )  # fmt: skip
    return out


def gather_flattened(data: Any, indices: Any, axis: int = 0, dtype: Any = None) -> NkiTensor:
    """out[p, j] = data[p].flat[indices[p, j]].

    Args:
        data: a tile in SBUF; its free dimensions count as one.
        indices: uint32, in SBUF.
        axis: 0, the only one there is.
        dtype: of the result, default data.dtype.
    """
    if axis != 0:
        raise refuse(
            "gather-axis",
            "nl.gather_flattened gathers along the flattened free dimensions",
            "Leave axis out",
            instruction="nl.gather_flattened",
            operand="axis",
            limit="0",
            value=repr(axis),
        )
    source, numbers = (
        tile("gather_flattened", "data", data),
        tile("gather_flattened", "indices", indices),
    )
    out = new_tile(numbers.shape, source.dtype)
    emit("nc_n_gather", dst=out, data=source, indices=numbers)
    return converted(out, dtype_of(dtype, source))
