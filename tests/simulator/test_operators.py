"""Operators of element-wise instructions: bits, integers, truth values, engines, and limits."""

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
from rule_bench import X, assert_fires_alone, loaded, sbuf, stored, violations
from tile_bench import NUMPY, ROUNDING, Array, floats, numbers, run, same_bits, seeds, shapes

from simulator import operators
from simulator.instructions import bits, datapath
from simulator.targets import TARGETS

INTEGERS = [nl.int8, nl.uint8, nl.int16, nl.uint16, nl.int32, nl.uint32]
integers = st.sampled_from(INTEGERS)


def any_bits(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Integers of every size: a quarter are the smallest, the largest, 0 and 1."""
    kind = np.dtype(NUMPY[dtype])
    random = np.random.default_rng(seed)
    values = random.integers(0, 256, (*shape, kind.itemsize), np.uint8).view(kind)[..., 0]
    info = np.iinfo(kind)
    edges = np.array([info.min, info.max, 0, 1], kind)[random.integers(0, 4, shape)]
    return np.where(random.random(shape) < 0.25, edges, values)


def unsigned(x: Array) -> list[int]:
    """Each element's bits as a Python integer."""
    return [int(v) % 2 ** (8 * x.dtype.itemsize) for v in x.reshape(-1)]


def with_bits(values: list[int], like: Array) -> Array:
    """The integers whose bits these are."""
    size = like.dtype.itemsize
    data = b"".join((v % 2 ** (8 * size)).to_bytes(size, "little") for v in values)
    return np.frombuffer(data, like.dtype).reshape(like.shape)


BITVEC: dict[str, Callable[[int, int], int]] = {
    "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b,
    "bitwise_xor": lambda a, b: a ^ b,
    "left_shift": lambda a, b: a << b if b < 40 else 0,
    "right_shift": lambda a, b: a >> b if b < 40 else 0,
}


def shift_counts(y: Array, op: str) -> Array:
    return y % 40 if op.endswith("shift") else y


# --- bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", BITVEC)
@settings(max_examples=8, deadline=None)
@given(shape=shapes, dtype=integers, seed=seeds)
def test_bitvec_tensor_tensor(shape: tuple[int, int], dtype: Any, seed: int, op: str) -> None:
    x, y = any_bits(shape, dtype, seed), shift_counts(any_bits(shape, dtype, seed + 1), op)

    def body(x: Any, y: Any, out: Any) -> None:
        nisa.tensor_tensor(dst=out, data1=x, data2=y, op=getattr(nl, op))

    (found,) = run(body, [x, y], [(shape, dtype)])
    expected = [BITVEC[op](a, b) for a, b in zip(unsigned(x), unsigned(y), strict=True)]
    same_bits(found, with_bits(expected, x))


@settings(max_examples=25, deadline=None)
@given(
    shapes, integers, seeds, st.sampled_from([*BITVEC, "invert"]), st.sampled_from(list(BITVEC)),
    st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_bitvec_tensor_scalar(
    shape: tuple[int, int], dtype: Any, seed: int, op0: str, op1: str, rev0: bool, rev1: bool,
    column: bool,
) -> None:  # fmt: skip
    x = any_bits(shape, dtype, seed)
    y = any_bits((shape[0], 1), dtype, seed + 1) % 7
    rev0 = rev0 and op0 != "invert"

    def body(x: Any, y: Any, out: Any) -> None:
        nisa.tensor_scalar(
            dst=out, data=x, op0=getattr(nl, op0), operand0=None if op0 == "invert" else 5,
            reverse0=rev0, op1=getattr(nl, op1), operand1=y if column else 3, reverse1=rev1,
        )  # fmt: skip

    width = 2 ** (8 * x.dtype.itemsize)

    def apply(op: str, a: int, b: int, reverse: bool) -> int:
        if op == "invert":
            return width - 1 - a
        return BITVEC[op](b, a) % width if reverse else BITVEC[op](a, b) % width

    (found,) = run(body, [x, y], [(shape, dtype)])
    second = unsigned(np.broadcast_to(y, shape)) if column else [3] * x.size
    expected = [
        apply(op1, apply(op0, a, 5, rev0), b, rev1)
        for a, b in zip(unsigned(x), second, strict=True)
    ]
    same_bits(found, with_bits(expected, x))


def test_bits_of_different_widths_are_extended_by_their_sign_and_cut() -> None:
    x = np.array([[-1, 5, -128]], np.int8)

    def body(x: Any, wide: Any, narrow: Any) -> None:
        nisa.tensor_scalar(dst=wide, data=x, op0=nl.bitwise_xor, operand0=0x1FF)
        nisa.tensor_scalar(dst=narrow, data=wide, op0=nl.bitwise_or, operand0=0x100)

    wide, narrow = run(body, [x], [((1, 3), nl.uint32), ((1, 3), nl.uint8)])
    assert wide.tolist() == [[0xFFFFFE00, 0x1FA, 0xFFFFFE7F]]
    assert narrow.tolist() == [[0x00, 0xFA, 0x7F]]


@pytest.mark.parametrize("op", ["bitwise_and", "bitwise_or", "bitwise_xor"])
@settings(max_examples=6, deadline=None)
@given(shape=shapes, dtype=integers, seed=seeds)
def test_bitvec_tensor_reduce(shape: tuple[int, int], dtype: Any, seed: int, op: str) -> None:
    x = any_bits(shape, dtype, seed)

    def body(x: Any, out: Any) -> None:
        nisa.tensor_reduce(dst=out, op=getattr(nl, op), data=x, axis=1)

    (found,) = run(body, [x], [((shape[0], 1), dtype)])
    expected = []
    for row in x:
        value, *others = unsigned(row)
        for other in others:
            value = BITVEC[op](value, other)
        expected.append(value)
    same_bits(found, with_bits(expected, x[:, :1]))


# --- 32-bit integers ----------------------------------------------------------------------------

EXACT: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": max,
    "minimum": min,
    "greater": lambda a, b: a > b,
    "equal": lambda a, b: a == b,
    "logical_xor": lambda a, b: bool(a) != bool(b),
}
words = st.sampled_from([nl.int32, nl.uint32])


@pytest.mark.parametrize("op", EXACT)
@settings(max_examples=8, deadline=None)
@given(shape=shapes, first=words, second=words, to=words, seed=seeds)
def test_words_are_exact_on_gpsimd(
    shape: tuple[int, int], first: Any, second: Any, to: Any, seed: int, op: str
) -> None:
    x, y = any_bits(shape, first, seed), any_bits(shape, second, seed + 1)

    def body(x: Any, y: Any, out: Any) -> None:
        nisa.tensor_tensor(dst=out, data1=x, data2=y, op=getattr(nl, op))

    (found,) = run(body, [x, y], [(shape, to)])
    pairs = zip(x.reshape(-1).tolist(), y.reshape(-1).tolist(), strict=True)
    expected = [int(EXACT[op](a, b)) for a, b in pairs]
    same_bits(found, with_bits(expected, np.empty(shape, NUMPY[to])))


def test_words_go_through_fp32_on_vector_and_in_psum() -> None:
    large = np.array([[2**24 + 1, -(2**24) - 3]], np.int32)

    def body(x: Any, asked: Any, evicted: Any, exact: Any) -> None:
        bank = nl.ndarray(x.shape, dtype=nl.int32, buffer=nl.psum)
        zero = nl.zeros(x.shape, nl.int32)
        nisa.tensor_tensor(dst=asked, data1=x, data2=zero, op=nl.add, engine=nisa.engine.vector)
        nisa.tensor_tensor(dst=bank, data1=x, data2=zero, op=nl.add)
        nisa.tensor_copy(dst=evicted, src=bank)
        nisa.tensor_tensor(dst=exact, data1=x, data2=zero, op=nl.add)

    asked, evicted, exact = run(body, [large], [((1, 2), nl.int32)] * 3)
    assert asked.tolist() == evicted.tolist() == [[2**24, -(2**24) - 4]]
    assert exact.tolist() == large.tolist()


def engines_of(body: Callable[[Any], None], dtype: Any = nl.float32) -> list[str]:
    """The engines of what body(tile) emits."""

    def kernel(x: Any) -> Any:
        tile = sbuf(64, 32, dtype=dtype)
        nisa.memset(dst=tile, value=1)
        body(tile)
        return stored(tile)

    program = nki.jit(kernel).specialise(X)
    return [i.engine for i in program.instructions[1:-1]]


def test_engines_that_are_chosen_by_default() -> None:
    def tensor_tensors(t: Any) -> None:
        for op in (nl.add, nl.bitwise_and, nl.power):
            nisa.tensor_tensor(dst=t, data1=t, data2=t, op=op)

    assert engines_of(tensor_tensors, nl.int32) == ["gpsimd", "vector", "gpsimd"]
    assert engines_of(tensor_tensors, nl.int16) == ["vector", "vector", "gpsimd"]

    def tensor_scalars(t: Any) -> None:
        nisa.tensor_scalar(dst=t, data=t, op0=nl.rsqrt, operand0=0.0)
        nisa.tensor_scalar(dst=t, data=t, op0=nl.rsqrt, operand0=0, engine=nisa.engine.gpsimd)
        nisa.tensor_scalar(dst=t, data=t, op0=nl.abs, operand0=None)
        nisa.tensor_scalar(
            dst=t, data=t, op0=nl.multiply, operand0=2.0, op1=nl.add, operand1=1.0,
            engine=nisa.scalar_engine,
        )  # fmt: skip

    assert engines_of(tensor_scalars) == ["gpsimd", "gpsimd", "vector", "scalar"]


@settings(max_examples=20, deadline=None)
@given(shapes, integers, st.sampled_from(["add", "subtract", "multiply", "maximum"]), seeds)
def test_small_integers_through_fp32_round_and_saturate(
    shape: tuple[int, int], dtype: Any, op: str, seed: int
) -> None:
    x = any_bits(shape, dtype, seed)

    def body(x: Any, out: Any) -> None:
        nisa.tensor_scalar(dst=out, data=x, op0=getattr(nl, op), operand0=1.5)

    (found,) = run(body, [x], [(shape, dtype)])
    ways: dict[str, Any] = {
        "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum,
    }  # fmt: skip
    info = np.iinfo(x.dtype)
    wide = np.rint(ways[op](x.astype(np.float32), np.float32(1.5))).astype(np.float64)
    np.testing.assert_array_equal(found, np.clip(wide, info.min, info.max).astype(np.int64))


# --- truth values, magnitudes, powers, one operand ----------------------------------------------

TRUTH: dict[str, Callable[[Array, Array], Array]] = {
    "logical_and": lambda x, y: (x != 0) & (y != 0),
    "logical_or": lambda x, y: (x != 0) | (y != 0),
    "logical_xor": lambda x, y: (x != 0) != (y != 0),
    "greater": lambda x, y: x > y,
    "less_equal": lambda x, y: x <= y,
    "not_equal": lambda x, y: x != y,
}


@settings(max_examples=30, deadline=None)
@given(
    shapes, floats, st.sampled_from([nl.float32, nl.bfloat16, nl.uint8, nl.int32]), seeds,
    st.sampled_from(list(TRUTH)), st.sampled_from(list(TRUTH)), st.booleans(),
)  # fmt: skip
def test_truth_is_one_or_zero_in_every_dtype(
    shape: tuple[int, int], dtype: Any, to: Any, seed: int, op0: str, op1: str, reverse: bool
) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.integers(-1, 2, shape).astype(NUMPY[dtype]) for _ in range(2))

    def body(x: Any, y: Any, both: Any, one: Any, two: Any) -> None:
        nisa.tensor_tensor(dst=both, data1=x, data2=y, op=getattr(nl, op0))
        nisa.tensor_scalar(dst=one, data=x, op0=getattr(nl, op0), operand0=0.5, reverse0=reverse)
        nisa.scalar_tensor_tensor(
            dst=two, data=x, op0=getattr(nl, op0), operand0=1.0, op1=getattr(nl, op1),
            operand1=y, reverse1=reverse,
        )  # fmt: skip

    found = run(body, [x, y], [(shape, to)] * 3)
    a, b = x.astype(np.float32), y.astype(np.float32)
    half, one = np.float32(0.5), np.float32(1)
    first = 1.0 * TRUTH[op0](a, one)
    expected = [
        TRUTH[op0](a, b),
        TRUTH[op0](half, a) if reverse else TRUTH[op0](a, half),
        TRUTH[op1](b, first) if reverse else TRUTH[op1](first, b),
    ]
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array.astype(np.float32), 1.0 * wanted)


