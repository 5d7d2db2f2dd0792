"""Collectives: what several ranks do together. Source: nki_facts.md §2.11 (nki.collectives).

`nki.collectives` wraps these rows: it flattens channels, splits metadata into what is read and
what is written, and makes the registers that rank ids are returned in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import NkiValidationError, Violation, refuse
from simulator.instructions.collective_checks import (
    check_all_gather,
    check_all_reduce,
    check_all_to_all,
    check_implicit,
    check_permute,
    check_reduce_scatter,
    check_ring,
    check_variable,
)
from simulator.instructions.table import (
    HBM,
    SBUF,
    Array,
    Arrays,
    Operand,
    Run,
    Slots,
    instruction,
)
from simulator.numerics import as_float32, store
from simulator.operators import add, maximum, minimum
from simulator.ranks import Ranks
from simulator.registers import VirtualRegister
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction

COLLECTIVES = frozenset(
    {
        "all_reduce",
        "all_gather",
        "all_gather_v",
        "reduce_scatter",
        "all_to_all",
        "all_to_all_v",
        "collective_permute",
        "collective_permute_implicit",
        "collective_permute_implicit_reduce",
    }
)
"""Instructions at which ranks wait for each other."""

Values = list[list[Array]]
"""For each rank of the group, in order, what it gave."""
OPERATORS = frozenset({add, minimum, maximum})
TENSORS = Operand("read", "free", HBM | SBUF, many=True)
RESULTS = Operand("write", "free", HBM | SBUF, many=True)
SINCE = {"priority": "0.4", "name": "0.5"}
SOURCE = "nki_facts.md §2.11"


def _nothing(views: Arrays) -> None:
    """The first core's instruction does the work of a collective of both cores."""


def rank_lists(instruction: Instruction) -> tuple[tuple[int, ...], ...]:
    """The replica group as tuples."""
    return tuple(map(tuple, instruction["replica_group"].groups))


def _exchange(
    instruction: Instruction,
    slots: Slots,
    give: list[NkiTensor],
    finish: Callable[[Arrays, Values, int], None],
) -> Run:
    """Give tensors to the group, then `finish(views, what all gave, own position)`."""
    if instruction.peer is not None and instruction.core == 1:
        return _nothing
    ranks: Ranks = slots.state("ranks", Ranks)
    lists = rank_lists(instruction)
    sources = [slots(tensor) for tensor in give]

    def run(views: Arrays) -> None:
        group = ranks.group(lists, instruction)
        given = [views[slot].copy() for slot in sources]
        values = ranks.exchange(group, instruction, given)
        finish(views, values, group.index(ranks.rank))

    return run


def _writers(instruction: Instruction, slots: Slots) -> list[tuple[int, Any]]:
    """For each destination its slot and what converts fp32 values to its dtype."""
    return [(slots(dst), store(dst.dtype)) for dst in instruction["dsts"]]


# --- reductions -----------------------------------------------------------------------------


def _reduce(instruction: Instruction, arrays: list[Array]) -> Array:
    """All ranks' arrays reduced in rank order: floats in fp32, integers exactly (they wrap)."""
    function = instruction["op"].reduction
    if arrays[0].dtype.kind in "iub":
        total = arrays[0]
        for array in arrays[1:]:
            total = function(total, array)
        return total
    total = as_float32(arrays[0])
    for array in arrays[1:]:
        total = function(total, as_float32(array))
    return total


def _write(views: Arrays, slot: int, write: Any, values: Array) -> None:
    """Cast reduced values to a destination's dtype, unless they have it."""
    view = views[slot]
    if values.dtype == view.dtype:
        view[...] = values.reshape(view.shape)
    else:
        write(view, values.reshape(view.shape))


def _all_reduce(instruction: Instruction, slots: Slots) -> Run:
    writers = _writers(instruction, slots)

    def finish(views: Arrays, values: Values, position: int) -> None:
        for at, (slot, write) in enumerate(writers):
            _write(views, slot, write, _reduce(instruction, [given[at] for given in values]))

    return _exchange(instruction, slots, instruction["srcs"], finish)


