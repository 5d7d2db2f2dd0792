"""results/report.html: the evaluation for a person, in one file without the network.

`python -m evaluation.report --partial` builds it from what is there after a failure.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.estimates import COMPARED, LATENCY_NAMES
from evaluation.numbers import capital, gate_value, number, percent, ratio, score_source, within
from evaluation.plots import interval_figure, latency_figure, quality_figure
from evaluation.plots_error import cut_point_figure
from evaluation.plots_model import macs_share_figure, roofline_figure
from evaluation.provenance import cpu_model, git_commit, versions
from evaluation.records import Summary
from evaluation.report_latency import conditions, gates, matrices
from evaluation.report_sections import (
    best,
    budgets,
    changes,
    headline,
    ledger_entries,
    op_tables,
    sources,
    timeline,
)
from evaluation.report_tables import (
    interval_columns,
    nki_columns,
    predicted_columns,
    quality_columns,
    speed_columns,
    table,
    task_columns,
)
from evaluation.results import ConfigurationResults, read_all
from evaluation.summary import describe_detail, place, summarise_read
from evaluation.svg import Picture, picture
from evaluation.terminal import console, print_verdicts
from model.configuration import Config, ConfigurationError, read_config
from model.records import RecordError, write_text

TEMPLATES = Path(__file__).parent / "templates"
PLOT_FILES = {
    "intervals": "latency_measured",
    "runs": "runs_measured",
    "quality": "quality",
    "macs": "macs_in_nki",
    "roofline": "ops_predicted",
    "cuts": "cut_points",
    "timeline": "timeline_predicted",
}
"""Plot -> its file in results/plots, for `snakemake --report`."""
NO_PLOT = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 60"><text x="10" y="35" '
    'font-family="sans-serif" font-size="14">There are no results to draw.</text></svg>\n'
)


def report(
    config: Config, results: Path, summary: Path, html: Path, *, partial: bool = False
) -> Summary:
    """Write summary.json and report.html.

    Args:
        config: The evaluation.
        results: The `results/` folder.
        summary: Where the summary is written.
        html: Where the report is written; the plots go to `plots/` beside it.
        partial: The evaluation did not finish. Both files get a modification time of 0, so
            that Snakemake builds them again once it has.

    Returns:
        The summary.
    """
    configurations = read_all(results, config.model, config.configurations)
    summed = summarise_read(config, results, configurations)
    summed.write(summary)
    pictures = plots(config, results, summed, configurations)
    write_text(html, render(config, results, summed, configurations, pictures, partial=partial))
    for name, file in PLOT_FILES.items():
        shown = pictures[name]
        write_text(html.parent / "plots" / f"{file}.svg", shown.wide if shown else NO_PLOT)
    if partial:
        for path in (summary, html):
            os.utime(path, (0, 0))
    return summed


def render(
    config: Config,
    results: Path,
    summary: Summary,
    configurations: Sequence[ConfigurationResults],
    pictures: Mapping[str, Picture | None],
    *,
    partial: bool = False,
) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "gate_value": gate_value}
    environment.filters |= {"within": within, "ratio": ratio, "score_source": score_source}
    environment.globals["latency_names"] = {x: capital(y) for x, y in LATENCY_NAMES.items()}
    environment.globals["compared"] = COMPARED
    verdicts = [summary.configurations[found.name].verdict for found in configurations]
    entries, ledger_error = ledger_entries(config)
    return environment.get_template("report.html.j2").render(
        config=config,
        summary=summary,
        configurations=configurations,
        partial=partial,
        passed=verdicts.count("pass"),
        headline=headline(config, summary, configurations),
        tables=tables(config, summary, configurations),
        matrices=matrices(summary),
        conditions=conditions(configurations),
        gates=gates(configurations),
        plots=pictures,
        shown=best(summary, configurations),
        ops=op_tables(configurations),
        budgets=budgets(configurations),
        changes=changes(config, results, configurations),
        ledger=entries,
        ledger_error=ledger_error,
        sources=sources(config),
        kernels=sorted({k for c in summary.configurations.values() for k in c.kernel_calls}),
        describe_detail=describe_detail,
        place=place,
        commit=git_commit(),
        versions=versions(),
        cpu=cpu_model(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def tables(
    config: Config, summary: Summary, configurations: Sequence[ConfigurationResults]
) -> dict[str, dict[str, Any]]:
    """The tables with a row per configuration, by the name the template knows them by."""
    columns = {
        "intervals": interval_columns(config, configurations),
        "runs": speed_columns(config),
        "predicted": predicted_columns(configurations),
        "quality": quality_columns(config),
        "tasks": task_columns(config, configurations),
        "nki": nki_columns(),
    }
    return {name: table(each, configurations, summary) for name, each in columns.items()}


def plots(
    config: Config,
    results: Path,
    summary: Summary,
    configurations: Sequence[ConfigurationResults],
) -> dict[str, Picture | None]:
    """The plots as inline SVG, by the name the template knows them by; None for no data."""
    verdicts = [summary.configurations[found.name].verdict for found in configurations]
    by_name = {found.name: found for found in configurations}
    shown = by_name.get(best(summary, configurations) or configurations[0].name)
    trace = shown.trace if shown else None
    tolerances = config.accuracy.tolerances
    return {
        "intervals": picture("intervals", lambda w: interval_figure(configurations, verdicts, w)),
        "runs": picture("runs", lambda w: latency_figure(configurations, verdicts, w)),
        "quality": picture(
            "quality", lambda w: quality_figure(configurations, verdicts, tolerances, w)
        ),
        "macs": picture("macs", lambda w: macs_share_figure(configurations, w)),
        "roofline": picture("roofline", lambda w: roofline_figure(trace, w) if trace else None),
        "cuts": picture("cuts", lambda w: cut_point_figure(configurations, config.dtype, w)),
        "timeline": timeline(config, results, shown),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 if the report was written."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.report", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument(
        "--partial", action="store_true", help="the evaluation did not finish; build what there is"
    )
    chosen = parser.parse_args(arguments)
    results: Path = chosen.results
    try:
        summary = report(
            read_config(chosen.config),
            results,
            results / "summary.json",
            results / "report.html",
            partial=chosen.partial,
        )
    except (ConfigurationError, RecordError) as error:
        print(error, file=sys.stderr)
        return 1
    print_verdicts(summary, console(), partial=chosen.partial)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
