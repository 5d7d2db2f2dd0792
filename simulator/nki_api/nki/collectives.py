"""`nki.collectives`: what several ranks do together.

Every tensor of a collective is in HBM, or every one is in SBUF. Rows and meaning:
`simulator.instructions.collectives`; ranks are simulated by
`simulator.collectives.simulate_ranks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from nki.language import NKIObject
from simulator.context import current_program, feature
from simulator.errors import refuse
from simulator.instructions import collectives as rows
from simulator.instructions.collectives import (
    all_gather,
    all_reduce,
    all_to_all,
    collective_permute,
    listed,
    reduce_scatter,
)
from simulator.registers import VirtualRegister
from simulator.tensor import NkiTensor

__all__ = [
    "ReplicaGroup", "all_gather", "all_gather_v", "all_reduce", "all_to_all", "all_to_all_v",
    "collective_permute", "collective_permute_implicit",
    "collective_permute_implicit_current_processing_rank_id",
    "collective_permute_implicit_reduce", "rank_id", "reduce_scatter", "rg_partition_op",
]  # fmt: skip


class rg_partition_op(Enum):
    """How `ReplicaGroup.from_partition_op` finds a rank's list (0.7)."""

    bitwise_and = "bitwise_and"
    div = "div"
    mod = "mod"


@dataclass
class ReplicaGroup(NKIObject):  # type: ignore[misc]
    """Lists of ranks; a collective works within each list on its own."""

    groups: Any

    @staticmethod
    def from_partition_op(world_size: int, op: rg_partition_op, operand: int) -> ReplicaGroup:
        """Ranks with the same `op(rank, operand)` form a list (0.7)."""
        feature("ReplicaGroup.from_partition_op", since="0.7")
        lists: dict[int, list[int]] = {}
        for rank in range(world_size):
            number = {
                rg_partition_op.bitwise_and: lambda r: r & operand,
                rg_partition_op.div: lambda r: r // operand,
                rg_partition_op.mod: lambda r: r % operand,
            }[op](rank)
            lists.setdefault(number, []).append(rank)
        return ReplicaGroup(list(lists.values()))


def _one_each(by_channel: Any, operand: str) -> list[Any]:
    """[[tensor], …] as [tensor, …]."""
    flat = []
    for channel in listed(by_channel, operand):
        tensors = listed(channel, operand)
        if len(tensors) != 1:
            raise refuse(
                "collective-tensors",
                f"{operand} has a channel of {len(tensors)} tensors",
                "Give one tensor per channel: [[tensor], …]",
                operand=operand,
                limit="1 tensor per channel",
                value=f"{len(tensors)} tensors",
            )
        flat += tensors
    return flat


def collective_permute_implicit(
    srcs_by_channel: Any,
    dsts_by_channel: Any,
    replica_group: Any,
    channel_ids: Any = (0,),
    priority: Any = None,
    name: Any = None,
) -> Any:
    """One step round the ring: each rank's dsts take what its predecessor's srcs hold.

    Args:
        srcs_by_channel: [[tensor], …], one tensor per channel.
        dsts_by_channel: likewise, of the same shapes and dtypes.
        replica_group: a ring is a rank list; a rank's successor is the next in the list.
        channel_ids: 0, 1, … one per channel, at most 4.
        priority: 0 to 3 (trn3).
        name: a label.
    """
    return rows.collective_permute_implicit(
        _one_each(srcs_by_channel, "srcs_by_channel"),
        _one_each(dsts_by_channel, "dsts_by_channel"),
        replica_group,
        list(channel_ids) if isinstance(channel_ids, tuple) else channel_ids,
        priority,
        name,
    )


def collective_permute_implicit_reduce(
    srcs0_by_channel: Any,
    srcs1_by_channel: Any,
    dsts_by_channel: Any,
    replica_group: Any,
    op: Any,
    channel_ids: Any = (0,),
    priority: Any = None,
    name: Any = None,
) -> Any:
    """One step round the ring of `op(src0, src1)`, reduced before it is sent.

    Args:
        srcs0_by_channel: [[tensor], …], left operands.
        srcs1_by_channel: right operands.
        dsts_by_channel: take the predecessor's results.
        replica_group: as in collective_permute_implicit.
        op: nl.add, nl.minimum or nl.maximum.
        channel_ids: 0, 1, … one per channel.
        priority: 0 to 3 (trn3).
        name: a label.
    """
    return rows.collective_permute_implicit_reduce(
        _one_each(srcs0_by_channel, "srcs0_by_channel"),
        _one_each(srcs1_by_channel, "srcs1_by_channel"),
        _one_each(dsts_by_channel, "dsts_by_channel"),
        replica_group,
        op,
        list(channel_ids) if isinstance(channel_ids, tuple) else channel_ids,
        priority,
        name,
    )


