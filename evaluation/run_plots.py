"""The plots that go with one MLflow run; its page shows them under Artifacts, `plots/`."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

import matplotlib
from matplotlib.figure import Figure

from evaluation.metrics import tpot_ms
from evaluation.plot_style import BLUE, GREEN, GREY, LENGTHS, ORANGE, STYLE
from evaluation.results import ConfigurationResults
from model.records import GenerationRecord, OpTrace, TraceSummary

OPS_SHOWN = 14


def run_plots(found: ConfigurationResults) -> dict[str, Figure]:
    """File name (without suffix) -> figure, for what there are results of."""
    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(STYLE):
        if found.generation is not None and found.generation.prompts:
            figures["latency_measured"] = _latency(found.generation)
            figures["token_latencies_measured"] = _token_latencies(found.generation)
        if found.trace is not None and found.trace.target in found.trace.predictions:
            figures[f"ops_predicted_{found.trace.target}"] = _ops(found.trace)
    return figures


def _figure(height: float) -> Figure:
    return Figure(figsize=(8.0, height), layout="constrained", dpi=110)


def _latency(generation: GenerationRecord) -> Figure:
    """Every run's TTFT and TPOT, as steps that climb from 0 to 1."""
    figure = _figure(3.4)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, name in zip(panels, ("TTFT", "TPOT"), strict=True):
        by_length: dict[str, list[float]] = defaultdict(list)
        for prompt in generation.prompts:
            for run in prompt.runs:
                value = run.ttft_ms if name == "TTFT" else tpot_ms(run)
                by_length[prompt.length] += [] if value is None else [value]
        for length, latencies in by_length.items():
            if latencies:
                panel.ecdf(latencies, color=LENGTHS[length][0], label=f"{length} prompts")
        panel.set_xlabel(f"{name}, ms (measured on {generation.device})")
        panel.set_xlim(left=0)
    panels[0].set_ylabel("share of runs")
    panels[0].legend(frameon=False)
    return figure


def _token_latencies(generation: GenerationRecord) -> Figure:
    """Inter-token latency by position: the median, and from the least to the greatest."""
    by_position: dict[int, list[float]] = defaultdict(list)
    for prompt in generation.prompts:
        for run in prompt.runs:
            for position, latency in enumerate(run.itl_ms, start=1):
                by_position[position].append(latency)
    figure = _figure(3.4)
    panel = figure.subplots()
    positions = sorted(by_position)
    panel.fill_between(
        positions,
        [min(by_position[x]) for x in positions],
        [max(by_position[x]) for x in positions],
        color=BLUE,
        alpha=0.18,
        linewidth=0,
        label="from least to greatest",
    )
    panel.plot(positions, [median(by_position[x]) for x in positions], color=BLUE, label="median")
    panel.set_xlabel("token after the first")
    panel.set_ylabel(f"ITL, ms (measured on {generation.device})")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False)
    return figure


def _ops(trace: TraceSummary) -> Figure:
    """What one decode step spends its predicted time on, beside the roofline."""
    ops = sorted(decode_ops(trace), key=lambda op: -op.predicted_us)[:OPS_SHOWN]
    figure = _figure(1.2 + 0.34 * max(len(ops), 1))
    panel = figure.subplots()
    rows = range(len(ops))
    colours = [GREEN if op.nki else (ORANGE if op.kernel == "collective" else GREY) for op in ops]
    panel.barh(rows, [op.predicted_us for op in ops], color=colours, height=0.6)
    panel.plot([op.roofline_us for op in ops], list(rows), "|", color="black", markersize=12)
    panel.set_yticks(rows, [f"{op.op} ({op.kernel})" for op in ops])
    panel.invert_yaxis()
    panel.set_xlabel(f"µs per decode step, predicted for {trace.target}")
    for label, colour in (("NKI", GREEN), ("reference, coarse", GREY), ("collective", ORANGE)):
        panel.barh([0], [0], color=colour, label=label)
    panel.plot([], [], "|", color="black", markersize=12, label="roofline")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def decode_ops(trace: TraceSummary) -> list[OpTrace]:
    """The ops of token generation on the trace's target."""
    prediction = trace.predictions.get(trace.target)
    return [op for op in (prediction.ops if prediction else []) if op.graph == "token_generation"]
