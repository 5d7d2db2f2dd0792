"""The baseline kernels of NKIBench (AccelOpt), fp32 on trn1, those that do not spill.

What the compiler loads, transposes and keeps follows the HBM bytes and flops that NKIBench
publishes beside each latency. An fp32 transpose through the Tensor engine is counted twice there
and stands inside every loop of the source, hoisted out of none.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from benchmarks.published.legacy import (
    BANK,
    Balance,
    P,
    broadcast,
    copied,
    load,
    ones_row,
    psum,
    sbuf,
    transposed,
)


def _half_scaled(x, scale, balance, add=None):
    """x * scale or x + add of one [rows, 512] tile, on the engine that rule 1 chooses."""
    result = sbuf(x.shape)
    nisa.tensor_scalar(
        dst=result,
        data=x,
        op0=nl.multiply if add is None else nl.add,
        operand0=scale if add is None else add,
        engine=balance.choose(x.shape[1]),
    )
    return result


def _combined(a, b, op, balance, dst=None):
    result = sbuf(a.shape) if dst is None else dst
    nisa.tensor_tensor(dst=result, data1=a, data2=b, op=op)
    balance.add("vector", 2 * a.shape[1])
    return result


def _reciprocal(x, balance):
    result = sbuf(x.shape)
    nisa.reciprocal(dst=result, data=x)
    balance.add("vector", 4 * x.shape[1])
    return result


@nki.jit
def silu(x):
    """x / (1 + exp(-x)) with a reciprocal on Vector, in tiles of 1024 columns, halves of 512.

    Args:
        x: HBM tensor [128, slices, columns] fp32, columns a multiple of 1024.

    Returns:
        HBM tensor like x.
    """
    balance = Balance()
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    _, slices, columns = x.shape
    for i in range(slices):
        for start in range(0, columns, 2 * BANK):
            at = slice(start, start + 2 * BANK)
            tile, result = load(x[:, i, at]), sbuf((P, 2 * BANK))
            for half in (slice(0, BANK), slice(BANK, 2 * BANK)):
                part = tile[:, half]
                exponential = sbuf((P, BANK))
                nisa.activation(dst=exponential, op=nl.exp, data=part, scale=-1.0)
                balance.add("scalar", BANK)
                denominator = _half_scaled(exponential, None, balance, add=1.0)
                inverse = _reciprocal(denominator, balance)
                _combined(part, inverse, nl.multiply, balance, dst=result[:, half])
            nisa.dma_copy(dst=out[:, i, at], src=result)
    return out


@nki.jit
def adamw(theta, gradient, first, second):
    """One AdamW update of theta (rates and moments as NKIBench has them), 1024 columns a tile.

    Args:
        theta: HBM tensor [rows, columns] fp32, columns a multiple of 1024; the others alike.
        gradient: as theta.
        first: first moment, as theta.
        second: second moment, as theta.

    Returns:
        HBM tensor like theta.
    """
    balance = Balance()
    out = nl.ndarray(theta.shape, dtype=theta.dtype, buffer=nl.shared_hbm)
    rows, columns = theta.shape
    for top in range(0, rows, P):
        count = min(P, rows - top)
        for left in range(0, columns, 2 * BANK):
            at = (slice(top, top + count), slice(left, left + 2 * BANK))
            tiles = [load(source[at]) for source in (theta, first, second, gradient)]
            result = sbuf((count, 2 * BANK))
            for half in (slice(0, BANK), slice(BANK, 2 * BANK)):
                old, m, v, g = [tile[:, half] for tile in tiles]
                decayed = _combined(old, _half_scaled(old, 1e-5, balance), nl.subtract, balance)
                mean = _combined(
                    _half_scaled(m, 0.9, balance), _half_scaled(g, 0.1, balance), nl.add, balance
                )
                step = _half_scaled(mean, 0.01, balance)
                kept = _half_scaled(v, 0.999, balance)
                fresh = _combined(_half_scaled(g, 0.001, balance), g, nl.multiply, balance)
                variance = _combined(kept, fresh, nl.add, balance)
                root = sbuf((count, BANK))
                nisa.activation(dst=root, op=nl.sqrt, data=variance, scale=1000.0)
                balance.add("scalar", BANK)
                inverse = _reciprocal(_half_scaled(root, None, balance, add=1e-8), balance)
                change = _combined(step, inverse, nl.multiply, balance)
                _combined(decayed, change, nl.subtract, balance, dst=result[:, half])
            nisa.dma_copy(dst=out[at], src=result)
    return out


@nki.jit
def rope(x, cos, sin):
    """Rotary embedding of [128, tokens], upper half of the partitions even, lower half odd.

    Args:
        x: HBM tensor [128, tokens] fp32, tokens a multiple of 512.
        cos: HBM tensor [64, tokens]; sin alike.
        sin: as cos.

    Returns:
        HBM tensor like x.
    """
    half = P // 2
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    for start in range(0, x.shape[1], BANK):
        at = slice(start, start + BANK)
        tile = load(x[:, at])
        cosine, sine = load(cos[:, at]), load(sin[:, at])
        odd = sbuf((half, BANK))
        nisa.tensor_copy(dst=odd, src=tile[half:P, :], engine=nisa.engine.scalar)
        even = tile[0:half, :]
        products = []
        for operand, factor in ((even, cosine), (odd, cosine), (even, sine), (odd, sine)):
            product = sbuf((half, BANK))
            nisa.tensor_tensor(dst=product, data1=operand, data2=factor, op=nl.multiply)
            products.append(product)
        result = sbuf((P, BANK))
        nisa.tensor_tensor(
            dst=result[0:half, :], data1=products[0], data2=products[3], op=nl.subtract
        )
        nisa.tensor_tensor(dst=result[half:P, :], data1=products[1], data2=products[2], op=nl.add)
        nisa.dma_copy(dst=out[:, at], src=result)
    return out


@nki.jit
def transpose_matmul(lhs_t, rhs):
    """lhs_tᵀ @ rhs: K on partitions and slices; 1024 rows of lhs_t stay, rhs passes by.

    Args:
        lhs_t: HBM tensor [128, K / 128, M] fp32, M a multiple of 1024.
        rhs: HBM tensor [128, K / 128, N].

    Returns:
        HBM tensor [M, N].
    """
    (_, depth, rows), columns = lhs_t.shape, rhs.shape[2]
    out = nl.ndarray((rows, columns), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    for m0 in range(0, rows, 8 * P):
        left = [load(lhs_t[:, k, m0 : m0 + 8 * P]) for k in range(depth)]
        for n0 in range(0, columns, 2 * BANK):
            width = min(2 * BANK, columns - n0)
            right = [load(rhs[:, k, n0 : n0 + width]) for k in range(depth)]
            for m in range(8):
                result = sbuf((P, width))
                for n in range(0, width, BANK):
                    part = slice(n, min(n + BANK, width))
                    total = psum(part.stop - part.start)
                    for k in range(depth):
                        nisa.nc_matmul(
                            dst=total,
                            stationary=left[k][:, m * P : (m + 1) * P],
                            moving=right[k][:, part],
                            accumulate=k > 0,
                        )
                    nisa.tensor_copy(dst=result[:, part], src=total, engine=nisa.engine.scalar)
                top = m0 + m * P
                nisa.dma_copy(dst=out[top : top + P, n0 : n0 + width], src=result)
    return out


@nki.jit
def matmul(lhs, rhs):
    """lhs @ rhs with lhs [M, K] transposed tile by tile for every 1024 columns of rhs.

    rhs does not fit beside the rest, so each row tile loads its 1024 columns again (9.06 GB of
    HBM reads published for 4096×5120×12288).

    Args:
        lhs: HBM tensor [M, K] fp32, K a multiple of 1024.
        rhs: HBM tensor [K, N], N a multiple of 1024.

    Returns:
        HBM tensor [M, N].
    """
    balance = Balance()
    (rows, depth), columns = lhs.shape, rhs.shape[1]
    out = nl.ndarray((rows, columns), dtype=lhs.dtype, buffer=nl.shared_hbm)
    for n0 in range(0, columns, 2 * BANK):
        for m in range(0, rows, P):
            left = sbuf((P, depth))
            for k0 in range(0, depth, 8 * P):
                at = slice(k0, k0 + 8 * P)
                transposed(load(lhs[m : m + P, at]), left[:, at], balance)
            totals = [psum(), psum()]
            for k in range(depth // P):
                right = load(rhs[k * P : (k + 1) * P, n0 : n0 + 2 * BANK])
                for n, total in enumerate(totals):
                    nisa.nc_matmul(
                        dst=total,
                        stationary=left[:, k * P : (k + 1) * P],
                        moving=right[:, n * BANK : (n + 1) * BANK],
                        accumulate=k > 0,
                    )
            result = sbuf((P, 2 * BANK))
            for n, total in enumerate(totals):
                nisa.tensor_copy(
                    dst=result[:, n * BANK : (n + 1) * BANK],
                    src=total,
                    engine=balance.choose(BANK),
                )
            nisa.dma_copy(dst=out[m : m + P, n0 : n0 + 2 * BANK], src=result)
    return out


@nki.jit
def rmsnorm_matmul(x, w):
    """(x / rms(x)) @ w, blocks of 1024 rows: all normalised and transposed, then multiplied.

    Args:
        x: HBM tensor [M, 1024] fp32, M a multiple of 1024.
        w: HBM tensor [1024, N], N a multiple of 1024.

    Returns:
        HBM tensor [M, N].
    """
    balance = Balance()
    (rows, depth), columns = x.shape, w.shape[1]
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for m0 in range(0, rows, 8 * P):
        left = [
            _normalised_transposed(load(x[m : m + P, :]), depth, balance)
            for m in range(m0, m0 + 8 * P, P)
        ]
        for n0 in range(0, columns, 2 * BANK):
            right = [load(w[k : k + P, n0 : n0 + 2 * BANK]) for k in range(0, depth, P)]
            for m, tiles in enumerate(left):
                result = sbuf((P, 2 * BANK))
                for n in (0, BANK):
                    total = psum()
                    for k in range(depth // P):
                        nisa.nc_matmul(
                            dst=total,
                            stationary=tiles[:, k * P : (k + 1) * P],
                            moving=right[k][:, n : n + BANK],
                            accumulate=k > 0,
                        )
                    nisa.tensor_copy(
                        dst=result[:, n : n + BANK], src=total, engine=balance.choose(BANK)
                    )
                top = m0 + m * P
                nisa.dma_copy(dst=out[top : top + P, n0 : n0 + 2 * BANK], src=result)
    return out


def _normalised_transposed(tile, depth, balance):
    """The [128, 128] transposes of tile / rms(tile), side by side."""
    partial = sbuf((P, depth // BANK))
    for j in range(depth // BANK):
        square = sbuf((P, BANK))
        part = tile[:, j * BANK : (j + 1) * BANK]
        nisa.activation(dst=square, op=nl.square, data=part)
        balance.add("scalar", BANK)
        mean = _half_scaled(square, 1.0 / depth, balance)
        nisa.tensor_reduce(dst=partial[:, j : j + 1], op=nl.add, data=mean, axis=1)
        balance.add("vector", BANK)
    inverse = _inverse_root(partial)
    left = sbuf((P, depth))
    for j in range(depth // BANK):
        at = slice(j * BANK, (j + 1) * BANK)
        scaled = sbuf((P, BANK))
        nisa.tensor_scalar(
            dst=scaled,
            data=tile[:, at],
            op0=nl.multiply,
            operand0=inverse,
            engine=balance.choose(BANK),
        )
        transposed(scaled, left[:, at], balance)
    return left


def _inverse_root(partial, eps=None):
    """rsqrt(Σ partial [+ eps]) as [128, 1]."""
    total, inverse = sbuf((P, 1)), sbuf((P, 1))
    nisa.tensor_reduce(dst=total, op=nl.add, data=partial, axis=1)
    if eps is not None:
        nisa.tensor_scalar(dst=total, data=total, op0=nl.add, operand0=eps)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=total)
    return inverse


def _rmsnorm_weighted(a, g_row, ones, eps, balance):
    """a / rms(a) * g for a [128, columns] tile."""
    columns = a.shape[1]
    square, mean = sbuf(a.shape), sbuf((P, 1))
    nisa.activation(dst=square, op=nl.square, data=a)
    balance.add("scalar", columns)
    nisa.tensor_reduce(dst=mean, op=nl.add, data=square, axis=1)
    balance.add("vector", columns)
    nisa.tensor_scalar(dst=mean, data=mean, op0=nl.multiply, operand0=1.0 / columns)
    inverse = _inverse_root(mean, eps)
    result = sbuf(a.shape)
    nisa.tensor_scalar(
        dst=result, data=a, op0=nl.multiply, operand0=inverse, engine=balance.choose(columns)
    )
    for start in range(0, columns, BANK):
        at = slice(start, start + BANK)
        spread = broadcast(ones, g_row[:, at])
        _combined(result[:, at], spread, nl.multiply, balance, dst=result[:, at])
    return result


def _product_with_transposes(tile, w_tiles, n, balance):
    """tile @ w[:, 512 n : 512 (n+1)] in PSUM; tile's transposes are made here, once per n."""
    total, left = psum(), sbuf(tile.shape)
    transposed(tile, left, balance)
    for k, right in enumerate(w_tiles):
        nisa.nc_matmul(
            dst=total,
            stationary=left[:, k * P : (k + 1) * P],
            moving=right[:, n * BANK : (n + 1) * BANK],
            accumulate=k > 0,
        )
    return total


