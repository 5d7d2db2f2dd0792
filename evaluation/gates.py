"""What must hold before a latency is recorded: the model computes, with the kernels it names.

The accuracy stage says whether the numbers are right. These gates ask less, but of the very
model that is timed, just before: a model that gives zeros, skips its kernels or runs stale ones
is fast. A gate that cannot be checked is not passed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.kernel_watch import (
    Seen,
    disturbed,
    is_nki,
    watched,
)
from evaluation.records import Gate
from model.checkpoint import read_config
from model.configuration import Config, ConfigurationError, KernelConfiguration
from model.fingerprint import file_sha256
from model.op_calls import graphs_of_ops
from model.ops import GRAPHS, KernelOp, kernel_entries
from model.records import CheckpointRecord, CompileManifest, Graph
from model.runtime import LanguageModel, checkpoint_directory

RANGE = (0.5, 2.0)
"""Limits of the logits' range over the reference's."""
HASHED_BYTES = 1 << 30
"""Weights beyond this are not read once more; the download stage verified them."""


@dataclass(frozen=True)
class Inputs:
    """What a configuration is, and what was compiled for it."""

    name: str
    kernels: KernelConfiguration
    manifest: CompileManifest
    checkpoint: CheckpointRecord
    folder: Path
    """Where the manifest is, and what it names."""


def artefact_gates(config: Config, inputs: Inputs) -> list[Gate]:
    """Whether what was compiled belongs to the sources, the checkpoint and the settings."""
    manifest = inputs.manifest
    wanted = {
        "configuration": (manifest.configuration, inputs.name),
        "model": (manifest.model, config.model),
        "device": (manifest.device, config.device),
        "target": (manifest.target, config.target),
        "dtype": (manifest.dtype, config.dtype),
        "checkpoint": (manifest.checkpoint_fingerprint, inputs.checkpoint.fingerprint),
    }
    wrong = [f"{key} {found!r}" for key, (found, want) in wanted.items() if found != want]
    gates = [
        _gate(
            "compiled for this evaluation",
            "for " + ", ".join(wrong) if wrong else "yes",
            f"the manifest is of {inputs.name}, {config.model}, {config.device}, {config.target}, "
            f"{config.dtype} and this checkpoint",
            not wrong,
        ),
        _sources_gate(inputs),
    ]
    if config.device == "simulator":  # a device's manifest has a fingerprint of its own making
        own = manifest.own_fingerprint()
        gates.append(
            _gate(
                "the manifest is what compile wrote",
                "yes" if own == manifest.fingerprint else "no",
                "its fingerprint is that of its content",
                own == manifest.fingerprint,
            )
        )
        gates.append(_graphs_gate(inputs))
    gates.append(_weights_gate(inputs.checkpoint))
    return gates


def _sources_gate(inputs: Inputs) -> Gate:
    limit = "the kernels' files are those that were compiled"
    try:
        present = {entry.op: entry for entry in kernel_entries(inputs.kernels)}
    except (ConfigurationError, OSError) as error:
        return _gate("kernel sources", str(error), limit, False)
    compiled = {entry.op: entry for entry in inputs.manifest.kernels}
    changed = sorted(
        {
            file
            for op in present.keys() & compiled.keys()
            for file in present[op].sources.keys() | compiled[op].sources.keys()
            if present[op].sources.get(file) != compiled[op].sources.get(file)
        }
    )
    if not changed and present != compiled:
        changed = [f"ops.{op}" for op in sorted(present.keys() | compiled.keys())]
    said = f"changed since: {', '.join(changed)}" if changed else "unchanged"
    return _gate("kernel sources", said, limit, not changed)


def _graphs_gate(inputs: Inputs) -> Gate:
    wrong = []
    for entry in inputs.manifest.graphs:
        path = inputs.folder / entry.file
        if not path.is_file():
            wrong.append(f"{entry.file} is missing")
        elif file_sha256(path) != entry.sha256:
            wrong.append(f"{entry.file} differs")
    return _gate(
        "exported graphs",
        ", ".join(wrong) or "unchanged",
        "the files beside the manifest that compile wrote",
        not wrong,
    )


def _weights_gate(checkpoint: CheckpointRecord) -> Gate:
    directory = checkpoint_directory(checkpoint)
    wrong, size = [], 0
    for file, sha256 in sorted(checkpoint.files.items()):
        path = directory / file
        if not path.is_file():
            wrong.append(f"{file} is missing")
            continue
        size += path.stat().st_size
        if size <= HASHED_BYTES and file_sha256(path) != sha256:
            wrong.append(f"{file} differs")
    return _gate(
        "checkpoint files",
        ", ".join(wrong) or "unchanged",
        f"those that were verified (contents up to {HASHED_BYTES >> 30} GB)",
        not wrong,
    )


def output_gates(
    graph: Graph, ours: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]
) -> list[Gate]:
    """Whether logits are alive and as large as the reference's.

    Args:
        graph: the graph that made them.
        ours: per sequence `[tokens, vocab]`.
        reference: the same of the model without kernels, in the same data type.
    """
    found = torch.cat([rows.detach().double().reshape(-1) for rows in ours])
    wanted = torch.cat([rows.detach().double().reshape(-1) for rows in reference])
    finite = int((~torch.isfinite(found)).sum())
    zeros = sum(int((rows.detach() == 0).all(-1).sum()) for rows in ours)
    ratio = math.nan
    if not finite and bool(torch.isfinite(wanted).all()) and float(wanted.max() - wanted.min()) > 0:
        ratio = float((found.max() - found.min()) / (wanted.max() - wanted.min()))
    low, high = RANGE
    return [
        _gate(
            f"{graph}: logits that are NaN or infinite", finite, "none", finite == 0 and bool(ours)
        ),
        _gate(f"{graph}: tokens whose logits are all zero", zeros, "none", zeros == 0),
        _gate(
            f"{graph}: range of the logits over the reference's",
            None if math.isnan(ratio) else ratio,
            f"{low:g} to {high:g}",
            low <= ratio <= high,
        ),
    ]


def model_gates(
    config: Config,
    inputs: Inputs,
    model: LanguageModel,
    reference: dict[Graph, list[torch.Tensor]],
    sequences: list[list[int]],
) -> list[Gate]:
    """Run the model in both graphs, and see what its kernels do.

    Args:
        config: the evaluation.
        inputs: what the model was loaded from.
        model: the configuration's, compiled, without `check_ops`.
        reference: `both_graphs` of the same model with no kernel.
        sequences: tokens, at least two each; the shortest is run once more for every kernel.
    """
    gates: list[Gate] = []
    filled = model.model.ops.filled if config.device == "simulator" else {}
    with watched(filled) as seen:  # as it is timed: one sequence, logits of its last token
        generated = model.generate(sequences, 2, [])
    plain = both_graphs(model, sequences)
    for graph in GRAPHS:
        gates += output_gates(graph, plain[graph], reference[graph])
    if config.device != "simulator":
        return gates + _device_gates(inputs, model)
    written = LanguageModel(model.model, config, checkpoint_directory(inputs.checkpoint), 1)
    same = [run.tokens for run in written.generate(sequences, 2, [])] == [
        run.tokens for run in generated
    ]
    gates.append(
        _gate(
            "the compiled graphs give the model's tokens",
            "yes" if same else "no",
            "those of the model as it is written, one from each graph",
            same,
        )
    )
    architecture = read_config(checkpoint_directory(inputs.checkpoint))
    expected = graphs_of_ops(inputs.kernels, architecture.num_hidden_layers)
    for op in inputs.kernels.ops:
        gates += _op_gates(op, filled.get(op), seen.get(op), expected[op], inputs.manifest)
    shortest = min(range(len(sequences)), key=lambda i: len(sequences[i]))
    for op, kernel in filled.items():
        for graph in sorted(expected[op]):
            with disturbed(kernel, graph):
                other = _logits(model, sequences[shortest], graph)
            moved = not torch.equal(plain[graph][shortest], other)
            gates.append(
                _gate(
                    f"{graph}: op {op}: the logits follow {kernel.name}",
                    "yes" if moved else "no",
                    "other logits when the kernel's result is disturbed",
                    moved,
                )
            )
    return gates


def both_graphs(
    model: LanguageModel, sequences: list[list[int]]
) -> dict[Graph, list[torch.Tensor]]:
    """All logits by context encoding, and the last token's by token generation."""
    return {graph: [_logits(model, x, graph) for x in sequences] for graph in GRAPHS}


