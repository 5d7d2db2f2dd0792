"""nl.floor, nl.ceil and nl.trunc: the engines round to the nearest integer only.

A cast to int32 and back rounds to nearest; a comparison with x corrects it by one. From 2^23 on
every fp32 number is an integer and stays as it is.
"""

from __future__ import annotations

from typing import Any

from simulator import operators
from simulator.dtypes import float32, int32, uint8
from simulator.language.calls import converted, dtype_of, emit, new_tile, tile
from simulator.tensor import NkiTensor

_ALL_INTEGERS = float(2**23)


def _rounded(x: NkiTensor, wrong: Any, correct: Any) -> NkiTensor:
    """x to nearest, corrected by one where `nearest wrong x`; fp32."""
    whole, nearest, by_one = (new_tile(x.shape, d) for d in (int32, float32, float32))
    emit("tensor_copy", dst=whole, src=x)
    emit("tensor_copy", dst=nearest, src=whole)
    emit("tensor_tensor", dst=by_one, data1=nearest, data2=x, op=wrong)
    emit("tensor_tensor", dst=nearest, data1=nearest, data2=by_one, op=correct)
    return nearest


def _where_fractions(x: NkiTensor, rounded: NkiTensor, dtype: Any) -> NkiTensor:
    """`rounded` where |x| < 2^23, else x."""
    small, out = new_tile(x.shape, uint8), new_tile(x.shape, float32)
    emit(
        "tensor_scalar", dst=small, data=x, op0=operators.abs, operand0=0.0, op1=operators.less,
        operand1=_ALL_INTEGERS,
    )  # fmt: skip
    emit("tensor_copy", dst=out, src=x)
    emit("tensor_copy_predicated", dst=out, src=rounded, predicate=small)
    return converted(out, dtype)


def floor(x: Any, dtype: Any = None) -> NkiTensor:
    """The largest integer <= x."""
    wanted = dtype_of(dtype, tile("floor", "x", x))
    return _where_fractions(x, _rounded(x, operators.greater, operators.subtract), wanted)


def ceil(x: Any, dtype: Any = None) -> NkiTensor:
    """The smallest integer >= x."""
    wanted = dtype_of(dtype, tile("ceil", "x", x))
    return _where_fractions(x, _rounded(x, operators.less, operators.add), wanted)


def trunc(x: Any, dtype: Any = None) -> NkiTensor:
    """x without its fraction."""
    wanted = dtype_of(dtype, tile("trunc", "x", x))
    size, sign = new_tile(x.shape, float32), new_tile(x.shape, float32)
    emit("activation", dst=size, op=operators.abs, data=x)
    emit("activation", dst=sign, op=operators.sign, data=x)
    whole = _rounded(size, operators.greater, operators.subtract)
    emit("tensor_tensor", dst=whole, data1=whole, data2=sign, op=operators.multiply)
    return _where_fractions(x, whole, wanted)
