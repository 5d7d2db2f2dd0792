"""What a kernel must take and give to fill an op.

The model calls an op with its own shapes; a contract says how these become the kernel's
arguments. A kernel's further keyword parameters are set by the kernel configuration.

B sequences, S tokens of each, T = B * S, H hidden, N query heads, K key/value heads, D head_dim,
L cache length, P positions, E experts, k experts per token, I expert width, V vocabulary, all
local to one tensor-parallel rank. Weights are [in, out].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kernels import layer_reference, moe_reference, reference
from kernels.comparison import experts_decode_error, largest_error, router_error

Kernel = Callable[..., Any]

NOT_CONFIGURABLE = frozenset(
    {
        *("norm_weight", "residual", "scale", "scales", "gate_scale", "up_scale"),
        *("causal", "argmax", "vocabulary_offset"),
    }
)
"""Kernel arguments that are tensors, or that make a kernel return something else."""


@dataclass(frozen=True)
class OpContract:
    """One op: its reference, and how a kernel is called in its place."""

    signature: str
    """What a kernel for this op must look like."""
    schema: str
    """The op's own arguments and results, as `torch.library` writes them."""
    arguments: tuple[str, ...]
    """Kernel arguments that the model gives; all others are the configuration's."""
    reference: Callable[..., Any]
    """Takes the op's arguments, and its parts by name."""
    call: Callable[..., Any]
    """call(kernel, *the op's arguments, **parameters of the configuration)"""
    parts: tuple[str, ...] = ()
    """Ops that the reference calls, if kernels fill them."""
    written: tuple[int, ...] = ()
    """Arguments that are written, which are also the results after the first."""
    error: Callable[[Any, Any, Sequence[Any]], float] = largest_error
    """error(kernel's results, reference's results, the op's arguments)"""


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _as(result: Tensor, x: Tensor) -> Tensor:
    """Rows with the leading dimensions of x."""
    return result.reshape(*x.shape[:-1], result.shape[-1])


def _call_rows(kernel: Kernel, x: Tensor, **parameters: Any) -> Tensor:
    return _as(kernel(_rows(x), **parameters), x)


def _call_rmsnorm(
    kernel: Kernel, x: Tensor, weight: Tensor, eps: float, **parameters: Any
) -> Tensor:
    return _as(kernel(_rows(x), weight, eps=eps, **parameters), x)


def _call_add_rmsnorm(
    kernel: Kernel, x: Tensor, residual: Tensor, weight: Tensor, eps: float, **parameters: Any
) -> tuple[Tensor, Tensor]:
    normed, total = kernel(_rows(x), _rows(residual), weight, eps=eps, **parameters)
    return _as(normed, x), _as(total, x)


def _call_qk_norm(
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    **parameters: Any,
) -> tuple[Tensor, Tensor]:
    new_q, new_k = kernel(
        q.flatten(0, 1), k.flatten(0, 1), q_weight, k_weight, eps=eps, **parameters
    )
    return new_q.reshape(q.shape), new_k.reshape(k.shape)


def _call_rope(
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    offsets: Tensor | None,
    **parameters: Any,
) -> tuple[Tensor, Tensor]:
    return kernel(q, k, cos, sin, offsets=offsets, **parameters)  # type: ignore[no-any-return]


def _call_qkv_proj(
    kernel: Kernel, x: Tensor, weight: Tensor, kv_width: int, **parameters: Any
) -> tuple[Tensor, ...]:
    return tuple(_as(y, x) for y in kernel(_rows(x), weight, kv_width, **parameters))


def _call_norm_qkv_proj(
    kernel: Kernel,
    x: Tensor,
    norm_weight: Tensor,
    weight: Tensor,
    kv_width: int,
    eps: float,
    **parameters: Any,
) -> tuple[Tensor, ...]:
    norm = {"norm_weight": norm_weight, "eps": eps}
    return tuple(_as(y, x) for y in kernel(_rows(x), weight, kv_width, **norm, **parameters))


def norm_qkv_proj(
    x: Tensor, norm_weight: Tensor, weight: Tensor, kv_width: int, eps: float
) -> tuple[Tensor, ...]:
    """(q, k, v) of norm(x)."""
    return layer_reference.qkv_projection(x, weight, kv_width, norm_weight, eps=eps)


def _call_attention(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, **parameters: Any) -> Tensor:
    return kernel(q, k, v, **parameters)  # type: ignore[no-any-return]


def _call_attention_decode(kernel: Kernel, *tensors: Tensor, **parameters: Any) -> Any:
    return kernel(*tensors, **parameters)


def _call_attention_block(kernel: Kernel, *arguments: Any, **parameters: Any) -> Any:
    return kernel(*arguments[:-1], eps=arguments[-1], **parameters)


def _call_projection(kernel: Kernel, x: Tensor, weight: Tensor, **parameters: Any) -> Tensor:
    return _as(kernel(_rows(x), weight, **parameters), x)


