"""Compile: a configuration's two static graphs, and every kernel specialised at their shapes.

What each graph calls, and at which shapes, is found by running the model on tensors without data
(model/op_calls.py). Every kernel is specialised and checked there; the graphs that generation
runs are exported (model/export.py). The manifest says what was made, and with which digests; it
is written last. No weights are read, but their names and shapes are checked.

The same compilation is not done twice: see model/compile_cache.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoint import ModelConfig, check_tensors, read_config
from model.compile_cache import CompileCache, Compiled, environment_of
from model.configuration import (
    Config,
    KernelConfiguration,
    kernel_configuration_path,
    read_kernel_configuration,
)
from model.export import export_graph
from model.fingerprint import file_sha256, fingerprint
from model.op_calls import CompileError, OpCall, record_op_calls, specialise
from model.ops import KernelOp, fill, kernel_entries, kernel_name
from model.records import CheckpointRecord, CompileManifest, Graph, GraphEntry, ProgramEntry
from model.runtime import check_buckets, checkpoint_directory, encoding_rows
from simulator import targets
from simulator.check import peak_bytes_per_partition
from simulator.program import Program
from simulator.tensor import MemoryRegion

__all__ = ["CompileError", "compile_configuration"]

CACHE = Path("results/cache/compile")


def compile_configuration(
    config: Config, name: str, checkpoint: Path, output: Path, cache: Path | None = CACHE
) -> CompileManifest:
    """Compile configuration `name` and write the manifest.

    Beside `output` come `graphs/`, the exported graphs of one sequence, and `programs/`, the text
    of every Program they call. If anything fails, nothing is written.

    Args:
        config: the evaluation.
        name: the kernel configuration, a file of config/kernels.
        checkpoint: the checkpoint's record.
        output: the manifest.
        cache: where earlier compilations are kept; None for none.

    Raises:
        CompileError: a kernel fails its checks; with op, kernel, graph, shapes and rules.
        ConfigurationError: a kernel or a parameter that does not exist.
        CheckpointError: the checkpoint's tensors do not fit its config.json.
    """
    if config.device == "neuron":
        from model.neuron import stages  # a device's own compiler

        return stages.compile_configuration(config, name, checkpoint, output)
    started = time.perf_counter()
    os.environ[targets.VARIABLE] = config.target
    record = CheckpointRecord.read(checkpoint)
    configuration = read_kernel_configuration(kernel_configuration_path(name))
    directory = checkpoint_directory(record)
    architecture = read_config(directory)
    check_buckets(config, architecture)
    check_tensors(directory, architecture)
    filled = fill(configuration)
    kernels = kernel_entries(configuration)
    key = fingerprint(
        environment_of(kernels),
        architecture,
        config.buckets,
        [config.target, config.dtype, list(_static_graphs(config))],
        [[entry.op, entry.kernel, entry.parameters] for entry in kernels],
    )
    store = None if cache is None else CompileCache(cache)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".compile-") as temporary:
        folder = store.find(key) if store else None
        if folder is None:
            folder = Path(temporary)
            _compile(config, architecture, configuration, filled, folder)
            if store:
                store.keep(key, folder)
        compiled = Compiled.read(folder / Compiled.FILE)
        output.unlink(missing_ok=True)  # while it is there, what it names is whole
        for part in ("graphs", "programs"):
            shutil.rmtree(output.parent / part, ignore_errors=True)
            shutil.copytree(folder / part, output.parent / part)
    manifest = CompileManifest(
        model=config.model,
        configuration=name,
        device=config.device,
        target=config.target,
        dtype=config.dtype,
        checkpoint_fingerprint=record.fingerprint,
        kernels=kernels,
        programs=compiled.programs,
        graphs=compiled.graphs,
        fingerprint="",
        compile_seconds_measured=time.perf_counter() - started,
    )
    manifest = manifest.model_copy(update={"fingerprint": manifest.own_fingerprint()})
    manifest.write(output)
    return manifest


@dataclass
class _Specialised:
    """Every distinct kernel call, specialised once, with the Program's fingerprint."""

    programs: dict[Any, tuple[str, Program]] = field(default_factory=dict)

    def find(self, call: OpCall, graph: Graph) -> tuple[str, Program]:
        key = (call.op, call.arguments, call.kernel, call.parameters)
        if key not in self.programs:
            program = specialise(call, where=f"graph {graph}")
            self.programs[key] = (program.fingerprint(), program)
        return self.programs[key]


