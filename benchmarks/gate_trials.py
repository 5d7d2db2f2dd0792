"""The trials behind benchmarks/gates.py: right kernels and kernels 5 % off, on texts held out.

A trial runs a model in bf16 through both graphs and asks the accuracy stage's bf16 gates, and
nothing else: neither fp32 nor a kernel's own check. Models, references and gates are made by the
functions that the stage uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from evaluation.accuracy import compare_graphs, decode_prefix
from evaluation.interface import LanguageModel
from evaluation.records import Gate, LogitComparison, RoundingComparison
from evaluation.reference import DTYPES, ReferenceLogits, load_hf
from evaluation.verdict import GRAPHS, Measurements, bfloat16_gates
from kernels.contracts import CONTRACTS
from model.configuration import (
    Config,
    KernelConfiguration,
    Tolerances,
    parse_config,
    read_config,
)
from model.download import download
from model.ops import KernelOp
from model.records import CheckpointRecord
from model.runtime import LanguageModel as RunningModel
from model.runtime import checkpoint_directory, load
from model.training.corpus import texts

CONFIG = Path(__file__).parents[1] / "config/config.yaml"

CACHE_LENGTHS = {"attention_decode": 5, "attention_block_decode": 9}
"""Op that writes a cache -> which of its arguments says where."""


@dataclass(frozen=True)
class Fault:
    """A way for an op to be 5 % off."""

    name: str
    factor: float
    step: int
    """Every how many numbers."""

    def of(self, numbers: Tensor) -> Tensor:
        """The numbers, made wrong."""
        if not numbers.is_floating_point():
            return numbers  # which experts were chosen
        wrong = numbers.clone()
        wrong[..., :: self.step] *= self.factor
        return wrong


FAULTS = (
    Fault("every number x 1.05", 1.05, 1),
    Fault("every number x 0.95", 0.95, 1),
    Fault("every second number x 1.05", 1.05, 2),
)


@contextmanager
def broken(kernel: KernelOp, fault: Fault) -> Iterator[None]:
    """Within the block a filled op gives all its results wrong; a cache's new rows are a result."""
    right = kernel.contract

    def call(*arguments: Any, **parameters: Any) -> Any:
        results = CONTRACTS[kernel.op].call(*arguments, **parameters)
        if not isinstance(results, tuple):
            return fault.of(results)
        own = len(results) - len(right.written)
        for cache in results[own:]:
            lengths = arguments[1 + CACHE_LENGTHS[kernel.op]][:, 0].long()
            rows = torch.arange(cache.shape[0])
            cache[rows, :, lengths] = fault.of(cache[rows, :, lengths])
        return (*map(fault.of, results[:own]), *results[own:])

    kernel.contract = replace(right, call=call)
    try:
        yield
    finally:
        kernel.contract = right


@torch.inference_mode()
def hf_reference(directory: Path, tokens: list[list[int]]) -> ReferenceLogits:
    """Hugging Face's logits of `tokens` in both data types, as the reference stage makes them."""
    logits = {}
    for dtype in DTYPES:
        hf = load_hf(directory, dtype)
        logits[dtype] = [
            hf(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in tokens
        ]
    return ReferenceLogits(tokens, logits, [], {}, "", "")


@dataclass(frozen=True)
class Logits:
    """What a model gave for a reference's tokens; it stands for the model in `compare_graphs`."""

    encoded: list[Tensor]
    decoded: list[Tensor]
    prefix: int
    """How many tokens came before the decoded ones."""

    def logits(self, sequences: Sequence[list[int]]) -> list[Tensor]:
        """Context encoding's."""
        return self.encoded

    def decode_logits(self, sequences: Sequence[list[int]], prefix: int) -> list[Tensor]:
        """Token generation's, from `prefix` on."""
        return [rows[prefix - self.prefix :] for rows in self.decoded]


def run(model: RunningModel, reference: ReferenceLogits) -> Logits:
    """Run a model through both graphs."""
    prefix = decode_prefix(reference.tokens)
    return Logits(
        list(model.logits(reference.tokens)),
        list(model.decode_logits(reference.tokens, prefix)),
        prefix,
    )


@dataclass(frozen=True)
class Judged:
    """What the bf16 gates say of a run."""

    rounding: list[RoundingComparison]
    comparisons: list[LogitComparison]
    gates: list[Gate]

    @property
    def failed(self) -> list[Gate]:
        """The gates that closed."""
        return [gate for gate in self.gates if not gate.passed]


def judge(
    found: Logits, reference: ReferenceLogits, tolerances: Tolerances, sequences: slice
) -> Judged:
    """The bf16 gates on some of the sequences of a run."""
    part = replace(
        reference,
        tokens=reference.tokens[sequences],
        logits={dtype: rows[sequences] for dtype, rows in reference.logits.items()},
    )
    ours = replace(found, encoded=found.encoded[sequences], decoded=found.decoded[sequences])
    comparisons, rounding = compare_graphs(cast(LanguageModel, ours), "bfloat16", part)
    measured = Measurements("bfloat16", comparisons, {}, {}, [], rounding=rounding)
    gates = [gate for graph in GRAPHS for gate in bfloat16_gates(measured, graph, tolerances)]
    return Judged(rounding, comparisons, gates)


@dataclass(frozen=True)
class Subject:
    """A checkpoint and what it is asked."""

    name: str
    record: CheckpointRecord
    config: Config
    reference: ReferenceLogits

    def load(self, kernels: KernelConfiguration) -> RunningModel:
        """The bf16 model with these kernels."""
        return load(self.record, kernels, dtype="bfloat16", config=self.config)


def tiny_subject(
    folder: Path, seed: int, sequences: int = 16, shortest: int = 40, longest: int = 100
) -> Subject:
    """The default model on held-out texts of a seed, of so many words; config/tasks/data has those
    of seed 1.
    """
    config = read_config(CONFIG)
    settings = config.accuracy.model_copy(update={"batch_size": sequences})
    config = config.model_copy(update={"accuracy": settings})
    checkpoint = folder / "tiny.json"
    download(config, checkpoint)
    record = CheckpointRecord.read(checkpoint)
    directory = checkpoint_directory(record)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    made = texts(seed, sequences, shortest, longest)
    tokens = [tokenizer(text)["input_ids"] for text in made]
    return Subject(f"texts {seed}", record, config, hf_reference(directory, tokens))


def random_subject(folder: Path, seed: int, sequences: int = 16) -> Subject:
    """A random checkpoint of another size (4 layers, 16 experts top-4, untied head), on random
    tokens.
    """
    torch.manual_seed(seed)
    architecture = Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        initializer_range=0.2,
        max_position_embeddings=128,
    )
    model = Qwen3MoeForCausalLM(architecture)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones would hide a weight that is not applied
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    directory = folder / f"random-{seed}"
    model.to(torch.bfloat16).save_pretrained(directory)
    record = CheckpointRecord(
        model="random", directory=str(directory), source="random", files={}, fingerprint="0" * 64
    )
    config = parse_config(
        {
            "model": "random",
            "models": {"random": {"source": "random"}},
            "configurations": ["baseline"],
            "buckets": {"context_encoding": [64], "max_length": 64},
            "generate": {"prompts": "none"},
            "accuracy": {"texts": "none", "tasks": "none", "batch_size": sequences},
        }
    )
    lengths = torch.randint(40, 65, (sequences,)).tolist()
    tokens = [torch.randint(0, architecture.vocab_size, (n,)).tolist() for n in lengths]
    return Subject(f"random {seed}", record, config, hf_reference(directory, tokens))
