"""A user's kernel for silu, as text: `FACTOR` is for a test to fill in."""

KERNEL = '''
from pathlib import Path

import nki
import nki.isa as nisa
import nki.language as nl
import torch


@nki.jit
def scale_rows(x):
    """SiLU of rows, times a factor."""
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    for start in range(0, x.shape[0], 128):
        rows = min(128, x.shape[0] - start)
        tile = nl.ndarray((rows, x.shape[1]), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[start : start + rows, :])
        result = nl.ndarray((rows, x.shape[1]), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=result, op=nl.silu, data=tile)
        cast = nl.ndarray((rows, x.shape[1]), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=cast, data=result, op0=nl.multiply, operand0=FACTOR)
        nisa.dma_copy(dst=out[start : start + rows, :], src=cast)
    return out


class FallsBack(type(scale_rows)):
    """Looks like a kernel, is compiled like one, and computes in PyTorch."""

    def __call__(self, x):
        return torch.nn.functional.silu(x)


def plain(x):
    return torch.nn.functional.silu(x)


if Path(__file__).with_name("trick").exists():  # no source tells what a file does
    trick = Path(__file__).with_name("trick").read_text()
    scale_rows = FallsBack(scale_rows.function) if trick == "falls back" else plain
'''
