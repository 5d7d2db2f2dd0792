"""Compare a kernel's results to those of a reference function."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cli.data import Array
from simulator.cli.problems import BadInput, user_line

RELATIVE = {
    "float32": 1e-4, "tfloat32": 2e-3, "float16": 4e-3, "bfloat16": 2e-2,
    "float8_e4m3": 0.15, "float8_e4m3fn": 0.15, "float8_e5m2": 0.3, "float8_e8m0fnu": 1.0,
}  # fmt: skip
"""Tolerance relative to the reference's largest value, some units in the last place of the
coarsest float dtype among the inputs and the output. Integers must be equal."""


@dataclass(frozen=True)
class Comparison:
    """How far an output is from its reference."""

    ok: bool
    max_abs_error: float
    max_relative_error: float
    """The largest error, relative to the reference's largest value."""
    relative_l2: float
    tolerance: float
    """What the largest error may be: atol + rtol * the reference's largest value."""
    problem: str = ""
    """What makes numbers pointless: other shapes, NaN where there is none."""


def compare(output: Array, reference: Array, rtol: float, atol: float) -> Comparison:
    """Compare in fp64. NaN and infinities must be the same in both."""
    if output.shape != reference.shape:
        return _hopeless(f"shape {output.shape}, the reference has {reference.shape}")
    x, y = output.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(y)
    if (
        not np.array_equal(x[~finite], y[~finite], equal_nan=True)
        or not np.isfinite(x[finite]).all()
    ):
        return _hopeless("NaN or Inf where the other has none")
    x, y = x[finite], y[finite]
    if x.size == 0:
        return Comparison(True, 0.0, 0.0, 0.0, atol)
    error = np.abs(x - y)
    worst, largest, norm = float(error.max()), float(np.abs(y).max()), float(np.linalg.norm(y))
    distance = float(np.linalg.norm(error))
    tolerance = atol + rtol * largest
    return Comparison(
        worst <= tolerance, worst, _ratio(worst, largest), _ratio(distance, norm), tolerance
    )


def _ratio(value: float, scale: float) -> float:
    return value / scale if scale else (0.0 if value == 0 else float("inf"))


def _hopeless(problem: str) -> Comparison:
    nan = float("nan")
    return Comparison(False, nan, nan, nan, nan, problem)


def tolerance_for(dtypes: list[str]) -> float:
    """The relative tolerance for results that went through these dtypes."""
    return max((RELATIVE.get(dtype, 0.0) for dtype in dtypes), default=0.0)


def call_reference(function: Callable[..., Any], arguments: Mapping[str, Any]) -> list[Array]:
    """The results of a reference function.

    It gets the kernel's arguments by name where it has parameters of those names, else by
    position. Tensors are torch tensors if its module has imported torch, else NumPy arrays.

    Args:
        function: the reference.
        arguments: the kernel's, in its order; tensors as NumPy arrays.

    Raises:
        BadInput: it cannot be called like this, fails, or returns no tensors.
    """
    name = getattr(function, "__name__", "the reference")
    use_torch = "torch" in getattr(inspect.unwrap(function), "__globals__", {})
    values = {key: _given(value, use_torch) for key, value in arguments.items()}
    args, kwargs = _matched(function, name, values)
    try:
        results = function(*args, **kwargs)
    except Exception as error:
        file, line = user_line(error)
        raise BadInput(
            f"the reference {name} fails: {type(error).__name__}: {error}",
            "It is called with the kernel's arguments, floats as fp32",
            file,
            line,
        ) from None
    flat = list(results) if isinstance(results, tuple | list) else [results]
    return [_array(name, result) for result in flat]


def _given(value: Any, use_torch: bool) -> Any:
    if isinstance(value, np.ndarray) and use_torch:
        return sys.modules["torch"].from_numpy(value)
    if isinstance(value, tuple):
        return tuple(_given(item, use_torch) for item in value)
    return value


def _matched(
    function: Callable[..., Any], name: str, values: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    kwargs = {p.name: values[p.name] for p in named if p.name in values}
    if all(p.name in kwargs or p.default is not p.empty for p in named) and (
        kwargs and not any(p.kind is p.POSITIONAL_ONLY for p in parameters)
    ):
        return [], kwargs
    positions = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positions)
    if required > len(values) or any(
        p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters
    ):
        raise BadInput(
            f"the reference {name}{inspect.signature(function)} does not fit the kernel's "
            f"arguments {', '.join(values)}",
            "Give its parameters the names of the kernel's",
        )
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return list(values.values())[: None if variadic else len(positions)], {}


def _array(name: str, result: Any) -> Array:
    if hasattr(result, "detach"):
        result = result.detach().cpu()
        return np.asarray(result.double().numpy())
    if not isinstance(result, np.ndarray | np.generic):
        raise BadInput(
            f"the reference {name} returns a {type(result).__name__}",
            "Return a tensor or a tuple of tensors",
        )
    return np.asarray(result)
