"""Each instruction's values against an independent NumPy statement, over dtypes and views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import operators
from simulator.instructions import elementwise

Array = np.ndarray[Any, Any]
FLOATS = {nl.float32: np.float32, nl.bfloat16: ml_dtypes.bfloat16, nl.float16: np.float16}


def bench(body: Callable[..., None], results: int = 1) -> Any:
    """A kernel that loads x and y, runs body(x, y, *results) on chip and stores the results."""

    @nki.jit
    def kernel(x, y, shapes, dtype):  # type: ignore[no-untyped-def]
        tiles = []
        for source in (x, y):
            # A view with an offset and a stride: every second column of a wider tile.
            wide = nl.ndarray((source.shape[0], 2 * source.shape[1] + 1), source.dtype)
            tile = wide[:, 1 : 2 * source.shape[1] + 1 : 2]
            nisa.dma_copy(dst=tile, src=source)
            tiles.append(tile)
        outs = [nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf) for shape in shapes]
        body(*tiles, *outs)
        stored = []
        for tile in outs:
            out = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(dst=out, src=tile)
            stored.append(out)
        return tuple(stored)

    return kernel


def data(shape: tuple[int, int], dtype: Any, seed: int) -> Array:
    random = np.random.default_rng(seed)
    return (random.uniform(0.25, 2, shape) * random.choice([-1, 1], shape)).astype(dtype)


shapes = st.tuples(st.integers(1, 128), st.integers(1, 40))
dtypes = st.sampled_from(list(FLOATS))
seeds = st.integers(0, 2**16)


def check(
    body: Callable[..., None],
    expect: Callable[[Array, Array], list[Array]],
    shape: tuple[int, int],
    dtype: Any,
    seed: int,
    y_dtype: Any = None,
    y_columns: int | None = None,
    absolute: float = 1e-6,
) -> None:
    """Run body in `dtype` and compare with fp32 NumPy, cast once at the end."""
    x = data(shape, FLOATS[dtype], seed)
    y = data((shape[0], y_columns or shape[1]), FLOATS[y_dtype or dtype], seed + 1)
    with np.errstate(all="ignore"):
        expected = expect(x.astype(np.float32), y.astype(np.float32))
    found = bench(body)(x, y, tuple(e.shape for e in expected), dtype)
    for a, b in zip(found, expected, strict=True):
        cast = b.astype(np.float32).astype(FLOATS[dtype]).astype(np.float64)
        tolerance = 1e-6 if dtype is nl.float32 else 2**-7 if dtype is nl.bfloat16 else 2**-10
        np.testing.assert_allclose(a.astype(np.float64), cast, rtol=tolerance, atol=absolute)


ALU: dict[str, Callable[[Array, Array], Array]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "maximum": lambda x, y: np.where(x > y, x, y),
    "minimum": lambda x, y: np.where(x < y, x, y),
    "equal": lambda x, y: 1.0 * (x == y),
    "not_equal": lambda x, y: 1.0 * (x != y),
    "greater": lambda x, y: 1.0 * (x > y),
    "greater_equal": lambda x, y: 1.0 * (x >= y),
    "less": lambda x, y: 1.0 * (x < y),
    "less_equal": lambda x, y: 1.0 * (x <= y),
}
alu = st.sampled_from(list(ALU))


@pytest.mark.parametrize("op", ALU)
@settings(max_examples=8, deadline=None)
@given(shape=shapes, dtype=dtypes, seed=seeds)
def test_tensor_tensor(shape: tuple[int, int], dtype: Any, seed: int, op: str) -> None:
    def body(x: Any, y: Any, out: Any) -> None:
        nisa.tensor_tensor(dst=out, data1=x, data2=y, op=getattr(nl, op))

    check(body, lambda x, y: [ALU[op](x, y)], shape, dtype, seed)


@settings(max_examples=40, deadline=None)
@given(shapes, dtypes, seeds, alu, alu, st.booleans(), st.booleans())
def test_tensor_scalar(
    shape: tuple[int, int], dtype: Any, seed: int, op0: str, op1: str, rev0: bool, rev1: bool
) -> None:
    def body(x: Any, y: Any, out: Any) -> None:
        nisa.tensor_scalar(
            dst=out, data=x, op0=getattr(nl, op0), operand0=y, reverse0=rev0,
            op1=getattr(nl, op1), operand1=0.75, reverse1=rev1,
        )  # fmt: skip

    def expect(x: Array, y: Array) -> list[Array]:
        first = np.float32(ALU[op0](y, x) if rev0 else ALU[op0](x, y))
        half = np.float32(0.75)
        return [ALU[op1](half, first) if rev1 else ALU[op1](first, half)]

    check(body, expect, shape, dtype, seed, nl.float32, 1)


@settings(max_examples=25, deadline=None)
@given(shapes, dtypes, seeds, alu, alu, st.booleans())
def test_scalar_tensor_tensor(
    shape: tuple[int, int], dtype: Any, seed: int, op0: str, op1: str, reverse: bool
) -> None:
    def body(x: Any, y: Any, out: Any) -> None:
        nisa.scalar_tensor_tensor(
            dst=out, data=x, op0=getattr(nl, op0), operand0=1.5, op1=getattr(nl, op1),
            operand1=y, reverse1=reverse,
        )  # fmt: skip

    def expect(x: Array, y: Array) -> list[Array]:
        first = np.float32(ALU[op0](x, np.float32(1.5)))
        return [ALU[op1](y, first) if reverse else ALU[op1](first, y)]

    check(body, expect, shape, dtype, seed)


@pytest.mark.parametrize("op", ["add", "multiply", "maximum", "minimum"])
@settings(max_examples=8, deadline=None)
@given(shape=shapes, dtype=dtypes, seed=seeds, negate=st.booleans())
def test_tensor_reduce(
    shape: tuple[int, int], dtype: Any, seed: int, op: str, negate: bool
) -> None:
    def body(x: Any, y: Any, out: Any) -> None:
        nisa.tensor_reduce(dst=out, op=getattr(nl, op), data=x, axis=1, negate=negate)

    ways = {"add": np.sum, "multiply": np.prod, "maximum": np.max, "minimum": np.min}

    def expect(x: Array, y: Array) -> list[Array]:
        reduced = ways[op](x.astype(np.float64), axis=1, keepdims=True)
        return [-reduced if negate else reduced]

    if op == "multiply":
        shape = (shape[0], min(shape[1], 8))
    # Sums of 40 numbers up to 2 that cancel keep the rounding of their largest parts.
    check(body, expect, shape, dtype, seed, absolute=1e-5 if op == "add" else 1e-6)


def test_tensor_reduce_keeps_inner_dimensions() -> None:
    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        out = nl.ndarray((2, 3), dtype=nl.float32, buffer=nl.shared_hbm)
        tile, sums = nl.ndarray((2, 3, 4), nl.float32), nl.ndarray((2, 3), nl.float32)
        nisa.dma_copy(dst=tile, src=x)
        nisa.tensor_reduce(dst=sums, op=nl.add, data=tile, axis=2)
        nisa.dma_copy(dst=out, src=sums)
        return out

    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(kernel(x), x.sum(2))


@settings(max_examples=10, deadline=None)
@given(shapes, dtypes, seeds)
def test_reciprocal(shape: tuple[int, int], dtype: Any, seed: int) -> None:
    def body(x: Any, y: Any, out: Any) -> None:
        nisa.reciprocal(dst=out, data=x)

    check(body, lambda x, y: [1 / x], shape, dtype, seed)


UNARY: dict[str, Callable[[Array], Array]] = {
    "copy": lambda x: x,
    "square": lambda x: x * x,
    "sqrt": lambda x: x**0.5,
    "rsqrt": lambda x: x**-0.5,
    "reciprocal": lambda x: 1 / x,
    "exp": lambda x: np.e**x,
    "log": np.log,
    "tanh": lambda x: (np.e ** (2 * x) - 1) / (np.e ** (2 * x) + 1),
    "sigmoid": lambda x: 1 / (1 + np.e**-x),
    "silu": lambda x: x / (1 + np.e**-x),
    "relu": lambda x: np.where(x > 0, x, 0),
    "abs": lambda x: np.where(x > 0, x, -x),
}
POSITIVE = {"sqrt", "rsqrt", "log", "reciprocal"}
"""Kept away from 0 by the bias: they are not defined there, or ill-conditioned."""


@pytest.mark.parametrize("op", UNARY)
@settings(max_examples=8, deadline=None)
@given(shape=shapes, dtype=dtypes, seed=seeds)
def test_activation_and_its_sum(shape: tuple[int, int], dtype: Any, seed: int, op: str) -> None:
    bias = 3.0 if op in POSITIVE else 0.25

    def body(x: Any, y: Any, out: Any, total: Any) -> None:
        column = nl.ndarray((shape[0], 1), dtype=nl.float32)
        nisa.activation_reduce(
            dst=out, op=getattr(nl, op), data=x, bias=bias, scale=y, reduce_op=nl.add,
            reduce_res=column,
        )  # fmt: skip
        nisa.tensor_copy(dst=total, src=column)

    def expect(x: Array, y: Array) -> list[Array]:
        scaled = x.astype(np.float64) * np.minimum(np.abs(y), 1) + bias
        result = UNARY[op](scaled)
        return [result, result.sum(1, keepdims=True)]

    x = data(shape, FLOATS[dtype], seed)
    y = np.minimum(np.abs(data((shape[0], 1), np.float32, seed + 1)), 1)
    expected = expect(x.astype(np.float32), y)
    found = bench(body)(x, y, tuple(e.shape for e in expected), dtype)
    digits = {nl.float32: 5e-6, nl.bfloat16: 2**-7, nl.float16: 2**-10}[dtype]
    sizes = [np.abs(expected[0]), np.abs(expected[0]).sum(1, keepdims=True)]
    for array, wanted, size in zip(found, expected, sizes, strict=True):
        assert (np.abs(array.astype(np.float64) - wanted) <= digits * (size + 0.1)).all()


def test_accumulators_go_on_until_they_are_reset() -> None:
    commands = nisa.reduce_cmd

    def body(x: Any, y: Any, first: Any, second: Any, third: Any) -> None:
        scratch = nl.ndarray(x.shape, dtype=nl.float32)
        for command, result in (
            (commands.reset_reduce, first), (commands.reduce, second), (commands.reset, None),
            (commands.reduce, third),
        ):  # fmt: skip
            nisa.activation(
                dst=scratch, op=nl.copy, data=x, reduce_op=nl.add, reduce_res=result,
                reduce_cmd=command,
            )  # fmt: skip

    x = data((5, 7), np.float32, 0)
    total = x.sum(1, keepdims=True)
    found = bench(body)(x, x, ((5, 1),) * 3, nl.float32)
    for array, times in zip(found, (1, 2, 1), strict=True):
        np.testing.assert_allclose(array, times * total, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["dma_copy", "tensor_copy"]), dtypes, dtypes, shapes, seeds)
def test_copies_cast_to_nearest_even(
    name: str, source: Any, target: Any, shape: tuple[int, int], seed: int
) -> None:
    x = data(shape, FLOATS[source], seed)

    def body(x: Any, y: Any, out: Any) -> None:
        getattr(nisa, name)(dst=out, src=x)

    (found,) = bench(body)(x, x, (shape,), target)
    expected = x.astype(np.float32).astype(FLOATS[target])
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_float_to_integer_rounds_to_even_and_saturates() -> None:
    values = [0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, 126.6, 3e9, -3e9, np.nan]
    x = np.array([values], np.float32)

    def body(x: Any, y: Any, out: Any) -> None:
        nisa.tensor_copy(dst=out, src=x)

    expected = {
        nl.int8: [0, 2, 2, 0, -2, 127, -128, 127, 127, -128, 0],
        nl.uint8: [0, 2, 2, 0, 0, 255, 0, 127, 255, 0, 0],
        nl.int32: [0, 2, 2, 0, -2, 300, -300, 127, 2**31 - 1, -(2**31), 0],
    }
    for dtype, wanted in expected.items():
        (found,) = bench(body)(x, x, (x.shape,), dtype)
        assert found.tolist() == [wanted]


@pytest.mark.parametrize(("dtype", "value"), [(nl.float32, -1.5), (nl.int16, 7), (nl.uint8, 255)])
def test_memset(dtype: Any, value: float) -> None:
    def body(x: Any, y: Any, out: Any) -> None:
        nisa.memset(dst=out, value=value)

    x = np.ones((2, 3), np.float32)
    (found,) = bench(body)(x, x, ((4, 5),), dtype)
    assert (found == value).all()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_chains_of_views_mean_what_numpy_means(draw: st.DataObject) -> None:
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(6, 4, 5)
    keys = []
    expected = x
    for _ in range(draw.draw(st.integers(1, 3))):
        key: list[Any] = []
        for size in expected.shape:
            start = draw.draw(st.integers(0, size - 1))
            stop = draw.draw(st.integers(start + 1, size))
            key.append(slice(start, stop, draw.draw(st.integers(1, 3))))
        if len(key) > 1 and draw.draw(st.booleans()):
            key[-1] = draw.draw(st.integers(0, expected.shape[-1] - 1))
        keys.append(tuple(key))
        expected = expected[keys[-1]]

    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        view = x
        for key in keys:
            view = view[key]
        out = nl.ndarray(view.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=view)
        return out

    np.testing.assert_array_equal(kernel(x), expected)


def test_ap_repeats_and_steps() -> None:
    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        out = nl.ndarray((3, 2, 2), dtype=x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=x.ap(pattern=[[0, 3], [4, 2], [2, 2]], offset=1))
        return out

    x = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(kernel(x), np.broadcast_to([[1, 3], [5, 7]], (3, 2, 2)))


COVERED = {
    "dma_copy": test_copies_cast_to_nearest_even,
    "tensor_copy": test_copies_cast_to_nearest_even,
    "memset": test_memset,
    "tensor_tensor": test_tensor_tensor,
    "tensor_scalar": test_tensor_scalar,
    "scalar_tensor_tensor": test_scalar_tensor_tensor,
    "tensor_reduce": test_tensor_reduce,
    "reciprocal": test_reciprocal,
    "activation": test_accumulators_go_on_until_they_are_reset,
    "activation_reduce": test_activation_and_its_sum,
}


SEVERAL = {"shape": (3, 17), "dtype": nl.float32, "seed": 1}
"""One example; hypothesis would spend its time on shrinking a failure we ask for."""


def reversed_subtract(x: Array, y: Array, out: Array | None = None) -> Array:
    return np.subtract(y, x, out=out)


MUTANTS: list[tuple[Any, str, Any, Any, dict[str, Any]]] = [
    (operators.add, "binary", np.subtract, test_tensor_tensor, {}),
    (operators.subtract, "binary", reversed_subtract, test_tensor_tensor, {}),
    (operators.maximum, "binary", np.minimum, test_tensor_tensor, {}),
    (operators.maximum, "reduction", np.minimum, test_tensor_reduce, {"negate": False}),
    (operators.silu, "unary", operators.sigmoid.unary, test_activation_and_its_sum, {}),
    (operators.rsqrt, "unary", np.sqrt, test_activation_and_its_sum, {}),
    (operators.exp, "unary", np.exp2, test_activation_and_its_sum, {}),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m[0].name}-{m[1]}")
def test_a_wrong_operator_is_noticed(mutant: Any) -> None:
    operator, part, wrong, test, more = mutant
    inner = test.hypothesis.inner_test
    right = getattr(operator, part)
    inner(op=operator.name, **SEVERAL, **more)
    object.__setattr__(operator, part, wrong)
    try:
        with pytest.raises(AssertionError):
            inner(op=operator.name, **SEVERAL, **more)
    finally:
        object.__setattr__(operator, part, right)


def test_a_swapped_operand_order_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = elementwise.binary
    inner = test_tensor_scalar.hypothesis.inner_test
    case = {**SEVERAL, "op0": "subtract", "op1": "subtract", "rev0": False, "rev1": False}
    inner(**case)
    monkeypatch.setattr(elementwise, "binary", lambda op, reverse: right(op, not reverse))
    with pytest.raises(AssertionError):
        inner(**case)
