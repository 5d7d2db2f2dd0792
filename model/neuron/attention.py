"""NxD Inference's Qwen3-MoE attention, its decoder norms and its head, with kernels in place.

Shapes: B sequences, S tokens, N query heads and K key heads of this rank, D head dimension, L
cache length, H hidden. NxD Inference keeps heads in front (B, heads, S, D), the ops tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.neuron.kernels_in_graph import GraphKernels, transpose_weight
from model.neuron.nxd import (
    ColumnParallelLinear,
    FlashAttentionStrategy,
    NeuronQwen3MoEAttention,
    reduce_from_tensor_model_parallel_region,
    repeat_kv,
)

QKV_OPS = ("qkv_proj", "norm_qkv_proj", "attention_block_decode")
"""Ops that take q's, k's and v's weights as one, [H, (N + 2 K) D]."""
OUTPUT_OPS = ("o_proj", "o_proj_add", "attention_block_decode")
"""Ops that take the output projection's weight as [N D, H]."""


class KernelRMSNorm(nn.Module):
    """RMS normalisation by the op `rmsnorm`; NxD Inference's own reads weight and epsilon here."""

    def __init__(self, stock: nn.Module, eps: float, kernels: GraphKernels) -> None:
        super().__init__()
        self.weight = stock.weight
        self.variance_epsilon = eps
        self.kernels = kernels

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return self.kernels("rmsnorm", hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-any-return]


class KernelLMHead(ColumnParallelLinear):  # type: ignore[misc]
    """The head by `lm_head`, or by `norm_lm_head` with the model's last norm in it."""

    kernels: GraphKernels
    last_norm: list[nn.Module]
    """Of one item: not a sub-module, its weight belongs to the model."""
    eps: float

    def forward(self, input: Tensor, *_: Any) -> Tensor:
        """Hidden states [B, S, H] -> logits [B, S, V], of this rank unless it gathers."""
        rows = input.reshape(-1, input.shape[-1])
        if "norm_lm_head" in self.kernels:
            weight = self.last_norm[0].weight
            logits = self.kernels("norm_lm_head", rows, weight, self.weight, self.eps)
        else:
            logits = self.kernels("lm_head", rows, self.weight)
        return self._cpl_maybe_gather_output(logits.view(*input.shape[:-1], -1))  # type: ignore[no-any-return]


