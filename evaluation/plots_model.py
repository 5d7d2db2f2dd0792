"""Plots of what the model spends: MACs by op, predicted time by op against the roofline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.figure import Figure

from evaluation.plot_style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, YELLOW
from evaluation.results import ConfigurationResults
from evaluation.run_plots import decode_ops
from model.records import OpTrace, TraceSummary

COLOURS = (BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE, YELLOW)
OPS_SHOWN = 12


def by_op(ops: Sequence[OpTrace]) -> list[OpTrace]:
    """One row per op and kernel, its shapes added up, the longest first."""
    groups: dict[tuple[str, str], list[OpTrace]] = defaultdict(list)
    for op in ops:
        groups[op.op, op.kernel].append(op)
    summed = [
        group[0].model_copy(
            update={
                field: sum(getattr(op, field) for op in group)
                for field in (
                    "calls", "macs", "macs_needed", "hbm_bytes", "hbm_bytes_needed",
                    "predicted_us", "roofline_us",
                )
            }
        )
        for group in groups.values()
    ]  # fmt: skip
    return sorted(summed, key=lambda op: -op.predicted_us)


def macs_share_figure(configurations: Sequence[ConfigurationResults], wide: bool) -> Figure | None:
    """MACs that decode and prefill need, by op: solid in NKI, hatched in the reference."""
    rows = [(found.name, _macs(found.trace)) for found in configurations if found.trace]
    rows = [(name, macs) for name, macs in rows if macs]
    if not rows:
        return None
    totals: dict[str, int] = defaultdict(int)
    for _, macs in rows:
        for (op, _), value in macs.items():
            totals[op] += value
    named = sorted(totals, key=lambda op: -totals[op])[: len(COLOURS)]
    colours = dict(zip(named, COLOURS, strict=False))
    figure = Figure(figsize=(9.0 if wide else 4.4, 1.5 + 0.36 * len(rows)), layout="constrained")
    panel = figure.subplots()
    for row, (_, macs) in enumerate(rows):
        whole, left = sum(macs.values()), 0.0
        order = [(op, nki) for nki in (True, False) for op in [*named, "others"]]
        for op, nki in order:
            chosen = [
                value
                for (name, in_nki), value in macs.items()
                if in_nki == nki and (name if name in colours else "others") == op
            ]
            share = 100 * sum(chosen) / whole
            if share <= 0:
                continue
            panel.barh(
                row, share, left=left, height=0.62, color=colours.get(op, GREY),
                alpha=1.0 if nki else 0.35, hatch=None if nki else "////", edgecolor="white",
                linewidth=0.5,
            )  # fmt: skip
            left += share
    panel.set_yticks(range(len(rows)), [name for name, _ in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlim(0, 100)
    panel.set_xlabel("share of the MACs that the model needs, % (counted)")
    for op in named:
        panel.barh([0], [0], color=colours[op], label=op)
    panel.barh([0], [0], color=GREY, alpha=0.35, hatch="////", label="not in NKI")
    figure.legend(loc="outside lower center", ncols=4 if wide else 2, frameon=False, fontsize=9)
    return figure


def _macs(trace: TraceSummary) -> dict[tuple[str, bool], int]:
    """(Op, in NKI) -> MACs needed, both graphs, on the trace's target."""
    prediction = trace.predictions.get(trace.target)
    found: dict[tuple[str, bool], int] = defaultdict(int)
    for op in prediction.ops if prediction else []:
        if op.macs_needed > 0:
            found[op.op, op.nki] += op.macs_needed
    return dict(found)


def roofline_figure(trace: TraceSummary, wide: bool) -> Figure | None:
    """Predicted time of a decode step by op, and the least its work allows."""
    ops = by_op(decode_ops(trace))[:OPS_SHOWN]
    if not ops:
        return None
    figure = Figure(figsize=(9.0 if wide else 4.4, 1.4 + 0.36 * len(ops)), layout="constrained")
    panel = figure.subplots()
    for row, op in enumerate(ops):
        colour = GREEN if op.nki else ORANGE if op.kernel == "collective" else GREY
        panel.barh(row, op.predicted_us, color=colour, height=0.6)
        panel.plot([op.roofline_us] * 2, [row - 0.36, row + 0.36], color="black", linewidth=2)
    panel.set_yticks(range(len(ops)), [op.op for op in ops])
    panel.set_ylim(len(ops) - 0.5, -0.5)
    panel.set_xlabel(f"µs per decode step (predicted for {trace.target})")
    for label, colour in (("NKI", GREEN), ("reference, coarse", GREY), ("collective", ORANGE)):
        panel.barh([0], [0], color=colour, label=label)
    panel.plot([], [], color="black", linewidth=2, label="roofline")
    figure.legend(loc="outside lower center", ncols=4 if wide else 2, frameon=False, fontsize=9)
    return figure
