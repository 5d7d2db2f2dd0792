"""MX formats: quantisation bit for bit, products in fp64, layouts and limits.

The expectation works on groups and bytes as the OCP formats define them: a group is 8 partitions
by 4 elements, element i of a container has the container's bits 8 i (fp8) or 4 i (fp4) on.
"""

from __future__ import annotations

import math
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
from matmul_bench import Array, filled, output, psum, run
from rule_bench import X, sbuf, stored, violations
from test_numerics import FORMATS

from simulator import dtypes
from simulator.errors import NkiLaxWarning, NkiValidationError
from simulator.instructions import microscaling
from simulator.targets import TARGETS

seeds = st.integers(0, 2**16)
E4M3, E5M2, E2M1 = dtypes.float8_e4m3fn_x4, dtypes.float8_e5m2_x4, dtypes.float4_e2m1fn_x4
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
LARGEST = {E4M3: 8, E5M2: 15}
FP8 = {E4M3: "float8_e4m3fn", E5M2: "float8_e5m2"}


def rows_of_scales(partitions: int) -> list[int]:
    """Group g of 8 partitions has its scales in this row."""
    return [g // 4 * 32 + g % 4 for g in range(partitions // 8)]


# --- quantize_mx --------------------------------------------------------------------------------


def quantised(x: Array, dtype: Any) -> tuple[Array, Array]:
    """Scales by group [P/8, F/4] as exponents, and element values [P, F], group by group."""
    partitions, free = x.shape
    exponents = np.zeros((partitions // 8, free // 4), int)
    values = np.zeros(x.shape)
    for g in range(partitions // 8):
        for c in range(free // 4):
            at = slice(8 * g, 8 * g + 8), slice(4 * c, 4 * c + 4)
            group = x[at].astype(np.float64)
            highest = np.abs(group).max()
            exponent = -127
            if highest > 0:
                exponent = max(-127, math.frexp(highest)[1] - 1 - (LARGEST[dtype] - 1))
            exponents[g, c] = exponent
            values[at] = FORMATS[FP8[dtype]].encode((group / 2.0**exponent).astype(np.float32))
    return exponents, values


def quantise(x: Any, packed: Any, scale_dtype: Any, rank: int) -> Any:
    partitions, free = x.shape
    source = sbuf(partitions, free, dtype=x.dtype)
    nisa.dma_copy(dst=source, src=x)
    data = sbuf(partitions, free // 4, dtype=packed)
    scale = sbuf(partitions, free // 4 + 3, dtype=scale_dtype)
    nisa.memset(dst=scale, value=1)
    shape = (partitions, free // 4, 4) if rank == 3 else (partitions, free)
    nisa.quantize_mx(dst=data, src=source.reshape(shape), dst_scale=scale[:, 2 : 2 + free // 4])
    return stored(data.view(nl.uint8)), stored(scale.view(nl.uint8))


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([32, 64, 96, 128]), st.integers(1, 12), st.sampled_from([E4M3, E5M2]),
    st.sampled_from([np.float16, ml_dtypes.bfloat16]),
    st.sampled_from([nl.uint8, dtypes.float8_e8m0fnu]), st.sampled_from([2, 3]), seeds,
)  # fmt: skip
def test_quantize_mx(
    partitions: int, columns: int, packed: Any, dtype: Any, scale_dtype: Any, rank: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(partitions, 4 * columns))
    x *= 2.0 ** random.integers(-12, 12, (partitions, columns)).repeat(4, 1)
    x[:8, :4] = 0  # a group of zeros
    x[8, 0] = 2.0**-14  # nearly one
    x = x.astype(dtype)
    data, scale = run(quantise, x, packed, scale_dtype, rank, target="trn3")
    exponents, values = quantised(x, packed)
    decoded = FORMATS[FP8[packed]].decode()[data]
    np.testing.assert_array_equal(decoded, values)
    assert decoded.any()
    rows = rows_of_scales(partitions)
    np.testing.assert_array_equal(scale[rows, 2 : 2 + columns], exponents + 127)
    kept = np.ones(scale.shape, bool)
    kept[rows, 2 : 2 + columns] = False
    expected = 127 if scale_dtype is dtypes.float8_e8m0fnu else 1
    assert (scale[kept] == expected).all()


def test_scales_can_be_packed_at_rows_0_4_8_and_12() -> None:
    def kernel(x: Any) -> Any:
        source = sbuf(64, 32, dtype=x.dtype)
        nisa.dma_copy(dst=source, src=x)
        scale = sbuf(64, 8, dtype=nl.uint8)
        nisa.memset(dst=scale, value=0)
        for start in (0, 4, 8, 12):
            data = sbuf(64, 8, dtype=E4M3)
            nisa.quantize_mx(dst=data, src=source, dst_scale=scale[start:, :])
        return stored(scale)

    x = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float16)
    found = run(kernel, x, target="trn3")
    exponents, _ = quantised(x, E4M3)
    for start in (0, 4, 8, 12):
        rows = np.array(rows_of_scales(64)) + start
        np.testing.assert_array_equal(found[rows], exponents + 127)
    assert not found[16:32].any()


def test_infinities_make_the_scale_nan() -> None:
    x = np.ones((32, 8), np.float16)
    x[3, 1], x[9, 6] = np.inf, np.nan
    _, scale = run(quantise, x, E5M2, nl.uint8, 2, target="trn3")
    good = 127 - 14
    np.testing.assert_array_equal(
        scale[:4, 2:4], [[255, good], [good, 255], [good, good], [good, good]]
    )


# --- nc_matmul_mx -------------------------------------------------------------------------------


def random_operand(partitions: int, free: int, dtype: Any, seed: int) -> tuple[Array, Array]:
    """Containers as an integer array, and the value of each element [P, free, 4]."""
    random = np.random.default_rng(seed)
    if dtype is E2M1:
        codes = random.integers(0, 16, (partitions, free, 4))
        containers = (codes << np.array([0, 4, 8, 12])).sum(axis=2).astype(np.uint16)
        return containers, np.where(codes >= 8, -1, 1) * FP4[codes % 8]
    decoded = FORMATS[FP8[dtype]].decode()
    codes = random.choice(np.flatnonzero(np.isfinite(decoded)), (partitions, free, 4))
    return (codes << np.array([0, 8, 16, 24])).sum(axis=2).astype(np.uint32), decoded[codes]


def random_scales(partitions: int, free: int, low: int, high: int, seed: int) -> Array:
    """Scale bytes [P, free]; rows that hold none are 255, which would be NaN."""
    scale = np.full((partitions, free), 255, np.uint8)
    rows = rows_of_scales(partitions)
    random = np.random.default_rng(seed)
    scale[rows] = random.integers(low, high, (len(rows), free))
    return scale


def exact(values: Array, scale: Array) -> Array:
    """[4 P, free] in fp64."""
    partitions, free, _ = values.shape
    powers = 2.0 ** (scale[rows_of_scales(partitions)].astype(float) - 127)
    scaled = values * powers.repeat(8, axis=0)[:, :, None]
    return scaled.transpose(0, 2, 1).reshape(4 * partitions, free)


def mx_product(
    a: Any, b: Any, a_scale: Any, b_scale: Any, kinds: Any, codes: Any, sum_dtype: Any = nl.float32
) -> Any:
    tiles = []
    for source, kind in zip((a, b), kinds, strict=True):
        wide = sbuf(source.shape[0], source.shape[1] + 3, dtype=source.dtype)
        nisa.dma_copy(dst=wide[:, 2 : 2 + source.shape[1]], src=source)
        tiles.append(wide.view(kind)[:, 2 : 2 + source.shape[1]])
    for source in (a_scale, b_scale):
        tile = sbuf(*source.shape, dtype=nl.uint8)
        for row in rows_of_scales(source.shape[0]):  # only those are read
            nisa.dma_copy(dst=tile[row : row + 1, :], src=source[row : row + 1, :])
        tiles.append(tile.view(codes))
    dst = psum(a.shape[1], b.shape[1], dtype=sum_dtype)
    for accumulate in (False, True):
        nisa.nc_matmul_mx(
            dst=dst, stationary=tiles[0], moving=tiles[1], stationary_scale=tiles[2],
            moving_scale=tiles[3], accumulate=accumulate,
        )  # fmt: skip
    return output(dst)


kinds = st.sampled_from([E4M3, E5M2, E2M1])


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([32, 64, 96, 128]), st.integers(1, 64), st.integers(1, 600), kinds, kinds,
    st.sampled_from([nl.uint8, dtypes.float8_e8m0fnu]), seeds,
)  # fmt: skip
def test_nc_matmul_mx(
    partitions: int, half: int, columns: int, left: Any, right: Any, codes: Any, seed: int
) -> None:
    """Twice the product, by accumulation, against fp64."""
    a, a_values = random_operand(partitions, 2 * half, left, seed)
    b, b_values = random_operand(partitions, columns, right, seed + 1)
    scales = (
        random_scales(partitions, 2 * half, 110, 140, seed + 2),
        random_scales(partitions, columns, 110, 140, seed + 3),
    )
    found = run(mx_product, a, b, *scales, (left, right), codes, target="trn3")
    assert_sum(found, exact(a_values, scales[0]), exact(b_values, scales[1]))


def assert_sum(found: Array, a: Array, b: Array) -> None:
    bound = 2 * (np.abs(a).T @ np.abs(b)) * (len(a) + 2) * 2.0**-24
    assert (np.abs(found - 2 * a.T @ b) <= bound).all()
    assert found.any()


def test_scales_that_would_overflow_alone() -> None:
    """2^127 on one side and 2^-127 on the other: their product is what counts."""
    a, a_values = random_operand(64, 16, E5M2, 0)
    b, b_values = random_operand(64, 24, E5M2, 1)
    high, low = random_scales(64, 16, 250, 255, 2), random_scales(64, 24, 0, 4, 3)
    found = run(mx_product, a, b, high, low, (E5M2, E5M2), nl.uint8, target="trn3")
    assert np.isfinite(found).all()
    assert_sum(found, exact(a_values, high), exact(b_values, low))


def test_a_nan_scale_gives_nan() -> None:
    a, _ = random_operand(32, 2, E4M3, 0)
    b, _ = random_operand(32, 3, E4M3, 1)
    one, other = random_scales(32, 2, 120, 130, 2), random_scales(32, 3, 120, 130, 3)
    other[2, 1] = 255
    found = run(mx_product, a, b, one, other, (E4M3, E4M3), nl.uint8, target="trn3")
    np.testing.assert_array_equal(np.isnan(found), [[False, True, False]] * 2)


def test_sums_in_bf16() -> None:
    a, a_values = random_operand(32, 2, E2M1, 0)
    b, b_values = random_operand(32, 3, E2M1, 1)
    one = random_scales(32, 2, 127, 128, 2), random_scales(32, 3, 127, 128, 3)
    found = run(mx_product, a, b, *one, (E2M1, E2M1), nl.uint8, nl.bfloat16, target="trn3")
    once = (exact(a_values, one[0]).T @ exact(b_values, one[1])).astype(np.float32)
    low = once.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found, (low + once).astype(ml_dtypes.bfloat16))


def test_quantised_operands_multiply_to_nearly_the_product() -> None:
    """From bf16 through both instructions: 4 P rows of contraction, in the packed order."""

    def kernel(a: Any, b: Any) -> Any:
        operands = []
        for source in (a, b):
            partitions, free = source.shape
            tile = sbuf(partitions, free, dtype=source.dtype)
            nisa.dma_copy(dst=tile, src=source)
            data, scale = (
                sbuf(partitions, free // 4, dtype=E4M3),
                sbuf(partitions, free // 4, dtype=dtypes.float8_e8m0fnu),
            )
            nisa.quantize_mx(dst=data, src=tile, dst_scale=scale)
            operands += [data, scale]
        dst = psum(a.shape[1] // 4, b.shape[1] // 4)
        nisa.nc_matmul_mx(
            dst=dst, stationary=operands[0], stationary_scale=operands[1], moving=operands[2],
            moving_scale=operands[3],
        )  # fmt: skip
        return output(dst)

    random = np.random.default_rng(0)
    a, b = (random.normal(size=(128, 4 * n)).astype(ml_dtypes.bfloat16) for n in (64, 200))
    for precise in ("1", "0"):
        found = run(kernel, a, b, target="trn3", NKI_PRECISE_FP=precise)
        left, right = (
            x.astype(np.float64).reshape(128, -1, 4).transpose(0, 2, 1).reshape(512, -1)
            for x in (a, b)
        )
        product = left.T @ right
        assert np.abs(found - product).max() < 0.1 * np.abs(product).max()
    program = nki.jit(kernel).specialise(a, b, target=TARGETS["trn3"])
    assert program.macs() == 512 * 64 * 200


COVERED = {"quantize_mx": test_quantize_mx, "nc_matmul_mx": test_nc_matmul_mx}


# --- limits -------------------------------------------------------------------------------------


def quantising(
    partitions: int = 64, free: int = 32, columns: int | None = None, kind: Any = nl.bfloat16,
    packed: Any = E4M3, scale: Any = None,
) -> Any:  # fmt: skip
    columns = free // 4 if columns is None else columns
    source = filled(partitions, free, dtype=kind)
    data = sbuf(partitions, columns, dtype=packed)
    tile = sbuf(partitions, free // 4, dtype=nl.uint8) if scale is None else scale
    nisa.memset(dst=tile, value=0)
    nisa.quantize_mx(dst=data, src=source, dst_scale=tile)
    return stored(data.view(nl.uint8))


def odd_partitions(x: Any) -> Any:
    return quantising(48)


def odd_columns(x: Any) -> Any:
    return quantising(free=33, columns=8)


def wrong_columns(x: Any) -> Any:
    return quantising(columns=9)


def of_float32(x: Any) -> Any:
    return quantising(kind=nl.float32)


def to_fp4(x: Any) -> Any:
    return quantising(packed=E2M1)


def few_scale_rows(x: Any) -> Any:
    return quantising(scale=sbuf(32, 8, dtype=nl.uint8))


def scale_of_float32(x: Any) -> Any:
    tile = sbuf(64, 8)
    nisa.memset(dst=tile, value=0.0)
    data = sbuf(64, 8, dtype=E4M3)
    nisa.quantize_mx(dst=data, src=filled(64, 32), dst_scale=tile)
    return stored(data.view(nl.uint8))


def shifted_scale(x: Any) -> Any:
    tile = sbuf(128, 8, dtype=nl.uint8)
    data = sbuf(64, 8, dtype=E4M3)
    nisa.quantize_mx(dst=data, src=filled(64, 32), dst_scale=tile[2:66, :])
    return stored(data.view(nl.uint8))


def other_quadrant(x: Any) -> Any:
    tile = sbuf(128, 8, dtype=nl.uint8)
    data = sbuf(64, 8, dtype=E4M3)
    nisa.quantize_mx(dst=data, src=filled(64, 32), dst_scale=tile[32:128, :])
    return stored(data.view(nl.uint8))


def mx(
    partitions: int = 64, rows: int = 32, columns: int = 48, scale: tuple[int, int] | None = None,
    packed: Any = E4M3, sum_dtype: Any = nl.float32, **options: Any,
) -> Any:  # fmt: skip
    tiles = []
    for free in (rows, columns):
        size = packed.itemsize
        tiles.append(filled(partitions, free * size, dtype=nl.uint8).view(packed))
    scales = [
        filled(*(scale or (partitions, rows)), dtype=nl.uint8),
        filled(partitions, columns, dtype=nl.uint8),
    ]
    dst = psum(rows, columns, dtype=sum_dtype)
    nisa.nc_matmul_mx(
        dst=dst, stationary=tiles[0], moving=tiles[1], stationary_scale=scales[0],
        moving_scale=scales[1], **options,
    )  # fmt: skip
    return output(dst)


def odd_depth(x: Any) -> Any:
    return mx(40)


def odd_rows(x: Any) -> Any:
    return mx(rows=31)


def narrow_scale(x: Any) -> Any:
    return mx(scale=(64, 31))


def unpacked(x: Any) -> Any:
    return mx(packed=nl.float8_e4m3fn)


def half_sum(x: Any) -> Any:
    return mx(sum_dtype=nl.float16)


def added_first(x: Any) -> Any:
    return mx(accumulate=True)


def column_tile(x: Any) -> Any:
    return mx(tile_position=(0, 0), tile_size=(64, 32))


def odd_accumulate(x: Any) -> Any:
    return mx(accumulate="yes")


GEN4: dict[Callable[..., Any], tuple[str, str, str]] = {
    odd_partitions: ("partition-group", "a multiple of 32", "48"),
    odd_columns: ("mx-shape", "a multiple of 4", "33"),
    wrong_columns: ("mx-shape", "(64, 8)", "(64, 9)"),
    of_float32: ("dtype", "bfloat16, float16", "float32"),
    to_fp4: ("dtype", "float8_e4m3fn_x4, float8_e5m2_x4", "float4_e2m1fn_x4"),
    few_scale_rows: ("mx-scale", "at least 36 rows of 8", "32 rows of 8"),
    scale_of_float32: ("dtype", "float8_e8m0fnu, uint8", "float32"),
    shifted_scale: ("mx-scale", "from partition 0, 4, 8 or 12 on", "from partition 2 on"),
    other_quadrant: ("mx-scale", "from partition 0, 4, 8 or 12 on", "from partition 32 on"),
    odd_depth: ("partition-group", "a multiple of 32", "40"),
    odd_rows: ("mx-shape", "even", "31"),
    narrow_scale: ("mx-scale", "at least 36 rows of 32", "64 rows of 31"),
    half_sum: ("matmul-dtype", "float32 or bfloat16", "float16"),
    added_first: ("psum-accumulate", "locations started by a matmul", "never written"),
    column_tile: ("matmul-tiling", "32, 64 or 128 rows, 128", "(64, 32)"),
    odd_accumulate: ("operand", "None, True or False", "'yes'"),
}
FIRES = {rule for rule, _, _ in GEN4.values()}


@pytest.mark.parametrize("body", GEN4, ids=lambda body: body.__name__)
def test_a_rule_fires_alone(body: Callable[..., Any]) -> None:
    (found,) = violations(body, target="trn3")
    assert (found.rule, found.limit, found.value) == GEN4[body]
    assert found.file == __file__
    assert found.instruction in ("quantize_mx", "nc_matmul_mx")


def test_unpacked_operands_are_refused() -> None:
    found = [(v.rule, v.operand) for v in violations(unpacked, target="trn3")]
    assert found == [("dtype", "stationary"), ("dtype", "moving")]


@pytest.mark.parametrize("body", [lambda x: quantising(), lambda x: mx()])
def test_trn2_has_no_mx(body: Callable[..., Any]) -> None:
    (found,) = violations(body, target="trn2")
    assert (found.rule, found.value) == ("gen4-only", "trn2")


def legal(x: Any) -> Any:
    quantising(32, scale=sbuf(4, 8, dtype=nl.uint8))
    quantising(64, scale=sbuf(36, 8, dtype=nl.uint8))
    quantising(kind=nl.float16, packed=E5M2)
    mx(128, 128, 4096)
    mx(32, 2, 1, scale=(4, 2))
    mx(packed=E2M1, tile_position=(0, 0), tile_size=(64, 128))
    return mx(128, 128, 8192, sum_dtype=nl.bfloat16)


def test_legal_neighbours_pass() -> None:
    assert nki.jit(legal).specialise(x=X, target=TARGETS["trn3"]).warnings == []


# --- wrong implementations are noticed ----------------------------------------------------------


def fails(test: Any, *arguments: Any) -> None:
    inner = test.hypothesis.inner_test if hasattr(test, "hypothesis") else test
    with pytest.raises(AssertionError) as caught:
        inner(*arguments)
    assert not isinstance(caught.value, NkiValidationError)


QUANTISE = (64, 5, E4M3, np.float16, nl.uint8, 2, 0)
PRODUCT = (64, 8, 20, E4M3, E2M1, nl.uint8, 0)


def test_the_scale_of_the_ocp_sample_algorithm_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(microscaling.LARGEST_EXPONENT, E4M3, 9)
    fails(test_quantize_mx, *QUANTISE)


def test_contiguous_scale_rows_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microscaling, "scale_rows", lambda count: list(range(count // 8)))
    fails(test_quantize_mx, *QUANTISE)
    with pytest.warns(NkiLaxWarning, match="uninitialised-read"):
        fails(test_nc_matmul_mx, *PRODUCT)


def test_containers_read_from_the_other_end_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = microscaling.elements

    def turned(containers: Array, dtype: Any) -> Array:
        found = right(containers, dtype)
        return found[..., ::-1] if dtype is E2M1 else found  # turning both would change nothing

    monkeypatch.setattr(microscaling, "elements", turned)
    fails(test_nc_matmul_mx, *PRODUCT)


def test_scales_on_one_side_only_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microscaling, "_SCALES", np.ones(256, np.float32))
    fails(test_nc_matmul_mx, *PRODUCT)
