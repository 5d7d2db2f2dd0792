"""What the tests of the Tensor engine share: tiles with gaps, runs on a target, tolerances."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
from rule_bench import sbuf

from simulator import dtypes

Array = np.ndarray[Any, Any]

NUMPY = {
    dtypes.float32: np.float32,
    dtypes.tfloat32: np.float32,
    dtypes.bfloat16: ml_dtypes.bfloat16,
    dtypes.float16: np.float16,
    dtypes.float8_e4m3: ml_dtypes.float8_e4m3,
    dtypes.float8_e5m2: ml_dtypes.float8_e5m2,
    dtypes.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
}


def psum(*shape: int, dtype: Any = nl.float32) -> Any:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.psum)


def spread(source: Any, rank: int, dtype: Any = None) -> Any:
    """Load a (P, F) HBM tensor into a tile whose elements do not follow each other.

    Rank 2: every second column of a wider tile. Rank 3: (P, F, 1) or (P, 2, F/2) with a gap.
    """
    rows, columns = source.shape
    dtype = dtype or source.dtype
    if rank == 2:
        wide = nl.ndarray((rows, 2 * columns + 1), dtype, buffer=nl.sbuf)
        tile = wide[:, 1 : 2 * columns + 1 : 2]
        nisa.dma_copy(dst=tile, src=source)
        return tile
    first = 2 if columns % 2 == 0 else columns
    second = columns // first
    wide = nl.ndarray((rows, first, second + 3), dtype, buffer=nl.sbuf)
    tile = wide[:, :, 2 : 2 + second]
    nisa.dma_copy(dst=tile, src=source.reshape((rows, first, second)))
    return tile


def output(tile: Any) -> Any:
    """Copy a PSUM tile out, through SBUF."""
    rows = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=rows, src=tile)
    out = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=rows)
    return out


def run(body: Callable[..., Any], *arguments: Any, target: str = "trn2", **environment: str) -> Any:
    """Call a kernel on data, for a target."""
    with patch.dict(os.environ, {"NEURON_PLATFORM_TARGET_OVERRIDE": target, **environment}):
        return nki.jit(body)(*arguments)


def numbers(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Normal numbers in a dtype."""
    return np.random.default_rng(seed).normal(size=shape).astype(NUMPY[dtype])


def wide(x: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64)


def assert_product(found: Array, a: Array, b: Array, start: Any = 0.0) -> None:
    """found = start + a.T @ b up to fp32 rounding of each of the K sums."""
    a, b = wide(a), wide(b)
    scale = np.abs(a).T @ np.abs(b) + np.abs(start)
    error = np.abs(wide(found) - (a.T @ b + start))
    assert found.dtype == np.float32
    assert (error <= scale * (len(a) + 1) * 2.0**-24).all()
    assert np.abs(found).max() > 0


# --- for the rules ---------------------------------------------------------------------------


def filled(*shape: int, dtype: Any = nl.bfloat16) -> Any:
    tile = sbuf(*shape, dtype=dtype)
    nisa.memset(dst=tile, value=1.0 if dtype.is_float else 1)
    return tile


def matmul(
    dst: tuple[int, int] = (64, 256),
    stationary: tuple[int, ...] = (128, 64),
    moving: tuple[int, ...] = (128, 256),
    dtype: Any = nl.bfloat16,
    moving_dtype: Any = None,
    dst_dtype: Any = nl.float32,
    **options: Any,
) -> Any:
    """One matmul of tiles of these shapes; gives what is stored of dst."""
    left = filled(*stationary, dtype=dtype)
    right = filled(*moving, dtype=moving_dtype or dtype)
    tile = psum(*dst, dtype=dst_dtype)
    nisa.nc_matmul(dst=tile, stationary=left, moving=right, **options)
    return output(tile)


def added_to(prepare: Callable[[Any], Any]) -> Any:
    tile = psum(64, 256)
    prepare(tile)
    nisa.nc_matmul(dst=tile, stationary=filled(128, 64), moving=filled(128, 256), accumulate=True)
    return output(tile)
