"""Run a model under a kernel configuration: batches, buckets, cache, generation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from model.checkpoint import ModelConfig, read_config, read_weights
from model.configuration import Config, ConfigurationError, KernelConfiguration, Sampling
from model.custom_ops import GraphError, running
from model.decoding import Generation, choose, teacher_forced, timed_generation
from model.export import CompiledGraph, load_graph
from model.ops import OpCheck, Ops, build_ops, kernel_entries
from model.qwen3_moe import Cache, Qwen3Moe
from model.records import CheckpointRecord, CompileManifest, Graph
from model.tokenizer import read_tokenizer
from simulator import targets

ENCODED_TOKENS = 512
"""Tokens that `logits` encodes at once: rows times bucket. A kernel that sorts tokens takes time
for each pair of them, so that four batches of 512 take 40 % of the time of one of 2048."""


class PromptError(Exception):
    """A prompt that cannot be run; the message gives its length and the limit."""


class CompiledGraphs:
    """The graphs that the compile stage exported, in place of the model's own functions."""

    def __init__(self, model: Qwen3Moe, manifest: CompileManifest, folder: Path) -> None:
        """Nothing is read yet.

        Args:
            model: weights and op table.
            manifest: which graphs there are.
            folder: where the manifest is.
        """
        self._model, self._folder = model, folder
        self._entries = {(entry.graph, entry.bucket): entry for entry in manifest.graphs}
        self._loaded: dict[str, CompiledGraph] = {}

    def context_encoding(
        self, tokens: Tensor, lengths: Tensor, cache: Cache, every: bool = False
    ) -> Tensor:
        """As `Qwen3Moe.context_encoding`, which gives the logits of every position itself."""
        if every:  # the graph ends at the last one's
            return self._model.context_encoding(tokens, lengths, cache, every)
        return self._run("context_encoding", tokens, lengths, cache)

    def token_generation(self, tokens: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
        """As `Qwen3Moe.token_generation`."""
        return self._run("token_generation", tokens, lengths, cache)

    def _run(self, graph: Graph, tokens: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
        entry = self._entries.get((graph, "x".join(map(str, tokens.shape))))
        length = cache.keys[0].shape[2]
        if entry is None or entry.cache_length != length:
            raise GraphError(
                f"no {graph} graph was compiled for {tokens.shape[0]} sequences of "
                f"{tokens.shape[1]} tokens and a cache of {length}; there are: "
                f"{', '.join(f'{e.graph} {e.bucket}' for e in self._entries.values())}"
            )
        if entry.file not in self._loaded:
            self._loaded[entry.file] = load_graph(self._folder / entry.file, entry.sha256)
        model = self._model
        model.ops.enter(graph)
        with running(model.ops):
            return self._loaded[entry.file](
                model.weights, tokens, lengths, cache.keys, cache.values
            )


class LanguageModel:
    """A model, its kernels, and the static shapes it runs at."""

    def __init__(
        self,
        model: Qwen3Moe,
        config: Config,
        directory: Path,
        batch_size: int,
        graphs: CompiledGraphs | None = None,
    ) -> None:
        """A model to evaluate.

        Args:
            model: weights, op table, and the graphs as functions.
            config: gives the buckets.
            directory: of the checkpoint.
            batch_size: how many sequences `logits` and `decode_logits` take at once.
            graphs: what runs in place of the model's functions.
        """
        self.model = model
        self.graphs: Qwen3Moe | CompiledGraphs = graphs or model
        self.buckets = config.buckets.context_encoding
        self.max_length = config.buckets.max_length
        self.batch_size = batch_size
        self.vocab_size = model.config.vocab_size
        self._directory = directory
        self._tokenizer: Any = None
        self._caches: dict[int, Cache] = {}

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = read_tokenizer(self._directory)
        return self._tokenizer

    def kernel_calls(self) -> dict[str, dict[Graph, int]]:
        """Kernel -> graph -> calls so far."""
        return self.model.ops.kernel_calls()

    def op_checks(self) -> list[OpCheck]:
        """The kernels against their references; empty unless loaded with `check_ops`."""
        return self.model.ops.op_checks()

    @torch.inference_mode()
    def logits(self, sequences: Sequence[list[int]], rows: int | None = None) -> list[Tensor]:
        """Logits of every position, by context encoding: per sequence fp32 [len, vocab].

        Sequences alike in length share a batch, whatever their order: of `rows`, by default
        `encoding_rows` of the bucket that holds the longest.
        """
        found: dict[int, Tensor] = {}
        waiting = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        while waiting:
            bucket = self._bucket(len(sequences[waiting[0]]))
            count = rows or encoding_rows(self.batch_size, bucket)
            batch, waiting = waiting[:count], waiting[count:]
            logits = self._encode([sequences[index] for index in batch], count, every=True)
            for row, index in enumerate(batch):
                found[index] = logits[row, : len(sequences[index])].clone()
        return [found[index] for index in range(len(sequences))]

    @torch.inference_mode()
    def chunked_logits(self, sequences: Sequence[list[int]], chunk: int) -> list[Tensor]:
        """As `logits`, `chunk` tokens at a time against the cache; up to `max_length` of them.

        What a kernel for `attention_prefill` does is not used: it sees no earlier keys.
        """
        longest = max(map(len, sequences), default=1)
        if not 1 <= chunk <= self.max_length or not 1 <= longest <= self.max_length:
            raise PromptError(
                f"chunks of {chunk} tokens, longest sequence {longest}: both must be 1 to "
                f"buckets.max_length ({self.max_length})"
            )
        found: list[Tensor] = []
        for batch in _batches(sequences, self.batch_size):
            cache = self._empty_cache(self.batch_size)
            tokens, _ = self._padded(batch, self.batch_size, self.max_length)
            rows = tokens.new_zeros(*tokens.shape, self.vocab_size, dtype=torch.float32)
            for first in range(0, max(map(len, batch)), chunk):
                start = min(first, self.max_length - chunk)  # the last chunk may repeat some
                at = slice(start, start + chunk)
                starts = torch.full((self.batch_size, 1), start, dtype=torch.int32)
                rows[:, at] = self.model.chunk_encoding(
                    tokens[:, at], torch.full_like(starts, chunk), starts, cache, every=True
                )
            found += [rows[i, : len(tokens)].clone() for i, tokens in enumerate(batch)]
        return found

    @torch.inference_mode()
    def decode_logits(self, sequences: Sequence[list[int]], prefix: int) -> list[Tensor]:
        """Logits by token generation: the first `prefix` tokens are encoded, the rest fed.

        Returns:
            Per sequence fp32 [len - prefix, vocab]; row i follows token `prefix + i`.
        """
        short = [len(tokens) for tokens in sequences if len(tokens) <= prefix]
        if prefix < 1 or short:
            raise PromptError(
                f"decode_logits needs a prefix of at least 1 and longer sequences; prefix "
                f"{prefix}, shortest sequence {min(short, default=0)}"
            )
        found: list[Tensor] = []
        for batch in _batches(sequences, self.batch_size):
            self._encode([tokens[:prefix] for tokens in batch], self.batch_size)
            found += teacher_forced(
                batch,
                prefix,
                lambda tokens, at: self._step(tokens, [at] * len(tokens), self.batch_size),
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
        return [
            self._generate(list(prompt), max_new_tokens, set(stop_token_ids), sampling)
            for prompt in prompts
        ]

    @torch.inference_mode()
    def generate_batch(
        self, prompts: Sequence[list[int]], max_new_tokens: int, stop_token_ids: Sequence[int]
    ) -> list[list[int]]:
        """The tokens of `generate`, greedy, `batch_size` prompts at once and without times.

        Every row ends on its own; the batch runs until the last one has. In fp32 the tokens are
        those of one at a time; in bf16 a batch may round a close call the other way.
        """
        stop = set(stop_token_ids)
        found: list[list[int]] = []
        for batch in _batches(prompts, self.batch_size):
            found += self._generate_batch(batch, max_new_tokens, stop)
        return found

    def _generate_batch(
        self, prompts: Sequence[list[int]], new: int, stop: set[int]
    ) -> list[list[int]]:
        logits = self._encode(prompts, self.batch_size)
        found = [[choose(logits[row], None, None)] for row in range(len(prompts))]
        limits = [min(new, self.max_length - len(prompt) + 1) for prompt in prompts]
        going = set(range(len(prompts)))
        while True:
            going = {i for i in going if len(found[i]) < limits[i] and found[i][-1] not in stop}
            if not going:
                return found
            # A row that has ended stays where it is, within the cache: nobody reads it.
            positions = [
                min(len(prompt) + len(tokens), self.max_length) - 1
                for prompt, tokens in zip(prompts, found, strict=True)
            ]
            logits = self._step([tokens[-1] for tokens in found], positions, self.batch_size)
            for i in going:
                found[i].append(choose(logits[i], None, None))

    def _generate(
        self, prompt: list[int], new: int, stop: set[int], sampling: Sampling | None
    ) -> Generation:
        return timed_generation(
            lambda: self._encode([prompt], 1)[0],
            lambda token, position: self._step([token], [position], 1)[0],
            prompt_tokens=len(prompt),
            most_tokens=min(new, self.max_length - len(prompt) + 1),
            stop=stop,
            sampling=sampling,
        )

    def _encode(self, prompts: Sequence[list[int]], rows: int, every: bool = False) -> Tensor:
        """Context encoding at the bucket that holds the longest prompt, with `rows` rows."""
        tokens, lengths = self._padded(prompts, rows, self._bucket(max(map(len, prompts))))
        return self.graphs.context_encoding(tokens, lengths, self._empty_cache(rows), every)

    def _bucket(self, longest: int) -> int:
        """The smallest bucket that holds so many tokens."""
        bucket = next((size for size in self.buckets if size >= longest), None)
        if bucket is None:
            raise PromptError(
                f"a prompt of {longest} tokens is longer than the largest context_encoding "
                f"bucket ({self.buckets[-1]}); shorten it or add a bucket to the configuration"
            )
        return bucket

    def _padded(self, prompts: Sequence[list[int]], rows: int, width: int) -> tuple[Tensor, Tensor]:
        """Tokens int64 [rows, width] and lengths int32 [rows, 1]; rows without a prompt have 1."""
        if min(map(len, prompts)) == 0:
            raise PromptError("a prompt is empty; give at least one token")
        tokens = torch.zeros(rows, width, dtype=torch.int64)
        lengths = torch.ones(rows, 1, dtype=torch.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
            lengths[row] = len(prompt)
        if int(tokens.max()) >= self.vocab_size or int(tokens.min()) < 0:
            raise PromptError(f"a token id is outside the vocabulary (0 to {self.vocab_size - 1})")
        return tokens, lengths

    def _empty_cache(self, rows: int) -> Cache:
        """The static cache of that many sequences, cleared."""
        if rows not in self._caches:
            self._caches[rows] = Cache.empty(
                self.model.config, rows, self.max_length, self.model.dtype
            )
        else:
            self._caches[rows].clear()
        return self._caches[rows]

    def _step(self, tokens: list[int], positions: list[int], rows: int) -> Tensor:
        """One token per row against the cache that `_encode` filled: logits [rows, V].

        Rows beyond `tokens` are padding.
        """
        fed = torch.zeros(rows, 1, dtype=torch.int64)
        at = torch.zeros(rows, 1, dtype=torch.int32)
        fed[: len(tokens), 0] = torch.tensor(tokens)
        at[: len(positions), 0] = torch.tensor(positions, dtype=torch.int32)
        return self.graphs.token_generation(fed, at, self._caches[rows])


def encoding_rows(batch_size: int, bucket: int) -> int:
    """Rows of a batch whose every position's logits are wanted, at a bucket."""
    return max(1, min(batch_size, ENCODED_TOKENS // bucket))


def _batches(sequences: Sequence[list[int]], size: int) -> list[Sequence[list[int]]]:
    return [sequences[start : start + size] for start in range(0, len(sequences), size)]


def checkpoint_directory(record: CheckpointRecord) -> Path:
    """Where a verified checkpoint's files are; relative paths start at the project's root."""
    directory = Path(record.directory)
    return directory if directory.is_absolute() else Path(__file__).parent.parent / directory


def load(
    checkpoint: Path | CheckpointRecord,
    kernel_configuration: KernelConfiguration,
    *,
    dtype: str,
    config: Config,
    check_ops: bool = False,
    batch_size: int | None = None,
    compiled: Path | None = None,
) -> LanguageModel:
    """Load a checkpoint under a kernel configuration, on the configuration's device.

    Args:
        checkpoint: a CheckpointRecord or its file.
        kernel_configuration: which op is filled by which kernel.
        dtype: `bfloat16` or `float32`.
        config: gives the buckets.
        check_ops: run every op's reference beside its kernel, and keep the worst error.
        batch_size: of `logits` and `decode_logits`; `config.accuracy.batch_size` if None.
        compiled: a compile manifest, whose graphs then run, one sequence at a time, but for the
            logits of every position; else the model runs as it is written, which gives the same
            numbers at any batch.

    Raises:
        CheckpointError: the checkpoint does not fit the architecture.
        ConfigurationError: a kernel cannot be loaded, or the buckets exceed the model.
        GraphError: the graphs were compiled for another dtype or configuration.
    """
    if config.device == "neuron":
        from model.neuron import runtime, stages

        if compiled is not None:
            stages.require_device()  # it will be timed
        neuron = runtime.load(
            checkpoint,
            kernel_configuration,
            dtype=dtype,
            config=config,
            check_ops=check_ops,
            batch_size=batch_size,
        )
        return cast("LanguageModel", neuron)  # the same interface
    os.environ[targets.VARIABLE] = config.target
    record = checkpoint if isinstance(checkpoint, CheckpointRecord) else (
        CheckpointRecord.read(checkpoint)
    )  # fmt: skip
    directory = checkpoint_directory(record)
    architecture = read_config(directory)
    check_buckets(config, architecture)
    ops: Ops = build_ops(kernel_configuration, check_ops)
    weights = read_weights(
        directory, architecture, getattr(torch, dtype), config.buckets.max_length
    )
    model = Qwen3Moe(architecture, weights, ops)
    batch_size = config.accuracy.batch_size if batch_size is None else batch_size
    graphs = None
    if compiled is not None:
        manifest = CompileManifest.read(compiled)
        _check_compiled(compiled, manifest, kernel_configuration, dtype)
        graphs = CompiledGraphs(model, manifest, compiled.parent)
    return LanguageModel(model, config, directory, batch_size, graphs)


def _check_compiled(
    path: Path, manifest: CompileManifest, configuration: KernelConfiguration, dtype: str
) -> None:
    """See that graphs were compiled from these kernels, as they are now, and for this dtype."""
    if manifest.dtype != dtype:
        raise GraphError(f"{path}: was compiled for {manifest.dtype}, not {dtype}")
    if manifest.kernels != kernel_entries(configuration):
        raise GraphError(
            f"{path}: the kernels of {manifest.configuration!r} changed since they were compiled; "
            "run snakemake, which compiles them again"
        )


def check_buckets(config: Config, architecture: ModelConfig) -> None:
    """Refuse a cache longer than the positions the model was made for."""
    if config.buckets.max_length > architecture.max_position_embeddings:
        raise ConfigurationError(
            f"buckets.max_length is {config.buckets.max_length}, but model {config.model!r} has "
            f"positions for {architecture.max_position_embeddings} tokens"
        )
