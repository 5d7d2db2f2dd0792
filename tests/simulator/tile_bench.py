"""Runs instructions on tiles of any number, dtype and layout, and gives their results back.

Every tile lies in a wider one, with an offset and a step, so that no instruction can get away
with taking its operands for contiguous.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
from hypothesis import strategies as st

from simulator.targets import VARIABLE

Array = np.ndarray[Any, Any]

NUMPY: dict[Any, Any] = {
    nl.float32: np.float32, nl.bfloat16: ml_dtypes.bfloat16, nl.float16: np.float16,
    nl.int32: np.int32, nl.uint32: np.uint32, nl.int16: np.int16, nl.uint16: np.uint16,
    nl.int8: np.int8, nl.uint8: np.uint8,
}  # fmt: skip
FLOATS = [nl.float32, nl.bfloat16, nl.float16]
ROUNDING = {nl.float32: 1e-6, nl.bfloat16: 2**-7, nl.float16: 2**-10}
"""Relative error that a different order of fp32 operations and one cast may make."""

shapes = st.tuples(st.integers(1, 128), st.integers(1, 24))
floats = st.sampled_from(FLOATS)
seeds = st.integers(0, 2**16)


@contextmanager
def target(name: str) -> Iterator[None]:
    """Run kernels for this target."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def spread(shape: tuple[int, ...], dtype: Any, buffer: Any = nl.sbuf) -> Any:
    """A tile of every second element of a wider one, from the second on."""
    wide = nl.ndarray((*shape[:-1], 2 * shape[-1] + 1), dtype=dtype, buffer=buffer)
    inner = slice(1, 2 * shape[-1] + 1, 2)
    return wide[(*(slice(None) for _ in shape[:-1]), inner)]


def run(
    body: Callable[..., None], inputs: list[Array], outputs: list[Any], on: str = "trn2"
) -> list[Array]:
    """Run body(*input tiles, *output tiles) on chip.

    Args:
        body: what the kernel does.
        inputs: arrays of rank 2 or more.
        outputs: for each output tile (shape, dtype), or an array that it holds beforehand.
        on: target.
    """

    @nki.jit
    def kernel(xs, before):  # type: ignore[no-untyped-def]
        tiles = []
        for x in xs:
            tile = spread(x.shape, x.dtype)
            nisa.dma_copy(dst=tile, src=x)
            tiles.append(tile)
        given = 0
        outs = []
        for output in outputs:
            if isinstance(output, tuple):
                outs.append(spread(output[0], output[1]))
                continue
            out = spread(output.shape, before[given].dtype)
            nisa.dma_copy(dst=out, src=before[given])
            given += 1
            outs.append(out)
        body(*tiles, *outs)
        results = []
        for out in outs:
            result = nl.ndarray(out.shape, dtype=out.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(dst=result, src=out)
            results.append(result)
        return tuple(results)

    with target(on):
        found = kernel(tuple(inputs), tuple(o for o in outputs if not isinstance(o, tuple)))
    return list(found)


def numbers(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Numbers away from 0 and not too large, of both signs."""
    random = np.random.default_rng(seed)
    values = random.uniform(0.25, 2, shape) * random.choice([-1, 1], shape)
    return values.astype(NUMPY[dtype])


def small_integers(shape: tuple[int, ...], dtype: Any, seed: int, below: int = 5) -> Array:
    """Few different numbers, so that many are equal, and sums of them are exact."""
    return np.random.default_rng(seed).integers(0, below, shape).astype(NUMPY[dtype])


def same_bits(found: Array, expected: Array) -> None:
    """Assert that two arrays are the same bit for bit."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()