@settings(max_examples=10, deadline=None)
@given(shapes, floats, seeds)
def test_magnitudes_keep_their_sign_and_ties_give_the_second(
    shape: tuple[int, int], dtype: Any, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.integers(-3, 4, shape).astype(NUMPY[dtype]) for _ in range(2))

    def body(x: Any, y: Any, large: Any, small: Any) -> None:
        nisa.tensor_tensor(dst=large, data1=x, data2=y, op=nl.abs_max)
        nisa.tensor_scalar(dst=small, data=x, op0=nl.abs_min, operand0=-2.0)

    large, small = run(body, [x, y], [(shape, dtype)] * 2, on="trn3")
    a, b = x.astype(float), y.astype(float)
    same_bits(large, np.where(abs(a) > abs(b), a, b).astype(NUMPY[dtype]))
    same_bits(small, np.where(abs(a) < 2, a, -2.0).astype(NUMPY[dtype]))


@settings(max_examples=10, deadline=None)
@given(shapes, floats, seeds)
def test_power(shape: tuple[int, int], dtype: Any, seed: int) -> None:
    x, y = abs(numbers(shape, dtype, seed)), numbers(shape, dtype, seed + 1)

    def body(x: Any, y: Any, out: Any) -> None:
        nisa.tensor_tensor(dst=out, data1=x, data2=y, op=nl.power)

    (found,) = run(body, [x, y], [(shape, dtype)])
    expected = x.astype(np.float64) ** y.astype(np.float64)
    np.testing.assert_allclose(found.astype(float), expected, rtol=2 * ROUNDING[dtype])


