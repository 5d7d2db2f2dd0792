"""Scores and softmax of one new token against a KV cache, shared by the decode kernels.

Positions lie on partitions, a partition's positions next to each other in HBM, so that a cache
is read in long descriptors, whichever positions count. Scores then come out transposed, as the
second product needs them: what is exponentiated is a few numbers per partition, and only the
maximum has to cross partitions.
"""

import nki.isa as nisa
import nki.language as nl

from kernels.blocks import evict, filled, sum_over_partitions

MASKED = -1.0e30
"""Added to scores of positions that are not filled."""


def load_lengths(lengths):
    """Lengths: SBUF [1, batch] int32, the same in fp32, and in every partition, [128, batch] fp32.

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
    ones = filled((1, nl.tile_size.pmax), 1.0, nl.float32)
    row = nl.ndarray((1, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=row, src=numbers, engine=nisa.engine.vector)
    values = nl.ndarray((nl.tile_size.pmax, batch), dtype=nl.float32, buffer=nl.sbuf)
    for first in range(0, batch, nl.tile_size.psum_fmax):
        last = min(batch, first + nl.tile_size.psum_fmax)
        nisa.tensor_copy(
            dst=values[:, first:last], src=sum_over_partitions(row[:, first:last], ones)
        )
    return numbers, row, values


def new_part(cache, positions):
    """None, or room for the positions of a pair that fill whole tiles: SBUF [128, tiles, width]."""
    tiles = positions // nl.tile_size.pmax
    if tiles == 0:
        return None
    shape = (nl.tile_size.pmax, tiles, cache.shape[3])
    return nl.ndarray(shape, dtype=cache.dtype, buffer=nl.sbuf)


def load_part(main, cache, row, b, g, begin, end, pieces):
    """Positions [begin, end) of a pair's cache, and a new row; main is `new_part`'s.

    Args:
        main: what `new_part` returned.
        cache: HBM tensor [batch, key heads, positions, width].
        row: None, or HBM tensor [batch, key heads, width]: the new token's.
        b: sequence.
        g: key head.
        begin: first position.
        end: behind the last position.
        pieces: DMAs for whole tiles.

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
    rows = rest + int(row != None)  # noqa: E711
    if rows > 0:
        tail = nl.ndarray((rows, width), dtype=cache.dtype, buffer=nl.sbuf)
        if rest > 0:
            at = start + tiles * size * width
            nisa.dma_copy(
                dst=tail[0:rest, :], src=cache.ap(pattern=[[width, rest], [1, width]], offset=at)
            )
        if row != None:  # noqa: E711
            nisa.dma_copy(dst=tail[rest:rows, :], src=row[b, g : g + 1, :])
    return main, tail


def masked_positions(length, begin, end, new):
    """MASKED for positions from `length` on, else 0: for both tiles of `load_part`.

    Args:
        length: SBUF column [128, 1], fp32.
        begin: first position.
        end: behind the last position.
        new: whether the last row is the new token's.

    Returns:
        (None or SBUF [128, tiles] fp32, None or SBUF [rows, 1] fp32); the last row of the
        second, if there is a new token, is a position that is never masked.
    """
    size = nl.tile_size.pmax
    tiles = (end - begin) // size
    rows = end - begin - tiles * size + int(new)
    masks = [None, None]
    if tiles > 0:
        numbers = nl.ndarray((size, tiles), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=numbers, pattern=[[1, tiles]], offset=begin, channel_multiplier=tiles)
        masks[0] = mask_from(numbers, length)
    if rows > 0:
        numbers = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=numbers, pattern=[[0, 1]], offset=begin + tiles * size, channel_multiplier=1)
        if new:
            nisa.affine_select(
                dst=numbers,
                pattern=[[0, 1]],
                offset=1 - rows,
                channel_multiplier=1,
                on_true_tile=numbers,
                on_false_value=-1.0,
                cmp_op=nl.not_equal,
            )
        masks[1] = mask_from(numbers, length[0:rows, :])
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


