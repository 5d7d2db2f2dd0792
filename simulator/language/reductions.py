"""Reductions over trailing free dimensions, and what is made of them: softmax, rms_norm."""

from __future__ import annotations

import builtins
import math
from typing import Any

from simulator import operators
from simulator.dtypes import DType, float32
from simulator.enums import reduce_cmd
from simulator.errors import refuse
from simulator.language.calls import (
    dtype_of,
    emit,
    new_tile,
    same_shape,
    spread_over,
    tile,
)
from simulator.operators import Operator
from simulator.tensor import NkiTensor


def _first_axis(function: str, x: Any, axis: Any) -> int:
    """The first of the reduced axes, which must be the trailing free ones."""
    rank = tile(function, "x", x).ndim
    given = axis if isinstance(axis, tuple | list) else (axis,)
    if builtins.all(isinstance(a, int) and not isinstance(a, bool) for a in given):
        axes = sorted(a + rank if a < 0 else a for a in given)
        if axes and axes[0] >= 1 and axes == list(range(axes[0], rank)):
            first: int = axes[0]
            return first
    raise refuse(
        "reduce-axis",
        f"nl.{function} reduces the last free dimension(s) of a tile",
        "Reduce trailing free dimensions; over partitions use a matmul with ones",
        instruction=f"nl.{function}",
        operand="axis",
        limit=f"trailing axes of {rank} dimensions, not 0",
        value=str(axis),
    )


def _shape(x: NkiTensor, first: int, keepdims: bool) -> tuple[int, ...]:
    """What a reduction leaves; tiles have at least two dimensions."""
    kept = x.shape[:first]
    return kept + (1,) * (x.ndim - first) if keepdims else kept if first > 1 else (*kept, 1)


def _reduced(
    x: NkiTensor, first: int, operator: Operator, dtype: DType, keepdims: bool, negate: bool = False
) -> NkiTensor:
    out = new_tile(_shape(x, first, keepdims), dtype)
    axis = tuple(range(first, x.ndim))
    emit("tensor_reduce", dst=out, op=operator, data=x, axis=axis, negate=negate)
    return out


