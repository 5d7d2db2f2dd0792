"""A coarse estimate of what the stock compiler makes of an op that no kernel fills.

**This is no simulation.** Nobody outside AWS knows what neuronx-cc schedules for an op, so a
reference op gets a roofline with two efficiencies and a fixed cost per step:

    predicted = steps * STEP_US + max(traffic / (MEMORY_EFFICIENCY * HBM),
                                      macs / (TENSOR_EFFICIENCY * peak))

A *step* is something that must be finished before the next begins (a product, a softmax, a
gather). Steps and traffic are read from NxD Inference 0.9's own code for the op, not from a
profile. The two constants of decode are calibrated on two published numbers, so that agreement
with those proves nothing; what they are good for is a baseline of the right size, and to say
which ops are worth a kernel. Take a single op's number as right within a factor of two.

Constants and where they come from:

STEP_US, MEMORY_EFFICIENCY: solved from two numbers for the stock model, bf16, batch 1.
First, on trn2 at TP 4 the contest's prompt 4 (402 tokens, 238 more until 640) takes 3042 ms from
end to end (facts/nxdi.md §2, host included): one context encoding of 640 and 238 decode steps of
this file's making are to take that, which leaves 11.4 ms for a step. Second, expert dispatch is
about 60 % of a decode step (aws-neuron/neuronx-distributed-inference pull request 133, said of
Mixtral). A layer of a decode step has 28 steps and 67 MB, of them 10 steps and 57 MB in router
and experts.
TENSOR_EFFICIENCY: published_latencies.csv trn2-matmul-012, -014, -016 (torch.compile, LNC2,
bf16, 1590 and 3600 rows): 54, 51 and 66 % of the peak; the median.

On trn3 the same constants are used with its bandwidth. The contest's stock baseline there is
slower than on trn2 (16.3 ms, another SDK), so the trn3 baseline is likely too fast by half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

from model.op_calls import OpCall, TensorSpec
from model.work import Arguments, Work, item_bytes, size_bytes
from simulator.timing import Machine

STEP_US = 3.5
MEMORY_EFFICIENCY = 0.73
TENSOR_EFFICIENCY = 0.54
BLOCK_ROWS = 512
"""Rows of a block of NxD's blockwise experts; below that many (token, expert) pairs every expert
sees every token (expert_mlps_v2.py)."""


@dataclass(frozen=True)
class Stock:
    """What the stock implementation of an op does in one call."""

    steps: int
    traffic_bytes: int
    macs: int


@dataclass(frozen=True)
class Estimate:
    """Coarse; see the head of this file."""

    predicted_us: float
    slowed_by: str
    traffic_bytes: int


def estimate(call: OpCall, work: Work, machine: Machine, cores: int) -> Estimate:
    """What one call of a reference op is estimated to take on `cores` cores of `machine`."""
    stock = STOCK[call.op](dict(call.arguments), work)
    memory_us = stock.traffic_bytes / (MEMORY_EFFICIENCY * _hbm(machine, cores)) / 1000
    compute_us = stock.macs / (TENSOR_EFFICIENCY * _peak(machine, cores)) / 1000
    fixed_us = stock.steps * STEP_US
    causes = {"steps": fixed_us, "memory": memory_us, "compute": compute_us}
    return Estimate(
        fixed_us + max(memory_us, compute_us),
        max(causes, key=lambda cause: causes[cause]),
        stock.traffic_bytes,
    )


def roofline_us(work: Work, machine: Machine, cores: int) -> tuple[float, str]:
    """The least time for `work` on `cores` cores, and whether `compute` or `memory` sets it."""
    compute = work.macs / _peak(machine, cores) / 1000
    memory = work.hbm_bytes / _hbm(machine, cores) / 1000
    return max(compute, memory), "compute" if compute > memory else "memory"


def _hbm(machine: Machine, cores: int) -> float:
    return machine.hbm_core_bytes_per_ns * cores


def _peak(machine: Machine, cores: int) -> float:
    return machine.tensor_macs_per_ns * cores


def _plain(steps: int, passes: float = 1.0) -> Callable[[Arguments, Work], Stock]:
    """An op of so many steps that moves what it needs, `passes` times."""

    def stock(arguments: Arguments, work: Work) -> Stock:
        return Stock(steps, int(passes * work.hbm_bytes), work.dot_macs)

    return stock


def _attention(arguments: Arguments, work: Work) -> Stock:
    """Scores, softmax, mix: fp32 scores and their softmax go through HBM, unmasked halves too."""
    q: TensorSpec = arguments["q"]
    batch, tokens, heads, _ = q.shape
    scores = batch * heads * tokens * tokens
    return Stock(3, work.hbm_bytes + scores * 2 * (4 + item_bytes(q)), work.dot_macs)


def _experts(arguments: Arguments, work: Work) -> Stock:
    """NxD's choice by size: the chosen experts are gathered, or all are run, or blocks of rows.

    Gathered weights are read, written and read again (`gate_up_proj[expert_indices]`).
    """
    x, weights, down = arguments["x"], arguments["weights"], arguments["down"]
    tokens, top_k = weights.shape
    experts, pairs = down.shape[0], tokens * top_k
    expert_macs = 3 * prod(down.shape[1:])
    expert_bytes = size_bytes(arguments["gate_up"], down) // experts
    row_bytes = size_bytes(x) // tokens
    if pairs < experts:
        return Stock(6 * tokens, 3 * pairs * expert_bytes + 2 * size_bytes(x), work.dot_macs)
    if pairs < BLOCK_ROWS:
        moved = experts * (expert_bytes + 2 * tokens * row_bytes)
        return Stock(6, moved, experts * tokens * expert_macs)
    blocks = min(pairs, ceil((pairs - (experts - 1)) / BLOCK_ROWS) + experts - 1)
    moved = blocks * (3 * expert_bytes + 4 * BLOCK_ROWS * row_bytes)
    return Stock(4 * blocks, moved, blocks * BLOCK_ROWS * expert_macs)


STOCK: dict[str, Callable[[Arguments, Work], Stock]] = {
    "embedding": _plain(1),
    "add": _plain(1),
    "cache_write": _plain(1),
    "softmax": _plain(1),
    "silu": _plain(1),
    "rmsnorm": _plain(1),
    "add_rmsnorm": _plain(2),
    "qk_norm": _plain(2),
    "rope": _plain(2, passes=2.0),  # the halves are swapped by concatenation
    "qkv_proj": _plain(3),  # three products, unless fused_qkv
    "norm_qkv_proj": _plain(4),
    "attention_prefill": _attention,
    "attention_decode": _plain(6),  # scores, softmax and mix of cache and new token; the update
    "o_proj": _plain(1),
    "o_proj_add": _plain(2),
    "router": _plain(4),  # product, softmax, top k, scatter of the affinities
    "expert_mlp": _plain(3),
    "expert_aggregate": _plain(1),
    "experts": _experts,
    "experts_prefill": _experts,
    "lm_head": _plain(1),
    "norm_lm_head": _plain(2),
}
"""Op -> what the stock implementation does."""