def begin_scores(queries, part, masks, engine, with_maximum, new_key=None, previous=None):
    """Masked scores of one pair, but for the last tiles: `end_scores` does these.

    Args:
        queries: SBUF [width, heads], divided by sqrt(width).
        part: keys, what `load_part` returns.
        masks: what `masked_positions` returns.
        engine: who evicts transposed keys.
        with_maximum: whether `advance` has to subtract the maximum.
        new_key: None, or SBUF [width, 128]: a key, repeated: every partition gets its scores, as a
            last tile.
        previous: None, or another pair's step, which is advanced in between: an engine then has
            this pair's work while it waits for that one's maximum.

    Returns:
        (step, rest): what `advance` takes, and what `end_scores` takes. The step is
        [SBUF [128, tiles + 0 to 2, heads] fp32, stage, found, dtype of weights]; after the tiles
        of the first part comes that of the second, if there is one, and that of the new key.
    """
    main, tail = part
    size = nl.tile_size.pmax
    width, heads = queries.shape
    tiles = 0
    if main != None:  # noqa: E711
        tiles = main.shape[1]
    slots = tiles + int(tail != None) + int(new_key != None)  # noqa: E711
    result = nl.ndarray((size, slots, heads), dtype=nl.float32, buffer=nl.sbuf)
    if tail != None and tail.shape[0] < size:  # noqa: E711
        nisa.memset(dst=result[:, tiles, :], value=MASKED, engine=nisa.engine.gpsimd)
    group = 4 if queries.dtype == nl.float32 else 8
    ready = None
    for first in range(0, tiles, group):
        some = min(group, tiles - first)
        turned = nl.ndarray((width, some, size), dtype=queries.dtype, buffer=nl.psum)
        for j in range(some):
            nisa.nc_transpose(dst=turned[:, j, :], data=main[:, first + j, :])
        keys = nl.ndarray((width, some, size), dtype=queries.dtype, buffer=nl.sbuf)
        evict(keys, turned, engine, first // group)
        advance(previous, first // group + 1)
        if ready != None:  # noqa: E711  the Tensor engine need not wait for the copy
            score_group(queries, ready[0], masks[0], result, ready[1])
        ready = (keys, first)
    last = None
    if tail != None:  # noqa: E711
        rows = tail.shape[0]
        turned = nl.ndarray((width, rows), dtype=queries.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=tail)
        last = nl.ndarray((width, rows), dtype=queries.dtype, buffer=nl.sbuf)
        evict(last, turned, engine, 1)
    step = [result, 0 if with_maximum else 3, None, queries.dtype]
    return step, (queries, masks, new_key, ready, last)


def end_scores(step, rest):
    """The scores that `begin_scores` left out, whose keys are on their way through PSUM."""
    queries, masks, new_key, ready, last = rest
    result = step[0]
    size, slots, heads = result.shape
    if ready != None:  # noqa: E711
        score_group(queries, ready[0], masks[0], result, ready[1])
    if last != None:  # noqa: E711
        rows = last.shape[1]
        slot = slots - 1 - int(new_key != None)  # noqa: E711
        scores = nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=scores, stationary=last, moving=queries, accumulate=False)
        nisa.tensor_scalar(dst=result[0:rows, slot, :], data=scores, op0=nl.add, operand0=masks[1])
    if new_key != None:  # noqa: E711
        scores = nl.ndarray((size, heads), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=scores, stationary=new_key, moving=queries, accumulate=False)
        nisa.tensor_copy(dst=result[:, slots - 1, :], src=scores, engine=nisa.engine.scalar)


def repeated(column, times):
    """A tile [P, 1] that is a storage of its own, as a view [P, times]."""
    return column.ap(pattern=[[1, column.shape[0]], [0, times]], offset=0)


def score_group(queries, keys, mask, result, first):
    """Masked scores of some tiles of keys.

    Args:
        queries: SBUF [width, heads].
        keys: SBUF [width, some, 128].
        mask: SBUF [128, tiles], fp32.
        result: SBUF [128, >= tiles, heads], fp32; tiles [first, first + some) are written.
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


def advance(step, stage):
    """Bring a pair's scores to a stage of their softmax.

    1: maxima of partitions, 2: of heads, 3: exponentials of the differences to these. They are
    apart so that another pair's work fits between them. A maximum is found by transposing, and
    gets back to all partitions by transposing a view that repeats it.

    Args:
        step: None, or [scores, stage, found, dtype], which is changed. From stage 2 on, found is
            an SBUF column [heads, 1], each head's largest score, and a PSUM tile [128, heads]
            with the same in every partition. At stage 3, scores are weights.
        stage: at least this one is done afterwards.
    """
    if step == None:  # noqa: E711
        return
    scores = step[0]
    size, slots, heads = scores.shape
    if step[1] < 1 and stage >= 1:
        highest = nl.ndarray((size, heads), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=highest, op=nl.maximum, data=by_head(scores), axis=2)
        turned = nl.ndarray((heads, size), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=highest)
        step[2] = turned
        step[1] = 1
    if step[1] < 2 and stage >= 2:
        column = nl.ndarray((heads, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=column, op=nl.maximum, data=step[2], axis=1)
        everywhere = nl.ndarray((size, heads), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(dst=everywhere, data=repeated(column, size))
        step[2] = (column, everywhere)
        step[1] = 2
    if step[1] < 3 and stage >= 3:
        nisa.tensor_tensor(
            dst=scores,
            data1=scores,
            data2=step[2][1].ap(pattern=[[heads, size], [0, slots], [1, heads]], offset=0),
            op=nl.subtract,
        )
        step[1] = 3
    if step[1] < 4 and stage >= 3:
        weights = nl.ndarray((size, slots, heads), dtype=step[3], buffer=nl.sbuf)
        nisa.activation(dst=weights, op=nl.exp, data=scores)
        step[0] = weights
        step[1] = 4


def by_head(scores):
    """Scores [P, slots, heads], a storage of their own, as a view [P, heads, slots]."""
    size, slots, heads = scores.shape
    return scores.ap(pattern=[[slots * heads, size], [1, heads], [heads, slots]], offset=0)
