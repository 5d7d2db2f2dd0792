"""The Scalar engine's functions in fp32. Definitions: nki_facts.md §2.7 and §5.

The chip evaluates piece-wise polynomials; here the functions are exact to about 2e-7. Each takes
`out`, to which it writes its result. Those that need their input after they began to write
also take `scratch` (which may be `out`, if that does not overlap x). Passes over the data are what
costs: each line is one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
F = np.float32

ONE, ZERO, HALF, INFINITY = F(1), F(0), F(0.5), F(np.inf)
PI = F(math.pi)
_MINUS = F(-1)
"""Multiplied by: np.negative(y, out=y) errs where y's rows are 16 bytes apart (NumPy 2.4)."""

_ERF = (
    1.1283792809895272, 0.10276900032230457, -1.9171505436487636e-4, -6.198769308292556e-4,
    8.766954945696245e-5, -5.6733858109237756e-6, 1.4211574685054922e-7,
)  # fmt: skip
"""erf(x) = tanh(x * P(x²)). Our own fit: least squares, reweighted towards the largest error of
erf, absolute where erf > 0.05 and relative below. In fp32 the error is below 2e-7; the leading
coefficient is positive, so that infinities give ±1."""
_GELU = tuple(-2 * c / math.sqrt(2) ** (2 * k + 1) for k, c in enumerate(_ERF))
"""The same for exp(-2 * atanh(erf(x / √2))) = (1 - Φ) / Φ, so that gelu(x) = x / (1 + that)."""
_TANH_TERM = math.sqrt(2 / math.pi)
_SIGMOID_TERM = 1.702


def _odd_polynomial(x: Array, coefficients: tuple[float, ...], out: Array | None) -> Array:
    """x * P(x²), lowest coefficient first; out must not be x."""
    squares = np.square(x)
    y = np.multiply(squares, F(coefficients[-1]), out=out)
    for coefficient in coefficients[-2:0:-1]:
        np.add(y, F(coefficient), out=y)
        np.multiply(y, squares, out=y)
    np.add(y, F(coefficients[0]), out=y)
    return np.multiply(y, x, out=y)


def _over_one_plus_exp(x: Any, y: Array, out: Array | None) -> Array:
    """x / (1 + exp(y)); y is used up."""
    np.exp(y, out=y)
    np.add(y, ONE, out=y)
    result: Array = np.divide(x, y, out=out)
    return result


def copy(x: Array, out: Array | None = None) -> Array:
    """The identity."""
    if out is None:
        return x
    np.copyto(out, x)
    return out


def relu(x: Array, out: Array | None = None) -> Array:
    """max(x, 0); NaN stays NaN."""
    y: Array = x.clip(ZERO, INFINITY, out=out)
    return y


def prelu(x: Array, out: Array | None = None, slope: Any = ZERO) -> Array:
    """x where x > 0, else slope * x."""
    y = np.where(x > ZERO, x, np.multiply(x, slope))
    return copy(y, out)


def rsqrt(x: Array, out: Array | None = None) -> Array:
    """1 / √x."""
    y = np.sqrt(x, out=out)
    return np.divide(ONE, y, out=y)


def sigmoid(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """1 / (1 + exp(-x))."""
    y = np.multiply(x, _MINUS, out=out)
    np.exp(y, out=y)
    np.add(y, ONE, out=y)
    return np.reciprocal(y, out=y)


def silu(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """x * sigmoid(x)."""
    return _over_one_plus_exp(x, np.negative(x, out=scratch), out)


def silu_dx(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """s + x s (1 - s), where s = sigmoid(x)."""
    return _gated_dx(x, ONE, out, scratch)


def _gated_dx(x: Array, factor: Any, out: Array | None, scratch: Array | None) -> Array:
    """The derivative of x * sigmoid(factor * x): s (1 + z (1 - s)), z = factor * x.

    1 - s is exp(-z) s. Beyond ±87 the result is 1 or 0 in fp32.
    """
    y: Array = np.multiply(x, -factor, out=scratch)  # -z
    y = y.clip(F(-87), F(87), out=y)
    e = np.exp(y)
    s = np.reciprocal(e + ONE)
    np.multiply(e, s, out=e)
    np.multiply(e, y, out=e)
    np.subtract(ONE, e, out=e)
    return np.multiply(e, s, out=out)


def erf(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """2/√π times the integral of exp(-t²) from 0 to x."""
    y = _odd_polynomial(x, _ERF, scratch)
    return np.tanh(y, out=y if out is None else out)


def erf_dx(x: Array, out: Array | None = None) -> Array:
    """2/√π exp(-x²)."""
    y = np.square(x, out=out)
    np.multiply(y, _MINUS, out=y)
    np.exp(y, out=y)
    return np.multiply(y, F(2 / math.sqrt(math.pi)), out=y)


def gelu(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """x Φ(x), Φ the normal distribution function."""
    return _over_one_plus_exp(x, _odd_polynomial(x, _GELU, scratch), out)


def gelu_dx(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """Φ(x) + x φ(x), φ the normal density, which is 0 beyond ±20 in fp32."""
    density = x.clip(F(-20), F(20))
    y = np.square(density, out=scratch)
    np.multiply(y, -HALF, out=y)
    np.exp(y, out=y)
    density *= y
    density *= F(1 / math.sqrt(2 * math.pi))
    y = _odd_polynomial(x, _GELU, y)
    result: Array = np.add(density, _over_one_plus_exp(ONE, y, y), out=out)
    return result


def gelu_apprx_tanh(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    y = _odd_polynomial(x, (-2 * _TANH_TERM, -2 * _TANH_TERM * 0.044715), scratch)
    return _over_one_plus_exp(x, y, out)


def gelu_apprx_sigmoid(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """x * sigmoid(1.702 x)."""
    return _over_one_plus_exp(x, np.multiply(x, F(-_SIGMOID_TERM), out=scratch), out)


def gelu_apprx_sigmoid_dx(
    x: Array, out: Array | None = None, scratch: Array | None = None
) -> Array:
    """The derivative of x * sigmoid(1.702 x)."""
    return _gated_dx(x, F(_SIGMOID_TERM), out, scratch)


def softplus(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which never overflows."""
    y = np.abs(x, out=scratch)
    np.multiply(y, _MINUS, out=y)
    np.exp(y, out=y)
    np.log1p(y, out=y)
    return np.add(y, relu(x), out=out)


def mish(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """x * tanh(softplus(x)) as x n / (n + 2), n = e (e + 2), e = exp(x); 1 in fp32 from 20 on."""
    y = x.clip(-INFINITY, F(20), out=scratch)
    np.exp(y, out=y)
    np.multiply(y, y + F(2), out=y)
    np.divide(y, y + F(2), out=y)
    return np.multiply(y, x, out=out)


def sin(x: Array, out: Array | None = None, scratch: Array | None = None) -> Array:
    """The sine in [-π, π]; beyond, the last cubic of the engine's table goes on.

    That is sin's cubic at ±π: sin(9) becomes 27.65 (nki_facts.md §2.7).
    """
    y = np.abs(x, out=scratch)
    beyond = y > PI
    if not beyond.any():
        return np.sin(x, out=y if out is None else out)
    d = y - PI
    np.sin(x, out=y)
    cubic = np.copysign(ONE, x) * (d * (d * d / F(6) - ONE))
    return copy(np.where(beyond, cubic, y), out)
