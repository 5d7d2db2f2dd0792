"""The experts that few tokens have chosen: their weights by dynamic addresses, their arithmetic."""

import nki.isa as nisa
import nki.language as nl

from kernels.blocks import contraction_split
from kernels.tiling import load_rows

SBUF_FOR_WEIGHTS = 160 * 1024
"""Bytes of each partition that experts' weights may take."""


def chosen_scales(scales, numbers, inner):
    """The scales of all chosen experts, transposed.

    All scales are read, which long descriptors make cheaper than those of the chosen experts,
    and chosen by a product with 0 and 1.

    Args:
        scales: HBM tensor [experts, 2 * inner], fp32.
        numbers: SBUF [128, tokens, K], fp32: expert numbers in every partition.
        inner: inner columns of an expert.

    Returns:
        SBUF tile [partitions, 2, blocks, tokens * K], fp32; blocks as `inner_blocks`.
    """
    experts = scales.shape[0]
    blocks = inner_blocks(inner)
    partitions = blocks[0][0]
    parts = len(blocks)
    pairs = numbers.shape[1] * numbers.shape[2]
    flat = numbers.reshape((nl.tile_size.pmax, pairs))
    tables = []
    choices = []
    for start in range(0, experts, nl.tile_size.pmax):
        count = min(nl.tile_size.pmax, experts - start)
        tables.append(load_rows(scales, start, count))
        own = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=own, pattern=[[0, 1]], offset=start, channel_multiplier=1)
        choice = nl.ndarray((count, pairs), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=choice, data=flat[0:count, :], op0=nl.equal, operand0=own)
        choices.append(choice)
    result = nl.ndarray((partitions, 2, parts, pairs), dtype=nl.float32, buffer=nl.sbuf)
    if blocks[parts - 1][0] < partitions:
        nisa.memset(dst=result[:, :, parts - 1, :], value=0.0)
    for half in range(2):
        for c in range(parts):
            count, first, step = blocks[c]
            start = half * inner + first
            found = nl.ndarray((count, pairs), dtype=nl.float32, buffer=nl.psum)
            for n in range(len(tables)):
                nisa.nc_matmul(
                    dst=found,
                    stationary=tables[n][:, start : start + (count - 1) * step + 1 : step],
                    moving=choices[n],
                    accumulate=n > 0,
                )
            nisa.tensor_copy(dst=result[0:count, half, c, :], src=found)
    return result


def inner_blocks(inner):
    """How an expert's inner columns are cut for the Tensor engine.

    As many whole 128 as there are, interleaved, and what is left: 192 as 128 and 64, which all
    16 DMA engines can load, where 96 partitions would use 12.

    Returns:
        A list of (columns, first column, step between columns).
    """
    whole = inner // nl.tile_size.pmax
    blocks = []
    for c in range(whole):
        blocks.append((nl.tile_size.pmax, c, whole))
    rest = inner - whole * nl.tile_size.pmax
    if rest > 0:
        blocks.append((rest, inner - rest, 1))
    return blocks


