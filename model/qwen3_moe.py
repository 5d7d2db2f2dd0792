"""Qwen3-MoE in PyTorch, with static shapes and a KV cache; every op goes through the op table.

Two graphs, as Neuron compiles them: `context_encoding` runs whole prompts, padded to a bucket
(`chunk_encoding` a later part of them); `token_generation` runs one token per sequence against
the cache. An op that is several in one is called where a kernel fills it, its parts elsewhere.

Shapes: B sequences, S tokens, L cache length, H hidden, N query heads, K key/value heads,
D head dimension, E experts, k chosen experts, I expert width, V vocabulary. With tensor
parallelism N, K, I and V are one rank's, as the weights are, and collectives add up the ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoint import LayerWeights, ModelConfig, Weights
from model.ops import Ops

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""attend(layer, q [B, S, N, D], k [B, S, K, D], v) -> [B, S, N, D]; fills the cache."""
Pick = Callable[[Tensor], Tensor]
"""Which positions go to the head: [B, S, H] -> [..., H]."""


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

    def clear(self) -> None:
        """Zeros again: what an earlier prompt left must not reach a later one, were it NaN."""
        for tensor in (*self.keys, *self.values):
            tensor.zero_()


class Qwen3Moe:
    """The model: weights, op table, and the graphs. All of them return fp32 logits."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops, tp_degree: int = 1):
        """`config` and `weights` are one rank's; weights give the dtype the model runs in."""
        self.config = config
        self.weights = weights
        self.ops = ops
        self.tp_degree = tp_degree
        self.dtype = weights.embedding.dtype

    def context_encoding(
        self, tokens: Tensor, lengths: Tensor, cache: Cache, every: bool = False
    ) -> Tensor:
        """Run whole prompts and fill the cache.

        Args:
            tokens: int64 [B, S], padded on the right to the bucket.
            lengths: int32 [B, 1], valid tokens of each prompt.
            cache: written at positions 0 to S - 1; what is beyond a length means nothing.
            every: logits of every position, not of each prompt's last.

        Returns:
            [B, V], or [B, S, V] with `every`; those beyond a prompt's length mean nothing.
        """
        self.ops.enter("context_encoding")

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.ops.cache_write(cache.keys[index], k, None)
            self.ops.cache_write(cache.values[index], v, None)
            return self.ops.attention_prefill(q, k, v)

        return self._run(tokens, None, attend, False, _all if every else _last(lengths - 1))

    def chunk_encoding(
        self, tokens: Tensor, lengths: Tensor, start: Tensor, cache: Cache, every: bool = False
    ) -> Tensor:
        """Run the next S tokens of each prompt against what the cache holds of it.

        `attention_prefill` has no place for earlier keys, so whatever fills it, a later chunk's
        attention is the reference's (`attention_chunk`), by the softmax of the configuration.
        All other ops are those of context encoding.

        Args:
            tokens: int64 [B, S], padded on the right.
            lengths: int32 [B, 1], valid tokens among them.
            start: int32 [B, 1], how many tokens came before.
            cache: holds these; written at positions start to start + S - 1, which it must have.
            every: logits of every position, not of each chunk's last.

        Returns:
            As `context_encoding`.
        """
        self.ops.enter("context_encoding")

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[index], cache.values[index]
            self.ops.cache_write(keys, k, start)
            self.ops.cache_write(values, v, start)
            return self.ops.attention_chunk(q, keys, values, start)

        return self._run(tokens, start, attend, False, _all if every else _last(lengths - 1))

    def token_generation(self, tokens: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
        """Run one token per sequence.

        Args:
            tokens: int64 [B, 1].
            lengths: int32 [B, 1], how many tokens the cache holds of each sequence.
            cache: written at `lengths`.

        Returns:
            [B, V].
        """
        self.ops.enter("token_generation")

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[index], cache.values[index]
            out = self.ops.attention_decode(q[:, 0], k[:, 0], v[:, 0], keys, values, lengths)[0]
            return out[:, None]

        return self._run(tokens, lengths, attend, True, lambda hidden: hidden[:, 0], cache)

    def _run(
        self,
        tokens: Tensor,
        offsets: Tensor | None,
        attend: Attend,
        decode: bool,
        pick: Pick,
        cache: Cache | None = None,
    ) -> Tensor:
        """All layers and the head. The residual stream is `hidden` and an `update` to add to it.

        With a cache, one op may do all of a layer's attention.
        """
        hidden, update = self.ops.embedding(self.weights.embedding, tokens), None
        for index, layer in enumerate(self.weights.layers):
            self.ops.layer = index
            if cache is not None and self.ops.is_filled("attention_block_decode"):
                hidden = self._added(hidden, update)
                caches = (cache.keys[index], cache.values[index])
                update = self._attention_block(layer, hidden, caches, offsets)
            else:
                q, k, v, hidden = self._project(layer, hidden, update)
                q, k = self.ops.qk_norm(q, k, layer.q_norm, layer.k_norm, self.config.rms_norm_eps)
                q, k = self.ops.rope(q, k, self.weights.cos, self.weights.sin, offsets)
                mixed = attend(index, q, k, v).flatten(2)
                hidden, update = self._project_out(layer, mixed, hidden)
            hidden, update = self._experts(layer, hidden, update, decode)
        self.ops.layer = None
        return self._head(pick(hidden), pick(update) if update is not None else None)

    def _project(
        self, layer: LayerWeights, hidden: Tensor, update: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries [B, S, N, D], keys and values [B, S, K, D], and the residual stream."""
        kv_width = self.config.num_key_value_heads * self.config.head_dim
        eps = self.config.rms_norm_eps
        if self.ops.is_filled("norm_qkv_proj"):
            hidden = self._added(hidden, update)
            parts = self.ops.norm_qkv_proj(hidden, layer.input_norm, layer.qkv, kv_width, eps)
        else:
            normed, hidden = self._normed(hidden, update, layer.input_norm)
            parts = self.ops.qkv_proj(normed, layer.qkv, kv_width)
        q, k, v = (part.view(*part.shape[:2], -1, self.config.head_dim) for part in parts)
        return q, k, v, hidden

    def _attention_block(
        self,
        layer: LayerWeights,
        hidden: Tensor,
        caches: tuple[Tensor, Tensor],
        offsets: Tensor | None,
    ) -> Tensor:
        """One token of each sequence through norm, attention and output projection: an update."""
        weights = (layer.input_norm, layer.qkv, layer.q_norm, layer.k_norm)
        tables = (self.weights.cos, self.weights.sin)
        update = self.ops.attention_block_decode(
            hidden[:, 0], *weights, *tables, *caches, offsets, layer.o, self.config.rms_norm_eps
        )[0]
        return self._reduced(update[:, None])

    def _project_out(
        self, layer: LayerWeights, mixed: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Output projection: the residual stream, and what to add to it, if anything."""
        if self.ops.is_filled("o_proj_add"):
            return self._reduced(self.ops.o_proj_add(mixed, layer.o, hidden)), None
        return hidden, self._reduced(self.ops.o_proj(mixed, layer.o))

    def _experts(
        self, layer: LayerWeights, hidden: Tensor, update: Tensor | None, decode: bool
    ) -> tuple[Tensor, Tensor]:
        """Mixture of experts: the residual stream, and what to add to it."""
        config, eps = self.config, self.config.rms_norm_eps
        choice = (config.num_experts_per_tok, config.norm_topk_prob)
        if decode and self.ops.is_filled("experts_decode"):
            hidden = self._added(hidden, update)
            weights = (layer.post_attention_norm, layer.router, layer.gate_up, layer.down)
            outputs = self.ops.experts_decode(hidden.flatten(0, 1), *weights, eps, *choice)
        else:
            normed, hidden = self._normed(hidden, update, layer.post_attention_norm)
            x = normed.flatten(0, 1)
            shares, chosen = self.ops.router(x, layer.router, *choice)
            run = self.ops.experts if decode else self.ops.experts_prefill
            outputs = run(x, shares, chosen, layer.gate_up, layer.down)
        return hidden, self._reduced(outputs.view_as(hidden))

    def _head(self, hidden: Tensor, update: Tensor | None) -> Tensor:
        """The final norm and the head: fp32 logits [..., V]."""
        weights, eps = self.weights, self.config.rms_norm_eps
        if self.ops.is_filled("norm_lm_head"):
            x = self._added(hidden, update)
            logits = self.ops.norm_lm_head(x, weights.norm, weights.head, eps)
        else:
            logits = self.ops.lm_head(self._normed(hidden, update, weights.norm)[0], weights.head)
        if self.tp_degree > 1:
            logits = self.ops.all_gather(logits, self.tp_degree)
        return logits.to(torch.float32)

    def _normed(
        self, hidden: Tensor, update: Tensor | None, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The norm of the residual stream, and the stream."""
        eps = self.config.rms_norm_eps
        if update is None:
            return self.ops.rmsnorm(hidden, weight, eps), hidden
        return self.ops.add_rmsnorm(update, hidden, weight, eps)

    def _added(self, hidden: Tensor, update: Tensor | None) -> Tensor:
        return hidden if update is None else self.ops.add(hidden, update)

    def _reduced(self, x: Tensor) -> Tensor:
        """The sum over all ranks."""
        return x if self.tp_degree == 1 else self.ops.all_reduce(x, self.tp_degree)


def _all(hidden: Tensor) -> Tensor:
    return hidden


def _last(positions: Tensor) -> Pick:
    """Of each sequence the token at its position, [B, 1]."""

    def pick(hidden: Tensor) -> Tensor:
        return hidden[torch.arange(hidden.shape[0]), positions[:, 0].long()]

    return pick
