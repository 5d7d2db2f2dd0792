"""Values of matmuls and transposes against fp64 NumPy; accumulation against a plain model."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matmul_bench import (
    NUMPY,
    Array,
    assert_product,
    numbers,
    output,
    psum,
    run,
    spread,
    wide,
)

from simulator import dtypes
from simulator.errors import NkiValidationError
from simulator.instructions import INSTRUCTIONS, tensor_engine
from simulator.psum import PartlyStarted
from simulator.specialise import TensorSpec

seeds = st.integers(0, 2**16)
NARROW = [dtypes.bfloat16, dtypes.float16, dtypes.float8_e4m3, dtypes.float8_e5m2]
pairs = st.one_of(
    st.tuples(st.sampled_from(NARROW), st.sampled_from(NARROW)),
    st.just((dtypes.float32, dtypes.float32)),
)


# --- products ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 128), st.integers(1, 128), st.integers(1, 512), pairs, st.sampled_from([2, 3]),
    st.sampled_from([2, 3]), seeds,
)  # fmt: skip
def test_nc_matmul(
    depth: int, rows: int, columns: int, pair: Any, rank_a: int, rank_b: int, seed: int
) -> None:
    def kernel(a: Any, b: Any) -> Any:
        tile = psum(128, 512)
        nisa.memset(dst=tile, value=7.0)
        dst = tile[0:rows, 512 - columns : 512]
        nisa.nc_matmul(dst=dst, stationary=spread(a, rank_a), moving=spread(b, rank_b))
        return output(tile)

    a, b = numbers((depth, rows), pair[0], seed), numbers((depth, columns), pair[1], seed + 1)
    found = run(kernel, a, b)
    assert_product(found[:rows, 512 - columns :], a, b)
    untouched = np.ones(found.shape, bool)
    untouched[:rows, 512 - columns :] = False
    assert (found[untouched] == 7).all()


def product(a: Any, b: Any) -> Any:
    tile = psum(a.shape[1], b.shape[1])
    nisa.nc_matmul(dst=tile, stationary=spread(a, 2), moving=spread(b, 3))
    return output(tile)


def test_fp32_products_are_full_fp32() -> None:
    a, b = numbers((128, 100), dtypes.float32, 0), numbers((128, 300), dtypes.float32, 1)
    assert_product(run(product, a, b), a, b)
    rounded = a.astype(ml_dtypes.bfloat16).astype(np.float32)
    with pytest.raises(AssertionError):
        assert_product(run(product, rounded, b), a, b)


def test_tfloat32_operands_have_ten_bits() -> None:
    def kernel(a: Any, b: Any) -> Any:
        tile = psum(a.shape[1], b.shape[1])
        view = nl.ndarray(b.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=view, src=b)
        nisa.nc_matmul(
            dst=tile, stationary=spread(a, 2, dtypes.tfloat32), moving=view.view(dtypes.tfloat32)
        )
        return output(tile)

    def round10(x: Array) -> Array:
        step = 2.0 ** (np.floor(np.log2(np.abs(wide(x)))) - 10)
        return np.rint(wide(x) / step) * step

    a, b = numbers((64, 32), dtypes.float32, 0), numbers((64, 48), dtypes.float32, 1)
    found = run(kernel, a, b)
    assert_product(found, round10(a), round10(b))
    with pytest.raises(AssertionError):
        assert_product(found, a, b)


def test_outer_products_and_single_columns() -> None:
    for depth, rows, columns in [(1, 128, 512), (1, 1, 1), (128, 1, 512), (128, 128, 1)]:
        a, b = numbers((depth, rows), dtypes.bfloat16, 0), numbers((depth, columns), nl.bfloat16, 1)
        assert_product(run(product, a, b), a, b)


def test_infinities_and_nan_follow_arithmetic() -> None:
    a, b = np.ones((4, 3), np.float32), np.ones((4, 5), np.float32)
    a[0, 0], b[1, 2], b[2, 3] = np.inf, np.nan, -np.inf
    found = run(product, a, b)
    with np.errstate(invalid="ignore"):
        expected = np.array([[sum(a[:, m] * b[:, n]) for n in range(5)] for m in range(3)])
    np.testing.assert_array_equal(found, expected)
    assert np.isinf(found).any()
    assert np.isnan(found).any()


@pytest.mark.parametrize("mode", [nisa.matmul_perf_mode.double_row, "double_row"])
def test_double_row_contracts_over_two_rows(mode: Any) -> None:
    def kernel(a: Any, b: Any) -> Any:
        depth, _, rows = a.shape
        columns = b.shape[2]
        left = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.sbuf)
        right = nl.ndarray((depth, 2, columns + 5), dtype=b.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=left, src=a)
        nisa.dma_copy(dst=right[:, :, 0:columns], src=b)
        tile = psum(rows, columns)
        nisa.nc_matmul(
            dst=tile, stationary=left, moving=right[:, :, 0:columns],
            perf_mode=mode,
        )  # fmt: skip
        return output(tile)

    a, b = numbers((96, 2, 128), dtypes.float8_e4m3, 0), numbers((96, 2, 200), nl.float8_e5m2, 1)
    assert_product(run(kernel, a, b), a.reshape(192, 128), b.reshape(192, 200))
    program = nki.jit(kernel).specialise(a, b)
    assert program.macs() == 192 * 128 * 200


def test_tiles_of_the_array() -> None:
    """Four products of 32 rows each, at their rows and columns of processing elements."""

    def kernel(a: Any, b: Any) -> Any:
        left = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.sbuf)
        right = nl.ndarray(b.shape, dtype=b.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=left, src=a)
        nisa.dma_copy(dst=right, src=b)
        tile = psum(128, 64)
        for start in range(0, 128, 32):
            rows = slice(start, start + 32)
            nisa.nc_matmul(
                dst=tile[rows, :], stationary=left[rows, :], moving=right[rows, :],
                tile_position=(start, start), tile_size=(32, 32),
            )  # fmt: skip
        return output(tile)

    a, b = numbers((128, 32), dtypes.bfloat16, 0), numbers((128, 64), dtypes.bfloat16, 1)
    found = run(kernel, a, b)
    for start in range(0, 128, 32):
        rows = slice(start, start + 32)
        assert_product(found[rows], a[rows], b[rows])


def test_low_precision_can_be_kept_as_fp32() -> None:
    def kernel(a: Any, b: Any) -> Any:
        tiles = []
        for source in (a, b):
            tile = nl.ndarray(source.shape, dtype=nl.bfloat16, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=source)
            tiles.append(tile)
        tile = psum(a.shape[1], b.shape[1])
        nisa.nc_matmul(dst=tile, stationary=tiles[0], moving=tiles[1])
        return output(tile)

    a, b = numbers((64, 32), dtypes.float32, 0), numbers((64, 40), dtypes.float32, 1)
    assert_product(run(kernel, a, b, NKI_PRECISE_FP="0"), a, b)
    rounded = [x.astype(ml_dtypes.bfloat16) for x in (a, b)]
    assert_product(run(kernel, a, b), *rounded)


def test_gathered_operands_on_gen4() -> None:
    """`.indirect`: column i of the view is column index[i % 32, i // 32] of the tile."""

    def kernel(a: Any, b: Any, index: Any) -> Any:
        left = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.sbuf)
        numbers = nl.ndarray(index.shape, dtype=index.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=left, src=a)
        nisa.dma_copy(dst=numbers, src=index)
        tile = psum(40, b.shape[1])
        nisa.nc_matmul(
            dst=tile, stationary=left.indirect(numbers, num_elem=40), moving=spread(b, 2)
        )
        return output(tile)

    a, b = numbers((32, 100), dtypes.bfloat16, 0), numbers((32, 30), dtypes.bfloat16, 1)
    index = np.random.default_rng(2).integers(0, 100, (32, 2)).astype(np.uint16)
    chosen = a[:, index.T.reshape(-1)[:40]]
    assert_product(run(kernel, a, b, index, target="trn3"), chosen, b)


