"""What a person sees at the end of a run: tables of verdicts and of what changed.

rich leaves colours out where the output is no terminal or NO_COLOR is set.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.numbers import number
from evaluation.records import ConfigurationSummary, RegressionRecord, RegressionRow, Summary

MARKS = {"pass": ("✓", "green"), "fail": ("✗", "red")}
OUTCOMES = {
    "better": ("↑ better", "green"),
    "equal": ("= equal", ""),
    "worse": ("✗ worse", "red"),
    "not comparable": ("? not comparable", "red"),
}
NARROW = 100
"""Columns below which reasons get lines of their own."""


def console() -> Console:
    """For stderr; wide enough to hold a table where there is no terminal to fit."""
    screen = Console(stderr=True, highlight=False)
    return screen if screen.is_terminal else Console(stderr=True, highlight=False, width=140)


def print_verdicts(summary: Summary, screen: Console, *, partial: bool = False) -> None:
    """A table of the configurations, their latencies and verdicts."""
    title = "Evaluation (unfinished)" if partial else "Evaluation"
    table = Table(title=f"{title} of {summary.model}", title_justify="left")
    predicted = sorted(
        name.removeprefix("latency_predicted_").removesuffix("/tpot_ms")
        for name in {name for found in summary.configurations.values() for name in found.metrics}
        if name.startswith("latency_predicted_") and name.endswith("/tpot_ms")
    )
    devices = sorted({found.device for found in summary.configurations.values()})
    table.add_column("configuration")
    table.add_column("verdict")
    for name in ("TTFT", "TPOT"):
        table.add_column(f"{name} ms\nmeasured,\n{', '.join(devices)}", justify="right")
    for target in predicted:
        for name in ("TTFT", "TPOT"):
            table.add_column(f"{name} ms\npredicted,\n{target}", justify="right")
    for name, found in summary.configurations.items():
        mark, colour = MARKS[found.verdict]
        table.add_row(
            Text(name, overflow="fold"),
            Text(f"{mark} {found.verdict}", style=colour),
            *[_metric(found, f"latency_measured_{found.device}/{x}_p50") for x in LATENCIES],
            *[_metric(found, f"latency_predicted_{t}/{x}") for t in predicted for x in LATENCIES],
        )
    screen.print(table)
    for name, found in summary.configurations.items():
        for reason in found.reasons:
            screen.print(Text(f"✗ {name}: {reason}", style="red"), soft_wrap=True)
    if "simulator" in devices:
        screen.print(
            "measured, simulator: the median wall clock of this CPU, which says nothing about "
            "Trainium", style="dim", soft_wrap=True,
        )  # fmt: skip


LATENCIES = ("ttft_ms", "tpot_ms")


def _metric(found: ConfigurationSummary, name: str) -> str:
    value = found.metrics.get(name)
    return "–" if value is None else number(value)


def print_regression(record: RegressionRecord, screen: Console) -> None:
    """A table of what changed since the champion, and the verdict with its reasons."""
    table = Table(
        title=f"{record.candidate} against the champion {record.champion} "
        f"(version {record.champion_version}, commit {record.champion_commit[:10]})",
        title_justify="left",
    )
    for title, justify in (
        ("source", "left"), ("what", "left"), ("champion", "right"), ("candidate", "right"),
        ("change", "right"), ("must be", "left"), ("outcome", "left"),
    ):  # fmt: skip
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    previous = None
    for row in record.rows:
        if previous not in (None, row.source):
            table.add_section()
        previous = row.source
        _add(table, row)
    if record.rows:
        screen.print(table)
    else:
        screen.print(table.title or "")
    if record.same_results:
        screen.print("the results are the champion's own: nothing was measured anew", style="dim")
    for reason in record.reasons:
        screen.print(Text(f"✗ {reason}", style="red"), soft_wrap=True)
    if record.verdict == "pass":
        screen.print(Text(f"✓ {record.candidate} is no worse than the champion", style="green"))
    else:
        screen.print(Text(f"✗ {record.candidate} is worse than the champion", style="bold red"))


def _add(table: Table, row: RegressionRow) -> None:
    text, colour = OUTCOMES[row.outcome]
    table.add_row(
        row.source,
        Text(row.what),
        "–" if row.champion is None else number(row.champion),
        "–" if row.candidate is None else number(row.candidate),
        row.change,
        row.limit,
        Text(text, style=colour),
    )
