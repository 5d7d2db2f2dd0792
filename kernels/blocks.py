"""Building blocks of kernels that multiply matrices. Plain functions: the compilers inline them.

The Tensor engine contracts over partitions, so a contraction of K is cut into `tiles` steps of
`partitions` each. Which rows share a step is free, as long as both operands agree. Here row k
sits in partition k // tiles at step k % tiles ("interleaved"): the rows of one partition are
then neighbours in HBM, and a DMA descriptor is tiles * N elements long, not N. Short descriptors
are what keeps a DMA from HBM's bandwidth.
"""

import nki.isa as nisa
import nki.language as nl


def contraction_split(size):
    """(partitions, tiles) with partitions * tiles == size and partitions <= 128.

    Args:
        size: length of a contraction; must divide into ceil(size / 128) equal parts.
    """
    tiles = (size + nl.tile_size.pmax - 1) // nl.tile_size.pmax
    assert size % tiles == 0, (
        "a contraction above 128 must divide into ceil(size / 128) equal parts of at most 128"
    )
    return size // tiles, tiles


def load_contraction(matrix, first, columns):
    """Load columns [first, first + columns) of an HBM matrix [K, N], K interleaved.

    Returns:
        SBUF tile [partitions, tiles, columns] of the matrix's dtype; element [p, j, n] is
        matrix[p * tiles + j, first + n].
    """
    size, width = matrix.shape
    partitions, tiles = contraction_split(size)
    tile = nl.ndarray((partitions, tiles, columns), dtype=matrix.dtype, buffer=nl.sbuf)
    rows = matrix.reshape((partitions, tiles, width))
    nisa.dma_copy(dst=tile, src=rows[:, :, first : first + columns])
    return tile


def evict(dst, src, engine, turn=0):
    """Copy a PSUM tile to SBUF (or any on-chip tile), with a cast if dtypes differ.

    Args:
        dst: on-chip tile.
        src: on-chip tile of dst's shape.
        engine: "vector", "scalar", or "both" to alternate between them by `turn`.
        turn: counter of evictions, for "both".
    """
    assert engine == "vector" or engine == "scalar" or engine == "both", (
        "evict: engine must be 'vector', 'scalar' or 'both'"
    )
    if engine == "scalar" or (engine == "both" and turn % 2 == 1):
        nisa.tensor_copy(dst=dst, src=src, engine=nisa.engine.scalar)
    else:
        nisa.tensor_copy(dst=dst, src=src, engine=nisa.engine.vector)


def multiply(dst, stationary, moving):
    """dst[M, N] = the sum over j of stationary[:, j, :].T @ moving[:, j, :], in fp32.

    Args:
        dst: PSUM tile [M, N], fp32, M <= 128, N <= 512.
        stationary: SBUF [partitions, tiles, M].
        moving: SBUF [partitions, tiles, N].
    """
    tiles = stationary.shape[1]
    for j in range(tiles):
        nisa.nc_matmul(
            dst=dst,
            stationary=stationary[:, j, :],
            moving=moving[:, j, :],
            accumulate=j > 0,
        )


def transpose_into(dst, rows, engine="both"):
    """Turn an SBUF tile [R, K] of rows into an interleaved operand.

    Steps are transposed by the Tensor engine and evicted several at a time, as many as fit a
    PSUM bank.

    Args:
        dst: SBUF [partitions, tiles, R] of rows' dtype; element [p, j, r] becomes
            rows[r, p * tiles + j].
        rows: SBUF tile [R, K], R <= 128.
        engine: who evicts PSUM, see `evict`.
    """
    count, size = rows.shape
    partitions, tiles = contraction_split(size)
    width = 4 if rows.dtype == nl.float32 else 2
    group = max(1, nl.tile_size.psum_fmax * 4 // (width * count))
    for first in range(0, tiles, group):
        some = min(group, tiles - first)
        turned = nl.ndarray((partitions, some, count), dtype=rows.dtype, buffer=nl.psum)
        for j in range(some):
            nisa.nc_transpose(dst=turned[:, j, :], data=rows[:, first + j : size : tiles])
        evict(dst[:, first : first + some, :], turned, engine, first // group)


def transpose_interleaved(rows, engine="both"):
    """`transpose_into` a new SBUF tile [partitions, tiles, R], which is returned."""
    partitions, tiles = contraction_split(rows.shape[1])
    result = nl.ndarray((partitions, tiles, rows.shape[0]), dtype=rows.dtype, buffer=nl.sbuf)
    transpose_into(result, rows, engine)
    return result


def filled(shape, value, dtype):
    """A new SBUF tile filled with a number."""
    tile = nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=value)
    return tile


def sum_over_partitions(column, ones):
    """The sum of an SBUF column, in every partition: ones.T @ column.

    Args:
        column: SBUF tile [P, N], N <= 512, fp32 for exact sums.
        ones: SBUF tile [P, P'] of 1.0, column's dtype; P' partitions get the sum.

    Returns:
        PSUM tile [P', N], fp32.
    """
    total = nl.ndarray((ones.shape[1], column.shape[1]), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total, stationary=ones, moving=column, accumulate=False)
    return total
