"""Softmax over the last dimension."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.tiling import core_share, load_rows


@nki.jit
def nki_softmax_kernel(x):
    """out = exp(x - max(x)) / sum(exp(x - max(x))), row by row, in fp32 with one final cast.

    Rows go 128 at a time, one per partition. The negated maximum, of x's dtype and so exact, is
    the bias of the exponential, whose sum comes out of the same Scalar-engine pass. On two cores
    (LNC2) each takes half of the rows.

    Args:
        x: HBM tensor [rows, columns], fp32 or bf16. Masked entries are very negative numbers;
            a row needs at least one that is finite.

    Returns:
        HBM tensor [rows, columns] of x's dtype.

    Limits: columns <= 8192 (four tiles of one row per partition in SBUF).
    HBM bytes: 2 * rows * columns * itemsize. MACs on the Tensor engine: none.
    """
    rows, columns = x.shape
    assert columns <= 8192, "nki_softmax_kernel: x has more than 8192 columns"
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    first, last = core_share(rows)
    pending = None
    for start in range(first, last, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, last - start)
        following = exponentials_of(load_rows(x, start, count))
        if pending != None:  # noqa: E711  the Vector engine takes the next maximum first
            divide(pending[0], pending[1], out, start - nl.tile_size.pmax)
        pending = following
    if pending != None:  # noqa: E711
        divide(pending[0], pending[1], out, last - pending[1].shape[0])
    return out


def exponentials_of(tile):
    """exp(x - max(x)) of SBUF rows [count, columns] and its sums [count, 1], both fp32 in SBUF."""
    count, columns = tile.shape
    negated_max = nl.ndarray((count, 1), dtype=tile.dtype, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=negated_max, op=nl.maximum, data=tile, axis=1, negate=True)
    exponentials = nl.ndarray((count, columns), dtype=nl.float32, buffer=nl.sbuf)
    total = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(
        dst=exponentials, op=nl.exp, data=tile, bias=negated_max, reduce_op=nl.add, reduce_res=total
    )
    return exponentials, total


def divide(exponentials, total, out, start):
    """Write exponentials / total to rows [start, …) of out."""
    count = total.shape[0]
    nisa.reciprocal(dst=total, data=total)
    result = nl.ndarray(exponentials.shape, dtype=out.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=result, data=exponentials, op0=nl.multiply, operand0=total)
    nisa.dma_copy(dst=out[start : start + count, :], src=result)