@nki.jit
def add_rmsnorm_matmul(x, w, z, g, eps=1e-6):
    """rmsnorm(x + z) * g @ w, 128 rows at a time; w stays in SBUF (published HBM reads: once).

    Args:
        x: HBM tensor [M, K] fp32; z alike; M and K multiples of 128.
        w: HBM tensor [K, N], N a multiple of 512.
        z: as x.
        g: HBM tensor [1, K].
        eps: added to the mean square.

    Returns:
        HBM tensor [M, N].
    """
    balance = Balance()
    (rows, depth), columns = x.shape, w.shape[1]
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    ones, g_row = ones_row(), load(g)
    w_tiles = None
    for m in range(0, rows, P):
        tile, addend = load(x[m : m + P, :]), load(z[m : m + P, :])
        if w_tiles is None:
            w_tiles = [load(w[k : k + P, :]) for k in range(0, depth, P)]
        a = _combined(tile, addend, nl.add, balance)
        normalised = _rmsnorm_weighted(a, g_row, ones, eps, balance)
        for n in range(columns // BANK):
            total = _product_with_transposes(normalised, w_tiles, n, balance)
            result = copied(total, balance)
            nisa.dma_copy(dst=out[m : m + P, n * BANK : (n + 1) * BANK], src=result)
    return out


@nki.jit
def matmul_add_rmsnorm(x, w, z, g, eps=1e-6):
    """rmsnorm(x @ w + z) * g, 128 rows at a time; w stays in SBUF (16 MiB, read about twice).

    Args:
        x: HBM tensor [M, K] fp32, M and K multiples of 128.
        w: HBM tensor [K, N], N a multiple of 512.
        z: HBM tensor [M, N].
        g: HBM tensor [1, N].
        eps: added to the mean square.

    Returns:
        HBM tensor [M, N].
    """
    balance = Balance()
    (rows, depth), columns = x.shape, w.shape[1]
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    ones, g_row = ones_row(), load(g)
    w_tiles = None
    for m in range(0, rows, P):
        tile = load(x[m : m + P, :])
        if w_tiles is None:
            w_tiles = [load(w[k : k + P, :]) for k in range(0, depth, P)]
        product = sbuf((P, columns))
        for n in range(columns // BANK):
            total = _product_with_transposes(tile, w_tiles, n, balance)
            nisa.tensor_copy(
                dst=product[:, n * BANK : (n + 1) * BANK], src=total, engine=balance.choose(BANK)
            )
        a = _combined(product, load(z[m : m + P, :]), nl.add, balance)
        nisa.dma_copy(dst=out[m : m + P, :], src=_rmsnorm_weighted(a, g_row, ones, eps, balance))
    return out