ONE_OPERAND: dict[str, Callable[[Array], Array]] = {
    "abs": abs,
    "square": lambda x: x * x,
    "relu": lambda x: np.where(x > 0, x, 0),
    "rsqrt": lambda x: x**-0.5,
    "reciprocal": lambda x: 1 / x,
}


@pytest.mark.parametrize("op", ONE_OPERAND)
@settings(max_examples=6, deadline=None)
@given(shape=shapes, dtype=floats, seed=seeds)
def test_operators_of_one_operand(shape: tuple[int, int], dtype: Any, seed: int, op: str) -> None:
    x = numbers(shape, dtype, seed)
    x = abs(x) if op == "rsqrt" else x

    def body(x: Any, out: Any) -> None:
        nisa.tensor_scalar(
            dst=out, data=x, op0=getattr(nl, op), operand0=0.0, op1=nl.multiply, operand1=0.5
        )

    (found,) = run(body, [x], [(shape, dtype)], on="trn3")
    expected = ONE_OPERAND[op](x.astype(np.float64)) * 0.5
    np.testing.assert_allclose(found.astype(float), expected, rtol=2 * ROUNDING[dtype])


# --- reductions ---------------------------------------------------------------------------------

REDUCED: dict[str, Callable[[Array], Array]] = {
    "add": lambda x: x.sum(-1),
    "subtract": lambda x: 2 * x[..., 0] - x.sum(-1),
    "maximum": lambda x: x.max(-1),
    "minimum": lambda x: x.min(-1),
    "logical_and": lambda x: 1.0 * (x != 0).all(-1),
    "logical_or": lambda x: 1.0 * (x != 0).any(-1),
    "logical_xor": lambda x: (x != 0).sum(-1) % 2.0,
}


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 128), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
    floats, seeds, st.integers(1, 3), st.booleans(), st.sampled_from(list(REDUCED)), st.booleans(),
)  # fmt: skip
def test_tensor_reduce_of_several_axes(
    shape: tuple[int, ...], dtype: Any, seed: int, first: int, negate: bool, op: str, keep: bool
) -> None:
    x = np.random.default_rng(seed).integers(-2, 3, shape).astype(NUMPY[dtype])
    axes = tuple(range(first, 4)) if keep else [axis - 4 for axis in range(first, 4)]
    kept = shape[:first] if first > 1 else (shape[0], 1)
    result = (*shape[:first], *([1] * (4 - first))) if keep else kept

    def body(x: Any, out: Any) -> None:
        nisa.tensor_reduce(
            dst=out, op=getattr(nl, op), data=x, axis=axes, negate=negate, keepdims=keep
        )

    (found,) = run(body, [x], [(result, nl.float32)])
    expected = REDUCED[op](x.astype(np.float64).reshape(*shape[:first], -1)).reshape(result)
    np.testing.assert_array_equal(found, -expected if negate else expected)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 128), st.integers(1, 3000), seeds)
