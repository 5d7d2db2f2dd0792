"""A residual sum and the RMS normalisation of what comes out, in one pass over HBM."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.rmsnorm import apply_norm
from kernels.tiling import broadcast_row, core_share, load_rows, sum_of_squares


@nki.jit
def nki_fused_add_rmsnorm_kernel(x, residual, weight, eps=1e-6):
    """total = x + residual; out = total / sqrt(mean(total^2) + eps) * weight.

    The sum is rounded to x's dtype once, as the model's next residual, and normalised from
    there in fp32. Rows go 128 at a time, one per partition. Vector: the sum and the scaling;
    Scalar: the squares with their sum. On two cores (LNC2) each takes half of the rows.

    Args:
        x: HBM tensor [rows, hidden], fp32 or bf16; any number of rows.
        residual: HBM tensor [rows, hidden], x's dtype.
        weight: HBM tensor [hidden], x's dtype.
        eps: compile-time float > 0.

    Returns:
        (out, total): HBM tensors [rows, hidden] of x's dtype: the norm, the new residual.

    Limits: hidden <= 4096 in fp32, 8192 in bf16 (tiles of one row per partition in SBUF).
    HBM bytes: (4 rows + 128 per core) * hidden * itemsize. MACs on the Tensor engine: none.
    """
    rows, hidden = x.shape
    most = 4096 if x.dtype == nl.float32 else 8192
    assert hidden <= most, (
        "nki_fused_add_rmsnorm_kernel: x has a hidden dimension above 4096 (fp32) or 8192 (bf16)"
    )
    assert tuple(residual.shape) == (rows, hidden), (
        "nki_fused_add_rmsnorm_kernel: residual must have x's shape"
    )
    assert residual.dtype == x.dtype, "nki_fused_add_rmsnorm_kernel: residual must have x's dtype"
    assert weight.shape[0] == hidden, (
        "nki_fused_add_rmsnorm_kernel: weight must have x's hidden dimension"
    )
    out = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    total = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    first, last = core_share(rows)
    weight_tile = None
    pending = None
    for start in range(first, last, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, last - start)
        tile = load_rows(x, start, count)
        residual_tile = load_rows(residual, start, count)
        if weight_tile == None:  # noqa: E711  after the first rows, which are needed first
            weight_tile = broadcast_row(weight, count, hidden)
        nisa.tensor_tensor(dst=tile, data1=tile, data2=residual_tile, op=nl.add)
        nisa.dma_copy(dst=total[start : start + count, :], src=tile)
        squares = sum_of_squares(tile)
        if pending != None:  # noqa: E711  the Scalar engine takes the next squares first
            apply_norm(pending[0], pending[1], weight_tile, eps, out, start - nl.tile_size.pmax)
        pending = (tile, squares)
    if pending != None:  # noqa: E711
        apply_norm(pending[0], pending[1], weight_tile, eps, out, last - pending[0].shape[0])
    return out, total
