"""The PyTorch references of RoPE, the projections, the head and attention.

They round where the model rounds, and take float64 as well, which gives the exact result.
Keyword-only arguments are parts, e.g. `softmax`: ops of their own, which a kernel may fill.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.reference import qk_norm, rmsnorm, softmax

Rows = Callable[..., torch.Tensor]
"""A part: an op that gives one tensor."""


def add_rmsnorm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    rmsnorm: Rows = rmsnorm,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of x + residual, x + residual)."""
    total = x + residual
    return rmsnorm(total, weight, eps), total


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
    normed = x if norm_weight is None else rmsnorm(x, norm_weight, eps)
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
    normed = x if norm_weight is None else rmsnorm(x, norm_weight, eps)
    return normed @ scaled(weight, scale, x.dtype)


def scaled(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """An fp8 weight times its columns' scales; any other weight as it is."""
    return weight if scale is None else weight.to(dtype) * scale.to(dtype)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = True,
    *,
    softmax: Rows = softmax,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, each key head serving heads / key heads queries.

    Args:
        q: [batch, tokens, heads, head_dim].
        k: [batch, tokens, key heads, head_dim].
        v: [batch, tokens, key heads, head_dim].
        causal: token t sees tokens 0 to t.
        softmax: a part.
    """
    tokens = q.shape[1]
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) if causal else None
    return _attend(q, k.transpose(1, 2), v.transpose(1, 2), later, softmax)


def chunk_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    start: torch.Tensor,
    *,
    softmax: Rows = softmax,
) -> torch.Tensor:
    """Causal attention of some tokens of each sequence to a cache that holds them already.

    Args:
        q: [batch, tokens, heads, head_dim].
        k_cache: [batch, key heads, positions, head_dim].
        v_cache: as k_cache.
        start: [batch, 1], the position of each sequence's first token.
        softmax: a part.
    """
    own = start.long() + torch.arange(q.shape[1])
    later = torch.arange(k_cache.shape[2]) > own[:, :, None]
    return _attend(q, k_cache, v_cache, later[:, None, None], softmax)


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    softmax: Rows = softmax,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `decode_attention_in_place`, on copies of the caches."""
    return decode_attention_in_place(
        q, k, v, k_cache.clone(), v_cache.clone(), lengths, softmax=softmax
    )


def decode_attention_in_place(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    softmax: Rows = softmax,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One new token of each sequence: (attention's result, both caches with the token in them).

    Args:
        q: [batch, heads, head_dim].
        k: [batch, key heads, head_dim], the new token's.
        v: [batch, key heads, head_dim].
        k_cache: [batch, key heads, positions, head_dim]; written at each sequence's length.
        v_cache: as k_cache.
        lengths: [batch, 1], how many positions of the caches are filled.
        softmax: a part.
    """
    rows = torch.arange(q.shape[0])
    k_cache[rows, :, lengths[:, 0].long()] = k
    v_cache[rows, :, lengths[:, 0].long()] = v
    later = torch.arange(k_cache.shape[2]) > lengths
    out = _attend(q[:, None], k_cache, v_cache, later[:, None, None, None], softmax)
    return out[:, 0], k_cache, v_cache


def _attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor | None,
    softmax: Rows,
) -> torch.Tensor:
    """Attention of q [batch, tokens, heads, head_dim] to keys [batch, key heads, n, head_dim].

    Keys are hidden where `hidden`, which spreads to [batch, key heads, group, tokens, n], is true.
    """
    batch, tokens, heads, width = q.shape
    groups = keys.shape[1]
    queries = q.transpose(1, 2).reshape(batch, groups, heads // groups, tokens, width)
    scores = queries @ keys[:, :, None].transpose(3, 4) * width**-0.5
    if hidden is not None:  # a number, as -inf is no value that every kernel takes
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    precision = torch.promote_types(q.dtype, torch.float32)
    weights = softmax(scores.to(precision)).to(q.dtype)
    mixed = weights @ values[:, :, None]
    return mixed.reshape(batch, heads, tokens, width).transpose(1, 2)


def attention_block_decode(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    qkv_weight: torch.Tensor,
    q_norm_weight: torch.Tensor,
    k_norm_weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    o_weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One new token of each sequence, x [batch, hidden], from the norm to the output projection.

    Returns:
        (what the block adds to the residual stream, k_cache, v_cache); the caches are written at
        each sequence's length.
    """
    batch, groups, _, width = k_cache.shape
    q, k, v = qkv_projection(x, qkv_weight, groups * width, norm_weight, None, eps)
    queries, keys = q.reshape(batch, 1, -1, width), k.reshape(batch, 1, groups, width)
    queries, keys = qk_norm(queries, keys, q_norm_weight, k_norm_weight, eps)
    queries, keys = rope(queries, keys, cos, sin, lengths)
    mixed, _, _ = decode_attention_in_place(
        queries[:, 0], keys[:, 0], v.reshape(batch, groups, width), k_cache, v_cache, lengths
    )
    return output_projection(mixed.flatten(1), o_weight), k_cache, v_cache