def test_sums_of_rows_are_as_exact_as_pairwise_ones(rows: int, columns: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    exact = x.astype(np.float64).sum(1)
    size = abs(x).astype(np.float64).sum(1)
    for view in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        assert (abs(datapath.row_sums(view) - exact) <= 4e-7 * size).all()


def test_rows_with_infinities_and_nan() -> None:
    x = np.array([[np.inf, 1], [np.inf, -np.inf], [np.nan, 1]] * 20, np.float32)
    with np.errstate(invalid="ignore"):
        sums = datapath.row_sums(x)
    np.testing.assert_array_equal(sums, [np.inf, np.nan, np.nan] * 20)


# --- operands in the tile that is written -------------------------------------------------------


def test_columns_of_the_destination_are_read_before_they_are_written() -> None:
    x = numbers((64, 12), nl.float32, 0)

    def body(x: Any, scalar: Any, both: Any, activated: Any, reduced: Any) -> None:
        for tile in (scalar, both, activated, reduced):
            nisa.tensor_copy(dst=tile, src=x)
        nisa.tensor_scalar(
            dst=scalar, data=scalar, op0=nl.multiply, operand0=scalar[:, 3:4], op1=nl.add,
            operand1=scalar[:, 5:6],
        )  # fmt: skip
        nisa.scalar_tensor_tensor(
            dst=both, data=x, op0=nl.multiply, operand0=2.0, op1=nl.subtract, operand1=both
        )
        nisa.activation(
            dst=activated, op=nl.silu, data=activated, scale=activated[:, 0:1],
            bias=activated[:, 1:2],
        )  # fmt: skip
        nisa.tensor_reduce(dst=reduced[:, 0:1], op=nl.maximum, data=reduced, axis=1)

    scalar, both, activated, reduced = run(body, [x], [(x.shape, nl.float32)] * 4)
    np.testing.assert_allclose(scalar, x * x[:, 3:4] + x[:, 5:6], rtol=1e-6)
    np.testing.assert_array_equal(both, 2 * x - x)
    z = x.astype(np.float64) * x[:, 0:1] + x[:, 1:2]
    np.testing.assert_allclose(activated, z / (1 + np.exp(-z)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(reduced[:, 0], x.max(1))
    np.testing.assert_array_equal(reduced[:, 1:], x[:, 1:])


def test_low_precision_tiles_stay_fp32_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NKI_PRECISE_FP", "0")
    x = numbers((8, 9), nl.float32, 3).astype(ml_dtypes.bfloat16)

    def body(x: Any, out: Any) -> None:
        tile = nl.ndarray(x.shape, dtype=nl.bfloat16)
        nisa.tensor_scalar(dst=tile, data=x, op0=nl.multiply, operand0=1 / 3)
        nisa.activation(dst=tile, op=nl.exp, data=tile)
        nisa.tensor_tensor(dst=out, data1=tile, data2=x, op=nl.multiply)

    (found,) = run(body, [x], [(x.shape, nl.float32)])
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found, np.exp(wide / 3) * wide, rtol=1e-6)


# --- limits -------------------------------------------------------------------------------------


def integers_of(x: Any, dtype: Any = nl.int32) -> Any:
    tile = sbuf(64, 32, dtype=dtype)
    nisa.dma_copy(dst=tile, src=x)
    return tile


def bits_of_floats(x: Any) -> Any:
    tile, ints = loaded(x), integers_of(x)
    nisa.tensor_tensor(dst=ints, data1=tile, data2=ints, op=nl.bitwise_and)
    return stored(ints)


def packed_sum(x: Any) -> Any:
    tile, packed = loaded(x), sbuf(64, 32, dtype=nl.float8_e4m3fn_x4)
    nisa.memset(dst=packed, value=0)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=packed, op=nl.add)
    return stored(tile)


def mixed_classes(x: Any) -> Any:
    ints = integers_of(x)
    nisa.tensor_scalar(
        dst=ints, data=ints, op0=nl.bitwise_and, operand0=1, op1=nl.add, operand1=1.0
    )
    return stored(ints)


def float_mask(x: Any) -> Any:
    ints = integers_of(x)
    nisa.tensor_scalar(dst=ints, data=ints, op0=nl.bitwise_and, operand0=1.0)
    return stored(ints)


def float_mask_column(x: Any) -> Any:
    ints, tile = integers_of(x), loaded(x)
    nisa.tensor_scalar(dst=ints, data=ints, op0=nl.bitwise_and, operand0=tile[:, 0:1])
    return stored(ints)


def integer_column(x: Any) -> Any:
    ints, tile = integers_of(x), loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=ints[:, 0:1])
    return stored(tile)


