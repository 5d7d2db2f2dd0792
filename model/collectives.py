"""What the collectives between tensor-parallel ranks take: a formula by size.

The formula and its constants (latency, hop, bandwidth; each with its source) are the timing
model's own: `simulator/timing/collectives.py` and the `between cores and chips` group of
`simulator/timing/machines/*.yaml`. Here it is only applied to an op of the graph.
"""

from __future__ import annotations

from model.op_calls import OpCall
from model.work import size_bytes
from simulator.timing import Machine
from simulator.timing.collectives import by_size_ns, wire_ns

COLLECTIVES = ("all_reduce", "all_gather")


def is_collective(op: str) -> bool:
    """Whether an op of the graph is between ranks."""
    return op in COLLECTIVES


def full_bytes(call: OpCall) -> int:
    """Bytes of the full tensor: what is reduced, or what all ranks gather together."""
    return size_bytes(*call.results)


def predicted_us(call: OpCall, machine: Machine) -> float:
    """What one call takes, from the first rank's start to the last rank's end."""
    return by_size_ns(call.op, full_bytes(call), _ranks(call), machine) / 1000


def roofline_us(call: OpCall, machine: Machine) -> float:
    """The bytes alone over the link."""
    return wire_ns(call.op, full_bytes(call), _ranks(call), machine) / 1000


def _ranks(call: OpCall) -> int:
    ranks = dict(call.arguments)["ranks"]
    assert isinstance(ranks, int)
    return ranks
