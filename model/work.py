"""What each op's mathematics needs: multiply-accumulates, and bytes that must cross HBM.

Counted from shapes alone, whatever fills the op. A byte counts once: every argument that must be
read, every result that must be written. Products count, elementwise work does not: that is how
the contest counts (facts: `dot` and the kernels' matrix instructions).

B sequences, S tokens of each, T = B * S, H hidden, N query heads, K key/value heads, D head_dim,
L cache length, E experts, k experts per token, I expert width, V vocabulary, all of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from model.op_calls import OpCall, TensorSpec

Arguments = Mapping[str, Any]
"""An op's arguments by name: `TensorSpec`, or plain values."""


def item_bytes(tensor: TensorSpec) -> int:
    """Of one element."""
    kind: torch.dtype = getattr(torch, tensor.dtype)
    return kind.itemsize


def size_bytes(*tensors: TensorSpec) -> int:
    """Of all elements."""
    return sum(prod(tensor.shape) * item_bytes(tensor) for tensor in tensors)


@dataclass(frozen=True)
class Work:
    """What one call of an op needs."""

    macs: int
    read_bytes: int
    written_bytes: int
    full_macs: int = 0
    """MACs of the products as a compiler sees them, where that is more than `macs`: attention
    without its mask."""

    @property
    def hbm_bytes(self) -> int:
        """Read and written."""
        return self.read_bytes + self.written_bytes

    @property
    def dot_macs(self) -> int:
        """What a graph of plain products does."""
        return max(self.macs, self.full_macs)


def _rows(x: TensorSpec) -> int:
    return prod(x.shape[:-1])


def _elementwise(a: Arguments) -> Work:
    return Work(0, size_bytes(a["x"]), size_bytes(a["x"]))


def _rmsnorm(a: Arguments) -> Work:
    return Work(0, size_bytes(a["x"], a["weight"]), size_bytes(a["x"]))


def _add_rmsnorm(a: Arguments) -> Work:
    return Work(0, size_bytes(a["x"], a["residual"], a["weight"]), 2 * size_bytes(a["x"]))


def _add(a: Arguments) -> Work:
    return Work(0, size_bytes(a["x"], a["other"]), size_bytes(a["x"]))


def _embedding(a: Arguments) -> Work:
    tokens, weight = a["tokens"], a["weight"]
    rows = prod(tokens.shape) * weight.shape[-1] * item_bytes(weight)
    return Work(0, rows + size_bytes(tokens), rows)


def _cache_write(a: Arguments) -> Work:
    return Work(0, size_bytes(a["new"]), size_bytes(a["new"]))


def _collective(a: Arguments) -> Work:
    return Work(0, 0, 0)


def _qk_norm(a: Arguments) -> Work:
    written = size_bytes(a["q"], a["k"])
    return Work(0, written + size_bytes(a["q_weight"], a["k_weight"]), written)


def _rope(a: Arguments) -> Work:
    batch, tokens = a["q"].shape[:2]
    rows = batch if a.get("offsets") is not None else 1
    tables = 2 * rows * tokens * a["cos"].shape[-1] * item_bytes(a["cos"])
    return Work(0, size_bytes(a["q"], a["k"]) + tables, size_bytes(a["q"], a["k"]))


def _projection(a: Arguments) -> Work:
    x, weight = a["x"], a["weight"]
    others = [a[name] for name in ("norm_weight", "residual") if name in a]
    rows, columns = _rows(x), weight.shape[-1]
    return Work(
        rows * x.shape[-1] * columns,
        size_bytes(x, weight, *others),
        rows * columns * item_bytes(x),
    )


def _attention_prefill(a: Arguments) -> Work:
    q, k, v = a["q"], a["k"], a["v"]
    batch, tokens, heads, head = q.shape
    return Work(
        batch * tokens * (tokens + 1) * heads * head,
        size_bytes(q, k, v),
        size_bytes(q),
        full_macs=2 * batch * tokens * tokens * heads * head,
    )