def scalar_bits(x: Any) -> Any:
    ints = integers_of(x)
    nisa.tensor_scalar(
        dst=ints, data=ints, op0=nl.bitwise_and, operand0=1, engine=nisa.engine.scalar
    )
    return stored(ints)


def second_operand(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.abs, operand0=2.0)
    return stored(tile)


def no_operand(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=None)
    return stored(tile)


def no_operator(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=None, operand0=None, op1=nl.add, operand1=1.0)
    return stored(tile)


def unary_second(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0, op1=nl.abs, operand1=0.0)
    return stored(tile)


def square_on_trn2(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.square, operand0=0.0)
    return stored(tile)


def magnitude_on_trn2(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=nl.abs_max)
    return stored(tile)


def power_of_a_number(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.power, operand0=2.0)
    return stored(tile)


def power_on_vector(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=nl.power, engine=nisa.engine.vector)
    return stored(tile)


def in_psum(x: Any, op: Callable[[Any, Any], None]) -> Any:
    bank = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(dst=bank, src=loaded(x))
    out = sbuf(64, 32)
    op(out, bank)
    return stored(out)


def power_in_psum(x: Any) -> Any:
    return in_psum(
        x, lambda out, bank: nisa.tensor_tensor(out, data1=bank, data2=loaded(x), op=nl.power)
    )


