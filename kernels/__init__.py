"""NKI kernels, the ops they can fill, and which file holds which.

This module is data only, so that it can be read without importing a kernel.
"""

from __future__ import annotations

from typing import NamedTuple


class KernelInfo(NamedTuple):
    """Where a kernel is and which ops it can fill."""

    module: str
    ops: tuple[str, ...]

    @property
    def op(self) -> str:
        """The first of its ops, by whose contract it is tested alone."""
        return self.ops[0]


KERNELS: dict[str, KernelInfo] = {
    "nki_rmsnorm_kernel": KernelInfo("kernels.rmsnorm", ("rmsnorm",)),
    "nki_qk_rmsnorm_kernel": KernelInfo("kernels.qk_rmsnorm", ("qk_norm",)),
    "nki_softmax_kernel": KernelInfo("kernels.softmax", ("softmax",)),
    "nki_silu_kernel": KernelInfo("kernels.silu", ("silu",)),
    "nki_fused_add_rmsnorm_kernel": KernelInfo("kernels.add_rmsnorm", ("add_rmsnorm",)),
    "nki_rope_kernel": KernelInfo("kernels.rope", ("rope",)),
    "nki_qkv_projection_kernel": KernelInfo(
        "kernels.qkv_projection", ("qkv_proj", "norm_qkv_proj")
    ),
    "nki_output_projection_kernel": KernelInfo(
        "kernels.output_projection", ("o_proj", "o_proj_add")
    ),
    "nki_flash_attention_kernel": KernelInfo("kernels.flash_attention", ("attention_prefill",)),
    "nki_decode_attention_kernel": KernelInfo("kernels.decode_attention", ("attention_decode",)),
    "nki_attention_block_decode_kernel": KernelInfo(
        "kernels.attention_block", ("attention_block_decode",)
    ),
    "nki_expert_router_kernel": KernelInfo("kernels.router", ("router",)),
    "nki_fused_expert_mlp_kernel": KernelInfo("kernels.expert_mlp", ("expert_mlp",)),
    "nki_expert_aggregation_kernel": KernelInfo(
        "kernels.expert_aggregation", ("expert_aggregate",)
    ),
    "nki_moe_prefill_kernel": KernelInfo("kernels.moe_prefill", ("experts_prefill",)),
    "nki_moe_decode_kernel": KernelInfo("kernels.moe_decode", ("experts_decode",)),
    "nki_lm_head_kernel": KernelInfo("kernels.lm_head", ("lm_head", "norm_lm_head")),
}

OPS: dict[str, str] = {
    "softmax": "softmax over the last dimension, in fp32 (inside attention and router)",
    "silu": "x * sigmoid(x), the experts' gate activation (inside the experts)",
    "rmsnorm": "RMS normalisation over the hidden dimension (input, post-attention, final norm)",
    "add_rmsnorm": "the residual sum, and the RMS normalisation of it",
    "qk_norm": "RMS normalisation of queries and keys per head, before RoPE",
    "rope": "rotary position embedding of queries and keys",
    "qkv_proj": "queries, keys and values: one product",
    "norm_qkv_proj": "rmsnorm and qkv_proj in one",
    "attention_prefill": "causal attention of whole prompts (not of later chunks)",
    "attention_decode": "attention of one token per sequence to its cache, which it joins",
    "o_proj": "the attention's output projection",
    "o_proj_add": "o_proj and the residual sum in one",
    "attention_block_decode": "from rmsnorm to o_proj in one (token generation)",
    "router": "each token's best experts and their weights",
    "expert_mlp": "one expert's gated MLP on some tokens (inside the experts)",
    "expert_aggregate": "the weighted sum of a token's experts (inside the experts)",
    "experts_prefill": "the chosen experts of many tokens, and their sum (context encoding)",
    "experts_decode": "rmsnorm, router, chosen experts and their sum in one (token generation)",
    "lm_head": "logits over the vocabulary",
    "norm_lm_head": "the final rmsnorm and lm_head in one",
}
"""Op -> what it computes, parts before what is made of them. An op in one with others replaces
them where it is filled. References and signatures are in kernels/contracts.py."""
