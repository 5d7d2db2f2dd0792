"""dma_transpose and dma_compute: values against NumPy, and each limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from dma_bench import PERMUTATION, by_number, hwdge, rows, summed, swdge, transposed
from hypothesis import given, settings
from hypothesis import strategies as st
from matmul_bench import Array, run
from rule_bench import X, assert_fires_alone, loaded, sbuf, stored, violations

from simulator.errors import NkiValidationError
from simulator.instructions import INSTRUCTIONS, dma
from simulator.specialise import TensorSpec
from simulator.targets import TARGETS

seeds = st.integers(0, 2**16)
WIDE = [np.float32, np.int32, ml_dtypes.bfloat16, np.float16, np.uint16]


def patterns(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Random bits, NaN and infinities among them."""
    size = np.dtype(dtype).itemsize
    raw = np.random.default_rng(seed).integers(0, 256, (*shape[:-1], shape[-1] * size), np.uint8)
    return raw.view(dtype)


def bits(x: Array) -> Array:
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


# --- dma_transpose ------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 24), min_size=2, max_size=4), st.sampled_from(WIDE), st.booleans(),
    st.booleans(), seeds,
)  # fmt: skip
def test_dma_transpose(
    shape: list[int], dtype: Any, from_sbuf: bool, named: bool, seed: int
) -> None:
    axes = PERMUTATION[len(shape)]

    def kernel(x: Any) -> Any:
        source = x[..., 1:]  # an offset, and gaps between rows
        if from_sbuf:
            source = sbuf(*shape, dtype=x.dtype)
            nisa.dma_copy(dst=source, src=x[..., 1:])
        tile = sbuf(*(shape[axis] for axis in axes[:-1]), shape[axes[-1]] + 3, dtype=x.dtype)
        dst = tile[..., 2 : 2 + shape[axes[-1]]]
        nisa.dma_transpose(dst=dst, src=source, axes=axes if named else None)
        return stored(dst)

    x = patterns((*shape[:-1], shape[-1] + 1), dtype, seed)
    expected = np.moveaxis(bits(x)[..., 1:], -1, 0)  # written out: last to front,
    if len(shape) == 4:
        expected = expected.transpose(0, 2, 3, 1)  # and the first to the back
    elif len(shape) == 3:
        expected = expected.transpose(0, 2, 1)
    np.testing.assert_array_equal(bits(run(kernel, x)), expected)


def gathered(x: Any, index: Any, count: int, skip: bool) -> Any:
    """Rows of x by an index tile, transposed; 9 where nothing was written."""
    width = x.shape[1]
    numbers = sbuf(*index.shape, dtype=index.dtype)
    nisa.dma_copy(dst=numbers, src=index)
    dst = sbuf(width, count, dtype=x.dtype)
    nisa.memset(dst=dst, value=9)
    source = x.ap(pattern=[[width, count], [1, width]], offset=0, vector_offset=numbers)
    mode = nisa.oob_mode.skip if skip else nisa.oob_mode.error
    nisa.dma_transpose(dst=dst, src=source, axes=(1, 0), oob_mode=mode)
    return stored(dst)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([(16, 1), (64, 1), (128, 1), (128, 2), (128, 3)]), st.booleans(), seeds)
