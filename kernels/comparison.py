"""How far a kernel's results are from its op's reference, on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TIES = {torch.float32: 1e-5, torch.bfloat16: 2**-5}
"""Relative distance of two experts' probabilities within which a router may take either. In bf16
the router's input alone is off by 2**-9, and a probability by as much times the logit."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| / max |expected|; inf if shapes differ or it is not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    wanted = expected.to(torch.float64)
    error = (actual.to(torch.float64) - wanted).abs().max().item()
    largest = wanted.abs().max().item()
    relative = float(error / largest) if largest > 0 else (0.0 if error == 0 else float("inf"))
    return relative if relative == relative else float("inf")


def largest_error(actual: Any, expected: Any, arguments: Sequence[Any]) -> float:
    """The worst `relative_error` of the results."""
    del arguments
    results = actual if isinstance(actual, tuple) else (actual,)
    references = expected if isinstance(expected, tuple) else (expected,)
    if len(results) != len(references):
        return float("inf")
    return max(relative_error(a, b) for a, b in zip(results, references, strict=True))


def router_error(
    actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], arguments: Sequence[Any]
) -> float:
    """The weights' error, or how much less likely a chosen expert is than one left out.

    Which of two equally good experts is taken is left open, so the choice is not compared with
    the reference's but judged by the probabilities.
    """
    weights, chosen = actual
    x, router_weight, top_k, normalise = arguments
    if weights.shape != expected[0].shape or chosen.shape != expected[1].shape:
        return float("inf")
    probabilities = (x.double() @ router_weight.double()).softmax(-1)
    numbers = chosen.long()
    experts = probabilities.shape[-1]
    distinct = (numbers.sort(-1).values.diff(dim=-1) > 0).all()
    if not distinct or int(numbers.min()) < 0 or int(numbers.max()) >= experts:
        return float("inf")
    found = probabilities.gather(-1, numbers)
    best = probabilities.topk(top_k, dim=-1).values
    lost = float(((best - found.sort(-1, descending=True).values) / best).max())
    shares = found / found.sum(-1, keepdim=True) if normalise else found
    return max(relative_error(weights, shares), lost)


def experts_decode_error(actual: Tensor, expected: Tensor, arguments: Sequence[Any]) -> float:
    """`relative_error` over the tokens whose choice of experts is clear (`TIES`)."""
    if actual.shape != expected.shape:
        return float("inf")
    x, norm_weight, router_weight, _, _, eps, top_k, _ = arguments
    clear = clearly_routed(x, norm_weight, router_weight, eps, top_k)
    if not torch.isfinite(actual).all():
        return float("inf")
    return relative_error(actual[clear], expected[clear]) if clear.any() else 0.0


def clearly_routed(
    x: Tensor, norm_weight: Tensor, router_weight: Tensor, eps: float, top_k: int
) -> Tensor:
    """For each token of x [tokens, hidden], whether its last expert is clearly the next best."""
    values = x.double()
    normed = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps) * norm_weight
    probabilities = (normed @ router_weight.double()).softmax(-1)
    if top_k == probabilities.shape[-1]:
        return torch.ones(len(x), dtype=torch.bool)
    best = probabilities.topk(top_k + 1, dim=-1).values
    return (best[:, -2] - best[:, -1]) / best[:, -2] > TIES.get(x.dtype, 2**-5)
