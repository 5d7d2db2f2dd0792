"""The PyTorch reference of every op, with the rounding of `transformers`' Qwen3-MoE."""

from __future__ import annotations

import torch
from torch.nn import functional


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS normalisation over the last dimension; x [..., hidden], weight [hidden]."""
    values = x.to(torch.float32)
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)
    return weight * values.to(x.dtype)


def qk_norm(
    q: torch.Tensor, k: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS normalisation per head; q and k [batch, tokens, heads, head_dim]."""
    return rmsnorm(q, q_weight, eps), rmsnorm(k, k_weight, eps)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, computed in fp32, of x's dtype."""
    return functional.softmax(x, dim=-1, dtype=torch.float32).to(x.dtype)


def silu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(x)."""
    return functional.silu(x)
