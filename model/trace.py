"""Trace: what a configuration's graphs do, in NKI and outside, and how long that is predicted.

Nothing is run and no weights are read: `config.json` gives the shapes, a graph's op calls are
recorded on tensors without data, every kernel is specialised at its shapes and played on the
timing model. Numbers are counted or predicted, for one tensor-parallel rank; none is measured.
docs/trace.md says what they rest on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint import ModelConfig, read_config
from model.configuration import (
    Config,
    ConfigurationError,
    KernelConfiguration,
    kernel_configuration_path,
    read_kernel_configuration,
)
from model.fingerprint import fingerprint
from model.graph_prediction import (
    Costs,
    GraphRun,
    graph_prediction,
    graph_trace,
    op_traces,
    slots,
)
from model.op_calls import OpCall, record_op_calls
from model.ops import kernel_entries
from model.predict import Predictions
from model.records import Graph, GraphPrediction, GraphTrace, TargetPrediction, TraceSummary
from model.step_timeline import write_graph_trace

TARGETS = ("trn2", "trn3")
TIMELINE = "decode_step.json.gz"
STORE = ".predictions"
"""Beside the configurations' folders: predictions that they share."""
BATCH = 1
RECORDED_LAYERS = 2
"""All others call what the second does."""


def trace(config: Config, name: str, output: Path) -> TraceSummary:
    """Count and predict both graphs of configuration `name` at batch 1; write the summary.

    Beside `output`, decode_step.json.gz gets the Perfetto trace of a whole decode step.

    Raises:
        ConfigurationError: the model has no config.json here, or its layout does not fit it.
        CheckpointError: config.json is wrong, or the model does not divide by tp_degree.
        CompileError: a kernel breaks a rule at a shape of the model.
    """
    if config.device == "neuron":
        os.environ["NKI_SIMULATOR"] = "1"  # predictions are the simulator's, also on a device
    architecture = read_config(config.architecture())
    _check(config, architecture)
    layout = config.layout()
    configuration = read_kernel_configuration(kernel_configuration_path(name))
    kernels = kernel_entries(configuration)
    sources = {entry.op: entry.sources for entry in kernels}
    predictions = Predictions(layout.lnc, output.parent.parent / STORE, sources)
    runs = record_runs(config, architecture, configuration)
    found = {target: predict_target(runs, target, predictions) for target in TARGETS}
    counted, predicted = found[config.target]
    contest, weighted = flops_ratios(counted, layout.decode_steps)
    summary = TraceSummary(
        model=config.model,
        configuration=name,
        target=config.target,
        tp_degree=layout.tp_degree,
        lnc=layout.lnc,
        dtype=config.dtype,
        context=layout.context,
        prefill_tokens=layout.context_encoding[-1],
        decode_steps=layout.decode_steps,
        predicted_ttft_ms=predicted.predicted_ttft_ms,
        predicted_tpot_ms=predicted.predicted_tpot_ms,
        graphs=counted,
        nki_flops_ratio=contest,
        nki_flops_ratio_weighted=weighted,
        predictions={target: prediction for target, (_, prediction) in found.items()},
        timeline=TIMELINE,
        fingerprint=fingerprint(
            [kernel.model_dump() for kernel in kernels],
            [prediction.model_dump() for _, prediction in found.values()],
            [architecture.model_dump(), layout.model_dump(), config.target, config.dtype],
        ),
    )
    _write_timeline(runs[-1], config.target, predictions, summary, output.parent / TIMELINE)
    summary.write(output)
    return summary


def record_runs(
    config: Config, architecture: ModelConfig, configuration: KernelConfiguration
) -> list[GraphRun]:
    """One run of context encoding per bucket, smallest first, and one of token generation."""
    layout = config.layout()

    def record(graph: Graph, bucket: int) -> GraphRun:
        layers = architecture.num_hidden_layers
        calls = record_op_calls(
            architecture.model_copy(update={"num_hidden_layers": min(RECORDED_LAYERS, layers)}),
            configuration,
            graph,
            batch=BATCH,
            bucket=bucket,
            context=layout.context,
            tp_degree=layout.tp_degree,
            dtype=config.dtype,
        )
        return GraphRun(graph, f"{BATCH}x{bucket}", with_all_layers(calls, layers))

    return [
        *(record("context_encoding", bucket) for bucket in layout.context_encoding),
        record("token_generation", 1),
    ]


