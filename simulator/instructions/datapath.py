"""An engine's fp32 datapath in NumPy: read as fp32, compute in few passes, write with one cast.

A pass over a large tile costs more than anything else in a replay. So results are computed in the
destination where it is fp32, else in scratch memory that all instructions of a plan share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simulator.dtypes import float32, tfloat32
from simulator.instructions.table import Array, Arrays, Run, Slots
from simulator.numerics import as_float32, copy_float32, store
from simulator.registers import VirtualRegister
from simulator.tensor import NkiTensor

Shape = tuple[int, ...]
Reader = Callable[[Arrays], Any]
Body = Callable[[Arrays, Array], Any]
"""Computes an instruction's fp32 result into the array given."""


def scratch(slots: Slots, shape: Shape, number: int) -> Array:
    """fp32 memory that holds a value within one instruction; another `number`, other memory."""
    size = math.prod(shape)
    room = 1 << max(0, size - 1).bit_length()
    memory: Array = slots.state(
        f"fp32 scratch {number} of {room}", lambda: np.empty(room, np.float32)
    )
    return memory[:size].reshape(shape)


def held_as_float32(tensor: NkiTensor) -> bool:
    """Whether a view's memory is fp32 whatever the mode of precision."""
    return tensor.dtype is float32 or tensor.dtype is tfloat32


def _broadcast_shape(tensor: NkiTensor, shape: Shape) -> Shape:
    """A tile is given `shape`; a (P, 1) column is given (P, 1, …, 1)."""
    if tensor.shape == shape or tensor.size == math.prod(shape):
        return shape
    return (shape[0],) + (1,) * (len(shape) - 1)


def reader(value: Any, shape: Shape, slots: Slots, number: int | None = None) -> Reader:
    """A function (views) -> fp32 array that broadcasts to `shape`; numbers stay constants.

    Args:
        value: a tile, a (P, 1) column, a register or a number.
        shape: of the instruction's tiles.
        slots: of the plan.
        number: the scratch memory for a tile of another dtype; None for new memory each time.
    """
    if isinstance(value, VirtualRegister):
        register = slots.register(value)
        return lambda views: views[register].astype(np.float32)
    if not isinstance(value, NkiTensor):
        constant = np.float32(value)
        return lambda views: constant
    slot = slots(value)
    wanted = _broadcast_shape(value, shape)
    if value.dtype is float32 or value.dtype is tfloat32:
        if value.shape == wanted:
            return lambda views: views[slot]
        return lambda views: views[slot].reshape(wanted)
    if number is None or value.size == shape[0]:
        return lambda views: as_float32(views[slot]).reshape(wanted)
    memory = scratch(slots, value.shape, number)
    shaped = memory.reshape(wanted)

    def widened(views: Arrays) -> Array:
        copy_float32(memory, views[slot])
        return shaped

    return widened


def plain_slot(value: Any, shape: Shape, slots: Slots) -> int | None:
    """The slot of an fp32 tile or column that needs no conversion and no new shape, else None."""
    if not isinstance(value, NkiTensor) or not held_as_float32(value):
        return None
    return slots(value) if value.shape == _broadcast_shape(value, shape) else None


def shares(dst: NkiTensor, others: Sequence[Any]) -> bool:
    """Whether one of the operands lives in the storage that is written."""
    return any(isinstance(o, NkiTensor) and o.storage is dst.storage for o in others)


def write(dst: NkiTensor, slots: Slots, body: Body, later: Sequence[Any] = ()) -> Run:
    """Run `body` on the destination itself where it can, else on scratch memory 0, and cast.

    Args:
        dst: what is written.
        slots: of the plan.
        body: may use the array it is given in several passes.
        later: operands that it still reads after it began to write.
    """
    to = slots(dst)
    if dst.dtype is float32 and not shares(dst, later):
        return lambda views: body(views, views[to])
    memory, cast = scratch(slots, dst.shape, 0), store(dst.dtype)

    def run(views: Arrays) -> None:
        body(views, memory)
        cast(views[to], memory)

    return run


def one_pass(
    dst: NkiTensor, slots: Slots, function: Callable[..., Any], x: Any, y: Any, number: int = 1
) -> Run:
    """dst = function(x, y), which writes its result in one pass; y may be a column or a number.

    Small tiles are common and there the calls made are what costs: plain operands make one.
    """
    shape = dst.shape
    if dst.dtype is float32:
        first, second = plain_slot(x, shape, slots), plain_slot(y, shape, slots)
        to = slots(dst)
        if first is not None and second is not None:
            frm, other = first, second
            return lambda views: function(views[frm], views[other], out=views[to])
        if first is not None and isinstance(y, int | float):
            frm, constant = first, np.float32(y)
            return lambda views: function(views[frm], constant, out=views[to])
    a, b = reader(x, shape, slots, 0), reader(y, shape, slots, number)
    return write(dst, slots, lambda views, out: function(a(views), b(views), out=out))


# --- sums -----------------------------------------------------------------------------------

_BLOCK = 256
"""Elements that are added up by one dot product: as exact as NumPy's pairwise sum, which sums
of a whole row by dot products are not (tests/simulator/test_values.py)."""
_MOST_BLOCKS = 64
_FEW_ROWS = 32
"""Below that, np.add.reduce is faster."""


def row_sums(x: Array) -> Array:
    """The sums of the rows of an fp32 array of any rank, shape (rows,).

    Products with a vector of ones take a third of the time of np.add.reduce.
    """
    rows = x.shape[0]
    if x.ndim != 2:
        if not x.flags.c_contiguous:
            summed: Array = np.add.reduce(x, axis=tuple(range(1, x.ndim)))
            return summed
        x = x.reshape(rows, -1)
    columns = x.shape[1]
    if columns == 1:
        return x[:, 0]
    blocks = -(-columns // _BLOCK)
    if x.strides[1] != x.itemsize or rows < _FEW_ROWS or blocks > _MOST_BLOCKS:
        summed = np.add.reduce(x, axis=1)
        return summed
    if blocks == 1:
        summed = np.matmul(x, _ONES[:columns])
        return summed
    parts = np.empty((blocks, rows), np.float32)
    for i in range(blocks):
        block = x[:, i * _BLOCK : (i + 1) * _BLOCK]
        np.matmul(block, _ONES[: block.shape[1]], out=parts[i])
    summed = np.add.reduce(parts, axis=0)
    return summed


_ONES = np.ones(_BLOCK, np.float32)
