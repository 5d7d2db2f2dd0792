"""Where each op's kernel takes the place of NxD Inference's own computation, as data.

`tests/model_neuron` compare this table with the adapter's source, and with what is called when
NxD Inference's real source runs.
"""

from __future__ import annotations

from typing import NamedTuple

from model.records import Graph

BOTH: tuple[Graph, ...] = ("context_encoding", "token_generation")
ENCODING: tuple[Graph, ...] = ("context_encoding",)
GENERATION: tuple[Graph, ...] = ("token_generation",)


class Hook(NamedTuple):
    """One op's place."""

    method: str
    """Our method that calls the kernel, `module.Class.method`."""
    replaces: str
    """What of NxD Inference it overrides or stands for."""
    graphs: tuple[Graph, ...]
    """Where it is called."""
    unless: tuple[str, ...] = ()
    """Ops that, filled as well, take its whole place."""


HOOKS: dict[str, Hook] = {
    "rmsnorm": Hook(
        "attention.KernelRMSNorm.forward",
        "input_layernorm, post_attention_layernorm, norm",
        BOTH,
    ),
    "add_rmsnorm": Hook(
        "modeling.KernelDecoderLayer._experts",
        "the sum and norm behind the attention, NeuronQwen3MoeDecoderLayer.forward",
        BOTH,
    ),
    "qk_norm": Hook(
        "attention.KernelAttention.prep_qkv_tensors",
        "q_layernorm and k_layernorm in move_heads_front",
        BOTH,
    ),
    "rope": Hook(
        "attention.KernelAttention._rotate", "NeuronAttentionBase.apply_rotary_embedding", BOTH
    ),
    "qkv_proj": Hook(
        "attention.KernelAttention._project",
        "GroupQueryAttention_QKV.forward (fused_qkv)",
        BOTH,
        unless=("norm_qkv_proj",),
    ),
    "norm_qkv_proj": Hook(
        "attention.KernelAttention._project",
        "input_layernorm and GroupQueryAttention_QKV.forward (fused_qkv)",
        BOTH,
    ),
    "attention_prefill": Hook(
        "attention.KernelAttention.perform_prefill",
        "NeuronAttentionBase.perform_prefill",
        ENCODING,
    ),
    "attention_decode": Hook(
        "attention.KernelAttention.compute_for_token_gen",
        "NeuronAttentionBase.compute_for_token_gen",
        GENERATION,
    ),
    "attention_block_decode": Hook(
        "attention.KernelAttention._block",
        "input_layernorm and NeuronAttentionBase.forward, up to its all-reduce",
        GENERATION,
    ),
    "o_proj": Hook(
        "attention.KernelAttention._output",
        "GroupQueryAttention_O.forward, up to its all-reduce",
        BOTH,
        unless=("o_proj_add",),
    ),
    "o_proj_add": Hook(
        "attention.KernelAttention._output",
        "GroupQueryAttention_O.forward and the residual sum",
        BOTH,
        unless=("add_rmsnorm",),
    ),
    "router": Hook(
        "moe.KernelRouter.choose", "RouterTopK.forward", BOTH, unless=("experts_decode",)
    ),
    "expert_mlp": Hook(
        "moe.KernelMoE._mlps",
        "Experts.forward in ExpertMLPsV2",
        BOTH,
        unless=("experts_prefill", "experts_decode"),
    ),
    "expert_aggregate": Hook(
        "moe.KernelMoE._aggregate",
        "the weighted sum in ExpertMLPsV2",
        BOTH,
        unless=("experts_prefill", "experts_decode"),
    ),
    "experts_prefill": Hook(
        "moe.KernelMoE._forward_compute_bound", "ExpertMLPsV2.forward", ENCODING
    ),
    "experts_decode": Hook(
        "moe.KernelMoE.decode",
        "post_attention_layernorm and MoE.forward, up to its all-reduce",
        GENERATION,
    ),
    "lm_head": Hook(
        "attention.KernelLMHead.forward",
        "ColumnParallelLinear.forward of lm_head, up to its all-gather",
        BOTH,
        unless=("norm_lm_head",),
    ),
    "norm_lm_head": Hook(
        "attention.KernelLMHead.forward", "norm and lm_head, up to its all-gather", BOTH
    ),
    "softmax": Hook(
        "attention.KernelAttention.perform_prefill",
        "softmax in attention (manual_softmax when decoding) and in RouterBase.apply_activation_fn",
        BOTH,
    ),
    "silu": Hook("moe.KernelMoE.take", "Experts._activation_fn", BOTH),
}
