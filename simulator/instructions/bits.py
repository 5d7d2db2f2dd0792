"""Integers as they are: bitvec operators, and GpSimd's exact 32-bit arithmetic.

Source: nki_facts.md §2.6, §2.10, §5. Bits are never cast: an element is read as the unsigned
integer of its width. Where widths differ, values are extended to 64 bits by their sign and the
result is cut to dst's width. Shifts are logical; shifting by the width or more gives 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import dtypes
from simulator.instructions.datapath import Shape
from simulator.instructions.table import Array, Arrays, Run, Slots
from simulator.operators import Operator
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
WORDS = frozenset({dtypes.int32, dtypes.uint32})
Function = Callable[..., Array]


def is_integer(tensor: NkiTensor) -> bool:
    """Whether bitvec operators take it."""
    return not tensor.dtype.is_float and not tensor.dtype.packed


def _reader(value: Any, dst: NkiTensor, slots: Slots, wide: bool) -> Callable[[Arrays], Any]:
    """A function (views) -> unsigned integers that broadcast to dst's shape."""
    unsigned = np.uint64 if wide else _UNSIGNED[dst.dtype.itemsize]
    if not isinstance(value, NkiTensor):
        mask = 2 ** (8 * np.dtype(unsigned).itemsize) - 1
        number = unsigned((0 if value is None else value) & mask)
        return lambda views: number
    slot = slots(value)
    shape: Shape = dst.shape
    if value.size != dst.size:
        shape = (shape[0],) + (1,) * (len(shape) - 1)
    if wide:
        return lambda views: views[slot].astype(np.int64).view(np.uint64).reshape(shape)
    return lambda views: views[slot].view(unsigned).reshape(shape)


def _function(operator: Operator, reverse: bool) -> Function:
    if operator.unary is not None:
        unary = operator.unary
        return lambda x, y: unary(x)
    binary = operator.binary
    assert binary is not None
    return (lambda x, y: binary(y, x)) if reverse else binary


def _put(dst: NkiTensor, slots: Slots) -> Callable[[Arrays, Array], None]:
    to, unsigned = slots(dst), _UNSIGNED[dst.dtype.itemsize]
    return lambda views, bits: np.copyto(views[to].view(unsigned), bits, casting="unsafe")


def chain(
    instruction: Instruction, slots: Slots, steps: list[tuple[Operator, Any, bool]], data: str
) -> Run:
    """dst = data, put through each (operator, operand, reverse) in turn, on bits."""
    dst: NkiTensor = instruction["dst"]
    tiles = [instruction[data], *(operand for _, operand, _ in steps)]
    sizes = {tile.dtype.itemsize for tile in tiles if isinstance(tile, NkiTensor)}
    wide = sizes != {dst.dtype.itemsize}
    start = _reader(instruction[data], dst, slots, wide)
    stages = [
        (_function(operator, reverse), _reader(operand, dst, slots, wide))
        for operator, operand, reverse in steps
    ]
    put = _put(dst, slots)

    def run(views: Arrays) -> None:
        bits = start(views)
        for function, operand in stages:
            bits = function(bits, operand(views))
        put(views, bits)

    return run


def reduce(instruction: Instruction, slots: Slots, kept: Shape) -> Run:
    """dst = the reduction of data's trailing dimensions, on bits."""
    dst, data, ufunc = instruction["dst"], instruction["data"], instruction["op"].reduction
    frm, put, shape = slots(data), _put(dst, slots), dst.shape
    wide = dst.dtype.itemsize != data.dtype.itemsize
    unsigned = _UNSIGNED[dst.dtype.itemsize]

    def run(views: Arrays) -> None:
        x = views[frm]
        bits = x.astype(np.int64).view(np.uint64) if wide else x.view(unsigned)
        put(views, ufunc.reduce(bits.reshape((*kept, -1)), axis=-1).reshape(shape))

    return run


def exact_words(instruction: Instruction, slots: Slots) -> Run:
    """dst = data1 op data2 in 32-bit integers, modulo 2**32, as GpSimd computes them."""
    dst, operator = instruction["dst"], instruction["op"]
    x, y = instruction["data1"], instruction["data2"]
    function = operator.predicate or operator.binary
    to, shape = slots(dst), dst.shape
    first, second = slots(x), slots(y)
    # A sum, difference or product has the same 32 bits signed and unsigned.
    wraps = operator.name in ("add", "subtract", "multiply")
    held = np.uint32 if wraps else x.dtype.numpy if x.dtype is y.dtype else None

    def run(views: Arrays) -> None:
        a, b = views[first].reshape(shape), views[second].reshape(shape)
        if held is None:
            a, b = a.astype(np.int64), b.astype(np.int64)
        else:
            a, b = a.view(held), b.view(held)
        np.copyto(views[to].view(np.uint32), function(a, b), casting="unsafe")

    return run