def test_gathered_rows_are_transposed(shape: tuple[int, int], skip: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(0, 2**15, (40, 100)).astype(np.int16)
    index = random.integers(0, 60 if skip else 40, shape).astype(np.uint32)
    count = shape[0] * shape[1] - (16 if shape[1] > 1 else 0)
    found = run(gathered, x, index, count, skip)
    for i in range(count):
        row = int(index[i % shape[0], i // shape[0]])  # the index, column by column
        np.testing.assert_array_equal(found[:, i], x[row] if row < 40 else 9)


def test_gathered_rows_out_of_bounds_are_an_error() -> None:
    x, index = np.ones((40, 100), np.int16), np.full((16, 1), 40, np.uint32)
    with pytest.raises(NkiValidationError, match="dynamic-out-of-bounds"):
        run(gathered, x, index, 16, False)


def test_a_gathered_transpose_of_four_dimensions() -> None:
    def kernel(x: Any, index: Any) -> Any:
        _, a, b, c = x.shape
        numbers = loaded(index)
        dst = sbuf(c, a, b, 32, dtype=x.dtype)
        source = x.ap(
            pattern=[[a * b * c, 32], [b * c, a], [c, b], [1, c]], offset=0, vector_offset=numbers
        )
        nisa.dma_transpose(dst=dst, src=source)
        return stored(dst)

    x = np.arange(50 * 1 * 3 * 20, dtype=np.int16).reshape(50, 1, 3, 20)
    index = np.random.default_rng(0).integers(0, 50, (32, 1)).astype(np.uint32)
    np.testing.assert_array_equal(run(kernel, x, index), x[index[:, 0]].transpose(3, 1, 2, 0))


# --- dma_compute --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.sampled_from([np.float32, ml_dtypes.bfloat16, np.int32]),
    st.booleans(), st.booleans(), seeds,
)  # fmt: skip
def test_dma_compute(count: int, dtype: Any, to_hbm: bool, scaled: bool, seed: int) -> None:
    """Sums in fp32, cast once."""

    def kernel(x: Any) -> Any:
        buffer = nl.shared_hbm if to_hbm else nl.sbuf
        dst = nl.ndarray((20, 30), dtype=x.dtype, buffer=buffer)
        srcs = [x[i, :, 1:] if i % 2 else loaded(x[i, :, 1:]) for i in range(count)]
        scales = [1.0] * count if scaled else None
        nisa.dma_compute(dst=dst, srcs=srcs, reduce_op=nl.add, scales=scales)
        return dst if to_hbm else stored(dst)

    x = (100 * np.random.default_rng(seed).normal(size=(count, 20, 31))).astype(dtype)
    total = x[0, :, 1:].astype(np.float32)
    for each in x[1:, :, 1:]:
        total = total + each.astype(np.float32)
    expected = np.rint(total) if dtype is np.int32 else total
    np.testing.assert_array_equal(run(kernel, x), expected.astype(dtype))
    assert expected.any()


def scatter(table: Any, rows: Any, values: Any, skip: bool, swapped: bool) -> Any:
    """table[rows] += values, in place."""
    numbers, tile = loaded(rows), loaded(values)
    dst = table.ap([[table.shape[1], rows.shape[0]], [1, table.shape[1]]], vector_offset=numbers)
    again = table.ap([[table.shape[1], rows.shape[0]], [1, table.shape[1]]], vector_offset=numbers)
    nisa.dma_compute(
        dst=dst, srcs=[tile, again] if swapped else [again, tile], reduce_op=nl.add,
        oob_mode=nisa.oob_mode.skip if skip else nisa.oob_mode.error,
    )  # fmt: skip
    return table


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 40), st.sampled_from([np.float32, ml_dtypes.bfloat16]), st.booleans(),
    st.booleans(), seeds,
)  # fmt: skip
def test_rows_are_added_to(count: int, dtype: Any, skip: bool, swapped: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = random.normal(size=(50, 24)).astype(dtype)
    rows = random.permutation(80 if skip else 50)[:count].astype(np.int32)[:, None]
    values = random.normal(size=(count, 24)).astype(dtype)
    expected = table.copy()
    for row, value in zip(rows[:, 0], values, strict=True):
        if row < 50:
            expected[row] = (expected[row].astype(np.float32) + value.astype(np.float32)).astype(
                dtype
            )
    run(scatter, table, rows, values, skip, swapped)
    np.testing.assert_array_equal(bits(table), bits(expected))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.booleans(), seeds)