def test_macs() -> None:
    specs = {"a": TensorSpec((100, 60), nl.bfloat16), "b": TensorSpec((100, 300), nl.bfloat16)}
    assert nki.jit(product).specialise(**specs).macs() == 100 * 60 * 300


# --- accumulation -----------------------------------------------------------------------------


def sums(a: Any, b: Any, plan: Any, size: Any) -> Any:
    """Products into rectangles of one tile; plan: (top, rows, left, columns, accumulate)."""
    tile = psum(*size)
    nisa.memset(dst=tile, value=7.0)
    for i, (top, rows, left, columns, accumulate) in enumerate(plan):
        nisa.nc_matmul(
            dst=tile[top : top + rows, left : left + columns],
            stationary=spread(a[i], 2)[:, 0:rows],
            moving=spread(b[i], 2)[:, 0:columns],
            accumulate=accumulate,
        )
    return output(tile)


rectangles = st.tuples(
    st.sampled_from([0, 32, 64, 96]), st.sampled_from([1, 16, 32]), st.integers(0, 40),
    st.integers(1, 24), st.sampled_from([None, None, False]),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(rectangles, min_size=1, max_size=8), seeds)
def test_none_overwrites_a_location_once_and_adds_later(plan: Any, seed: int) -> None:
    """An independent model: the values, and which locations a matmul has written."""
    a = numbers((len(plan), 8, 32), dtypes.float32, seed)
    b = numbers((len(plan), 8, 24), dtypes.float32, seed + 1)
    values, started = np.full((128, 64), 7.0), np.zeros((128, 64), bool)
    for i, (top, rows, left, columns, accumulate) in enumerate(plan):
        at = slice(top, top + rows), slice(left, left + columns)
        added = wide(a[i, :, :rows]).T @ wide(b[i, :, :columns])
        keep = started[at] & (accumulate is None)
        values[at] = np.where(keep, values[at], 0) + added
        started[at] = True
    found = run(sums, a, b, tuple(plan), (128, 64))
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("accumulate", ["None", "k > 0"])
def test_a_long_contraction(accumulate: str) -> None:
    def kernel(a: Any, b: Any) -> Any:
        tile = psum(a.shape[2], b.shape[2])
        for k in range(a.shape[0]):
            nisa.nc_matmul(
                dst=tile, stationary=spread(a[k], 2), moving=spread(b[k], 3),
                accumulate=None if accumulate == "None" else k > 0,
            )  # fmt: skip
        return output(tile)

    a, b = numbers((5, 128, 64), dtypes.bfloat16, 0), numbers((5, 128, 96), dtypes.bfloat16, 1)
    assert_product(run(kernel, a, b), a.reshape(640, 64), b.reshape(640, 96))


