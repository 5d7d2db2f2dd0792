"""Results that are columns of a wider tile, in place: NumPy 2.4's np.negative errs on some."""

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest


@nki.jit
def negated_maxima(x, columns):
    rows, width = x.shape
    out = nl.ndarray((rows, columns), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((rows, width), dtype=nl.float32, buffer=nl.sbuf)
    result = nl.ndarray((rows, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    for c in range(columns):
        column = result[:, c : c + 1]
        nisa.tensor_reduce(dst=column, op=nl.maximum, data=tile, axis=1, negate=True)
    nisa.dma_copy(dst=out, src=result)
    return out


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 8])
def test_negated_maxima_go_to_their_column(columns: int) -> None:
    x = np.random.default_rng(0).random((12, 7), dtype=np.float32)
    expected = np.repeat(-x.max(1, keepdims=True), columns, axis=1)
    np.testing.assert_array_equal(negated_maxima(x, columns), expected)
