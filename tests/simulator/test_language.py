"""The functions of nki.language on tiles: values, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bench import X, assert_fires_alone, loaded, stored
from tile_bench import (
    FLOATS,
    NUMPY,
    ROUNDING,
    Array,
    floats,
    numbers,
    same_bits,
    seeds,
    shapes,
    spread,
    target,
)

from simulator.language import elementwise, reductions
from simulator.specialise import TensorSpec
from simulator.targets import TARGETS


def results(body: Callable[..., Any], *inputs: Array, on: str = "trn2") -> list[Array]:
    """What body(*input tiles) returns, a tile or several, stored to HBM."""

    @nki.jit
    def kernel(xs):  # type: ignore[no-untyped-def]
        tiles = []
        for x in xs:
            tile = spread(x.shape, x.dtype)
            nisa.dma_copy(dst=tile, src=x)
            tiles.append(tile)
        found = body(*tiles)
        outs = []
        for tile in found if isinstance(found, tuple) else (found,):
            if tile.buffer is nl.psum:
                copied = nl.ndarray(tile.shape, dtype=tile.dtype)
                nisa.tensor_copy(dst=copied, src=tile)
                tile = copied
            out = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(dst=out, src=tile)
            outs.append(out)
        return tuple(outs)

    with target(on):
        return list(kernel(tuple(inputs)))


def close(found: Array, expected: Array, dtype: Any, factor: float = 2) -> None:
    """Assert values, up to a few roundings of the dtype."""
    assert found.dtype == np.dtype(NUMPY[dtype])
    assert found.shape == expected.shape
    cast = expected.astype(np.float32).astype(NUMPY[dtype]).astype(np.float64)
    error = abs(found.astype(np.float64) - cast)
    assert (error <= factor * ROUNDING[dtype] * np.maximum(abs(cast), 1)).all()


# --- element by element -------------------------------------------------------------------------

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": lambda x, y: 1.0 * (x == y),
    "not_equal": lambda x, y: 1.0 * (x != y),
    "greater": lambda x, y: 1.0 * (x > y),
    "greater_equal": lambda x, y: 1.0 * (x >= y),
    "less": lambda x, y: 1.0 * (x < y),
    "less_equal": lambda x, y: 1.0 * (x <= y),
    "logical_and": lambda x, y: 1.0 * ((x != 0) & (y != 0)),
    "logical_or": lambda x, y: 1.0 * ((x != 0) | (y != 0)),
    "logical_xor": lambda x, y: 1.0 * ((x != 0) ^ (y != 0)),
}


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=5, deadline=None)
@given(shape=shapes, dtype=floats, to=floats, seed=seeds)
def test_two_operands(shape: tuple[int, int], dtype: Any, to: Any, seed: int, name: str) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.integers(-3, 4, shape).astype(NUMPY[dtype]) for _ in range(2))
    function = getattr(nl, name)

    def body(x: Any, y: Any) -> Any:
        return function(x, y), function(x, 1.5, dtype=to), function(2, x, dtype=to)

    both, right, left = results(body, x, y)
    a, b = x.astype(np.float64), y.astype(np.float64)
    close(both, BINARY[name](a, b), dtype)
    close(right, BINARY[name](a, 1.5), to)
    close(left, BINARY[name](2.0, a), to)


@settings(max_examples=10, deadline=None)
@given(shapes, seeds, st.sampled_from([nl.int32, nl.uint32, nl.uint8]))
def test_bits(shape: tuple[int, int], seed: int, dtype: Any) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.integers(0, 200, shape).astype(NUMPY[dtype]) for _ in range(2))

    def body(x: Any, y: Any) -> Any:
        return (
            nl.bitwise_and(x, y), nl.bitwise_or(x, 0x0F), nl.bitwise_xor(x, y),
            nl.left_shift(x, 2), nl.right_shift(x, 3), nl.invert(x), nl.logical_not(x),
        )  # fmt: skip

    found = results(body, x, y)
    four, eight = x.dtype.type(4), x.dtype.type(8)
    not_x = (x == 0).astype(x.dtype)
    expected = [x & y, x | x.dtype.type(15), x ^ y, x * four, x // eight, ~x, not_x]
    for array, wanted in zip(found, expected, strict=True):
        same_bits(array, wanted)


def test_words_wrap_and_magnitudes_and_powers() -> None:
    x = np.array([[2**31 - 1, -(2**31), 7]], np.int32)
    (found,) = results(lambda x: nl.add(x, x), x)
    same_bits(found, np.array([[-2, 0, 14]], np.int32))
    y, z = np.array([[2, -3, 1.5]], np.float32), np.array([[-3, 2, -1.5]], np.float32)
    large, small = results(lambda y, z: (nl.abs_max(y, z), nl.abs_min(y, 2.0)), y, z, on="trn3")
    assert large.tolist() == [[-3, -3, -1.5]]
    assert small.tolist() == [[2, 2, 1.5]]
    (power,) = results(lambda y, z: nl.power(nl.abs(y), z), y, z)
    np.testing.assert_allclose(power, abs(y) ** z, rtol=1e-6)


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


PHI = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
UNARY: dict[str, Callable[[Array], Array]] = {
    "abs": abs,
    "square": np.square,
    "exp": np.exp,
    "log": lambda x: np.log(abs(x)),
    "sqrt": lambda x: abs(x) ** 0.5,
    "rsqrt": lambda x: abs(x) ** -0.5,
    "reciprocal": lambda x: 1 / x,
    "tanh": np.tanh,
    "sigmoid": logistic,
    "relu": lambda x: np.where(x > 0, x, 0),
    "gelu": lambda x: x * PHI(x),
    "gelu_apprx_sigmoid": lambda x: x * logistic(1.702 * x),
    "gelu_apprx_tanh": lambda x: x * logistic(2 * 0.7978845608 * (x + 0.044715 * x**3)),
    "gelu_dx": lambda x: PHI(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    "gelu_apprx_sigmoid_dx": lambda x: logistic(1.702 * x) * (1 + 1.702 * x * logistic(-1.702 * x)),
    "silu": lambda x: x * logistic(x),
    "silu_dx": lambda x: logistic(x) * (1 + x * logistic(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "erf": np.vectorize(math.erf),
    "erf_dx": lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x),
    "arctan": np.arctan,
    "sign": np.sign,
    "negative": lambda x: -x,
    "copy": lambda x: x,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
}
POSITIVE = {"log", "sqrt", "rsqrt"}


@pytest.mark.parametrize("name", UNARY)
@settings(max_examples=4, deadline=None)
@given(shape=shapes, dtype=floats, to=st.sampled_from([None, *FLOATS]), seed=seeds)
def test_one_operand(shape: tuple[int, int], dtype: Any, to: Any, seed: int, name: str) -> None:
    x = numbers(shape, dtype, seed)
    x = abs(x) if name in POSITIVE else x
    (found,) = results(lambda tile: getattr(nl, name)(tile, dtype=to), x)
    close(found, UNARY[name](x.astype(np.float64)), to or dtype)


def test_sine_and_cosine_of_large_angles() -> None:
    x = np.linspace(-5000, 5000, 128 * 64, dtype=np.float32).reshape(128, 64)
    sine, cosine, tangent = results(lambda x: (nl.sin(x), nl.cos(x), nl.tan(x)), x)
    wide = x.astype(np.float64)
    assert abs(sine - np.sin(wide)).max() < 2e-6
    assert abs(cosine - np.cos(wide)).max() < 2e-6
    steep = abs(np.cos(wide)) < 0.1
    assert abs(tangent - np.tan(wide))[~steep].max() < 1e-3


def test_rounding_of_halves_integers_and_large_numbers() -> None:
    values = [0.5, 1.5, 2.5, -0.5, -1.5, 3.0, -7.0, 0.0, 2**23 + 1, -(2**25), 1e20, 8388607.5]
    x = np.array([values], np.float32)
    found = results(lambda x: (nl.floor(x), nl.ceil(x), nl.trunc(x)), x)
    for array, way in zip(found, (np.floor, np.ceil, np.trunc), strict=True):
        np.testing.assert_array_equal(array, way(x))
    (whole,) = results(nl.floor, np.array([[5, -3]], np.int32))
    same_bits(whole, np.array([[5, -3]], np.int32))


@settings(max_examples=15, deadline=None)
@given(shapes, floats, floats, seeds, st.booleans(), st.booleans())
def test_where(
    shape: tuple[int, int], dtype: Any, to: Any, seed: int, x_number: bool, y_number: bool
) -> None:
    x, y = numbers(shape, dtype, seed), numbers(shape, dtype, seed + 1)
    condition = np.random.default_rng(seed).integers(0, 2, shape).astype(NUMPY[dtype])

    def body(condition: Any, x: Any, y: Any) -> Any:
        return nl.where(condition, 2.5 if x_number else x, -1.5 if y_number else y, dtype=to)

    (found,) = results(body, condition, x, y)
    wanted = np.where(condition != 0, 2.5 if x_number else x, -1.5 if y_number else y)
    same_bits(found, wanted.astype(np.float32).astype(NUMPY[to]))


def test_dropout() -> None:
    x = np.ones((128, 200), np.float32)
    none, some, every = results(
        lambda x: (nl.dropout(x, 0.0), nl.dropout(x, 0.25, dtype=nl.bfloat16), nl.dropout(x, 1.0)),
        x,
    )
    assert (none == 1).all()
    assert (every == 0).all()
    assert set(np.unique(some.astype(float))) == {0, 1}
    assert abs(some.astype(float).mean() - 0.75) < 0.02


# --- reductions ---------------------------------------------------------------------------------

REDUCTIONS: dict[str, Callable[[Array], Array]] = {
    "sum": lambda x: x.sum(-1),
    "max": lambda x: x.max(-1),
    "min": lambda x: x.min(-1),
    "prod": lambda x: x.prod(-1),
    "mean": lambda x: x.mean(-1),
    "var": lambda x: x.var(-1),
    "all": lambda x: 1.0 * (x != 0).all(-1),
}
blocks = st.tuples(st.integers(1, 64), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


@pytest.mark.parametrize("name", REDUCTIONS)
@settings(max_examples=8, deadline=None)
@given(
    shape=blocks, first=st.integers(1, 3), dtype=floats, to=st.sampled_from([None, nl.float32]),
    keep=st.booleans(), seed=seeds,
)  # fmt: skip
def test_reductions(
    shape: tuple[int, ...], first: int, dtype: Any, to: Any, keep: bool, seed: int, name: str
) -> None:
    x = np.random.default_rng(seed).integers(-2, 3, shape).astype(NUMPY[dtype])
    more = {} if name == "all" else {"keepdims": keep}
    axis: Any = tuple(range(first, 4))
    axis = axis[0] if len(axis) == 1 else axis
    (found,) = results(lambda t: getattr(nl, name)(t, axis, dtype=to, **more), x)
    kept = shape[:first] if first > 1 else (shape[0], 1)
    if name == "var" or (keep and name != "all"):
        kept = (*shape[:first], *[1] * (4 - first))
    rows = x.astype(np.float64).reshape(*shape[:first], -1)
    close(found, REDUCTIONS[name](rows).reshape(kept), to or dtype, 4)


@settings(max_examples=15, deadline=None)
@given(blocks, st.integers(1, 3), floats, st.sampled_from([None, *FLOATS]), seeds)
def test_softmax_and_rms_norm(
    shape: tuple[int, ...], first: int, dtype: Any, to: Any, seed: int
) -> None:
    x, w = 3 * numbers(shape, dtype, seed), numbers(shape, dtype, seed + 1)
    axis, n = tuple(range(first, 4)), math.prod(shape[first:])

    def body(x: Any, w: Any) -> Any:
        return (
            nl.softmax(x, axis=axis, dtype=to),
            nl.rms_norm(x, w, axis, n, epsilon=0.5, dtype=to),
        )

    softmax, normal = results(body, x, w)
    wide = x.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis, keepdims=True))
    close(softmax, exponentials / exponentials.sum(axis, keepdims=True), to or dtype)
    scale = ((wide**2).sum(axis, keepdims=True) / n + 0.5) ** -0.5
    close(normal, wide * scale * w.astype(np.float64), to or dtype)


def test_softmax_of_the_last_axis_is_the_default() -> None:
    x = numbers((4, 3, 5), nl.float32, 0)
    (found,) = results(nl.softmax, x)
    np.testing.assert_allclose(found.sum(-1), np.ones((4, 3)), rtol=1e-6)


# --- moving and reshaping -----------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 32), st.integers(1, 32), st.integers(1, 64), seeds)
def test_load_store_matmul_transpose(k: int, m: int, n: int, seed: int) -> None:
    @nki.jit
    def kernel(x, y):  # type: ignore[no-untyped-def]
        product = nl.ndarray((m, n), dtype=nl.float32, buffer=nl.shared_hbm)
        turned = nl.ndarray((m, k), dtype=nl.float32, buffer=nl.shared_hbm)
        narrow = nl.ndarray((k, m), dtype=nl.bfloat16, buffer=nl.shared_hbm)
        a, b = nl.load(x), nl.load(src=y)
        nl.store(product, value=nl.copy(nl.matmul(a, b, transpose_x=True)))
        nl.store(turned, nl.copy(nl.transpose(a)))
        nl.store(dst=narrow, value=nl.load(x, dtype=nl.bfloat16))
        return product, turned, narrow

    x, y = numbers((k, m), nl.float32, seed), numbers((k, n), nl.float32, seed + 1)
    product, turned, narrow = kernel(x, y)
    np.testing.assert_allclose(product, x.T.astype(float) @ y, rtol=1e-5, atol=1e-5)
    same_bits(turned, x.T)
    same_bits(narrow, x.astype(NUMPY[nl.bfloat16]))


def test_transposes_of_other_dtypes() -> None:
    x = numbers((32, 16), nl.bfloat16, 0)

    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        tile = nl.load_transpose2d(x, dtype=nl.float32)
        out = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.shared_hbm)
        nl.store(out, tile)
        turned = nl.transpose(nl.load(x), dtype=nl.float32)
        again = nl.ndarray(turned.shape, dtype=turned.dtype, buffer=nl.shared_hbm)
        nl.store(again, turned)
        return out, again

    for found in kernel(x):
        same_bits(found, x.T.astype(np.float32))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 128), st.integers(1, 4), st.integers(1, 5), floats, floats, st.booleans(), seeds
)
def test_broadcasts(
    rows: int, middle: int, columns: int, dtype: Any, to: Any, from_row: bool, seed: int
) -> None:
    x = numbers((1 if from_row else rows, 1, columns), dtype, seed)
    shape = (rows, middle, columns)
    (found,) = results(lambda t: nl.broadcast_to(t, shape, dtype=to), x)
    same_bits(found, np.broadcast_to(x, shape).astype(np.float32).astype(NUMPY[to]))


def test_a_tile_of_the_shape_is_returned_itself() -> None:
    def kernel(x: Any) -> Any:
        tile = loaded(x)
        assert nl.broadcast_to(tile, tile.shape) is tile
        wide = nl.expand_dims(tile, 1)
        assert (wide.shape, nl.expand_dims(tile, -1).shape) == ((64, 1, 32), (64, 32, 1))
        assert wide.storage is tile.storage
        nisa.tensor_copy(dst=wide, src=wide)
        return stored(tile)

    nki.jit(kernel).specialise(X)


def test_gather_flattened() -> None:
    x = numbers((16, 10), nl.float32, 0)
    indices = np.random.default_rng(1).integers(0, 10, (16, 7)).astype(np.uint32)
    (found,) = results(lambda x, i: nl.gather_flattened(x, i, dtype=nl.bfloat16), x, indices)
    same_bits(found, np.take_along_axis(x, indices.astype(int), 1).astype(NUMPY[nl.bfloat16]))


# --- operators, ranges, loops -------------------------------------------------------------------


def test_an_operator_is_a_function_and_a_constant() -> None:
    assert repr(nl.add) == "nl.add"
    assert {nl.silu: 1}[nl.silu] == 1
    assert nl.exp == nl.exp
    assert nl.exp != nl.log
    assert nl.abs_max in {nl.abs_max}
    with pytest.raises(TypeError, match=r"add\(\) missing 1 required positional argument: 'y'"):
        nl.add(1.0)
    for name in ("arange", "mgrid", "par_dim", "atomic_rmw", "no_such_thing"):
        with pytest.raises(AttributeError):
            getattr(nl, name)


def test_every_public_name_is_there() -> None:
    for name in nl.__all__:
        assert getattr(nl, name) is not None


def test_ranges_and_dynamic_slices() -> None:
    for function in (nl.affine_range, nl.sequential_range, nl.static_range, nl.range):
        assert list(function(3)) == [0, 1, 2]
        assert list(function(1, 8, 3)) == [1, 4, 7]

    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        for i in nl.dynamic_range(2):
            nl.store(out[nl.ds(i, 2)], nl.load(x[nl.ds(i, 2)]))
        return out

    x = numbers((3, 4), nl.float32, 0)
    same_bits(kernel(x), x)


def test_no_reorder_keeps_values_and_refuses_dynamic_loops() -> None:
    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        with nl.no_reorder():
            tile = nl.multiply(nl.load(x), 3.0)
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nl.store(out, tile)
        return out

    x = numbers((3, 4), nl.float32, 0)
    same_bits(kernel(x), 3 * x)


# --- limits -------------------------------------------------------------------------------------


def column_operand(x: Any) -> Any:
    tile = loaded(x)
    return stored(nl.multiply(tile, tile[:, 0:1]))


def two_numbers(x: Any) -> Any:
    stored(loaded(x))
    return nl.add(1.0, 2.0)


def a_number(x: Any) -> Any:
    stored(loaded(x))
    return nl.exp(2.0)


def a_quotient(x: Any) -> Any:
    tile = loaded(x)
    return stored(nl.divide(tile, tile))


def a_remainder(x: Any) -> Any:
    return stored(nl.mod(loaded(x), 2.0))


def a_constant_called(x: Any) -> Any:
    return stored(nl.bypass(loaded(x)))


def power_of_a_number(x: Any) -> Any:
    return stored(nl.power(loaded(x), 2.0))


def rsqrt_of_psum(x: Any) -> Any:
    bank = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(dst=bank, src=loaded(x))
    return stored(nl.rsqrt(bank))


def over_partitions(x: Any) -> Any:
    return stored(nl.sum(loaded(x), axis=(0, 1)))


def hbm_tile(x: Any) -> Any:
    return stored(nl.exp(x))


def untransposed(x: Any) -> Any:
    tile = loaded(x)
    return stored(nl.matmul(tile, tile))


def loaded_on_chip(x: Any) -> Any:
    return stored(nl.load(loaded(x)))


def stored_from_psum(x: Any) -> Any:
    bank = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(dst=bank, src=loaded(x))
    nl.store(x, bank)


def weights_of_a_row(x: Any) -> Any:
    tile = loaded(x)
    return stored(nl.rms_norm(tile, tile[0:1, :], 1, 32))


def conditions_of_a_column(x: Any) -> Any:
    tile = loaded(x)
    return stored(nl.where(tile, tile[:, 0:1], 0.0))


def broadcast_of_two(x: Any) -> Any:
    return stored(nl.broadcast_to(loaded(x)[:, 0:2], (64, 32)))


def three_dimensions(x: Any) -> Any:
    return stored(nl.transpose(loaded(x).reshape((64, 2, 16))))


def other_axis(x: Any) -> Any:
    tile, numbers = loaded(x), nl.zeros((64, 2), nl.uint32)
    return stored(nl.gather_flattened(tile, numbers, axis=1))


def before_partitions(x: Any) -> Any:
    return stored(nl.expand_dims(loaded(x), 0))


def seed_that_is_a_number(x: Any) -> Any:
    nl.random_seed(3)
    return stored(loaded(x))


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    column_operand: ("no-broadcast", "(64, 32)", "(64, 1)"),
    two_numbers: ("operand", "NkiTensor", "float"),
    a_number: ("operand", "NkiTensor", "float"),
    a_quotient: ("operator", "", "nl.divide"),
    a_remainder: ("operator", "", "nl.mod"),
    a_constant_called: ("operator", "", ""),
    power_of_a_number: ("operator", "", "nl.power"),
    rsqrt_of_psum: ("buffer", "sbuf", "psum"),
    over_partitions: ("reduce-axis", "", "(0, 1)"),
    hbm_tile: ("buffer", "psum, sbuf", "private_hbm"),
    untransposed: ("matmul-transpose", "True", "False"),
    loaded_on_chip: ("buffer", "private_hbm, shared_hbm", "sbuf"),
    stored_from_psum: ("buffer", "private_hbm, sbuf, shared_hbm", "psum"),
    weights_of_a_row: ("no-broadcast", "(64, 32)", "(1, 32)"),
    conditions_of_a_column: ("no-broadcast", "(64, 32)", "(64, 1)"),
    broadcast_of_two: ("no-broadcast", "(64, 32)", "(64, 2)"),
    three_dimensions: ("rank", "2", "3"),
    other_axis: ("gather-axis", "0", "1"),
    before_partitions: ("view", "1 to 2", "0"),
    seed_that_is_a_number: ("operand", "NkiTensor", "int"),
}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])


def test_versions_of_functions() -> None:
    def copied(x: Any) -> Any:
        bank = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.psum)
        nisa.tensor_copy(dst=bank, src=loaded(x))
        return stored(nl.copy(bank))

    def banks(x: Any) -> Any:
        assert nl.tile_size.psum_num_banks == 8
        return stored(loaded(x))

    def revision(x: Any) -> Any:
        assert nisa.get_nc_sub_version() == 0
        return stored(loaded(x))

    def magnitudes(x: Any) -> Any:
        return stored(nl.abs_max(loaded(x), 1.0))

    def plain(x: Any) -> Any:
        return stored(nl.softmax(nl.load(x)))

    firsts = {copied: "0.6", banks: "0.5", revision: "0.5", magnitudes: "0.4", plain: "0.3"}
    for body, first in firsts.items():
        program = nki.jit(body).specialise(X, target=TARGETS["trn3"])
        assert program.versions[0] == first


def test_a_call_is_at_the_kernels_line() -> None:
    def kernel(x: Any) -> Any:
        return stored(nl.softmax(loaded(x)))

    program = nki.jit(kernel).specialise(TensorSpec((4, 8), nl.float32))
    lines = {i.line for i in program.instructions if i.engine != "dma"}
    assert lines == {kernel.__code__.co_firstlineno + 1}


# --- wrong implementations are noticed ----------------------------------------------------------


def test_wrong_functions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = test_softmax_and_rms_norm.hypothesis.inner_test
    case = {"shape": (3, 2, 2, 3), "first": 2, "dtype": nl.float32, "to": None, "seed": 1}
    inner(**case)
    with monkeypatch.context() as patch:
        patch.setattr(reductions, "spread_over", first_of_each_partition)
        with pytest.raises(AssertionError):
            inner(**case)
    with monkeypatch.context() as patch:
        patch.setattr(elementwise, "_TURN_HIGH", 6.0)
        patch.setattr(elementwise, "_TURN", 6.2)
        with pytest.raises(AssertionError):
            test_sine_and_cosine_of_large_angles()


def first_of_each_partition(column: Any, shape: tuple[int, ...]) -> Any:
    strides = (column.strides[0], 0, 0, 0)
    return type(column)(column.storage, shape, strides, column.offset, column.dtype)