def test_a_tile_is_started_anew_in_every_iteration_of_a_dynamic_loop() -> None:
    def kernel(a: Any, b: Any) -> Any:
        out = nl.ndarray((3, 16, 24), dtype=nl.float32, buffer=nl.shared_hbm)
        left = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=left, src=a)
        right = nl.ndarray((32, 3 * 24), dtype=b.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=right, src=b)
        for i in nl.dynamic_range(3):
            tile = psum(16, 24)
            moving = right.reshape((32, 3, 24))[:, i, :]
            nisa.nc_matmul(dst=tile, stationary=left, moving=moving)
            nisa.nc_matmul(dst=tile, stationary=left, moving=moving)
            rows = nl.ndarray((16, 24), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=rows, src=tile)
            nisa.dma_copy(dst=out[i], src=rows)
        return out

    a, b = numbers((32, 16), dtypes.float32, 0), numbers((32, 72), dtypes.float32, 1)
    for found in (run(kernel, a, b), nki.simulate(kernel, eager=True)(a, b)):
        for i in range(3):
            part = b[:, 24 * i : 24 * i + 24]
            assert_product(found[i], np.vstack([a, a]), np.vstack([part, part]))


@pytest.mark.parametrize("loop", ["dynamic_range", "fori_loop", "while register", "while_loop"])
def test_a_tile_from_outside_a_loop_means_the_same_in_eager_mode(loop: str) -> None:
    """What a matmul in the body does is decided once, also where the body is run as often."""

    def body(left: Any, right: Any, tile: Any, total: Any) -> None:
        nisa.nc_matmul(dst=tile, stationary=left, moving=right)
        nisa.nc_matmul(dst=tile, stationary=left, moving=right)
        nisa.tensor_tensor(dst=total, data1=total, data2=tile, op=nl.add)

    def kernel(a: Any, b: Any) -> Any:
        left, right, total = spread(a, 2), spread(b, 2), nl.ndarray((16, 24), dtype=nl.float32)
        nisa.memset(dst=total, value=0.0)
        tile = psum(16, 24)
        if loop == "dynamic_range":
            for _ in nl.dynamic_range(3):
                body(left, right, tile, total)
        elif loop == "fori_loop":
            nl.fori_loop(0, 3, lambda i: body(left, right, tile, total))
        else:
            counter = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf)
            nisa.memset(dst=counter, value=3)

            def step(register: Any) -> Any:
                body(left, right, tile, total)
                nisa.tensor_scalar(dst=counter, data=counter, op0=nl.add, operand0=-1)
                nisa.register_load(dst=register, src=counter)
                return register

            register = nisa.register_alloc(3)
            if loop == "while_loop":
                nl.while_loop(register, step)
            else:
                while register:
                    step(register)
        out = nl.ndarray((16, 24), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=total)
        return out

    a, b = numbers((32, 16), dtypes.float32, 0), numbers((32, 24), dtypes.float32, 1)
    for found in (run(kernel, a, b), nki.simulate(kernel, eager=True)(a, b)):
        assert_product(found, np.vstack([a] * 6), np.vstack([b] * 6))