def _reduce_scatter(instruction: Instruction, slots: Slots) -> Run:
    writers = _writers(instruction, slots)

    def finish(views: Arrays, values: Values, position: int) -> None:
        for at, (slot, write) in enumerate(writers):
            rows = views[slot].shape[0]
            mine = slice(position * rows, (position + 1) * rows)
            parts = [given[at][mine] for given in values]
            _write(views, slot, write, _reduce(instruction, parts))

    return _exchange(instruction, slots, instruction["srcs"], finish)


# --- moves ----------------------------------------------------------------------------------


def _all_gather(instruction: Instruction, slots: Slots) -> Run:
    writers = _writers(instruction, slots)
    axis = instruction["collective_dim"]

    def finish(views: Arrays, values: Values, position: int) -> None:
        for at, (slot, _) in enumerate(writers):
            views[slot][...] = np.concatenate([given[at] for given in values], axis=axis)

    return _exchange(instruction, slots, instruction["srcs"], finish)


def _all_to_all(instruction: Instruction, slots: Slots) -> Run:
    writers = _writers(instruction, slots)

    def finish(views: Arrays, values: Values, position: int) -> None:
        for at, (slot, _) in enumerate(writers):
            rows = views[slot].shape[0] // len(values)
            mine = slice(position * rows, (position + 1) * rows)
            views[slot][...] = np.concatenate([given[at][mine] for given in values])

    return _exchange(instruction, slots, instruction["srcs"], finish)


def _permute(instruction: Instruction, slots: Slots) -> Run:
    """Only the ranks named in a pair take part; a rank that is no target keeps its dst."""
    if instruction.peer is not None and instruction.core == 1:
        return _nothing
    ranks: Ranks = slots.state("ranks", Ranks)
    src, dst = slots(instruction["srcs"][0]), slots(instruction["dsts"][0])
    pairs = instruction["source_target_pairs"]
    group = tuple(sorted({rank for pair in pairs for rank in pair}))
    source_of = {target: source for source, target in pairs}

    def run(views: Arrays) -> None:
        if ranks.rank not in group:
            return
        values = ranks.exchange(group, instruction, [views[src].copy()])
        source = source_of.get(ranks.rank)
        if source is not None:
            views[dst][...] = values[group.index(source)][0].reshape(views[dst].shape)

    return run


def _implicit(instruction: Instruction, slots: Slots) -> Run:
    """Each rank receives what its predecessor in the rank list gave."""
    writers = _writers(instruction, slots)

    def finish(views: Arrays, values: Values, position: int) -> None:
        for at, (slot, _) in enumerate(writers):
            views[slot][...] = values[position - 1][at].reshape(views[slot].shape)

    return _exchange(instruction, slots, instruction["srcs_by_channel"], finish)


def _implicit_reduce(instruction: Instruction, slots: Slots) -> Run:
    """Each rank receives its predecessor's op(src0, src1)."""
    writers = _writers(instruction, slots)
    channels = len(writers)

    def finish(views: Arrays, values: Values, position: int) -> None:
        given = values[position - 1]
        for at, (slot, write) in enumerate(writers):
            _write(views, slot, write, _reduce(instruction, [given[at], given[at + channels]]))

    both = [*instruction["srcs0_by_channel"], *instruction["srcs1_by_channel"]]
    return _exchange(instruction, slots, both, finish)


# --- variable lengths -----------------------------------------------------------------------


