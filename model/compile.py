"""Compile: specialise every kernel of a configuration at the model's shapes, in both graphs.

The graphs are run once per bucket on zeros, with a stand-in for each kernel that specialises
it at the shapes it is called with and gives zeros back. What they were called with, and how
often, is the manifest.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoint import read_config, read_weights
from model.configuration import (
    Config,
    KernelConfiguration,
    kernel_configuration_path,
    read_kernel_configuration,
)
from model.fingerprint import fingerprint
from model.ops import KernelOp, Ops, build_ops, kernel_entries
from model.qwen3_moe import Cache, Qwen3Moe
from model.records import CheckpointRecord, CompileManifest, Graph, ProgramEntry, write_text
from model.runtime import check_buckets, checkpoint_directory
from simulator import targets
from simulator.check import peak_bytes_per_partition
from simulator.errors import NkiValidationError, Violation
from simulator.kernel import Kernel
from simulator.program import Program
from simulator.tensor import MemoryRegion


class CompileError(Exception):
    """A kernel failed its checks at a shape of the model; `violations` holds what was found."""

    def __init__(self, message: str, violations: list[Violation]) -> None:
        self.violations = violations
        super().__init__(message)


class Stand:
    """Takes a kernel's place in a graph: specialises instead of computing."""

    def __init__(self, filled: KernelOp) -> None:
        self.filled = filled
        self.kernel: Kernel = filled.kernel  # type: ignore[assignment]
        self.programs: dict[str, tuple[Program, int]] = {}
        """Fingerprint -> Program and how often it was called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the shapes that the kernel would return."""
        try:
            program = self.kernel.specialise(*args, **kwargs)
        except NkiValidationError as error:
            shapes = ", ".join(_show(n, v) for n, v in self._named(args, kwargs).items())
            raise CompileError(
                f"op {self.filled.op}, kernel {self.filled.name}, graph {self.filled.graph}, "
                f"called with {shapes}:\n{error}",
                error.violations,
            ) from None
        key = program.fingerprint()
        self.programs[key] = (program, self.programs.get(key, (program, 0))[1] + 1)
        results = tuple(
            torch.zeros(result.shape, dtype=getattr(torch, str(result.dtype)))
            for result in program.results
        )
        return results if program.returns_tuple else results[0]

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(inspect.signature(self.kernel.function).bind(*args, **kwargs).arguments)