def rsqrt_in_psum(x: Any) -> Any:
    return in_psum(x, lambda out, bank: nisa.tensor_scalar(out, bank, nl.rsqrt, 0.0))


def rsqrt_on_vector(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.rsqrt, operand0=0.0, engine=nisa.engine.vector)
    return stored(tile)


def gpsimd_multiply(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(
        dst=tile, data=tile, op0=nl.multiply, operand0=2.0, engine=nisa.engine.gpsimd
    )
    return stored(tile)


def scalar_maximum(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.maximum, operand0=2.0, engine=nisa.engine.scalar)
    return stored(tile)


def bits_of_three(x: Any) -> Any:
    ints = integers_of(x)
    nisa.scalar_tensor_tensor(
        dst=ints, data=ints, op0=nl.bitwise_and, operand0=1, op1=nl.add, operand1=ints
    )
    return stored(ints)


def no_second_operator(x: Any) -> Any:
    tile = loaded(x)
    nisa.scalar_tensor_tensor(
        dst=tile, data=tile, op0=nl.add, operand0=1.0, op1=None, operand1=tile
    )
    return stored(tile)


def comparison_reduced(x: Any) -> Any:
    tile, column = loaded(x), sbuf(64, 1)
    nisa.tensor_reduce(dst=column, op=nl.greater, data=tile, axis=1)
    return stored(column)


def negated_bits(x: Any) -> Any:
    ints, column = integers_of(x), sbuf(64, 1, dtype=nl.int32)
    nisa.tensor_reduce(dst=column, op=nl.bitwise_or, data=ints, axis=1, negate=True)
    return stored(column)


def fewer_partitions_reduced(x: Any) -> Any:
    tile, column = loaded(x), sbuf(32, 1)
    nisa.tensor_reduce(dst=column, op=nl.add, data=tile, axis=1)
    return stored(column)


def axis_that_is_none(x: Any) -> Any:
    tile, column = loaded(x), sbuf(64, 1)
    nisa.tensor_reduce(dst=column, op=nl.add, data=tile, axis="free")
    return stored(column)


def divided(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=nl.divide)
    return stored(tile)


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    bits_of_floats: ("dtype", "an integer dtype", "float32"),
    packed_sum: ("dtype", "not packed", "float8_e4m3fn_x4"),
    mixed_classes: ("operator", "a bitvec operator", "nl.add"),
    float_mask: ("operand", "an integer", "1.0"),
    float_mask_column: ("dtype", "an integer dtype", "float32"),
    integer_column: ("dtype", "float32", "int32"),
    scalar_bits: ("engine", "vector", "scalar"),
    second_operand: ("operand", "None or 0", "2.0"),
    no_operand: ("operand", "a number or a column", "None"),
    no_operator: ("operand", "an operator", "None"),
    unary_second: ("operator", "", "nl.abs"),
    square_on_trn2: ("gen4-only", "generation 4", "trn2"),
    magnitude_on_trn2: ("gen4-only", "generation 4", "trn2"),
    power_of_a_number: ("operator", "", "nl.power"),
    power_on_vector: ("engine", "gpsimd", "vector"),
    power_in_psum: ("buffer", "sbuf", "psum"),
    rsqrt_in_psum: ("buffer", "sbuf", "psum"),
    rsqrt_on_vector: ("engine", "gpsimd", "vector"),
    gpsimd_multiply: ("engine", "vector", "gpsimd"),
    scalar_maximum: ("engine", "", "(nl.maximum, None)"),
    bits_of_three: ("operator", "", "nl.bitwise_and"),
    no_second_operator: ("operand", "an operator", "None"),
    comparison_reduced: ("operator", "", "nl.greater"),
    negated_bits: ("operand", "False", "True"),
    fewer_partitions_reduced: ("partition-mismatch", "64", "32"),
    axis_that_is_none: ("reduce-axis", "", "free"),
    divided: ("operator", "", "nl.divide"),
}
FIRES = {"bitvec-width", "indirect"}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])


