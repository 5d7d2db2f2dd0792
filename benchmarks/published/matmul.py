"""Matrix multiplication, out[M, N] = lhs_t[K, M].T @ rhs[K, N], tiled in the published ways.

Sources: the SDK's kernel-optimization and matrix-multiplication tutorials (`tiled`, `hoisted`,
`blocked`, `blocked_k`) and autocomp's search over the latter (`tile_groups`).
"""

import nki
import nki.isa as nisa
import nki.language as nl

from benchmarks.published.legacy import BANK, P, load, load_tiles, psum, sbuf


def _store(out, m, n, total):
    """PSUM tile (m, n) -> SBUF in the output's dtype -> HBM."""
    result = sbuf((P, BANK), out.dtype)
    nisa.tensor_copy(dst=result, src=total)
    nisa.dma_copy(dst=out[m * P : (m + 1) * P, n * BANK : (n + 1) * BANK], src=result)


@nki.jit
def tiled(lhs_t, rhs, merged=False):
    """Both tiles are loaded anew before each matmul.

    Args:
        lhs_t: HBM tensor [K, M].
        rhs: HBM tensor [K, N].
        merged: loads of neighbouring tiles are merged, as the old compiler does (legacy rule 6).
    """
    (depth, rows), columns = lhs_t.shape, rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    for m in range(rows // P):
        for n in range(columns // BANK):
            total = psum()
            step = 16 if merged else 1  # tiles at a time: 512 KiB of lhs_t in bf16
            for k0 in range(0, depth // P, step):
                ks = range(k0, min(k0 + step, depth // P))
                if merged:
                    left = load_tiles(lhs_t, ks, m * P, P)
                    right = load_tiles(rhs, ks, n * BANK, BANK)
                else:
                    left = [load(lhs_t[k * P : (k + 1) * P, m * P : (m + 1) * P]) for k in ks]
                    at = slice(n * BANK, (n + 1) * BANK)
                    right = [load(rhs[k * P : (k + 1) * P, at]) for k in ks]
                for k in ks:
                    nisa.nc_matmul(
                        dst=total,
                        stationary=left[k - k0],
                        moving=right[k - k0],
                        accumulate=k > 0,
                    )
            _store(out, m, n, total)
    return out


SBUF_FOR_BLOCKS = 200 * 1024
"""Bytes per partition that both operands' tiles may fill (trn2: 208 KiB usable)."""


@nki.jit
def blocked(lhs_t, rhs, m_tiles=1, n_tiles=1):
    """All K of `m_tiles` row tiles and of `n_tiles` column tiles are loaded before use.

    With 1 and 1 this is the tutorial's version with hoisted loads. Blocks that SBUF cannot hold
    (2 × 2 at K = 8192 in fp32) load the columns again for each row tile (legacy rule 6; the
    tutorial's profile has the DMA queues as busy then as without blocks).
    """
    (depth, rows), columns = lhs_t.shape, rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    ks = range(depth // P)
    held = depth // P * (m_tiles * P + n_tiles * BANK) * rhs.dtype.itemsize
    passes = 1 if held <= SBUF_FOR_BLOCKS else m_tiles
    for m0 in range(0, rows // P, m_tiles):
        left = [
            [load(lhs_t[k * P : (k + 1) * P, m * P : (m + 1) * P]) for k in ks]
            for m in range(m0, m0 + m_tiles)
        ]
        for n0 in range(0, columns // BANK, n_tiles):
            loaded = {}
            for m in range(m_tiles):
                if m % (m_tiles // passes) == 0:
                    loaded = {}
                for n in range(n0, n0 + n_tiles):
                    if n not in loaded:
                        if passes > 1:
                            loaded.clear()
                        at = slice(n * BANK, (n + 1) * BANK)
                        loaded[n] = [load(rhs[k * P : (k + 1) * P, at]) for k in ks]
                    total = psum()
                    for k in ks:
                        nisa.nc_matmul(
                            dst=total, stationary=left[m][k], moving=loaded[n][k], accumulate=k > 0
                        )
                    _store(out, m0 + m, n, total)
    return out


@nki.jit
def blocked_k(lhs_t, rhs, m_tiles=16, n_tiles=2, k_tiles=8):
    """Blocks in all three dimensions; partial sums are added up in SBUF, in the input's dtype."""
    (depth, rows), columns = lhs_t.shape, rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    block_m, block_n = m_tiles * P, n_tiles * BANK
    for n0 in range(0, columns, block_n):
        sums = [[sbuf((P, BANK), lhs_t.dtype) for _ in range(n_tiles)] for _ in range(rows // P)]
        for row in sums:
            for tile in row:
                nisa.memset(dst=tile, value=0.0)
        for k0 in range(0, depth // P, k_tiles):
            ks = range(k0, k0 + k_tiles)
            right = [load(rhs[k * P : (k + 1) * P, n0 : n0 + block_n]) for k in ks]
            for m0 in range(0, rows, block_m):
                left = [load(lhs_t[k * P : (k + 1) * P, m0 : m0 + block_m]) for k in ks]
                for n in range(n_tiles):
                    for m in range(m_tiles):
                        total = psum()
                        for k in range(k_tiles):
                            nisa.nc_matmul(
                                dst=total,
                                stationary=left[k][:, m * P : (m + 1) * P],
                                moving=right[k][:, n * BANK : (n + 1) * BANK],
                                accumulate=k > 0,
                            )
                        tile = sums[m0 // P + m][n]
                        nisa.tensor_tensor(dst=tile, data1=tile, data2=total, op=nl.add)
        for m in range(rows // P):
            packed = sbuf((P, block_n), out.dtype)
            for n in range(n_tiles):
                nisa.tensor_copy(dst=packed[:, n * BANK : (n + 1) * BANK], src=sums[m][n])
            nisa.dma_copy(dst=out[m * P : (m + 1) * P, n0 : n0 + block_n], src=packed)
    return out


STEP = 4
"""Tiles of K that are loaded at a time: 512 KiB of rhs in bf16 (legacy rule 6)."""


@nki.jit
def tile_groups(lhs_t, rhs, m_tiles=1, n_tiles=2, m_load=1, n_load=1):
    """`m_tiles` × `n_tiles` PSUM tiles grow together while K goes by.

    Args:
        lhs_t: HBM tensor [K, M].
        rhs: HBM tensor [K, N].
        m_tiles: row tiles that share each load of `rhs`.
        n_tiles: column tiles that share each load of `lhs_t`; m_tiles * n_tiles <= 8 banks.
        m_load: row tiles of `lhs_t` per DMA.
        n_load: column tiles of `rhs` per DMA.
    """
    (depth, rows), columns = lhs_t.shape, rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    for m0 in range(0, rows // P, m_tiles):
        for n0 in range(0, columns // BANK, n_tiles):
            totals = [[psum() for _ in range(n_tiles)] for _ in range(m_tiles)]
            for k0 in range(0, depth // P, STEP):
                ks = range(k0, min(k0 + STEP, depth // P))
                right = [
                    load_tiles(rhs, ks, n * BANK, n_load * BANK)
                    for n in range(n0, n0 + n_tiles, n_load)
                ]
                left = [
                    load_tiles(lhs_t, ks, m * P, m_load * P)
                    for m in range(m0, m0 + m_tiles, m_load)
                ]
                for k in ks:
                    for m in range(m_tiles):
                        for n in range(n_tiles):
                            row, column = m % m_load * P, n % n_load * BANK
                            nisa.nc_matmul(
                                dst=totals[m][n],
                                stationary=left[m // m_load][k - k0][:, row : row + P],
                                moving=right[n // n_load][k - k0][:, column : column + BANK],
                                accumulate=k > 0,
                            )
            for m in range(m_tiles):
                for n in range(n_tiles):
                    _store(out, m0 + m, n0 + n, totals[m][n])
    return out