def _show(name: str, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        dims = ",".join(map(str, value.shape))
        return f"{name}={str(value.dtype).removeprefix('torch.')}[{dims}]"
    return f"{name}={value!r}"


def compile_configuration(
    config: Config, name: str, checkpoint: Path, output: Path
) -> CompileManifest:
    """Specialise and check every kernel of configuration `name`; write the manifest.

    Beside `output`, `programs/` gets the text of every Program of the generation's shapes.

    Raises:
        CompileError: a kernel fails its checks; with op, kernel, graph, shapes and rules.
        ConfigurationError: a kernel or a parameter that does not exist.
    """
    if config.device == "neuron":
        from model.neuron import stages  # a device's own compiler

        return stages.compile_configuration(config, name, checkpoint, output)
    started = time.perf_counter()
    os.environ[targets.VARIABLE] = config.target
    record = CheckpointRecord.read(checkpoint)
    configuration = read_kernel_configuration(kernel_configuration_path(name))
    entries, texts = _specialise(config, configuration, record)
    kernels = kernel_entries(configuration)
    manifest = CompileManifest(
        model=config.model,
        configuration=name,
        device=config.device,
        target=config.target,
        dtype=config.dtype,
        checkpoint_fingerprint=record.fingerprint,
        kernels=kernels,
        programs=entries,
        fingerprint=fingerprint(
            [kernel.model_dump() for kernel in kernels],
            [entry.model_dump() for entry in entries],
            [record.fingerprint, config.device, config.target, config.dtype],
        ),
        compile_seconds_measured=time.perf_counter() - started,
    )
    _write_programs(output.parent / "programs", texts)
    manifest.write(output)
    return manifest


def _write_programs(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in set(folder.glob("*.txt")) - {folder / file for file in texts}:
        stale.unlink()
    for file, text in texts.items():
        write_text(folder / file, text)


def _specialise(
    config: Config, configuration: KernelConfiguration, record: CheckpointRecord
) -> tuple[list[ProgramEntry], dict[str, str]]:
    """The manifest's entries, and file name -> text of the generation's Programs."""
    directory = checkpoint_directory(record)
    architecture = read_config(directory)
    check_buckets(config, architecture)
    ops = build_ops(configuration)
    length = config.buckets.max_length
    weights = read_weights(directory, architecture, getattr(torch, config.dtype), length)
    model = Qwen3Moe(architecture, weights, ops)
    entries: list[ProgramEntry] = []
    texts: dict[str, str] = {}
    for batch in dict.fromkeys((1, config.accuracy.batch_size)):
        for graph, bucket, run in graph_runs(model, config, batch):
            for stand, program, calls in _stood_in(ops, run):
                entries.append(_entry(stand.filled, graph, bucket, config.dtype, program, calls))
                if batch == 1:
                    texts[f"{stand.filled.op}-{program.fingerprint()[:12]}.txt"] = str(program)
    return entries, texts


def graph_runs(
    model: Qwen3Moe, config: Config, batch: int
) -> Iterator[tuple[Graph, str, Callable[[], None]]]:
    """Every graph and bucket at `batch` sequences, with a function that runs it on zeros.

    A run includes the head at one position per sequence, as generation needs it.
    """
    length = config.buckets.max_length

    def cache() -> Cache:
        return Cache.empty(model.config, batch, length, model.dtype)

    for size in config.buckets.context_encoding:

        def encode(size: int = size) -> None:
            tokens = torch.zeros(batch, size, dtype=torch.int64)
            model.context_encoding(
                tokens, torch.full((batch, 1), size, dtype=torch.int32), cache(), batch > 1
            )

        yield "context_encoding", f"{batch}x{size}", encode

    def decode() -> None:
        tokens = torch.zeros(batch, 1, dtype=torch.int64)
        lengths = torch.full((batch, 1), length - 1, dtype=torch.int32)
        model.token_generation(tokens, lengths, cache())

    yield "token_generation", f"{batch}x1", decode


@torch.inference_mode()
def _stood_in(ops: Ops, run: Callable[[], None]) -> list[tuple[Stand, Program, int]]:
    """Run a graph with a stand-in for every kernel; what they specialised, with the calls."""
    stands = [Stand(filled) for filled in ops.filled.values()]
    for stand in stands:
        stand.filled.kernel = stand
    try:
        run()
    finally:
        for stand in stands:
            stand.filled.kernel = stand.kernel
    return [(s, program, calls) for s in stands for program, calls in s.programs.values()]


def _entry(
    filled: KernelOp, graph: Graph, bucket: str, dtype: str, program: Program, calls: int
) -> ProgramEntry:
    read, written = program.hbm_bytes()
    arguments = {
        name: f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]"
        for name, tensor in program.arguments.items()
    }
    arguments |= {name: _plain(value) for name, value in program.parameters.items()}
    return ProgramEntry(
        op=filled.op,
        kernel=filled.name,
        graph=graph,
        bucket=bucket,
        dtype=dtype,
        arguments=arguments,
        fingerprint=program.fingerprint(),
        calls=calls,
        instructions=len(program.instructions),
        instructions_by_engine=program.instructions_by_engine(),
        hbm_read_bytes=read,
        hbm_write_bytes=written,
        macs=program.macs(),
        sbuf_bytes_per_partition=peak_bytes_per_partition(program, MemoryRegion.sbuf)[0],
        psum_bytes_per_partition=peak_bytes_per_partition(program, MemoryRegion.psum)[0],
    )


def _plain(value: Any) -> str:
    return repr(value.item()) if isinstance(value, np.generic) else repr(value)