def test_gathered_rows_are_added(count: int, skip: bool, seed: int) -> None:
    def kernel(table: Any, rows: Any, values: Any) -> Any:
        numbers, tile = loaded(rows), loaded(values)
        source = table.ap([[24, count], [1, 24]], vector_offset=numbers)
        mode = nisa.oob_mode.skip if skip else nisa.oob_mode.error
        nisa.dma_compute(dst=tile, srcs=[tile, source], reduce_op=nl.add, oob_mode=mode)
        return stored(tile)

    random = np.random.default_rng(seed)
    table = random.normal(size=(50, 24)).astype(np.float32)
    rows = random.integers(0, 80 if skip else 50, (count, 1)).astype(np.uint32)
    values = random.normal(size=(count, 24)).astype(np.float32)
    expected = [
        value + table[row] if row < 50 else value
        for row, value in zip(rows[:, 0], values, strict=True)
    ]
    np.testing.assert_array_equal(run(kernel, table, rows, values), np.array(expected))


def test_a_row_that_comes_twice_is_an_error() -> None:
    table, values = np.zeros((50, 24), np.float32), np.ones((3, 24), np.float32)
    with pytest.raises(NkiValidationError, match="dma-indices") as caught:
        run(scatter, table, np.int32([[1], [4], [1]]), values, False, False)
    assert caught.value.violations[0].value == "2 times"
    beyond = np.int32([[60], [60], [2]])
    run(scatter, table, beyond, values, True, False)  # rows left out do not count
    assert table.sum() == 24


COVERED = {"dma_transpose": test_dma_transpose, "dma_compute": test_dma_compute}


# --- limits -------------------------------------------------------------------------------------


def other_axes(x: Any) -> Any:
    return transposed((8, 4, 16), axes=(1, 0, 2))


def five_dimensions(x: Any) -> Any:
    return transposed((2, 2, 2, 2, 2), dst=(2, 2))


def lower_rank(x: Any) -> Any:
    return transposed((16, 1, 1, 64), dst=(64, 16))


def casting(x: Any) -> Any:
    return transposed((16, 64), dst_dtype=nl.float32)


def one_byte(x: Any) -> Any:
    return transposed((16, 64), dtype=nl.float8_e4m3)


