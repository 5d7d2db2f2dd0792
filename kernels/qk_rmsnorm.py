"""RMS normalisation of queries and keys, per head (Qwen3 normalises both before RoPE)."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import filled
from kernels.tiling import broadcast_row, core_share

BANK = 2048
"""Bytes of a PSUM bank in one partition."""


@nki.jit
def nki_qk_rmsnorm_kernel(q, k, q_weight, k_weight, eps=1e-6, elements=1152, gpsimd_tenths=4):
    """Normalise every head of q and of k: x / sqrt(mean(x^2) + eps) * weight.

    Sums and factors are fp32. x * factor is rounded to x's dtype before the weight multiplies it,
    as in transformers' Qwen3; in bf16 the squares are rounded as well, each by itself.

    Every partition has one or more neighbouring tokens, a token's heads side by side. A sum over
    part of the free dimension would be a Vector pass over everything. Instead the Tensor engine
    turns each head's 128 tokens, the Scalar engine squares as it empties PSUM, and a product
    with a column of ones sums over head_dim. Factors and weights are repeated by access
    patterns with a step of 0. The next tokens' squares are started before the last ones'
    factors are waited for. On two cores (LNC2) each takes half of the tokens.

    Args:
        q: HBM tensor [tokens, query heads, head_dim], fp32 or bf16.
        k: HBM tensor [tokens, key heads, head_dim], q's dtype.
        q_weight: HBM tensor [head_dim], q's dtype.
        k_weight: HBM tensor [head_dim], q's dtype.
        eps: compile-time float > 0.
        elements: numbers of q and k to a partition at a time, at most 8192: how many
            neighbouring tokens share one.
        gpsimd_tenths: how many tenths of the queries GpSimd multiplies by their factors.

    Returns:
        (q, k) normalised: HBM tensors of q's and k's shapes and dtypes.

    Limits: (query heads + key heads) * head_dim <= 8192.
    HBM bytes: 2 * (q + k) + 256 per core * head_dim * itemsize. MACs that count: none.
    """
    tokens, heads, width = q.shape
    groups = k.shape[1]
    assert k.shape[0] == tokens, "nki_qk_rmsnorm_kernel: q and k must have as many tokens"
    assert k.shape[2] == width, "nki_qk_rmsnorm_kernel: q and k must have one head_dim"
    assert k.dtype == q.dtype, "nki_qk_rmsnorm_kernel: k must have q's dtype"
    assert (heads + groups) * width <= 8192, (
        "nki_qk_rmsnorm_kernel: the heads of q and k together have more than 8192 numbers"
    )
    assert tuple(q_weight.shape) == (width,), (
        "nki_qk_rmsnorm_kernel: q_weight must have head_dim elements"
    )
    assert tuple(k_weight.shape) == (width,), (
        "nki_qk_rmsnorm_kernel: k_weight must have head_dim elements"
    )
    assert elements <= 8192, "nki_qk_rmsnorm_kernel: elements must be at most 8192"
    assert 0 <= gpsimd_tenths <= 10, "nki_qk_rmsnorm_kernel: gpsimd_tenths must be 0 to 10"
    q_out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    k_out = nl.ndarray(k.shape, dtype=k.dtype, buffer=nl.shared_hbm)
    most = max(1, elements // ((heads + groups) * width))
    start, last = core_share(tokens)
    size = nl.tile_size.pmax
    constants = (filled((min(width, size), 1), 1.0, q.dtype), filled((size, 1), eps, nl.float32))
    warm = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=warm, op=nl.rsqrt, data=constants[1])  # loads its table meanwhile
    weights = None
    pending = None
    while start < last:
        count = min(size, last - start)
        each = 1  # the first step is short: engines wait for it
        if pending != None:  # noqa: E711
            each = max(1, min(most, (last - start) // size))
        q_tile = load_heads(q, start, count, each)
        k_tile = load_heads(k, start, count, each)
        if weights == None:  # noqa: E711  after the first tokens, which are needed first
            weights = (
                broadcast_row(q_weight, count, width, nisa.engine.scalar),
                broadcast_row(k_weight, count, width, nisa.engine.scalar),
            )
        squares = (squared_heads(q_tile), squared_heads(k_tile))
        if pending != None:  # noqa: E711
            finish_heads(pending, weights, constants, (q_out, k_out), gpsimd_tenths)
        pending = (start, (q_tile, k_tile), squares)
        start += count * each
    if pending != None:  # noqa: E711
        finish_heads(pending, weights, constants, (q_out, k_out), gpsimd_tenths)
    return q_out, k_out


def heads_of(x, start, count, each):
    """Tokens [start, start + count * each) of HBM [tokens, heads, width], `each` to a partition.

    Returns:
        A view [count, each * heads, width].
    """
    heads, width = x.shape[1], x.shape[2]
    row = heads * width
    return x.ap(
        pattern=[[each * row, count], [width, each * heads], [1, width]], offset=start * row
    )


def load_heads(x, start, count, each):
    """`heads_of` in a new SBUF tile."""
    tile = nl.ndarray((count, each * x.shape[1], x.shape[2]), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=heads_of(x, start, count, each))
    return tile


def squared_heads(tile):
    """Squares of SBUF [count, heads, width], turned.

    Returns:
        A list of (first head, first column, SBUF [columns, heads, count] of tile's dtype).
    """
    count, heads, width = tile.shape
    itemsize = 4 if tile.dtype == nl.float32 else 2
    group = BANK // (itemsize * count)
    parts = []
    for first in range(0, heads, group):
        some = min(group, heads - first)
        for left in range(0, width, nl.tile_size.pmax):
            columns = min(nl.tile_size.pmax, width - left)
            turned = nl.ndarray((columns, some, count), dtype=tile.dtype, buffer=nl.psum)
            for n in range(some):
                nisa.nc_transpose(
                    dst=turned[:, n, :], data=tile[:, first + n, left : left + columns]
                )
            squares = nl.ndarray((columns, some, count), dtype=tile.dtype, buffer=nl.sbuf)
            nisa.activation(dst=squares, op=nl.square, data=turned)
            parts.append((first, left, squares))
    return parts


def sum_squares(squares, total, place, ones):
    """Sums of what `squared_heads` returns, into columns from `place` on of PSUM [count, heads]."""
    for step in squares:
        first, left, part = step
        for n in range(part.shape[1]):
            column = place + first + n
            nisa.nc_matmul(
                dst=total[:, column : column + 1],
                stationary=part[:, n, :],
                moving=ones[0 : part.shape[0], :],
                accumulate=left > 0,
            )


def finish_heads(step, weights, constants, results, gpsimd_tenths):
    """Multiply a step's heads by their factors and weights, and write them."""
    start, tiles, squares = step
    ones, eps = constants
    count, heads, width = tiles[0].shape
    columns = heads + tiles[1].shape[1]
    total = nl.ndarray((count, columns), dtype=nl.float32, buffer=nl.psum)
    sum_squares(squares[0], total, 0, ones)
    sum_squares(squares[1], total, heads, ones)
    factor = nl.ndarray((count, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=factor, op=nl.rsqrt, data=total, scale=1.0 / width, bias=eps[0:count, :])
    split = heads * gpsimd_tenths // 10
    scale_heads(tiles[0], 0, split, factor, 0, nisa.engine.gpsimd)
    scale_heads(tiles[0], split, heads, factor, 0, nisa.engine.vector)
    scale_heads(tiles[1], 0, columns - heads, factor, heads, nisa.engine.vector)
    for i in range(2):
        tile = tiles[i]
        repeated = weights[i].ap(pattern=[[width, count], [0, tile.shape[1]], [1, width]], offset=0)
        nisa.tensor_tensor(dst=tile, data1=tile, data2=repeated, op=nl.multiply)
        each = tile.shape[1] // results[i].shape[1]
        nisa.dma_copy(dst=heads_of(results[i], start, count, each), src=tile)


def scale_heads(tile, first, last, factor, place, engine):
    """Multiply heads [first, last) of SBUF [count, heads, width] by factor[:, place + head]."""
    if first == last:
        return
    count, _, width = tile.shape
    repeated = factor.ap(
        pattern=[[factor.shape[1], count], [1, last - first], [0, width]], offset=place + first
    )
    nisa.tensor_tensor(
        dst=tile[:, first:last, :],
        data1=tile[:, first:last, :],
        data2=repeated,
        op=nl.multiply,
        engine=engine,
    )
