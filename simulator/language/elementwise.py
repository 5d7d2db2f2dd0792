"""Element-wise functions: nl.add, nl.exp, nl.where, …

Which engine computes them is documented for few; the others are activations where the Scalar
engine has the function, else Vector instructions (nki_facts.md §2.11).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from simulator import operators
from simulator.dtypes import float32, int32, uint8
from simulator.language.calls import (
    broadcast,
    converted,
    dtype_of,
    emit,
    new_tile,
    same_shape,
    tile,
)
from simulator.operators import FUNCTIONS, Operator
from simulator.tensor import NkiTensor

_BINARY = (
    operators.add, operators.subtract, operators.multiply, operators.maximum, operators.minimum,
    operators.power, operators.abs_max, operators.abs_min, operators.equal, operators.not_equal,
    operators.greater, operators.greater_equal, operators.less, operators.less_equal,
    operators.logical_and, operators.logical_or, operators.logical_xor, operators.bitwise_and,
    operators.bitwise_or, operators.bitwise_xor, operators.left_shift, operators.right_shift,
    operators.divide, operators.mod, operators.fmod,
)  # fmt: skip
_ACTIVATIONS = operators.ACTIVATIONS - {
    operators.copy, operators.prelu, operators.reciprocal, operators.rsqrt, operators.sin
}  # fmt: skip
_TURN = 2 * math.pi
_TURN_HIGH = 6.28125
"""The first 8 bits of 2π: its products with integers below 2^16 are exact in fp32."""


def _named(name: str, function: Callable[..., Any], text: str) -> None:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    FUNCTIONS[name] = function


def _binary(operator: Operator) -> Callable[..., NkiTensor]:
    def call(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
        given = [value for value in (x, y) if isinstance(value, NkiTensor)]
        if not given:
            tile(operator.name, "x", x)
        first = given[0]
        if len(given) == 2:
            x, y = broadcast(operator.name, x, y)
            first = x
        out = new_tile(first.shape, dtype_of(dtype, first))
        if len(given) == 2:
            emit("tensor_tensor", dst=out, data1=x, data2=y, op=operator)
        else:
            number, reverse = (x, True) if first is y else (y, False)
            emit(
                "tensor_scalar", dst=out, data=first, op0=operator, operand0=number,
                reverse0=reverse,
            )  # fmt: skip
        return out

    return call


def _activation(operator: Operator) -> Callable[..., NkiTensor]:
    def call(x: Any, dtype: Any = None) -> NkiTensor:
        out = new_tile(tile(operator.name, "x", x).shape, dtype_of(dtype, x))
        emit("activation", dst=out, op=operator, data=x)
        return out

    return call


def _tensor_scalar(name: str, operator: Operator, operand: Any) -> Callable[..., NkiTensor]:
    """`x operator operand`; a callable operand is asked for its value for each tile."""

    def call(x: Any, dtype: Any = None) -> NkiTensor:
        out = new_tile(tile(name, "x", x).shape, dtype_of(dtype, x))
        value = operand(x) if callable(operand) else operand
        emit("tensor_scalar", dst=out, data=x, op0=operator, operand0=value)
        return out

    return call


def _reciprocal(x: Any, dtype: Any = None) -> NkiTensor:
    out = new_tile(tile("reciprocal", "x", x).shape, dtype_of(dtype, x))
    emit("reciprocal", dst=out, data=x)
    return out


for _operator in _BINARY:
    _named(_operator.name, _binary(_operator), f"{_operator.name} of two tiles or tile and number.")
for _operator in _ACTIVATIONS:
    _named(_operator.name, _activation(_operator), f"{_operator.name} of each element.")
_named("rsqrt", _tensor_scalar("rsqrt", operators.rsqrt, 0.0), "1 / sqrt(x), on GpSimd: no PSUM.")
_named("reciprocal", _reciprocal, "1 / x, on the Vector engine.")
_named(
    "invert",
    _tensor_scalar("invert", operators.bitwise_xor, lambda x: 2 ** (8 * x.dtype.itemsize) - 1),
    "All bits of an integer tile, flipped.",
)
negative = _tensor_scalar("negative", operators.multiply, -1.0)
"""-x."""
logical_not = _tensor_scalar("logical_not", operators.logical_xor, 1.0)
"""1 where x is 0, else 0."""


# --- sine and cosine, with range reduction ----------------------------------------------------


def _reduced(x: NkiTensor, quarter: float) -> NkiTensor:
    """x less whole turns, so that x + 2π * quarter is in [-π, π]; fp32."""
    turns, near, out = (new_tile(x.shape, d) for d in (int32, float32, float32))
    emit(
        "tensor_scalar", dst=turns, data=x, op0=operators.multiply, operand0=1 / _TURN,
        op1=operators.add, operand1=quarter,
    )  # fmt: skip
    source = x
    for part, dst in ((_TURN_HIGH, near), (_TURN - _TURN_HIGH, out)):
        emit(
            "scalar_tensor_tensor", dst=dst, data=turns, op0=operators.multiply,
            operand0=-part, op1=operators.add, operand1=source,
        )  # fmt: skip
        source = dst
    return out


def _sine(name: str, quarter: float) -> Callable[..., NkiTensor]:
    def call(x: Any, dtype: Any = None) -> NkiTensor:
        out = new_tile(tile(name, "x", x).shape, dtype_of(dtype, x))
        emit(
            "activation", dst=out, op=operators.sin, data=_reduced(x, quarter),
            bias=_TURN * quarter,
        )  # fmt: skip
        return out

    return call


_named("sin", _sine("sin", 0.0), "The sine, for any x: whole turns are taken off first.")
cos = _sine("cos", 0.25)
"""The cosine, for any x: whole turns are taken off first."""


def tan(x: Any, dtype: Any = None) -> NkiTensor:
    """The tangent, as sine over cosine."""
    out = new_tile(tile("tan", "x", x).shape, dtype_of(dtype, x))
    over = _reciprocal(cos(x, dtype=float32))
    sine = FUNCTIONS["sin"](x, dtype=float32)
    emit("tensor_tensor", dst=out, data1=sine, data2=over, op=operators.multiply)
    return out


# --- copies and selections --------------------------------------------------------------------


def _copy(x: Any, dtype: Any = None) -> NkiTensor:
    from simulator.context import feature
    from simulator.tensor import MemoryRegion

    out = new_tile(tile("copy", "x", x).shape, dtype_of(dtype, x))
    if x.buffer is MemoryRegion.psum:
        feature("nl.copy of a PSUM tile", since="0.6")
    emit("tensor_copy", dst=out, src=x)
    return out


_named("copy", _copy, "A new SBUF tile with the values of a tile in SBUF or PSUM.")


def where(condition: Any, x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x where the condition tile is not 0, else y; x and y are tiles or numbers.

    Args:
        condition: 1.0 or 0.0, any dtype.
        x: of the condition's shape.
        y: of the condition's shape.
        dtype: of the result; default that of x, y or condition, the first that is a tile.
    """
    tile("where", "condition", condition)
    same_shape("where", condition, x=x, y=y)
    first = next(value for value in (x, y, condition) if isinstance(value, NkiTensor))
    out = new_tile(condition.shape, dtype_of(dtype, first))
    predicate = new_tile(condition.shape, uint8)
    emit("tensor_scalar", dst=predicate, data=condition, op0=operators.not_equal, operand0=0.0)
    if isinstance(y, NkiTensor):
        emit("tensor_copy", dst=out, src=y)
    else:
        emit("memset", dst=out, value=y)
    source = converted(x, out.dtype) if isinstance(x, NkiTensor) else x
    emit("tensor_copy_predicated", dst=out, src=source, predicate=predicate)
    return out


def dropout(x: Any, rate: Any, dtype: Any = None) -> NkiTensor:
    """x with each element replaced by 0 with probability `rate`, a number or (P, 1) tile."""
    wanted = dtype_of(dtype, tile("dropout", "x", x))
    out = new_tile(x.shape, x.dtype)
    emit("dropout", dst=out, data=x, prob=rate)
    return converted(out, wanted)
