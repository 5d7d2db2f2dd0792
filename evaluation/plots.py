"""The report's plots, as inline SVG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.metrics import comparison_slug, tpot_ms
from evaluation.plot_style import FILL, GRAPHS, INK, LENGTHS, LIMIT_COLOUR, STYLE
from evaluation.records import Verdict
from evaluation.results import ConfigurationResults
from model.configuration import Tolerances
from model.records import Graph, RunTiming


def latency_plot(
    configurations: Sequence[ConfigurationResults], verdicts: Sequence[Verdict]
) -> str | None:
    """TTFT and TPOT of every measured run per configuration; None if nothing was timed."""
    if not any(found.generation for found in configurations):
        return None
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(configurations))
        _label_rows(panels[0], configurations, verdicts)
        for panel, title in zip(panels, ("TTFT, ms", "TPOT, ms"), strict=True):
            panel.set_title(f"{title} (measured)")
            panel.set_xlim(left=0)
        used = set()
        for row, (found, verdict) in enumerate(zip(configurations, verdicts, strict=True)):
            fill = FILL[verdict]
            for prompt in found.generation.prompts if found.generation else []:
                used.add(prompt.length)
                ttfts = [run.ttft_ms for run in prompt.runs]
                _runs(panels[0], row, prompt.length, ttfts, fill)
                _runs(panels[1], row, prompt.length, _tpots(prompt.runs), fill)
            if found.generation is not None:
                runs = [run for prompt in found.generation.prompts for run in prompt.runs]
                _median(panels[0], row, [run.ttft_ms for run in runs])
                _median(panels[1], row, _tpots(runs))
        for panel in panels:
            panel.set_xlim(0, panel.dataLim.x1 * 1.05 if panel.dataLim.x1 > 0 else 1)
        for length in LENGTHS:
            if length in used:
                colour, marker = LENGTHS[length]
                panels[0].plot([], [], marker, color=colour, label=f"{length} prompts")
        panels[0].plot([], [], "|", color=INK, markersize=13, markeredgewidth=2, label="median")
        return _svg(figure, "latency", columns=4)


def quality_plot(
    configurations: Sequence[ConfigurationResults],
    verdicts: Sequence[Verdict],
    tolerances: Tolerances,
) -> str | None:
    """Error against the HF reference per configuration and graph, on a log scale.

    None if no logits were compared.
    """
    plots = (
        ("bfloat16", "kl_per_token_mean", tolerances.bfloat16_kl_per_token),
        ("float32", "relative_l2_error", tolerances.float32_relative_l2),
    )
    titles = ("KL divergence, bf16, nats per token", "Relative L2 error, fp32")
    if not any(found.accuracy and found.accuracy.logits for found in configurations):
        return None
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(configurations))
        _label_rows(panels[0], configurations, verdicts)
        for panel, title, (dtype, measure, limit) in zip(panels, titles, plots, strict=True):
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
        return _svg(figure, "quality", columns=3)


def _panels(rows: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9.0, 1.5 + 0.42 * rows), layout="constrained")
    return figure, list(figure.subplots(1, 2, sharey=True))


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
    for label, verdict in zip(panel.get_yticklabels(), verdicts, strict=True):
        label.set_color(INK if verdict == "pass" else LIMIT_COLOUR)
    panel.set_ylim(len(configurations) - 0.5, -0.5)


def _runs(panel: Axes, row: int, length: str, values: Sequence[float], fill: str) -> None:
    colour, marker = LENGTHS[length]
    offset = {"short": -0.16, "medium": 0.0, "long": 0.16}[length]
    panel.plot(values, [row + offset] * len(values), marker, color=colour, alpha=0.65, markersize=5)


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


def _svg(figure: Figure, prefix: str, columns: int) -> str:
    """The figure as an `<svg>` element whose ids do not clash with another plot's."""
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
