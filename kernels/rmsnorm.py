"""RMS normalisation over the hidden dimension."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.tiling import broadcast_row, core_share, load_rows, reciprocal_root, sum_of_squares


@nki.jit
def nki_rmsnorm_kernel(x, weight, eps=1e-6):
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row, in fp32 with one final cast.

    Rows go 128 at a time, one per partition. The weight is loaded once, after the first rows, and
    repeated over the partitions by DMA. The sum of squares comes out of the same Scalar-engine
    pass as the squares; the Vector engine applies both factors in one pass. On two cores (LNC2)
    each takes half of the rows.

    Args:
        x: HBM tensor [rows, hidden], fp32 or bf16; any number of rows.
        weight: HBM tensor [hidden], fp32 or bf16.
        eps: compile-time float > 0.

    Returns:
        HBM tensor [rows, hidden] of x's dtype.

    Limits: hidden <= 8192 (four tiles of one row per partition in SBUF).
    HBM bytes: (2 rows + 128 per core) * hidden * itemsize. MACs on the Tensor engine: none.
    """
    rows, hidden = x.shape
    assert hidden <= 8192, "nki_rmsnorm_kernel: x has a hidden dimension above 8192"
    assert weight.shape[0] == hidden, "nki_rmsnorm_kernel: weight must have x's hidden dimension"
    out = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    first, last = core_share(rows)
    weight_tile = None
    pending = None
    for start in range(first, last, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, last - start)
        tile = load_rows(x, start, count)
        if weight_tile == None:  # noqa: E711  after the first rows, which are needed first
            weight_tile = broadcast_row(weight, count, hidden)
        total = sum_of_squares(tile)
        if pending != None:  # noqa: E711  the Scalar engine takes the next squares first
            apply_norm(pending[0], pending[1], weight_tile, eps, out, start - nl.tile_size.pmax)
        pending = (tile, total)
    if pending != None:  # noqa: E711
        apply_norm(pending[0], pending[1], weight_tile, eps, out, last - pending[0].shape[0])
    return out


def apply_norm(tile, total, weight_tile, eps, out, start):
    """Write tile / sqrt(total / hidden + eps) * weight to rows [start, …) of out.

    Args:
        tile: SBUF rows [count, hidden].
        total: SBUF [count, 1], fp32: their sums of squares; overwritten.
        weight_tile: SBUF [>= count, hidden].
        eps: float.
        out: HBM tensor [rows, hidden].
        start: first row.
    """
    count, hidden = tile.shape
    reciprocal_root(total, hidden, eps)
    result = nl.ndarray((count, hidden), dtype=out.dtype, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=result,
        data=tile,
        op0=nl.multiply,
        operand0=total,
        op1=nl.multiply,
        operand1=weight_tile[0:count, :],
    )
    nisa.dma_copy(dst=out[start : start + count, :], src=result)
