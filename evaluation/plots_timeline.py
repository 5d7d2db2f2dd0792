"""The engines' timeline of one decode step, from the trace stage's Perfetto file."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from evaluation.plot_style import GREEN, GREY, INK, ORANGE
from model.records import RecordError
from model.step_timeline import COLLECTIVES_LANE, GRAPH_PID

COLUMNS = 600
"""Of the occupancy picture: one is two pixels of a wide screen."""
LANES = ("tensor", "vector", "scalar", "gpsimd", "DMA")


@dataclass(frozen=True)
class Step:
    """One decode step: its ops, and when each engine of the first core is busy."""

    ops: list[dict[str, Any]]
    """Trace events of the ops and collectives, in order."""
    busy: dict[str, list[tuple[float, float]]]
    """Engine, or `DMA` for all queues -> (begin, end) in µs."""
    end_us: float


def read_step(path: Path) -> Step:
    """Read a `decode_step.json.gz`.

    Raises:
        RecordError: it is no such file.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        names = {
            (event["pid"], event["tid"]): event["args"]["name"]
            for event in events
            if event["ph"] == "M" and "tid" in event
        }
        slices = [event for event in events if event["ph"] == "X"]
        ops = sorted((e for e in slices if e["pid"] == GRAPH_PID), key=lambda e: float(e["ts"]))
        busy: dict[str, list[tuple[float, float]]] = {}
        for event in slices:
            lane = _lane(names.get((event["pid"], event["tid"]), ""))
            if event["pid"] == 0 and lane:
                span = (event["ts"], event["ts"] + event["dur"])
                busy.setdefault(lane, []).append(span)
        end = max((event["ts"] + event["dur"] for event in ops), default=0.0)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: not a timeline of a decode step: {error}\n"
            "Delete the file's folder and run snakemake again; it rebuilds what is missing."
        ) from None
    return Step(ops, busy, end)


def _lane(name: str) -> str | None:
    """The row of an engine's lane (`0.tensor`, `0.loads DMA transfers (2)`), None for queues."""
    bare = re.sub(r"^\d+\.", "", name)
    if "DMA transfers" in bare:
        return "DMA"
    return bare if bare in LANES else None


def layer_span(step: Step) -> tuple[float, float] | None:
    """Begin and end of a layer that is neither the first nor, if there are three, the last."""
    layers: dict[int, list[dict[str, Any]]] = {}
    for op in step.ops:
        found = re.match(r"layer (\d+) ", op["name"])
        if found:
            layers.setdefault(int(found[1]), []).append(op)
    if not layers:
        return None
    chosen = sorted(layers)[len(layers) // 2]
    ops = layers[chosen]
    return ops[0]["ts"], max(op["ts"] + op["dur"] for op in ops)


def occupancy(
    spans: list[tuple[float, float]], begin: float, end: float, columns: int = COLUMNS
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Share of each of `columns` equal parts of begin..end that is covered, 0 to 1."""
    edges = np.linspace(begin, end, columns + 1)
    covered = np.zeros(columns)
    last = begin
    for start, stop in sorted(spans):
        start, stop = max(start, last), min(stop, end)
        if stop <= start:
            continue
        last = stop
        overlap = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
        covered += np.maximum(overlap, 0.0)
    shares: np.ndarray[Any, np.dtype[np.float64]] = covered / (edges[1] - edges[0])
    return shares


def timeline_figure(step: Step, target: str, wide: bool) -> Figure | None:
    """The whole step, and one layer of it with its ops by name."""
    if not step.ops or step.end_us <= 0:
        return None
    layer = layer_span(step)
    spans = [(0.0, step.end_us), *([layer] if layer else [])]
    figure = Figure(figsize=(9.0 if wide else 4.4, 2.5 * len(spans) + 0.6), layout="constrained")
    panels = figure.subplots(len(spans), 1, squeeze=False)[:, 0]
    lanes = [lane for lane in LANES if lane in step.busy]
    for panel, (begin, end) in zip(panels, spans, strict=True):
        if lanes:
            grid = np.array([occupancy(step.busy[lane], begin, end) for lane in lanes])
            panel.imshow(
                grid, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest",
                extent=(begin, end, len(lanes) + 0.5, 0.5),
            )  # fmt: skip
        for op in step.ops:
            if op["ts"] + op["dur"] <= begin or op["ts"] >= end:
                continue
            panel.broken_barh(
                [(op["ts"], op["dur"])], (-0.4, 0.8), color=_colour(op), edgecolor="white",
                linewidth=0.2 if begin == 0 else 1.0,
            )  # fmt: skip
        panel.set_yticks(range(len(lanes) + 1), ["ops", *lanes])
        panel.set_ylim(len(lanes) + 0.5, -0.5)
        panel.set_xlim(begin, end)
        panel.grid(visible=False)
    panels[0].set_title(f"one decode step, µs (predicted for {target})")
    if layer:
        _name_ops(panels[1], step, *layer, most=9 if wide else 5)
        panels[1].set_title("one layer of it, µs", pad=64)
    for label, colour in (("NKI", GREEN), ("reference, coarse", GREY), ("collective", ORANGE)):
        panels[0].broken_barh([], (0, 1), color=colour, label=label)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _name_ops(panel: Any, step: Step, begin: float, end: float, most: int) -> None:
    """The longest ops' names, slanted above the lane."""
    inside = [op for op in step.ops if begin <= op["ts"] < end - 1e-3]
    for op in sorted(inside, key=lambda op: -op["dur"])[:most]:
        text = re.sub(r"^layer \d+ ", "", op["name"])
        middle = op["ts"] + op["dur"] / 2
        panel.annotate(
            text, (middle, -0.45), rotation=35, fontsize=8, color=INK, ha="left", va="bottom",
            annotation_clip=False,
        )  # fmt: skip


def _colour(op: dict[str, Any]) -> str:
    if op["tid"] == COLLECTIVES_LANE:
        return ORANGE
    return GREY if op["args"].get("kernel") == "reference" else GREEN
