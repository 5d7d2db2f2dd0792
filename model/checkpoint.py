"""Read a Hugging Face checkpoint: config.json and safetensors, validated at the border.

Weights are laid out for the kernels once, here: matrices [in, out], queries, keys and values
side by side in one, an expert's gate and up columns likewise, experts stacked.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")


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
    """One decoder layer. H hidden, N query heads, K key/value heads, D head_dim, E experts."""

    input_norm: Tensor
    """[H]"""
    qkv: Tensor
    """[H, (N + 2 K) D]: columns of all queries, of all keys, of all values."""
    q_norm: Tensor
    """[D]"""
    k_norm: Tensor
    """[D]"""
    o: Tensor
    """[N D, H]"""
    post_attention_norm: Tensor
    """[H]"""
    router: Tensor
    """[H, E]"""
    gate_up: Tensor
    """[E, H, 2 I]: gate columns, then up columns."""
    down: Tensor
    """[E, I, H]"""


@dataclass(frozen=True)
class Weights:
    """All weights in one dtype, and RoPE's tables."""

    embedding: Tensor
    """[V, H]"""
    layers: list[LayerWeights]
    norm: Tensor
    """[H]"""
    head: Tensor
    """[H, V]; a tied head is the embedding, transposed."""
    cos: Tensor
    """[positions, D]"""
    sin: Tensor
    """[positions, D]"""


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


def rotation_tables(
    config: ModelConfig, positions: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """RoPE's cos and sin, [positions, D] each, computed in fp32; both halves are the same."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.int64).to(torch.float32)
    frequencies = 1.0 / (config.rope_theta ** (half / config.head_dim))
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def read_weights(
    directory: Path, config: ModelConfig, dtype: torch.dtype, positions: int
) -> Weights:
    """Read all weights from safetensors, sharded or not, into `dtype` and the kernels' layout.

    Args:
        directory: with *.safetensors and, if sharded, model.safetensors.index.json.
        config: of the same directory.
        dtype: of all weights.
        positions: rows of RoPE's tables, the longest sequence.

    Raises:
        CheckpointError: no safetensors, a truncated or missing file, or a tensor that is
            missing, of another shape, or unknown.
    """
    shapes = expected_shapes(config)
    files = _files(directory)
    with contextlib.ExitStack() as stack:
        where = _find(files, stack)
        _check_shapes(directory, shapes, where)

        def take(name: str) -> Tensor:
            found: Tensor = where[name].get_tensor(name)
            return found.to(dtype)

        embedding = take("model.embed_tokens.weight")
        head = embedding if config.tie_word_embeddings else take("lm_head.weight")
        cos, sin = rotation_tables(config, positions, dtype)
        try:
            return Weights(
                embedding=embedding,
                layers=[
                    _layer(take, index, config.num_experts)
                    for index in range(config.num_hidden_layers)
                ],
                norm=take("model.norm.weight"),
                head=head.T.contiguous(),
                cos=cos,
                sin=sin,
            )
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{directory}: cannot be read as safetensors: {error}") from None


def check_tensors(directory: Path, config: ModelConfig) -> None:
    """See that a checkpoint has every tensor in its right shape, without reading any.

    Raises:
        CheckpointError: see `read_weights`.
    """
    with contextlib.ExitStack() as stack:
        _check_shapes(directory, expected_shapes(config), _find(_files(directory), stack))


def _layer(take: Callable[[str], Tensor], index: int, experts: int) -> LayerWeights:
    base = f"model.layers.{index}"

    def matrix(name: str) -> Tensor:
        """HF's [out, in], turned."""
        return take(f"{base}.{name}.weight").T

    def vector(name: str) -> Tensor:
        return take(f"{base}.{name}.weight")

    def gate_up(expert: int) -> Tensor:
        name = f"mlp.experts.{expert}"
        return torch.cat([matrix(f"{name}.gate_proj"), matrix(f"{name}.up_proj")], dim=1)

    attention = [matrix(f"self_attn.{part}_proj") for part in "qkv"]
    return LayerWeights(
        input_norm=vector("input_layernorm"),
        qkv=torch.cat(attention, dim=1),
        q_norm=vector("self_attn.q_norm"),
        k_norm=vector("self_attn.k_norm"),
        o=matrix("self_attn.o_proj").contiguous(),
        post_attention_norm=vector("post_attention_layernorm"),
        router=matrix("mlp.gate").contiguous(),
        gate_up=torch.stack([gate_up(expert) for expert in range(experts)]),
        down=torch.stack([matrix(f"mlp.experts.{e}.down_proj") for e in range(experts)]),
    )


def _files(directory: Path) -> list[Path]:
    """The checkpoint's safetensors files: those of its index, or all there are."""
    index = directory / INDEX
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise CheckpointError(
                f"{directory}: no *.safetensors file, so there are no weights to load; "
                "pickle weights are never read"
            )
        return files
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors: {error!r}") from None
    wrong = [n for n in names if not isinstance(n, str) or not SHARD.fullmatch(n)]
    if wrong or not names:
        raise CheckpointError(f"{index}: weight_map must name *.safetensors files beside it, "
                              f"found {wrong[:3]}")  # fmt: skip
    missing = sorted(name for name in names if not (directory / name).is_file())
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} of {len(names)} files of {INDEX} are missing: "
            f"{', '.join(missing[:3])}; fetch them again"
        )
    return [directory / name for name in sorted(names)]


