"""Casts of every bit pattern, and of fp32 numbers chosen to be hard to round.

The expectation is stated here from the formats' definitions: decoded by exponent and mantissa,
encoded by choosing the nearest of all representable values, the even pattern on a tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import dtypes, numerics

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.filterwarnings("ignore:invalid value")

COVERED: dict[str, Any] = {}
RULES: dict[Any, Any] = {}


@dataclass(frozen=True)
class Format:
    """A sign bit, `exponent` bits biased by `bias`, `mantissa` bits."""

    exponent: int
    mantissa: int
    bias: int
    infinity: bool = True
    """The highest exponent is infinity and NaN; otherwise only its last mantissa is NaN."""

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    def decode(self) -> Array:
        """The value of every bit pattern, in fp64."""
        pattern = np.arange(2**self.bits)
        mantissa = pattern & (2**self.mantissa - 1)
        exponent = pattern >> self.mantissa & (2**self.exponent - 1)
        sign = np.where(pattern >> (self.bits - 1), -1.0, 1.0)
        normal = (1 + mantissa / 2**self.mantissa) * 2.0 ** (exponent - self.bias)
        value = np.where(exponent > 0, normal, mantissa / 2**self.mantissa * 2.0 ** (1 - self.bias))
        top = exponent == 2**self.exponent - 1
        if self.infinity:
            value = np.where(top, np.where(mantissa == 0, np.inf, np.nan), value)
        else:
            value = np.where(top & (mantissa == 2**self.mantissa - 1), np.nan, value)
        return sign * value

    def encode(self, x: Array) -> Array:
        """Nearest values, ties to the even pattern; overflow to infinity, or NaN without one."""
        values = self.decode()[: 2 ** (self.bits - 1)]
        values = values[np.isfinite(values)]  # ascending
        size = np.abs(x.astype(np.float64))
        above = np.clip(np.searchsorted(values, size), 1, len(values) - 1)
        low, high = values[above - 1], values[above]
        even = np.where((above - 1) % 2 == 0, low, high)
        nearest = np.where(size - low < high - size, low, high)
        nearest = np.where(size - low == high - size, even, nearest)
        step = (
            values[-1] - values[-2]
        )  # halfway to what would come next is not the largest any more
        halfway = values[-1] + step / 2
        next_is_even = len(values) % 2 == 0
        over = (size > halfway) | ((size == halfway) & next_is_even)
        nearest = np.where(over, np.inf if self.infinity else np.nan, nearest)
        return np.copysign(np.where(np.isnan(x), np.nan, nearest), x)


FORMATS = {
    "bfloat16": Format(8, 7, 127),
    "float16": Format(5, 10, 15),
    "float8_e4m3": Format(4, 3, 7),
    "float8_e4m3fn": Format(4, 3, 7, infinity=False),
    "float8_e5m2": Format(5, 2, 15),
}


def same(found: Array, expected: Array) -> bool:
    """Equal, NaN to NaN, and zeros of the same sign."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    signs = np.signbit(found) == np.signbit(expected)
    return bool(np.all(((found == expected) & signs) | (np.isnan(found) & np.isnan(expected))))


