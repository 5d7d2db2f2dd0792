"""The attention block's second half: attention over cache and new token, output projection."""

import nki.isa as nisa
import nki.language as nl

from kernels.blocks import contraction_split
from kernels.cache_attention import (
    advance,
    begin_scores,
    by_head,
    end_scores,
    load_part,
    masked_positions,
    new_part,
)

SBUF_FOR_ALL = 180224
"""Bytes of each partition for weights, keys and values."""
SENT = 256
"""Elements of a partition that one exchange by the GpSimd's DMA takes, of 2 or 4 bytes."""


def itemsize(dtype):
    """Bytes of an element."""
    return 4 if dtype == nl.float32 else 2


def exchanged(mine):
    """The other core's tile of the same name: SBUF of mine's shape and dtype."""
    partitions = mine.shape[0]
    size = 1
    for n in mine.shape[1:]:
        size *= n
    other = nl.ndarray(mine.shape, dtype=mine.dtype, buffer=nl.sbuf)
    source = mine.reshape((partitions, size))
    target = other.reshape((partitions, size))
    rank = 1 - nl.program_id(0)
    for first in range(0, size, SENT):
        last = min(size, first + SENT)
        nisa.sendrecv(
            src=source[:, first:last],
            dst=target[:, first:last],
            send_to_rank=rank,
            recv_from_rank=rank,
            pipe_id=0,
            dma_engine=nisa.dma_engine.gpsimd_dma,
        )
    return other