def _find(files: list[Path], stack: contextlib.ExitStack) -> dict[str, Any]:
    """Every tensor's name and the opened file that holds it."""
    where: dict[str, Any] = {}
    for file in files:
        try:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            names = list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: cannot be read as safetensors ({error}); it may be truncated: "
                "fetch it again"
            ) from None
        twice = sorted(where.keys() & set(names))
        if twice:
            raise CheckpointError(f"{file}: {twice[0]} is in another file of the checkpoint too")
        where |= dict.fromkeys(names, opened)
    return where


def _check_shapes(
    directory: Path, shapes: dict[str, tuple[int, ...]], where: dict[str, Any]
) -> None:
    """Compare names and shapes with what config.json asks for; no tensor is read."""
    if "lm_head.weight" not in shapes:
        where.pop("lm_head.weight", None)  # some exporters store the tied head twice
    problems = [f"missing {name}" for name in shapes if name not in where]
    problems += [f"unknown {name}" for name in where if name not in shapes]
    for name, shape in shapes.items():
        if name in where:
            found = tuple(where[name].get_slice(name).get_shape())
            if found != shape:
                problems.append(f"{name} is {found}, not {shape}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{directory}: the tensors do not fit config.json: {'; '.join(problems[:5])}{more}"
        )


# --- one rank of several ------------------------------------------------------------------


def local_config(config: ModelConfig, tp_degree: int) -> ModelConfig:
    """One tensor-parallel rank's part: its heads, and its columns of every expert.

    Key/value heads are repeated where there are fewer than ranks, and the embedding is whole
    on every rank.

    Raises:
        CheckpointError: something does not divide by the number of ranks.
    """
    keys = config.num_key_value_heads
    for name in ("num_attention_heads", "moe_intermediate_size", "vocab_size"):
        if getattr(config, name) % tp_degree:
            raise CheckpointError(
                f"{name} ({getattr(config, name)}) does not divide by tp_degree {tp_degree}"
            )
    if keys % tp_degree and tp_degree % keys:
        raise CheckpointError(
            f"num_key_value_heads ({keys}) and tp_degree {tp_degree} do not divide each other"
        )
    return config.model_copy(
        update={
            "num_attention_heads": config.num_attention_heads // tp_degree,
            "num_key_value_heads": max(1, keys // tp_degree),
            "moe_intermediate_size": config.moe_intermediate_size // tp_degree,
        }
    )


def empty_weights(
    config: ModelConfig, dtype: torch.dtype, positions: int, tp_degree: int = 1
) -> Weights:
    """One rank's weights, of no values; on the meta device they take no memory.

    Args:
        config: of the whole model.
        dtype: of all weights.
        positions: rows of RoPE's tables.
        tp_degree: how many ranks share the model.
    """
    local = local_config(config, tp_degree)
    hidden, width, inner = local.hidden_size, local.head_dim, local.moe_intermediate_size
    queries, keys = local.num_attention_heads * width, local.num_key_value_heads * width

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    return Weights(
        embedding=empty(config.vocab_size, hidden),
        layers=[
            LayerWeights(
                input_norm=empty(hidden),
                qkv=empty(hidden, queries + 2 * keys),
                q_norm=empty(width),
                k_norm=empty(width),
                o=empty(queries, hidden),
                post_attention_norm=empty(hidden),
                router=empty(hidden, local.num_experts),
                gate_up=empty(local.num_experts, hidden, 2 * inner),
                down=empty(local.num_experts, inner, hidden),
            )
            for _ in range(local.num_hidden_layers)
        ],
        norm=empty(hidden),
        head=empty(hidden, config.vocab_size // tp_degree),
        cos=empty(positions, width),
        sin=empty(positions, width),
    )
