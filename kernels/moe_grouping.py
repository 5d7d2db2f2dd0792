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
    size = nl.ndarray((experts, experts), dtype=nl.float32, buffer=nl.sbuf)
    start = 0
    for i in range(1, experts + 1):  # sizes fall: few different ones
        if i == experts or sizes[i] != sizes[start]:
            nisa.memset(dst=size[:, start:i], value=float(sizes[start]))
            start = i
    slots = nl.ndarray((experts, experts), dtype=nl.float32, buffer=nl.sbuf)
    unit = filled((experts, experts), 1.0, nl.float32)
    nisa.tensor_tensor_scan(
        dst=slots, data0=unit, data1=size, initial=0.0, op0=nl.multiply, op1=nl.add
    )
    nisa.tensor_tensor(dst=slots, data1=slots, data2=size, op=nl.subtract)
    nisa.tensor_tensor(dst=slots, data1=slots, data2=places, op=nl.multiply)
    base = nl.ndarray((experts, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=base, op=nl.add, data=slots, axis=1)
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


def tokens_of_slots(slots, tokens, size):
    """The token of every slot, as local_gather reads its lists.

    The inverse of `token_slots` goes through HBM, where rows can be written by number. Slot s
    is kept at (s % 16) * (size / 16) + s // 16, so that one load with long descriptors gives
    each of 16 partitions its part of the lists, and a list is a range of columns.

    On two cores each writes its half of the token tiles into a table of its own.

    Args:
        slots: from `token_slots`.
        tokens: their number; slots without a token hold this number.
        size: slots, a multiple of 128.

    Returns:
        SBUF tile [128, size / 16], int32; slot s in partition s % 16 (and 16 more, 32 more, …)
        at column s // 16.
    """
    columns = size // 16
    core = nl.program_id(0)
    cores = nl.num_programs()
    table = nl.ndarray((cores * size, 1), dtype=nl.int32, buffer=nl.shared_hbm)
    nothing = filled((P, size // P), tokens, nl.int32)
    nisa.dma_copy(dst=table[core * size : (core + 1) * size, :], src=nothing)
    for i in range(core, len(slots), cores):
        count, top_k = slots[i].shape
        low = nl.ndarray((count, top_k), dtype=nl.int32, buffer=nl.sbuf)
        high = nl.ndarray((count, top_k), dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=low, data=slots[i], op0=nl.bitwise_and, operand0=15)
        nisa.tensor_scalar(dst=high, data=slots[i], op0=nl.right_shift, operand0=4)
        places = nl.ndarray((count, top_k), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=places, data=low, op0=nl.multiply, operand0=float(columns), op1=nl.add,
            operand1=float(core * size),
        )  # fmt: skip
        rows = nl.ndarray((count, top_k), dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=rows, data1=places, data2=high, op=nl.add)
        own = nl.ndarray((count, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.iota(dst=own, pattern=[[0, 1]], offset=i * P, channel_multiplier=1)
        for k in range(top_k):
            nisa.dma_copy(
                dst=table.ap(
                    pattern=[[1, count], [1, 1]], offset=0, vector_offset=rows[:, k : k + 1]
                ),
                src=own,
            )
    if cores > 1:
        nisa.core_barrier(data=table, cores=(0, 1))
    result = load_lists(table, 0, columns)
    if cores > 1:
        nisa.tensor_tensor(
            dst=result, data1=result, data2=load_lists(table, size, columns), op=nl.minimum
        )
    return result


def load_lists(table, first, columns):
    """16 rows of columns elements, eight times over the partitions."""
    lists = nl.ndarray((P, columns), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(
        dst=lists, src=table.ap(pattern=[[0, 8], [columns, 16], [1, columns]], offset=first)
    )
    return lists
