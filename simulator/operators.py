"""The operators that instructions take as `op`: ALU operators and activation functions.

One table for checks and execution. Source: nki_facts.md §2.7, §2.10, §5. All mathematics
are fp32; comparisons give 1.0 or 0.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.errors import refuse

Array = np.ndarray[Any, Any]
ONE = np.float32(1)


@dataclass(frozen=True, eq=False)
class Operator:
    """An `nl.*` object used as `op`, `op0`, `op1`, `reduce_op` or `cmp_op`."""

    name: str
    binary: Callable[..., Array] | None = None
    """ALU: f(x, y, out=None) in fp32."""
    reduction: np.ufunc | None = None
    """The ufunc that reduces with it, if it may reduce."""
    unary: Callable[..., Array] | None = None
    """Activation or unary ALU: f(x, out=None) in fp32."""

    def __repr__(self) -> str:
        return f"nl.{self.name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The tile functions of nki.language, which are experimental in the SDK too."""
        raise refuse(
            "unsupported",
            f"nl.{self.name}(…) as a function is not simulated yet",
            f"Write it with nki.isa, with op=nl.{self.name}",
        )


def _sigmoid(x: Array, out: Array | None = None) -> Array:
    y = np.negative(x, out=out)
    np.exp(y, out=y)
    np.add(y, ONE, out=y)
    return np.reciprocal(y, out=y)


def _silu(x: Array, out: Array | None = None) -> Array:
    return np.multiply(x, _sigmoid(x), out=out)


def _rsqrt(x: Array, out: Array | None = None) -> Array:
    y = np.sqrt(x, out=out)
    return np.divide(ONE, y, out=y)


def _relu(x: Array, out: Array | None = None) -> Array:
    return np.maximum(x, np.float32(0), out=out)


def _copy(x: Array, out: Array | None = None) -> Array:
    if out is None:
        return x
    np.copyto(out, x)
    return out


def _compare(ufunc: np.ufunc) -> Callable[..., Array]:
    def compare(x: Array, y: Array, out: Array | None = None) -> Array:
        result: Array = ufunc(x, y).astype(np.float32)
        if out is None:
            return result
        np.copyto(out, result)
        return out

    return compare


add = Operator("add", np.add, np.add)
subtract = Operator("subtract", np.subtract)
multiply = Operator("multiply", np.multiply, np.multiply)
# fmax/fmin would hide a NaN; the engines' rule is undocumented, so NaN is kept visible.
maximum = Operator("maximum", np.maximum, np.maximum)
minimum = Operator("minimum", np.minimum, np.minimum)
power = Operator("power", np.power)
equal = Operator("equal", _compare(np.equal))
not_equal = Operator("not_equal", _compare(np.not_equal))
greater = Operator("greater", _compare(np.greater))
greater_equal = Operator("greater_equal", _compare(np.greater_equal))
less = Operator("less", _compare(np.less))
less_equal = Operator("less_equal", _compare(np.less_equal))

copy = Operator("copy", unary=_copy)
square = Operator("square", unary=np.square)
sqrt = Operator("sqrt", unary=np.sqrt)
rsqrt = Operator("rsqrt", unary=_rsqrt)
reciprocal = Operator("reciprocal", unary=np.reciprocal)
exp = Operator("exp", unary=np.exp)
log = Operator("log", unary=np.log)
tanh = Operator("tanh", unary=np.tanh)
sigmoid = Operator("sigmoid", unary=_sigmoid)
silu = Operator("silu", unary=_silu)
relu = Operator("relu", unary=_relu)
abs = Operator("abs", unary=np.abs)

OPERATORS: dict[str, Operator] = {
    o.name: o
    for o in (
        add, subtract, multiply, maximum, minimum, power, equal, not_equal, greater,
        greater_equal, less, less_equal, copy, square, sqrt, rsqrt, reciprocal, exp, log,
        tanh, sigmoid, silu, relu, abs,
    )
}  # fmt: skip

ALU = frozenset(o for o in OPERATORS.values() if o.binary is not None)
REDUCTIONS = frozenset(o for o in OPERATORS.values() if o.reduction is not None)
ACTIVATIONS = frozenset(
    {copy, square, sqrt, rsqrt, reciprocal, exp, log, tanh, sigmoid, silu, relu, abs}
)
