"""Plots of latency and quality, one row per configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.estimates import Metric
from evaluation.metrics import comparison_slug, tpot_ms
from evaluation.plot_style import BLUE, FILL, GRAPHS, INK, LENGTHS, LIMIT_COLOUR, ORANGE
from evaluation.records import Verdict
from evaluation.results import ConfigurationResults
from model.configuration import Tolerances
from model.records import Graph, RunTiming


def interval_figure(
    configurations: Sequence[ConfigurationResults], verdicts: Sequence[Verdict], wide: bool
) -> Figure | None:
    """Mean latency with its 95 % interval, of the configuration and of the baseline beside it."""
    if not any(found.latency and found.latency.measured for found in configurations):
        return None
    figure, panels = _panels(len(configurations), wide)
    metrics: tuple[tuple[Metric, str], ...] = (("ttft_ms", "TTFT, ms"), ("tpot_ms", "TPOT, ms"))
    for panel, (metric, title) in zip(panels, metrics, strict=True):
        _label_rows(panel, configurations, verdicts)
        panel.set_title(f"{title} (measured)")
        for row, found in enumerate(configurations):
            record = found.latency
            if record is None or record.measured is None or record.measured_baseline is None:
                text = "  withheld" if record else "  not measured"
                panel.annotate(text, (0, row), va="center", color=LIMIT_COLOUR, fontsize=9)
                continue
            sides = (
                (record.measured, BLUE, "o", -0.12),
                (record.measured_baseline, ORANGE, "s", 0.16),
            )
            for side, colour, marker, offset in sides:
                mean = side.metrics[metric].mean
                low, high = mean.low or mean.value, mean.high or mean.value
                panel.errorbar(
                    mean.value, row + offset, xerr=[[mean.value - low], [high - mean.value]],
                    fmt=marker, color=colour, capsize=4, markersize=5,
                )  # fmt: skip
        panel.set_xlim(0, max(panel.dataLim.x1 * 1.08, 1e-9))
    panels[0].plot([], [], "o", color=BLUE, label="configuration")
    panels[0].plot([], [], "s", color=ORANGE, label="baseline beside it")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def latency_figure(
    configurations: Sequence[ConfigurationResults], verdicts: Sequence[Verdict], wide: bool
) -> Figure | None:
    """TTFT and TPOT of every measured run per configuration; None if nothing was timed."""
    if not any(found.generation for found in configurations):
        return None
    figure, panels = _panels(len(configurations), wide)
    for panel, title in zip(panels, ("TTFT, ms", "TPOT, ms"), strict=True):
        _label_rows(panel, configurations, verdicts)
        panel.set_title(f"{title} (measured)")
    used = set()
    for row, (found, verdict) in enumerate(zip(configurations, verdicts, strict=True)):
        fill = FILL[verdict]
        for prompt in found.generation.prompts if found.generation else []:
            used.add(prompt.length)
            _runs(panels[0], row, prompt.length, [run.ttft_ms for run in prompt.runs], fill)
            _runs(panels[1], row, prompt.length, _tpots(prompt.runs), fill)
        if found.generation is not None:
            runs = [run for prompt in found.generation.prompts for run in prompt.runs]
            _median(panels[0], row, [run.ttft_ms for run in runs])
            _median(panels[1], row, _tpots(runs))
    for panel in panels:
        panel.set_xlim(0, panel.dataLim.x1 * 1.05 if panel.dataLim.x1 > 0 else 1)
    for length, (colour, marker) in LENGTHS.items():
        if length in used:
            panels[0].plot([], [], marker, color=colour, label=f"{length} prompts")
    panels[0].plot([], [], "|", color=INK, markersize=13, markeredgewidth=2, label="median")
    figure.legend(loc="outside lower center", ncols=4 if wide else 2, frameon=False)
    return figure


def quality_figure(
    configurations: Sequence[ConfigurationResults],
    verdicts: Sequence[Verdict],
    tolerances: Tolerances,
    wide: bool,
) -> Figure | None:
    """Error against the HF reference per configuration and graph, on a log scale.

    None if no logits were compared.
    """
    plots = (
        ("bfloat16", "kl_per_token_mean", tolerances.bfloat16_kl_per_token),
        ("float32", "relative_l2_error", tolerances.float32_relative_l2),
    )
    titles = ("KL divergence, bf16, nats/token", "Relative L2 error, fp32")
    if not any(found.accuracy and found.accuracy.logits for found in configurations):
        return None
    figure, panels = _panels(len(configurations), wide)
    for panel, title, (dtype, measure, limit) in zip(panels, titles, plots, strict=True):
        _label_rows(panel, configurations, verdicts)
        panel.set_title(f"{title} (measured)")
        points = [
            (row, logits.graph, float(getattr(logits, measure)))
            for row, found in enumerate(configurations)
            for logits in (found.accuracy.logits if found.accuracy else [])
            if comparison_slug(logits) == dtype
        ]
        _errors(panel, points, [FILL[verdict] for verdict in verdicts], limit)
    for graph, (colour, marker) in GRAPHS.items():
        panels[0].plot([], [], marker, color=colour, label=graph.replace("_", " "))
    panels[0].plot([], [], "--", color=LIMIT_COLOUR, label="tolerance")
    figure.legend(loc="outside lower center", ncols=3 if wide else 2, frameon=False)
    return figure


def _panels(rows: int, wide: bool) -> tuple[Figure, list[Axes]]:
    """Two panels: side by side, or one below the other."""
    if wide:
        figure = Figure(figsize=(9.0, 1.5 + 0.42 * rows), layout="constrained")
        return figure, list(figure.subplots(1, 2, sharey=True))
    figure = Figure(figsize=(4.4, 2.2 + 0.76 * rows), layout="constrained")
    return figure, list(figure.subplots(2, 1))


def _label_rows(
    panel: Axes, configurations: Sequence[ConfigurationResults], verdicts: Sequence[Verdict]
) -> None:
    marks = {"pass": "✓", "fail": "✗"}
    panel.set_yticks(
        range(len(configurations)),
        [
            f"{found.name} {marks[verdict]}"
            for found, verdict in zip(configurations, verdicts, strict=True)
        ],
    )
    # A panel that shares another's rows has no labels of its own.
    for label, verdict in zip(panel.get_yticklabels(), verdicts, strict=False):
        label.set_color(INK if verdict == "pass" else LIMIT_COLOUR)
    panel.set_ylim(len(configurations) - 0.5, -0.5)


def _runs(panel: Axes, row: int, length: str, values: Sequence[float], fill: str) -> None:
    colour, marker = LENGTHS[length]
    offset = {"short": -0.16, "medium": 0.0, "long": 0.16}[length]
    style: Any = {"color": colour, "alpha": 0.65, "markersize": 5, "fillstyle": fill}
    panel.plot(values, [row + offset] * len(values), marker, **style)


def _median(panel: Axes, row: int, values: Sequence[float]) -> None:
    if values:
        panel.plot([median(values)], [row], "|", color=INK, markersize=17, markeredgewidth=2)


def _tpots(runs: Sequence[RunTiming]) -> list[float]:
    return [tpot for run in runs if (tpot := tpot_ms(run)) is not None]


def _errors(
    panel: Axes, points: Sequence[tuple[int, Graph, float]], fills: Sequence[str], limit: float
) -> None:
    """One mark per (row, graph, error); what has no place on a log scale goes to its edges."""
    positive = [value for *_, value in points if math.isfinite(value) and value > 0]
    low, high = min([*positive, limit]) / 5, max([*positive, limit]) * 5
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    panel.axvline(limit, color=LIMIT_COLOUR, linestyle="--")
    for row, graph, value in points:
        colour, marker = GRAPHS[graph]
        style: Any = {"color": colour, "fillstyle": fills[row], "clip_on": False}
        at = row + (-0.12 if graph == "context_encoding" else 0.12)
        if not math.isfinite(value):
            panel.annotate(f"{value} ▸", (high, at), ha="right", va="center", color=LIMIT_COLOUR)
        else:
            panel.plot([value if value > 0 else low], [at], marker, **style)
        if value == 0:
            panel.annotate("  0", (low, at), ha="left", va="center", fontsize=8)