def _variable(instruction: Instruction, slots: Slots) -> Run:
    """all_to_all_v and all_gather_v: chunks of flat buffers, by counts known at run time."""
    to_all = instruction.spec.name == "all_gather_v"
    dst = slots(instruction["dsts"][0])
    explicit = instruction["has_rdispls"]
    known = instruction["recv_counts"]
    received = None if known is None else slots(known)

    def finish(views: Arrays, values: Values, position: int) -> None:
        flat = views[dst].reshape(-1).copy()
        slot_size = flat.size // len(values)
        sizes = []
        displacements = values[position][3].reshape(-1) if explicit else None
        for sender, (data, counts, starts, *_) in enumerate(values):
            column = 0 if to_all else position
            count, start = int(counts.reshape(-1)[column]), int(starts.reshape(-1)[column])
            sizes.append(count)
            into = sender * slot_size if displacements is None else int(displacements[sender])
            room = slot_size if displacements is None else flat.size - into
            if start + count > data.size or count > room:
                raise _beyond(instruction, sender, count, start, min(data.size - start, room))
            flat[into : into + count] = data.reshape(-1)[start : start + count]
        views[dst][...] = flat.reshape(views[dst].shape)
        if received is not None:
            views[received][...] = np.array(sizes).reshape(views[received].shape)

    return _exchange(instruction, slots, [*instruction["srcs"], *instruction["metadata"]], finish)


def _beyond(
    instruction: Instruction, sender: int, count: int, start: int, room: int
) -> NkiValidationError:
    return NkiValidationError(
        [
            Violation(
                "dynamic-out-of-bounds",
                f"the chunk of {count} elements from element {start} of the group's rank "
                f"{sender} does not fit into src or dst",
                "Bound the counts and displacements in the metadata tensor",
                instruction.file,
                instruction.line,
                instruction.spec.name,
                limit=f"{room} elements",
                value=str(count),
            )
        ]
    )


# --- ranks ----------------------------------------------------------------------------------


def _rank_id(instruction: Instruction, slots: Slots) -> Run:
    ranks: Ranks = slots.state("ranks", Ranks)
    to = slots.register(instruction["dst"])

    def run(views: Arrays) -> None:
        views[to][...] = ranks.rank

    return run


def _ring_rank(instruction: Instruction, slots: Slots) -> Run:
    """The rank whose data has come round the ring after some iterations."""
    ranks: Ranks = slots.state("ranks", Ranks)
    to, iteration = slots.register(instruction["dst"]), instruction["iteration_id"]
    frm = slots.register(iteration) if isinstance(iteration, VirtualRegister) else None
    lists = rank_lists(instruction)

    def run(views: Arrays) -> None:
        group = ranks.group(lists, instruction)
        steps = int(iteration) if frm is None else int(views[frm])
        views[to][...] = group[(group.index(ranks.rank) - steps) % len(group)]

    return run


# --- rows -----------------------------------------------------------------------------------


def listed(value: Any, operand: str) -> list[Any]:
    """A list operand as a list."""
    if isinstance(value, list | tuple):
        return list(value)
    raise refuse(
        "operand",
        f"{operand} must be a list of tensors, got {type(value).__name__}",
        "Write [tensor]",
        operand=operand,
        limit="list",
        value=type(value).__name__,
    )


def _row(
    lower: Callable[[Instruction, Slots], Run],
    check: Callable[..., None],
    *reads: str,
    **rest: Any,
) -> Callable[[Callable[..., tuple[Any, ...]]], Callable[..., Any]]:
    """The decorator of a collective."""
    operands = {name: TENSORS for name in reads}
    return instruction(
        operands={**operands, "dsts": RESULTS, **rest.pop("more", {})},
        engines=("dma",),
        lower=lower,
        cost="collective",
        source=SOURCE,
        extra_check=check,
        parameters_since=SINCE,
        serial=True,
        **rest,
    )


@_row(_all_reduce, check_all_reduce, "srcs", operators={"op": OPERATORS})
def all_reduce(
    srcs: Any, dsts: Any, replica_group: Any, op: Any, priority: Any = None, name: Any = None
) -> tuple[Any, ...]:
    """Each dst = all ranks' srcs reduced. See `nki.collectives.all_reduce`."""
    return listed(srcs, "srcs"), listed(dsts, "dsts"), replica_group, op, priority, name


@_row(_all_gather, check_all_gather, "srcs")
def all_gather(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    collective_dim: int,
    priority: Any = None,
    name: Any = None,
) -> tuple[Any, ...]:
    """Each dst = all ranks' srcs, one after the other along collective_dim."""
    return (
        listed(srcs, "srcs"), listed(dsts, "dsts"), replica_group, collective_dim, priority, name
    )  # fmt: skip


