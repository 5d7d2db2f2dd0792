"""The hand-written 2048³ matmuls of nki-autotune (trn2, bf16).

The published kernels zero each PSUM tile and let every matmul add to it. On the device GpSimd
does the zeroing (8.8 % busy in the published profile) beside the other engines; in `nki` since 0.3
GpSimd has no PSUM, so here the first matmul overwrites.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from benchmarks.published.legacy import BANK, P, load, psum, sbuf


def _accumulate(sums, left, right):
    """sums[m][:, n] += left.T @ right, one PSUM tile per (m, n), through an SBUF copy."""
    for m, tile in enumerate(sums):
        for n in range(right[0].shape[1] // BANK):
            columns = slice(n * BANK, (n + 1) * BANK)
            total = psum()
            for k, stationary in enumerate(left):
                nisa.nc_matmul(
                    dst=total,
                    stationary=stationary[:, m * P : (m + 1) * P],
                    moving=right[k][:, columns],
                    accumulate=k > 0,
                )
            part = sbuf((P, BANK), tile.dtype)
            nisa.tensor_copy(dst=part, src=total)
            nisa.tensor_tensor(dst=tile[:, columns], data1=tile[:, columns], data2=part, op=nl.add)


def _zeros(tiles, columns):
    made = [sbuf((P, columns), nl.bfloat16) for _ in range(tiles)]
    for tile in made:
        nisa.memset(dst=tile, value=0.0)
    return made


@nki.jit
def lhs_t_rhs(lhs_t, rhs):
    """Columns outermost; K in halves; rows in blocks of 4 tiles; lhs_t is loaded per column block.

    Args:
        lhs_t: HBM tensor [K, M] bf16; K a multiple of 1024, M of 512.
        rhs: HBM tensor [K, N] bf16, N a multiple of 512.
    """
    (depth, rows), columns = lhs_t.shape, rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=nl.bfloat16, buffer=nl.shared_hbm)
    for n0 in range(0, columns, BANK):
        sums = _zeros(rows // P, BANK)
        for k0 in range(0, depth, 8 * P):
            ks = range(k0, k0 + 8 * P, P)
            right = [load(rhs[k : k + P, n0 : n0 + BANK]) for k in ks]
            for m0 in range(0, rows, 4 * P):
                left = [load(lhs_t[k : k + P, m0 : m0 + 4 * P]) for k in ks]
                _accumulate(sums[m0 // P : m0 // P + 4], left, right)
        for m, tile in enumerate(sums):
            nisa.dma_copy(dst=out[m * P : (m + 1) * P, n0 : n0 + BANK], src=tile)
    return out


@nki.jit
def lhs_rhs(lhs, rhs):
    """Rows in halves, outermost; lhs comes through DMA transposes.

    Args:
        lhs: HBM tensor [M, K] bf16, both multiples of 1024.
        rhs: HBM tensor [K, N] bf16, N a multiple of 512.
    """
    (rows, depth), columns = lhs.shape, rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=nl.bfloat16, buffer=nl.shared_hbm)
    for m0 in range(0, rows, 8 * P):
        sums = _zeros(8, columns)
        for n0 in range(0, columns, BANK):
            for k0 in range(0, depth, 8 * P):
                ks = range(k0, k0 + 8 * P, P)
                left = [sbuf((P, 8 * P), nl.bfloat16) for _ in ks]
                for tile, k in zip(left, ks, strict=True):
                    nisa.dma_transpose(dst=tile, src=lhs[m0 : m0 + 8 * P, k : k + P])
                right = [load(rhs[k : k + P, n0 : n0 + BANK]) for k in ks]
                _accumulate([tile[:, n0 : n0 + BANK] for tile in sums], left, right)
            for m, tile in enumerate(sums):
                nisa.dma_copy(
                    dst=out[m0 + m * P : m0 + (m + 1) * P, n0 : n0 + BANK],
                    src=tile[:, n0 : n0 + BANK],
                )
    return out


@nki.jit
def resident(lhs_t, rhs, versions=1):
    """All operands are loaded first; each row of tiles grows in `versions` rotating PSUM rows.

    Args:
        lhs_t: HBM tensor [K, M] bf16, multiples of 128.
        rhs: HBM tensor [K, N] bf16, N a multiple of 512 up to 2048.
        versions: 1 or 2 PSUM rows of N columns.
    """
    (depth, rows), columns = lhs_t.shape, rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=nl.bfloat16, buffer=nl.shared_hbm)
    ks = range(depth // P)
    left = [load(lhs_t[k * P : (k + 1) * P, :]) for k in ks]
    right = [load(rhs[k * P : (k + 1) * P, :]) for k in ks]
    totals = [psum(columns) for _ in range(versions)]
    products = []
    for m in range(rows // P):
        total = totals[m % versions]
        for n in range(0, columns, BANK):
            for k in ks:
                nisa.nc_matmul(
                    dst=total[:, n : n + BANK],
                    stationary=left[k][:, m * P : (m + 1) * P],
                    moving=right[k][:, n : n + BANK],
                    accumulate=k > 0,
                )
        product = sbuf((P, columns), nl.bfloat16)
        nisa.tensor_copy(dst=product, src=total)
        products.append(product)
    for m, product in enumerate(products):
        nisa.dma_copy(dst=out[m * P : (m + 1) * P, :], src=product)
    return out


@nki.jit
def single_buffer(lhs_t, rhs):
    """Both operands are loaded before each matmul, always into the same two tiles.

    Args:
        lhs_t: HBM tensor [K, M] bf16, multiples of 128.
        rhs: HBM tensor [K, N] bf16, N a multiple of 512.
    """
    (depth, rows), columns = lhs_t.shape, rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=nl.bfloat16, buffer=nl.shared_hbm)
    left, right = sbuf((P, P), nl.bfloat16), sbuf((P, BANK), nl.bfloat16)
    total, product = psum(), sbuf((P, BANK), nl.bfloat16)
    for m in range(0, rows, P):
        for n in range(0, columns, BANK):
            for k in range(0, depth, P):
                nisa.dma_copy(dst=left, src=lhs_t[k : k + P, m : m + P])
                nisa.dma_copy(dst=right, src=rhs[k : k + P, n : n + BANK])
                nisa.nc_matmul(dst=total, stationary=left, moving=right, accumulate=k > 0)
            nisa.tensor_copy(dst=product, src=total)
            nisa.dma_copy(dst=out[m : m + P, n : n + BANK], src=product)
    return out