def _call_o_proj_add(
    kernel: Kernel, x: Tensor, weight: Tensor, residual: Tensor, **parameters: Any
) -> Tensor:
    return _as(kernel(_rows(x), weight, residual=_rows(residual), **parameters), x)


def _call_router(
    kernel: Kernel, x: Tensor, weight: Tensor, top_k: int, normalise: bool, **parameters: Any
) -> tuple[Tensor, Tensor]:
    return kernel(  # type: ignore[no-any-return]
        x, router_weight=weight, top_k=top_k, normalise=normalise, **parameters
    )


def _call_plain(kernel: Kernel, *arguments: Tensor, **parameters: Any) -> Tensor:
    return kernel(*arguments, **parameters)  # type: ignore[no-any-return]


def _call_experts_decode(
    kernel: Kernel,
    x: Tensor,
    norm_weight: Tensor,
    router_weight: Tensor,
    gate_up: Tensor,
    down: Tensor,
    eps: float,
    top_k: int,
    normalise: bool,
    **parameters: Any,
) -> Tensor:
    return kernel(  # type: ignore[no-any-return]
        x,
        norm_weight,
        router_weight,
        gate_up,
        down,
        eps=eps,
        top_k=top_k,
        normalise=normalise,
        **parameters,
    )


def _call_norm_lm_head(
    kernel: Kernel, x: Tensor, norm_weight: Tensor, weight: Tensor, eps: float, **parameters: Any
) -> Tensor:
    return _as(kernel(_rows(x), weight, norm_weight=norm_weight, eps=eps, **parameters), x)


