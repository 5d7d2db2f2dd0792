"""The experts of a mixture-of-experts layer for many tokens, grouped by expert."""

import nki
import nki.isa as nisa
import nki.language as nl

from kernels.blocks import contraction_split, transpose_into
from kernels.expert_aggregation import diagonal_weights, identity, weighted_sum
from kernels.gated_mlp import (
    down_parts,
    gated_inner,
    gated_inner_shared,
    project_down,
    shared_columns,
    weight_view,
)
from kernels.moe_grouping import (
    capacities,
    gather_lists,
    regions,
    token_masks,
    token_slots,
    visiting_order,
)
from kernels.tiling import load_rows

P = 128


@nki.jit
def nki_moe_prefill_kernel(
    x,
    weights,
    chosen,
    gate_up,
    down,
    scales=None,
    capacity_step=16,
    token_block=None,
    buffers=6,
    evict_engine="both",
):
    """out[t] = sum over j of weights[t, j] * MLP_e(x[t]), e = chosen[t, j].

    MLP_e(x) = (silu(x @ gate_e) * (x @ up_e)) @ down_e. Tokens are grouped by expert on the
    device (kernels/moe_grouping.py): experts are visited from the most to the least chosen, with
    as many slots as the i-th of them can need. Every expert's weights are read once and no token
    is dropped, whatever the routing; an expert without tokens is not read at all.

    1. Count, sort the experts, give every token a slot at each of its experts.
    2. x is kept in SBUF, transposed; GpSimd gathers an expert's tokens from there, already as
       the Tensor engine needs them. HBM is left to the weights.
    3. Each visit writes its rows to HBM by slot; a token's rows are gathered by slot number
       and summed with their weights on the Tensor engine.

    On two cores (LNC2) visits are dealt out alternately, and so are the tokens to be summed.

    Args:
        x: HBM tensor [tokens, hidden], fp32 or bf16 (bf16 with fp8 weights).
        weights: HBM tensor [tokens, top_k], fp32.
        chosen: HBM tensor [tokens, top_k], int32, distinct expert numbers in each row.
        gate_up: HBM tensor [experts, hidden, 2 * inner]: gate columns, then up columns; of x's
            dtype, or one-byte float8_e4m3 (also as uint8, or float8_e4m3fn up to 240).
        down: HBM tensor [experts, inner, hidden], dtype as gate_up.
        scales: HBM tensor [experts, 2 * inner] fp32 with fp8 weights: of the gate columns,
            then of the up columns times down rows (kernels/quantise.py); else None.
        capacity_step: slots of a visit are a multiple of this, itself a multiple of 16.
        token_block: tokens of a visit at a time, a multiple of 16 up to 512; None: 128, beyond
            1024 tokens 256.
        buffers: experts whose weights are in SBUF at a time, if so many fit.
        evict_engine: "vector", "scalar" or "both": who copies products out of PSUM.

    Returns:
        HBM tensor [tokens, hidden] of x's dtype.

    Limits: tokens <= 2048; experts <= 128, even on two cores; hidden is 128 * (1, 2, 4, 8, 16
    or 32), or at most 128 and a multiple of 16; inner above 128 divides into ceil(inner / 128)
    equal parts; x and one expert's weights take at most 160 KiB of each partition; (tokens + 1)
    * ceil(hidden / 128) < 65536.
    HBM bytes: all experts' weights (3 * hidden * inner * itemsize each), and per row of hidden
    elements 2 * slots + tokens * (top_k + 2), slots being about tokens * top_k *
    (1 + ln(experts / top_k)) at most. MACs: 3 * slots * hidden * inner (of which tokens * top_k
    of slots count).
    """
    tokens, hidden = x.shape
    top_k = chosen.shape[1]
    experts = gate_up.shape[0]
    inner = down.shape[1]
    partitions, tiles = contraction_split(hidden)
    low = weight_view(gate_up).dtype == nl.float8_e4m3
    assert experts <= 128, "nki_moe_prefill_kernel: gate_up has more than 128 experts"
    assert tiles in (1, 2, 4, 8, 16, 32), (
        "nki_moe_prefill_kernel: x's hidden dimension must be 128 times a power of two up to 32"
    )
    assert partitions % 16 == 0, (
        "nki_moe_prefill_kernel: x's hidden dimension must be a multiple of 16"
    )
    assert chosen.shape[0] == tokens, "nki_moe_prefill_kernel: chosen must have x's tokens"
    assert tuple(weights.shape) == (tokens, top_k), (
        "nki_moe_prefill_kernel: weights must have chosen's shape"
    )
    assert tuple(gate_up.shape) == (experts, hidden, 2 * inner), (
        "nki_moe_prefill_kernel: gate_up must be [experts, hidden, 2 * inner]"
    )
    assert tuple(down.shape) == (experts, inner, hidden), (
        "nki_moe_prefill_kernel: down must be [experts, inner, hidden]"
    )
    assert low or gate_up.dtype == x.dtype, (
        "nki_moe_prefill_kernel: gate_up must have x's dtype, or be float8_e4m3"
    )
    assert not low or x.dtype == nl.bfloat16, (
        "nki_moe_prefill_kernel: x must be bfloat16 with fp8 weights"
    )
    assert not low or scales != None, (  # noqa: E711
        "nki_moe_prefill_kernel: fp8 weights need scales"
    )
    assert tokens <= 2048, "nki_moe_prefill_kernel: x has more than 2048 tokens"
    assert experts % nl.num_programs() == 0, (
        "nki_moe_prefill_kernel: gate_up must have an even number of experts on two cores"
    )
    assert capacity_step % 16 == 0, "nki_moe_prefill_kernel: capacity_step must be a multiple of 16"
    if token_block == None:  # noqa: E711
        token_block = 128 if tokens <= 1024 else 256
    assert token_block % 16 == 0 and 16 <= token_block <= 512, (  # noqa: PT018
        "nki_moe_prefill_kernel: token_block must be a multiple of 16 up to 512"
    )
    assert (tokens + 1) * tiles < 65536, (
        "nki_moe_prefill_kernel: x has more elements per partition than 16-bit indices reach"
    )
    itemsize = 4 if x.dtype == nl.float32 else 2
    weight_size = (tiles * 2 * inner + contraction_split(inner)[1] * hidden) * (
        1 if low else itemsize
    )
    room = 160 * 1024 - (tokens + 1) * tiles * itemsize
    assert weight_size <= room, (
        "nki_moe_prefill_kernel: x and the weights of one expert need more than 160 KiB per "
        "partition"
    )
    buffers = min(buffers, room // weight_size)
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    sizes = capacities(tokens, top_k, experts, capacity_step)
    core = nl.program_id(0)
    starts, firsts, counts = regions(sizes, nl.num_programs())
    total = firsts[-1] + counts[-1]
    masks, numbers = token_masks(chosen, experts)
    x_t = transposed_tokens(x)
    places, order, bases = visiting_order(masks, sizes)
    tensors = (weight_view(gate_up), weight_view(down))
    visits = interleaved(sizes)
    loaders = weight_loaders(tensors, order, partitions, tiles, min(buffers, len(visits)))
    for turn in range(len(loaders[0])):
        load_weights(loaders, visits, turn)
    slots = token_slots(masks, numbers, bases)
    factors = None
    if low:
        factors = sorted_scales(scales, places, inner)
    results = nl.ndarray((total, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    if counts[core] > 0:
        lists = gather_lists(slots, tokens, firsts[core], counts[core], tiles)
        jobs = token_jobs(visits, sizes, starts, token_block)
        run_jobs(jobs, x_t, lists, firsts[core], loaders, visits, factors, results, evict_engine)
    if nl.num_programs() > 1:
        nisa.core_barrier(data=results, cores=(0, 1))
    sum_rows(results, slots, weights, out, evict_engine)
    return out


def transposed_tokens(x):
    """x transposed, and one more token of zeros: SBUF tile [partitions, tokens + 1, tiles].

    The Scalar engine evicts: the Vector engine is busy with the experts' order meanwhile.
    """
    tokens, hidden = x.shape
    partitions, tiles = contraction_split(hidden)
    x_t = nl.ndarray((partitions, tokens + 1, tiles), dtype=x.dtype, buffer=nl.sbuf)
    nisa.memset(dst=x_t[:, tokens : tokens + 1, :], value=0.0)
    for start in range(0, tokens, P):
        count = min(P, tokens - start)
        by_tile = x_t.ap(
            pattern=[[(tokens + 1) * tiles, partitions], [1, tiles], [tiles, count]],
            offset=start * tiles,
        )
        transpose_into(by_tile, load_rows(x, start, count), "scalar")
    return x_t


def sorted_scales(scales, places, inner):
    """The scales of all experts, transposed, in visiting order.

    Args:
        scales: HBM tensor [experts, 2 * inner], fp32.
        places: SBUF [E, E], fp32, from `visiting_order`.
        inner: inner columns of an expert.

    Returns:
        For each part of the inner columns (see `gated_inner`) a pair of SBUF views [inner
        partitions, E], fp32: of gate, of up.
    """
    experts = places.shape[0]
    rows = load_rows(scales, 0, experts)
    rest = shared_columns(inner)
    if rest > 0:
        halves = rows.reshape((experts, 2, inner))
        both = turned_scales(halves[:, :, P:inner], 2 * rest, places)
        first = turned_scales(rows[:, 0:P], P, places)
        second = turned_scales(rows[:, inner : inner + P], P, places)
        return [(first, second), (both[0:rest, :], both[rest : 2 * rest, :])]
    partitions, parts = contraction_split(inner)
    result = []
    for c in range(parts):
        first = turned_scales(rows[:, c:inner:parts], partitions, places)
        second = turned_scales(rows[:, inner + c : 2 * inner : parts], partitions, places)
        result.append((first, second))
    return result


def turned_scales(rows, columns, places):
    """SBUF rows [E, columns] of scales as a new SBUF tile [columns, E], in visiting order."""
    turned = nl.ndarray((columns, places.shape[1]), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=turned, stationary=rows, moving=places, accumulate=False)
    result = nl.ndarray(turned.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result, src=turned)
    return result


def row_numbers(order, rows, first, each):
    """Rows of each visit's expert in a table with `each` rows per expert: SBUF [rows, E] int32.

    Row p of the result is the expert's row first + p.
    """
    experts = order.shape[1]
    own = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=own, pattern=[[0, 1]], offset=first, channel_multiplier=1)
    numbers = nl.ndarray((rows, experts), dtype=nl.int32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=numbers, data=order[0:rows, :], op0=nl.multiply, operand0=float(each), op1=nl.add,
        operand1=own,
    )  # fmt: skip
    return numbers


def interleaved(sizes):
    """This core's visits: the largest, the smallest, the second largest, …

    Large visits are the Tensor engine's work, small ones are waits for weights. In turns, one
    hides the other.
    """
    mine = []
    for i in range(nl.program_id(0), len(sizes), nl.num_programs()):
        if sizes[i] > 0:
            mine.append(i)
    visits = []
    for turn in range(len(mine)):
        if turn % 2 == 0:
            visits.append(mine[turn // 2])
        else:
            visits.append(mine[len(mine) - 1 - turn // 2])
    return visits


def weight_loaders(tensors, order, partitions, tiles, buffers):
    """Buffers for experts' weights, and the row numbers that load them.

    Experts without tokens have row numbers beyond the table, and their DMA is skipped; a buffer
    then holds another expert's weights, whose results nothing reads. The first use of a buffer
    is never skipped: for it the number is taken modulo the experts.

    Returns:
        (gate_up tiles, down tiles, places, always, numbers): places are (which tile, first and
        last partition, first element, HBM table [rows, elements]); always and numbers hold an
        SBUF [128, E] int32 for each of them.
    """
    gate_up, down = tensors
    experts, inner, hidden = down.shape
    rest = shared_columns(inner)
    places = [(0, 0, partitions, 0, gate_up.reshape((experts * partitions, tiles * 2 * inner)))]
    offsets = [(0, partitions)]
    if rest > 0:
        inner_partitions, parts = P, 2
        table = down.reshape((experts * inner, hidden))
        places.append((1, 0, P, 0, table))
        places.append((1, rest, 2 * rest, hidden, table))
        offsets.append((0, inner))
        offsets.append((P - rest, inner))  # partition `rest` has row 128
    else:
        inner_partitions, parts = contraction_split(inner)
        table = down.reshape((experts * inner_partitions, parts * hidden))
        places.append((1, 0, inner_partitions, 0, table))
        offsets.append((0, inner_partitions))
    real = nl.ndarray(order.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=real, data=order, op0=nl.greater_equal, operand0=float(experts), op1=nl.multiply,
        operand1=-float(experts),
    )  # fmt: skip
    nisa.tensor_tensor(dst=real, data1=real, data2=order, op=nl.add)
    always = []
    numbers = []
    for n in range(len(places)):
        first, each = offsets[n]
        always.append(row_numbers(real, places[n][2], first, each))
        numbers.append(row_numbers(order, places[n][2], first, each))
    first_tiles = []
    second_tiles = []
    for _ in range(buffers):
        first_tiles.append(
            nl.ndarray((partitions, tiles, 2 * inner), dtype=gate_up.dtype, buffer=nl.sbuf)
        )
        second_tiles.append(
            nl.ndarray((inner_partitions, parts, hidden), dtype=down.dtype, buffer=nl.sbuf)
        )
    return first_tiles, second_tiles, places, always, numbers


def load_weights(loaders, visits, turn):
    """Load the weights of this core's visit number `turn` into their buffers."""
    buffer = turn % len(loaders[0])
    numbers = loaders[3] if turn < len(loaders[0]) else loaders[4]
    column = visits[turn]
    for n in range(len(numbers)):
        which, first, last, left, table = loaders[2][n]
        tile = loaders[which][buffer]
        flat = tile.reshape((tile.shape[0], tile.shape[1] * tile.shape[2]))
        load_rows_by_number(
            flat[first:last, left : left + table.shape[1]],
            table,
            numbers[n][first:last, column : column + 1],
        )


def token_jobs(visits, sizes, starts, token_block):
    """Blocks of tokens: (turn, first slot, slots, whether the visit's last)."""
    jobs = []
    for turn in range(len(visits)):
        size = sizes[visits[turn]]
        for first in range(0, size, token_block):
            count = min(token_block, size - first)
            jobs.append((turn, starts[visits[turn]] + first, count, first + count == size))
    return jobs


def run_jobs(jobs, x_t, lists, region, loaders, visits, factors, results, engine):
    """All visits of this core: gather tokens, run the expert, write the rows of its slots.

    The GpSimd engine gathers the next block's tokens before it starts loads of weights, which
    wait for a buffer.
    """
    inner = loaders[0][0].shape[2] // 2
    buffers = len(loaders[0])
    ahead = gather_tokens(jobs[0], x_t, lists, region)
    for n in range(len(jobs)):
        turn, slot, count, last = jobs[n]
        tokens_t = ahead
        if n + 1 < len(jobs):
            ahead = gather_tokens(jobs[n + 1], x_t, lists, region)
        gate_up_tile = loaders[0][turn % buffers]
        down_tile = loaders[1][turn % buffers]
        scales = visit_scales(factors, visits[turn])
        if shared_columns(inner) > 0:
            active = gated_inner_shared(tokens_t, gate_up_tile, scales)
        else:
            active = gated_inner(
                tokens_t,
                gate_up_tile[:, :, 0:inner],
                gate_up_tile[:, :, inner : 2 * inner],
                scales,
            )
        for row in range(0, count, P):
            some = min(P, count - row)
            rows = project_down(active, row, some, down_parts(down_tile, inner), engine)
            nisa.dma_copy(dst=results[slot + row : slot + row + some, :], src=rows)
        if last and turn + buffers < len(visits):
            load_weights(loaders, visits, turn + buffers)


def visit_scales(factors, i):
    """Columns of the visit's expert from what `sorted_scales` returns, or None."""
    if factors == None:  # noqa: E711
        return None
    scales = []
    for pair in factors:
        scales.append((pair[0][:, i : i + 1], pair[1][:, i : i + 1]))
    return scales


def gather_tokens(job, x_t, lists, region):
    """The tokens of a block's slots: SBUF view [partitions, tiles, slots]."""
    slot = job[1]
    count = job[2]
    partitions = x_t.shape[0]
    tiles = x_t.shape[2]
    column = (slot - region) // 16
    gathered = nl.ndarray((partitions, count, tiles), dtype=x_t.dtype, buffer=nl.sbuf)
    nisa.local_gather(
        dst=gathered,
        src_buffer=x_t,
        index=lists[0:partitions, column : column + count // 16],
        num_elem_per_idx=tiles,
    )
    return gathered.ap(pattern=[[count * tiles, partitions], [1, tiles], [tiles, count]], offset=0)


def load_rows_by_number(tile, table, numbers):
    """tile[p] = table[numbers[p]], by DMA; rows beyond the table are left as they are."""
    partitions, width = tile.shape
    nisa.dma_copy(
        dst=tile,
        src=table.ap(pattern=[[width, partitions], [1, width]], offset=0, vector_offset=numbers),
        oob_mode=nisa.oob_mode.skip,
    )


def sum_rows(results, slots, weights, out, engine):
    """out[t] = the weighted sum of the rows of results that token t's slots name.

    On two cores tiles of 128 tokens are dealt out alternately; a last one without a partner is
    shared by halves of the columns. Whole rows are the longer descriptors.
    """
    hidden = out.shape[1]
    core = nl.program_id(0)
    cores = nl.num_programs()
    unit = identity(P)
    for i in range(len(slots)):
        shared = i == len(slots) - 1 and i % cores == 0 and cores > 1
        if i % cores != core and not shared:
            continue
        first = hidden * core // cores if shared else 0
        last = hidden * (core + 1) // cores if shared else hidden
        count, top_k = slots[i].shape
        shares = nl.ndarray((count, top_k), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=shares, src=weights[i * P : i * P + count, :])
        diagonals = diagonal_weights(unit, shares, out.dtype)
        for left in range(first, last, 2048):
            width = min(2048, last - left)
            parts = []
            for j in range(top_k):
                part = nl.ndarray((count, width), dtype=out.dtype, buffer=nl.sbuf)
                nisa.dma_copy(
                    dst=part,
                    src=results.ap(
                        pattern=[[hidden, count], [1, width]],
                        offset=left,
                        vector_offset=slots[i][:, j : j + 1],
                    ),
                )
                parts.append(part)
            total = weighted_sum(diagonals, parts, engine)
            nisa.dma_copy(dst=out[i * P : i * P + count, left : left + width], src=total)
