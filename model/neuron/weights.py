"""Names and layouts of a checkpoint: Hugging Face's, and those of NxD Inference's Qwen3-MoE.

NxD Inference converts when it loads; this is the same in both directions, to check what it
wrote (`weights/tpN_sharded_checkpoint.safetensors`) against the verified checkpoint.

Shapes: H hidden, E experts, I expert width, and 2 * I columns of gate, then of up.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from model.neuron.availability import NeuronError

RENAMED = {
    "self_attn.q_norm.weight": "self_attn.q_layernorm.weight",
    "self_attn.k_norm.weight": "self_attn.k_layernorm.weight",
    "mlp.gate.weight": "mlp.router.linear_router.weight",
}
"""In a layer: Hugging Face's name -> NxD Inference's."""
EXPERTS = "mlp.expert_mlps.mlp_op"
FUSED = "self_attn.Wqkv.weight"
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_MADE = re.compile(r"(.*\.)?(rank_util\.rank|spmd_rank\.rank|router\.weight_T)|kv_mgr\..*")
"""What NxD adds, and no checkpoint has."""


def to_neuron(state: dict[str, Tensor], fused_qkv: bool = False) -> dict[str, Tensor]:
    """Hugging Face's names and layouts -> NxD Inference's, before sharding.

    Raises:
        NeuronError: an expert's tensor is missing.
    """
    converted: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in state.items():
        name = name.removeprefix("model.")
        layer = _LAYER.fullmatch(name)
        if layer is None:
            converted[name] = tensor
            continue
        base, rest = f"layers.{layer[1]}", layer[2]
        expert = _EXPERT.fullmatch(rest)
        if expert is not None:
            experts.setdefault(base, {})[int(expert[1]), expert[2]] = tensor
        else:
            converted[f"{base}.{RENAMED.get(rest, rest)}"] = tensor
    for base, tensors in experts.items():
        count = 1 + max(number for number, _ in tensors)
        gate, up, down = (_stack(base, tensors, count, kind) for kind in ("gate", "up", "down"))
        converted[f"{base}.{EXPERTS}.gate_up_proj.weight"] = torch.cat([gate, up], dim=2)
        converted[f"{base}.{EXPERTS}.down_proj.weight"] = down
        if fused_qkv:
            parts = [converted.pop(f"{base}.self_attn.{x}_proj.weight") for x in "qkv"]
            converted[f"{base}.{FUSED}"] = torch.cat(parts)
    return converted


def _stack(base: str, tensors: dict[tuple[int, str], Tensor], count: int, kind: str) -> Tensor:
    missing = [n for n in range(count) if (n, kind) not in tensors]
    if missing:
        raise NeuronError(f"{base}.mlp.experts.{missing[0]}.{kind}_proj.weight is missing")
    return torch.stack([tensors[n, kind].T for n in range(count)])


def to_hugging_face(state: dict[str, Tensor], kv_width: int | None = None) -> dict[str, Tensor]:
    """NxD Inference's names and layouts (of one rank of one) -> Hugging Face's.

    Args:
        state: NxD Inference's tensors.
        kv_width: key heads * head_dim, to part fused weights.

    Raises:
        NeuronError: a fused weight, and no kv_width.
    """
    back = {neuron: hugging for hugging, neuron in RENAMED.items()}
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _MADE.fullmatch(name):
            continue
        layer = _LAYER.fullmatch(name)
        if layer is None:
            converted[name if name == "lm_head.weight" else f"model.{name}"] = tensor
            continue
        base, rest = f"model.layers.{layer[1]}", layer[2]
        if rest == f"{EXPERTS}.gate_up_proj.weight":
            gate, up = tensor.chunk(2, dim=2)
            converted |= _unstack(base, "gate", gate) | _unstack(base, "up", up)
        elif rest == f"{EXPERTS}.down_proj.weight":
            converted |= _unstack(base, "down", tensor)
        elif rest == FUSED:
            if kv_width is None:
                raise NeuronError(f"{name} is fused; give kv_width to part it")
            widths = [tensor.shape[0] - 2 * kv_width, kv_width, kv_width]
            for x, part in zip("qkv", torch.split(tensor, widths), strict=True):
                converted[f"{base}.self_attn.{x}_proj.weight"] = part
        else:
            converted[f"{base}.{back.get(rest, rest)}"] = tensor
    return converted


def _unstack(base: str, kind: str, stacked: Tensor) -> dict[str, Tensor]:
    return {
        f"{base}.mlp.experts.{n}.{kind}_proj.weight": tensor.T for n, tensor in enumerate(stacked)
    }
