"""Read a Hugging Face checkpoint: config.json and safetensors, validated at the border."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says what, where and how to mend it."""


class ModelConfig(BaseModel):
    """config.json of a Qwen3-MoE, as far as the model depends on it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architectures: tuple[Literal["Qwen3MoeForCausalLM"]]
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2, multiple_of=2)
    moe_intermediate_size: int = Field(ge=1)
    num_experts: int = Field(ge=1)
    num_experts_per_tok: int = Field(ge=1)
    norm_topk_prob: bool
    vocab_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float = Field(gt=0)
    tie_word_embeddings: bool
    hidden_act: Literal["silu"]
    # What the model does not do; any other value would be silently wrong.
    rope_scaling: None = None
    use_sliding_window: Literal[False] = False
    attention_bias: Literal[False] = False
    decoder_sparse_step: Literal[1] = 1
    mlp_only_layers: tuple[()] = ()


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; experts are stacked on the first dimension."""

    input_norm: Tensor
    post_attention_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    q_norm: Tensor
    k_norm: Tensor
    router: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Weights:
    """All weights in one dtype."""

    embedding: Tensor
    layers: list[LayerWeights]
    norm: Tensor
    head: Tensor


def read_config(directory: Path) -> ModelConfig:
    """Read and validate config.json.

    Raises:
        CheckpointError: the file is missing or not JSON, or describes a model that this
            implementation would compute wrongly.
    """
    path = directory / "config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        config = ModelConfig.model_validate(value)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint needs one") from None
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}"
            for e in error.errors()
        )
        raise CheckpointError(f"{path}: not a Qwen3-MoE that can be run: {wrong}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            f"{path}: num_attention_heads ({config.num_attention_heads}) is no multiple of "
            f"num_key_value_heads ({config.num_key_value_heads})"
        )
    if config.num_experts_per_tok > config.num_experts:
        raise CheckpointError(f"{path}: num_experts_per_tok is larger than num_experts")
    return config


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, by its Hugging Face name, with its shape."""
    hidden, head, inner = config.hidden_size, config.head_dim, config.moe_intermediate_size
    queries = config.num_attention_heads * head
    keys = config.num_key_value_heads * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        base = f"model.layers.{layer}"
        shapes |= {
            f"{base}.input_layernorm.weight": (hidden,),
            f"{base}.post_attention_layernorm.weight": (hidden,),
            f"{base}.self_attn.q_proj.weight": (queries, hidden),
            f"{base}.self_attn.k_proj.weight": (keys, hidden),
            f"{base}.self_attn.v_proj.weight": (keys, hidden),
            f"{base}.self_attn.o_proj.weight": (hidden, queries),
            f"{base}.self_attn.q_norm.weight": (head,),
            f"{base}.self_attn.k_norm.weight": (head,),
            f"{base}.mlp.gate.weight": (config.num_experts, hidden),
        }
        for expert in range(config.num_experts):
            shapes |= {
                f"{base}.mlp.experts.{expert}.gate_proj.weight": (inner, hidden),
                f"{base}.mlp.experts.{expert}.up_proj.weight": (inner, hidden),
                f"{base}.mlp.experts.{expert}.down_proj.weight": (hidden, inner),
            }
    return shapes


def read_weights(directory: Path, config: ModelConfig, dtype: torch.dtype) -> Weights:
    """Read all weights from safetensors, sharded or not, into `dtype`.

    Raises:
        CheckpointError: no safetensors, a truncated file, or a tensor that is missing, of
            another shape, or unknown.
    """
    tensors = _read_tensors(directory, expected_shapes(config))
    converted = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    layers = [
        _layer(converted, index, config.num_experts) for index in range(config.num_hidden_layers)
    ]
    embedding = converted["model.embed_tokens.weight"]
    return Weights(
        embedding=embedding,
        layers=layers,
        norm=converted["model.norm.weight"],
        head=converted.get("lm_head.weight", embedding),
    )


def _layer(tensors: dict[str, Tensor], index: int, experts: int) -> LayerWeights:
    base = f"model.layers.{index}"

    def take(name: str) -> Tensor:
        return tensors.pop(f"{base}.{name}.weight")

    def stack(name: str) -> Tensor:
        return torch.stack([take(f"mlp.experts.{expert}.{name}") for expert in range(experts)])

    return LayerWeights(
        input_norm=take("input_layernorm"),
        post_attention_norm=take("post_attention_layernorm"),
        q=take("self_attn.q_proj"),
        k=take("self_attn.k_proj"),
        v=take("self_attn.v_proj"),
        o=take("self_attn.o_proj"),
        q_norm=take("self_attn.q_norm"),
        k_norm=take("self_attn.k_norm"),
        router=take("mlp.gate"),
        gate=stack("gate_proj"),
        up=stack("up_proj"),
        down=stack("down_proj"),
    )


def _read_tensors(directory: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory}: no *.safetensors file; pickle weights are never read")
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a dict)
                    tensors[name] = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: cannot be read as safetensors ({error}); it may be truncated: "
                "fetch it again"
            ) from None
    tied = "lm_head.weight" not in shapes
    if tied:
        tensors.pop("lm_head.weight", None)  # some exporters store the tied head twice
    problems = [f"missing {name}" for name in shapes if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in shapes]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{directory}: the tensors do not fit config.json: {'; '.join(problems[:5])}{more}"
        )
    return tensors
