"""The references' logits are transformers' in fp32, whichever way a prompt gets in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_model import VOCABULARY
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3MoeForCausalLM

from model.configuration import Config, KernelConfiguration
from model.records import CheckpointRecord
from model.runtime import LanguageModel, PromptError, load

PROMPTS = (7, 1, 16, 3)
STEPS = 64
LIMIT = 1e-5
"""Largest difference relative to the largest logit."""


@pytest.fixture(scope="module", params=["tied", "untied"])
def checkpoint(
    random_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    """The random checkpoint, and the same with a head of its own."""
    if request.param == "tied":
        return random_checkpoint
    copy = Path(shutil.copytree(random_checkpoint, tmp_path_factory.mktemp("untied") / "c"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    head = torch.randn(VOCABULARY, 64, generator=torch.Generator().manual_seed(5))
    tensors = load_file(copy / "model.safetensors") | {"lm_head.weight": head.bfloat16()}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    """Every prompt with what is fed after it."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randint(0, VOCABULARY, (length + STEPS,), generator=generator).tolist()
        for length in PROMPTS
    ]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, sequences: list[list[int]]) -> list[Tensor]:
    """transformers' logits of every position of every sequence, alone and unpadded."""
    model = Qwen3MoeForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        return [model(torch.tensor([tokens])).logits[0] for tokens in sequences]


@pytest.fixture(scope="module")
def build(checkpoint: Path) -> Callable[[Config, int], LanguageModel]:
    record = CheckpointRecord(
        model="random", directory=str(checkpoint), source="test", files={}, fingerprint="0" * 64
    )

    def make(config: Config, batch: int) -> LanguageModel:
        buckets = {"context_encoding": [8, 16], "max_length": 96}
        changed = Config.model_validate(config.model_dump() | {"buckets": buckets})
        baseline = KernelConfiguration(description="reference")
        return load(record, baseline, dtype="float32", config=changed, batch_size=batch)

    return make


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= LIMIT * wanted.abs().max()


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_prefill_and_64_steps_of_ragged_prompts(
    build: Callable[[Config, int], LanguageModel],
    config: Config,
    sequences: list[list[int]],
    expected: list[Tensor],
    batch: int,
) -> None:
    language_model = build(config, batch)
    model, cache = language_model.model, language_model._empty_cache(batch)
    lengths = torch.tensor(PROMPTS[:batch], dtype=torch.int32)[:, None]
    tokens = torch.zeros(batch, 16, dtype=torch.int64)
    for row, length in enumerate(PROMPTS[:batch]):
        tokens[row, :length] = torch.tensor(sequences[row][:length])
    with torch.inference_mode():
        logits = model.context_encoding(tokens, lengths, cache)
        for row, length in enumerate(PROMPTS[:batch]):
            assert_equal(logits[row], expected[row][length - 1])
        for step in range(STEPS):
            fed = torch.tensor(
                [[sequences[row][n + step]] for row, n in enumerate(PROMPTS[:batch])]
            )
            logits = model.token_generation(fed, lengths + step, cache)
            for row, length in enumerate(PROMPTS[:batch]):
                assert_equal(logits[row], expected[row][length + step])


@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_prefill_in_chunks(
    build: Callable[[Config, int], LanguageModel],
    config: Config,
    sequences: list[list[int]],
    expected: list[Tensor],
    chunk: int,
) -> None:
    """Also past the largest bucket, and with a last chunk that ends at the cache's end."""
    for found, wanted in zip(
        build(config, 3).chunked_logits(sequences, chunk), expected, strict=True
    ):
        assert_equal(found, wanted)


def test_a_sequence_longer_than_the_cache_is_refused(
    build: Callable[[Config, int], LanguageModel], config: Config
) -> None:
    model = build(config, 1)
    with pytest.raises(PromptError, match=r"longest sequence 97: both must be 1 to .*\(96\)"):
        model.chunked_logits([[1] * 97], 8)
    with pytest.raises(PromptError, match="chunks of 0 tokens"):
        model.chunked_logits([[1]], 0)


def test_what_an_earlier_prompt_left_does_not_reach_the_next(
    build: Callable[[Config, int], LanguageModel], config: Config, sequences: list[list[int]]
) -> None:
    model = build(config, 1)
    first = model.decode_logits([sequences[1][:20]], 1)[0]
    with torch.inference_mode():
        for cache in model._caches.values():
            cache.keys[0].fill_(float("nan"))
            cache.values[1].fill_(float("nan"))
    assert torch.equal(model.decode_logits([sequences[1][:20]], 1)[0], first)
