"""Attention of whole prompts without a matrix of scores in HBM.

Two orders of the same arithmetic:

- Queries on partitions (the default, for any values): a block of scores has its maximum taken
  along the free dimension; each block is a softmax of its own, and blocks are put together at
  the end by their maxima and sums. Weights must be transposed for the second product.
- Keys on partitions (`logit_bound`): scores come out as the second product needs them, but a
  query's maximum would lie across partitions. If the caller knows a bound on all scores, none is
  needed: exp neither overflows nor vanishes. Sums come from a column of ones beside the values.
  Queries and keys with an RMS norm have such a bound, head_dim^0.5 * max|q weight * k weight|.

The Tensor engine's queue is in order, so a step's second product is issued after the next
step's first: by then the Scalar engine has made its exponentials.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import evict, filled

MASKED = -1.0e30
"""Added to scores of later keys."""
BANK = 512
"""fp32 numbers in a PSUM bank."""


@nki.jit
def nki_flash_attention_kernel(
    q, k, v, causal=True, logit_bound=None, key_block=1024, ahead=3, evict_engine="vector"
):
    """out = softmax(q k^T / sqrt(head_dim)) v, with fp32 scores and sums, for grouped queries.

    Query head h uses key head h // (heads / key heads). Only scores at or below the diagonal are
    computed, but for the upper half of 128 by 128 tiles on it. See the module for the two orders.

    On two cores (LNC2) each takes half of the (sequence, query head) pairs.

    Args:
        q: HBM tensor [batch, tokens, heads, head_dim], fp32 or bf16.
        k: HBM tensor [batch, tokens, key heads, head_dim], q's dtype.
        v: HBM tensor [batch, tokens, key heads, head_dim], q's dtype.
        causal: token t sees tokens 0 to t; else all.
        logit_bound: None, or a promise that no |q . k| / sqrt(head_dim) is larger; at most 60.
        key_block: keys of a softmax, a multiple of 128 up to 1024.
        ahead: steps of scores made before the first one's weights are used, at least 1.
        evict_engine: "vector", "scalar" or "both": who copies transposed weights out of PSUM.

    Returns:
        HBM tensor [batch, tokens, heads, head_dim] of q's dtype.

    Limits: head_dim <= 128; tokens <= 16384 (fp32: 8192); heads a multiple of key heads.
    HBM bytes: 2 * q + cores * (k + v). MACs that count: batch * heads * head_dim * tokens *
    (tokens + 1) if causal, else 2 * batch * heads * head_dim * tokens^2.
    """
    batch, tokens, heads, width = q.shape
    groups = k.shape[2]
    assert width <= 128, "nki_flash_attention_kernel: q has a head_dim above 128"
    most = 8192 if q.dtype == nl.float32 else 16384
    assert tokens <= most, "nki_flash_attention_kernel: q has more than 16384 (fp32: 8192) tokens"
    assert tuple(k.shape) == (batch, tokens, groups, width), (
        "nki_flash_attention_kernel: k must have q's batch, tokens and head_dim"
    )
    assert tuple(v.shape) == (batch, tokens, groups, width), (
        "nki_flash_attention_kernel: v must have k's shape"
    )
    assert heads % groups == 0, (
        "nki_flash_attention_kernel: q's heads must be a multiple of k's heads"
    )
    assert k.dtype == q.dtype, "nki_flash_attention_kernel: k must have q's dtype"
    assert v.dtype == q.dtype, "nki_flash_attention_kernel: v must have q's dtype"
    assert key_block % 128 == 0, "nki_flash_attention_kernel: key_block must be a multiple of 128"
    assert 128 <= key_block <= 1024, "nki_flash_attention_kernel: key_block must be 128 to 1024"
    assert ahead >= 1, "nki_flash_attention_kernel: ahead must be at least 1"
    if logit_bound != None:  # noqa: E711
        assert 0 <= logit_bound <= 60, "nki_flash_attention_kernel: logit_bound must be 0 to 60"
    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    core = nl.program_id(0)
    cores = nl.num_programs()
    each = heads // groups
    first = batch * heads * core // cores
    last = batch * heads * (core + 1) // cores
    mask = None
    if causal and logit_bound == None:  # noqa: E711
        mask = causal_mask()
    for pair in range(batch * groups):
        start = max(first, pair * each)
        stop = min(last, (pair + 1) * each)
        if start < stop:
            b = pair // groups
            g = pair % groups
            span = (b, start - b * heads, stop - b * heads)
            if logit_bound == None:  # noqa: E711
                cache = new_cache(k, v, 0)
                tuning = (key_block, ahead, evict_engine)
                attend_by_query(q, (k, v, b, g), cache, out, span, mask, tuning)
            else:
                cache = new_cache(k, v, 1)
                attend_by_key(q, (k, v, b, g), cache, out, span, causal, ahead)
    return out


# --- operands -----------------------------------------------------------------------------------


def causal_mask():
    """(identity, mask), bf16 [128, 128]: mask[q, k] is 0 up to the diagonal, MASKED above it."""
    size = nl.tile_size.pmax
    mask = nl.ndarray((size, size), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.affine_select(
        dst=mask,
        pattern=[[-1, size]],
        offset=0,
        channel_multiplier=1,
        on_true_tile=filled((size, size), 0.0, nl.bfloat16),
        on_false_value=MASKED,
        cmp_op=nl.greater_equal,
    )
    return nl.shared_identity_matrix(size, dtype=nl.bfloat16), mask


def new_cache(k, v, ones):
    """Room for one head's keys and values: SBUF [width, tokens], [128, tiles, width + ones].

    Row p of tile j is token 128 * j + p; `ones` columns of 1.0 stand behind the values.
    """
    tokens, width = k.shape[1], k.shape[3]
    size = nl.tile_size.pmax
    keys = nl.ndarray((width, tokens), dtype=k.dtype, buffer=nl.sbuf)
    tiles = (tokens + size - 1) // size
    values = nl.ndarray((min(size, tokens), tiles, width + ones), dtype=v.dtype, buffer=nl.sbuf)
    if ones > 0:
        nisa.memset(dst=values[:, :, width : width + ones], value=1.0)
    return keys, values


def fill_cache(source, cache, start, limit, engine):
    """Load keys and values of tokens [start, limit) at least, 512 at a time; say how far.

    Later tokens are not waited for by what needs the first ones only.
    """
    k, v, b, g = source
    keys, values = cache
    tokens, width = k.shape[1], k.shape[3]
    size = nl.tile_size.pmax
    while start < limit:
        some = min(BANK, tokens - start)
        tiles = (some + size - 1) // size
        rows = nl.ndarray((min(some, size), tiles, width), dtype=k.dtype, buffer=nl.sbuf)
        load_tiles(k, b, g, start, some, rows)
        turned = nl.ndarray((width, some), dtype=k.dtype, buffer=nl.psum)
        for left in range(0, some, size):
            here = min(size, some - left)
            nisa.nc_transpose(dst=turned[:, left : left + here], data=rows[0:here, left // size, :])
        evict(keys[:, start : start + some], turned, engine, start // BANK)
        first = start // size
        load_tiles(v, b, g, start, some, values[:, first : first + tiles, 0:width])
        start += some
    return start


def load_tiles(x, b, h, first, count, dst):
    """Tokens [first, first + count) of a head, 128 to a tile; the last may have fewer.

    Args:
        x: HBM tensor [batch, tokens, heads, width].
        b: sequence.
        h: head.
        first: first token.
        count: tokens.
        dst: SBUF [128, tiles, width].
    """
    tokens, heads, width = x.shape[1], x.shape[2], x.shape[3]
    size = nl.tile_size.pmax
    row = heads * width
    start = (b * tokens + first) * row + h * width
    whole = count // size
    rest = count - whole * size
    if whole > 0:
        nisa.dma_copy(
            dst=dst[:, 0:whole, :],
            src=x.ap(pattern=[[row, size], [size * row, whole], [1, width]], offset=start),
        )
    if rest > 0:
        nisa.dma_copy(
            dst=dst[0:rest, whole, :],
            src=x.ap(pattern=[[row, rest], [1, width]], offset=start + whole * size * row),
        )


def load_queries(q, b, first, last, top, count, scale):
    """Queries of heads [first, last) and tokens [top, top + count), transposed, times scale.

    Returns:
        SBUF tile [width, heads, count], count <= 512.
    """
    width = q.shape[3]
    size = nl.tile_size.pmax
    some = last - first
    result = nl.ndarray((width, some, count), dtype=q.dtype, buffer=nl.sbuf)
    group = max(1, BANK * (1 if q.dtype == nl.float32 else 2) // size)
    for start in range(0, count, size):
        rows = min(size, count - start)
        tile = nl.ndarray((rows, some, width), dtype=q.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=q[b, top + start : top + start + rows, first:last, :])
        for h in range(0, some, group):
            few = min(group, some - h)
            turned = nl.ndarray((width, few, rows), dtype=q.dtype, buffer=nl.psum)
            for n in range(few):
                nisa.nc_transpose(dst=turned[:, n, :], data=tile[:, h + n, :])
            nisa.tensor_scalar(
                dst=result[:, h : h + few, start : start + rows],
                data=turned,
                op0=nl.multiply,
                operand0=scale,
            )
    return result


# --- queries on partitions ----------------------------------------------------------------------


def attend_by_query(q, source, cache, out, span, mask, tuning):
    """All queries of heads [first, last) of a sequence, 128 queries at a time.

    Args:
        q: HBM tensor [batch, tokens, heads, width].
        source: (k, v, sequence, key head).
        cache: what `new_cache` returns.
        out: HBM tensor of q's shape.
        span: (sequence, first, last).
        mask: None, or what `causal_mask` returns.
        tuning: (keys of a softmax, blocks whose scores are made before the weights of the first
            are transposed, who evicts transposed weights).
    """
    b, first, last = span
    key_block, ahead, engine = tuning
    keys, values = cache
    width, tokens = keys.shape
    heads = last - first
    size = nl.tile_size.pmax
    loaded = 0
    scored = []  # steps whose weights are still to be transposed
    turned = []  # steps whose products with the values are still to come
    turn = 0
    for top in range(0, tokens, size):
        count = min(size, tokens - top)
        limit = tokens
        if mask != None:  # noqa: E711
            limit = top + count
        queries = load_queries(q, b, first, last, top, count, width**-0.5)
        loaded = fill_cache(source, cache, loaded, limit, engine)
        blocks = (limit + key_block - 1) // key_block
        state = (
            nl.ndarray((count, heads, blocks), dtype=nl.float32, buffer=nl.sbuf),
            nl.ndarray((count, heads, blocks), dtype=nl.float32, buffer=nl.sbuf),
            nl.ndarray((count, heads, blocks, width), dtype=nl.float32, buffer=nl.sbuf),
        )
        for h in range(heads):
            for n in range(blocks):
                place = (b, first, top, h, n, h == heads - 1 and n == blocks - 1)
                now = score_block(queries[:, h, :], keys, place, key_block, limit, state, mask)
                scored.append((now, state, place))
                if len(scored) > ahead:
                    step = scored.pop(0)
                    turned.append((step, transpose_weights(step[0], engine, turn)))
                    turn += 1
                if len(turned) > 1:
                    mix_values(turned.pop(0), values, key_block, out, turn)
    while len(scored) > 0:
        step = scored.pop(0)
        turned.append((step, transpose_weights(step[0], engine, turn)))
        turn += 1
        if len(turned) > 1:
            mix_values(turned.pop(0), values, key_block, out, turn)
    while len(turned) > 0:
        mix_values(turned.pop(0), values, key_block, out, turn)


def score_block(queries, keys, place, key_block, limit, state, mask):
    """exp(scores - maximum) of one block of keys: SBUF [queries, keys], in values' dtype.

    The negated maximum and the sum go to `state`.
    """
    top, h, n = place[2], place[3], place[4]
    count = queries.shape[1]
    start = n * key_block
    some = min(key_block, limit - start)
    scores = nl.ndarray((count, some), dtype=nl.float32, buffer=nl.psum)
    for left in range(0, some, BANK):
        right = min(some, left + BANK)
        diagonal = top - start - left
        on_it = mask != None and 0 <= diagonal < right - left  # noqa: E711
        nisa.nc_matmul(
            dst=scores[:, left:right],
            stationary=queries,
            moving=keys[:, start + left : start + right],
            accumulate=False,
        )
        if on_it:
            identity, triangle = mask
            nisa.nc_matmul(
                dst=scores[:, left + diagonal : right],
                stationary=identity[0:count, 0:count],
                moving=triangle[0:count, 0:count],
                accumulate=True,
            )
    lowest, total, _ = state
    column = lowest[:, h, n : n + 1]
    nisa.tensor_reduce(dst=column, op=nl.maximum, data=scores, axis=1, negate=True)
    weights = nl.ndarray((count, some), dtype=keys.dtype, buffer=nl.sbuf)
    nisa.activation_reduce(
        dst=weights,
        op=nl.exp,
        data=scores,
        bias=column,
        reduce_op=nl.add,
        reduce_res=total[:, h, n : n + 1],
    )
    return weights


def transpose_weights(weights, engine, turn):
    """Weights [queries, keys] by tiles of keys: a list of SBUF [<= 128 keys, tiles, queries]."""
    count, some = weights.shape
    size = nl.tile_size.pmax
    group = 4 if weights.dtype == nl.float32 else 8
    parts = []
    for first in range(0, some, group * size):
        last = min(some, first + group * size)
        tiles = (last - first + size - 1) // size
        rows = min(size, last - first)
        turned = nl.ndarray((rows, tiles, count), dtype=weights.dtype, buffer=nl.psum)
        for j in range(tiles):
            left = first + j * size
            here = min(size, last - left)
            nisa.nc_transpose(dst=turned[0:here, j, :], data=weights[:, left : left + here])
        part = nl.ndarray((rows, tiles, count), dtype=weights.dtype, buffer=nl.sbuf)
        whole = (last - first) // size
        if whole > 0:
            evict(part[:, 0:whole, :], turned[:, 0:whole, :], engine, turn)
        if whole < tiles:
            rest = last - first - whole * size
            evict(part[0:rest, whole, :], turned[0:rest, whole, :], engine, turn)
        parts.append(part)
    return parts


def mix_values(step, values, key_block, out, turn):
    """A block's weights times values; after a tile's last block, its result."""
    scored, parts = step
    weights, state, place = scored
    b, first, top, h, n, is_last = place
    count, some = weights.shape
    size = nl.tile_size.pmax
    width = out.shape[3]
    group = parts[0].shape[1]
    mixed = nl.ndarray((count, width), dtype=nl.float32, buffer=nl.psum)
    for left in range(0, some, size):
        here = min(size, some - left)
        j = left // size
        nisa.nc_matmul(
            dst=mixed,
            stationary=parts[j // group][0:here, j % group, :],
            moving=values[0:here, n * key_block // size + j, 0:width],
            accumulate=j > 0,
        )
    evict(state[2][:, h, n, :], mixed, "scalar", turn)
    if is_last:
        combine_blocks(state, out, b, first, top)


def combine_blocks(state, out, b, first, top):
    """Put the blocks' softmaxes together and write 128 queries of all heads.

    Args:
        state: SBUF, fp32: negated maxima [count, heads, blocks], sums of the same shape,
            unnormalised results [count, heads, blocks, width].
        out: HBM tensor [batch, tokens, heads, width].
        b: sequence.
        first: first head.
        top: first token.
    """
    lowest, total, mixed = state
    count, heads, blocks, width = mixed.shape
    share = total
    if blocks > 1:
        least = nl.ndarray((count, heads), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=least, op=nl.minimum, data=lowest, axis=2)
        share = nl.ndarray((count, heads, blocks), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=share,
            data1=least.ap(pattern=[[heads, count], [1, heads], [0, blocks]], offset=0),
            data2=lowest,
            op=nl.subtract,
        )
        nisa.activation(dst=share, op=nl.exp, data=share)
        nisa.tensor_tensor(dst=total, data1=total, data2=share, op=nl.multiply)
    whole = nl.ndarray((count, heads), dtype=nl.float32, buffer=nl.sbuf)
    if blocks > 1:
        nisa.tensor_reduce(dst=whole, op=nl.add, data=total, axis=2)
        nisa.reciprocal(dst=whole, data=whole)
        nisa.tensor_tensor(
            dst=share,
            data1=share,
            data2=whole.ap(pattern=[[heads, count], [1, heads], [0, blocks]], offset=0),
            op=nl.multiply,
        )
    else:
        nisa.reciprocal(dst=share, data=total)
    result = nl.ndarray((count, heads, width), dtype=out.dtype, buffer=nl.sbuf)
    for h in range(heads):
        sums = result[:, h, :]
        if blocks > 1:
            sums = mixed[:, h, 0, :]
        nisa.activation(  # the Vector engine has more to do
            dst=sums, op=nl.copy, data=mixed[:, h, 0, :], scale=share[:, h, 0:1]
        )
        for n in range(1, blocks):
            to = sums
            if n == blocks - 1:
                to = result[:, h, :]
            nisa.scalar_tensor_tensor(
                dst=to,
                data=mixed[:, h, n, :],
                op0=nl.multiply,
                operand0=share[:, h, n : n + 1],
                op1=nl.add,
                operand1=sums,
            )
    nisa.dma_copy(dst=out[b, top : top + count, first : first + heads, :], src=result)


# --- keys on partitions -------------------------------------------------------------------------


def attend_by_key(q, source, cache, out, span, causal, ahead):
    """All queries of heads [first, last) of a sequence, 256 queries at a time, without maxima.

    Four tiles of keys make one step: two PSUM banks of scores, one exponential. Sums of 256
    queries take one bank, so that three steps and two sets of sums fit PSUM.

    Args: see `attend_by_query`; values have a column of ones behind.
    """
    b, first, last = span
    keys, values = cache
    width, tokens = keys.shape
    size = nl.tile_size.pmax
    pending = []
    loaded = 0
    following = load_queries(q, b, first, last, 0, min(2 * size, tokens), width**-0.5)
    for top in range(0, tokens, 2 * size):
        count = min(2 * size, tokens - top)
        limit = tokens
        if causal:
            limit = top + count
        loaded = fill_cache(source, cache, loaded, limit, "vector")
        queries = following
        results = (
            nl.ndarray((min(size, count), last - first, width), dtype=out.dtype, buffer=nl.sbuf),
            nl.ndarray((min(size, count), last - first, width), dtype=out.dtype, buffer=nl.sbuf),
        )
        for h in range(last - first):
            rows = min(size, count)
            sums = nl.ndarray((rows, 2, width + 1), dtype=nl.float32, buffer=nl.psum)
            for left in range(0, limit, 4 * size):
                some = min(4 * size, limit - left)
                weights = weigh_keys(queries[:, h, :], keys, left, some, top, causal)
                place = (count, left, left + some == limit, h)
                pending.append((weights, sums, place, results, (b, top, first)))
                if len(pending) > ahead:
                    mix_keys(pending.pop(0), values, out)
            after = top + 2 * size
            if h == 0 and after < tokens:  # before the next queries are needed
                following = load_queries(
                    q, b, first, last, after, min(2 * size, tokens - after), width**-0.5
                )
    while len(pending) > 0:
        mix_keys(pending.pop(0), values, out)


def skipped_queries(left, top, causal):
    """How many of the queries from `top` on see none of the keys from `left` on."""
    if causal:
        return max(0, left - top)
    return 0


def weigh_keys(queries, keys, left, some, top, causal):
    """exp(scores) of up to four tiles of keys, zero above the diagonal.

    Returns:
        A list of SBUF views [<= 128 keys, queries that see them], in keys' dtype.
    """
    count = queries.shape[1]
    size = nl.tile_size.pmax
    scores = nl.ndarray((min(size, some), 2 * BANK), dtype=nl.float32, buffer=nl.psum)
    weights = nl.ndarray((min(size, some), 2 * BANK), dtype=keys.dtype, buffer=nl.sbuf)
    parts = []
    at = 0
    whole = some % size == 0  # one exponential for all tiles
    for start in range(0, some, size):
        here = min(size, some - start)
        skipped = skipped_queries(left + start, top, causal)
        wide = count - skipped
        if at // BANK != (at + wide - 1) // BANK:  # a product stays within a bank
            at = BANK
            whole = False
        nisa.nc_matmul(
            dst=scores[0:here, at : at + wide],
            stationary=keys[:, left + start : left + start + here],
            moving=queries[:, skipped:count],
            accumulate=False,
        )
        parts.append((here, at, wide))
        at += wide
    if whole:
        nisa.activation(dst=weights[:, 0:at], op=nl.exp, data=scores[:, 0:at])
    result = []
    for n in range(len(parts)):
        here, first, wide = parts[n]
        part = weights[0:here, first : first + wide]
        if not whole:
            nisa.activation(dst=part, op=nl.exp, data=scores[0:here, first : first + wide])
        if causal and left + n * size >= top:
            square = weights[0:here, first : first + min(here, wide)]
            nisa.affine_select(
                dst=square,
                pattern=[[1, min(here, wide)]],
                offset=0,
                channel_multiplier=-1,
                on_true_tile=square,
                on_false_value=0.0,
                cmp_op=nl.greater_equal,
            )
        result.append(part)
    return result


def mix_keys(step, values, out):
    """Add a step's weights times values to the sums of 256 queries; after the last, divide.

    After the last head, 128 queries of all heads are written at once.
    """
    weights, sums, place, results, where = step
    count, left, is_last, h = place
    b, top, head = where
    size = nl.tile_size.pmax
    width = out.shape[3]
    for n in range(len(weights)):
        part = weights[n]
        here, wide = part.shape
        key = left + n * size
        skipped = count - wide
        for start in range(skipped, count, size):
            rows = min(size, count - start)
            nisa.nc_matmul(
                dst=sums[0:rows, start // size, :],
                stationary=part[:, start - skipped : start - skipped + rows],
                moving=values[0:here, key // size, :],
                accumulate=key > 0,
            )
    if not is_last:
        return
    heads = results[0].shape[1]
    for start in range(0, count, size):
        rows = min(size, count - start)
        total = sums[0:rows, start // size, :]
        share = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.reciprocal(dst=share, data=total[:, width : width + 1])
        result = results[start // size]
        nisa.tensor_scalar(
            dst=result[0:rows, h, :], data=total[:, 0:width], op0=nl.multiply, operand0=share
        )
        if h == heads - 1:
            nisa.dma_copy(
                dst=out[b, top + start : top + start + rows, head : head + heads, :],
                src=result[0:rows, :, :],
            )
