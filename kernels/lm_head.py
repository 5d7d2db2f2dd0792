"""Logits of a shard of the vocabulary, or its greedy choice."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import contraction_split
from kernels.projection import (
    SBUF_FOR_TOKENS,
    SMALL,
    block_width,
    check_tuning,
    check_weight,
    core_share,
    finish,
    itemsize,
    load_block,
    load_column_scales,
    load_norm,
    load_tokens,
    multiply_block,
    warm_tensor_engine,
)

FAR = 16777216.0
"""2^24: above every index, and fp32 holds all integers up to it."""


@nki.jit
def nki_lm_head_kernel(
    x,
    weight,
    norm_weight=None,
    scale=None,
    eps=1e-6,
    argmax=False,
    vocabulary_offset=0,
    column_block=1536,
    pieces=8,
    evict_engine="both",
    warm_up=8,
):
    """logits = norm(x) @ weight, or each token's largest logit and where it is.

    With norm_weight, norm is the model's last RMS normalisation. The weight passes through SBUF
    once, in blocks of columns. With `argmax` a block's logits stay on the chip, in fp32: the
    Vector engine finds the largest of each block, at the end the largest of all; of equal
    logits, the lowest column counts. Ranks of a sharded vocabulary compare what they return.

    On two cores (LNC2) each takes half of the columns.

    Args:
        x: HBM tensor [tokens, hidden], fp32 or bf16 (bf16 with an fp8 weight).
        weight: HBM tensor [hidden, vocabulary], x's dtype, or one-byte float8_e4m3 (also as
            uint8, or float8_e4m3fn whose values are at most 240).
        norm_weight: None, or HBM tensor [hidden], x's dtype.
        scale: with an fp8 weight, HBM tensor [vocabulary] fp32.
        eps: compile-time float > 0, of the norm.
        argmax: return the greedy choice instead of logits.
        vocabulary_offset: added to its index: the shard's first column in the vocabulary.
        column_block: columns at a time, at most 1536 (three PSUM banks).
        pieces: DMAs for a block of columns.
        evict_engine: "vector", "scalar" or "both": who copies products out of PSUM.
        warm_up: products of zeros that raise the Tensor engine's clock, up to 32 tokens.

    Returns:
        HBM tensor [tokens, vocabulary] of x's dtype; with argmax (values [tokens, 1] fp32,
        indices [tokens, 1] int32).

    Limits: hidden above 128 divides into ceil(hidden / 128) equal parts, and is at most 8192
    (fp32 with a norm: 4096); with argmax at least 64 columns, vocabulary_offset + vocabulary <=
    2^24, and no logit is NaN.
    HBM bytes: weight + x for each core + logits. MACs: tokens * hidden * vocabulary.
    """
    tokens, hidden = x.shape
    vocabulary = weight.shape[1]
    assert hidden <= 8192, "nki_lm_head_kernel: x has a hidden dimension above 8192"
    view = check_weight(x, weight, scale, "nki_lm_head_kernel")
    if norm_weight != None:  # noqa: E711
        assert x.dtype == nl.bfloat16 or hidden <= 4096, (
            "nki_lm_head_kernel: x has a hidden dimension above 4096 (fp32 with a norm)"
        )
        assert tuple(norm_weight.shape) == (hidden,), (
            "nki_lm_head_kernel: norm_weight must have x's hidden dimension"
        )
    if argmax:
        assert vocabulary >= 64, "nki_lm_head_kernel: weight has fewer than 64 columns for argmax"
        assert vocabulary_offset + vocabulary <= 16777216, (
            "nki_lm_head_kernel: vocabulary_offset + weight's columns is above 2^24"
        )
    tiles = contraction_split(hidden)[1]
    first_column, last_column = core_share(vocabulary, 32)
    width = block_width(
        max(1, last_column - first_column), tiles, itemsize(view.dtype), column_block
    )
    chunk = SBUF_FOR_TOKENS // (tiles * itemsize(x.dtype)) // nl.tile_size.pmax * nl.tile_size.pmax
    assert chunk > 0, "nki_lm_head_kernel: 128 tokens of x do not fit SBUF"
    check_tuning(pieces, evict_engine, "nki_lm_head_kernel")
    if argmax:
        values = nl.ndarray((tokens, 1), dtype=nl.float32, buffer=nl.shared_hbm)
        indices = nl.ndarray((tokens, 1), dtype=nl.int32, buffer=nl.shared_hbm)
    else:
        logits = nl.ndarray((tokens, vocabulary), dtype=x.dtype, buffer=nl.shared_hbm)
    if tokens <= SMALL:
        warm_tensor_engine(warm_up)
    norm = None
    if norm_weight != None:  # noqa: E711
        norm = load_norm(norm_weight)
    turn = 0
    for token in range(0, tokens, chunk):
        stop = min(tokens, token + chunk)
        ready = []
        best = []
        for top in range(token, stop, nl.tile_size.pmax):
            rows = min(nl.tile_size.pmax, stop - top)
            ready.append(load_tokens(x, top, rows, norm, eps, evict_engine))
            if argmax:
                best.append(new_choice(rows, (last_column - first_column + width - 1) // width))
        for column in range(first_column, last_column, width):
            start = column
            if argmax:  # max8 needs 8 columns: the last block may begin within the one before
                start = min(column, last_column - 8)
            some = min(width, last_column - start)
            block = load_block(view, start, some, pieces)
            scales = None
            if scale != None:  # noqa: E711
                scales = load_column_scales(scale, start, some, min(stop - token, 128))
            for top in range(token, stop, nl.tile_size.pmax):
                index = (top - token) // nl.tile_size.pmax
                x_t, factor = ready[index]
                rows = x_t.shape[2]
                product = multiply_block(x_t, block)
                factors = None
                if scales != None:  # noqa: E711
                    factors = scales[0:rows, :]
                dtype = nl.float32 if argmax else x.dtype
                result = nl.ndarray((rows, some), dtype=dtype, buffer=nl.sbuf)
                finish(result, product, factor, factors, None, evict_engine, turn)
                turn += 1
                if argmax:
                    part = (column - first_column) // width
                    note_best(result, best[index], part, start + vocabulary_offset)
                else:
                    nisa.dma_copy(dst=logits[top : top + rows, start : start + some], src=result)
        if argmax:
            for index in range(len(best)):
                top = token + index * nl.tile_size.pmax
                store_choice(best[index], values, indices, top)
    if argmax:
        return values, indices
    return logits


def new_choice(rows, parts):
    """Two SBUF tiles [rows, parts], fp32: the largest logit of each part, and its index."""
    return (
        nl.ndarray((rows, parts), dtype=nl.float32, buffer=nl.sbuf),
        nl.ndarray((rows, parts), dtype=nl.float32, buffer=nl.sbuf),
    )


def note_best(block, best, part, offset):
    """Put the largest of an SBUF tile [rows, columns] and its index + offset into column `part`."""
    values, indices = best
    rows = block.shape[0]
    top = nl.ndarray((rows, 8), dtype=nl.float32, buffer=nl.sbuf)
    where = nl.ndarray((rows, 8), dtype=nl.uint32, buffer=nl.sbuf)
    nisa.max8(dst=top, src=block)
    nisa.nc_find_index8(dst=where, data=block, vals=top)
    nisa.tensor_copy(dst=values[:, part : part + 1], src=top[:, 0:1])
    nisa.tensor_scalar(
        dst=indices[:, part : part + 1], data=where[:, 0:1], op0=nl.add, operand0=float(offset)
    )


def largest_of(best):
    """The largest of the parts and its index, the lowest if several: two SBUF columns, fp32."""
    values, indices = best
    rows, parts = values.shape
    result = nl.ndarray((rows, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=result[:, 0:1], op=nl.maximum, data=values, axis=1)
    chosen = nl.ndarray((rows, parts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=chosen, data=values, op0=nl.equal, operand0=result[:, 0:1])
    before = nl.ndarray((rows, parts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(  # index - FAR where it is the largest, else 0
        dst=before, data=indices, op0=nl.subtract, operand0=FAR, op1=nl.multiply, operand1=chosen
    )
    nisa.tensor_reduce(dst=result[:, 1:2], op=nl.minimum, data=before, axis=1)
    nisa.tensor_scalar(dst=result[:, 1:2], data=result[:, 1:2], op0=nl.add, operand0=FAR)
    return result


def store_choice(best, values, indices, top):
    """Compare with the other core, and write rows [top, top + rows) of values and indices."""
    found = largest_of(best)
    rows = found.shape[0]
    core = nl.program_id(0)
    if nl.num_programs() > 1:
        other = nl.ndarray((rows, 2), dtype=nl.float32, buffer=nl.sbuf)
        nisa.sendrecv(
            src=found,
            dst=other,
            send_to_rank=1 - core,
            recv_from_rank=1 - core,
            pipe_id=0,
            dma_engine=nisa.dma_engine.gpsimd_dma,
        )
        both = new_choice(rows, 2)
        for n in range(2):
            nisa.tensor_copy(dst=both[n][:, 0:1], src=found[:, n : n + 1])
            nisa.tensor_copy(dst=both[n][:, 1:2], src=other[:, n : n + 1])
        found = largest_of(both)
    numbers = nl.ndarray((rows, 1), dtype=nl.int32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=numbers, src=found[:, 1:2])
    if core == 0:
        nisa.dma_copy(dst=values[top : top + rows, :], src=found[:, 0:1])
        nisa.dma_copy(dst=indices[top : top + rows, :], src=numbers)
