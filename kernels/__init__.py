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
