"""How engines read and write numbers: fp32 inside, one cast on write.

Source: nki_facts.md §5: reads convert to fp32, writes round to nearest even; integers are
rounded to nearest even and saturate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from simulator.dtypes import DType, float32

Array = np.ndarray[Any, Any]


def physical(dtype: DType, is_precise: bool = True) -> np.dtype[Any]:
    """The NumPy dtype that holds an `nl` dtype; fp32 for low precision if not precise."""
    if is_precise or not dtype.is_float or dtype.itemsize == 4 or dtype.packed:
        return dtype.numpy
    return float32.numpy


def as_float32(array: Array) -> Array:
    """The values as fp32; the array itself if it is fp32 already."""
    return array if array.dtype == np.float32 else array.astype(np.float32)


def store(dtype: DType) -> Callable[[Array, Array], None]:
    """A function (dst, fp32 values) that writes the values cast to `dtype`."""
    if dtype.is_float:
        return _store_float
    info = np.iinfo(dtype.numpy)

    def store_integer(dst: Array, values: Array) -> None:
        rounded = np.rint(values.astype(np.float64))
        clipped = np.clip(np.nan_to_num(rounded, nan=0.0), info.min, info.max)
        np.copyto(dst, clipped.astype(dtype.numpy))

    return store_integer


def _store_float(dst: Array, values: Array) -> None:
    np.copyto(dst, values, casting="unsafe")


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