def test_bf16_sums_on_gen4_are_rounded_at_each_write() -> None:
    def kernel(a: Any, b: Any) -> Any:
        tile = psum(a.shape[2], b.shape[2], dtype=nl.bfloat16)
        for k in range(a.shape[0]):
            nisa.nc_matmul(dst=tile, stationary=spread(a[k], 2), moving=spread(b[k], 2))
        return output(tile)

    # Sums of few small integers times powers of two: exact in fp32, so that only the
    # rounding of each write is left.
    random = np.random.default_rng(0)
    a = random.integers(-8, 9, (4, 16, 32)).astype(np.float32)
    b = (random.integers(-8, 9, (4, 16, 600)) * 2.0).astype(np.float32)
    held = np.zeros((32, 600), ml_dtypes.bfloat16)
    for k in range(4):
        held = (held.astype(np.float32) + a[k].T @ b[k]).astype(ml_dtypes.bfloat16)
    found = run(kernel, a, b, target="trn3")
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, held)
    once = sum(a[k].T @ b[k] for k in range(4)).astype(ml_dtypes.bfloat16)
    assert (once != held).any()


# --- transposes -------------------------------------------------------------------------------


def awkward(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """All kinds of bit patterns: NaN with payloads, infinities, subnormals."""
    size = np.dtype(NUMPY.get(dtype, getattr(dtype, "numpy", dtype))).itemsize
    raw = np.random.default_rng(seed).integers(0, 256, (*shape[:-1], shape[-1] * size), np.uint8)
    return raw.view(NUMPY.get(dtype, dtype.numpy))


def bits(x: Array) -> Array:
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


every_dtype = st.sampled_from(
    [dtypes.float32, dtypes.bfloat16, dtypes.float16, dtypes.int32, dtypes.uint16, dtypes.int16]
)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 128), st.integers(1, 128), every_dtype, st.sampled_from([2, 3]),
    st.booleans(), seeds,
)  # fmt: skip
def test_nc_transpose(
    rows: int, columns: int, dtype: Any, rank: int, small: bool, seed: int
) -> None:
    """On the Tensor engine up to 128 by 128 into PSUM, on the Vector engine 32 by 32."""
    if small:
        rows, columns = (rows - 1) % 32 + 1, (columns - 1) % 32 + 1

    def kernel(x: Any) -> Any:
        buffer = nl.sbuf if small else nl.psum
        tile = nl.ndarray((columns, rows + 2), dtype=x.dtype, buffer=buffer)
        nisa.nc_transpose(dst=tile[:, 2:], data=spread(x, rank))
        return output(tile[:, 2:])

    x = awkward((rows, columns), dtype, seed)
    np.testing.assert_array_equal(bits(run(kernel, x)), bits(x).T)
    (engine,) = {
        i.engine for i in nki.jit(kernel).specialise(x).instructions if "trans" in i.spec.name
    }
    assert engine == ("vector" if small else "tensor")


