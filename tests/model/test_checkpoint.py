"""A checkpoint is read whole and right, or refused with what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import (
    CheckpointError,
    empty_weights,
    expected_shapes,
    local_config,
    read_config,
    read_weights,
)


@pytest.fixture
def copy(random_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(random_checkpoint, tmp_path / "copy"))


def change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "remove"}))


def change_tensors(directory: Path, **values: torch.Tensor | None) -> None:
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **values}
    save_file({k: v for k, v in tensors.items() if v is not None}, path, {"format": "pt"})


def test_weights_are_read_into_the_dtype_asked_for(random_checkpoint: Path) -> None:
    config = read_config(random_checkpoint)
    weights = read_weights(random_checkpoint, config, torch.float32, 8)
    stored = load_file(random_checkpoint / "model.safetensors")
    expert = "model.layers.1.mlp.experts.3.up_proj.weight"
    up = weights.layers[1].gate_up[3, :, config.moe_intermediate_size :]
    assert up.dtype is torch.float32
    assert torch.equal(up, stored[expert].float().T)
    keys = slice(4 * 16, 6 * 16)
    stored_keys = stored["model.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(weights.layers[1].qkv[:, keys], stored_keys.float().T)
    assert torch.equal(weights.head, weights.embedding.T)
    assert weights.head.is_contiguous()


def test_a_sharded_checkpoint_is_the_same(copy: Path, random_checkpoint: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    (copy / "model.safetensors").unlink()
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = copy / f"model-0000{part}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, file, {"format": "pt"})
    config = read_config(copy)
    ours = read_weights(copy, config, torch.bfloat16, 8)
    whole = read_weights(random_checkpoint, config, torch.bfloat16, 8)
    assert torch.equal(ours.layers[0].gate_up, whole.layers[0].gate_up)
    assert torch.equal(ours.layers[1].q_norm, whole.layers[1].q_norm)


def shard(directory: Path) -> dict[str, str]:
    """Split a checkpoint in two files with an index; which file holds what."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    where = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(where.values())):
        mine = {name: tensors[name] for name in where if where[name] == file}
        save_file(mine, directory / file, {"format": "pt"})
    write_index(directory, where)
    return where


def write_index(directory: Path, where: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_an_index_says_which_files_count(copy: Path, random_checkpoint: Path) -> None:
    shard(copy)
    config = read_config(copy)
    save_file({"else": torch.zeros(1)}, copy / "consolidated.safetensors", {"format": "pt"})
    ours = read_weights(copy, config, torch.bfloat16, 8)
    whole = read_weights(random_checkpoint, config, torch.bfloat16, 8)
    assert torch.equal(ours.layers[1].down, whole.layers[1].down)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d, w: (d / "model-00002-of-00002.safetensors").unlink(),
         r"1 of 2 files .* missing: model-00002-of-00002"),
        (lambda d, w: write_index(d, {**w, "x": "../../etc/passwd"}), "beside it"),
        (lambda d, w: write_index(d, {}), "must name"),
        (lambda d, w: write_index(d, [1]), "not an index"),
        (lambda d, w: (d / "model.safetensors.index.json").write_text("{"), "not an index"),
        (lambda d, w: shutil.copy(d / "model-00001-of-00002.safetensors",
                                  d / "model-00002-of-00002.safetensors"), "another file"),
    ],
    ids=["missing", "elsewhere", "empty", "list", "broken", "twice"],
)  # fmt: skip
def test_a_spoilt_index_is_refused(
    copy: Path, spoil: Callable[[Path, dict[str, str]], object], message: str
) -> None:
    spoil(copy, shard(copy))
    with pytest.raises(CheckpointError, match=message):
        read_weights(copy, read_config(copy), torch.bfloat16, 8)


def test_a_rank_has_its_heads_and_columns(random_checkpoint: Path) -> None:
    config = read_config(random_checkpoint)
    weights = empty_weights(config, torch.bfloat16, 8, tp_degree=4)
    layer = weights.layers[0]
    assert layer.qkv.shape == (64, (1 + 2 * 1) * 16)  # of 2 key heads, one on two ranks each
    assert (layer.o.shape, layer.gate_up.shape) == ((16, 64), (16, 64, 2 * 8))
    assert (weights.head.shape, weights.embedding.shape) == ((64, 24), (96, 64))
    whole, read = empty_weights(config, torch.bfloat16, 8), read_weights(
        random_checkpoint, config, torch.bfloat16, 8
    )  # fmt: skip
    assert {k: v.shape for k, v in vars(whole.layers[1]).items()} == {
        k: v.shape for k, v in vars(read.layers[1]).items()
    }
    with pytest.raises(CheckpointError, match=r"num_attention_heads \(4\) does not divide"):
        local_config(config, 8)


def test_an_untied_head_is_used(copy: Path) -> None:
    change_config(copy, tie_word_embeddings=False)
    config = read_config(copy)
    head = torch.randn(config.vocab_size, config.hidden_size, dtype=torch.bfloat16)
    change_tensors(copy, **{"lm_head.weight": head})
    assert torch.equal(read_weights(copy, config, torch.bfloat16, 8).head, head.T)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
        ({"hidden_size": "remove"}, "hidden_size: Field required"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_experts_per_tok": 99}, "num_experts_per_tok"),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused(
    copy: Path, values: dict[str, object], message: str
) -> None:
    change_config(copy, **values)
    with pytest.raises(CheckpointError, match=message):
        read_config(copy)


def test_a_missing_or_broken_config_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_config(copy)
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        read_config(copy)


ROUTER = "model.layers.0.mlp.gate.weight"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({ROUTER: None}, f"missing {ROUTER}"),
        ({"model.layers.9.x": torch.zeros(1)}, r"unknown model\.layers\.9\.x"),
        ({ROUTER: torch.zeros(2, 2)}, rf"{ROUTER} is \(2, 2\), not \(16, 64\)"),
    ],
)
def test_tensors_must_fit_the_config(
    copy: Path, values: dict[str, torch.Tensor | None], message: str
) -> None:
    change_tensors(copy, **values)
    with pytest.raises(CheckpointError, match=message):
        read_weights(copy, read_config(copy), torch.bfloat16, 8)


def test_a_truncated_file_is_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="may be truncated"):
        read_weights(copy, read_config(copy), torch.bfloat16, 8)


def test_pickle_is_never_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        read_weights(copy, read_config(copy), torch.bfloat16, 8)


def test_expected_shapes_name_every_stored_tensor(random_checkpoint: Path) -> None:
    stored = load_file(random_checkpoint / "model.safetensors")
    shapes = expected_shapes(read_config(random_checkpoint))
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == shapes
