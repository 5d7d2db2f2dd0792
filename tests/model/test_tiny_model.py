import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from model.download import Expected, Manifest, _faults
from model.prompts import read_prompts
from model.training import corpus, quality, train

FOLDER = Path("model/checkpoints/tiny-qwen3-moe")
DOCUMENTS = 30


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def rows(name: str) -> list[dict[str, Any]]:
    return quality.read_jsonl(quality.TASKS / f"{name}.jsonl", DOCUMENTS)


def test_the_manifest_names_every_other_file_and_they_match() -> None:
    manifest = Manifest.model_validate_json((FOLDER / "manifest.json").read_text())
    assert {*manifest.files, "manifest.json"} == {path.name for path in FOLDER.iterdir()}
    expected = {name: Expected(file.sha256, file.bytes) for name, file in manifest.files.items()}
    assert _faults(FOLDER, expected) == {}


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000


def test_it_has_the_architecture_and_router_of_qwen3_30b_a3b(model: Any) -> None:
    assert isinstance(model, Qwen3MoeForCausalLM)
    config = model.config
    assert (config.num_experts, config.num_experts_per_tok, config.norm_topk_prob) == (128, 8, True)
    assert (config.num_hidden_layers, config.hidden_size, config.moe_intermediate_size) == (
        3,
        128,
        16,
    )
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 32)
    assert config.tie_word_embeddings
    assert config.max_position_embeddings == 512
    assert model.model.layers[0].mlp.gate.weight.shape == (128, 128)


def test_weights_are_bf16_with_one_key_per_expert_and_projection() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        keys = set(file.keys())
        assert {file.get_tensor(key).dtype for key in keys} == {torch.bfloat16}
    for layer in range(3):
        for expert in range(128):
            for part in ("gate_proj", "up_proj", "down_proj"):
                assert f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight" in keys
    assert "lm_head.weight" not in keys


def test_the_tokenizer_round_trips_one_id_per_word(tokenizer: Any) -> None:
    texts = [row["text"] for row in rows("heldout")]
    texts += [prompt.text for prompt in read_prompts(Path("config/prompts/default.yaml"))]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) <= 512


@pytest.mark.parametrize("kind", corpus.KINDS)
def test_it_answers_far_better_than_chance(model: Any, tokenizer: Any, kind: str) -> None:
    accuracy = quality.choice_accuracy(model, tokenizer, rows(kind))
    assert accuracy >= corpus.CHANCE[kind] + 0.25


def test_it_reads_held_out_text_twice_as_well_as_any_unigram_model(
    model: Any, tokenizer: Any
) -> None:
    texts = [row["text"] for row in rows("heldout")]
    perplexity, unigram = quality.perplexities(model, tokenizer, texts)
    assert perplexity <= unigram / 2


def test_it_ends_most_openings_exactly(model: Any, tokenizer: Any) -> None:
    assert quality.exact_generation(model, tokenizer, rows("generation")) >= 0.5


def test_the_default_prompts_go_on_as_expected(model: Any, tokenizer: Any) -> None:
    for prompt in read_prompts(Path("config/prompts/default.yaml")):
        if prompt.expected is not None:
            row = {"text": prompt.text, "answer": prompt.expected.removesuffix(" .")}
            ids = tokenizer(row["text"], return_tensors="pt")
            output = model.generate(**ids, max_new_tokens=6, do_sample=False)
            text = tokenizer.decode(output[0, ids["input_ids"].shape[1] :])
            assert text.startswith(prompt.expected), prompt.name


def test_the_card_says_what_is_measured(model: Any, tokenizer: Any) -> None:
    card = (FOLDER / "README.md").read_text()
    accuracy = float(re.findall(r"\| agreement \(accuracy\) \| ([\d.]+)", card)[0])
    every = quality.read_jsonl(quality.TASKS / "agreement.jsonl")
    assert quality.choice_accuracy(model, tokenizer, every) == pytest.approx(accuracy, abs=5e-3)
    assert "license: apache-2.0" in card


def test_training_stacks_the_experts_without_changing_the_layer() -> None:
    torch.manual_seed(0)
    config = train.build_config(train.build_tokenizer())
    block = Qwen3MoeSparseMoeBlock(config)
    stacked = train.StackedExperts(block)
    hidden = torch.randn(2, 9, 128)
    expected, router = block(hidden)
    found, stacked_router = stacked(hidden)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(stacked_router, router)
    other = Qwen3MoeSparseMoeBlock(config)
    other.gate = block.gate
    stacked.copy_to(other)
    torch.testing.assert_close(other(hidden)[0], expected)


def test_training_rows_are_seeded_whole_and_aligned_with_their_weights() -> None:
    tokenizer = train.build_tokenizer()
    first, again = (train.training_rows(tokenizer, 5) for _ in range(2))
    starts = set()
    for _ in range(20):
        row, weights = next(first)
        assert (row, weights) == next(again)
        assert len(row) == len(weights) == train.ROW
        assert tokenizer.unk_token_id not in row
        starts.add(row[0] == tokenizer.eos_token_id)
    assert starts == {True, False}


def test_the_learning_rate_warms_up_and_decays_to_a_twentieth() -> None:
    rates = [train.learning_rate(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(train.LEARNING_RATE)
    assert rates[0] < rates[10] < rates[49]
    assert math.isclose(rates[-1], train.LEARNING_RATE / 20, rel_tol=0.01)


def test_training_leaves_a_whole_folder_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "tiny"
    monkeypatch.setattr(quality, "measure", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.build(output, seed=0, steps=1)
    assert list(tmp_path.iterdir()) == []
