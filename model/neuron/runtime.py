"""The interface of `model.runtime.LanguageModel` over NxD Inference.

Two applications: one generates, a prompt at a time; one scores, `batch_size` sequences at a
time, with logits of all positions from context encoding. Each is loaded when first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import read_config
from model.configuration import Config, KernelConfiguration, Sampling
from model.decoding import Generation, teacher_forced, timed_generation
from model.neuron.application import (
    Application,
    Kind,
    build,
    load_application,
    work_directory,
)
from model.neuron.availability import on_cpu, require
from model.neuron.compiled import CompiledGraphs, compile_application
from model.neuron.work_directory import WorkDirectory
from model.ops import GRAPHS, OpCheck
from model.records import CheckpointRecord, Graph
from model.runtime import PromptError, check_buckets, checkpoint_directory
from model.tokenizer import read_tokenizer


class NeuronLanguageModel:
    """A kernel configuration's model in NxD Inference; compiled when first used, if it is not."""

    def __init__(
        self,
        config: Config,
        configuration: KernelConfiguration,
        directory: Path,
        dtype: str,
        batch_size: int,
        check_ops: bool,
    ) -> None:
        """See `load`."""
        architecture = read_config(directory)
        check_buckets(config, architecture)
        self.buckets = config.buckets.context_encoding
        self.max_length = config.buckets.max_length
        self.batch_size = batch_size
        self.vocab_size = architecture.vocab_size
        self._config = config
        self._kernels = configuration
        self._directory = directory
        self._dtype = dtype
        self._check_ops = check_ops
        self._loaded: dict[Kind, Application] = {}
        self._runs: dict[Kind, dict[Graph, int]] = {}
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = read_tokenizer(self._directory)
        return self._tokenizer

    def kernel_calls(self) -> dict[str, dict[Graph, int]]:
        """Kernel -> graph -> calls so far.

        In CPU mode each was counted. On a device, where kernels are part of the graphs, it is
        how often a graph ran, times the calls counted in it when it was compiled.
        """
        calls: dict[str, dict[Graph, int]] = {
            chosen.kernel.rpartition(":")[2]: dict.fromkeys(GRAPHS, 0)
            for chosen in self._kernels.ops.values()
        }
        for kind, application in self._loaded.items():
            for kernel, counted in self._calls_of(kind, application).items():
                for graph in GRAPHS:
                    calls[kernel][graph] += counted[graph]
        return calls

    def _calls_of(self, kind: Kind, application: Application) -> dict[str, dict[Graph, int]]:
        if on_cpu():
            return application.ops.kernel_calls()
        graphs = CompiledGraphs.of(self._directory_of(kind))
        return {
            kernel: {graph: calls[graph] * self._runs[kind][graph] for graph in GRAPHS}
            for kernel, calls in graphs.kernel_calls.items()
        }

    def op_checks(self) -> list[OpCheck]:
        """The kernels against their references; empty unless loaded with `check_ops`, in CPU mode.

        On a device, kernels are part of the graphs: only logits come out of these.
        """
        merged: dict[tuple[str, str], OpCheck] = {}
        for application in self._loaded.values():
            for check in application.ops.op_checks():
                key = (check.op, check.dtype)
                merged[key] = _both(merged[key], check) if key in merged else check
        return list(merged.values())

    @torch.inference_mode()
    def logits(self, sequences: Sequence[list[int]]) -> list[Tensor]:
        """Logits of every position, by context encoding: per sequence fp32 [len, vocab]."""
        found: list[Tensor] = []
        for start in range(0, len(sequences), self.batch_size):
            batch = sequences[start : start + self.batch_size]
            rows = self._encode("scoring", batch)
            found += [rows[i, : len(tokens)].clone() for i, tokens in enumerate(batch)]
        return found

    @torch.inference_mode()
    def decode_logits(self, sequences: Sequence[list[int]], prefix: int) -> list[Tensor]:
        """Logits by token generation: the first `prefix` tokens are encoded, the rest fed.

        Returns:
            Per sequence fp32 [len - prefix, vocab]; row i follows token `prefix + i`.
        """
        shortest = min(map(len, sequences), default=prefix + 1)
        longest = max(map(len, sequences), default=0)
        if prefix < 1 or shortest <= prefix or longest > self.max_length:
            raise PromptError(
                f"decode_logits needs a prefix of at least 1 and longer sequences, up to "
                f"buckets.max_length ({self.max_length}); prefix {prefix}, sequences of "
                f"{shortest} to {longest}"
            )
        found: list[Tensor] = []
        for start in range(0, len(sequences), self.batch_size):
            batch = sequences[start : start + self.batch_size]
            self._encode("scoring", [tokens[:prefix] for tokens in batch])
            found += teacher_forced(
                batch, prefix, lambda tokens, position: self._step("scoring", tokens, position)
            )
        return found

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Continue each prompt, one at a time, greedily or by seeded sampling.

        A stop token ends a continuation and is its last token. The cache may end it earlier.
        """
        stop = set(stop_token_ids)
        return [self._generate(list(p), max_new_tokens, stop, sampling) for p in prompts]

    def generate_batch(
        self, prompts: Sequence[list[int]], max_new_tokens: int, stop_token_ids: Sequence[int]
    ) -> list[list[int]]:
        """The tokens of `generate`; one at a time, as the generation graphs are built."""
        return [run.tokens for run in self.generate(prompts, max_new_tokens, stop_token_ids)]

    def _generate(
        self, prompt: list[int], new: int, stop: set[int], sampling: Sampling | None
    ) -> Generation:
        self._application("generation")  # loading is no part of the first token's time
        return timed_generation(
            lambda: self._encode("generation", [prompt])[0, -1],
            lambda token, position: self._step("generation", [token], position)[0],
            prompt_tokens=len(prompt),
            most_tokens=min(new, self.max_length - len(prompt) + 1),
            stop=stop,
            sampling=sampling,
        )

    def _application(self, kind: Kind) -> Application:
        if kind not in self._loaded:
            application = build(
                self._config,
                self._kernels,
                self._directory,
                kind=kind,
                batch_size=1 if kind == "generation" else self.batch_size,
                dtype=self._dtype,
                check_ops=self._check_ops,
            )
            directory = self._directory_of(kind)
            if not on_cpu() and not directory.is_compiled():
                compile_application(application, directory)
            load_application(application, directory)
            self._loaded[kind] = application
            self._runs[kind] = dict.fromkeys(GRAPHS, 0)
        return self._loaded[kind]

    def _directory_of(self, kind: Kind) -> WorkDirectory:
        return work_directory(self._config, self._kernels, kind, self._dtype)

    def _encode(self, kind: Kind, prompts: Sequence[list[int]]) -> Tensor:
        """Context encoding: fp32 [batch, S, vocab] if scoring, else [1, 1, vocab] of the last."""
        application = self._application(kind)
        longest = max(map(len, prompts))
        if min(map(len, prompts)) == 0:
            raise PromptError("a prompt is empty; give at least one token")
        if longest > self.buckets[-1]:
            raise PromptError(
                f"a prompt of {longest} tokens is longer than the largest context_encoding "
                f"bucket ({self.buckets[-1]}); shorten it or add a bucket to the configuration"
            )
        shape = (application.batch_size, max(2, longest))  # of one token, NxD would generate
        tokens = torch.zeros(shape, dtype=torch.int64)
        mask = torch.zeros(shape, dtype=torch.int64)
        mask[:, 0] = 1  # rows without a prompt
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
            mask[row, : len(prompt)] = 1
        if int(tokens.max()) >= self.vocab_size or int(tokens.min()) < 0:
            raise PromptError(f"a token id is outside the vocabulary (0 to {self.vocab_size - 1})")
        positions = torch.arange(shape[1]).expand(shape).masked_fill(mask == 0, 1)
        application.model.reset()
        self._runs[kind]["context_encoding"] += 1
        return self._run(application, tokens, mask, positions)

    def _step(self, kind: Kind, tokens: list[int], position: int) -> Tensor:
        """One token per row, all at one position: fp32 [batch, vocab]."""
        application = self._application(kind)
        fed = torch.zeros(application.batch_size, 1, dtype=torch.int64)
        fed[: len(tokens), 0] = torch.tensor(tokens)
        self._runs[kind]["token_generation"] += 1
        return self._run(application, fed, None, torch.full_like(fed, position))[:, -1]

    def _run(
        self, application: Application, tokens: Tensor, mask: Tensor | None, positions: Tensor
    ) -> Tensor:
        logits: Tensor = application.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            seq_ids=torch.arange(tokens.shape[0]),
        ).logits
        return logits.to(torch.float32)


def _both(one: OpCheck, other: OpCheck) -> OpCheck:
    return replace(
        one,
        calls={graph: one.calls[graph] + other.calls[graph] for graph in GRAPHS},
        max_relative_error=max(one.max_relative_error, other.max_relative_error),
    )


def load(
    checkpoint: Path | CheckpointRecord,
    kernel_configuration: KernelConfiguration,
    *,
    dtype: str,
    config: Config,
    check_ops: bool = False,
    batch_size: int | None = None,
) -> NeuronLanguageModel:
    """A checkpoint under a kernel configuration, in NxD Inference.

    Args:
        checkpoint: a CheckpointRecord or its file.
        kernel_configuration: which op is filled by which kernel.
        dtype: `bfloat16` or `float32`.
        config: buckets, target, and the section `neuron`.
        check_ops: run every op's reference beside its kernel (CPU mode only).
        batch_size: of `logits` and `decode_logits`; `config.accuracy.batch_size` if None.

    Raises:
        NeuronError: NxD Inference is not installed.
        CheckpointError: the checkpoint does not fit the architecture.
        ConfigurationError: the buckets exceed the model.
    """
    require()
    record = checkpoint if isinstance(checkpoint, CheckpointRecord) else (
        CheckpointRecord.read(checkpoint)
    )  # fmt: skip
    return NeuronLanguageModel(
        config,
        kernel_configuration,
        checkpoint_directory(record),
        dtype,
        config.accuracy.batch_size if batch_size is None else batch_size,
        check_ops,
    )