def hard(format: Format, seed: int) -> Array:
    """fp32 numbers: random bits, representable values, halfway between them, and just beside."""
    random = np.random.default_rng(seed)
    values = format.decode()
    values = np.sort(values[np.isfinite(values)])
    chosen = random.choice(len(values) - 1, min(len(values) - 1, 4000), replace=False)
    ties = ((values[chosen] + values[chosen + 1]) / 2).astype(np.float32)
    edge = np.float32(values[-1]) + np.float32(values[-1] - values[-2]) * np.float32(0.5)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, edge, -edge, 1e-45, 3.4028235e38])
    parts = [
        random.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32).view(np.float32),
        values[chosen],
        ties,
        np.nextafter(ties, np.float32(np.inf)),
        np.nextafter(ties, np.float32(-np.inf)),
        special,
        np.nextafter(np.float32(edge), np.float32([0, np.inf])),
    ]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def stored(dtype: Any, values: Array) -> Array:
    out = np.empty(values.shape, dtype.numpy)
    with np.errstate(all="ignore"):
        numerics.store(dtype)(out, values)
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_every_bit_pattern_is_read_as_its_value(name: str) -> None:
    dtype, format = dtypes.DTYPES[name], FORMATS[name]
    patterns = np.arange(2**format.bits, dtype=f"uint{format.bits}").view(dtype.numpy)
    assert same(numerics.as_float32(patterns), format.decode())
    out = np.empty((2, patterns.size // 2), np.float32)
    numerics.copy_float32(out, patterns.reshape(2, -1))
    assert same(out.reshape(-1), format.decode())
    strided = patterns.reshape(-1, 2)[:, 1]
    assert same(numerics.as_float32(strided), format.decode()[1::2])


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_writes_round_to_nearest_even(name: str, seed: int) -> None:
    x = hard(FORMATS[name], seed)
    assert same(stored(dtypes.DTYPES[name], x), FORMATS[name].encode(x))


@pytest.mark.parametrize("name", FORMATS)
def test_values_survive_a_round_trip_bit_for_bit(name: str) -> None:
    dtype, format = dtypes.DTYPES[name], FORMATS[name]
    patterns = np.arange(2**format.bits, dtype=f"uint{format.bits}")
    again = stored(dtype, numerics.as_float32(patterns.view(dtype.numpy))).view(patterns.dtype)
    nan = np.isnan(format.decode())
    assert np.array_equal(again[~nan], patterns[~nan])
    assert np.isnan(numerics.as_float32(again[nan].view(dtype.numpy))).all()


def test_the_largest_numbers_are_the_documented_ones() -> None:
    for name, largest in {"float8_e4m3": 240, "float8_e4m3fn": 448, "float8_e5m2": 57344}.items():
        values = FORMATS[name].decode()
        assert np.nanmax(values[np.isfinite(values)]) == largest
        dtype = dtypes.DTYPES[name]
        assert float(stored(dtype, np.float32([largest]))[0]) == largest
        beyond = float(stored(dtype, np.float32([largest * 1.1]))[0])
        assert np.isnan(beyond) if name == "float8_e4m3fn" else np.isinf(beyond)


def test_scales_are_powers_of_two() -> None:
    patterns = np.arange(256, dtype=np.uint8)
    found = numerics.as_float32(patterns.view(dtypes.float8_e8m0fnu.numpy))
    with np.errstate(over="ignore"):
        expected = 2.0 ** (patterns.astype(np.float64) - 127)
    expected[255] = np.nan
    assert same(found, expected)
    assert np.array_equal(stored(dtypes.float8_e8m0fnu, found).view(np.uint8), patterns)


# --- tf32 and integers ----------------------------------------------------------------------


def tfloat32(x: Array) -> Array:
    """fp32 rounded to 10 bits of mantissa, stated with exact fp64 arithmetic."""
    with np.errstate(all="ignore"):
        size = x.astype(np.float64)
        exponent = np.maximum(np.floor(np.log2(np.abs(size))), -126)
        step = 2.0 ** (exponent - 10)
        rounded = np.rint(size / step) * step
        rounded = np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, size), rounded)
    return np.where((size == 0) | ~np.isfinite(size), size, rounded)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_tfloat32_keeps_ten_bits_of_mantissa(seed: int) -> None:
    x = hard(Format(8, 10, 127), seed)
    assert same(stored(dtypes.tfloat32, x), tfloat32(x))
    wide = np.zeros((len(x) // 4, 8), np.float32)
    wide[:, ::2] = x[: len(wide) * 4].reshape(-1, 4)
    assert same(stored(dtypes.tfloat32, wide[:, ::2]), tfloat32(wide[:, ::2]))


def test_tfloat32_of_every_tie_and_every_nan() -> None:
    ties = (np.arange(2**19, dtype=np.uint32) << 13 | 0x1000)[:: 2**3 + 1].view(np.float32)
    assert same(stored(dtypes.tfloat32, ties), tfloat32(ties))
    nans = np.uint32([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF801000]).view(np.float32)
    assert np.isnan(stored(dtypes.tfloat32, nans)).all()


def test_a_tfloat32_tile_holds_rounded_values() -> None:
    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        tile = nl.ndarray(x.shape, dtype=dtypes.tfloat32, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x)
        out = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=tile)
        return out

    x = np.random.default_rng(1).normal(size=(64, 33)).astype(np.float32)
    found = kernel(x)
    assert same(found, tfloat32(x))
    assert not same(found, x)


INTEGERS = [dtypes.int8, dtypes.uint8, dtypes.int16, dtypes.uint16, dtypes.int32, dtypes.uint32]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_integers_round_to_even_and_saturate(dtype: Any, seed: int) -> None:
    info = np.iinfo(dtype.numpy)
    random = np.random.default_rng(seed)
    near = random.uniform(2.0 * info.min - 10, 2.0 * info.max, 500)
    halves = random.integers(-300, 300, 500) + 0.5
    edges = [info.min, info.max, info.max + 1, info.min - 1, info.max + 0.5, info.min - 0.5]
    special = [np.inf, -np.inf, np.nan, 0.5, -0.5, 1.5, 2.5, 1e30, -1e30, 0.49999997]
    x = np.concatenate([near, halves, edges, special]).astype(np.float32)
    expected = [
        0 if np.isnan(v) else int(min(max(v, -1e12), 1e12)) if np.isinf(v) else round(v)
        for v in x.astype(float).tolist()
    ]  # Python's round: to even
    clipped = [min(max(v, info.min), info.max) for v in expected]
    assert stored(dtype, x).tolist() == clipped


# --- wrong casts are noticed ------------------------------------------------------------------


def test_truncation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def truncate(dst: Array, values: Array) -> None:
        bits = np.ascontiguousarray(values).view(np.uint32)
        dst[...] = (bits & np.uint32(0xFFFFE000)).view(np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(numerics, "_store_tfloat32", truncate)
        with pytest.raises(AssertionError):
            test_tfloat32_keeps_ten_bits_of_mantissa.hypothesis.inner_test(0)
    bf16 = numerics.as_float32(stored(dtypes.bfloat16, hard(FORMATS["bfloat16"], 0)))
    cut = (hard(FORMATS["bfloat16"], 0).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert not same(cut, bf16)
