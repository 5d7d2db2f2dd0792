"""A small random Qwen3-MoE, made by transformers, that the model's tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_model import VOCABULARY
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from model.configuration import Config, parse_config
from model.records import CheckpointRecord


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: 2 layers, hidden 64, 16 experts top-4, GQA, tied head, bf16."""
    torch.manual_seed(0)
    architecture = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        initializer_range=0.2,
        max_position_embeddings=128,
        rope_theta=1e4,
    )
    model = Qwen3MoeForCausalLM(architecture)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones would hide a weight that is not applied
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    directory = tmp_path_factory.mktemp("checkpoint")
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture
def record(random_checkpoint: Path) -> CheckpointRecord:
    """The checkpoint as the download stage hands it on."""
    return CheckpointRecord(
        model="random",
        directory=str(random_checkpoint),
        source="test",
        files={},
        fingerprint="0" * 64,
    )


@pytest.fixture(scope="session")
def compilations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compilations that tests share: an export takes seconds."""
    return tmp_path_factory.mktemp("compilations")


@pytest.fixture
def config() -> Config:
    """A configuration with small buckets."""
    return parse_config(
        {
            "model": "random",
            "models": {"random": {"source": "somewhere"}},
            "configurations": ["baseline"],
            "buckets": {"context_encoding": [8, 16], "max_length": 24},
            "generate": {"prompts": "prompts.yaml", "max_new_tokens": 4},
            "accuracy": {"texts": "t", "tasks": "t", "batch_size": 2},
        }
    )