def sum(x: Any, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The sum over `axis`, an int or tuple of trailing free axes."""
    first = _first_axis("sum", x, axis)
    return _reduced(x, first, operators.add, dtype_of(dtype, x), keepdims)


def max(x: Any, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The maximum over trailing free axes."""
    first = _first_axis("max", x, axis)
    return _reduced(x, first, operators.maximum, dtype_of(dtype, x), keepdims)


def min(x: Any, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The minimum over trailing free axes."""
    first = _first_axis("min", x, axis)
    return _reduced(x, first, operators.minimum, dtype_of(dtype, x), keepdims)


def prod(x: Any, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The product over trailing free axes."""
    first = _first_axis("prod", x, axis)
    return _reduced(x, first, operators.multiply, dtype_of(dtype, x), keepdims)


def all(x: Any, axis: Any, dtype: Any = None) -> NkiTensor:
    """1 where no element of trailing free axes is 0, else 0."""
    first = _first_axis("all", x, axis)
    return _reduced(x, first, operators.logical_and, dtype_of(dtype, x), False)


def _scaled(x: NkiTensor, factor: float, dtype: DType) -> NkiTensor:
    out = new_tile(x.shape, dtype)
    emit("tensor_scalar", dst=out, data=x, op0=operators.multiply, operand0=factor)
    return out


def mean(x: Any, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The mean over trailing free axes; the sum is fp32."""
    first = _first_axis("mean", x, axis)
    total = _reduced(x, first, operators.add, float32, keepdims)
    return _scaled(total, 1 / math.prod(x.shape[first:]), dtype_of(dtype, x))


def var(x: Any, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The population variance over trailing free axes. The axes are always kept, of size 1.

    Args:
        x: a tile.
        axis: int or tuple of trailing free axes.
        dtype: of the result, default x.dtype.
        keepdims: without effect, as in the SDK.
    """
    first = _first_axis("var", x, axis)
    share = 1 / math.prod(x.shape[first:])
    negative_mean = _scaled(_reduced(x, first, operators.add, float32, True), -share, float32)
    centred = _combined(x, negative_mean, operators.add, float32, first)
    squares = new_tile(x.shape, float32)
    emit("activation", dst=squares, op=operators.square, data=centred)
    total = _reduced(squares, first, operators.add, float32, True)
    return _scaled(total, share, dtype_of(dtype, x))


def _combined(
    x: NkiTensor, column: NkiTensor, operator: Operator, dtype: DType, first: int
) -> NkiTensor:
    """x operator column, where the column has one element for all trailing axes from `first`."""
    out = new_tile(x.shape, dtype)
    if first == 1:
        flat = column.reshape((column.shape[0], 1))
        emit("tensor_scalar", dst=out, data=x, op0=operator, operand0=flat)
    else:
        repeated = spread_over(column, x.shape)
        emit("tensor_tensor", dst=out, data1=x, data2=repeated, op=operator)
    return out


def softmax(x: Any, axis: Any = -1, dtype: Any = None) -> NkiTensor:
    """exp(x - max) / sum(exp(x - max)) over trailing free axes; fp32 inside."""
    first = _first_axis("softmax", x, axis)
    wanted = dtype_of(dtype, x)
    highest = _reduced(x, first, operators.maximum, float32, True, negate=True)
    exponentials = new_tile(x.shape, float32)
    if first == 1:
        total = new_tile((x.shape[0], 1), float32)
        emit(
            "activation", dst=exponentials, op=operators.exp, data=x,
            bias=highest.reshape((x.shape[0], 1)), reduce_op=operators.add, reduce_res=total,
            reduce_cmd=reduce_cmd.reset_reduce,
        )  # fmt: skip
    else:
        below = _combined(x, highest, operators.add, float32, first)
        emit("activation", dst=exponentials, op=operators.exp, data=below)
        total = _reduced(exponentials, first, operators.add, float32, True)
    share = new_tile(total.shape, float32)
    emit("reciprocal", dst=share, data=total)
    return _combined(exponentials, share, operators.multiply, wanted, first)


def rms_norm(
    x: Any,
    w: Any,
    axis: Any,
    n: int,
    epsilon: float = 1e-6,
    dtype: Any = None,
    compute_dtype: Any = None,
) -> NkiTensor:
    """x / sqrt(sum(x²) / n + epsilon) * w, summed over trailing free axes.

    Args:
        x: a tile.
        w: weights, of x's shape.
        axis: int or tuple of trailing free axes.
        n: the number of values that the mean is taken over.
        epsilon: added to the mean square.
        dtype: of the result, default x.dtype.
        compute_dtype: of the squares and the normalised values, default float32.
    """
    first = _first_axis("rms_norm", x, axis)
    same_shape("rms_norm", x, w=tile("rms_norm", "w", w))
    wanted = dtype_of(dtype, x)
    inner = float32 if compute_dtype is None else dtype_of(compute_dtype, x)
    squares = new_tile(x.shape, inner)
    emit("activation", dst=squares, op=operators.square, data=x)
    total = _reduced(squares, first, operators.add, float32, True)
    scale = new_tile(total.shape, float32)
    emit(
        "tensor_scalar", dst=scale, data=total, op0=operators.multiply, operand0=1 / n,
        op1=operators.add, operand1=epsilon,
    )  # fmt: skip
    emit("tensor_scalar", dst=scale, data=scale, op0=operators.rsqrt, operand0=0.0)
    normal = _combined(x, scale, operators.multiply, inner, first)
    out = new_tile(x.shape, wanted)
    emit("tensor_tensor", dst=out, data1=normal, data2=w, op=operators.multiply)
    return out
