"""NKI kernels, the ops they can fill, and which file holds which.

This module is data only, so that it can be read without importing a kernel.
"""

from __future__ import annotations

from typing import NamedTuple


class KernelInfo(NamedTuple):
    """Where a kernel is and which op it fills."""

    module: str
    op: str


KERNELS: dict[str, KernelInfo] = {
    "nki_rmsnorm_kernel": KernelInfo("kernels.rmsnorm", "rmsnorm"),
    "nki_qk_rmsnorm_kernel": KernelInfo("kernels.qk_rmsnorm", "qk_norm"),
    "nki_softmax_kernel": KernelInfo("kernels.softmax", "softmax"),
    "nki_silu_kernel": KernelInfo("kernels.silu", "silu"),
}

OPS: dict[str, str] = {
    "rmsnorm": "RMS normalisation over the hidden dimension (input, post-attention, final norm)",
    "qk_norm": "RMS normalisation of queries and keys per head, before RoPE",
    "softmax": "softmax over the last dimension, in fp32 (attention scores, router)",
    "silu": "x * sigmoid(x), the experts' gate activation",
}
"""Op -> what it computes. The references are in kernels/reference.py."""

LIBRARY: dict[str, KernelInfo] = {
    "nki_expert_router_kernel": KernelInfo("kernels.router", "router"),
    "nki_fused_expert_mlp_kernel": KernelInfo("kernels.expert_mlp", "expert_mlp"),
    "nki_expert_aggregation_kernel": KernelInfo("kernels.expert_aggregation", "expert_aggregate"),
    "nki_moe_prefill_kernel": KernelInfo("kernels.moe_prefill", "experts_prefill"),
    "nki_moe_decode_kernel": KernelInfo("kernels.moe_decode", "experts_decode"),
    "nki_fused_add_rmsnorm_kernel": KernelInfo("kernels.add_rmsnorm", "add_rmsnorm"),
    "nki_rope_kernel": KernelInfo("kernels.rope", "rope"),
    "nki_flash_attention_kernel": KernelInfo("kernels.flash_attention", "attention_prefill"),
    "nki_decode_attention_kernel": KernelInfo("kernels.decode_attention", "attention_decode"),
    "nki_qkv_projection_kernel": KernelInfo("kernels.qkv_projection", "qkv_proj"),
    "nki_output_projection_kernel": KernelInfo("kernels.output_projection", "o_proj"),
    "nki_lm_head_kernel": KernelInfo("kernels.lm_head", "lm_head"),
}
"""Kernels whose op the model does not call yet, by the op that they are for."""
