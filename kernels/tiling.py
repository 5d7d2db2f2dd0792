"""Helpers that kernels share. Plain functions: the compilers inline them."""

import nki.isa as nisa
import nki.language as nl


def broadcast_row(row, partitions, columns):
    """Load an HBM vector into every partition of an SBUF tile.

    Engines do not broadcast over partitions; a DMA whose source steps by 0 does.

    Args:
        row: HBM tensor [columns].
        partitions: number of copies, at most 128.
        columns: length of the vector.

    Returns:
        SBUF tile [partitions, columns] of the vector's dtype.
    """
    tile = nl.ndarray((partitions, columns), dtype=row.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=row.ap(pattern=[[0, partitions], [1, columns]], offset=0))
    return tile


def load_rows(tensor, start, rows):
    """Load rows [start, start + rows) of an HBM tensor [R, C] into a new SBUF tile."""
    tile = nl.ndarray((rows, tensor.shape[1]), dtype=tensor.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=tensor[start : start + rows, :])
    return tile


def reciprocal_root(total, count, eps):
    """1 / sqrt(total / count + eps), the RMS factor of sums of squares.

    Args:
        total: SBUF tile [P, N], fp32 sums of squares; overwritten by the result.
        count: how many squares each sum holds.
        eps: added to the mean; keeps the root of zeros finite.
    """
    nisa.tensor_scalar(
        dst=total, data=total, op0=nl.multiply, operand0=1.0 / count, op1=nl.add, operand1=eps
    )
    nisa.activation(dst=total, op=nl.rsqrt, data=total)
    return total
