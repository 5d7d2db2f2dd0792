"""Vector instructions that scan, reduce and select, against NumPy written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bench import sbuf, stored
from tile_bench import (
    NUMPY,
    ROUNDING,
    Array,
    floats,
    numbers,
    run,
    same_bits,
    seeds,
    shapes,
    small_integers,
)

from simulator.instructions import accumulators, elementwise, selection, vector

commands = nisa.reduce_cmd
F32 = np.float32
LOWEST = np.finfo(np.float32).min

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "maximum": lambda x, y: np.where(x > y, x, y),
    "minimum": lambda x, y: np.where(x < y, x, y),
    "less": lambda x, y: F32(1) * (x < y),
    "greater_equal": lambda x, y: F32(1) * (x >= y),
}
binary = st.sampled_from(list(BINARY))
foldable = st.sampled_from(["add", "subtract", "multiply", "maximum", "minimum"])


# --- scans --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(shapes, floats, seeds, binary, binary, st.booleans(), st.booleans(), st.booleans())
def test_tensor_tensor_scan(
    shape: tuple[int, int],
    dtype: Any,
    seed: int,
    op0: str,
    op1: str,
    reverse0: bool,
    reverse1: bool,
    column: bool,
) -> None:
    x, y = numbers(shape, dtype, seed), numbers(shape, dtype, seed + 1)
    start = numbers((shape[0], 1), nl.float32, seed + 2)

    def body(x: Any, y: Any, start: Any, out: Any) -> None:
        nisa.tensor_tensor_scan(
            dst=out, data0=x, data1=y, initial=start if column else 0.75, op0=getattr(nl, op0),
            op1=getattr(nl, op1), reverse0=reverse0, reverse1=reverse1,
        )  # fmt: skip

    state = start[:, 0] if column else np.full(shape[0], 0.75, F32)
    expected = np.empty(shape, F32)
    for i in range(shape[1]):
        pair = (state, x[:, i].astype(F32)) if reverse0 else (x[:, i].astype(F32), state)
        first = F32(BINARY[op0](*pair))
        other = y[:, i].astype(F32)
        state = F32(BINARY[op1](other, first) if reverse1 else BINARY[op1](first, other))
        expected[:, i] = state
    (found,) = run(body, [x, y, start], [(shape, dtype)])
    same_bits(found, expected.astype(NUMPY[dtype]))


def cumulated(x: Array, op0: str, op1: str, imm: Any, state: Array) -> Array:
    expected = np.empty(x.shape, F32)
    for i in range(x.shape[1]):
        state = F32(BINARY[op1](F32(BINARY[op0](x[:, i].astype(F32), imm)), state))
        expected[:, i] = state
    return expected


IDENTITY = {"add": 0, "subtract": 0, "multiply": 1, "maximum": -np.inf, "minimum": np.inf}


@settings(max_examples=25, deadline=None)
@given(shapes, floats, seeds, binary, foldable, st.booleans())
def test_tensor_scalar_cumulative(
    shape: tuple[int, int], dtype: Any, seed: int, op0: str, op1: str, load: bool
) -> None:
    x, column = numbers(shape, dtype, seed), numbers((shape[0], 1), nl.float32, seed + 1)
    command = commands.load_reduce if load else commands.reset_reduce

    def body(x: Any, column: Any, first: Any, second: Any) -> None:
        operators = {"op0": getattr(nl, op0), "op1": getattr(nl, op1)}
        nisa.tensor_scalar_cumulative(
            dst=first, src=x, imm0=column, imm1=0.5 if load else None, reduce_cmd=command,
            **operators,
        )  # fmt: skip
        nisa.tensor_scalar_cumulative(
            dst=second, src=x, imm0=1.25, reduce_cmd=commands.reduce, **operators
        )

    start = np.full(shape[0], 0.5 if load else IDENTITY[op1], F32)
    first = cumulated(x, op0, op1, column[:, 0], start)
    second = cumulated(x, op0, op1, F32(1.25), first[:, -1])
    found = run(body, [x, column], [(shape, dtype), (shape, nl.float32)])
    np.testing.assert_array_equal(found[0], first.astype(NUMPY[dtype]))
    np.testing.assert_array_equal(found[1], second)


def test_free_dimensions_count_as_one() -> None:
    x = small_integers((3, 2, 4), nl.float32, 0)

    def body(x: Any, sums: Any, scan: Any, eight: Any) -> None:
        nisa.tensor_scalar_cumulative(dst=sums, src=x, op0=nl.add, op1=nl.add, imm0=0.0)
        nisa.tensor_tensor_scan(
            dst=scan, data0=x, data1=x, initial=0.0, op0=nl.add, op1=nl.multiply
        )
        nisa.max8(dst=eight, src=x)

    flat = x.reshape(3, 8)
    scan = np.zeros((3, 8), F32)
    for i in range(8):
        scan[:, i] = (flat[:, i] + (scan[:, i - 1] if i else 0)) * flat[:, i]
    found = run(body, [x], [((3, 2, 4), nl.float32), ((3, 8), nl.float32), ((3, 8), nl.float32)])
    np.testing.assert_array_equal(found[0].reshape(3, 8), np.cumsum(flat, axis=1))
    np.testing.assert_array_equal(found[1], scan)
    np.testing.assert_array_equal(found[2], np.sort(flat, axis=1)[:, ::-1])


# --- accumulators -------------------------------------------------------------------------

FOLD: dict[str, Callable[[Array], Array]] = {
    "add": lambda x: x.sum(1, keepdims=True),
    "multiply": lambda x: x.prod(1, keepdims=True),
    "maximum": lambda x: x.max(1, keepdims=True),
    "minimum": lambda x: x.min(1, keepdims=True),
}


@settings(max_examples=25, deadline=None)
@given(shapes, floats, seeds, binary, st.sampled_from(list(FOLD)), st.booleans())
def test_tensor_scalar_reduce(
    shape: tuple[int, int], dtype: Any, seed: int, op0: str, fold: str, negate: bool
) -> None:
    x, column = numbers(shape, dtype, seed), numbers((shape[0], 1), nl.float32, seed + 1)

    def body(x: Any, column: Any, out: Any, first: Any, second: Any) -> None:
        more = {"op0": getattr(nl, op0), "reduce_op": getattr(nl, fold)}
        nisa.tensor_scalar_reduce(dst=out, data=x, operand0=column, reduce_res=first, **more)
        nisa.tensor_scalar_reduce(
            dst=out, data=x, operand0=column, reduce_res=second, reduce_cmd=commands.reduce,
            reduce_res_negate=negate, **more,
        )  # fmt: skip

    values = F32(BINARY[op0](x.astype(F32), column))
    exact = values.astype(np.float64)
    once, twice = FOLD[fold](exact), FOLD[fold](np.concatenate((exact, exact), axis=1))
    found = run(body, [x, column], [(shape, dtype)] + [((shape[0], 1), nl.float32)] * 2)
    same_bits(found[0], values.astype(NUMPY[dtype]))
    size = np.abs(exact).sum(1, keepdims=True) if fold == "add" else np.abs(twice)
    for array, wanted in ((found[1], once), (found[2], -twice if negate else twice)):
        assert (np.abs(array - wanted) <= 1e-5 * np.maximum(size, np.abs(wanted))).all()


def test_a_reduction_sees_fp32_before_the_cast_and_goes_on_from_a_loaded_value() -> None:
    x = np.full((2, 4), 1 + 2**-12, F32)
    loads = np.array([[100.0], [-1.0]], F32)

    def body(x: Any, loads: Any, out: Any, total: Any, number: Any) -> None:
        more = {"dst": out, "data": x, "op0": nl.multiply, "operand0": 1.0, "reduce_op": nl.add}
        load = commands.load_reduce
        nisa.tensor_scalar_reduce(reduce_res=total, reduce_cmd=load, reduce_init=loads, **more)
        nisa.tensor_scalar_reduce(reduce_res=number, reduce_cmd=load, reduce_init=-4.0, **more)

    column = ((2, 1), nl.float32)
    found = run(body, [x, loads], [((2, 4), nl.bfloat16), column, column])
    assert (found[0] == 1).all()
    np.testing.assert_array_equal(found[1], loads + 4 + 2**-10)
    np.testing.assert_array_equal(found[2], np.full((2, 1), 2**-10))


@pytest.mark.parametrize(
    ("op", "expected"), [("abs", np.abs), ("square", np.square), ("relu", lambda x: x * (x > 0))]
)
def test_tensor_scalar_reduce_with_unary_operators(op: str, expected: Any) -> None:
    x = numbers((5, 6), nl.float32, 3)

    def body(x: Any, out: Any, top: Any) -> None:
        nisa.tensor_scalar_reduce(
            dst=out, data=x, op0=getattr(nl, op), operand0=None, reduce_op=nl.maximum,
            reduce_res=top,
        )  # fmt: skip

    found = run(body, [x], [((5, 6), nl.float32), ((5, 1), nl.float32)], on="trn3")
    np.testing.assert_array_equal(found[0], expected(x))
    np.testing.assert_array_equal(found[1], expected(x).max(1, keepdims=True))


@settings(max_examples=15, deadline=None)
@given(shapes, floats, seeds, st.booleans())
def test_exponential(shape: tuple[int, int], dtype: Any, seed: int, column: bool) -> None:
    x, top = numbers(shape, dtype, seed), numbers((shape[0], 1), nl.float32, seed + 1)

    def body(x: Any, top: Any, out: Any, total: Any, twice: Any, loaded: Any) -> None:
        more = {"dst": out, "src": x, "max_value": top if column else 1.5}
        nisa.exponential(reduce_res=total, reduce_cmd=commands.reset_reduce, **more)
        nisa.exponential(reduce_res=twice, reduce_cmd=commands.reduce, **more)
        nisa.exponential(
            reduce_res=loaded, reduce_cmd=commands.load_reduce, reduce_init=3.0, **more
        )
        nisa.exponential(**more)

    expected = np.e ** (x.astype(np.float64) - (top if column else 1.5))
    sums = expected.sum(1, keepdims=True)
    found = run(body, [x, top], [(shape, dtype)] + [((shape[0], 1), nl.float32)] * 3, on="trn3")
    np.testing.assert_allclose(found[0].astype(np.float64), expected, rtol=2 * ROUNDING[dtype])
    for array, wanted in zip(found[1:], (sums, 2 * sums, 3 + sums), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=3e-6)


def test_the_vector_accumulators_are_shared() -> None:
    x = small_integers((4, 6), nl.float32, 1)

    def body(x: Any, out: Any, total: Any) -> None:
        nisa.tensor_scalar_cumulative(dst=out, src=x, op0=nl.add, op1=nl.add, imm0=0.0)
        nisa.tensor_scalar_reduce(
            dst=out, data=x, op0=nl.add, operand0=0.0, reduce_op=nl.add, reduce_res=total,
            reduce_cmd=commands.reduce,
        )  # fmt: skip

    found = run(body, [x], [((4, 6), nl.float32), ((4, 1), nl.float32)])
    np.testing.assert_array_equal(found[1], 2 * x.sum(1, keepdims=True))


# --- selections ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    shapes, st.sampled_from(list(NUMPY)), st.sampled_from([nl.uint8, nl.uint16, nl.uint32]), seeds,
    st.booleans(),
)  # fmt: skip
def test_tensor_copy_predicated(
    shape: tuple[int, int], dtype: Any, kind: Any, seed: int, reverse: bool
) -> None:
    random = np.random.default_rng(seed)
    bits = random.bytes(2 * shape[0] * shape[1] * NUMPY[dtype](0).itemsize)
    x, before = np.frombuffer(bits, NUMPY[dtype]).reshape((2, *shape))
    predicate = small_integers(shape, kind, seed, 3)

    def body(x: Any, predicate: Any, out: Any, filled: Any) -> None:
        nisa.tensor_copy_predicated(dst=out, src=x, predicate=predicate, reverse_pred=reverse)
        nisa.tensor_copy_predicated(dst=filled, src=7, predicate=predicate, reverse_pred=reverse)

    chosen = (predicate != 0) != reverse
    found = run(body, [x, predicate], [before, before])
    same_bits(found[0], np.where(chosen, x, before))
    same_bits(found[1], np.where(chosen, NUMPY[dtype](7), before))


def test_tensor_copy_predicated_takes_operands_of_other_ranks() -> None:
    x, before = numbers((4, 6), nl.float32, 0), numbers((4, 2, 3), nl.float32, 1)
    predicate = small_integers((4, 3, 2), nl.uint8, 2, 2)

    def body(x: Any, predicate: Any, out: Any) -> None:
        nisa.tensor_copy_predicated(dst=out, src=x, predicate=predicate)

    (found,) = run(body, [x, predicate], [before])
    chosen = np.where(predicate.reshape(4, 6), x, before.reshape(4, 6))
    np.testing.assert_array_equal(found.reshape(4, 6), chosen)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 128), st.integers(1, 9), st.sampled_from(list(NUMPY)), seeds,
    st.lists(st.integers(0, 31) | st.just(255), min_size=32, max_size=32), st.booleans(),
)  # fmt: skip
def test_nc_stream_shuffle(
    rows: int, size: int, dtype: Any, seed: int, mask: list[int], in_place: bool
) -> None:
    whole = rows if in_place else -(-rows // 32) * 32
    x = small_integers((whole, size), dtype, seed, 100)
    before = x if in_place else small_integers((rows, size), dtype, seed + 1, 100)
    if in_place:  # only rows that are there can be read
        mask = [m if m == 255 else m % ((rows - 1) % 32 + 1) for m in mask]

    def body(x: Any, out: Any) -> None:
        nisa.nc_stream_shuffle(dst=out, src=out if in_place else x, shuffle_mask=mask)

    expected = before.copy()
    for row in range(rows):
        if mask[row % 32] != 255:
            expected[row] = x[row // 32 * 32 + mask[row % 32]]
    same_bits(run(body, [x], [before])[0], expected)


def test_a_shuffle_repeats_one_row_and_touches_no_others() -> None:
    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        tile = sbuf(128, 5)
        nisa.dma_copy(dst=tile[0:1, :], src=x)  # nothing else is ever written or read
        nisa.nc_stream_shuffle(dst=tile[64:84, :], src=tile[0:1, :], shuffle_mask=[0] * 32)
        nisa.nc_stream_shuffle(
            dst=tile[32:64, :], src=tile[64:96, :], shuffle_mask=[19] + 31 * [255]
        )
        return stored(tile[64:84, :]), stored(tile[32:33, :])

    x = numbers((1, 5), nl.float32, 0)
    rows, row = kernel(x)
    np.testing.assert_array_equal(rows, np.repeat(x, 20, axis=0))
    np.testing.assert_array_equal(row, x)


@settings(max_examples=25, deadline=None)
@given(
    shapes, floats, floats, st.sampled_from([nl.int8, nl.int16, nl.uint8, nl.uint16]), seeds,
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_select_reduce(
    shape: tuple[int, int], dtype: Any, to: Any, kind: Any, seed: int, reverse: bool, number: bool
) -> None:
    x, column = numbers(shape, dtype, seed), numbers((shape[0], 1), nl.bfloat16, seed + 1)
    predicate = small_integers(shape, kind, seed, 3)

    def body(x: Any, predicate: Any, column: Any, idle: Any, out: Any, top: Any, more: Any) -> None:
        select = {
            "predicate": predicate, "on_true": x, "on_false": 0.1 if number else column,
            "reverse_pred": reverse,
        }  # fmt: skip
        nisa.select_reduce(dst=idle, **select)
        nisa.select_reduce(
            dst=out,
            reduce_res=top,
            reduce_cmd=commands.reset_reduce,
            reduce_op=nl.maximum,
            **select,
        )
        nisa.select_reduce(
            dst=out, reduce_res=more, reduce_cmd=commands.reduce,
            **{**select, "on_false": 10.0},
        )  # fmt: skip

    chosen = (predicate != 0) != reverse
    values = np.where(chosen, x.astype(F32), F32(0.1) if number else column.astype(F32))
    second = np.where(chosen, x.astype(F32), F32(10))
    top = values.max(1, keepdims=True)
    single = ((shape[0], 1), nl.float32)
    found = run(body, [x, predicate, column], [(shape, to), (shape, to), single, single])
    same_bits(found[0], values.astype(NUMPY[to]))
    same_bits(found[1], second.astype(NUMPY[to]))
    same_bits(found[2], top)
    same_bits(found[3], np.maximum(top, second.max(1, keepdims=True)))


COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "equal": lambda x, y: x == y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
}
comparison = st.sampled_from(list(COMPARE))


@settings(max_examples=25, deadline=None)
@given(shapes, floats, floats, seeds, comparison, comparison, st.integers(-9, 9), st.booleans())
def test_range_select(
    shape: tuple[int, int], dtype: Any, to: Any, seed: int, comp0: str, comp1: str, start: int,
    explicit: bool,
) -> None:  # fmt: skip
    x = numbers(shape, dtype, seed)
    random = np.random.default_rng(seed)
    bounds = [random.integers(start, start + shape[1] + 1, (shape[0], 1)).astype(F32) for _ in "ab"]

    def body(x: Any, low: Any, high: Any, out: Any, top: Any, more: Any) -> None:
        select = {
            "dst": out, "on_true_tile": x, "comp_op0": getattr(nl, comp0),
            "comp_op1": getattr(nl, comp1), "bound0": low, "bound1": high,
        }  # fmt: skip
        if explicit:
            select["on_false_value"] = -3.4028235e38
        nisa.range_select(reduce_res=more, range_start=start + 1, **select)
        nisa.range_select(reduce_res=top, range_start=start, **select)
        nisa.range_select(reduce_cmd=commands.reset, range_start=start, **select)
        nisa.range_select(reduce_cmd=commands.reduce, range_start=start + 1, **select)
        nisa.range_select(reduce_cmd=commands.reduce, reduce_res=more, range_start=start, **select)

    def expect(first: int) -> Array:
        index = first + np.arange(shape[1])
        inside = COMPARE[comp0](index, bounds[0]) & COMPARE[comp1](index, bounds[1])
        return np.where(inside, x.astype(F32), LOWEST)

    values, others = expect(start), expect(start + 1)
    top = values.max(1, keepdims=True)
    single = ((shape[0], 1), nl.float32)
    found = run(body, [x, *bounds], [(shape, to), single, single])
    with np.errstate(over="ignore"):
        same_bits(found[0], values.astype(NUMPY[to]))
    same_bits(found[1], top)
    same_bits(found[2], np.maximum(top, others.max(1, keepdims=True)))


COVERED = {
    "tensor_tensor_scan": test_tensor_tensor_scan,
    "tensor_scalar_cumulative": test_tensor_scalar_cumulative,
    "tensor_scalar_reduce": test_tensor_scalar_reduce,
    "exponential": test_exponential,
    "tensor_copy_predicated": test_tensor_copy_predicated,
    "nc_stream_shuffle": test_nc_stream_shuffle,
    "select_reduce": test_select_reduce,
    "range_select": test_range_select,
}


# --- the tests would notice ---------------------------------------------------------------

ONE = {"seed": 1, "shape": (3, 17), "dtype": nl.float32}
"""One example; hypothesis would spend its time on shrinking a failure we ask for."""


def not_accumulated(instruction: Any, slots: Any, operator: Any, count: int) -> Any:
    collect, read_out = RIGHT_ACCUMULATE(instruction, slots, operator, count)
    registers = slots.accumulators("vector")

    def forgetful(views: Any, values: Any) -> None:
        views[registers][...] = 0
        collect(views, values)

    return forgetful, read_out


RIGHT_ACCUMULATE = accumulators.accumulate
RIGHT_MASK = selection.mask_of
RIGHT_ROWS = selection._shuffled_rows


MUTANTS: dict[str, tuple[Any, str, Any, Any, dict[str, Any]]] = {
    "scan operands swapped": (
        vector, "binary", lambda op, reverse: elementwise.binary(op, not reverse),
        test_tensor_tensor_scan,
        {**ONE, "op0": "subtract", "op1": "subtract", "reverse0": False, "reverse1": False,
         "column": True},
    ),
    "sum - value for value - sum": (
        vector, "_cumulate",
        lambda op, values, state: np.subtract.accumulate(values, axis=1, out=values),
        test_tensor_scalar_cumulative, {**ONE, "op0": "add", "op1": "subtract", "load": False},
    ),
    "accumulators forget": (
        vector, "accumulate", not_accumulated, test_tensor_scalar_reduce,
        {**ONE, "op0": "add", "fold": "add", "negate": False},
    ),
    "exp of 2": (np, "exp", np.exp2, test_exponential, {**ONE, "column": True}),
    "predicate reversed": (
        selection, "mask_of", lambda p, shape, reverse, slots: RIGHT_MASK(
            p, shape, not reverse, slots),
        test_tensor_copy_predicated, {**ONE, "kind": nl.uint8, "reverse": False},
    ),
    "select_reduce's predicate reversed": (
        selection, "mask_of", lambda p, shape, reverse, slots: RIGHT_MASK(
            p, shape, not reverse, slots),
        test_select_reduce,
        {**ONE, "to": nl.float32, "kind": nl.uint8, "reverse": False, "number": True},
    ),
    "shuffle the other way": (
        selection, "_shuffled_rows", lambda i: RIGHT_ROWS(i)[::-1], test_nc_stream_shuffle,
        {"rows": 32, "size": 3, "dtype": nl.float32, "seed": 0, "in_place": False,
         "mask": [*range(1, 32), 0]},
    ),
    "range of one bound": (
        np, "logical_and", lambda x, y, out=None: x, test_range_select,
        {**ONE, "to": nl.float32, "comp0": "greater_equal", "comp1": "less", "start": 0,
         "explicit": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_implementation_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong, test, case = MUTANTS[mutant]
    inner = test.hypothesis.inner_test
    inner(**case)
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        inner(**case)
