"""GELU(lhs_tᵀ @ rhs + bias) of trainium-kernel-fusion, fused and in two launches.

All loads stand inside the K loop in the published code. The compiler keeps `rhs` in SBUF for the
whole kernel if it fits, and the row's `lhs_t` tiles for one row of tiles (legacy rule 6): bf16 at
1024×2048×4096 takes 288 µs measured, in which 168 MB of repeated loads could not pass.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from benchmarks.published.legacy import (
    BANK,
    Balance,
    P,
    broadcast,
    load,
    load_tiles,
    ones_row,
    psum,
    sbuf,
)

SBUF_FOR_OPERAND = 144 * 1024
"""Bytes per partition that a whole operand may fill and stay loaded: 192 KiB less what one row
of tiles needs (the old compiler's SBUF limit on trn2 is not published; trn1's is 192 KiB)."""


def _gemm_tiles(lhs_t, rhs, bias):
    """Yield (m, n, tile) with tile = lhs_tᵀ @ rhs + bias in SBUF, in the output's dtype."""
    (depth, rows), columns = lhs_t.shape, rhs.shape[1]
    ks, parts = range(depth // P), range(columns // BANK)
    ones = ones_row(bias.dtype)
    bias_row = load(bias)
    stays = depth // P * columns * rhs.dtype.itemsize <= SBUF_FOR_OPERAND
    kept = {}
    for m in range(rows // P):
        left = load_tiles(lhs_t, ks, m * P, P)
        for n in parts:
            at = slice(n * BANK, (n + 1) * BANK)
            right = kept.get(n)
            if right is None:
                right = load_tiles(rhs, ks, n * BANK, BANK)
            if stays:
                kept[n] = right
            total = psum()
            for k in ks:
                nisa.nc_matmul(dst=total, stationary=left[k], moving=right[k], accumulate=k > 0)
            product = sbuf((P, BANK), lhs_t.dtype)
            nisa.tensor_copy(dst=product, src=total)
            tile = sbuf((P, BANK), lhs_t.dtype)
            spread = broadcast(ones, bias_row[:, at])
            nisa.tensor_tensor(dst=tile, data1=product, data2=spread, op=nl.add)
            yield m, n, tile


def _store(out, m, n, tile):
    nisa.dma_copy(dst=out[m * P : (m + 1) * P, n * BANK : (n + 1) * BANK], src=tile)


@nki.jit
def fused_pwl(lhs_t, rhs, bias):
    """GELU by the Scalar engine's table, before the only store.

    Args:
        lhs_t: HBM tensor [K, M]; K and M multiples of 128.
        rhs: HBM tensor [K, N], N a multiple of 512.
        bias: HBM tensor [1, N].

    Returns:
        HBM tensor [M, N].
    """
    out = nl.ndarray((lhs_t.shape[1], rhs.shape[1]), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    for m, n, tile in _gemm_tiles(lhs_t, rhs, bias):
        result = sbuf((P, BANK), out.dtype)
        nisa.activation(dst=result, op=nl.gelu, data=tile)
        _store(out, m, n, result)
    return out


def _scaled(x, balance, scale, offset=None):
    """x * scale [+ offset], where rule 1 puts it."""
    result = sbuf(x.shape, x.dtype)
    engine = balance.choose(BANK)
    if offset is None:
        nisa.tensor_scalar(dst=result, data=x, op0=nl.multiply, operand0=scale, engine=engine)
    else:
        nisa.tensor_scalar(
            dst=result,
            data=x,
            op0=nl.multiply,
            operand0=scale,
            op1=nl.add,
            operand1=offset,
            engine=engine,
        )
    return result


def _combined(a, b, op, balance):
    result = sbuf(a.shape, a.dtype)
    nisa.tensor_tensor(dst=result, data1=a, data2=b, op=op)
    balance.add("vector", 2 * BANK)
    return result


@nki.jit
def fused_taylor(lhs_t, rhs, bias):
    """GELU as x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2 with tanh z = 2 sigmoid(2z) - 1.

    Args:
        lhs_t: HBM tensor [K, M]; K and M multiples of 128.
        rhs: HBM tensor [K, N], N a multiple of 512.
        bias: HBM tensor [1, N].

    Returns:
        HBM tensor [M, N].
    """
    balance = Balance()
    out = nl.ndarray((lhs_t.shape[1], rhs.shape[1]), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    for m, n, x in _gemm_tiles(lhs_t, rhs, bias):
        cubed = _combined(_combined(x, x, nl.multiply, balance), x, nl.multiply, balance)
        inner = _combined(x, _scaled(cubed, balance, 0.044715), nl.add, balance)
        inner = _scaled(inner, balance, 0.7978845608028654)
        sigmoid = sbuf(x.shape, x.dtype)
        nisa.activation(dst=sigmoid, op=nl.sigmoid, data=inner, scale=2.0)
        balance.add("scalar", BANK)
        tanh = _scaled(sigmoid, balance, 2.0, -1.0)
        half = _scaled(x, balance, 0.5)
        factor = _scaled(tanh, balance, 1.0, 1.0)
        _store(out, m, n, _combined(half, factor, nl.multiply, balance))
    return out


@nki.jit
def gemm(lhs_t, rhs, bias):
    """The first launch of the unfused pair: lhs_tᵀ @ rhs + bias."""
    out = nl.ndarray((lhs_t.shape[1], rhs.shape[1]), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    for m, n, tile in _gemm_tiles(lhs_t, rhs, bias):
        _store(out, m, n, tile)
    return out


@nki.jit
def gelu(x):
    """The second launch: GELU of an HBM tensor [M, N], tile by tile."""
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for m in range(rows // P):
        for n in range(columns // BANK):
            tile = load(x[m * P : (m + 1) * P, n * BANK : (n + 1) * BANK])
            result = sbuf((P, BANK), x.dtype)
            nisa.activation(dst=result, op=nl.gelu, data=tile)
            _store(out, m, n, result)
    return out