@pytest.mark.parametrize("body", [square_on_trn2, magnitude_on_trn2], ids=lambda b: b.__name__)
def test_trn3_has_what_trn2_has_not(body: Callable[..., Any]) -> None:
    nki.jit(body).specialise(X, target=TARGETS["trn3"])


def test_bits_of_different_widths_are_warned_of() -> None:
    def kernel(x: Any, dtype: Any) -> Any:
        ints = integers_of(x, dtype)
        nisa.tensor_scalar(dst=ints, data=integers_of(x), op0=nl.bitwise_and, operand0=1)
        return stored(ints)

    for dtype, rules in ((nl.int16, ["bitvec-width"]), (nl.uint32, [])):
        program = nki.jit(kernel).specialise(X, dtype=dtype)
        assert [warning.rule for warning in program.warnings] == rules


def test_later_operators_narrow_the_versions_in_every_program() -> None:
    def kernel(x: Any, op: Any) -> Any:
        tile = loaded(x)
        nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=op)
        nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=op)
        return stored(tile)

    for op, first in ((nl.abs_max, "0.4"), (nl.maximum, "0.3"), (nl.abs_max, "0.4")):
        program = nki.jit(kernel).specialise(X, op=op, target=TARGETS["trn3"])
        assert program.versions[0] == first


def test_two_broken_rules_are_reported_together() -> None:
    def both(x: Any) -> Any:
        tile = loaded(x)
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.abs, operand0=1.0, engine=nisa.engine.gpsimd)
        nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=nl.invert)
        return stored(tile)

    assert [v.rule for v in violations(both)] == ["operand", "engine", "operator"]