def _compile(
    config: Config,
    architecture: ModelConfig,
    configuration: KernelConfiguration,
    filled: dict[str, KernelOp],
    folder: Path,
) -> None:
    """Write graphs/, programs/ and the record of both."""
    specialised = _Specialised()
    programs: list[ProgramEntry] = []
    graphs: list[GraphEntry] = []
    for part in ("graphs", "programs"):
        (folder / part).mkdir()
    for batch, graph, bucket in _static_graphs(config):
        length = config.buckets.max_length
        calls = record_op_calls(
            architecture,
            configuration,
            graph,
            batch=batch,
            bucket=bucket,
            context=length,
            dtype=config.dtype,
            every=batch > 1,
        )
        shape = f"{batch}x{bucket}"
        for call, digest, program, count in _distinct(calls, graph, specialised):
            entry = _entry(call, graph, shape, program)
            more = {"dtype": config.dtype, "fingerprint": digest, "calls": count}
            programs.append(ProgramEntry.model_validate(entry | more))
            text = folder / "programs" / f"{call.op}-{digest[:12]}.txt"
            if batch == 1 and not text.exists():
                text.write_text(str(program), encoding="utf-8")
        if batch > 1:
            continue
        file = folder / "graphs" / f"{graph}-{shape}.pt2"
        kind = getattr(torch, config.dtype)
        file.write_bytes(
            export_graph(
                architecture, filled, graph, batch=batch, bucket=bucket, length=length, dtype=kind
            )
        )
        graphs.append(
            GraphEntry(
                graph=graph,
                bucket=shape,
                cache_length=length,
                file=f"graphs/{file.name}",
                sha256=file_sha256(file),
                op_calls=dict(Counter(call.op for call in calls)),
                kernel_calls=dict(Counter(kernel_name(c.kernel) for c in calls if c.kernel)),
            )
        )
    Compiled(programs=programs, graphs=graphs).write(folder / Compiled.FILE)


def _batches(config: Config) -> list[int]:
    """Sequences at a time: one in generation, more in the accuracy stage."""
    return list(dict.fromkeys((1, config.accuracy.batch_size)))


def _static_graphs(config: Config) -> Iterator[tuple[int, Graph, int]]:
    """Batch, graph and tokens of each sequence, without repeats."""
    found: dict[tuple[int, Graph, int], None] = {}
    for batch in _batches(config):
        for bucket in config.buckets.context_encoding:
            found[encoding_rows(batch, bucket), "context_encoding", bucket] = None
        found[batch, "token_generation", 1] = None
    yield from found


def _distinct(
    calls: list[OpCall], graph: Graph, specialised: _Specialised
) -> Iterator[tuple[OpCall, str, Program, int]]:
    """One call for every Program and op of a graph, its fingerprint, how often it is called."""
    found: dict[tuple[str, str], tuple[OpCall, str, Program, int]] = {}
    for call in calls:
        if call.kernel is not None:
            digest, program = specialised.find(call, graph)
            count = found[call.op, digest][3] if (call.op, digest) in found else 0
            found[call.op, digest] = (call, digest, program, count + 1)
    yield from found.values()


def _entry(call: OpCall, graph: Graph, bucket: str, program: Program) -> dict[str, Any]:
    """A `ProgramEntry`'s fields, as far as they follow from these."""
    assert call.kernel is not None
    read, written = program.hbm_bytes()
    arguments = {
        name: f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]"
        for name, tensor in program.arguments.items()
    }
    arguments |= {name: _plain(value) for name, value in program.parameters.items()}
    return {
        "op": call.op,
        "kernel": kernel_name(call.kernel),
        "graph": graph,
        "bucket": bucket,
        "arguments": arguments,
        "instructions": len(program.instructions),
        "instructions_by_engine": program.instructions_by_engine(),
        "hbm_read_bytes": read,
        "hbm_write_bytes": written,
        "macs": program.macs(),
        "sbuf_bytes_per_partition": peak_bytes_per_partition(program, MemoryRegion.sbuf)[0],
        "psum_bytes_per_partition": peak_bytes_per_partition(program, MemoryRegion.psum)[0],
    }


def _plain(value: Any) -> str:
    return repr(value.item()) if isinstance(value, np.generic) else repr(value)
