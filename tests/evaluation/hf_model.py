"""For tests: a tiny random Qwen3-MoE checkpoint, and HF's model behind `LanguageModel`."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from evaluation.reference import load_hf
from model.fingerprint import fingerprint
from model.records import CheckpointRecord

torch.set_num_threads(1)

TEXT = "the a cat dog sees hears one two three four five six red blue green is . , and so"
WORDS = TEXT.split()


def make_checkpoint(folder: Path) -> Path:
    """Write a checkpoint and its record; returns the record's path."""
    weights = folder / "weights"
    vocab = {w: i for i, w in enumerate(["<|pad|>", "<|bos|>", "<|endoftext|>", "<|unk|>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|endoftext|>",
        unk_token="<|unk|>",
    ).save_pretrained(weights)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        initializer_range=0.15,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(weights)
    record = CheckpointRecord(
        model="tiny",
        directory=str(weights),
        source="test",
        files={},
        fingerprint=fingerprint(weights / "model.safetensors"),
    )
    path = folder / "checkpoint.json"
    record.write(path)
    return path


def write_tasks(folder: Path) -> None:
    """A multiple-choice, a perplexity and a generation task, and texts in data/texts.jsonl."""
    generator = torch.Generator().manual_seed(1)

    def text(length: int) -> str:
        picks = torch.randint(0, len(WORDS), (length,), generator=generator)
        return " ".join(WORDS[int(i)] for i in picks)

    choices = ["red", "blue and green", "one two", "six"]
    rows = {
        "choice": [{"text": text(4 + i), "choices": choices, "label": i % 4} for i in range(8)],
        "texts": [{"text": text(10 + i)} for i in range(8)],
        "generation": [{"text": text(5 + i % 3), "answer": "cat"} for i in range(6)],
    }
    (folder / "data").mkdir(parents=True)
    for name, values in rows.items():
        lines = "".join(json.dumps(value) + "\n" for value in values)
        (folder / "data" / f"{name}.jsonl").write_text(lines)
    head = (
        "task: {0}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: data/{1}.jsonl}}}}\n"
        "test_split: test\nmetadata: {{version: 1.0{2}}}\n"
    )
    (folder / "choice.yaml").write_text(
        head.format("choice", "choice", ", chance: 0.25")
        + "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: choices\n"
        "doc_to_target: label\nmetric_list: [{metric: acc, aggregation: mean, "
        "higher_is_better: true}]\n"
    )
    (folder / "perplexity.yaml").write_text(
        head.format("perplexity", "texts", "")
        + "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n"
    )
    (folder / "generation.yaml").write_text(
        head.format("generation", "generation", "")
        + "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 6, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )


class HfModel:
    """HF's model as a `LanguageModel`, with kernels that are only counted.

    `corrupt` is called on the HF model once it is loaded, to break it.
    """

    max_length = 48

    def __init__(
        self,
        checkpoint: CheckpointRecord,
        kernels: dict[str, str] | None = None,
        dtype: str = "float32",
        corrupt: Callable[[Any], object] | None = None,
        op_error: float = 1e-7,
    ) -> None:
        directory = Path(checkpoint.directory)
        self.hf = load_hf(directory, dtype)  # type: ignore[arg-type]
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        self.vocab_size = self.hf.config.vocab_size
        self.dtype, self.kernels, self.op_error = dtype, kernels or {}, op_error
        self.calls: dict[str, dict[str, int]] = {kernel: {} for kernel in self.kernels.values()}
        self.forwards = 0
        if corrupt:
            corrupt(self.hf)

    def _count(self, graph: str) -> None:
        self.forwards += 1
        for calls in self.calls.values():
            calls[graph] = calls.get(graph, 0) + 1

    @torch.inference_mode()
    def logits(self, sequences: list[list[int]]) -> list[torch.Tensor]:
        self._count("context_encoding")
        return [self.hf(torch.tensor([ids])).logits[0].float() for ids in sequences]

    @torch.inference_mode()
    def decode_logits(self, sequences: list[list[int]], prefix: int) -> list[torch.Tensor]:
        self._count("context_encoding")
        self._count("token_generation")
        result = []
        for ids in sequences:
            cache = self.hf(torch.tensor([ids[:prefix]]), use_cache=True).past_key_values
            rows = []
            for token in ids[prefix:]:
                out = self.hf(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                rows.append(out.logits[0, -1].float())
            result.append(torch.stack(rows))
        return result

    @torch.inference_mode()
    def generate_batch(
        self, prompts: list[list[int]], max_new_tokens: int, stop_token_ids: list[int]
    ) -> list[list[int]]:
        self._count("token_generation")
        results = []
        for prompt in prompts:
            tokens = list(prompt)
            for _ in range(max_new_tokens):
                tokens.append(int(self.hf(torch.tensor([tokens])).logits[0, -1].argmax()))
                if tokens[-1] in stop_token_ids:
                    break
            results.append(tokens[len(prompt) :])
        return results

    def kernel_calls(self) -> dict[str, dict[str, int]]:
        return self.calls

    def op_checks(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                op=op,
                kernel=kernel,
                dtype=self.dtype,
                calls=self.calls[kernel],
                max_relative_error=self.op_error,
            )
            for op, kernel in self.kernels.items()
        ]
