"""The PyTorch references of the mixture-of-experts kernels, with the model's rounding.

Keyword-only arguments are parts, e.g. `silu`: ops of their own, which a kernel may fill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from kernels.reference import rmsnorm, silu, softmax

Rows = Callable[..., torch.Tensor]
"""A part: an op that gives one tensor."""


def _by_expert(x: torch.Tensor, weight: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    order = experts.argsort(stable=True)
    counts = experts.long().bincount(minlength=weight.shape[0]).tolist()
    out = x.new_empty(x.shape[0], weight.shape[2])
    start = 0
    for expert, count in enumerate(counts):
        if count:
            rows = order[start : start + count]
            out[rows] = x[rows] @ weight[expert]
            start += count
    return out


def _without_data(x: torch.Tensor, weight: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


def _define_expert_linear() -> Any:
    """Not by torch.library.custom_op, whose first call takes a second to import a compiler."""
    name = "nki_assay::expert_linear"
    torch.library.define(name, "(Tensor x, Tensor weight, Tensor experts) -> Tensor")
    torch.library.impl(name, "default", _by_expert)
    torch.library.register_fake(name, _without_data)
    return torch.ops.nki_assay.expert_linear


_EXPERT_LINEAR = _define_expert_linear()


def expert_linear(x: torch.Tensor, weight: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """Each row times its expert's matrix.

    One op in a graph, as which expert has how many rows depends on the data.

    Args:
        x: [rows, n].
        weight: [experts, n, m].
        experts: [rows], expert numbers.

    Returns:
        [rows, m].
    """
    result: torch.Tensor = _EXPERT_LINEAR(x, weight, experts)
    return result


@register_flop_formula(_EXPERT_LINEAR)
def _(x: list[int], weight: list[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * weight[1] * weight[2]


def router(
    x: torch.Tensor,
    router_weight: torch.Tensor | None = None,
    top_k: int = 8,
    normalise: bool = True,
    *,
    softmax: Rows = softmax,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [tokens, top_k] fp32 and experts [tokens, top_k] int32, best first.

    Args:
        x: [tokens, hidden]; without router_weight the logits.
        router_weight: [hidden, experts] or None.
        top_k: experts per token.
        normalise: scale the weights of a token to a sum of 1.
        softmax: a part.
    """
    logits = x if router_weight is None else x @ router_weight
    precision = torch.promote_types(logits.dtype, torch.float32)
    weights, experts = softmax(logits.to(precision)).topk(top_k, dim=-1)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts.to(torch.int32)


def expert_mlp(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """(silu(x gate) * (x up)) down; gate and up [hidden, inner], down [inner, hidden]."""
    return (silu(x @ gate) * (x @ up)) @ down


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
    *,
    silu: Rows = silu,
    expert_mlp: Rows | None = None,
    expert_aggregate: Rows = aggregate,
) -> torch.Tensor:
    """The weighted sum of each token's experts.

    Args:
        x: [tokens, hidden].
        weights: [tokens, top_k].
        chosen: [tokens, top_k], expert numbers.
        gate_up: [experts, hidden, 2 * inner].
        down: [experts, inner, hidden].
        silu: a part, of experts that no `expert_mlp` computes.
        expert_mlp: a part; None for rows that are grouped by expert.
        expert_aggregate: a part.
    """
    if expert_mlp is not None:
        return expert_aggregate(_one_by_one(x, chosen, gate_up, down, expert_mlp), weights)
    numbers = chosen.flatten()
    rows = x.repeat_interleave(chosen.shape[1], dim=0)
    gate, up = expert_linear(rows, gate_up, numbers).chunk(2, dim=1)
    outputs = expert_linear(silu(gate) * up, down, numbers)
    return expert_aggregate(outputs.view(*chosen.shape, x.shape[1]), weights)


def _one_by_one(
    x: torch.Tensor,
    chosen: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    expert_mlp: Rows,
) -> torch.Tensor:
    """Outputs [tokens, top_k, hidden], by as few calls of static shapes as there can be.

    Either each token is sent to each of its experts, or all tokens to every expert.
    """
    tokens, top_k = chosen.shape
    inner = down.shape[1]
    if tokens * top_k <= down.shape[0]:
        rows = []
        for token in range(tokens):
            for j in range(top_k):
                number = chosen[token, j : j + 1]  # one expert, known when it runs
                both = gate_up.index_select(0, number)[0]
                gate, up = both[:, :inner].contiguous(), both[:, inner:].contiguous()
                rows.append(
                    expert_mlp(x[token : token + 1], gate, up, down.index_select(0, number)[0])
                )
        return torch.cat(rows).view(tokens, top_k, -1)
    outputs = x.new_zeros(tokens, top_k, x.shape[1])
    for expert in range(down.shape[0]):
        gate, up = gate_up[expert, :, :inner].contiguous(), gate_up[expert, :, inner:].contiguous()
        mine = (chosen == expert)[..., None]
        outputs = torch.where(mine, expert_mlp(x, gate, up, down[expert])[:, None], outputs)
    return outputs


def moe_layer(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    eps: float = 1e-6,
    top_k: int = 8,
    normalise: bool = True,
    **parts: Any,
) -> torch.Tensor:
    """Norm, router, chosen experts and their sum; `parts` are those of `experts`."""
    normed = rmsnorm(x, norm_weight, eps)
    weights, chosen = router(normed, router_weight, top_k, normalise)
    return experts(normed, weights, chosen, gate_up, down, **parts)
