"""A residual sum and the RMS normalisation of what comes out, in one pass over HBM."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.tiling import broadcast_row, load_rows, reciprocal_root


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
    core = nl.program_id(0)
    cores = nl.num_programs()
    last = rows * (core + 1) // cores
    weight_tile = None
    for start in range(rows * core // cores, last, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, last - start)
        x_tile = load_rows(x, start, count)
        residual_tile = load_rows(residual, start, count)
        if weight_tile == None:  # noqa: E711  after the first rows, which are needed first
            weight_tile = broadcast_row(weight, count, hidden)
        nisa.tensor_tensor(dst=x_tile, data1=x_tile, data2=residual_tile, op=nl.add)
        nisa.dma_copy(dst=total[start : start + count, :], src=x_tile)
        squares = nl.ndarray((count, hidden), dtype=nl.float32, buffer=nl.sbuf)
        factor = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(
            dst=squares, op=nl.square, data=x_tile, reduce_op=nl.add, reduce_res=factor
        )
        reciprocal_root(factor, hidden, eps)
        nisa.scalar_tensor_tensor(
            dst=residual_tile,
            data=x_tile,
            op0=nl.multiply,
            operand0=factor,
            op1=nl.multiply,
            operand1=weight_tile[0:count, :],
        )
        nisa.dma_copy(dst=out[start : start + count, :], src=residual_tile)
    return out, total