def _logits(model: LanguageModel, tokens: list[int], graph: Graph) -> torch.Tensor:
    if graph == "context_encoding":
        return model.logits([tokens])[0]
    return model.decode_logits([tokens], len(tokens) - 1)[0]


def _op_gates(
    op: str,
    kernel: KernelOp | None,
    seen: Seen | None,
    expected: set[Graph],
    manifest: CompileManifest,
) -> list[Gate]:
    """One filled op: an NKI kernel, called where its op occurs, alone, and as compiled."""
    if kernel is None or seen is None:
        return [_gate(f"op {op}: filled", "no", "by a kernel", False)]
    name = f"op {op}: {kernel.name}"
    nki = is_nki(kernel.kernel)
    gates = [
        _gate(f"{name}: an NKI kernel", "yes" if nki else "no", "made by nki.jit", nki),
        _gate(
            f"{name}: calls of the reference",
            seen.reference_calls,
            "none: no falling back",
            seen.reference_calls == 0,
        ),
    ]
    if not expected:
        gates.append(_gate(f"{name}: used", "no", "in a graph of this model", False))
    for graph in sorted(expected):
        calls = seen.calls[graph]
        gates.append(_gate(f"{graph}: {name}: calls", calls, ">= 1", calls >= 1))
        compiled = {
            entry.fingerprint
            for entry in manifest.programs
            if (entry.op, entry.graph) == (op, graph)
        }
        stale = len(seen.programs[graph] - compiled)
        gates.append(
            _gate(
                f"{graph}: {name}: Programs that were not compiled",
                stale if seen.programs[graph] else None,
                "none: what runs is what was compiled",
                stale == 0 and bool(seen.programs[graph]),
            )
        )
    return gates


