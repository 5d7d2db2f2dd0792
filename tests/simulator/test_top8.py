"""Statistics and the 8 largest on the Vector engine, against NumPy written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bench import assert_fires_alone, loaded, sbuf, stored
from tile_bench import NUMPY, Array, floats, numbers, run, seeds, small_integers

from simulator.instructions import statistics, top8

F32 = np.float32

# --- statistics ---------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 128), st.integers(1, 60), floats, seeds)
def test_bn_stats(rows: int, size: int, dtype: Any, seed: int) -> None:
    x = numbers((rows, size), dtype, seed)

    def body(x: Any, out: Any) -> None:
        nisa.bn_stats(dst=out, data=x)

    expected = np.zeros((rows, 6))
    for half in range(2 if size > 1 else 1):
        part = x[:, half::2].astype(np.float64)
        count = part.shape[1]
        expected[:, 3 * half] = count
        expected[:, 3 * half + 1] = part.mean(1)
        expected[:, 3 * half + 2] = part.var(1) * count
    (found,) = run(body, [x], [((rows, 6), nl.float32)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 128), st.lists(st.integers(1, 40), min_size=1, max_size=4), floats, seeds
)  # fmt: skip
def test_bn_aggr_merges_tiles(rows: int, sizes: list[int], dtype: Any, seed: int) -> None:
    x = numbers((rows, sum(sizes)), dtype, seed) + NUMPY[dtype](3)

    def body(x: Any, out: Any) -> None:
        stats = sbuf(rows, 6 * len(sizes))
        start = 0
        for i, size in enumerate(sizes):
            nisa.bn_stats(dst=stats[:, 6 * i : 6 * i + 6], data=x[:, start : start + size])
            start += size
        nisa.bn_aggr(dst=out, data=stats)

    (found,) = run(body, [x], [((rows, 2), nl.float32)])
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found[:, 0], exact.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], exact.var(1), rtol=1e-4, atol=1e-5)


# --- the 8 largest ------------------------------------------------------------------------

eights = st.tuples(st.integers(1, 128), st.integers(8, 40))
some = st.sampled_from([nl.float32, nl.bfloat16, nl.int32, nl.uint8])


@settings(max_examples=25, deadline=None)
@given(
    eights | st.tuples(st.integers(1, 128), st.integers(500, 600)), some, seeds, st.integers(2, 250)
)
def test_max8(shape: tuple[int, int], dtype: Any, seed: int, below: int) -> None:
    x = small_integers(shape, dtype, seed, below)

    def body(x: Any, out: Any) -> None:
        nisa.max8(dst=out, src=x)

    expected = np.array([sorted(row, reverse=True)[:8] for row in x.tolist()])
    (found,) = run(body, [x], [((shape[0], 8), dtype)])
    np.testing.assert_array_equal(found, expected.astype(NUMPY[dtype]))


@settings(max_examples=25, deadline=None)
@given(eights, some, seeds, st.integers(2, 60), st.sampled_from([nl.uint16, nl.uint32]))
def test_nc_find_index8(
    shape: tuple[int, int], dtype: Any, seed: int, below: int, kind: Any
) -> None:
    x = small_integers(shape, dtype, seed, below)
    values = small_integers((shape[0], 8), dtype, seed + 1, below + 2)

    def body(x: Any, values: Any, out: Any) -> None:
        nisa.nc_find_index8(dst=out, data=x, vals=values)

    expected = np.full((shape[0], 8), np.iinfo(NUMPY[kind]).max, NUMPY[kind])
    for row in range(shape[0]):
        taken: set[int] = set()
        for i in range(8):
            for place in range(shape[1]):
                if x[row, place] == values[row, i] and place not in taken:
                    taken.add(place)
                    expected[row, i] = place
                    break
    (found,) = run(body, [x, values], [((shape[0], 8), kind)])
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(
    eights, some, seeds, st.integers(2, 60), st.sampled_from([nl.uint16, nl.uint32]), st.booleans()
)
def test_nc_match_replace8(
    shape: tuple[int, int], dtype: Any, seed: int, below: int, kind: Any, in_place: bool
) -> None:
    x = small_integers(shape, dtype, seed, below)
    values = small_integers((shape[0], 8), dtype, seed + 1, below + 2)
    imm = 1  # one of the numbers in x: a replaced element is not found again

    def body(x: Any, values: Any, out: Any, index: Any) -> None:
        if in_place:
            nisa.nc_match_replace8(dst=x, data=x, vals=values, imm=imm, dst_idx=index)
            nisa.tensor_copy(dst=out, src=x)
        else:
            nisa.nc_match_replace8(dst=out, data=x, vals=values, imm=imm)
            nisa.nc_match_replace8(dst=out, data=x, vals=values, imm=imm, dst_idx=index)

    expected = x.copy()
    index = np.full((shape[0], 8), np.iinfo(NUMPY[kind]).max, NUMPY[kind])
    for row in range(shape[0]):
        taken: set[int] = set()
        for i in reversed(range(8)):
            for place in range(shape[1]):
                if x[row, place] == values[row, i] and place not in taken:
                    taken.add(place)
                    index[row, i] = place
                    expected[row, place] = imm
                    break
    found = run(body, [x, values], [(shape, dtype), ((shape[0], 8), kind)])
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], index)


def test_the_documented_order_of_equal_values() -> None:
    x = np.array([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]], F32)
    values = np.array([[3, 8, 8, 8, 8, 8, 8, 8]], F32)

    def body(x: Any, values: Any, replaced: Any, matched: Any, found: Any) -> None:
        nisa.nc_match_replace8(dst=replaced, data=x, vals=values, imm=-1.0, dst_idx=matched)
        nisa.nc_find_index8(dst=found, data=x, vals=values)

    eight = ((1, 8), nl.uint32)
    replaced, matched, found = run(body, [x, values], [((1, 11), nl.float32), eight, eight])
    assert replaced.tolist() == [[1, 2, -1, 4] + 7 * [-1]]
    assert matched.tolist() == [[2, 10, 9, 8, 7, 6, 5, 4]]
    assert found.tolist() == [[2, 4, 5, 6, 7, 8, 9, 10]]


COVERED = {
    "bn_stats": test_bn_stats,
    "bn_aggr": test_bn_aggr_merges_tiles,
    "max8": test_max8,
    "nc_find_index8": test_nc_find_index8,
    "nc_match_replace8": test_nc_match_replace8,
}


# --- the tests would notice ---------------------------------------------------------------

ONE = {"seed": 1, "shape": (3, 17), "dtype": nl.float32}
RIGHT_FIND = top8.find


def whole_moments(x: Array) -> tuple[Any, Any, Any]:
    return x.shape[1], x.mean(1), x.var(1)


MUTANTS: dict[str, tuple[Any, str, Any, Any, dict[str, Any]]] = {
    "variance for variance * count": (
        statistics, "_moments", whole_moments, test_bn_stats,
        {"rows": 3, "size": 9, "dtype": nl.float32, "seed": 1},
    ),
    "duplicates take the same place": (
        top8, "find", lambda x, values, from_last: np.array(
            [[list(r).index(v) if v in r else -1 for v in vs]
             for r, vs in zip(x, values, strict=True)]),
        test_nc_find_index8, {**ONE, "below": 4, "kind": nl.uint32},
    ),
    "duplicates from the first": (
        top8, "find", lambda x, values, from_last: RIGHT_FIND(x, values, False),
        test_nc_match_replace8, {**ONE, "below": 4, "kind": nl.uint32, "in_place": False},
    ),
    "ascending": (
        top8, "largest", lambda x, memory: np.sort(x, axis=1)[:, -8:], test_max8,
        {**ONE, "below": 30},
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


# --- limits -------------------------------------------------------------------------------


def filled(*shape: int) -> Any:
    tile = sbuf(*shape)
    nisa.memset(dst=tile, value=1.0)
    return tile


def wide_statistics(x: Any) -> Any:
    stats = sbuf(64, 6)
    nisa.bn_stats(dst=stats, data=filled(64, 513))
    return stored(stats)


def five_statistics(x: Any) -> Any:
    stats = sbuf(64, 5)
    nisa.bn_stats(dst=stats, data=loaded(x))
    return stored(stats)


def no_triples(x: Any) -> Any:
    moments = sbuf(64, 2)
    nisa.bn_aggr(dst=moments, data=loaded(x))
    return stored(moments)


def seven_elements(x: Any) -> Any:
    eight = sbuf(64, 8)
    nisa.max8(dst=eight, src=loaded(x)[:, 0:7])
    return stored(eight)


def too_many_elements(x: Any) -> Any:
    eight = sbuf(64, 8)
    nisa.max8(dst=eight, src=filled(64, 16_385))
    return stored(eight)


def seven_largest(x: Any) -> Any:
    seven = sbuf(64, 7)
    nisa.max8(dst=seven, src=loaded(x))
    return stored(seven)


def half_the_rows(x: Any) -> Any:
    eight = sbuf(32, 8)
    nisa.max8(dst=eight, src=loaded(x))
    return stored(eight)


def three_free_dimensions(x: Any) -> Any:
    eight, tile = sbuf(64, 8), filled(64, 3, 3, 3)
    nisa.max8(dst=eight, src=tile[:, 0:2, 0:2, 0:2])
    return stored(eight)


def signed_index(x: Any) -> Any:
    tile, index = loaded(x), sbuf(64, 8, dtype=nl.int32)
    nisa.nc_find_index8(dst=index, data=tile, vals=tile[:, 0:8])
    return stored(index)


def nine_values(x: Any) -> Any:
    tile, index = loaded(x), sbuf(64, 8, dtype=nl.uint32)
    nisa.nc_find_index8(dst=index, data=tile, vals=tile[:, 0:9])
    return stored(index)


def replaced_by_a_tile(x: Any) -> Any:
    tile = loaded(x)
    nisa.nc_match_replace8(dst=tile, data=tile, vals=tile[:, 0:8], imm=tile)
    return stored(tile)


def replaced_elsewhere(x: Any) -> Any:
    tile = loaded(x)
    nisa.nc_match_replace8(dst=tile[:, 0:16], data=tile, vals=tile[:, 0:8], imm=0.0)
    return stored(tile)


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    wide_statistics: ("free-size", "1 to 512", "513"),
    five_statistics: ("shape", "6", "5"),
    no_triples: ("free-size", "a multiple of 3", "32"),
    seven_elements: ("free-size", "8 to 16384", "7"),
    too_many_elements: ("free-size", "8 to 16384", "16385"),
    seven_largest: ("shape", "8", "7"),
    half_the_rows: ("partition-mismatch", "64", "32"),
    three_free_dimensions: ("free-dimensions", "2", "3"),
    signed_index: ("dtype", "uint16, uint32", "int32"),
    nine_values: ("shape", "8", "9"),
    replaced_by_a_tile: ("immediate", "a number", ""),
    replaced_elsewhere: ("no-broadcast", "16", "32"),
}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])
