"""Tokens grouped by expert, on the device, with trip counts that do not depend on the data.

Experts are visited from the most to the least chosen. The i-th of them (from 0) cannot have
more than tokens * top_k // (i + 1) tokens, nor more than all tokens: its capacity. So every
expert is visited exactly once, its weights are read once, no token is ever dropped, and the
slots of all visits together are only about ln(experts) times the tokens that need one. A fixed
capacity per expert would drop tokens or need the worst case for all; fixed blocks of tokens
would read the weights of well-filled experts again.

All counting is exact: products of 0 and 1 with fp32 sums, and integers below 2^24 in fp32.
"""

import nki.isa as nisa
import nki.language as nl

from kernels.blocks import filled
from kernels.expert_aggregation import identity

P = 128


def capacities(tokens, top_k, experts, step):
    """Slots of each visit, from the most chosen expert on: multiples of step, or 0."""
    result = []
    for i in range(experts):
        most = min(tokens, tokens * top_k // (i + 1))
        result.append((most + step - 1) // step * step)
    return result


def regions(sizes, cores):
    """First slot of each visit, and first slot and slots of each core's region.

    Visit i is core i % cores's; a core's visits have neighbouring slots.

    Returns:
        (starts, firsts, counts).
    """
    starts = []
    for _ in sizes:
        starts.append(0)
    firsts = []
    counts = []
    slot = 0
    for core in range(cores):
        firsts.append(slot)
        for i in range(core, len(sizes), cores):
            starts[i] = slot
            slot += sizes[i]
        counts.append(slot - firsts[core])
    return starts, firsts, counts


def token_masks(chosen, experts):
    """Which experts a token has chosen.

    Args:
        chosen: HBM tensor [tokens, top_k] int32, distinct in each row.
        experts: their number E, at most 128.

    Returns:
        (masks, numbers): lists over 128 tokens each of SBUF tiles [p, E] bf16 of 0 and 1, and
        [p, top_k] uint32.
    """
    tokens, top_k = chosen.shape
    row = nl.ndarray((P, experts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=row, pattern=[[1, experts]], offset=0, channel_multiplier=0)
    masks = []
    numbers = []
    for start in range(0, tokens, P):
        count = min(P, tokens - start)
        integers = nl.ndarray((count, top_k), dtype=nl.int32, buffer=nl.sbuf)
        nisa.dma_copy(dst=integers, src=chosen[start : start + count, :])
        unsigned = nl.ndarray((count, top_k), dtype=nl.uint32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=unsigned, src=integers)
        values = nl.ndarray((count, top_k), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=values, src=integers)
        equal = nl.ndarray((count, experts, top_k), dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=equal,
            data1=row.ap(pattern=[[experts, count], [1, experts], [0, top_k]], offset=0),
            data2=values.ap(pattern=[[top_k, count], [0, experts], [1, top_k]], offset=0),
            op=nl.equal,
        )
        mask = nl.ndarray((count, experts), dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=mask, op=nl.add, data=equal, axis=2)
        masks.append(mask)
        numbers.append(unsigned)
    return masks, numbers


def visiting_order(masks, sizes):
    """Sort experts by how often they were chosen; of equal ones the lower number comes first.

    Args:
        masks: from `token_masks`.
        sizes: the visits' slots, from `capacities`.

    Returns:
        (places, order, bases): SBUF fp32 tiles. places [E, E]: 1 at [e, i] if expert e is
        visited as i-th. order [128, E]: the expert of visit i in all partitions, plus E if it
        has no token. bases [128, E]: the first slot of expert e in all partitions.
    """
    experts = masks[0].shape[1]
    ones_16 = filled((P, P), 1.0, nl.bfloat16)
    ones = filled((experts, P), 1.0, nl.float32)
    by_row = nl.ndarray((experts, experts), dtype=nl.float32, buffer=nl.psum)
    by_column = nl.ndarray((experts, 1), dtype=nl.float32, buffer=nl.psum)
    for i in range(len(masks)):
        count = masks[i].shape[0]
        nisa.nc_matmul(
            dst=by_row, stationary=ones_16[0:count, 0:experts], moving=masks[i], accumulate=i > 0
        )
    for i in range(len(masks)):
        count = masks[i].shape[0]
        nisa.nc_matmul(
            dst=by_column, stationary=masks[i], moving=ones_16[0:count, 0:1], accumulate=i > 0
        )
    row = nl.ndarray((experts, experts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=row, pattern=[[1, experts]], offset=0, channel_multiplier=0)
    column = nl.ndarray((experts, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=column, pattern=[[0, 1]], offset=0, channel_multiplier=1)
    keys = nl.ndarray((experts, experts), dtype=nl.float32, buffer=nl.sbuf)
    key = nl.ndarray((experts, 1), dtype=nl.float32, buffer=nl.sbuf)
    # count * E - e: unique, so that ranks are a permutation
    nisa.scalar_tensor_tensor(
        dst=keys, data=by_row, op0=nl.multiply, operand0=float(experts), op1=nl.subtract,
        operand1=row,
    )  # fmt: skip
    nisa.scalar_tensor_tensor(
        dst=key, data=by_column, op0=nl.multiply, operand0=float(experts), op1=nl.subtract,
        operand1=column,
    )  # fmt: skip
    larger = nl.ndarray((experts, experts), dtype=nl.float32, buffer=nl.sbuf)
    rank = nl.ndarray((experts, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar_reduce(
        dst=larger, data=keys, op0=nl.greater, operand0=key, reduce_op=nl.add, reduce_res=rank
    )
    places = nl.ndarray((experts, experts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=places, data=row, op0=nl.equal, operand0=rank)
    order = sorted_on_all_partitions(places, column, ones)
    counts = nl.ndarray((experts, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=counts, src=by_column)
    sorted_counts = sorted_on_all_partitions(places, counts, ones)
    nisa.tensor_scalar(
        dst=sorted_counts, data=sorted_counts, op0=nl.equal, operand0=0.0, op1=nl.multiply,
        operand1=float(experts),
    )  # fmt: skip
    nisa.tensor_tensor(dst=order, data1=order, data2=sorted_counts, op=nl.add)
    return places, order, first_slots(places, sizes, ones)


def sorted_on_all_partitions(places, column, ones):
    """column[e] at the place of expert e, in all partitions: SBUF tile [128, E], fp32."""
    experts = places.shape[0]
    moved = nl.ndarray((experts, experts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=moved, data=places, op0=nl.multiply, operand0=column)
    return summed_on_all_partitions(moved, ones)


def summed_on_all_partitions(tile, ones):
    """The sum of tile [E, N] over its partitions, in all partitions: SBUF tile [128, N], fp32."""
    total = nl.ndarray((P, tile.shape[1]), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total, stationary=ones, moving=tile, accumulate=False)
    result = nl.ndarray((P, tile.shape[1]), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result, src=total)
    return result


def first_slots(places, sizes, ones):
    """The first slot of each expert, in all partitions: SBUF tile [128, E], fp32."""
    experts = places.shape[0]
    cores = nl.num_programs()
    turns = experts // cores
    size = nl.ndarray((experts, cores, turns), dtype=nl.float32, buffer=nl.sbuf)
    for core in range(cores):  # in the order of slots; sizes fall: few different ones
        start = 0
        for turn in range(1, turns + 1):
            if turn == turns or sizes[turn * cores + core] != sizes[start * cores + core]:
                nisa.memset(dst=size[:, core, start:turn], value=float(sizes[start * cores + core]))
                start = turn
    slots = nl.ndarray((experts, cores, turns), dtype=nl.float32, buffer=nl.sbuf)
    unit = filled((experts, cores, turns), 1.0, nl.float32)
    nisa.tensor_tensor_scan(
        dst=slots, data0=unit, data1=size, initial=0.0, op0=nl.multiply, op1=nl.add
    )
    nisa.tensor_tensor(dst=slots, data1=slots, data2=size, op=nl.subtract)
    by_visit = slots.ap(pattern=[[experts, experts], [1, turns], [turns, cores]], offset=0)
    own = nl.ndarray((experts, turns, cores), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=own, data1=by_visit, data2=places.reshape((experts, turns, cores)), op=nl.multiply
    )
    base = nl.ndarray((experts, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=base, op=nl.add, data=own, axis=(1, 2))
    diagonal = nl.ndarray((experts, experts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=diagonal, data=identity(experts), op0=nl.multiply, operand0=base)
    return summed_on_all_partitions(diagonal, ones)


def token_slots(masks, numbers, bases):
    """The slot of each token at each of its experts: list of SBUF tiles [p, top_k] int32.

    A token's slot is its expert's first one plus the number of earlier tokens there.
    """
    experts = bases.shape[1]
    ones = filled((P, P), 1.0, nl.bfloat16)
    earlier = nl.ndarray((P, P), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.affine_select(
        dst=earlier, pattern=[[1, P]], offset=0, channel_multiplier=-1, on_true_tile=ones,
        on_false_value=0.0, cmp_op=nl.greater,
    )  # fmt: skip
    slots = []
    for i in range(len(masks)):
        count = masks[i].shape[0]
        before = nl.ndarray((count, experts), dtype=nl.float32, buffer=nl.psum)
        for j in range(i):
            nisa.nc_matmul(
                dst=before, stationary=ones[:, 0:count], moving=masks[j], accumulate=j > 0
            )
        nisa.nc_matmul(
            dst=before, stationary=earlier[0:count, 0:count], moving=masks[i], accumulate=i > 0
        )
        everywhere = nl.ndarray((count, experts), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=everywhere, data1=before, data2=bases[0:count, :], op=nl.add)
        chosen = nl.ndarray(numbers[i].shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.nc_n_gather(dst=chosen, data=everywhere, indices=numbers[i])
        slot = nl.ndarray(numbers[i].shape, dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=slot, src=chosen)
        slots.append(slot)
    return slots


def gather_lists(slots, tokens, first, count, tiles):
    """Where the token of each slot of a region begins in a partition, as local_gather reads it.

    This inverts `token_slots` on chip. Slot s belongs to row s % 16 and column s // 16 of the
    lists, so the lists are a product: token t adds its number at (row, column) if
    (s % 16 == row) * (s // 16 == column), and every slot has at most one token. Numbers up to
    2048 are exact in fp16, and their sums in fp32.

    Args:
        slots: from `token_slots`.
        tokens: their number, at most 2048; a slot without a token gets this number.
        first: the region's first slot, a multiple of 16.
        count: its slots, a multiple of 16.
        tiles: elements of a token in a partition.

    Returns:
        SBUF tile [128, count / 16], uint16; slot s in partitions s % 16, s % 16 + 16, ….
    """
    columns = count // 16
    row = nl.ndarray((P, P), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=row, pattern=[[0, 8], [1, 16]], offset=0, channel_multiplier=0)
    column = nl.ndarray((P, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=column, pattern=[[1, columns]], offset=first // 16, channel_multiplier=0)
    lefts = []
    highs = []
    owns = []
    for i in range(len(slots)):
        left, high, own = slot_places(slots[i], row, i * P - tokens)
        lefts.append(left)
        highs.append(high)
        owns.append(own)
    lists = nl.ndarray((P, columns), dtype=nl.uint16, buffer=nl.sbuf)
    bank = nl.tile_size.psum_fmax
    group = 2 * bank
    for start in range(0, columns, group):
        width = min(group, columns - start)
        totals = []
        for left in range(0, width, bank):
            totals.append(
                nl.ndarray((P, min(bank, width - left)), dtype=nl.float32, buffer=nl.psum)
            )
        for i in range(len(slots)):
            rows, top_k = slots[i].shape
            for k in range(top_k):
                right = nl.ndarray((rows, width), dtype=nl.float16, buffer=nl.sbuf)
                nisa.tensor_scalar(
                    dst=right, data=column[0:rows, start : start + width], op0=nl.equal,
                    operand0=highs[i][:, k : k + 1], op1=nl.multiply, operand1=owns[i],
                )  # fmt: skip
                for n in range(len(totals)):
                    nisa.nc_matmul(
                        dst=totals[n],
                        stationary=lefts[i][:, k, :],
                        moving=right[:, n * bank : n * bank + totals[n].shape[1]],
                        accumulate=i + k > 0,
                    )
        for n in range(len(totals)):
            left = start + n * bank
            nisa.tensor_scalar(
                dst=lists[:, left : left + totals[n].shape[1]], data=totals[n], op0=nl.add,
                operand0=float(tokens), op1=nl.multiply, operand1=float(tiles),
            )  # fmt: skip
    return lists


def slot_places(slot, row, offset):
    """The factors of `gather_lists` for 128 tokens.

    Returns:
        (left [p, top_k, 128] fp16: s % 16 == row; high [p, top_k] fp32: s // 16; own [p, 1]
        fp32: the token's number plus offset), SBUF tiles.
    """
    count, top_k = slot.shape
    low = nl.ndarray((count, top_k), dtype=nl.int32, buffer=nl.sbuf)
    high = nl.ndarray((count, top_k), dtype=nl.int32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=low, data=slot, op0=nl.bitwise_and, operand0=15)
    nisa.tensor_scalar(dst=high, data=slot, op0=nl.right_shift, operand0=4)
    lows = nl.ndarray((count, top_k), dtype=nl.float32, buffer=nl.sbuf)
    highs = nl.ndarray((count, top_k), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=lows, src=low)
    nisa.tensor_copy(dst=highs, src=high)
    left = nl.ndarray((count, top_k, P), dtype=nl.float16, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=left,
        data1=row.ap(pattern=[[P, count], [0, top_k], [1, P]], offset=0),
        data2=lows.ap(pattern=[[top_k, count], [1, top_k], [0, P]], offset=0),
        op=nl.equal,
    )
    own = nl.ndarray((count, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=own, pattern=[[0, 1]], offset=offset, channel_multiplier=1)
    return left, highs, own