def run_experts(normed, shares, chosen, top_k, weights, scales, buffers):
    """This core's part of the sum over chosen experts, transposed.

    Returns:
        SBUF tile [partitions, tokens, tiles], fp32; element [p, t, j] is column
        j * partitions + p of token t.
    """
    gate_up, down = weights
    partitions, tiles, tokens = normed.shape
    inner = down.shape[1]
    hidden = down.shape[2]
    blocks = inner_blocks(inner)
    core = nl.program_id(0)
    cores = nl.num_programs()
    pairs = tokens * top_k
    total = nl.ndarray((partitions, tokens, tiles), dtype=nl.float32, buffer=nl.sbuf)
    if core >= pairs:
        nisa.memset(dst=total, value=0.0)
        return total
    itemsize = 1 if gate_up.dtype == nl.float8_e4m3 else (4 if gate_up.dtype == nl.float32 else 2)
    size = (tiles * 2 * inner + len(blocks) * hidden) * itemsize
    assert size <= SBUF_FOR_WEIGHTS, (
        "nki_moe_decode_kernel: gate_up and down of an expert need more than 160 KiB per partition"
    )
    own = (pairs - core + cores - 1) // cores
    rings = max(1, min(buffers, SBUF_FOR_WEIGHTS // size, own))
    group = min(2, rings)
    tiles_of = []
    for _ in range(rings):
        tiles_of.append(new_expert(gate_up, down))
    sums = nl.ndarray((partitions, tokens, tiles), dtype=nl.float32, buffer=nl.psum)
    started = []
    for _ in range(tokens):
        started.append(False)
    for first in range(0, own, group):
        some = []  # a group's experts: (token, which of its experts, pair, tiles)
        for i in range(first, min(own, first + group)):
            pair = core + i * cores
            some.append((pair // top_k, pair % top_k, pair, tiles_of[i % rings]))
        load_experts(some, chosen, gate_up, down)
        active = run_first_half(some, normed, shares, scales, inner)
        for part in range(2):  # the left-over columns first, as they are loaded
            for n in range(len(some)):
                weight = some[n][3][2 - part]
                if weight != None:  # noqa: E711
                    column = 0 if part == 1 else len(blocks) - 1
                    t = some[n][0]
                    add_down(sums[:, t, :], weight, active[n], column, started[t])
                    started[t] = True
    if min(started):
        nisa.tensor_copy(dst=total, src=sums)
        return total
    for t in range(tokens):
        if started[t]:
            nisa.tensor_copy(dst=total[:, t, :], src=sums[:, t, :])
        else:  # this core has no expert of this token
            nisa.memset(dst=total[:, t, :], value=0.0)
    return total


def new_expert(gate_up, down):
    """Room for an expert's weights: gate and up; whole blocks of down or None; the rest or None."""
    partitions, tiles = contraction_split(gate_up.shape[1])
    inner, hidden = down.shape[1], down.shape[2]
    first = nl.ndarray((partitions, tiles, 2 * inner), dtype=gate_up.dtype, buffer=nl.sbuf)
    size = nl.tile_size.pmax
    main, left = None, None
    if inner >= size:
        main = nl.ndarray((size, inner // size, hidden), dtype=down.dtype, buffer=nl.sbuf)
    if inner % size > 0:
        left = nl.ndarray((inner % size, 1, hidden), dtype=down.dtype, buffer=nl.sbuf)
    return first, main, left


def load_experts(some, chosen, gate_up, down):
    """Load a group's weights: gates and ups, then what is left over of downs, then whole blocks.

    64 left-over rows go over 8 DMA engines, so two experts' move at once.

    Args:
        some: list of (token, which of its experts, pair, tiles), see `new_expert`.
        chosen: SBUF [1, tokens, K], integers.
        gate_up: HBM tensor [experts, hidden, 2 * inner].
        down: HBM tensor [experts, inner, hidden].
    """
    partitions, tiles = contraction_split(gate_up.shape[1])
    inner, hidden = down.shape[1], down.shape[2]
    for expert in some:
        number = chosen[0:1, expert[0], expert[1] : expert[1] + 1]
        nisa.dma_copy(
            dst=expert[3][0],
            src=gate_up.ap(
                pattern=[[tiles * 2 * inner, partitions], [2 * inner, tiles], [1, 2 * inner]],
                offset=0,
                scalar_offset=number,
                indirect_dim=0,
            ),
        )
    for part in range(2):
        for expert in some:
            tile = expert[3][2 - part]
            if tile != None:  # noqa: E711
                count, steps = tile.shape[0], tile.shape[1]
                nisa.dma_copy(
                    dst=tile,
                    src=down.ap(
                        pattern=[[steps * hidden, count], [hidden, steps], [1, hidden]],
                        offset=0 if part == 1 else (inner - count) * hidden,
                        scalar_offset=chosen[0:1, expert[0], expert[1] : expert[1] + 1],
                        indirect_dim=0,
                    ),
                )


def run_first_half(some, normed, shares, scales, inner):
    """share * silu(token gate) * (token up) of a group's experts, transposed.

    Args:
        some: as `load_experts`'s.
        normed: SBUF [partitions, tiles, tokens].
        shares: SBUF [128, tokens, K], fp32.
        scales: None, or SBUF [inner partitions, 2, blocks, pairs], fp32.
        inner: inner columns of an expert.

    Returns:
        A list of SBUF tiles [inner partitions, blocks] of normed's dtype.
    """
    blocks = inner_blocks(inner)
    count = blocks[0][0]
    products = []
    for _ in some:  # before the products, which would wait for these
        product = nl.ndarray((count, 2, len(blocks)), dtype=nl.float32, buffer=nl.psum)
        if blocks[len(blocks) - 1][0] < count:
            nisa.memset(dst=product[:, :, len(blocks) - 1], value=0.0)
        products.append(product)
    results = []
    for n in range(len(some)):
        t, k, pair, tiles = some[n]
        factors = None
        if scales != None:  # noqa: E711
            factors = scales[:, :, :, pair]
        share = shares[0:count, t, k : k + 1]
        results.append(
            one_token(products[n], normed[:, :, t : t + 1], tiles[0], blocks, share, factors)
        )
    return results


def add_down(sums, weight, active, first, started):
    """Add weight.T @ active to sums.

    Args:
        sums: PSUM [partitions, tiles], fp32; element [p, j] is column j * partitions + p.
        weight: SBUF [count, steps, hidden].
        active: SBUF [>= count, blocks]; blocks [first, first + steps) belong to weight's steps.
        first: the first block.
        started: whether sums hold something.
    """
    partitions, tiles = sums.shape
    count, steps = weight.shape[0], weight.shape[1]
    for j in range(tiles):
        for c in range(steps):
            nisa.nc_matmul(
                dst=sums[:, j : j + 1],
                stationary=weight[:, c, j * partitions : (j + 1) * partitions],
                moving=active[0:count, first + c : first + c + 1],
                accumulate=started or c > 0,
            )


def one_token(products, token, gate_up, blocks, share, factors):
    """share * silu(token gate) * (token up) of one expert, transposed.

    Args:
        products: PSUM [inner partitions, 2, blocks], fp32, zero where a block has no columns.
        token: SBUF [partitions, tiles, 1].
        gate_up: SBUF [partitions, tiles, 2 * inner].
        blocks: what `inner_blocks` returns.
        share: SBUF column [inner partitions, 1], fp32.
        factors: None, or SBUF [inner partitions, 2, blocks] fp32: scales of fp8 weights.

    Returns:
        SBUF tile [inner partitions, blocks] of token's dtype.
    """
    tiles = token.shape[1]
    inner = gate_up.shape[2] // 2
    partitions, parts = products.shape[0], len(blocks)
    for half in range(2):
        for c in range(parts):
            count, first, step = blocks[c]
            start = half * inner + first
            for j in range(tiles):
                nisa.nc_matmul(
                    dst=products[0:count, half, c : c + 1],
                    stationary=gate_up[:, j, start : start + (count - 1) * step + 1 : step],
                    moving=token[:, j, :],
                    accumulate=j > 0,
                )
    gated = nl.ndarray((partitions, parts), dtype=nl.float32, buffer=nl.sbuf)
    upped = products[:, 1, :]
    if factors == None:  # noqa: E711
        nisa.activation(dst=gated, op=nl.silu, data=products[:, 0, :])
    else:
        scaled = nl.ndarray((partitions, 2, parts), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=scaled, data1=products, data2=factors, op=nl.multiply)
        nisa.activation(dst=gated, op=nl.silu, data=scaled[:, 0, :])
        upped = scaled[:, 1, :]
    active = nl.ndarray((partitions, parts), dtype=token.dtype, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=active, data=upped, op0=nl.multiply, operand0=share, op1=nl.multiply, operand1=gated
    )
    return active
