"""A whole attention block for one new token of each sequence: from the residual stream to the
output projection, in one kernel.

Five kernels in a row each wait for their first bytes and for the store of their results, 4 us
together, longer than most of them work. Here the weights of both projections and the cache
stream in without a pause while what depends on them is computed, and nothing in between goes
through HBM. Activations stay transposed throughout: head_dim lies on partitions, so that weights
are stationary operands and a norm's sum over a head is a product with ones.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.attention_mix import (
    all_masks,
    attend,
    exchanged,
    integer_column,
    row_numbers,
    split_work,
)
from kernels.blocks import contraction_split, filled, transpose_interleaved
from kernels.cache_attention import load_lengths
from kernels.projection import on_scalar_ring


@nki.jit
def nki_attention_block_decode_kernel(
    x,
    norm_weight,
    qkv_weight,
    q_norm_weight,
    k_norm_weight,
    cos,
    sin,
    k_cache,
    v_cache,
    lengths,
    o_weight,
    eps=1e-6,
    pieces=8,
    buffers=4,
    evict_engine="both",
):
    """out = attention(rope(qk_norm(rmsnorm(x) @ qkv_weight))) @ o_weight, caches updated.

    q, k, v = columns of n @ qkv_weight, n = x / sqrt(mean(x^2) + eps) * norm_weight; every head
    of q and of k is normalised likewise by q_norm_weight and k_norm_weight, and rotated to its
    position lengths[b] by cos and sin; attention is over the first lengths[b] positions of the
    caches and the new k and v, which are written to the caches at lengths[b]. All positions are
    read and those not filled are masked: they must hold finite numbers. The result is what this
    rank adds to the residual stream, without the residual.

    - The norm's factor cancels in q and k but for eps, which takes it along; v alone is scaled.
    - On two cores (LNC2) each multiplies half of the hidden dimension by all columns of
      qkv_weight, which exchanges a few numbers and keeps descriptors long. Each then takes half
      of the sequences, of a single sequence half of the positions, and at last half of
      o_weight's columns.

    Args:
        x: HBM tensor [batch, hidden], fp32 or bf16: the residual stream.
        norm_weight: HBM tensor [hidden], x's dtype.
        qkv_weight: HBM tensor [hidden, (heads + 2 * key heads) * head_dim], x's dtype: columns of
            all queries, of all keys, of all values.
        q_norm_weight: HBM tensor [head_dim], x's dtype.
        k_norm_weight: HBM tensor [head_dim], x's dtype.
        cos: HBM tensor [rows, head_dim], x's dtype; every length must be below rows.
        sin: as cos.
        k_cache: HBM tensor [batch, key heads, positions, head_dim], x's dtype; written in place.
        v_cache: as k_cache.
        lengths: HBM tensor [batch, 1] int32, 0 to positions - 1: how many are filled.
        o_weight: HBM tensor [heads * head_dim, hidden], x's dtype.
        eps: compile-time float > 0, of all norms.
        pieces: DMAs for each of qkv_weight and o_weight.
        buffers: pairs of a sequence and a key head whose keys and values are in SBUF at a time,
            at least 2, fewer than asked for if they do not fit.
        evict_engine: "vector", "scalar" or "both": who copies transposed keys out of PSUM.

    Returns:
        (out, k_cache, v_cache): HBM tensor [batch, hidden] of x's dtype, and the caches.

    Limits: batch <= 32 and batch * (heads + 2 * key heads) <= 512; head_dim even, <= 128; heads a
    multiple of key heads; at least 2 positions; hidden / cores above 128 divides into
    ceil(n / 128) equal parts, at most 32; batch * key heads * positions <= 2^24; weights, keys
    and values within 176 KiB of each partition.
    HBM bytes: both weights + both caches + 4 * batch * hidden * itemsize and less.
    MACs: batch * (2 * heads + 2 * key heads) * head_dim * hidden + 2 * batch * heads * positions
    * head_dim.
    """
    batch, hidden = x.shape
    groups, width = k_cache.shape[1], k_cache.shape[3]
    heads = o_weight.shape[0] // width
    check_shapes(x, norm_weight, qkv_weight, k_cache, v_cache, lengths, o_weight)
    check_rotation(x, q_norm_weight, k_norm_weight, cos, sin, width)
    assert pieces >= 1, "nki_attention_block_decode_kernel: pieces must be at least 1"
    assert buffers >= 2, "nki_attention_block_decode_kernel: buffers must be at least 2"
    out = nl.ndarray((batch, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    rows = hidden // nl.num_programs()
    first = rows * nl.program_id(0)
    always = constants(width, x.dtype)
    lengths_here = load_lengths(lengths)
    used = contraction_split(rows)[1] * qkv_weight.shape[1] + heads * rows
    plan = split_work(k_cache, buffers, used)
    tables = load_tables(cos, sin, lengths_here)
    index = row_numbers(lengths_here[1], k_cache, plan)
    weight = load_row_block(qkv_weight, first, rows, pieces)
    tokens = load_tokens(x, norm_weight, first, rows)
    gains = load_gains(q_norm_weight, k_norm_weight)
    weighted = weigh_tokens(tokens, batch)
    blocks = heads + 2 * groups
    product = nl.ndarray((width, blocks, batch), dtype=nl.float32, buffer=nl.psum)
    early = weight.shape[1] * 3 // 4  # the Tensor engine has little else to do until these come
    multiply_rows(product, weighted, weight, 0, early)
    mean = exchanged_mean(tokens, batch, hidden, always[3], eps)
    factors = rotation_factors(tables, gains, always[2], (heads, groups))
    masks = all_masks(lengths_here[2], plan)
    multiply_rows(product, weighted, weight, early, weight.shape[1])
    fresh = finish_heads(product, mean, factors, always, eps, (heads, groups, batch))
    tuning = (pieces, evict_engine)
    caches = (k_cache, v_cache)
    attend(fresh, caches, masks, index, plan, o_weight, out, always[0], tuning)
    return out, k_cache, v_cache


def constants(width, dtype):
    """What needs no data, made while the first DMAs start.

    Returns:
        (ones, turn, swap, many): SBUF [128, width] of 1.0, of `dtype`; the stationary operands
        [width, width] of rotate_half and of swapping halves, of `dtype`; ones in fp32.
    """
    ones = filled((nl.tile_size.pmax, width), 1.0, dtype)
    many = filled((nl.tile_size.pmax, width), 1.0, nl.float32)
    return ones, swap_of_halves(width, -1.0, dtype), swap_of_halves(width, 1.0, dtype), many


def check_shapes(x, norm_weight, qkv_weight, k_cache, v_cache, lengths, o_weight):
    """Asserts on what the projections and the attention take."""
    batch, hidden = x.shape
    groups, positions, width = k_cache.shape[1], k_cache.shape[2], k_cache.shape[3]
    heads = o_weight.shape[0] // width
    columns = (heads + 2 * groups) * width
    rows = hidden // nl.num_programs()
    assert batch <= 32, "nki_attention_block_decode_kernel: x has more than 32 sequences"
    assert width <= 128, "nki_attention_block_decode_kernel: k_cache has a head_dim above 128"
    assert width % 2 == 0, "nki_attention_block_decode_kernel: k_cache has an odd head_dim"
    assert hidden % nl.num_programs() == 0, (
        "nki_attention_block_decode_kernel: x's hidden dimension must divide by the cores"
    )
    assert rows <= 4096, (
        "nki_attention_block_decode_kernel: x has a hidden dimension above 4096 for each core"
    )
    assert contraction_split(rows)[0] > 0
    assert tuple(norm_weight.shape) == (hidden,), (
        "nki_attention_block_decode_kernel: norm_weight must have x's hidden dimension"
    )
    assert tuple(o_weight.shape) == (heads * width, hidden), (
        "nki_attention_block_decode_kernel: o_weight must be [heads * head_dim, x's hidden]"
    )
    assert heads % groups == 0, (
        "nki_attention_block_decode_kernel: o_weight's heads must be a multiple of key heads"
    )
    assert tuple(qkv_weight.shape) == (hidden, columns), (
        "nki_attention_block_decode_kernel: qkv_weight must be "
        "[x's hidden, (heads + 2 * key heads) * head_dim]"
    )
    assert batch * (heads + 2 * groups) <= 512, (
        "nki_attention_block_decode_kernel: x's sequences times all heads are above 512"
    )
    assert tuple(k_cache.shape) == (batch, groups, positions, width), (
        "nki_attention_block_decode_kernel: k_cache must be [batch, key heads, positions, head_dim]"
    )
    assert positions >= 2, "nki_attention_block_decode_kernel: k_cache has fewer than 2 positions"
    assert batch * groups * positions <= 16777216, (
        "nki_attention_block_decode_kernel: k_cache has more than 2^24 rows"
    )
    assert tuple(v_cache.shape) == tuple(k_cache.shape), (
        "nki_attention_block_decode_kernel: v_cache must have k_cache's shape"
    )
    assert tuple(lengths.shape) == (batch, 1), (
        "nki_attention_block_decode_kernel: lengths must be [batch, 1]"
    )
    for tensor in (norm_weight, qkv_weight, k_cache, v_cache, o_weight):
        assert tensor.dtype == x.dtype, (
            "nki_attention_block_decode_kernel: x, norm_weight, qkv_weight, k_cache, v_cache and "
            "o_weight must have one dtype"
        )


def check_rotation(x, q_norm_weight, k_norm_weight, cos, sin, width):
    """Asserts on what norms and rotation of heads take."""
    assert tuple(q_norm_weight.shape) == (width,), (
        "nki_attention_block_decode_kernel: q_norm_weight must have head_dim numbers"
    )
    assert tuple(k_norm_weight.shape) == (width,), (
        "nki_attention_block_decode_kernel: k_norm_weight must have head_dim numbers"
    )
    assert cos.shape[1] == width, (
        "nki_attention_block_decode_kernel: cos must have rows of head_dim"
    )
    assert tuple(sin.shape) == tuple(cos.shape), (
        "nki_attention_block_decode_kernel: sin must have cos's shape"
    )
    for tensor in (q_norm_weight, k_norm_weight, cos, sin):
        assert tensor.dtype == x.dtype, (
            "nki_attention_block_decode_kernel: q_norm_weight, k_norm_weight, cos and sin must "
            "have x's dtype"
        )


def load_tokens(x, norm_weight, first, rows):
    """Columns [first, first + rows) of all tokens and of the norm's weight, transposed.

    Returns:
        SBUF [partitions, tiles, batch + 1]; the last column is norm_weight.
    """
    batch, hidden = x.shape
    tile = nl.ndarray((batch + 1, rows), dtype=x.dtype, buffer=nl.sbuf)
    on_scalar_ring(tile[0:batch, :], x[:, first : first + rows])
    weight = norm_weight.reshape((1, hidden))
    on_scalar_ring(tile[batch : batch + 1, :], weight[:, first : first + rows])
    return transpose_interleaved(tile, "vector")


def load_gains(q_norm_weight, k_norm_weight):
    """Both norms' weights as columns: SBUF [width, 2] of their dtype."""
    width = q_norm_weight.shape[0]
    rows = nl.ndarray((2, width), dtype=q_norm_weight.dtype, buffer=nl.sbuf)
    on_scalar_ring(rows[0:1, :], q_norm_weight.reshape((1, width)))
    on_scalar_ring(rows[1:2, :], k_norm_weight.reshape((1, width)))
    return turned(rows)


