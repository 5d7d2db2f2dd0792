"""Helpers that kernels share. Plain functions: the compilers inline them."""

import nki.isa as nisa
import nki.language as nl


def broadcast_row(row, partitions, columns, ring=nisa.engine.unknown):
    """Load an HBM vector into every partition of an SBUF tile.

    Engines do not broadcast over partitions; a DMA whose source steps by 0 does.

    Args:
        row: HBM tensor [columns].
        partitions: number of copies, at most 128.
        columns: length of the vector.
        ring: whose DMA ring loads it, nisa.engine.sync or scalar; unknown: the compiler's choice.

    Returns:
        SBUF tile [partitions, columns] of the vector's dtype.
    """
    tile = nl.ndarray((partitions, columns), dtype=row.dtype, buffer=nl.sbuf)
    repeated = row.ap(pattern=[[0, partitions], [1, columns]], offset=0)
    if ring == nisa.engine.unknown:
        nisa.dma_copy(dst=tile, src=repeated)
    else:
        nisa.dma_copy(dst=tile, src=repeated, engine=ring, dge_mode=nisa.dge_mode.hwdge)
    return tile


def load_rows(tensor, start, rows):
    """Load rows [start, start + rows) of an HBM tensor [R, C] into a new SBUF tile."""
    tile = nl.ndarray((rows, tensor.shape[1]), dtype=tensor.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=tensor[start : start + rows, :])
    return tile


def core_share(count):
    """This core's part [first, last) of `count` things; all of them without a second core."""
    core = nl.program_id(0)
    cores = nl.num_programs()
    return count * core // cores, count * (core + 1) // cores


def sum_of_squares(tile):
    """The sum of squares of each row of an SBUF tile [P, N]: SBUF [P, 1], fp32."""
    squares = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
    total = nl.ndarray((tile.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(dst=squares, op=nl.square, data=tile, reduce_op=nl.add, reduce_res=total)
    return total


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
