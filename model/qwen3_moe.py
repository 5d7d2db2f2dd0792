"""Qwen3-MoE in PyTorch, with static shapes and a KV cache; every op goes through the op table.

Two graphs, as Neuron compiles them: `context_encoding` runs whole prompts, padded to a
bucket; `token_generation` runs one token per sequence against the cache.

Shapes: B sequences, S tokens, L cache length, H hidden, N query heads, K key/value heads,
D head dimension, E experts, k chosen experts, I expert width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.checkpoint import LayerWeights, ModelConfig, Weights
from model.ops import Ops


@dataclass
class Cache:
    """Keys and values of every layer: [B, K, L, D] each."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, length: int, dtype: torch.dtype) -> Cache:
        """A cache of zeros for `batch` sequences of up to `length` tokens."""
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        layers = range(config.num_hidden_layers)
        return cls(
            [torch.zeros(shape, dtype=dtype) for _ in layers],
            [torch.zeros(shape, dtype=dtype) for _ in layers],
        )


class Qwen3Moe:
    """The model: weights, op table, and the two graphs."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops):
        """Weights give the dtype the model runs in."""
        self.config = config
        self.weights = weights
        self.ops = ops
        self.dtype = weights.embedding.dtype

    def context_encoding(self, tokens: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
        """Run whole prompts and fill the cache.

        Args:
            tokens: int64 [B, S], padded on the right to the bucket.
            lengths: int64 [B], valid tokens of each prompt.
            cache: written at positions 0 to S - 1.

        Returns:
            Final hidden states [B, S, H]; those beyond a prompt's length mean nothing.
        """
        self.ops.enter("context_encoding")
        batch, count = tokens.shape
        positions = torch.arange(count).expand(batch, count)
        allowed = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
        real = torch.arange(count) < lengths[:, None]
        mask = self._mask(allowed & real[:, None, None, :])
        return self._layers(tokens, positions, mask, cache)

    def token_generation(self, tokens: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Run one token per sequence.

        Args:
            tokens: int64 [B, 1].
            positions: int64 [B], where each token stands; the cache holds all before it.
            cache: written at `positions`.

        Returns:
            Final hidden states [B, 1, H].
        """
        self.ops.enter("token_generation")
        length = cache.keys[0].shape[2]
        allowed = torch.arange(length) <= positions[:, None]
        mask = self._mask(allowed[:, None, None, :])
        return self._layers(tokens, positions[:, None], mask, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head: hidden [..., H] -> fp32 [..., V]."""
        return functional.linear(hidden, self.weights.head).to(torch.float32)

    def _mask(self, allowed: Tensor) -> Tensor:
        """0 where attention is allowed, the dtype's lowest number elsewhere."""
        lowest = torch.finfo(self.dtype).min
        return torch.zeros(allowed.shape, dtype=self.dtype).masked_fill_(~allowed, lowest)

    def _layers(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        eps = self.config.rms_norm_eps
        rotation = self._rotation(positions)
        hidden = self.weights.embedding[tokens]
        for index, layer in enumerate(self.weights.layers):
            normed = self.ops.rmsnorm(hidden, layer.input_norm, eps)
            hidden = hidden + self._attention(
                layer, normed, positions, rotation, mask, cache, index
            )
            normed = self.ops.rmsnorm(hidden, layer.post_attention_norm, eps)
            hidden = hidden + self._experts(layer, normed)
        return self.ops.rmsnorm(hidden, self.weights.norm, eps)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """RoPE's cos and sin for positions [B, S], each [B, S, 1, D]."""
        half = torch.arange(0, self.config.head_dim, 2, dtype=torch.int64).to(torch.float32)
        frequencies = 1.0 / (self.config.rope_theta ** (half / self.config.head_dim))
        angles = positions[..., None].to(torch.float32) * frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, :, None, :]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _attention(
        self,
        layer: LayerWeights,
        x: Tensor,
        positions: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: Cache,
        index: int,
    ) -> Tensor:
        """Grouped-query attention of x [B, S, H] with QK norm and RoPE."""
        batch, count, _ = x.shape
        q = functional.linear(x, layer.q).view(batch, count, -1, self.config.head_dim)
        k = functional.linear(x, layer.k).view(batch, count, -1, self.config.head_dim)
        v = functional.linear(x, layer.v).view(batch, count, -1, self.config.head_dim)
        q, k = self.ops.qk_norm(q, k, layer.q_norm, layer.k_norm, self.config.rms_norm_eps)
        q, k = rotate(q, rotation), rotate(k, rotation)
        keys, values = cache.keys[index], cache.values[index]
        if mask.shape[-1] == count:  # context encoding: the prompt is all there is
            keys[:, :, :count] = k.transpose(1, 2)
            values[:, :, :count] = v.transpose(1, 2)
            keys, values = keys[:, :, :count], values[:, :, :count]
        else:
            rows = torch.arange(batch)
            keys[rows, :, positions[:, 0]] = k[:, 0]
            values[rows, :, positions[:, 0]] = v[:, 0]
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        keys = keys.repeat_interleave(group, dim=1)
        values = values.repeat_interleave(group, dim=1)
        scores = q.transpose(1, 2) @ keys.transpose(2, 3) * self.config.head_dim**-0.5 + mask
        weights = self.ops.softmax(scores.to(torch.float32)).to(self.dtype)
        mixed = (weights @ values).transpose(1, 2).reshape(batch, count, -1)
        return functional.linear(mixed, layer.o)

    def _experts(self, layer: LayerWeights, x: Tensor) -> Tensor:
        """Mixture of experts: the top k of E by softmax, weights normalised over the k."""
        flat = x.reshape(-1, x.shape[-1])
        probabilities = self.ops.softmax(functional.linear(flat, layer.router).to(torch.float32))
        weights, chosen = probabilities.topk(self.config.num_experts_per_tok, dim=-1)
        if self.config.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(self.dtype)

        order = chosen.flatten().argsort(stable=True)  # tokens grouped by expert
        tokens = order // self.config.num_experts_per_tok
        ends = chosen.flatten().bincount(minlength=self.config.num_experts).cumsum(0).tolist()
        spans = [
            (expert, start, end)
            for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
            if end > start
        ]
        grouped = flat[tokens]
        gate = torch.cat([functional.linear(grouped[a:b], layer.gate[e]) for e, a, b in spans])
        up = torch.cat([functional.linear(grouped[a:b], layer.up[e]) for e, a, b in spans])
        inner = self.ops.silu(gate) * up
        down = torch.cat([functional.linear(inner[a:b], layer.down[e]) for e, a, b in spans])
        down = down * weights.flatten()[order][:, None]
        return torch.zeros_like(flat).index_add_(0, tokens, down).view_as(x)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE on x [B, S, heads, D]: x * cos + (-second half, first half) * sin."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
