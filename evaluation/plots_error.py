"""The cut-point map: how a configuration's error grows along the layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
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
        points = [points_of(found, dtype, graph) for found in rows]
        slots = _slots(points)
        grid = np.full((len(rows), max(sum(slots.values()), 1)), np.nan)
        for row, some in enumerate(points):
            for column, point in enumerate(_spread(some, slots)):
                if point is None or point.bit_exact or point.relative_l2_error == 0:
                    continue
                value = point.relative_l2_error
                # Infinite and NaN are shown as the worst there is.
                grid[row, column] = value if math.isfinite(value) else high
        image = panel.imshow(
            grid, aspect="auto", norm=norm, cmap="cividis_r", interpolation="nearest"
        )
        panel.set_title(graph.replace("_", " "))
        _mark_layers(panel, slots)
        panel.grid(visible=False)
        panel.set_yticks(range(len(rows)), [found.name for found in rows])
    if image is not None:
        figure.colorbar(
            image, ax=list(panels), label=f"relative L2 error, {dtype} (measured)",
            location="bottom", aspect=50 if wide else 30, shrink=0.9,
        )  # fmt: skip
    return figure


Group = tuple[int, int | None]
"""A stretch of ops: (0, None) before the layers, (1, layer), (2, None) after them."""


def _groups(points: Sequence[CutPoint]) -> dict[Group, list[CutPoint]]:
    groups: dict[Group, list[CutPoint]] = {}
    for point in points:
        inside = any(part == 1 for part, _ in groups)
        part = 1 if point.layer is not None else 2 if inside else 0
        groups.setdefault((part, point.layer), []).append(point)
    return groups


def _slots(rows: Sequence[Sequence[CutPoint]]) -> dict[Group, int]:
    """Columns per stretch: as many as the row with the most ops in it needs.

    A composite kernel has one output for several ops, so that configurations have different
    numbers of points in a layer; their layers stand below each other all the same.
    """
    slots: dict[Group, int] = {}
    for points in rows:
        for group, some in _groups(points).items():
            slots[group] = max(slots.get(group, 0), len(some))
    return dict(sorted(slots.items(), key=lambda item: (item[0][0], item[0][1] or 0)))


def _spread(points: Sequence[CutPoint], slots: dict[Group, int]) -> list[CutPoint | None]:
    """The point of every column; each stretch's points share its columns evenly."""
    groups = _groups(points)
    columns: list[CutPoint | None] = []
    for group, number in slots.items():
        some = groups.get(group, [])
        columns += [
            some[column * len(some) // number] if some else None for column in range(number)
        ]
    return columns


def _mark_layers(panel: Axes, slots: dict[Group, int]) -> None:
    """A line where a layer begins, its number below; not more than about eight numbers."""
    starts, column = [], 0
    for (_, layer), number in slots.items():
        if layer is not None:
            starts.append((column, layer))
        if column:
            panel.axvline(column - 0.5, color=INK, linewidth=0.4)
        column += number
    shown = starts[:: max(1, math.ceil(len(starts) / 8))]
    panel.set_xticks([at for at, _ in shown], [f"layer {layer}" for _, layer in shown], fontsize=8)
