"""The PyTorch references of the mixture-of-experts kernels, with the model's rounding."""

from __future__ import annotations

import torch
from torch.nn import functional

from kernels.reference import rmsnorm


def router(
    x: torch.Tensor,
    router_weight: torch.Tensor | None = None,
    top_k: int = 8,
    normalise: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [tokens, top_k] fp32 and experts [tokens, top_k] int32, best first.

    Args:
        x: [tokens, hidden]; without router_weight the logits.
        router_weight: [hidden, experts] or None.
        top_k: experts per token.
        normalise: scale the weights of a token to a sum of 1.
    """
    logits = x if router_weight is None else x @ router_weight
    precision = torch.promote_types(logits.dtype, torch.float32)
    weights, experts = logits.to(precision).softmax(-1).topk(top_k, dim=-1)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts.to(torch.int32)


def expert_mlp(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """(silu(x gate) * (x up)) down; gate and up [hidden, inner], down [inner, hidden]."""
    return (functional.silu(x @ gate) * (x @ up)) @ down


def aggregate(expert_outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum over j of weights[t, j] * expert_outputs[t, j], rounded once."""
    precision = torch.promote_types(expert_outputs.dtype, torch.float32)
    shares = weights.to(expert_outputs.dtype).to(precision)
    total = (expert_outputs.to(precision) * shares[..., None]).sum(1)
    return total.to(expert_outputs.dtype)


def experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """The weighted sum of each token's experts.

    Args:
        x: [tokens, hidden].
        weights: [tokens, top_k].
        chosen: [tokens, top_k], expert numbers.
        gate_up: [experts, hidden, 2 * inner].
        down: [experts, inner, hidden].
    """
    inner = down.shape[1]
    outputs = x.new_zeros((*chosen.shape, x.shape[1]))
    for expert in sorted(set(chosen.flatten().tolist())):
        token, j = (chosen == expert).nonzero(as_tuple=True)
        gate, up = gate_up[expert][:, :inner], gate_up[expert][:, inner:]
        outputs[token, j] = expert_mlp(x[token], gate, up, down[expert])
    return aggregate(outputs, weights)


def moe_layer(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    eps: float = 1e-6,
    top_k: int = 8,
    normalise: bool = True,
) -> torch.Tensor:
    """Norm, router, chosen experts and their sum."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = (
        rmsnorm(x, norm_weight, eps)
        if x.dtype != torch.float64
        else values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps) * norm_weight
    )
    weights, chosen = router(normed, router_weight, top_k, normalise)
    return experts(normed, weights, chosen, gate_up, down)