def into_hbm(x: Any) -> Any:
    out = nl.ndarray((32, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_transpose(dst=out, src=x)
    return out


def with_priority(x: Any) -> Any:
    return transposed((16, 64), priority=1)


def by_software(x: Any) -> Any:
    return transposed((16, 64), dge_mode=swdge)


def nothing_to_skip(x: Any) -> Any:
    return transposed((16, 64), oob_mode=nisa.oob_mode.skip)


def wide_hardware(x: Any) -> Any:
    return transposed((16, 64), dtype=nl.float32, dge_mode=hwdge)


def tall_hardware(x: Any) -> Any:
    return transposed((32, 64), dge_mode=hwdge)


def odd_hardware(x: Any) -> Any:
    return transposed((3, 16, 64), dge_mode=hwdge)


def thin_hardware(x: Any) -> Any:
    return transposed((2, 4, 64), dge_mode=hwdge)


def rows_of_float32(x: Any) -> Any:
    return rows(x, kind=nl.float32)


def odd_rows(x: Any) -> Any:
    return rows(x, count=100, index=(128, 2))


def few_numbers(x: Any) -> Any:
    return rows(x, count=8, index=(4, 2))


def narrow_columns(x: Any) -> Any:
    return rows(x, count=64, index=(32, 2))


def signed_numbers(x: Any) -> Any:
    return rows(x, dtype=nl.int32)


def rows_by_hardware(x: Any) -> Any:
    return rows(x, dge_mode=hwdge)


def several_columns_for_a_copy(x: Any) -> Any:
    numbers = sbuf(32, 2, dtype=nl.uint32)
    nisa.memset(dst=numbers, value=0)
    tile = sbuf(64, 32)
    nisa.dma_copy(dst=tile, src=x.ap([[32, 64], [1, 32]], vector_offset=numbers))
    return stored(tile)


def slice_of_several_columns(x: Any) -> Any:
    numbers = sbuf(32, 2, dtype=nl.uint32)
    nisa.memset(dst=numbers, value=0)
    return stored(x.ap([[32, 64], [1, 32]], vector_offset=numbers)[0:16])


def too_few_numbers(x: Any) -> Any:
    numbers = sbuf(16, 1, dtype=nl.uint32)
    return stored(x.ap([[32, 64], [1, 32]], vector_offset=numbers))


def multiplied(x: Any) -> Any:
    return summed(x, reduce_op=nl.multiply)


def no_operator(x: Any) -> Any:
    return summed(x, reduce_op=None)


def weighted(x: Any) -> Any:
    return summed(x, scales=[1.0, 0.5])


def many(x: Any) -> Any:
    return summed(x, [x] * 17)


def a_number(x: Any) -> Any:
    return summed(x, [x, 1.0])


def no_list(x: Any) -> Any:
    return summed(x, x)


def other_size(x: Any) -> Any:
    return summed(x, [x, x[:, 0:31]])


def moving_address(x: Any) -> Any:
    register = nisa.register_alloc(0)
    return summed(x, [x, x.ap([[32, 64], [1, 32]], scalar_offset=register)])


def skipped_sum(x: Any) -> Any:
    return summed(x, oob_mode=nisa.oob_mode.skip)


def sum_in_psum(x: Any) -> Any:
    bank = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.memset(dst=bank, value=0.0)
    return summed(x, [x, bank])


def repeated_rows(x: Any) -> Any:
    return by_number(x, lambda tile, source: [tile, source], unique_indices=False)


def rows_and_another(x: Any) -> Any:
    return by_number(x, lambda tile, source: [x, source])


def rows_of_three(x: Any) -> Any:
    return by_number(x, lambda tile, source: [tile, tile, source])


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    other_axes: ("transpose-axes", "(2, 1, 0)", "(1, 0, 2)"),
    five_dimensions: ("transpose-axes", "2 to 4 dimensions", "5 dimensions"),
    lower_rank: ("transpose-shape", "(64, 1, 1, 16)", "(64, 16)"),
    casting: ("transpose-dtype", "bfloat16", "float32"),
    one_byte: ("transpose-dtype", "2 or 4 bytes", "float8_e4m3"),
    into_hbm: ("buffer", "sbuf", "shared_hbm"),
    with_priority: ("gen4-only", "trn3", "trn2"),
    by_software: ("dge-mode", "unknown or hwdge or none", "swdge"),
    nothing_to_skip: ("oob-mode", "error", "skip"),
    wide_hardware: ("transpose-hwdge", "2 bytes", "float32"),
    tall_hardware: ("transpose-hwdge", "16", "32"),
    odd_hardware: ("transpose-hwdge", "1, 2, 4, 8 or 16", "3"),
    thin_hardware: ("transpose-hwdge", "a multiple of 16", "8"),
    rows_of_float32: ("transpose-gather", "2 bytes", "float32"),
    odd_rows: ("transpose-gather", "a multiple of 16", "100"),
    narrow_columns: ("transpose-gather", "128 partitions for several columns", "(32, 2)"),
    signed_numbers: ("transpose-gather", "uint32", "int32"),
    rows_by_hardware: ("dge-mode", "unknown or swdge", "hwdge"),
    several_columns_for_a_copy: ("dynamic-offset", "(P, 1)", "(32, 2)"),
    slice_of_several_columns: ("dynamic-offset", "", ""),
    too_few_numbers: ("dynamic-offset", "64", "16"),
    multiplied: ("operator", "nl.add", "nl.multiply"),
    no_operator: ("operator", "nl.add", "None"),
    weighted: ("dma-scales", "None or [1.0] * 2", "[1.0, 0.5]"),
    many: ("dma-sources", "1 to 16 tensors", "17 tensors"),
    no_list: ("dma-sources", "1 to 16 tensors", "NkiTensor"),
    a_number: ("operand", "NkiTensor", "float"),
    other_size: ("dma-size", "2048", "1984"),
    moving_address: ("dma-address", "", ""),
    skipped_sum: ("oob-mode", "error", "skip"),
    sum_in_psum: ("buffer", "private_hbm, sbuf, shared_hbm", "psum"),
    repeated_rows: ("dma-indices", "True", "False"),
    rows_and_another: ("dma-rows", "dst and one other source", "2 sources, 0 of them dst"),
    rows_of_three: ("dma-rows", "", "3 sources, 2 of them dst"),
}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])


