"""Attention of trainium-kernel-fusion: softmax(QᵀK) Vᵀ, q, k, v as [128, seqlen], no scaling.

`baseline` sends scores and weights through HBM between its phases; `fused` keeps them on chip and
divides by the row sums after the last matmul. The instruction lists follow the published profiles
of both kernels at 512 and 1024 tokens (see `legacy`): phases run over blocks of query tiles.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from benchmarks.published.legacy import BANK, Balance, P, copied, load, psum, sbuf, transposed

SBUF_FOR_TILES = 128 * 1024
"""Bytes per partition that the compiler lets the tiles of one block fill (rule 5)."""
RESIDENT_BANKS = 4
"""Score banks per block that stay in PSUM (rule 2)."""


def _block(tiles, bytes_per_tile, most):
    """Query tiles per block: a power of two, as SBUF allows."""
    size = most
    while size > 1 and (size * bytes_per_tile > SBUF_FOR_TILES or tiles % size):
        size //= 2
    return size


def _scores(q, k, tile, part):
    """The [128, 512] scores of one query tile and one part of the keys, in PSUM."""
    bank = psum()
    nisa.nc_matmul(
        dst=bank,
        stationary=q[:, tile * P : (tile + 1) * P],
        moving=k[:, part * BANK : (part + 1) * BANK],
        accumulate=False,
    )
    return bank


def _minus_maximum(scores, balance):
    """-max of each row, one column per tile. scores: [tile][part] of [128, 512]."""
    tiles, parts = len(scores), len(scores[0])
    partial = sbuf((P, tiles, parts))
    for t in range(tiles):
        for j in range(parts):
            nisa.tensor_reduce(
                dst=partial[:, t, j : j + 1], op=nl.maximum, data=scores[t][j], axis=1
            )
            balance.add("vector", BANK)
    result = sbuf((P, tiles))
    nisa.tensor_reduce(dst=result, op=nl.maximum, data=partial, axis=2, negate=True)
    return result


def _exponentials(scores, minus_maximum, balance):
    """exp(score - max) as [tile] of [128, seqlen], and the reciprocals of their row sums."""
    tiles, parts = len(scores), len(scores[0])
    exponentials = [sbuf((P, parts * BANK)) for _ in range(tiles)]
    partial = sbuf((P, tiles, parts))
    for t in range(tiles):
        for j in range(parts):
            part = exponentials[t][:, j * BANK : (j + 1) * BANK]
            bias = minus_maximum[:, t : t + 1]
            nisa.activation(dst=part, op=nl.exp, data=scores[t][j], bias=bias, scale=1.0)
            nisa.tensor_reduce(dst=partial[:, t, j : j + 1], op=nl.add, data=part, axis=1)
            balance.add("scalar", BANK)
            balance.add("vector", BANK)
    sums, inverse = sbuf((P, tiles)), sbuf((P, tiles))
    nisa.tensor_reduce(dst=sums, op=nl.add, data=partial, axis=2)
    nisa.reciprocal(dst=inverse, data=sums)
    return exponentials, inverse


def _weighted(weights_t, v_t):
    """weights @ v of one query tile, in PSUM; both operands lie [128 keys, chunk * 128 + …]."""
    total = psum(P)
    chunks = v_t.shape[1] // P
    for c in range(chunks):
        columns = slice(c * P, (c + 1) * P)
        nisa.nc_matmul(
            dst=total,
            stationary=weights_t[:, columns],
            moving=v_t[:, columns],
            accumulate=c > 0,
        )
    return total


def _store_block(out, first, results):
    """One DMA for the [128, tiles, 128] results of a block of query tiles."""
    tiles, width = results.shape[1], results.shape[2]
    view = out.ap(pattern=[[width, P], [P * width, tiles], [1, width]], offset=first * P * width)
    nisa.dma_copy(dst=view, src=results)


def _tile_view(scores, first, tiles):
    """[128, tiles, seqlen] view of a [query tile, 128, seqlen] HBM tensor."""
    seqlen = scores.shape[2]
    return scores.ap(
        pattern=[[seqlen, P], [P * seqlen, tiles], [1, seqlen]], offset=first * P * seqlen
    )


@nki.jit
def fused(q_hbm, k_hbm, v_hbm):
    """One pass over query tiles, nothing but the result leaves the chip.

    Args:
        q_hbm: HBM tensor [128, seqlen], seqlen a multiple of 512.
        k_hbm: as q_hbm.
        v_hbm: as q_hbm.

    Returns:
        HBM tensor [seqlen, 128].
    """
    seqlen = q_hbm.shape[1]
    balance = Balance()
    out = nl.ndarray((seqlen, P), dtype=q_hbm.dtype, buffer=nl.shared_hbm)
    v, q, k = load(v_hbm), load(q_hbm), load(k_hbm)
    v_t = sbuf((P, seqlen))
    transposed(v, v_t, balance)
    parts = seqlen // BANK
    size = _block(seqlen // P, 3 * 4 * seqlen, 4)
    for first in range(0, seqlen // P, size):
        scores, resident = [], 0
        for t in range(first, first + size):
            row = []
            for j in range(parts):
                bank = _scores(q, k, t, j)
                stays = resident < RESIDENT_BANKS and size * parts - len(row) > 0
                row.append(bank if stays else copied(bank, balance))
                resident += stays
            scores.append(row)
        minus_maximum = _minus_maximum(scores, balance)
        weights, inverse = _exponentials(scores, minus_maximum, balance)
        weights_t = [sbuf((P, seqlen)) for _ in range(size)]
        for t in range(size):
            transposed(weights[t], weights_t[t], balance)
        results = sbuf((P, size, P), out.dtype)
        for t in range(size):
            total = _weighted(weights_t[t], v_t)
            nisa.tensor_scalar(
                dst=results[:, t, :],
                data=total,
                op0=nl.multiply,
                operand0=inverse[:, t : t + 1],
                engine=nisa.engine.vector,
            )
            balance.add("vector", P)
        _store_block(out, first, results)
    return out


def _score_phase(q, k, scores_hbm, size, balance):
    parts = k.shape[1] // BANK
    for first in range(0, scores_hbm.shape[0], size):
        held = sbuf((P, size, parts * BANK))
        for t in range(size):
            for j in range(parts):
                bank = _scores(q, k, first + t, j)
                nisa.tensor_copy(
                    dst=held[:, t, j * BANK : (j + 1) * BANK],
                    src=bank,
                    engine=balance.choose(BANK),
                )
        nisa.dma_copy(dst=_tile_view(scores_hbm, first, size), src=held)


def _softmax_phase(scores_hbm, size, transfer, balance):
    tiles, _, seqlen = scores_hbm.shape
    parts = range(seqlen // BANK)
    for first in range(0, tiles, size):
        held = sbuf((P, size, seqlen))
        for t in range(0, size, transfer):
            view = _tile_view(scores_hbm, first + t, transfer)
            nisa.dma_copy(dst=held[:, t : t + transfer, :], src=view)
        scores = [[held[:, t, j * BANK : (j + 1) * BANK] for j in parts] for t in range(size)]
        minus_maximum = _minus_maximum(scores, balance)
        exponentials, inverse = _exponentials(scores, minus_maximum, balance)
        weights = sbuf((P, size, seqlen))
        for t in range(size):
            for j in parts:
                columns = slice(j * BANK, (j + 1) * BANK)
                nisa.tensor_scalar(
                    dst=weights[:, t, columns],
                    data=exponentials[t][:, columns],
                    op0=nl.multiply,
                    operand0=inverse[:, t : t + 1],
                    engine=nisa.engine.vector,
                )
        for t in range(0, size, transfer):
            view = _tile_view(scores_hbm, first + t, transfer)
            nisa.dma_copy(dst=view, src=weights[:, t : t + transfer, :])


@nki.jit
def baseline(q_hbm, k_hbm, v_hbm):
    """Scores, softmax and the weighted sum are three phases with HBM between them.

    Args:
        q_hbm: HBM tensor [128, seqlen], seqlen a multiple of 512.
        k_hbm: as q_hbm.
        v_hbm: as q_hbm.

    Returns:
        HBM tensor [seqlen, 128].
    """
    seqlen = q_hbm.shape[1]
    tiles = seqlen // P
    balance = Balance()
    out = nl.ndarray((seqlen, P), dtype=q_hbm.dtype, buffer=nl.shared_hbm)
    scores_hbm = nl.ndarray((tiles, P, seqlen), dtype=nl.float32, buffer=nl.shared_hbm)
    q, k, v = load(q_hbm), load(k_hbm), load(v_hbm)
    transfer = max(1, 1024 // seqlen)  # the profiles move 512 KiB per DMA
    _score_phase(q, k, scores_hbm, transfer, balance)
    v_t = sbuf((P, seqlen))
    transposed(v, v_t, balance)
    _softmax_phase(scores_hbm, _block(tiles, 3 * 4 * seqlen, 8), transfer, balance)
    size = _block(tiles, 2 * 4 * seqlen, 4)
    for first in range(0, tiles, size):
        held = sbuf((P, size, seqlen))
        for t in range(0, size, transfer):
            view = _tile_view(scores_hbm, first + t, transfer)
            nisa.dma_copy(dst=held[:, t : t + transfer, :], src=view)
        results = sbuf((P, size, P), out.dtype)
        for t in range(size):
            weights_t = sbuf((P, seqlen))
            transposed(held[:, t, :], weights_t, balance)
            total = _weighted(weights_t, v_t)
            nisa.tensor_copy(dst=results[:, t, :], src=total, engine=balance.choose(P))
        _store_block(out, first, results)
    return out