def split_work(k_cache, buffers, used):
    """What this core attends to.

    Args:
        k_cache: HBM tensor [batch, key heads, positions, width].
        buffers: pairs of a sequence and a key head in SBUF at a time, at most.
        used: elements of each partition that weights take.

    Returns:
        (first, last, begin, end, rings, shared): sequences [first, last), positions
        [begin, end); pairs in SBUF at a time; whether both cores work on the same sequence.
    """
    batch, groups, positions, width = k_cache.shape
    core = nl.program_id(0)
    cores = nl.num_programs()
    first, last = batch * core // cores, batch * (core + 1) // cores
    begin, end = 0, positions
    shared = cores > 1 and batch == 1
    if shared:
        first, last = 0, 1
        begin, end = positions * core // cores, positions * (core + 1) // cores
    size = itemsize(k_cache.dtype)
    tiles = positions // cores // 128 + 2 if shared else positions // 128 + 2
    pair = 2 * tiles * width * size
    rings = min(buffers, (last - first) * groups, (SBUF_FOR_ALL - used * size) // pair)
    assert rings >= min(2, (last - first) * groups), (
        "nki_attention_block_decode_kernel: qkv_weight, o_weight and k_cache's and v_cache's "
        "positions of two pairs need more than 176 KiB per partition"
    )
    return first, last, begin, end, rings, shared


def all_masks(filled_positions, plan):
    """`masked_positions` of this core's sequences."""
    masks = []
    for b in range(plan[0], plan[1]):
        masks.append(masked_positions(filled_positions[:, b : b + 1], plan[2], plan[3], False))
    return masks


def attend(fresh, caches, masks, index, plan, o_weight, out, ones, tuning):
    """Attention of the new tokens, their output projection, and the update of the caches.

    Args:
        fresh: what `finish_heads` returns.
        caches: (k_cache, v_cache), HBM tensors.
        masks: what `all_masks` returns.
        index: what `row_numbers` returns.
        plan: what `split_work` returns.
        o_weight: HBM tensor [heads * width, hidden].
        out: HBM tensor [batch, hidden].
        ones: SBUF [128, width] of 1.0, x's dtype.
        tuning: (pieces, evict_engine).
    """
    queries_keys = fresh[0]
    first, last, begin, end, count, shared = plan
    groups, positions, width = caches[0].shape[1], caches[0].shape[2], caches[0].shape[3]
    batch = out.shape[0]
    heads = o_weight.shape[0] // width
    each = heads // groups
    most = (batch + 1) // 2 if nl.num_programs() > 1 and not shared else batch
    mixed = nl.ndarray((width, most, heads), dtype=out.dtype, buffer=nl.sbuf)
    new = end == positions
    rings = []
    for _ in range(count):
        rings.append((new_part(caches[0], end - begin), new_part(caches[1], end - begin)))
    rows = None
    waiting = None
    previous = None
    for pair in range(first * groups, last * groups):
        b = pair // groups
        g = pair % groups
        ring = rings[(pair - first * groups) % count]
        keys = load_part(ring[0], caches[0], None, b, g, begin, end, 2)
        part = load_part(ring[1], caches[1], None, b, g, begin, end, 1)
        queries = queries_keys[:, g * each : (g + 1) * each, b]
        key = None
        if new:
            key = queries_keys.ap(
                pattern=[[(heads + groups) * batch, width], [0, nl.tile_size.pmax]],
                offset=(heads + g) * batch + b,
            )
        step, rest = begin_scores(queries, keys, masks[b - first], tuning[1], True, key, previous)
        if previous != None:  # noqa: E711
            finish_pair(waiting, rows, ones, mixed, plan)
        end_scores(step, rest)
        if new and rows == None:  # noqa: E711  while the first maximum crosses partitions
            advance(step, 1)
            turned = turn_new(fresh, heads, first, last)
            advance(step, 2)
            rows = evict_new(turned)
        waiting = (step, part, b, g)
        previous = step
    weight = load_heads(o_weight, width, tuning[0])
    if previous != None:  # noqa: E711
        finish_pair(waiting, rows, ones, mixed, plan)
    everything = gathered(mixed, batch, plan)
    if rows != None:  # noqa: E711
        store_rows(rows, caches, index)
    store_projection(everything, weight, out)


def turn_new(fresh, heads, first, last):
    """The new keys and values of sequences [first, last) as rows: two PSUM [pairs, width]."""
    queries_keys, raw, factor = fresh
    width, both, batch = queries_keys.shape
    groups = both - heads
    count = last - first
    turned = nl.ndarray((width, 2, count, groups), dtype=raw.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(
        dst=turned[:, 0, :, :],
        src=queries_keys.ap(
            pattern=[[both * batch, width], [1, count], [batch, groups]],
            offset=heads * batch + first,
        ),
    )
    nisa.tensor_tensor(
        dst=turned[:, 1, :, :],
        data1=raw.ap(
            pattern=[[(both + groups) * batch, width], [1, count], [batch, groups]],
            offset=both * batch + first,
        ),
        data2=factor.ap(pattern=[[batch, width], [1, count], [0, groups]], offset=first),
        op=nl.multiply,
    )
    flat = turned.reshape((width, 2 * count * groups))
    results = []
    for n in range(2):
        product = nl.ndarray((count * groups, width), dtype=raw.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=product, data=flat[:, n * count * groups : (n + 1) * count * groups])
        results.append(product)
    return results


def evict_new(turned):
    """What `turn_new` returns, in SBUF."""
    results = []
    for product in turned:
        rows = nl.ndarray(product.shape, dtype=product.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=rows, src=product, engine=nisa.engine.vector)
        results.append(rows)
    return results


def finish_pair(waiting, rows, ones, mixed, plan):
    """A pair's part of `mixed`, from its scores.

    Args:
        waiting: (step, values' part, sequence, key head).
        rows: None, or what `evict_new` returns.
        ones: SBUF [128, width] of 1.0, mixed's dtype.
        mixed: SBUF [width, sequences, heads], written.
        plan: what `split_work` returns.
    """
    step, part, b, g = waiting
    first, shared = plan[0], plan[5]
    width, heads = mixed.shape[0], mixed.shape[2]
    advance(step, 3)
    weights = step[0]
    each = weights.shape[2]
    share = None
    if shared:
        share = share_of_maximum(step, width)
    sums, totals = weighted_sums(
        weights, part, ones, width, rows, (b - first) * (heads // each) + g
    )
    target = mixed[:, b - first, g * each : (g + 1) * each]
    inverse = nl.ndarray((width, each), dtype=nl.float32, buffer=nl.sbuf)
    if not shared:
        nisa.reciprocal(dst=inverse, data=totals)
        nisa.tensor_tensor(dst=target, data1=sums, data2=inverse, op=nl.multiply)
        return
    mine = nl.ndarray((width, 2, each), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=mine[:, 1, :], data1=totals, data2=share, op=nl.multiply)
    nisa.tensor_tensor(dst=mine[:, 0, :], data1=sums, data2=share, op=nl.multiply)
    nisa.tensor_tensor(dst=mine, data1=mine, data2=exchanged(mine), op=nl.add)
    nisa.reciprocal(dst=inverse, data=mine[:, 1, :])
    nisa.tensor_tensor(dst=target, data1=mine[:, 0, :], data2=inverse, op=nl.multiply)


def share_of_maximum(step, width):
    """exp(this core's maxima - both cores' maxima): SBUF [width, heads], fp32."""
    everywhere = step[2][1]
    heads = everywhere.shape[1]
    mine = nl.ndarray((width, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=mine, src=everywhere[0:width, :], engine=nisa.engine.vector)
    other = exchanged(mine)
    nisa.tensor_tensor(dst=other, data1=mine, data2=other, op=nl.maximum)
    nisa.tensor_tensor(dst=mine, data1=mine, data2=other, op=nl.subtract)
    nisa.activation(dst=mine, op=nl.exp, data=mine)
    return mine


def weighted_sums(weights, part, ones, width, rows, own):
    """Weights times values, and sums of weights, transposed.

    Args:
        weights: SBUF [128, slots, heads]; the last slot is the new token's if there are rows,
            the same in every partition.
        part: values, what `load_part` returns.
        ones: SBUF [128, width] of 1.0, weights' dtype.
        width: head_dim.
        rows: None, or (SBUF [pairs, width], SBUF [pairs, width]): new keys and values.
        own: which pair of `rows` is this one.

    Returns:
        (PSUM [width, heads], SBUF [width, heads]), fp32.
    """
    main, tail = part
    slots, heads = weights.shape[1], weights.shape[2]
    cached = slots - int(rows != None)  # noqa: E711
    tiles = cached - int(tail != None)  # noqa: E711
    chosen = None
    if rows != None:  # noqa: E711
        chosen = weights_of_new(weights, rows[1].shape[0], own)
    totals = sum_weights(weights, chosen, ones, cached)
    result = nl.ndarray((width, heads), dtype=nl.float32, buffer=nl.psum)
    for j in range(tiles):
        nisa.nc_matmul(
            dst=result, stationary=main[:, j, :], moving=weights[:, j, :], accumulate=j > 0
        )
    if tail != None:  # noqa: E711
        nisa.nc_matmul(
            dst=result,
            stationary=tail,
            moving=weights[0 : tail.shape[0], tiles, :],
            accumulate=tiles > 0,
        )
    if rows != None:  # noqa: E711
        nisa.nc_matmul(dst=result, stationary=rows[1], moving=chosen, accumulate=True)
    return result, totals


def weights_of_new(weights, pairs, own):
    """The last slot's weights in partition `own`, zeros in all others: SBUF [pairs, heads]."""
    slots, heads = weights.shape[1], weights.shape[2]
    every = weights[0:pairs, slots - 1, :]
    if pairs == 1:
        return every
    chosen = nl.ndarray((pairs, heads), dtype=weights.dtype, buffer=nl.sbuf)
    nisa.affine_select(
        dst=chosen,
        pattern=[[0, heads]],
        offset=-own,
        channel_multiplier=1,
        on_true_tile=every,
        on_false_value=0.0,
        cmp_op=nl.equal,
    )
    return chosen


def sum_weights(weights, chosen, ones, cached):
    """Sums of `cached` slots, and of the new token's weights: SBUF [width, heads], fp32.

    A product with ones sums over partitions, for several slots at once, the Vector engine over
    these slots.
    """
    heads = weights.shape[2]
    width = ones.shape[1]
    most = min(cached, max(1, nl.tile_size.psum_fmax // heads))
    by_slot = nl.ndarray((width, most, heads), dtype=nl.float32, buffer=nl.psum)
    for first in range(0, cached, most):
        some = min(most, cached - first)
        nisa.nc_matmul(
            dst=by_slot[:, 0:some, :],
            stationary=ones,
            moving=weights[:, first : first + some, :],
            accumulate=first > 0,
        )
    if chosen != None:  # noqa: E711
        nisa.nc_matmul(
            dst=by_slot[:, 0, :],
            stationary=ones[0 : chosen.shape[0], :],
            moving=chosen,
            accumulate=True,
        )
    totals = nl.ndarray((width, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=totals, op=nl.add, data=by_head(by_slot), axis=2)
    return totals


def gathered(mixed, batch, plan):
    """All sequences' results: SBUF [width, batch, heads]."""
    first, last, shared = plan[0], plan[1], plan[5]
    if shared or nl.num_programs() == 1:
        return mixed
    width, most, heads = mixed.shape
    if last - first < most:
        nisa.memset(dst=mixed[:, last - first : most, :], value=0.0)
    other = exchanged(mixed)
    result = nl.ndarray((width, batch, heads), dtype=mixed.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result[:, first:last, :], src=mixed[:, 0 : last - first, :])
    start = 0 if first > 0 else last
    some = batch - (last - first)
    nisa.tensor_copy(dst=result[:, start : start + some, :], src=other[:, 0:some, :])
    return result


def row_numbers(row, cache, plan):
    """Where this core's new rows go, counted through a whole cache: SBUF [pairs, 1] int32.

    Args:
        row: SBUF [1, batch], fp32: the lengths.
        cache: HBM tensor [batch, key heads, positions, width].
        plan: what `split_work` returns.
    """
    first, last = plan[0], plan[1]
    groups, positions = cache.shape[1], cache.shape[2]
    pairs = (last - first) * groups
    starts = nl.ndarray((1, last - first, groups), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(
        dst=starts,
        pattern=[[groups * positions, last - first], [positions, groups]],
        offset=first * groups * positions,
        channel_multiplier=0,
    )
    nisa.tensor_tensor(
        dst=starts,
        data1=starts,
        data2=row.ap(pattern=[[row.shape[1], 1], [1, last - first], [0, groups]], offset=first),
        op=nl.add,
    )
    return integer_column(starts.reshape((1, pairs)))


def integer_column(row):
    """An SBUF tile [1, N] of whole fp32 numbers as SBUF [N, 1] int32."""
    count = row.shape[1]
    turned = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=row)
    column = nl.ndarray((count, 1), dtype=nl.int32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=column, src=turned, engine=nisa.engine.vector)
    return column


def store_rows(rows, caches, index):
    """Write new rows to the caches, where `row_numbers` says.

    After all reads, and by one DMA for each cache: a write to an address known on the device only
    may touch what a later read wants.
    """
    pairs, width = rows[0].shape
    for n in range(2):
        cache = caches[n]
        table = cache.reshape((cache.shape[0] * cache.shape[1] * cache.shape[2], width))
        nisa.dma_copy(
            dst=table.ap(pattern=[[width, pairs], [1, width]], offset=0, vector_offset=index),
            src=rows[n],
        )


def load_heads(o_weight, width, pieces):
    """This core's half of o_weight's columns: SBUF [width, heads, columns]."""
    hidden = o_weight.shape[1]
    heads = o_weight.shape[0] // width
    columns = hidden // nl.num_programs()
    tile = nl.ndarray((width, heads, columns), dtype=o_weight.dtype, buffer=nl.sbuf)
    step = (heads + pieces - 1) // pieces
    for h in range(0, heads, step):
        some = min(step, heads - h)
        nisa.dma_copy(
            dst=tile[:, h : h + some, :],
            src=o_weight.ap(
                pattern=[[hidden, width], [width * hidden, some], [1, columns]],
                offset=h * width * hidden + nl.program_id(0) * columns,
            ),
        )
    return tile


def store_projection(mixed, weight, out):
    """out's columns of this core = mixed @ weight.

    Weights are stationary, the result is transposed once more before it is stored: rows of a
    block are neighbours in HBM.

    Args:
        mixed: SBUF [width, batch, heads].
        weight: SBUF [width, heads, columns].
        out: HBM tensor [batch, hidden].
    """
    batch, heads = mixed.shape[1], mixed.shape[2]
    columns = weight.shape[2]
    hidden = out.shape[1]
    size, blocks = contraction_split(columns)
    product = nl.ndarray((size, blocks, batch), dtype=nl.float32, buffer=nl.psum)
    for h in range(heads):
        for m in range(blocks):
            nisa.nc_matmul(
                dst=product[:, m, :],
                stationary=weight[:, h, m * size : (m + 1) * size],
                moving=mixed[:, :, h],
                accumulate=h > 0,
            )
    result = nl.ndarray((size, blocks, batch), dtype=out.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result, src=product, engine=nisa.engine.vector)
    group = max(1, nl.tile_size.pmax // batch)
    for first in range(0, blocks, group):
        some = min(group, blocks - first)
        back = nl.ndarray((some * batch, size), dtype=out.dtype, buffer=nl.psum)
        part = result.reshape((size, blocks * batch))
        nisa.nc_transpose(dst=back, data=part[:, first * batch : (first + some) * batch])
        rows = nl.ndarray((some * batch, size), dtype=out.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=rows, src=back, engine=nisa.engine.vector)
        nisa.dma_copy(
            dst=out.ap(
                pattern=[[size, some], [hidden, batch], [1, size]],
                offset=nl.program_id(0) * columns + first * size,
            ),
            src=rows,
        )
