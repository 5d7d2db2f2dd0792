"""Attention of one new token of each sequence against its KV cache.

Positions lie on partitions, a partition's positions next to each other in HBM, so that a cache
is read in long descriptors, whichever positions count. Scores then come out transposed, as the
second product needs them: what is exponentiated is a few numbers per partition, and only the
maximum has to cross partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import evict, filled, sum_over_partitions

MASKED = -1.0e30
"""Added to scores of positions that are not filled."""
SBUF_FOR_CACHE = 98304
"""Bytes per partition for one pair's keys, values and scores; the next pair's have as many."""


@nki.jit
def nki_decode_attention_kernel(
    q, k, v, k_cache, v_cache, lengths, logit_bound=None, pieces=2, buffers=4, evict_engine="both"
):
    """out = softmax(q K^T / sqrt(head_dim)) V over a cache's filled positions and the new token.

    K and V are the first lengths[b] positions of sequence b's cache and the new k and v, which
    are also written to the caches, at position lengths[b]. All positions are read and those not
    filled are masked: they must hold finite numbers. Query head h uses key head h // (heads /
    key heads). Scores, sums and maxima are fp32.

    On two cores (LNC2) each takes half of the (sequence, key head) pairs; of a single pair, each
    takes half of the positions, and the halves are put together by their maxima and sums.

    Args:
        q: HBM tensor [batch, heads, head_dim], fp32 or bf16.
        k: HBM tensor [batch, key heads, head_dim], q's dtype: the new token's.
        v: HBM tensor [batch, key heads, head_dim], q's dtype: the new token's.
        k_cache: HBM tensor [batch, key heads, positions, head_dim], q's dtype; written in place.
        v_cache: as k_cache.
        lengths: HBM tensor [batch, 1] int32, 0 to positions - 1: how many are filled.
        logit_bound: None, or a promise that no |q . k| / sqrt(head_dim) is larger; at most 60.
            Then no maximum is taken.
        pieces: DMAs for the keys of a pair.
        buffers: pairs whose keys and values are in SBUF at a time, fewer if they do not fit.
        evict_engine: "vector", "scalar" or "both": who copies transposed keys out of PSUM.

    Returns:
        (out, k_cache, v_cache): HBM tensor of q's shape and dtype, and the caches.

    Limits: head_dim <= 128; heads / key heads <= 128; keys, values and scores of a pair within
    96 KiB of each partition (bf16, head_dim 128, 8 heads: 20900 positions).
    HBM bytes: both caches + 2 * (q + k + v). MACs: 2 * batch * heads * positions * head_dim.
    """
    batch, heads, width = q.shape
    groups = k.shape[1]
    positions = k_cache.shape[2]
    assert width <= 128, "nki_decode_attention_kernel: q has a head_dim above 128"
    assert heads % groups == 0, (
        "nki_decode_attention_kernel: q's heads must be a multiple of k's heads"
    )
    each = heads // groups
    assert each <= 128, "nki_decode_attention_kernel: q has more than 128 heads to a key head"
    assert tuple(k.shape) == (batch, groups, width), (
        "nki_decode_attention_kernel: k must have q's batch and head_dim"
    )
    assert tuple(v.shape) == (batch, groups, width), (
        "nki_decode_attention_kernel: v must have k's shape"
    )
    assert tuple(k_cache.shape) == (batch, groups, positions, width), (
        "nki_decode_attention_kernel: k_cache must be [batch, key heads, positions, head_dim]"
    )
    assert tuple(v_cache.shape) == tuple(k_cache.shape), (
        "nki_decode_attention_kernel: v_cache must have k_cache's shape"
    )
    assert k_cache.dtype == q.dtype, "nki_decode_attention_kernel: k_cache must have q's dtype"
    assert v_cache.dtype == q.dtype, "nki_decode_attention_kernel: v_cache must have q's dtype"
    assert k.dtype == q.dtype, "nki_decode_attention_kernel: k must have q's dtype"
    assert v.dtype == q.dtype, "nki_decode_attention_kernel: v must have q's dtype"
    assert tuple(lengths.shape) == (batch, 1), (
        "nki_decode_attention_kernel: lengths must be [batch, 1]"
    )
    itemsize = 4 if q.dtype == nl.float32 else 2
    tiles = positions // 128 + 2
    assert tiles * (2 * width * itemsize + each * (8 + itemsize)) <= SBUF_FOR_CACHE, (
        "nki_decode_attention_kernel: k_cache's positions need more than 96 KiB per partition"
    )
    assert pieces >= 1, "nki_decode_attention_kernel: pieces must be at least 1"
    assert buffers >= 1, "nki_decode_attention_kernel: buffers must be at least 1"
    if logit_bound != None:  # noqa: E711
        assert 0 <= logit_bound <= 60, "nki_decode_attention_kernel: logit_bound must be 0 to 60"
    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    core = nl.program_id(0)
    cores = nl.num_programs()
    pairs = batch * groups
    shared = cores > 1 and pairs == 1 and positions > 1
    first, last = pairs * core // cores, pairs * (core + 1) // cores
    begin, end = 0, positions
    if shared:
        first, last = 0, 1
        begin, end = positions * core // cores, positions * (core + 1) // cores
    if first == last:
        return out, k_cache, v_cache
    numbers, filled_positions = load_lengths(lengths)
    with_maximum = logit_bound == None  # noqa: E711
    new = end == positions  # the core that has the last positions takes the new tokens
    waiting = []
    rings = []  # a few pairs in flight: more would share the DMA engines, and all come late
    for _ in range(min(buffers, last - first)):
        rings.append((new_part(k_cache, end - begin), new_part(v_cache, end - begin)))
    queries = load_queries(q, first * each, (last - first) * each)
    for pair in range(first, last):
        b = pair // groups
        g = pair % groups
        ring = rings[(pair - first) % len(rings)]
        keys = load_part(ring[0], k_cache, k, b, g, begin, end, new, pieces)
        values = load_part(ring[1], v_cache, v, b, g, begin, end, new, 1)
        own = queries[:, (pair - first) * each : (pair - first + 1) * each]
        masks = masked_positions(filled_positions[:, b : b + 1], keys, begin, new)
        waiting.append((score(own, keys, masks, evict_engine), values, b, g * each))
        if len(waiting) > 1:  # this pair's scores come before the last one's weights
            finish_pair(waiting.pop(0), out, with_maximum, shared)
    finish_pair(waiting.pop(0), out, with_maximum, shared)
    if new:  # after all reads: nothing waits for a write to an address known on the device only
        for pair in range(first, last):
            b = pair // groups
            number = numbers[0:1, b : b + 1]
            write_row(k_cache, k, b, pair % groups, number)
            write_row(v_cache, v, b, pair % groups, number)
    return out, k_cache, v_cache


def finish_pair(step, out, with_maximum, shared):
    """From a pair's scores to its part of out; `shared` if the other core has half of them."""
    scores, values, b, first = step
    total = weigh(scores, values, with_maximum)
    if shared:
        total = add_other_core(total, with_maximum)
    if nl.program_id(0) == 0 or not shared:
        store_result(total, out, b, first)