def norm_lm_head(x: Tensor, norm_weight: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Logits of norm(x)."""
    return layer_reference.lm_head(x, weight, norm_weight, eps=eps)


CONTRACTS: dict[str, OpContract] = {
    "softmax": OpContract(
        "kernel(x[rows, columns]) -> [rows, columns]",
        "(Tensor x) -> Tensor",
        ("x",),
        reference.softmax,
        _call_rows,
    ),
    "silu": OpContract(
        "kernel(x[rows, columns]) -> [rows, columns]",
        "(Tensor x) -> Tensor",
        ("x",),
        reference.silu,
        _call_rows,
    ),
    "rmsnorm": OpContract(
        "kernel(x[rows, H], weight[H], eps) -> [rows, H]",
        "(Tensor x, Tensor weight, float eps) -> Tensor",
        ("x", "weight", "eps"),
        reference.rmsnorm,
        _call_rmsnorm,
    ),
    "add_rmsnorm": OpContract(
        "kernel(x[rows, H], residual[rows, H], weight[H], eps) -> (norm, x + residual)",
        "(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
        ("x", "residual", "weight", "eps"),
        layer_reference.add_rmsnorm,
        _call_add_rmsnorm,
        parts=("rmsnorm",),
    ),
    "qk_norm": OpContract(
        "kernel(q[T, N, D], k[T, K, D], q_weight[D], k_weight[D], eps) -> (q, k)",
        "(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, float eps) -> (Tensor, Tensor)",
        ("q", "k", "q_weight", "k_weight", "eps"),
        reference.qk_norm,
        _call_qk_norm,
    ),
    "rope": OpContract(
        "kernel(q[B, S, N, D], k[B, S, K, D], cos[P, D], sin[P, D], offsets[B, 1] int32 or None) "
        "-> (q, k)",
        "(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor? offsets) -> (Tensor, Tensor)",
        ("q", "k", "cos", "sin", "offsets"),
        layer_reference.rope,
        _call_rope,
    ),
    "qkv_proj": OpContract(
        "kernel(x[T, H], weight[H, (N + 2 K) D], kv_width) -> (q[T, N D], k[T, K D], v[T, K D])",
        "(Tensor x, Tensor weight, int kv_width) -> (Tensor, Tensor, Tensor)",
        ("x", "weight", "kv_width"),
        layer_reference.qkv_projection,
        _call_qkv_proj,
    ),
    "norm_qkv_proj": OpContract(
        "kernel(x[T, H], weight[H, (N + 2 K) D], kv_width, norm_weight[H], eps) -> (q, k, v)",
        "(Tensor x, Tensor norm_weight, Tensor weight, int kv_width, float eps) "
        "-> (Tensor, Tensor, Tensor)",
        ("x", "weight", "kv_width", "norm_weight", "eps"),
        norm_qkv_proj,
        _call_norm_qkv_proj,
    ),
    "attention_prefill": OpContract(
        "kernel(q[B, S, N, D], k[B, S, K, D], v[B, S, K, D]) -> [B, S, N, D], causal",
        "(Tensor q, Tensor k, Tensor v) -> Tensor",
        ("q", "k", "v"),
        layer_reference.attention,
        _call_attention,
        parts=("softmax",),
    ),
    "attention_decode": OpContract(
        "kernel(q[B, N, D], k[B, K, D], v[B, K, D], k_cache[B, K, L, D], v_cache, lengths[B, 1] "
        "int32) -> (out[B, N, D], k_cache, v_cache), the caches written in place",
        "(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor lengths) "
        "-> Tensor",
        ("q", "k", "v", "k_cache", "v_cache", "lengths"),
        layer_reference.decode_attention_in_place,
        _call_attention_decode,
        parts=("softmax",),
        written=(3, 4),
    ),
    "o_proj": OpContract(
        "kernel(x[T, N D], weight[N D, H]) -> [T, H]",
        "(Tensor x, Tensor weight) -> Tensor",
        ("x", "weight"),
        layer_reference.output_projection,
        _call_projection,
    ),
    "o_proj_add": OpContract(
        "kernel(x[T, N D], weight[N D, H], residual[T, H]) -> [T, H]",
        "(Tensor x, Tensor weight, Tensor residual) -> Tensor",
        ("x", "weight", "residual"),
        layer_reference.output_projection,
        _call_o_proj_add,
    ),
    "attention_block_decode": OpContract(
        "kernel(x[B, H], norm_weight[H], qkv_weight[H, (N + 2 K) D], q_norm_weight[D], "
        "k_norm_weight[D], cos[P, D], sin[P, D], k_cache[B, K, L, D], v_cache, lengths[B, 1] "
        "int32, o_weight[N D, H], eps) -> (out[B, H], k_cache, v_cache), the caches written in "
        "place",
        "(Tensor x, Tensor norm_weight, Tensor qkv_weight, Tensor q_norm_weight, "
        "Tensor k_norm_weight, Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, "
        "Tensor lengths, Tensor o_weight, float eps) -> Tensor",
        (
            *("x", "norm_weight", "qkv_weight", "q_norm_weight", "k_norm_weight", "cos", "sin"),
            *("k_cache", "v_cache", "lengths", "o_weight", "eps"),
        ),
        layer_reference.attention_block_decode,
        _call_attention_block,
        written=(7, 8),
    ),
    "router": OpContract(
        "kernel(x[T, H], router_weight[H, E], top_k, normalise) -> (weights[T, k] fp32, "
        "experts[T, k] int32)",
        "(Tensor x, Tensor weight, int top_k, bool normalise) -> (Tensor, Tensor)",
        ("x", "router_weight", "top_k", "normalise"),
        moe_reference.router,
        _call_router,
        parts=("softmax",),
        error=router_error,
    ),
    "expert_mlp": OpContract(
        "kernel(x[rows, H], gate_weight[H, I], up_weight[H, I], down_weight[I, H]) -> [rows, H]",
        "(Tensor x, Tensor gate, Tensor up, Tensor down) -> Tensor",
        ("x", "gate_weight", "up_weight", "down_weight"),
        moe_reference.expert_mlp,
        _call_plain,
    ),
    "expert_aggregate": OpContract(
        "kernel(expert_outputs[T, k, H], weights[T, k] fp32) -> [T, H]",
        "(Tensor outputs, Tensor weights) -> Tensor",
        ("expert_outputs", "weights"),
        moe_reference.aggregate,
        _call_plain,
    ),
    "experts_prefill": OpContract(
        "kernel(x[T, H], weights[T, k] fp32, chosen[T, k] int32, gate_up[E, H, 2 I], "
        "down[E, I, H]) -> [T, H]",
        "(Tensor x, Tensor weights, Tensor chosen, Tensor gate_up, Tensor down) -> Tensor",
        ("x", "weights", "chosen", "gate_up", "down"),
        moe_reference.experts,
        _call_plain,
        parts=("silu", "expert_mlp", "expert_aggregate"),
    ),
    "experts_decode": OpContract(
        "kernel(x[T, H], norm_weight[H], router_weight[H, E], gate_up[E, H, 2 I], down[E, I, H], "
        "eps, top_k, normalise) -> [T, H]",
        "(Tensor x, Tensor norm_weight, Tensor router_weight, Tensor gate_up, Tensor down, "
        "float eps, int top_k, bool normalise) -> Tensor",
        ("x", "norm_weight", "router_weight", "gate_up", "down", "eps", "top_k", "normalise"),
        moe_reference.moe_layer,
        _call_experts_decode,
        error=experts_decode_error,
    ),
    "lm_head": OpContract(
        "kernel(x[T, H], weight[H, V]) -> [T, V]",
        "(Tensor x, Tensor weight) -> Tensor",
        ("x", "weight"),
        layer_reference.lm_head,
        _call_projection,
    ),
    "norm_lm_head": OpContract(
        "kernel(x[T, H], weight[H, V], norm_weight[H], eps) -> [T, V]",
        "(Tensor x, Tensor norm_weight, Tensor weight, float eps) -> Tensor",
        ("x", "weight", "norm_weight", "eps"),
        norm_lm_head,
        _call_norm_lm_head,
    ),
}
"""Op -> contract; the same ops as `kernels.OPS`."""