def _metadata(
    tensor: Any, replica_group: Any, recv_counts_known: bool, has_rdispls: bool
) -> tuple[list[NkiTensor], NkiTensor | None]:
    """The rows of a metadata tensor that are read, and that of received counts if written."""
    lists = getattr(replica_group, "groups", None)
    ranks = len(lists[0]) if isinstance(lists, list | tuple) and lists and lists[0] else 0
    shape = (4 if has_rdispls else 3, ranks)
    wanted = (1, *shape) if isinstance(tensor, NkiTensor) and tensor.buffer.on_chip else shape
    if not isinstance(tensor, NkiTensor) or tensor.shape != wanted:
        raise refuse(
            "collective-shape",
            "metadata_tensor has counts and displacements for each rank",
            "Allocate (rows, ranks) in HBM or (1, rows, ranks) in SBUF; 4 rows with has_rdispls",
            operand="metadata_tensor",
            limit=str(wanted),
            value=str(getattr(tensor, "shape", type(tensor).__name__)),
        )
    before = (slice(None),) * (len(wanted) - 2)
    rows = [tensor[(*before, slice(row, row + 1))] for row in range(shape[0])]
    counts = rows.pop(2)
    return rows, None if recv_counts_known else counts


def all_to_all_v(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    metadata_tensor: Any,
    recv_counts_known: bool = False,
    has_rdispls: bool = False,
    priority: Any = None,
    name: Any = None,
) -> Any:
    """Send chunks of different lengths, known at run time, from each rank to each.

    Args:
        srcs: [tensor] in HBM, taken as a flat buffer.
        dsts: [tensor] in HBM; without has_rdispls the chunk of the group's rank r goes to the
            start of the r-th of equal slots.
        replica_group: who takes part.
        metadata_tensor: uint32 (3 or 4, ranks) in HBM or (1, 3 or 4, ranks) in SBUF, in
            elements: send counts, send displacements, received counts, receive displacements.
        recv_counts_known: leave row 2 alone; otherwise the counts received are written there.
        has_rdispls: row 3 says where chunks go.
        priority: 0 to 3 (trn3).
        name: a label.
    """
    read, counts = _metadata(metadata_tensor, replica_group, recv_counts_known, has_rdispls)
    return rows.all_to_all_v(
        listed(srcs, "srcs"), listed(dsts, "dsts"), replica_group, read, counts, has_rdispls,
        priority, name,
    )  # fmt: skip


def all_gather_v(
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    metadata_tensor: Any,
    recv_counts_known: bool = False,
    has_rdispls: bool = False,
    priority: Any = None,
    name: Any = None,
) -> Any:
    """Send one chunk, whose length is known at run time, from each rank to all (0.6).

    Args: as for all_to_all_v; only the first column of the send rows is read. Two cores per
    rank and rank lists of 4 only; has_rdispls is not supported.
    """
    read, counts = _metadata(metadata_tensor, replica_group, recv_counts_known, has_rdispls)
    read = [row[..., 0:1] for row in read]
    return rows.all_gather_v(
        listed(srcs, "srcs"), listed(dsts, "dsts"), replica_group, read, counts, has_rdispls,
        priority, name,
    )  # fmt: skip


def rank_id(name: Any = None) -> VirtualRegister:
    """A register that holds this rank's number."""
    register = current_program().register()
    rows.rank_id(register, name)
    return register


def collective_permute_implicit_current_processing_rank_id(
    iteration_id: Any, replica_group: Any, channel_id: int = 0, name: Any = None
) -> VirtualRegister:
    """A register that holds the rank whose data is here after `iteration_id` steps of the ring.

    Args:
        iteration_id: the ring's step, an int or a register; 0 gives the own rank.
        replica_group: the ring.
        channel_id: the channel.
        name: a label.
    """
    register = current_program().register()
    rows.collective_permute_implicit_current_processing_rank_id(
        register, iteration_id, replica_group, channel_id, name
    )
    return register
