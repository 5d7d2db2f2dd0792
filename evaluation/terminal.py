"""What a person sees at the end of a run: tables of verdicts and of what changed.

rich leaves colours out where the output is no terminal or NO_COLOR is set.
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.estimates import COMPARED
from evaluation.numbers import number, ratio, score_source
from evaluation.records import ConfigurationSummary, RegressionRecord, RegressionRow, Summary

MARKS = {"pass": ("✓", "green"), "fail": ("✗", "red")}
OUTCOMES = {
    "better": ("↑ better", "green"),
    "equal": ("= equal", ""),
    "worse": ("✗ worse", "red"),
    "not comparable": ("? not comparable", "red"),
}


def console() -> Console:
    """For stderr; wide enough to hold a table where there is no terminal to fit."""
    screen = Console(stderr=True, highlight=False)
    return screen if screen.is_terminal else Console(stderr=True, highlight=False, width=140)


def print_verdicts(summary: Summary, screen: Console, *, partial: bool = False) -> None:
    """A table of the configurations, their latencies and verdicts; it fits 80 columns."""
    title = "Evaluation (unfinished)" if partial else "Evaluation"
    table = Table(
        title=f"{title} of {summary.model}", title_justify="left",
        box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    predicted = sorted(
        name.removeprefix("latency_predicted_").removesuffix("/tpot_ms")
        for name in {name for found in summary.configurations.values() for name in found.metrics}
        if name.startswith("latency_predicted_") and name.endswith("/tpot_ms")
    )
    devices = sorted({found.device for found in summary.configurations.values()})
    table.add_column("configuration")
    table.add_column("verdict")
    table.add_column(f"TTFT ms\nTPOT ms\nmeasured\n{', '.join(devices)}", justify="right")
    table.add_column(f"end to end\nover baseline's\nmeasured\n{', '.join(devices)}")
    for target in predicted:
        table.add_column(f"TTFT ms\nTPOT ms\npredicted\n{target}", justify="right")
    for name, found in summary.configurations.items():
        mark, colour = MARKS[found.verdict]
        table.add_row(
            Text(name, overflow="fold"),
            Text(f"{mark} {found.verdict}", style=colour),
            _latencies(found, f"latency_measured_{found.device}", "_p50"),
            _pair(found),
            *[_latencies(found, f"latency_predicted_{target}") for target in predicted],
        )
    screen.print(table)
    for line in _scores(summary):
        screen.print(line, soft_wrap=True)
    for name, found in summary.configurations.items():
        for reason in found.reasons:
            screen.print(Text(f"✗ {name}: {reason}", style="red"), soft_wrap=True)
    if "simulator" in devices:
        screen.print(
            "measured, simulator: wall clock of this CPU (TTFT, TPOT: medians), which says nothing "
            "about Trainium", style="dim", soft_wrap=True,
        )  # fmt: skip


def _latencies(found: ConfigurationSummary, section: str, statistic: str = "") -> str:
    """TTFT, and TPOT below it."""
    values = [found.metrics.get(f"{section}/{x}{statistic}") for x in ("ttft_ms", "tpot_ms")]
    return "\n".join("–" if value is None else number(value) for value in values)


def _pair(found: ConfigurationSummary) -> str:
    """The verdict of the pair; a configuration that fails is not compared."""
    if found.verdict == "fail":
        return "withheld" if any(x.startswith("latency withheld") for x in found.reasons) else "–"
    first = next((x for x in found.comparisons if x.metric == COMPARED[0]), None)
    return f"{first.verdict}\n{ratio(first)}" if first else "–"


def _scores(summary: Summary) -> list[str]:
    """A line for each kind of score: which kinds there are, and every configuration's total."""
    kinds: dict[str, list[str]] = {}
    for name, found in summary.configurations.items():
        if found.score is not None:
            kind = f"contest score, {score_source(found.score)}, base {found.score.base}"
            kinds.setdefault(kind, []).append(f"{name} {number(found.score.total)}")
    return [f"{kind}: {', '.join(each)}" for kind, each in kinds.items()]


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
