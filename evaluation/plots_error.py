"""The cut-point map: how a configuration's error grows along the layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from evaluation.plot_style import INK
from evaluation.records import CutPoint
from evaluation.results import ConfigurationResults
from model.records import Graph

GRAPHS: tuple[Graph, ...] = ("context_encoding", "token_generation")


def points_of(found: ConfigurationResults, dtype: str, graph: Graph) -> list[CutPoint]:
    """The cut points of one run, in order of execution."""
    points = found.error_map.cut_points if found.error_map else []
    chosen = [point for point in points if (point.dtype, point.graph) == (dtype, graph)]
    return sorted(chosen, key=lambda point: point.order)


def cut_point_figure(
    configurations: Sequence[ConfigurationResults], dtype: str, wide: bool
) -> Figure | None:
    """Relative error of every op's output, from the first to the last; white is bit-exact."""
    rows = [found for found in configurations if found.error_map and found.error_map.cut_points]
    rows = [found for found in rows if any(points_of(found, dtype, graph) for graph in GRAPHS)]
    if not rows:
        return None
    errors = [
        point.relative_l2_error
        for found in rows
        for graph in GRAPHS
        for point in points_of(found, dtype, graph)
        if point.relative_l2_error > 0 and math.isfinite(point.relative_l2_error)
    ]
    low, high = (min(errors), max(errors)) if errors else (1e-9, 1e-8)
    norm = LogNorm(low * 0.99, max(high, low * 10))
    size = (9.0, 1.7 + 0.3 * len(rows)) if wide else (4.4, 2.6 + 0.6 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True) if wide else figure.subplots(2, 1, sharey=True)
    image = None
    for panel, graph in zip(panels, GRAPHS, strict=True):
        lengths = [len(points_of(found, dtype, graph)) for found in rows]
        grid = np.full((len(rows), max(lengths)), np.nan)
        for row, found in enumerate(rows):
            for column, point in enumerate(points_of(found, dtype, graph)):
                value = point.relative_l2_error
                # Infinite and NaN are shown as the worst there is.
                grid[row, column] = value if math.isfinite(value) else high
                if point.bit_exact or value == 0:
                    grid[row, column] = np.nan
        image = panel.imshow(
            grid, aspect="auto", norm=norm, cmap="cividis_r", interpolation="nearest"
        )
        panel.set_title(graph.replace("_", " "))
        _mark_layers(panel, points_of(rows[lengths.index(max(lengths))], dtype, graph))
        panel.grid(visible=False)
        panel.set_yticks(range(len(rows)), [found.name for found in rows])
    if image is not None:
        figure.colorbar(
            image, ax=list(panels), label=f"relative L2 error, {dtype} (measured)",
            location="bottom", aspect=50 if wide else 30, shrink=0.9,
        )  # fmt: skip
    return figure


def _mark_layers(panel: object, points: Sequence[CutPoint]) -> None:
    """A line where a layer begins, its number below; not more than a dozen numbers."""
    starts = [
        (column, point.layer)
        for column, point in enumerate(points)
        if column and point.layer != points[column - 1].layer
    ]
    for column, _ in starts:
        panel.axvline(column - 0.5, color=INK, linewidth=0.4)  # type: ignore[attr-defined]
    shown = [(c, layer) for c, layer in starts if layer is not None]
    first = [(0, points[0].layer)] if points and points[0].layer is not None else []
    shown = (first + shown)[:: max(1, len(shown) // 8)]
    panel.set_xticks(  # type: ignore[attr-defined]
        [column for column, _ in shown], [f"layer {layer}" for _, layer in shown], fontsize=8
    )