def _device_gates(inputs: Inputs, model: LanguageModel) -> list[Gate]:
    """On a device a kernel is part of the compiled graph; the runtime counts it there."""
    calls = model.kernel_calls()
    gates = []
    for op, chosen in inputs.kernels.ops.items():
        name = chosen.kernel.rpartition(":")[2]
        count = sum(calls.get(name, {}).values())
        gates.append(_gate(f"op {op}: {name}: calls", count, ">= 1", count >= 1))
    return gates


def same_work_gates(
    tokens: dict[str, list[list[int]]], calls: dict[str, set[tuple[tuple[str, int], ...]]]
) -> list[Gate]:
    """Whether every timed run did the work of every other.

    Args:
        tokens: prompt -> the distinct outputs of its runs, the untimed ones first.
        calls: prompt -> the distinct (kernel, calls) of its runs.
    """
    different = sorted(name for name, outputs in tokens.items() if len(outputs) != 1)
    uneven = sorted(name for name, counts in calls.items() if len(counts) != 1)
    return [
        _gate(
            "timed runs gave the untimed run's tokens",
            f"not at {', '.join(different)}" if different else "yes",
            "the same tokens, always",
            bool(tokens) and not different,
        ),
        _gate(
            "timed runs called each kernel as often as the untimed run",
            f"not at {', '.join(uneven)}" if uneven else "yes",
            "the same number of calls, always",
            bool(calls) and not uneven,
        ),
    ]


def sentences(gates: Sequence[Gate]) -> list[str]:
    """One sentence for every gate that was not passed."""
    return [
        f"{gate.name}: {'cannot be told' if gate.value is None else _said(gate.value)}; "
        f"must be: {gate.limit}"
        for gate in gates
        if not gate.passed
    ]


def _said(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _gate(name: str, value: float | str | None, limit: str, passed: bool) -> Gate:
    return Gate(name=name, value=value, limit=limit, passed=passed)


def read_inputs(
    name: str, kernels: KernelConfiguration, manifest: Path, checkpoint: Path
) -> Inputs:
    """Read what the gates compare.

    Raises:
        RecordError: a record is missing, truncated or of another schema version.
    """
    return Inputs(
        name,
        kernels,
        CompileManifest.read(manifest),
        CheckpointRecord.read(checkpoint),
        manifest.parent,
    )