def test_index_tiles_have_whole_groups_of_partitions() -> None:
    found = {(v.rule, v.limit, v.value) for v in violations(few_numbers)}
    assert ("transpose-gather", "(16 to 128 by 16, N)", "(4, 2)") in found


def legal_transposes(x: Any) -> Any:
    transposed((16, 64), dge_mode=hwdge)
    transposed((16, 128), dge_mode=hwdge)
    transposed((8, 2, 128), dge_mode=hwdge)
    transposed((1, 3, 16, 64), dge_mode=hwdge)
    transposed((100, 2, 3, 128), dtype=nl.float32)
    rows(x, dge_mode=swdge)
    rows(x, count=256, index=(128, 2), oob_mode=nisa.oob_mode.skip)
    return transposed((128, 128), axes=[1, 0])


def legal_sums(x: Any) -> Any:
    summed(x, [x] * 16, scales=[1] * 16)
    summed(x, (x,))
    return by_number(x, lambda tile, source: [source, tile], oob_mode=nisa.oob_mode.skip)


@pytest.mark.parametrize("body", [legal_transposes, legal_sums])
def test_legal_neighbours_pass(body: Callable[..., Any]) -> None:
    nki.jit(body).specialise(x=X)


def test_priority_passes_on_trn3() -> None:
    program = nki.jit(with_priority).specialise(x=X, target=TARGETS["trn3"])
    assert program.versions == ("0.4", "0.5", "0.6", "0.7")


def test_several_columns_need_a_program_of_their_own() -> None:
    specs = {"x": TensorSpec((40, 100), nl.int16), "index": TensorSpec((128, 2), nl.uint32)}
    nki.jit(gathered).specialise(**specs, count=256, skip=False)


# --- wrong implementations are noticed ----------------------------------------------------------


def fails(test: Any, *arguments: Any) -> None:
    with pytest.raises(AssertionError) as caught:
        test.hypothesis.inner_test(*arguments)
    assert not isinstance(caught.value, NkiValidationError)


def test_a_transpose_of_the_wrong_axes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dma.AXES, 4, (3, 2, 1, 0))
    fails(test_dma_transpose, [4, 3, 3, 5], np.float32, False, False, 0)


def test_an_index_read_row_by_row_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = INSTRUCTIONS["dma_transpose"]
    right = spec.lower

    def wrong(instruction: Any, slots: Any) -> Any:
        index = slots(instruction["src"].dynamic.rows)
        run = right(instruction, slots)

        def by_rows(views: Any) -> None:
            kept = views[index].copy()
            views[index][...] = kept.T.reshape(kept.shape)
            run(views)
            views[index][...] = kept

        return by_rows

    try:
        object.__setattr__(spec, "lower", wrong)
        fails(test_gathered_rows_are_transposed, (128, 2), False, 0)
    finally:
        object.__setattr__(spec, "lower", right)


def test_a_sum_in_low_precision_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    low = ml_dtypes.bfloat16
    monkeypatch.setattr(dma, "as_float32", lambda x: x.astype(low).astype(np.float32))
    fails(test_dma_compute, 3, np.float32, False, False, 0)
    fails(test_rows_are_added_to, 5, np.float32, False, False, 0)
