"""What a collective between ranks costs, by its size. Source: nki_facts.md §3.5."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from simulator.timing.machine import Machine

if TYPE_CHECKING:
    from simulator.program import Instruction

_SHARE = {
    "all_reduce": 2.0,
    "all_gather": 1.0,
    "all_gather_v": 1.0,
    "reduce_scatter": 1.0,
    "all_to_all": 1.0,
    "all_to_all_v": 1.0,
    "collective_permute": 1.0,
    "collective_permute_implicit": 1.0,
    "collective_permute_implicit_reduce": 1.0,
}
"""Times (n - 1) / n of the full tensor that each rank sends."""
NAMES = frozenset(_SHARE)
MESH_BYTES = 1_000_000
HALVING_BYTES = 56_000_000
"""Below the first a mesh, below the second recursive halving, above a ring (§3.5)."""


def duration_ns(instruction: Instruction, machine: Machine) -> float:
    """What a kernel's collective takes, by its largest tensor."""
    tensors = [t for _, t in instruction.reads()] + [t for _, t in instruction.writes()]
    size = max((t.size * t.dtype.itemsize for t in tensors), default=0)
    return by_size_ns(instruction.spec.name, size, _ranks(instruction), machine)


def by_size_ns(name: str, size_bytes: int, ranks: int, machine: Machine) -> float:
    """Latency and bytes over the link, with the algorithm the runtime takes for the size.

    Args:
        name: one of NAMES.
        size_bytes: of the full tensor: what is reduced, or what has been gathered.
        ranks: in the group, two or more.
        machine: whose `collective_` constants count.
    """
    if size_bytes < MESH_BYTES:
        hops = 1.0
    elif size_bytes < HALVING_BYTES:
        hops = math.ceil(math.log2(ranks))
    else:
        hops = ranks - 1.0
    latency = machine.collective_base_ns + hops * machine.collective_hop_ns
    return latency + wire_ns(name, size_bytes, ranks, machine)


def wire_ns(name: str, size_bytes: int, ranks: int, machine: Machine) -> float:
    """The bytes alone: what no algorithm can be faster than."""
    share = _SHARE[name] * (ranks - 1) / ranks
    return share * size_bytes / machine.collective_bytes_per_ns


def _ranks(instruction: Instruction) -> int:
    """Ranks in a replica group; 4, a chip's tensor-parallel group, if it cannot be told."""
    group: Any = instruction.get("replica_group")
    lists = getattr(group, "replica_groups", None) or getattr(group, "groups", None) or group
    try:
        return max(2, len(next(iter(lists))))
    except (TypeError, StopIteration):
        return 4
