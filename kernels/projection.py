"""x @ weight, tiled: what the projections and the head share.

Tokens are the stationary operand, transposed with their hidden dimension interleaved (see
blocks.py), and the weight moves: its rows come from HBM as they lie there, and the result has
tokens on partitions as the next kernel wants them. Weights pass once through SBUF, in blocks of
columns; a block is loaded by several DMAs along the contraction, and the products of one part
start while the next is on its way.
"""

import nki.isa as nisa
import nki.language as nl

from kernels.blocks import contraction_split, evict, filled, transpose_into
from kernels.gated_mlp import weight_view
from kernels.tiling import reciprocal_root

SMALL = 32
"""Tokens up to which weights bound a projection, and the Tensor engine starts cold."""

SBUF_FOR_TOKENS = 65536
"""Bytes per partition for transposed tokens."""
SBUF_FOR_WEIGHTS = 98304
"""Bytes per partition for two blocks of weights."""
BANKS = 3
"""PSUM banks that a block of columns takes at most: two blocks, and two banks to transpose."""


def itemsize(dtype):
    """Bytes of an element."""
    if dtype == nl.float32:
        return 4
    return 1 if dtype == nl.float8_e4m3 else 2


def check_weight(x, weight, scale, name):
    """The weight as the Tensor engine takes it, after asserts on its shape and dtype.

    Args:
        x: HBM tensor [tokens, K].
        weight: HBM tensor [K, N].
        scale: None or HBM tensor [N] fp32.
        name: the kernel's, for messages.
    """
    view = weight_view(weight)
    assert weight.shape[0] == x.shape[1], name + ": weight must have x's hidden dimension as rows"
    if view.dtype == nl.float8_e4m3:
        assert x.dtype == nl.bfloat16, name + ": x must be bfloat16 with an fp8 weight"
        assert scale != None, name + ": an fp8 weight needs scale"  # noqa: E711
    else:
        assert weight.dtype == x.dtype, name + ": weight must have x's dtype, or be float8_e4m3"
        assert scale == None, name + ": scale goes with an fp8 weight only"  # noqa: E711
    if scale != None:  # noqa: E711
        assert tuple(scale.shape) == (weight.shape[1],), (
            name + ": scale must have one number for each column of weight"
        )
    return view


def check_tuning(pieces, engine, name):
    """Asserts on tuning parameters, for messages with the kernel's name."""
    assert pieces >= 1, name + ": pieces must be at least 1"
    assert engine == "vector" or engine == "scalar" or engine == "both", (
        name + ": evict_engine must be 'vector', 'scalar' or 'both'"
    )