def with_all_layers(calls: Sequence[OpCall], layers: int) -> list[OpCall]:
    """The calls of a model of `layers` layers, from those of one that has its first two.

    Only the first layer differs: nothing is added to the residual stream before it.
    """
    last = RECORDED_LAYERS - 1
    repeated = [call for call in calls if call.layer == last]
    end = max((index for index, call in enumerate(calls) if call.layer == last), default=-1) + 1
    more = [
        dataclasses.replace(call, layer=layer)
        for layer in range(RECORDED_LAYERS, layers)
        for call in repeated
    ]
    return [*calls[:end], *more, *calls[end:]]


def predict_target(
    runs: Sequence[GraphRun], target: str, predictions: Predictions
) -> tuple[list[GraphTrace], TargetPrediction]:
    """What is counted and what is predicted on one target; the last run is token generation."""
    costs = Costs(target, predictions)
    counted: list[GraphTrace] = []
    graphs: list[GraphPrediction] = []
    ops = []
    for run in runs:
        priced = costs.of_run(run)
        counted.append(graph_trace(run, priced))
        graphs.append(graph_prediction(run, priced))
        ops += op_traces(run, priced)
        logging.info("%s: %s %s predicted %.3f ms", target, run.graph, run.bucket,
                     graphs[-1].predicted_ms)  # fmt: skip
    return counted, TargetPrediction(
        predicted_ttft_ms=graphs[-2].predicted_ms,
        predicted_tpot_ms=graphs[-1].predicted_ms,
        graphs=graphs,
        ops=ops,
    )


def flops_ratios(graphs: Sequence[GraphTrace], decode_steps: int) -> tuple[float, float]:
    """The NKI FLOPs ratio as the contest counts it, and weighted by how often graphs run.

    The contest adds the MACs of both graphs once each, at the smallest bucket of context encoding
    (facts/nxdi.md §2): (NKI context + NKI decode) / (all context + all decode), and takes from a
    kernel what its matrix instructions do, padding included. Weighted, token generation counts
    `decode_steps` times: one prompt of that bucket, and tokens until the cache is full. There,
    MACs are those that the mathematics needs, for a decode kernel does some fifty times more of
    them, which would outweigh everything else.

    Args:
        graphs: context encoding by bucket, smallest first, then token generation.
        decode_steps: token-generation runs per context-encoding run.
    """
    prefill, decode = graphs[0], graphs[-1]
    contest = (prefill.macs_nki + decode.macs_nki) / (prefill.macs_total + decode.macs_total)
    needed_nki = prefill.macs_needed_nki + decode_steps * decode.macs_needed_nki
    return contest, needed_nki / (
        prefill.macs_needed_total + decode_steps * decode.macs_needed_total
    )


def _check(config: Config, architecture: ModelConfig) -> None:
    layout = config.layout()
    if layout.context > architecture.max_position_embeddings:
        raise ConfigurationError(
            f"models.{config.model}: a context of {layout.context} is more than the model's "
            f"max_position_embeddings ({architecture.max_position_embeddings})"
        )


def _write_timeline(
    run: GraphRun, target: str, predictions: Predictions, summary: TraceSummary, path: Path
) -> None:
    priced = Costs(target, predictions).of_run(run)
    about = (
        f"{summary.model}, {summary.configuration}: one decode step at {summary.context} "
        f"positions, one rank of {summary.tp_degree}, LNC {summary.lnc}. Every time is predicted "
        f"for {target}."
    )
    write_graph_trace(slots(run, priced, predictions, target), target, about, path)