def test_operands_may_move_with_a_dynamic_loop() -> None:
    def kernel(x: Any) -> Any:
        left = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=left, src=x)
        out = nl.ndarray((3, 40, 100), dtype=x.dtype, buffer=nl.shared_hbm)
        for i in nl.dynamic_range(3):
            tile = psum(40, 100, dtype=x.dtype)
            nisa.nc_transpose(dst=tile, data=left[:, i, :])
            rows = nl.ndarray((40, 100), dtype=x.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(dst=rows, src=tile)
            nisa.dma_copy(dst=out[i], src=rows)
        return out

    x = awkward((100, 3, 40), dtypes.bfloat16, 0)
    np.testing.assert_array_equal(bits(run(kernel, x)), bits(x).transpose(1, 2, 0))


def fp8_transpose(x: Any) -> Any:
    rows, columns = x.shape
    tile = psum(columns, 2 * rows, dtype=x.dtype)
    nisa.memset(dst=tile, value=1.0)
    nisa.nc_transpose(dst=tile[:, 0 : 2 * rows : 2], data=spread(x, 2))
    return output(tile)


def test_fp8_is_transposed_into_16_bits() -> None:
    x = awkward((100, 90), dtypes.float8_e4m3, 0)
    found = bits(run(fp8_transpose, x))
    np.testing.assert_array_equal(found[:, 0::2], bits(x).T)
    assert (found[:, 1::2] == 0).all()


def by_identity(x: Any, identity: Any) -> Any:
    tile = psum(x.shape[1], x.shape[0], dtype=x.dtype)
    nisa.nc_matmul(dst=tile, stationary=spread(x, 2), moving=spread(identity, 2), is_transpose=True)
    return output(tile)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.float16], ids=str)
def test_transpose_mode_is_exact_for_every_bit_pattern(dtype: Any) -> None:
    x = awkward((96, 128), dtype, 0)
    assert np.isnan(wide(x)).any()
    identity = np.eye(96).astype(NUMPY[dtype])
    np.testing.assert_array_equal(bits(run(by_identity, x, identity)), bits(x).T)
    negative = np.where(identity == 0, -0.0, identity).astype(NUMPY[dtype])
    np.testing.assert_array_equal(bits(run(by_identity, x, negative)), bits(x).T)


def test_transpose_mode_without_an_identity_is_a_product() -> None:
    x, reverse = numbers((64, 50), dtypes.bfloat16, 0), np.eye(64)[::-1].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(run(by_identity, x, reverse), x[::-1].T)
    assert nki.jit(by_identity).specialise(x, reverse).macs() == 0


COVERED = {"nc_matmul": test_nc_matmul, "nc_transpose": test_nc_transpose}


# --- wrong implementations are noticed --------------------------------------------------------


def fails(test: Any, *arguments: Any) -> None:
    """The test notices wrong values; a refused kernel would not count."""
    inner = test.hypothesis.inner_test if hasattr(test, "hypothesis") else test
    with pytest.raises(AssertionError) as caught:
        inner(*arguments)
    assert not isinstance(caught.value, NkiValidationError)


MATMUL = (100, 60, 200, (dtypes.bfloat16, dtypes.bfloat16), 2, 3, 0)
OVERLAP = ([(0, 32, 0, 20, None), (0, 32, 10, 20, None), (0, 16, 0, 5, None)], 0)


def test_a_matmul_that_does_not_add_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tensor_engine.write_product

    def overwrites(instruction: Any, *rest: Any) -> Any:
        instruction.set("accumulate", False)
        return right(instruction, *rest)

    monkeypatch.setattr(tensor_engine, "write_product", overwrites)
    fails(test_none_overwrites_a_location_once_and_adds_later, *OVERLAP)
    fails(test_a_long_contraction, "k > 0")
    fails(test_bf16_sums_on_gen4_are_rounded_at_each_write)


def test_a_matmul_that_adds_everywhere_is_noticed() -> None:
    spec = INSTRUCTIONS["nc_matmul"]
    right = spec.resolve
    try:
        object.__setattr__(spec, "resolve", lambda _, i: i.set("accumulate", True))
        fails(test_none_overwrites_a_location_once_and_adds_later, *OVERLAP)
    finally:
        object.__setattr__(spec, "resolve", right)


def test_a_mask_for_the_whole_tile_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PartlyStarted
    monkeypatch.setattr(tensor_engine, "PartlyStarted", lambda mask: right(mask | True))
    fails(test_none_overwrites_a_location_once_and_adds_later, *OVERLAP)


def test_rounded_operands_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def low(dst: Array, src: Array) -> None:
        dst[...] = src.astype(np.float32).astype(ml_dtypes.float8_e4m3)

    monkeypatch.setattr(tensor_engine, "copy_float32", low)
    fails(test_nc_matmul, *MATMUL)


def test_a_transpose_through_numbers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_engine._Identity, "equals", lambda self, array: False)
    fails(test_transpose_mode_is_exact_for_every_bit_pattern, dtypes.bfloat16)
    monkeypatch.setattr(tensor_engine._Identity, "equals", lambda self, array: True)
    fails(test_transpose_mode_without_an_identity_is_a_product)