class KernelAttention(NeuronQwen3MoEAttention):  # type: ignore[misc]
    """Projections, QK norm, RoPE and attention of both graphs, by the ops that are filled."""

    kernels: GraphKernels
    residual: Tensor | None
    """What the output projection adds, if it does."""

    def take(self, kernels: GraphKernels) -> None:
        """Use the kernels, with weights in their layout."""
        self.kernels = kernels
        self.residual = None
        self.transposed_qkv = kernels.any_of(*QKV_OPS)
        self.transposed_output = kernels.any_of(*OUTPUT_OPS)
        if self.transposed_qkv:
            transpose_weight(self.qkv_proj.Wqkv)
        if self.transposed_output:
            transpose_weight(self.o_proj.o_proj)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_value: Any = None,
        **kwargs: Any,
    ) -> Any:
        """(attended [B, S, H], (k, v), cos, sin), as NxD Inference's own."""
        if past_key_value is not None and "attention_block_decode" in self.kernels:
            tables = (kwargs.get("cos_cache"), kwargs.get("sin_cache"))
            norm = kwargs["rmsnorm"]
            return self._block(hidden_states, norm, position_ids, past_key_value, tables)
        return super().forward(
            hidden_states, attention_mask, position_ids, past_key_value, **kwargs
        )

    def _block(
        self, hidden_states: Tensor, norm: nn.Module, positions: Any, caches: Any, tables: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
        """From the norm to the output projection of one token per sequence, by one kernel.

        As in `compute_for_token_gen`, the kernel's writes go to copies. NxD Inference wants the
        new key and value: they are the caches' rows at the new token's position. `tables` are
        rows for all positions, [L, D] each, made in the first layer.
        """
        lengths = positions.to(torch.int32).reshape(-1, 1)
        count, width = caches[0].shape[2:]
        cos, sin = tables
        if cos is None or sin is None:
            rows = torch.arange(count, device=hidden_states.device)[None]
            cos, sin = (table[0] for table in self.rotary_emb(hidden_states, rows))
        weights = (norm.weight, self.qkv_proj.Wqkv.weight)
        norms = (self.q_layernorm.weight, self.k_layernorm.weight)
        part, *written = self.kernels(
            "attention_block_decode",
            hidden_states[:, 0],
            *(*weights, *norms, cos, sin, caches[0].clone(), caches[1].clone()),
            *(lengths, self.o_proj.o_proj.weight, self.rms_norm_eps),
        )
        index = lengths.to(torch.long)[:, :, None, None].expand(-1, written[0].shape[1], 1, width)
        new = (written[0].gather(2, index), written[1].gather(2, index))
        return self._reduce(part[:, None]), new, cos, sin

    # --- projections, QK norm, RoPE ---------------------------------------------------------

    def prep_qkv_tensors(
        self,
        position_ids: Tensor,
        hidden_states: Tensor,
        past_key_value: Any,
        adapter_ids: Any = None,
        cos_cache: Tensor | None = None,
        sin_cache: Tensor | None = None,
        rmsnorm: nn.Module | None = None,
        skip_rope: bool = False,
        residual: Tensor | None = None,
        use_polar_compatible_rope: bool = False,
    ) -> tuple[Any, ...]:
        """(q, k, v, cos, sin, residual): q [B, N, S, D], k and v [B, K, S, D]."""
        batch, count, _ = hidden_states.shape
        q, k, v = self._project(hidden_states, rmsnorm, adapter_ids)
        q = q.view(batch, count, self.num_heads, self.head_dim)
        k = k.view(batch, count, self.num_key_value_heads, self.head_dim)
        v = v.view(batch, count, self.num_key_value_heads, self.head_dim)
        if "qk_norm" in self.kernels:
            weights = (self.q_layernorm.weight, self.k_layernorm.weight)
            q, k = self.kernels("qk_norm", q, k, *weights, self.rms_norm_eps)
        else:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        if "rope" in self.kernels:
            if cos_cache is None or sin_cache is None:
                cos_cache, sin_cache = self.rotary_emb(v, position_ids)
            q, k = self._rotate(q, k, cos_cache, sin_cache)
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        if "rope" not in self.kernels:
            q, k, cos_cache, sin_cache = self.apply_rotary_embedding(
                q, k, v, position_ids, cos_cache, sin_cache, use_polar_compatible_rope
            )
        return q, k, v, cos_cache, sin_cache, residual

    def _project(
        self, hidden_states: Tensor, norm: nn.Module | None, adapter_ids: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of this rank, [B, S, width] each."""
        width = self.num_key_value_heads * self.head_dim
        if norm is not None and "norm_qkv_proj" in self.kernels:
            weights = (norm.weight, self.qkv_proj.Wqkv.weight)
            return self.kernels(  # type: ignore[no-any-return]
                "norm_qkv_proj", hidden_states, *weights, width, self.rms_norm_eps
            )
        if norm is not None:
            hidden_states = norm(hidden_states)
        if "qkv_proj" in self.kernels:
            return self.kernels("qkv_proj", hidden_states, self.qkv_proj.Wqkv.weight, width)  # type: ignore[no-any-return]
        if self.transposed_qkv:
            product = hidden_states @ self.qkv_proj.Wqkv.weight
            q, k, v = product.tensor_split((product.shape[-1] - 2 * width, -width), dim=-1)
        else:
            q, k, v, _ = self.get_qkv_proj()(hidden_states=hidden_states, adapter_ids=adapter_ids)
        return q, k, v

    def _rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """RoPE of q [B, S, N, D] and k; cos and sin [B, S, D] are the tokens' own rows."""
        batch, count = q.shape[:2]
        offsets = None  # one sequence starts at the table's first row
        if batch > 1:
            offsets = torch.arange(batch, dtype=torch.int32, device=q.device)[:, None] * count
        rows = (cos.reshape(batch * count, -1), sin.reshape(batch * count, -1))
        return self.kernels("rope", q, k, *rows, offsets)  # type: ignore[no-any-return]

    # --- attention --------------------------------------------------------------------------

    def perform_prefill(
        self, Q: Tensor, K: Tensor, V: Tensor, q_len: int, bsz: int, attention_mask: Tensor
    ) -> tuple[Tensor, Any]:
        """Causal attention of whole prompts: [B, N, S, D], and the strategy that says so.

        Prompts are padded on the right, so no valid token sees a pad.
        """
        if "attention_prefill" in self.kernels:
            q, k, v = (x.transpose(1, 2).contiguous() for x in (Q, K, V))
            mixed = self.kernels("attention_prefill", q, k, v).transpose(1, 2)
            return mixed, FlashAttentionStrategy.NONE
        if "softmax" in self.kernels:
            keys = repeat_kv(K, self.num_key_value_groups)
            scores = self.scaled_qk(Q, keys, attention_mask)
            weights = self.kernels("softmax", scores.to(torch.float32)).to(Q.dtype)
            mixed = torch.matmul(weights, repeat_kv(V, self.num_key_value_groups))
            return mixed, FlashAttentionStrategy.NONE
        return super().perform_prefill(Q, K, V, q_len, bsz, attention_mask)  # type: ignore[no-any-return]

    def compute_for_token_gen(
        self,
        Q: Tensor,
        K: Tensor,
        V: Tensor,
        position_ids: Tensor,
        past_key_value: Any,
        attention_mask: Tensor,
        active_mask: Tensor | None,
        is_prefix_caching: bool = False,
    ) -> Tensor:
        """Attention of one token per sequence over the cache and itself: [B, N, 1, D]."""
        if "attention_decode" in self.kernels:
            # The kernel also writes k and v into the caches it is given. NxD Inference writes
            # them later, to its own; what the kernel gets are copies, whose writes are dropped.
            caches = (past_key_value[0].clone(), past_key_value[1].clone())
            lengths = position_ids.to(torch.int32).reshape(-1, 1)
            new = (Q[:, :, 0], K[:, :, 0], V[:, :, 0])
            return self.kernels("attention_decode", *new, *caches, lengths)[0].unsqueeze(2)  # type: ignore[no-any-return]
        if "softmax" in self.kernels:
            keys = torch.cat([past_key_value[0], K], dim=2)
            values = torch.cat([past_key_value[1], V], dim=2)
            scores = torch.matmul(Q, repeat_kv(keys, self.num_key_value_groups).transpose(2, 3))
            mask = nn.functional.pad(attention_mask, (0, 1), value=True)
            lowest = torch.finfo(scores.dtype).min
            scores = torch.where(mask, scores / self.softmax_scale, lowest)
            weights = self.kernels("softmax", scores.to(torch.float32)).to(Q.dtype)
            return torch.matmul(weights, repeat_kv(values, self.num_key_value_groups))
        return super().compute_for_token_gen(  # type: ignore[no-any-return]
            Q, K, V, position_ids, past_key_value, attention_mask, active_mask, is_prefix_caching
        )

    # --- output projection ------------------------------------------------------------------

    def get_o_proj(self) -> Any:
        """The output projection, a callable."""
        if self.transposed_output:
            return self._output
        return super().get_o_proj()

    def _output(self, mixed: Tensor, adapter_ids: Any = None) -> Tensor:
        """[B, S, N * D] -> [B, S, H], summed over ranks; with `residual` added if it is set.

        Every rank adds its part of the residual; parts of a power of two are exact.
        """
        group = self.o_proj.tensor_model_parallel_group
        weight = self.o_proj.o_proj.weight
        if self.residual is not None:
            part = self.residual if group.size() == 1 else self.residual / group.size()
            product = self.kernels("o_proj_add", mixed, weight, part)
        elif "o_proj" in self.kernels:
            product = self.kernels("o_proj", mixed, weight)
        else:
            product = mixed @ weight
        return self._reduce(product)

    def _reduce(self, part: Tensor) -> Tensor:
        group = self.o_proj.tensor_model_parallel_group
        return reduce_from_tensor_model_parallel_region(part, process_group=group)  # type: ignore[no-any-return]


def head_with_kernel(head: Any, last_norm: nn.Module, eps: float, kernels: GraphKernels) -> None:
    """Make NxD Inference's head call the kernel, with its weight in the kernel's layout."""
    head.__class__ = KernelLMHead
    head.kernels = kernels
    head.eps = eps
    head.last_norm = [last_norm]
    transpose_weight(head)
