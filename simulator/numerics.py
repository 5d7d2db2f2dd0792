"""How engines read and write numbers: fp32 inside, one cast on write.

Source: nki_facts.md §5: reads convert to fp32, writes round to nearest even; integers are
rounded to nearest even and saturate. Floating-point overflow follows the format: infinity, or
NaN where a format has no infinity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from simulator.dtypes import DTYPES, DType, float32, tfloat32

Array = np.ndarray[Any, Any]

_F32 = np.dtype(np.float32)

_F16 = np.dtype(np.float16)
_BITS: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}
_VALUES: dict[np.dtype[Any], tuple[Array, np.dtype[Any]]] = {
    dtype: (
        np.arange(1 << 8 * dtype.itemsize)
        .astype(_BITS[dtype.itemsize])
        .view(dtype)
        .astype(np.float32),
        _BITS[dtype.itemsize],
    )
    for dtype in (
        _F16,
        *(x.numpy for x in DTYPES.values() if x.is_float and x.itemsize == 1),
    )
}
"""The fp32 value of each bit pattern of the fp8 dtypes and fp16, and the integers that hold the
patterns: a look-up is five times as fast as the conversion of fp8, function by function, and twice
as fast as NumPy's of fp16."""


def physical(dtype: DType, is_precise: bool = True) -> np.dtype[Any]:
    """The NumPy dtype that holds an `nl` dtype; fp32 for low precision if not precise."""
    if is_precise or not dtype.is_float or dtype.itemsize == 4 or dtype.packed:
        return dtype.numpy
    return float32.numpy


def as_float32(array: Array) -> Array:
    """The values as fp32; the array itself if it is fp32 already."""
    if array.dtype == _F32:
        return array
    known = _VALUES.get(array.dtype)
    if known is None:
        return array.astype(np.float32)
    values, bits = known
    found: Array = values.take(array.view(bits), mode="clip")
    return found


def copy_float32(dst: Array, src: Array) -> None:
    """Write the values of `src`, of any dtype, to an fp32 array of the same shape."""
    known = _VALUES.get(src.dtype)
    if known is None:
        np.copyto(dst, src)
    else:
        values, bits = known
        values.take(src.view(bits), out=dst, mode="clip")  # "raise" would buffer


def round_tfloat32(dst: Array, src: Array) -> None:
    """Write fp32 values with their mantissas rounded to 10 bits, ties to even; NaN stays NaN."""
    bits = src.view(np.uint32)
    odd = bits >> np.uint32(13)
    odd &= np.uint32(1)
    odd += np.uint32(0xFFF)
    odd += bits
    odd &= np.uint32(0xFFFFE000)
    rounded = odd.view(np.float32)
    np.copyto(rounded, src, where=np.isnan(src))  # the carry would make it an infinity or zero
    np.copyto(dst, rounded)


def store(dtype: DType) -> Callable[[Array, Array], None]:
    """A function (dst, fp32 values) that writes the values cast to `dtype`."""
    if dtype is tfloat32:
        return _store_tfloat32
    if dtype.is_float:
        return _store_float
    return _store_integer(dtype)


def _store_integer(dtype: DType) -> Callable[[Array, Array], None]:
    info = np.iinfo(dtype.numpy)
    low, beyond = np.float32(info.min), np.float32(float(info.max) + 1)
    high = np.nextafter(beyond, low) if dtype.itemsize == 4 else np.float32(info.max)
    largest_is_fp32 = int(high) == info.max

    def store_integer(dst: Array, values: Array) -> None:
        rounded = np.rint(values)
        above = None if largest_is_fp32 else rounded >= beyond
        np.clip(rounded, low, high, out=rounded)
        np.copyto(rounded, 0, where=np.isnan(rounded))
        np.copyto(dst, rounded, casting="unsafe")
        if above is not None and above.any():
            np.copyto(dst, info.max, where=above)

    return store_integer


def _store_float(dst: Array, values: Array) -> None:
    np.copyto(dst, values, casting="unsafe")


def _store_tfloat32(dst: Array, values: Array) -> None:
    round_tfloat32(dst, np.asarray(values, np.float32))


def compute(
    dst: int, dtype: DType, shape: tuple[int, ...], function: Callable[..., Array]
) -> Callable[[list[Array], tuple[Array, ...]], None]:
    """A function that writes `function(*fp32 arrays)` to view `dst`.

    fp32 results go straight into the destination; others are cast on the way.
    """
    if dtype is float32:

        def direct(views: list[Array], inputs: tuple[Array, ...]) -> None:
            function(*inputs, out=views[dst])

        return direct
    write = store(dtype)

    def cast(views: list[Array], inputs: tuple[Array, ...]) -> None:
        write(views[dst], function(*inputs))

    return cast