@pytest.mark.parametrize("body", [
    lambda out, view, t: nisa.tensor_tensor(dst=out, data1=t, data2=view, op=nl.add),
    lambda out, view, t: nisa.scalar_tensor_tensor(out, view, nl.add, 1.0, nl.add, t),
    lambda out, view, t: nisa.reciprocal(dst=out, data=view),
    lambda out, view, t: nisa.activation(out, nl.exp, t, bias=view[:, 0:1]),
])  # fmt: skip
def test_operands_that_cannot_be_gathered(body: Callable[..., Any]) -> None:
    def kernel(x: Any) -> Any:
        tile, index = loaded(x), nl.zeros((64, 2), nl.uint16)
        view = tile.indirect(index)
        out = sbuf(64, view.shape[1])
        body(out, view, tile[:, 0 : view.shape[1]])
        return stored(out)

    (found,) = violations(kernel, target="trn3")
    assert found.rule == "indirect"


def test_data_is_gathered_on_trn3() -> None:
    x = numbers((32, 6), nl.float32, 0)
    index = np.tile(np.array([[4, 0, 2]], np.uint16), (32, 1))

    def body(x: Any, index: Any, out: Any) -> None:
        plain, count = nl.ndarray(x.shape, nl.float32), nl.ndarray(index.shape, nl.uint16)
        nisa.tensor_copy(dst=plain, src=x)
        nisa.tensor_copy(dst=count, src=index)
        nisa.tensor_scalar(dst=out, data=plain.indirect(count), op0=nl.add, operand0=1.0)

    (found,) = run(body, [x, index], [((32, 48), nl.float32)], on="trn3")
    np.testing.assert_array_equal(found, np.repeat(x[:, [4, 0, 2]], 16, axis=1) + 1)


# --- wrong implementations are noticed ----------------------------------------------------------

CASE = {"shape": (3, 9), "seed": 4}
MUTANTS: list[tuple[Any, str, Any, Any, dict[str, Any]]] = [
    (operators.right_shift, "binary", np.left_shift, test_bitvec_tensor_tensor,
     {"op": "right_shift", "dtype": nl.int32}),
    (operators.bitwise_xor, "reduction", np.bitwise_or, test_bitvec_tensor_reduce,
     {"op": "bitwise_xor", "dtype": nl.uint8}),
    (operators.logical_xor, "predicate", np.logical_or,
     test_truth_is_one_or_zero_in_every_dtype,
     {"op0": "logical_xor", "op1": "greater", "dtype": nl.float32, "to": nl.uint8,
      "reverse": False}),
    (operators.power, "binary", np.multiply, test_power, {"dtype": nl.float32}),
    (operators.abs_max, "binary", np.maximum,
     test_magnitudes_keep_their_sign_and_ties_give_the_second, {"dtype": nl.float32}),
    (operators.abs, "unary", np.square, test_operators_of_one_operand,
     {"op": "abs", "dtype": nl.float32}),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m[0].name}-{m[1]}")
def test_a_wrong_operator_is_noticed(mutant: Any) -> None:
    operator, part, wrong, test, more = mutant
    inner, right = test.hypothesis.inner_test, getattr(operator, part)
    inner(**CASE, **more)
    object.__setattr__(operator, part, wrong)
    try:
        with pytest.raises(AssertionError):
            inner(**CASE, **more)
    finally:
        object.__setattr__(operator, part, right)


def test_integers_through_fp32_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {**CASE, "op": "add", "first": nl.int32, "second": nl.int32, "to": nl.int32}
    inner = test_words_are_exact_on_gpsimd.hypothesis.inner_test
    inner(**case)
    monkeypatch.setattr("simulator.instructions.elementwise.is_exact", lambda instruction: False)
    with pytest.raises(AssertionError):
        inner(**case)


def test_results_written_over_an_operand_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datapath, "shares", lambda dst, others: False)
    with pytest.raises(AssertionError):
        test_columns_of_the_destination_are_read_before_they_are_written()


def test_arithmetic_shifts_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {**CASE, "op": "right_shift", "dtype": nl.int16}
    inner = test_bitvec_tensor_tensor.hypothesis.inner_test
    inner(**case)
    monkeypatch.setattr(bits, "_UNSIGNED", {1: np.int8, 2: np.int16, 4: np.int32})
    with pytest.raises(AssertionError):
        inner(**case)
