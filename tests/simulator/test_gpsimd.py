"""GpSimd instructions against NumPy written out element by element, and their limits."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bench import X, loaded, sbuf, stored
from tile_bench import (
    NUMPY,
    Array,
    floats,
    numbers,
    run,
    same_bits,
    seeds,
    shapes,
    small_integers,
)

from simulator.errors import NkiValidationError
from simulator.instructions import affine, gathers, gpsimd

F32 = np.float32

# --- iota, affine_select ------------------------------------------------------------------

patterns = st.lists(
    st.tuples(st.integers(-300, 300), st.integers(1, 4)).map(list), min_size=1, max_size=4
)
multipliers = st.integers(-300, 300)
offsets = st.integers(-(2**31), 2**31 - 1) | st.integers(-99, 99)


def affine_values(rows: int, pattern: Any, offset: int, multiplier: int) -> Array:
    """The documented loop, in 32-bit integers."""
    counts = [count for _, count in pattern]
    values = np.empty((rows, int(np.prod(counts))), np.int64)
    for p in range(rows):
        for at, place in enumerate(np.ndindex(*counts)):
            steps = sum(step * i for (step, _), i in zip(pattern, place, strict=True))
            values[p, at] = offset + p * multiplier + steps
    return ((values + 2**31) % 2**32 - 2**31).astype(np.int32)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 20), patterns, offsets, multipliers, st.sampled_from(list(NUMPY)), st.booleans()
)  # fmt: skip
def test_iota(
    rows: int, pattern: Any, offset: int, multiplier: int, dtype: Any, register: bool
) -> None:
    def body(out: Any) -> None:
        start = nisa.register_alloc(offset) if register else offset
        nisa.iota(out, pattern, offset=start, channel_multiplier=multiplier)

    values = affine_values(rows, pattern, offset, multiplier)
    if np.issubdtype(NUMPY[dtype], np.integer):
        info = np.iinfo(NUMPY[dtype])
        expected = np.array([[min(max(int(v), info.min), info.max) for v in r] for r in values])
    else:
        expected = values.astype(F32)
    with np.errstate(over="ignore"):
        wanted = expected.astype(NUMPY[dtype])
    (found,) = run(body, [], [(values.shape, dtype)])
    same_bits(found, wanted)


COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "equal": operator.eq, "not_equal": operator.ne, "less": operator.lt,
    "less_equal": operator.le, "greater": operator.gt, "greater_equal": operator.ge,
}  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 20), patterns, st.integers(-500, 500), multipliers,
    st.sampled_from(list(COMPARE)), floats, floats, st.booleans(), st.booleans(), seeds,
)  # fmt: skip
def test_affine_select(
    rows: int, pattern: Any, offset: int, multiplier: int, compare: str, dtype: Any, to: Any,
    register: bool, in_place: bool, seed: int,
) -> None:  # fmt: skip
    values = affine_values(rows, pattern, offset, multiplier)
    x = numbers(values.shape, dtype, seed)

    def body(x: Any, out: Any) -> None:
        start = nisa.register_alloc(offset) if register else offset
        nisa.affine_select(
            dst=x if in_place else out, pattern=pattern, channel_multiplier=multiplier,
            on_true_tile=x, on_false_value=-3.4028235e38, cmp_op=getattr(nl, compare),
            offset=start,
        )  # fmt: skip
        if in_place:
            nisa.tensor_copy(dst=out, src=x)

    if in_place:
        to = dtype
    expected = np.where(COMPARE[compare](values, 0), x.astype(F32), np.finfo(F32).min)
    with np.errstate(over="ignore"):
        wanted = expected.astype(NUMPY[to])
    (found,) = run(body, [x], [(values.shape, to)])
    same_bits(found, wanted)


def test_affine_select_keeps_the_bits_of_integers() -> None:
    x = np.array([[2**31 - 1, -(2**31) + 1, 2**24 + 1]], np.int32)

    def body(x: Any, out: Any) -> None:
        nisa.affine_select(out, [[1, 3]], 0, x, 0.0, cmp_op=nl.not_equal, offset=-1)

    (found,) = run(body, [x], [(x.shape, nl.int32)])
    assert found.tolist() == [[2**31 - 1, 0, 2**24 + 1]]


# --- segments, non-zero elements ----------------------------------------------------------

either = st.sampled_from([nl.float32, nl.int32])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), either, either)
def test_sequence_bounds(ids: list[int], dtype: Any, to: Any) -> None:
    size = len(ids)

    def body(x: Any, out: Any) -> None:
        nisa.sequence_bounds(dst=out, segment_ids=x)

    expected = np.empty((1, 2, size), NUMPY[to])
    for i, segment in enumerate(ids):
        first = last = i
        while first > 0 and ids[first - 1] == segment:
            first -= 1
        while last + 1 < size and ids[last + 1] == segment:
            last += 1
        expected[0, :, i] = (first, last + 1) if segment else (size, -1)
    (found,) = run(body, [np.array([ids], NUMPY[dtype])], [((1, 2, size), to)])
    same_bits(found, expected)


@settings(max_examples=25, deadline=None)
@given(shapes, either, seeds, st.integers(-5, 99), st.integers(-5, 5))
def test_nonzero_with_count(
    shape: tuple[int, int], dtype: Any, seed: int, offset: int, padding: int
) -> None:
    x = small_integers(shape, dtype, seed, 3)
    before = small_integers((shape[0], shape[1] + 1), nl.int32, seed + 1, 1000)

    def body(x: Any, out: Any) -> None:
        nisa.nonzero_with_count(dst=out, src=x, index_offset=offset, padding_val=padding)

    expected = before.copy()
    for row in range(0, shape[0], 16):
        places = [i + offset for i in range(shape[1]) if x[row, i] != 0]
        expected[row] = [*places, *[padding] * (shape[1] - len(places)), len(places)]
    same_bits(run(body, [x], [before])[0], expected)


def test_nonzero_with_count_touches_the_first_partition_of_each_core_only() -> None:
    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        tile, out = sbuf(64, 8), sbuf(64, 9, dtype=nl.int32)
        nisa.dma_copy(dst=tile[0:64:16, :], src=x)
        nisa.nonzero_with_count(dst=out, src=tile)
        nisa.nc_stream_shuffle(dst=out, src=out, shuffle_mask=[16] + 31 * [255])
        return stored(out[0:64:32, :])

    x = small_integers((4, 8), nl.float32, 5, 2)
    wanted = [[*np.flatnonzero(r), *[-1] * int((r == 0).sum()), int((r != 0).sum())] for r in x]
    assert kernel(x).tolist() == [wanted[1], wanted[3]]


# --- top k --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(8, 150), st.integers(1, 40), seeds, st.integers(3, 10_000))
def test_topk(groups: int, n: int, k: int, seed: int, below: int) -> None:
    k, columns = min(k, n), -(-n // 16) + seed % 2
    x = small_integers((16 * groups, columns), nl.bfloat16, seed, below)

    def body(x: Any, values: Any, index: Any) -> None:
        nisa.topk(val_dst=values, idx_dst=index, src=x, n=n)

    shape = (16 * groups, k)
    values, index = run(body, [x], [(shape, nl.bfloat16), (shape, nl.uint32)])
    for row in range(16 * groups):
        snake = [float(x[row // 16 * 16 + i % 16, i // 16]) for i in range(n)]
        assert values[row].astype(F32).tolist() == sorted(snake)[-k:]
        assert [snake[i] for i in index[row]] == values[row].astype(F32).tolist()
        assert len(set(index[row].tolist())) == k


def test_topk_prefers_lower_numbers_among_equals() -> None:
    x = np.ones((16, 1), NUMPY[nl.bfloat16])
    x[5] = 2

    def body(x: Any, values: Any, index: Any) -> None:
        nisa.topk(val_dst=values, idx_dst=index, src=x, n=16)

    _, index = run(body, [x], [((16, 3), nl.bfloat16), ((16, 3), nl.uint32)])
    assert index.tolist() == [[1, 0, 5]] * 16


# --- gathers ------------------------------------------------------------------------------

KINDS = st.sampled_from([nl.float32, nl.bfloat16, nl.int32, nl.uint8])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 8), st.integers(1, 4), st.sampled_from([1, 2, 4, 8, 16, 32]), KINDS, seeds,
    st.booleans(),
)  # fmt: skip
def test_local_gather(
    cores: int, per_row: int, each: int, dtype: Any, seed: int, all_valid: bool
) -> None:
    random = np.random.default_rng(seed)
    size = each + int(random.integers(0, 50))
    x = small_integers((16 * cores, size), dtype, seed, 250)
    index = random.integers(0, size - each + 1, (16 * cores, per_row)).astype(np.uint16)
    valid = 16 * per_row if all_valid else int(random.integers(1, 16 * per_row + 1))

    def body(x: Any, index: Any, out: Any) -> None:
        nisa.local_gather(
            dst=out, src_buffer=x, index=index, num_elem_per_idx=each,
            num_valid_indices=None if all_valid else valid,
        )  # fmt: skip

    expected = np.empty((16 * cores, valid * each), x.dtype)
    for row in range(16 * cores):
        first = row // 16 * 16
        for k in range(valid):
            start = index[first + k % 16, k // 16]
            expected[row, k * each : (k + 1) * each] = x[row, start : start + each]
    (found,) = run(body, [x, index], [(expected.shape, dtype)])
    same_bits(found, expected)


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(1, 30), KINDS, seeds)
def test_nc_n_gather(shape: tuple[int, int], count: int, dtype: Any, seed: int) -> None:
    x = small_integers(shape, dtype, seed, 250)
    index = np.random.default_rng(seed).integers(0, shape[1], (shape[0], count)).astype(np.uint32)

    def body(x: Any, index: Any, out: Any) -> None:
        nisa.nc_n_gather(dst=out, data=x, indices=index)

    expected = np.array([[x[p, i] for i in index[p]] for p in range(shape[0])], x.dtype)
    same_bits(run(body, [x, index], [(expected.shape, dtype)])[0], expected)


def test_gathers_count_elements_of_flattened_free_dimensions() -> None:
    x = numbers((16, 3, 4), nl.float32, 0)
    index = np.tile(np.array([[8], [0]], np.uint16), (8, 1))
    own = np.tile(np.array([[11, 5]], np.uint32), (16, 1))

    def body(x: Any, index: Any, own: Any, far: Any, near: Any) -> None:
        nisa.local_gather(dst=far, src_buffer=x, index=index, num_elem_per_idx=4)
        nisa.nc_n_gather(dst=near, data=x, indices=own)

    outs = [((16, 16, 4), nl.float32), ((16, 2), nl.float32)]
    far, near = run(body, [x, index, own], outs)
    np.testing.assert_array_equal(far[:, 0::2], np.repeat(x[:, 2:3], 8, axis=1))
    np.testing.assert_array_equal(far[:, 1::2], np.repeat(x[:, 0:1], 8, axis=1))
    np.testing.assert_array_equal(near, np.stack((x[:, 2, 3], x[:, 1, 1]), axis=1))


@pytest.mark.parametrize("which", ["local_gather", "nc_n_gather"])
def test_an_index_out_of_bounds_is_an_error(which: str) -> None:
    x, local = numbers((16, 5), nl.float32, 0), which == "local_gather"
    index = np.zeros((16, 1), np.uint16 if local else np.uint32)

    def body(x: Any, index: Any, out: Any) -> None:
        if local:
            nisa.local_gather(dst=out, src_buffer=x, index=index, num_elem_per_idx=2)
        else:
            nisa.nc_n_gather(dst=out, data=x, indices=index)

    outs = [((16, 32 if local else 1), nl.float32)]
    index[7] = 3 if local else 4
    run(body, [x, index], outs)
    index[7] += 1
    with pytest.raises(NkiValidationError) as caught:
        run(body, [x, index], outs)
    (found,) = caught.value.violations
    assert (found.rule, found.instruction, found.limit) == (
        "dynamic-out-of-bounds",
        which,
        "below 5",
    )
    assert found.value == "5"
    assert found.file == __file__


# --- over partitions ----------------------------------------------------------------------

FOLD: dict[str, Callable[[Array], Array]] = {
    "add": lambda x: x.astype(np.float64).sum(0),
    "average": lambda x: x.astype(np.float64).mean(0),
    "maximum": lambda x: x.astype(np.float64).max(0),
    "bitwise_and": lambda x: np.bitwise_and.reduce(x),
    "bitwise_or": lambda x: np.bitwise_or.reduce(x),
}


@pytest.mark.parametrize("op", FOLD)
@settings(max_examples=8, deadline=None)
@given(shape=shapes, seed=seeds)
def test_tensor_partition_reduce(op: str, shape: tuple[int, int], seed: int) -> None:
    dtype = nl.uint16 if op.startswith("bitwise") else nl.float32
    x = small_integers(shape, dtype, seed, 1000)

    def body(x: Any, out: Any) -> None:
        nisa.tensor_partition_reduce(out, getattr(nl, op), x)

    (found,) = run(body, [x], [((1, shape[1]), dtype)])
    np.testing.assert_allclose(found[0], FOLD[op](x), rtol=1e-6)


def test_average_is_new_in_0_5() -> None:
    def body(x: Any) -> Any:
        out = sbuf(1, 32)
        nisa.tensor_partition_reduce(out, nl.average, loaded(x))
        return stored(out)

    assert nki.jit(body).specialise(x=X).versions == ("0.5", "0.6", "0.7")


COVERED = {
    "iota": test_iota,
    "affine_select": test_affine_select,
    "sequence_bounds": test_sequence_bounds,
    "nonzero_with_count": test_nonzero_with_count,
    "topk": test_topk,
    "local_gather": test_local_gather,
    "nc_n_gather": test_nc_n_gather,
    "tensor_partition_reduce": test_tensor_partition_reduce,
}


# --- the tests would notice ---------------------------------------------------------------

FIRES = {"dynamic-out-of-bounds"}

CASES: dict[str, dict[str, Any]] = {
    "iota": {"rows": 3, "pattern": [[2, 3], [1, 2]], "offset": 5, "multiplier": 7,
             "dtype": nl.int32, "register": False},
    "affine_select": {"rows": 3, "pattern": [[-1, 6]], "offset": 1, "multiplier": 1,
                      "compare": "greater_equal", "dtype": nl.float32, "to": nl.float32,
                      "register": False, "in_place": False, "seed": 0},
    "sequence_bounds": {"ids": [1, 1, 0, 2, 2, 2], "dtype": nl.int32, "to": nl.int32},
    "nonzero_with_count": {"shape": (48, 9), "dtype": nl.int32, "seed": 1, "offset": 3,
                           "padding": -1},
    "topk": {"groups": 2, "n": 40, "k": 7, "seed": 0, "below": 1000},
    "local_gather": {"cores": 2, "per_row": 2, "each": 2, "dtype": nl.float32, "seed": 0,
                     "all_valid": True},
    "nc_n_gather": {"shape": (5, 9), "count": 6, "dtype": nl.float32, "seed": 0},
    "tensor_partition_reduce": {"op": "add", "shape": (5, 9), "seed": 0},
}  # fmt: skip
RIGHT_AFFINE = affine._affine


def without_partition(instruction: Any, slots: Any) -> Any:
    values = RIGHT_AFFINE(instruction, slots)
    return lambda views: np.repeat(values(views)[:1], instruction["dst"].shape[0], axis=0)


MUTANTS: dict[str, tuple[str, Any, str, Any]] = {
    "iota without its partition": ("iota", affine, "_affine", without_partition),
    "a mask without its partition": ("affine_select", affine, "_affine", without_partition),
    "bounds that end too late": (
        "sequence_bounds", gpsimd, "store_integers",
        lambda dtype: lambda dst, values: np.copyto(dst, values + 1, casting="unsafe")),
    "cores of 8 partitions": ("nonzero_with_count", gpsimd, "CORE", 8),
    "a snake of 8 partitions": ("topk", gpsimd, "CORE", 8),
    "gathering cores of 8 partitions": ("local_gather", gathers, "CORE", 8),
    "one index for all": (
        "nc_n_gather", np, "take_along_axis", lambda x, at, axis: x[:, at[0]]),
    "a product for a sum": (
        "tensor_partition_reduce", gpsimd, "_OVER_PARTITIONS",
        {**gpsimd._OVER_PARTITIONS, "add": np.multiply.reduce}),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_implementation_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    which, where, name, wrong = MUTANTS[mutant]
    inner = COVERED[which].hypothesis.inner_test
    inner(**CASES[which])
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises((AssertionError, ValueError)):
        inner(**CASES[which])