def turned(rows, dtype=None):
    """An SBUF tile [R, C] transposed: SBUF [C, R], of `dtype` or its own."""
    count, columns = rows.shape
    product = nl.ndarray((columns, count), dtype=rows.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=product, data=rows)
    kind = rows.dtype if dtype == None else dtype  # noqa: E711
    result = nl.ndarray((columns, count), dtype=kind, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result, src=product, engine=nisa.engine.vector)
    return result


def load_row_block(weight, first, rows, pieces):
    """Rows [first, first + rows) of an HBM matrix, interleaved: SBUF [partitions, tiles, N]."""
    columns = weight.shape[1]
    partitions, tiles = contraction_split(rows)
    tile = nl.ndarray((partitions, tiles, columns), dtype=weight.dtype, buffer=nl.sbuf)
    step = (tiles + pieces - 1) // pieces
    for j in range(0, tiles, step):
        some = min(step, tiles - j)
        nisa.dma_copy(
            dst=tile[:, j : j + some, :],
            src=weight.ap(
                pattern=[[tiles * columns, partitions], [columns, some], [1, columns]],
                offset=(first + j) * columns,
            ),
        )
    return tile


def swap_of_halves(width, sign, dtype):
    """The matrix of (a, b) -> (sign * b, a) as a stationary operand: SBUF [width, width].

    Element [k, m] is `sign` where k = m + width / 2, 1 where k = m - width / 2, and else 0.
    """
    matrix = filled((width, width), 0.0, dtype)
    values = (sign, 1.0)
    for n in range(2):
        nisa.affine_select(
            dst=matrix,
            pattern=[[-1, width]],
            offset=(2 * n - 1) * (width // 2),
            channel_multiplier=1,
            on_true_tile=matrix,
            on_false_value=values[n],
            cmp_op=nl.not_equal,
        )
    return matrix


def load_tables(cos, sin, lengths):
    """The rows of cos and of sin at each sequence's length: two SBUF [batch, width].

    Args:
        cos: HBM tensor [rows, width].
        sin: HBM tensor [rows, width].
        lengths: what `load_lengths` returns.
    """
    batch = lengths[0].shape[1]
    width = cos.shape[1]
    index = lengths[0]
    if batch > 1:
        index = integer_column(lengths[1])
    results = []
    for table in (cos, sin):
        rows = nl.ndarray((batch, width), dtype=table.dtype, buffer=nl.sbuf)
        nisa.dma_copy(
            dst=rows,
            src=table.ap(pattern=[[width, batch], [1, width]], offset=0, vector_offset=index),
        )
        results.append(rows)
    return results


def rotation_factors(tables, gains, swap, sizes):
    """cos and sin at each sequence's position, times the norms' weights.

    rotate_half(r * w) is rotate_half(r) times the weights of the other half; so r goes into the
    rotation as it is, and the weights come in with cos and sin. Queries also take
    head_dim^-0.5 along.

    Args:
        tables: what `load_tables` returns.
        gains: SBUF [width, 2], x's dtype: weights of the query and the key norm.
        swap: SBUF [width, width]: swaps halves.
        sizes: (heads, key heads).

    Returns:
        [SBUF [width, heads + key heads, batch] fp32, likewise]: factors of r and of the rotated r.
    """
    heads, groups = sizes
    batch, width = tables[0].shape
    swapped = nl.ndarray((width, 2), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=swapped, stationary=swap, moving=gains, accumulate=False)
    own = nl.ndarray((width, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=own, src=gains, engine=nisa.engine.vector)
    other = nl.ndarray((width, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=other, src=swapped, engine=nisa.engine.vector)
    results = []
    gained = (own, other)
    for n in range(2):
        columns = turned(tables[n], nl.float32)
        weights = gained[n]
        result = nl.ndarray((width, heads + groups, batch), dtype=nl.float32, buffer=nl.sbuf)
        for part in range(2):  # queries, keys
            start = part * heads
            count = groups if part == 1 else heads
            nisa.tensor_scalar(
                dst=result[:, start : start + count, :],
                data=columns.ap(pattern=[[batch, width], [0, count], [1, batch]], offset=0),
                op0=nl.multiply,
                operand0=weights[:, part : part + 1],
                op1=nl.multiply,
                operand1=width**-0.5 if part == 0 else 1.0,
            )
        results.append(result)
    return results


def exchanged_mean(tokens, batch, hidden, ones, eps):
    """mean(x^2) + eps of each token, in every partition: SBUF [width, batch], fp32."""
    partitions, tiles = tokens.shape[0], tokens.shape[1]
    width = ones.shape[1]
    squares = nl.ndarray((partitions, batch, tiles), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=squares.ap(pattern=[[batch * tiles, partitions], [1, tiles], [tiles, batch]], offset=0),
        op=nl.square,
        data=tokens[:, :, 0:batch],
    )
    sums = nl.ndarray((partitions, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=sums, op=nl.add, data=squares, axis=2)
    total = nl.ndarray((width, batch), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total, stationary=ones[0:partitions, :], moving=sums, accumulate=False)
    result = nl.ndarray((width, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=result,
        data=total,
        op0=nl.multiply,
        operand0=1.0 / hidden,
        op1=nl.add,
        operand1=eps / nl.num_programs(),
    )
    if nl.num_programs() > 1:
        other = exchanged(result)
        nisa.tensor_tensor(dst=result, data1=result, data2=other, op=nl.add)
    return result


def weigh_tokens(tokens, batch):
    """x * norm_weight, transposed: SBUF [partitions, tiles, batch]; tokens as `load_tokens`'s."""
    partitions, tiles, columns = tokens.shape
    weighted = nl.ndarray((partitions, tiles, batch), dtype=tokens.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=weighted,
        data1=tokens[:, :, 0:batch],
        data2=tokens.ap(
            pattern=[[tiles * columns, partitions], [columns, tiles], [0, batch]], offset=batch
        ),
        op=nl.multiply,
    )
    return weighted


def multiply_rows(product, weighted, weight, first, last):
    """Add steps [first, last) of this core's part of weighted.T @ weight, transposed.

    Args:
        product: PSUM [width, blocks, batch], fp32; step 0 begins the sums.
        weighted: SBUF [partitions, tiles, batch].
        weight: SBUF [partitions, tiles, blocks * width].
        first: first step.
        last: behind the last step.
    """
    width, blocks = product.shape[0], product.shape[1]
    for j in range(first, last):
        for n in range(blocks):
            nisa.nc_matmul(
                dst=product[:, n, :],
                stationary=weight[:, j, n * width : (n + 1) * width],
                moving=weighted[:, j, :],
                accumulate=j > 0,
            )


def finish_heads(product, mean, factors, always, eps, sizes):
    """Both cores' products together, then norms and rotation.

    With r the product of x * norm_weight and f = 1 / sqrt(mean), a head's norm of f r is
    r / sqrt(mean(r^2) + eps / f^2): eps * mean is added to the mean of squares.

    Args:
        product: PSUM [width, heads + 2 * key heads, batch], fp32: this core's part.
        mean: SBUF [width, batch], fp32: mean(x^2) + eps.
        factors: what `rotation_factors` returns.
        always: what `constants` returns.
        eps: of the norms.
        sizes: (heads, key heads, batch).

    Returns:
        (queries and keys, SBUF [width, heads + key heads, batch]; all before norms, SBUF
        [width, heads + 2 * key heads, batch]; values' factor, SBUF [width, batch] fp32).
    """
    heads, groups, batch = sizes
    ones, turn = always[0], always[1]
    width = turn.shape[0]
    dtype = turn.dtype
    both = heads + groups
    extra = nl.ndarray((width, batch), dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=extra, data=mean, op0=nl.multiply, operand0=eps)
    factor = nl.ndarray((width, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=factor, op=nl.rsqrt, data=mean)
    raw = nl.ndarray((width, both + groups, batch), dtype=dtype, buffer=nl.sbuf)
    if nl.num_programs() > 1:
        mine = nl.ndarray(product.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=mine, src=product, engine=nisa.engine.vector)
        nisa.tensor_tensor(dst=raw, data1=mine, data2=exchanged(mine), op=nl.add)
    else:
        nisa.tensor_copy(dst=raw, src=product, engine=nisa.engine.vector)
    heads_raw = raw[:, 0:both, :]
    squares = nl.ndarray((width, both, batch), dtype=dtype, buffer=nl.sbuf)
    nisa.activation(dst=squares, op=nl.square, data=heads_raw)
    rotated = nl.ndarray((width, both, batch), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=rotated, stationary=turn, moving=heads_raw, accumulate=False)
    sums = nl.ndarray((width, both, batch), dtype=nl.float32, buffer=nl.psum)
    repeated = extra.ap(pattern=[[batch, width], [0, both], [1, batch]], offset=0)
    nisa.nc_matmul(dst=sums, stationary=ones[0:width, :], moving=repeated, accumulate=False)
    nisa.nc_matmul(dst=sums, stationary=ones[0:width, :], moving=squares, accumulate=True)
    scale = nl.ndarray((width, both, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=scale, op=nl.rsqrt, data=sums, scale=1.0 / width)
    straight = nl.ndarray((width, both, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=straight, data1=heads_raw, data2=factors[0], op=nl.multiply)
    crossed = nl.ndarray((width, both, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=crossed, data1=rotated, data2=factors[1], op=nl.multiply)
    nisa.tensor_tensor(dst=straight, data1=straight, data2=crossed, op=nl.add)
    queries_keys = nl.ndarray((width, both, batch), dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=queries_keys, data1=straight, data2=scale, op=nl.multiply)
    return queries_keys, raw, factor
