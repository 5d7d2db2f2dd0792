"""The PyTorch references of the norms, softmax and SiLU, with `transformers`' rounding.

float64 is taken as well, and gives the exact result.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS normalisation over the last dimension; x [..., hidden], weight [hidden]."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)
    return weight * values.to(x.dtype)


def qk_norm(
    q: torch.Tensor, k: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS normalisation per head; q and k [batch, tokens, heads, head_dim]."""
    return rmsnorm(q, q_weight, eps), rmsnorm(k, k_weight, eps)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, computed in fp32 or more, of x's dtype."""
    precision = torch.promote_types(x.dtype, torch.float32)
    return functional.softmax(x, dim=-1, dtype=precision).to(x.dtype)


def silu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(x)."""
    return functional.silu(x)