def load_lengths(lengths):
    """Lengths: SBUF [1, batch] int32, and in every partition, SBUF [128, batch] fp32.

    A product with ones spreads them: a DMA of 4 bytes to each partition takes 1.4 us.
    """
    batch = lengths.shape[0]
    numbers = nl.ndarray((1, batch), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(
        dst=numbers,
        src=lengths.reshape((1, batch)),
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.scalar,
    )
    row = nl.ndarray((1, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=row, src=numbers, engine=nisa.engine.vector)
    values = nl.ndarray((nl.tile_size.pmax, batch), dtype=nl.float32, buffer=nl.sbuf)
    ones = filled((1, nl.tile_size.pmax), 1.0, nl.float32)
    for first in range(0, batch, nl.tile_size.psum_fmax):
        last = min(batch, first + nl.tile_size.psum_fmax)
        nisa.tensor_copy(
            dst=values[:, first:last], src=sum_over_partitions(row[:, first:last], ones)
        )
    return numbers, values


def new_part(cache, positions):
    """None, or room for the positions of a pair that fill whole tiles: SBUF [128, tiles, width]."""
    tiles = positions // nl.tile_size.pmax
    if tiles == 0:
        return None
    shape = (nl.tile_size.pmax, tiles, cache.shape[3])
    return nl.ndarray(shape, dtype=cache.dtype, buffer=nl.sbuf)


def load_part(main, cache, row, b, g, begin, end, new, pieces):
    """Positions [begin, end) of a pair's cache, and the new row if `new`; main is `new_part`'s.

    Returns:
        (None or SBUF [128, tiles, width], None or SBUF [rows, width]): position begin + p * tiles
        + j is row p of tile j; the second holds the fewer than 128 positions that are left, and
        behind them the new row.
    """
    groups, positions, width = cache.shape[1], cache.shape[2], cache.shape[3]
    size = nl.tile_size.pmax
    tiles = (end - begin) // size
    rest = end - begin - tiles * size
    start = ((b * groups + g) * positions + begin) * width
    tail = None
    if tiles > 0:
        step = (tiles + pieces - 1) // pieces
        for j in range(0, tiles, step):
            some = min(step, tiles - j)
            nisa.dma_copy(
                dst=main[:, j : j + some, :],
                src=cache.ap(
                    pattern=[[tiles * width, size], [width, some], [1, width]],
                    offset=start + j * width,
                ),
            )
    rows = rest + int(new)
    if rows > 0:
        tail = nl.ndarray((rows, width), dtype=cache.dtype, buffer=nl.sbuf)
        if rest > 0:
            at = start + tiles * size * width
            nisa.dma_copy(
                dst=tail[0:rest, :], src=cache.ap(pattern=[[width, rest], [1, width]], offset=at)
            )
        if new:
            nisa.dma_copy(dst=tail[rest:rows, :], src=row[b, g : g + 1, :])
    return main, tail


def load_queries(q, first, count):
    """Heads of all sequences, scaled and transposed: SBUF [width, count].

    All at once: a small DMA behind those of a cache would come as late as these.

    Args:
        q: HBM tensor [batch, heads, width].
        first: number of the first head, counted through all sequences.
        count: how many.
    """
    width = q.shape[2]
    rows = q.reshape((q.shape[0] * q.shape[1], width))
    result = nl.ndarray((width, count), dtype=q.dtype, buffer=nl.sbuf)
    for start in range(0, count, nl.tile_size.pmax):
        some = min(nl.tile_size.pmax, count - start)
        tile = nl.ndarray((some, width), dtype=q.dtype, buffer=nl.sbuf)
        nisa.dma_copy(
            dst=tile,
            src=rows[first + start : first + start + some, :],
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.scalar,
        )
        turned = nl.ndarray((width, some), dtype=q.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=tile)
        nisa.tensor_scalar(
            dst=result[:, start : start + some], data=turned, op0=nl.multiply, operand0=width**-0.5
        )
    return result


def masked_positions(length, part, begin, new):
    """MASKED for positions from `length` on, else 0: for both tiles of `load_part`.

    Args:
        length: SBUF column [128, 1], fp32.
        part: what `load_part` returns.
        begin: first position.
        new: whether the last row is the new token's.

    Returns:
        (None or SBUF [128, tiles] fp32, None or SBUF [rows, 1] fp32); the last row of the
        second, if there is a new token, is a position that is never masked.
    """
    main, tail = part
    size = nl.tile_size.pmax
    masks = []
    tiles = 0
    if main != None:  # noqa: E711
        tiles = main.shape[1]
        numbers = nl.ndarray((size, tiles), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=numbers, pattern=[[1, tiles]], offset=begin, channel_multiplier=tiles)
        masks.append(mask_from(numbers, length))
    else:
        masks.append(None)
    if tail != None:  # noqa: E711
        numbers = nl.ndarray((tail.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=numbers, pattern=[[0, 1]], offset=begin + tiles * size, channel_multiplier=1)
        if new:
            nisa.affine_select(
                dst=numbers,
                pattern=[[0, 1]],
                offset=1 - tail.shape[0],
                channel_multiplier=1,
                on_true_tile=numbers,
                on_false_value=-1.0,
                cmp_op=nl.not_equal,
            )
        masks.append(mask_from(numbers, length[0 : tail.shape[0], :]))
    else:
        masks.append(None)
    return masks


def mask_from(numbers, length):
    """In place: MASKED where a position is not below `length`, else 0."""
    nisa.tensor_scalar(
        dst=numbers,
        data=numbers,
        op0=nl.greater_equal,
        operand0=length,
        op1=nl.multiply,
        operand1=MASKED,
    )
    return numbers


def score(queries, part, masks, engine):
    """Masked scores: SBUF [128, tiles + 1, heads], fp32; the last tile is `part`'s second.

    Args:
        queries: SBUF [width, heads].
        part: keys, what `load_part` returns.
        masks: what `masked_positions` returns.
        engine: who evicts transposed keys.
    """
    main, tail = part
    size = nl.tile_size.pmax
    width, heads = queries.shape
    tiles = 0
    if main != None:  # noqa: E711
        tiles = main.shape[1]
    result = nl.ndarray((size, tiles + 1, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=result[:, tiles, :], value=MASKED)
    group = 4 if queries.dtype == nl.float32 else 8
    ready = None
    for first in range(0, tiles, group):
        some = min(group, tiles - first)
        turned = nl.ndarray((width, some, size), dtype=queries.dtype, buffer=nl.psum)
        for j in range(some):
            nisa.nc_transpose(dst=turned[:, j, :], data=main[:, first + j, :])
        keys = nl.ndarray((width, some, size), dtype=queries.dtype, buffer=nl.sbuf)
        evict(keys, turned, engine, first // group)
        if ready != None:  # noqa: E711  the Tensor engine need not wait for the copy
            score_group(queries, ready[0], masks[0], result, ready[1])
        ready = (keys, first)
    if ready != None:  # noqa: E711
        score_group(queries, ready[0], masks[0], result, ready[1])
    if tail != None:  # noqa: E711
        rows = tail.shape[0]
        turned = nl.ndarray((width, rows), dtype=queries.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=tail)
        keys = nl.ndarray((width, rows), dtype=queries.dtype, buffer=nl.sbuf)
        evict(keys, turned, engine, 1)
        scores = nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=scores, stationary=keys, moving=queries, accumulate=False)
        nisa.tensor_scalar(dst=result[0:rows, tiles, :], data=scores, op0=nl.add, operand0=masks[1])
    return result


def score_group(queries, keys, mask, result, first):
    """Masked scores of some tiles of keys.

    Args:
        queries: SBUF [width, heads].
        keys: SBUF [width, some, 128].
        mask: SBUF [128, tiles], fp32.
        result: SBUF [128, > tiles, heads], fp32; tiles [first, first + some) are written.
        first: the first tile.
    """
    some, size = keys.shape[1], keys.shape[2]
    heads = queries.shape[1]
    tiles = mask.shape[1]
    step = min(some, nl.tile_size.psum_fmax // heads)
    for j in range(0, some, step):
        few = min(step, some - j)
        scores = nl.ndarray((size, few, heads), dtype=nl.float32, buffer=nl.psum)
        for n in range(few):
            nisa.nc_matmul(
                dst=scores[:, n, :],
                stationary=keys[:, j + n, :],
                moving=queries,
                accumulate=False,
            )
        nisa.tensor_tensor(
            dst=result[:, first + j : first + j + few, :],
            data1=scores,
            data2=mask.ap(pattern=[[tiles, size], [1, few], [0, heads]], offset=first + j),
            op=nl.add,
        )


def highest_scores(scores):
    """Each head's largest score: (SBUF column [heads, 1], SBUF [128, heads] in every partition)."""
    size, tiles, heads = scores.shape
    by_head = scores.ap(pattern=[[tiles * heads, size], [1, heads], [heads, tiles]], offset=0)
    highest = nl.ndarray((size, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=highest, op=nl.maximum, data=by_head, axis=2)
    turned = nl.ndarray((heads, size), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=highest)
    column = nl.ndarray((heads, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=column, op=nl.maximum, data=turned, axis=1)
    diagonal = nl.ndarray((heads, heads), dtype=nl.float32, buffer=nl.sbuf)
    identity = nl.shared_identity_matrix(size, dtype=nl.float32)
    nisa.tensor_scalar(
        dst=diagonal, data=identity[0:heads, 0:heads], op0=nl.multiply, operand0=column
    )
    total = sum_over_partitions(diagonal, filled((heads, size), 1.0, nl.float32))
    everywhere = nl.ndarray((size, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=everywhere, src=total, engine=nisa.engine.vector)
    return column, everywhere


def weigh(scores, part, with_maximum):
    """exp(scores - maximum) times the values, and what is needed to divide.

    Args:
        scores: SBUF [128, tiles + 1, heads], fp32; overwritten.
        part: values, what `load_part` returns.
        with_maximum: else the maximum is taken as 0.

    Returns:
        SBUF tile [heads, width + 2], fp32: sums of weighted values, of weights, the maximum.
    """
    main, tail = part
    size, tiles, heads = scores.shape
    values = tail
    if main != None:  # noqa: E711
        values = main
    width = values.shape[len(values.shape) - 1]
    result = nl.ndarray((heads, width + 2), dtype=nl.float32, buffer=nl.sbuf)
    if with_maximum:
        column, everywhere = highest_scores(scores)
        nisa.tensor_tensor(
            dst=scores,
            data1=scores,
            data2=everywhere.ap(pattern=[[heads, size], [0, tiles], [1, heads]], offset=0),
            op=nl.subtract,
        )
        nisa.tensor_copy(dst=result[:, width + 1 : width + 2], src=column)
    weights = nl.ndarray((size, tiles, heads), dtype=values.dtype, buffer=nl.sbuf)
    nisa.activation(dst=weights, op=nl.exp, data=scores)
    mixed = nl.ndarray((heads, width), dtype=nl.float32, buffer=nl.psum)
    for j in range(tiles - 1):
        nisa.nc_matmul(
            dst=mixed, stationary=weights[:, j, :], moving=main[:, j, :], accumulate=j > 0
        )
    if tail != None:  # noqa: E711
        nisa.nc_matmul(
            dst=mixed,
            stationary=weights[0 : tail.shape[0], tiles - 1, :],
            moving=tail,
            accumulate=tiles > 1,
        )
    sums = nl.ndarray((size, heads), dtype=nl.float32, buffer=nl.sbuf)
    by_head = weights.ap(pattern=[[tiles * heads, size], [1, heads], [heads, tiles]], offset=0)
    nisa.tensor_reduce(dst=sums, op=nl.add, data=by_head, axis=2)
    total = nl.ndarray((heads, 1), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=total, stationary=sums, moving=filled((size, 1), 1.0, nl.float32), accumulate=False
    )
    nisa.tensor_copy(dst=result[:, width : width + 1], src=total)
    nisa.tensor_copy(dst=result[:, 0:width], src=mixed, engine=nisa.engine.scalar)
    return result


def add_other_core(mine, with_maximum):
    """Both cores' parts put together, in the layout of `weigh`'s result."""
    heads, columns = mine.shape
    width = columns - 2
    core = nl.program_id(0)
    if not with_maximum:
        nisa.memset(dst=mine[:, width + 1 : columns], value=0.0)
    other = nl.ndarray((heads, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.sendrecv(
        src=mine,
        dst=other,
        send_to_rank=1 - core,
        recv_from_rank=1 - core,
        pipe_id=0,
        dma_engine=nisa.dma_engine.gpsimd_dma,
    )
    if not with_maximum:
        nisa.tensor_tensor(dst=mine, data1=mine, data2=other, op=nl.add)
        return mine
    highest = nl.ndarray((heads, 1), dtype=nl.float32, buffer=nl.sbuf)
    parts = (mine, other)
    nisa.tensor_tensor(
        dst=highest,
        data1=mine[:, width + 1 : columns],
        data2=other[:, width + 1 : columns],
        op=nl.maximum,
    )
    total = nl.ndarray((heads, columns), dtype=nl.float32, buffer=nl.sbuf)
    shares = nl.ndarray((heads, 2), dtype=nl.float32, buffer=nl.sbuf)
    for n in range(2):
        nisa.tensor_tensor(
            dst=shares[:, n : n + 1],
            data1=parts[n][:, width + 1 : columns],
            data2=highest,
            op=nl.subtract,
        )
    nisa.activation(dst=shares, op=nl.exp, data=shares)
    nisa.tensor_scalar(dst=mine, data=mine, op0=nl.multiply, operand0=shares[:, 0:1])
    nisa.scalar_tensor_tensor(
        dst=total,
        data=other,
        op0=nl.multiply,
        operand0=shares[:, 1:2],
        op1=nl.add,
        operand1=mine,
    )
    return total


def store_result(total, out, b, first):
    """Divide by the sum of weights, and write heads from `first` on."""
    heads, columns = total.shape
    width = columns - 2
    share = nl.ndarray((heads, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=share, data=total[:, width : width + 1])
    result = nl.ndarray((heads, width), dtype=out.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=result, data=total[:, 0:width], op0=nl.multiply, operand0=share)
    nisa.dma_copy(dst=out[b, first : first + heads, :], src=result)


def write_row(cache, row, b, g, number):
    """cache[b, g, number] = row[b, g]; number is an SBUF tile [1, 1] int32."""
    groups, positions, width = cache.shape[1], cache.shape[2], cache.shape[3]
    nisa.dma_copy(
        dst=cache.ap(
            pattern=[[width, 1], [1, width]],
            offset=(b * groups + g) * positions * width,
            scalar_offset=number,
            indirect_dim=2,
        ),
        src=row[b, g : g + 1, :],
    )
