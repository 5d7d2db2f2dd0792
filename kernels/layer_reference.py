"""The PyTorch references of RoPE, the projections, the head and attention.

They round where the model rounds, and take float64 as well, which gives the exact result.
"""

from __future__ import annotations

import torch


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """RMS normalisation over the last dimension, in fp32 or more."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)
    return weight * values.to(x.dtype)


def add_rmsnorm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of x + residual, x + residual)."""
    total = x + residual
    return norm(total, weight, eps), total


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(a, b) -> (-b, a), of the halves of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    offsets: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated q and k.

    Args:
        q: [batch, tokens, heads, head_dim].
        k: [batch, tokens, key heads, head_dim].
        cos: [positions, head_dim].
        sin: [positions, head_dim].
        offsets: None, or [batch, 1]: the position of each sequence's first token.
    """
    batch, tokens = q.shape[:2]
    start = torch.zeros(batch, 1, dtype=torch.long) if offsets is None else offsets.long()
    positions = start + torch.arange(tokens)
    c, s = cos[positions][:, :, None], sin[positions][:, :, None]
    return q * c + rotate_half(q) * s, k * c + rotate_half(k) * s


def qkv_projection(
    x: torch.Tensor,
    weight: torch.Tensor,
    kv_width: int,
    norm_weight: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, ...]:
    """(q, k, v): columns of norm(x) @ weight; weight [hidden, q width + 2 * kv_width]."""
    normed = x if norm_weight is None else norm(x, norm_weight, eps)
    product = normed @ scaled(weight, scale, x.dtype)
    widths = [weight.shape[1] - 2 * kv_width, kv_width, kv_width]
    return product.split(widths, dim=-1)  # type: ignore[no-any-return, no-untyped-call]


def output_projection(
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """x @ weight + residual."""
    product = x @ scaled(weight, scale, x.dtype)
    return product if residual is None else product + residual


def lm_head(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Logits: norm(x) @ weight."""
    normed = x if norm_weight is None else norm(x, norm_weight, eps)
    return normed @ scaled(weight, scale, x.dtype)


def scaled(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """An fp8 weight times its columns' scales; any other weight as it is."""
    return weight if scale is None else weight.to(dtype) * scale.to(dtype)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = True
) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, each key head serving heads / key heads queries.

    Args:
        q: [batch, tokens, heads, head_dim].
        k: [batch, tokens, key heads, head_dim].
        v: [batch, tokens, key heads, head_dim].
        causal: token t sees tokens 0 to t.
    """
    groups = q.shape[2] // k.shape[2]
    queries = q.transpose(1, 2)
    keys = k.transpose(1, 2).repeat_interleave(groups, dim=1)
    values = v.transpose(1, 2).repeat_interleave(groups, dim=1)
    scores = queries @ keys.transpose(2, 3) * q.shape[-1] ** -0.5
    if causal:
        tokens = q.shape[1]
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    precision = torch.promote_types(q.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=precision).to(q.dtype)
    mixed: torch.Tensor = (weights @ values).transpose(1, 2)
    return mixed


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One new token of each sequence: (attention's result, both caches with the token in them).

    Args:
        q: [batch, heads, head_dim].
        k: [batch, key heads, head_dim], the new token's.
        v: [batch, key heads, head_dim].
        k_cache: [batch, key heads, positions, head_dim].
        v_cache: as k_cache.
        lengths: [batch, 1], how many positions of the caches are filled.
    """
    batch, heads, width = q.shape
    groups = heads // k.shape[1]
    keys, values = k_cache.clone(), v_cache.clone()
    rows = torch.arange(batch)
    keys[rows, :, lengths[:, 0].long()] = k
    values[rows, :, lengths[:, 0].long()] = v
    queries = q.reshape(batch, k.shape[1], groups, width)
    scores = queries @ keys.transpose(2, 3) * width**-0.5
    later = torch.arange(keys.shape[2])[None] > lengths
    scores = scores.masked_fill(later[:, None, None], float("-inf"))
    precision = torch.promote_types(q.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=precision).to(q.dtype)
    return (weights @ values).reshape(q.shape), keys, values
