"""What a kernel must take and give to fill an op.

The model calls an op with its own shapes; a contract says how these become the kernel's
arguments. A kernel's further keyword parameters are set by the kernel configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kernels import reference

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class OpContract:
    """One op: its reference, and how a kernel is called in its place."""

    signature: str
    """What a kernel for this op must look like."""
    arguments: tuple[str, ...]
    """Kernel arguments that the model gives; all others are the configuration's."""
    reference: Callable[..., Any]
    call: Callable[..., Any]
    """call(kernel, *the op's arguments, **parameters of the configuration)"""


def _call_rmsnorm(
    kernel: Kernel, x: torch.Tensor, weight: torch.Tensor, eps: float, **parameters: Any
) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return kernel(rows, weight, eps=eps, **parameters).reshape(x.shape)  # type: ignore[no-any-return]


def _call_qk_norm(
    kernel: Kernel,
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    **parameters: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    new_q, new_k = kernel(
        q.flatten(0, 1), k.flatten(0, 1), q_weight, k_weight, eps=eps, **parameters
    )
    return new_q.reshape(q.shape), new_k.reshape(k.shape)


def _call_rows(kernel: Kernel, x: torch.Tensor, **parameters: Any) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return kernel(rows, **parameters).reshape(x.shape)  # type: ignore[no-any-return]


CONTRACTS: dict[str, OpContract] = {
    "rmsnorm": OpContract(
        "kernel(x[rows, hidden], weight[hidden], eps) -> [rows, hidden]",
        ("x", "weight", "eps"),
        reference.rmsnorm,
        _call_rmsnorm,
    ),
    "qk_norm": OpContract(
        "kernel(q[tokens, heads, head_dim], k[tokens, kv_heads, head_dim], q_weight[head_dim], "
        "k_weight[head_dim], eps) -> (q, k)",
        ("q", "k", "q_weight", "k_weight", "eps"),
        reference.qk_norm,
        _call_qk_norm,
    ),
    "softmax": OpContract(
        "kernel(x[rows, columns]) -> [rows, columns]", ("x",), reference.softmax, _call_rows
    ),
    "silu": OpContract(
        "kernel(x[rows, columns]) -> [rows, columns]", ("x",), reference.silu, _call_rows
    ),
}
"""Op -> contract; the same ops as `kernels.OPS`."""
