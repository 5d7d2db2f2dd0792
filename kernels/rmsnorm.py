"""RMS normalisation over the hidden dimension."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.tiling import broadcast_row, load_rows, reciprocal_root


@nki.jit
def nki_rmsnorm_kernel(x, weight, eps=1e-6):
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row, in fp32 with one final cast.

    Rows go 128 at a time, one per partition. The weight is loaded once and repeated over the
    partitions by DMA. The sum of squares comes out of the same Scalar-engine pass as the
    squares; the Vector engine applies both factors in one pass.

    Args:
        x: HBM tensor [rows, hidden], fp32 or bf16; any number of rows.
        weight: HBM tensor [hidden], fp32 or bf16.
        eps: compile-time float > 0.

    Returns:
        HBM tensor [rows, hidden] of x's dtype.

    Limits: hidden <= 8192 (four tiles of one row per partition in SBUF).
    HBM bytes: (2 rows + 128) * hidden * itemsize. MACs on the Tensor engine: none.
    """
    rows, hidden = x.shape
    assert hidden <= 8192, "nki_rmsnorm_kernel: x has a hidden dimension above 8192"
    assert weight.shape[0] == hidden, "nki_rmsnorm_kernel: weight must have x's hidden dimension"
    out = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    weight_tile = broadcast_row(weight, min(rows, nl.tile_size.pmax), hidden)
    for start in range(0, rows, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, rows - start)
        tile = load_rows(x, start, count)
        squares = nl.ndarray((count, hidden), dtype=nl.float32, buffer=nl.sbuf)
        factor = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(
            dst=squares, op=nl.square, data=tile, reduce_op=nl.add, reduce_res=factor
        )
        reciprocal_root(factor, hidden, eps)
        result = nl.ndarray((count, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.scalar_tensor_tensor(
            dst=result,
            data=tile,
            op0=nl.multiply,
            operand0=factor,
            op1=nl.multiply,
            operand1=weight_tile[0:count, :],
        )
        nisa.dma_copy(dst=out[start : start + count, :], src=result)
    return out