def core_share(size, step):
    """(first, last) of this core's part of `size`, cut at a multiple of `step`."""
    cores = nl.num_programs()
    core = nl.program_id(0)
    parts = (size + step - 1) // step
    return min(size, parts * core // cores * step), min(size, parts * (core + 1) // cores * step)


def by_columns(split, tokens, limit):
    """Whether two cores share the columns, not the tokens."""
    assert split == "auto" or split == "columns" or split == "tokens", (
        "split must be 'auto', 'columns' or 'tokens'"
    )
    return split == "columns" or (split == "auto" and tokens <= limit)


def load_tokens(x, first, count, norm, eps, engine):
    """Tokens [first, first + count) transposed, and the factor that their result still needs.

    RMS norm is x * weight times one number for each token. That number commutes with the
    product, so nothing waits for it: x goes to the Tensor engine as it is, the weight comes in
    as transposed tokens leave PSUM, and the factor when the result does.

    Args:
        x: HBM tensor [tokens, K].
        first: first token.
        count: tokens, at most 128.
        norm: None, or SBUF [partitions, tiles]: RMS norm's weight, interleaved.
        eps: of the norm.
        engine: who evicts PSUM if there is no norm.

    Returns:
        (SBUF tile [partitions, tiles, count] of x's dtype; None, or SBUF [count, 1] fp32).
    """
    size = x.shape[1]
    partitions, tiles = contraction_split(size)
    result = nl.ndarray((partitions, tiles, count), dtype=x.dtype, buffer=nl.sbuf)
    rows = nl.ndarray((count, size), dtype=x.dtype, buffer=nl.sbuf)
    if count <= SMALL:  # the other ring is free for the weights
        on_scalar_ring(rows, x[first : first + count, :])
    else:
        nisa.dma_copy(dst=rows, src=x[first : first + count, :])
    if norm == None:  # noqa: E711
        transpose_into(result, rows, engine)
        return result, None
    group = max(1, nl.tile_size.psum_fmax * 4 // (itemsize(x.dtype) * count))
    for start in range(0, tiles, group):
        some = min(group, tiles - start)
        turned = nl.ndarray((partitions, some, count), dtype=x.dtype, buffer=nl.psum)
        for j in range(some):
            nisa.nc_transpose(dst=turned[:, j, :], data=rows[:, start + j : size : tiles])
        nisa.tensor_tensor(
            dst=result[:, start : start + some, :],
            data1=turned,
            data2=norm.ap(pattern=[[tiles, partitions], [1, some], [0, count]], offset=start),
            op=nl.multiply,
        )
    squares = nl.ndarray((count, size), dtype=x.dtype, buffer=nl.sbuf)
    factor = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(
        dst=squares, op=nl.square, data=rows, reduce_op=nl.add, reduce_res=factor
    )
    reciprocal_root(factor, size, eps)
    return result, factor


def load_norm(norm_weight):
    """An HBM vector [K], interleaved: SBUF [partitions, tiles] of its dtype."""
    partitions, tiles = contraction_split(norm_weight.shape[0])
    tile = nl.ndarray((partitions, tiles), dtype=norm_weight.dtype, buffer=nl.sbuf)
    on_scalar_ring(tile, norm_weight.reshape((partitions, tiles)))
    return tile


def on_scalar_ring(dst, src):
    """A DMA that the Scalar engine's sequencer starts, beside those of the Sync engine."""
    nisa.dma_copy(dst=dst, src=src, dge_mode=nisa.dge_mode.hwdge, engine=nisa.engine.scalar)


def load_block(weight, first, columns, pieces):
    """Columns [first, first + columns) of an HBM matrix [K, N], interleaved, by several DMAs."""
    size, width = weight.shape
    partitions, tiles = contraction_split(size)
    tile = nl.ndarray((partitions, tiles, columns), dtype=weight.dtype, buffer=nl.sbuf)
    rows = weight.reshape((partitions, tiles, width))
    step = (tiles + pieces - 1) // pieces
    for j in range(0, tiles, step):
        some = min(step, tiles - j)
        nisa.dma_copy(
            dst=tile[:, j : j + some, :], src=rows[:, j : j + some, first : first + columns]
        )
    return tile


def multiply_block(x_t, block):
    """Transposed tokens times a block of columns: PSUM tile [tokens, columns], fp32.

    Args:
        x_t: SBUF [partitions, tiles, tokens], tokens <= 128.
        block: SBUF [partitions, tiles, columns], columns <= 512 * BANKS.
    """
    tiles = block.shape[1]
    columns = block.shape[2]
    bank = nl.tile_size.psum_fmax
    product = nl.ndarray((x_t.shape[2], columns), dtype=nl.float32, buffer=nl.psum)
    for j in range(tiles):
        for left in range(0, columns, bank):
            right = min(columns, left + bank)
            nisa.nc_matmul(
                dst=product[:, left:right],
                stationary=x_t[:, j, :],
                moving=block[:, j, left:right],
                accumulate=j > 0,
            )
    return product


def warm_tensor_engine(times):
    """Products of zeros that nobody reads: the Tensor engine's clock rises after 4 us of work.

    A decode kernel waits that long for its first weights anyway.
    """
    if times < 1:
        return
    zeros = filled((nl.tile_size.pmax, nl.tile_size.psum_fmax), 0.0, nl.bfloat16)
    total = nl.ndarray(zeros.shape, dtype=nl.float32, buffer=nl.psum)
    for _ in range(times):
        nisa.nc_matmul(
            dst=total,
            stationary=zeros[:, 0 : nl.tile_size.pmax],
            moving=zeros,
            accumulate=False,
        )


def block_width(columns, tiles, size, asked):
    """Columns of a block: what PSUM and SBUF hold, and equal blocks."""
    most = min(asked, nl.tile_size.psum_fmax * BANKS, SBUF_FOR_WEIGHTS // (2 * tiles * size))
    assert most >= 1, "column_block must be at least 1, and two rows of a block must fit SBUF"
    count = (columns + most - 1) // most
    even = (columns + count - 1) // count
    return min(most, (even + 31) // 32 * 32)


def finish(dst, product, factor, scales, addend, engine, turn):
    """dst = product * factor * scales + addend, from PSUM to SBUF with one rounding.

    Args:
        dst: SBUF tile.
        product: PSUM tile, fp32.
        factor: None, or SBUF column, fp32: a factor for each row.
        scales: None, or SBUF fp32: a factor for each element.
        addend: None, or SBUF: a summand for each element.
        engine: who copies, see `blocks.evict`; scales and addends are the Vector engine's.
        turn: counter of evictions.
    """
    if scales != None and addend != None:  # noqa: E711
        scaled = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.sbuf)
        finish(scaled, product, factor, scales, None, engine, turn)
        nisa.tensor_tensor(dst=dst, data1=scaled, data2=addend, op=nl.add)
        return
    other = scales
    operation = nl.multiply
    if addend != None:  # noqa: E711
        other = addend
        operation = nl.add
    if factor == None and other == None:  # noqa: E711
        evict(dst, product, engine, turn)
    elif other == None:  # noqa: E711
        if engine == "scalar" or (engine == "both" and turn % 2 == 1):
            nisa.activation(dst=dst, op=nl.copy, data=product, scale=factor)
        else:
            nisa.tensor_scalar(dst=dst, data=product, op0=nl.multiply, operand0=factor)
    elif factor == None:  # noqa: E711
        nisa.tensor_tensor(dst=dst, data1=product, data2=other, op=operation)
    else:
        nisa.scalar_tensor_tensor(
            dst=dst, data=product, op0=nl.multiply, operand0=factor, op1=operation, operand1=other
        )


def load_column_scales(scale, first, columns, partitions):
    """Scales [first, first + columns) in every partition: SBUF [partitions, columns], fp32."""
    tile = nl.ndarray((partitions, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=scale.ap(pattern=[[0, partitions], [1, columns]], offset=first))
    return tile


def project(x, weight, scale, norm_weight, eps, residual, outs, options):
    """outs = (norm(x) @ weight) * scale + residual, for this core's part.

    Args:
        x: HBM tensor [tokens, K].
        weight: HBM tensor [K, N], as `check_weight` returns it.
        scale: None, or HBM tensor [N] fp32.
        norm_weight: None, or HBM tensor [K].
        eps: of the norm.
        residual: None, or HBM tensor [tokens, N].
        outs: tuple of HBM tensors [tokens, n] whose columns side by side are the result's.
        options: (split, column_block, pieces, evict_engine, warm_up).
    """
    split, column_block, pieces, engine, warm_up = options
    tokens, size = x.shape
    columns = weight.shape[1]
    tiles = contraction_split(size)[1]
    first_token, last_token = 0, tokens
    first_column, last_column = 0, columns
    if by_columns(split, tokens, 512):
        first_column, last_column = core_share(columns, 32)
    else:
        first_token, last_token = core_share(tokens, 1)
    if first_token == last_token or first_column == last_column:
        return
    if tokens <= SMALL:
        warm_tensor_engine(warm_up)
    width = block_width(last_column - first_column, tiles, itemsize(weight.dtype), column_block)
    chunk = SBUF_FOR_TOKENS // (tiles * itemsize(x.dtype)) // nl.tile_size.pmax * nl.tile_size.pmax
    assert chunk > 0, "x has a hidden dimension whose 128 tokens do not fit SBUF"
    norm = None
    turn = 0
    for token in range(first_token, last_token, chunk):
        stop = min(token + chunk, last_token)
        ready = []
        for column in range(first_column, last_column, width):
            some = min(width, last_column - column)
            block = None
            scales = None
            for top in range(token, stop, nl.tile_size.pmax):
                rows = min(nl.tile_size.pmax, stop - top)
                index = (top - token) // nl.tile_size.pmax
                if column == first_column:
                    if norm_weight != None and norm == None:  # noqa: E711
                        norm = load_norm(norm_weight)
                    ready.append(load_tokens(x, top, rows, norm, eps, engine))
                if block == None:  # noqa: E711  after the first tokens, which are needed first
                    block = load_block(weight, column, some, pieces)
                    if scale != None:  # noqa: E711
                        scales = load_column_scales(scale, column, some, rows)
                addend = None
                if residual != None:  # noqa: E711
                    addend = nl.ndarray((rows, some), dtype=residual.dtype, buffer=nl.sbuf)
                    nisa.dma_copy(
                        dst=addend, src=residual[top : top + rows, column : column + some]
                    )
                factors = None
                if scales != None:  # noqa: E711
                    factors = scales[0:rows, :]
                x_t, factor = ready[index]
                product = multiply_block(x_t, block)
                result = nl.ndarray((rows, some), dtype=outs[0].dtype, buffer=nl.sbuf)
                finish(result, product, factor, factors, addend, engine, turn)
                turn += 1
                store_columns(result, outs, top, column)


def store_columns(result, outs, top, column):
    """Write an SBUF tile [rows, columns] to the tensors that these columns belong to."""
    rows, columns = result.shape
    left = 0
    for out in outs:
        width = out.shape[1]
        first = max(column, left)
        last = min(column + columns, left + width)
        if first < last:
            to = out[top : top + rows, first - left : last - left]
            part = result[:, first - column : last - column]
            if rows <= SMALL and left > 0:
                on_scalar_ring(to, part)
            else:
                nisa.dma_copy(dst=to, src=part)
        left += width
