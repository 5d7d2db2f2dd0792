"""Attention of one new token of each sequence against its KV cache; see cache_attention.py."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import filled
from kernels.cache_attention import (
    advance,
    begin_scores,
    by_head,
    end_scores,
    load_lengths,
    load_part,
    masked_positions,
    new_part,
)

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
        buffers: pairs whose keys and values are in SBUF at a time, at least 2, fewer than asked
            for if they do not fit.
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
    assert buffers >= 2, "nki_decode_attention_kernel: buffers must be at least 2"
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
    loaded = load_lengths(lengths)
    numbers, filled_positions = loaded[0], loaded[2]
    with_maximum = logit_bound == None  # noqa: E711
    new = end == positions  # the core that has the last positions takes the new tokens
    most = max(2, 2 * SBUF_FOR_CACHE // (tiles * 2 * width * itemsize))
    rings = []  # a few pairs in flight: more would share the DMA engines, and all come late
    for _ in range(min(buffers, most, last - first)):
        rings.append((new_part(k_cache, end - begin), new_part(v_cache, end - begin)))
    queries = load_queries(q, first * each, (last - first) * each)
    ones = filled((nl.tile_size.pmax, 1), 1.0, nl.float32)
    waiting = None
    previous = None
    for pair in range(first, last):
        b = pair // groups
        g = pair % groups
        ring = rings[(pair - first) % len(rings)]
        keys = load_part(ring[0], k_cache, k if new else None, b, g, begin, end, pieces)
        values = load_part(ring[1], v_cache, v if new else None, b, g, begin, end, 1)
        own = queries[:, (pair - first) * each : (pair - first + 1) * each]
        masks = masked_positions(filled_positions[:, b : b + 1], begin, end, new)
        step, rest = begin_scores(own, keys, masks, evict_engine, with_maximum, None, previous)
        if previous != None:  # noqa: E711  the Tensor engine has work while keys leave PSUM
            finish_pair(waiting, ones, out, shared)
        end_scores(step, rest)
        waiting = (step, values, b, g * each)
        previous = step
    finish_pair(waiting, ones, out, shared)
    if new:  # after all reads: nothing waits for a write to an address known on the device only
        for pair in range(first, last):
            b = pair // groups
            number = numbers[0:1, b : b + 1]
            write_row(k_cache, k, b, pair % groups, number)
            write_row(v_cache, v, b, pair % groups, number)
    return out, k_cache, v_cache


def finish_pair(waiting, ones, out, shared):
    """From a pair's scores to its part of out; `shared` if the other core has half of them."""
    step, values, b, first = waiting
    with_maximum = step[1] < 3 or step[2] != None  # noqa: E711
    total = weigh(step, values, ones, with_maximum)
    if shared:
        total = add_other_core(total, with_maximum)
    if nl.program_id(0) == 0 or not shared:
        store_result(total, out, b, first)


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


def weigh(step, part, ones, with_maximum):
    """exp(scores - maximum) times the values, and what is needed to divide.

    Args:
        step: what `score` returns; its scores are overwritten.
        part: values, what `load_part` returns.
        ones: SBUF column [128, 1] of 1.0, fp32.
        with_maximum: else the maximum is taken as 0.

    Returns:
        SBUF tile [heads, width + 2], fp32: sums of weighted values, of weights, the maximum.
    """
    main, tail = part
    size, slots, heads = step[0].shape
    values = tail
    if main != None:  # noqa: E711
        values = main
    width = values.shape[len(values.shape) - 1]
    result = nl.ndarray((heads, width + 2), dtype=nl.float32, buffer=nl.sbuf)
    advance(step, 3)
    weights = step[0]
    mixed = nl.ndarray((heads, width), dtype=nl.float32, buffer=nl.psum)
    tiles = slots - int(tail != None)  # noqa: E711
    for j in range(tiles):
        nisa.nc_matmul(
            dst=mixed, stationary=weights[:, j, :], moving=main[:, j, :], accumulate=j > 0
        )
    if tail != None:  # noqa: E711
        nisa.nc_matmul(
            dst=mixed,
            stationary=weights[0 : tail.shape[0], tiles, :],
            moving=tail,
            accumulate=tiles > 0,
        )
    sums = nl.ndarray((size, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=sums, op=nl.add, data=by_head(weights), axis=2)
    total = nl.ndarray((heads, 1), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total, stationary=sums, moving=ones, accumulate=False)
    if with_maximum:
        nisa.tensor_copy(dst=result[:, width + 1 : width + 2], src=step[2][0])
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