@_row(_reduce_scatter, check_reduce_scatter, "srcs", operators={"op": OPERATORS})
def reduce_scatter(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    collective_dim: int,
    op: Any,
    priority: Any = None,
    name: Any = None,
) -> tuple[Any, ...]:
    """Each dst = this rank's rows of all ranks' srcs reduced."""
    return (
        listed(srcs, "srcs"), listed(dsts, "dsts"), replica_group, collective_dim, op, priority,
        name,
    )  # fmt: skip


@_row(_all_to_all, check_all_to_all, "srcs")
def all_to_all(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    collective_dim: int,
    priority: Any = None,
    name: Any = None,
) -> tuple[Any, ...]:
    """Part i of dst = this rank's part of rank i's src."""
    return (
        listed(srcs, "srcs"), listed(dsts, "dsts"), replica_group, collective_dim, priority, name
    )  # fmt: skip


@_row(_permute, check_permute, "srcs")
def collective_permute(
    srcs: Any, dsts: Any, source_target_pairs: Any, priority: Any = None, name: Any = None
) -> tuple[Any, ...]:
    """Each target's dst = its source's src."""
    return listed(srcs, "srcs"), listed(dsts, "dsts"), source_target_pairs, priority, name


@_row(_implicit, check_implicit, "srcs_by_channel")
def collective_permute_implicit(
    srcs_by_channel: Any,
    dsts: Any,
    replica_group: Any,
    channel_ids: Any,
    priority: Any = None,
    name: Any = None,
) -> tuple[Any, ...]:
    """Each dst = the predecessor's src, channel by channel."""
    return srcs_by_channel, dsts, replica_group, channel_ids, priority, name


@_row(
    _implicit_reduce,
    check_implicit,
    "srcs0_by_channel",
    "srcs1_by_channel",
    operators={"op": OPERATORS},
)
def collective_permute_implicit_reduce(
    srcs0_by_channel: Any,
    srcs1_by_channel: Any,
    dsts: Any,
    replica_group: Any,
    op: Any,
    channel_ids: Any,
    priority: Any = None,
    name: Any = None,
) -> tuple[Any, ...]:
    """Each dst = the predecessor's op(src0, src1), channel by channel."""
    return srcs0_by_channel, srcs1_by_channel, dsts, replica_group, op, channel_ids, priority, name


_METADATA = {
    "metadata": Operand("read", "free", HBM | SBUF, many=True),
    "recv_counts": Operand("write", "free", HBM | SBUF, optional=True),
}


@_row(_variable, check_variable, "srcs", more=_METADATA)
def all_to_all_v(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    metadata: Any,
    recv_counts: Any,
    has_rdispls: bool,
    priority: Any = None,
    name: Any = None,
) -> tuple[Any, ...]:
    """Chunks of flat src to all ranks, by counts and displacements of each."""
    return srcs, dsts, replica_group, metadata, recv_counts, has_rdispls, priority, name


@_row(_variable, check_variable, "srcs", more=_METADATA, since="0.6")
def all_gather_v(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    metadata: Any,
    recv_counts: Any,
    has_rdispls: bool,
    priority: Any = None,
    name: Any = None,
) -> tuple[Any, ...]:
    """One chunk of flat src to all ranks."""
    return srcs, dsts, replica_group, metadata, recv_counts, has_rdispls, priority, name


@instruction(
    operands={}, engines=("sync",), lower=_rank_id, cost="sequencer", source=SOURCE, serial=True,
)  # fmt: skip
def rank_id(dst: Any, name: Any = None) -> tuple[Any, ...]:
    """Register dst = this rank."""
    return dst, name


@instruction(
    operands={}, engines=("sync",), lower=_ring_rank, cost="sequencer", source=SOURCE,
    serial=True, extra_check=check_ring,
)  # fmt: skip
def collective_permute_implicit_current_processing_rank_id(
    dst: Any, iteration_id: Any, replica_group: Any, channel_id: int, name: Any = None
) -> tuple[Any, ...]:
    """Register dst = the rank whose data is here after iteration_id steps round the ring."""
    return dst, iteration_id, replica_group, channel_id, name