def _attention_decode(a: Arguments) -> Work:
    q, k, v, keys, values = (a[name] for name in ("q", "k", "v", "k_cache", "v_cache"))
    batch, heads, head = q.shape
    return Work(
        2 * batch * heads * keys.shape[2] * head,
        size_bytes(q, k, v, keys, values),
        size_bytes(q, k, v),
    )


def _attention_block(a: Arguments) -> Work:
    x, qkv, o, keys = a["x"], a["qkv_weight"], a["o_weight"], a["k_cache"]
    norms = [a[name] for name in ("norm_weight", "q_norm_weight", "k_norm_weight")]
    batch, groups, positions, head = keys.shape
    item = item_bytes(x)
    tables = 2 * batch * head * item
    return Work(
        batch * (prod(qkv.shape) + prod(o.shape)) + 2 * batch * o.shape[0] * positions,
        size_bytes(x, qkv, o, keys, a["v_cache"], *norms) + tables,
        size_bytes(x) + 2 * batch * groups * head * item,
    )


def _router(a: Arguments) -> Work:
    x, weight = a["x"], a["weight"]
    return Work(
        _rows(x) * prod(weight.shape),
        size_bytes(x, weight),
        _rows(x) * a["top_k"] * 8,
    )


def _expert_mlp(a: Arguments) -> Work:
    x, down = a["x"], a["down"]
    return Work(
        3 * _rows(x) * prod(down.shape), size_bytes(x, a["gate"], a["up"], down), size_bytes(x)
    )


def _expert_aggregate(a: Arguments) -> Work:
    outputs, weights = a["outputs"], a["weights"]
    return Work(0, size_bytes(outputs, weights), size_bytes(outputs) // outputs.shape[1])


def _chosen_bytes(tokens: int, top_k: int, gate_up: TensorSpec, down: TensorSpec) -> int:
    """Weights of the experts that are chosen: as many as tokens can name, at most all."""
    experts = down.shape[0]
    return size_bytes(gate_up, down) // experts * min(experts, tokens * top_k)


def _experts_prefill(a: Arguments) -> Work:
    x, weights, down = a["x"], a["weights"], a["down"]
    tokens, top_k = weights.shape
    read = _chosen_bytes(tokens, top_k, a["gate_up"], down)
    return Work(
        3 * tokens * top_k * prod(down.shape[1:]),
        read + size_bytes(x, weights) + 4 * tokens * top_k,
        size_bytes(x),
    )


def _experts_decode(a: Arguments) -> Work:
    x, router, down, top_k = a["x"], a["router_weight"], a["down"], a["top_k"]
    tokens = _rows(x)
    read = _chosen_bytes(tokens, top_k, a["gate_up"], down)
    return Work(
        tokens * (prod(router.shape) + 3 * top_k * prod(down.shape[1:])),
        read + size_bytes(x, router, a["norm_weight"]),
        size_bytes(x),
    )


WORK: dict[str, Callable[[Arguments], Work]] = {
    "embedding": _embedding,
    "add": _add,
    "cache_write": _cache_write,
    "all_reduce": _collective,
    "all_gather": _collective,
    "softmax": _elementwise,
    "silu": _elementwise,
    "rmsnorm": _rmsnorm,
    "add_rmsnorm": _add_rmsnorm,
    "qk_norm": _qk_norm,
    "rope": _rope,
    "qkv_proj": _projection,
    "norm_qkv_proj": _projection,
    "attention_prefill": _attention_prefill,
    "attention_decode": _attention_decode,
    "attention_block_decode": _attention_block,
    "o_proj": _projection,
    "o_proj_add": _projection,
    "router": _router,
    "expert_mlp": _expert_mlp,
    "expert_aggregate": _expert_aggregate,
    "experts": _experts_prefill,
    "experts_prefill": _experts_prefill,
    "experts_decode": _experts_decode,
    "lm_head": _projection,
    "norm_lm_head": _projection,
}
"""Op -> what one call needs."""


def work_of(call: OpCall) -> Work:
    """What one call of an op needs."""
    return WORK[call.op](dict(call.arguments))
