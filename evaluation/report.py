"""results/report.html: the evaluation for a person, in one file without the network.

`python -m evaluation.report --partial` builds it from what is there after a failure.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.metrics import worst
from evaluation.numbers import gate_value, number, percent
from evaluation.plots import latency_plot, quality_plot
from evaluation.provenance import git_commit, versions
from evaluation.records import Summary
from evaluation.results import ConfigurationResults, read_all
from evaluation.summary import describe_detail, place, summarise_read
from evaluation.terminal import console, print_verdicts
from model.configuration import Config, ConfigurationError, read_config
from model.records import RecordError, write_text

TEMPLATE = Path(__file__).parent / "report.html.j2"
BASELINE = "baseline"


@dataclass(frozen=True)
class Column:
    """A column of the report's tables: a number per configuration and where it is from."""

    title: str
    source: str
    """`measured on DEVICE`, `counted` or `predicted for TARGET`."""
    value: Callable[[ConfigurationResults], float | None]
    text: Callable[[float], str]
    relative: bool = False
    """Also as a multiple of the baseline's, unless either failed."""
    limit: str = ""


@dataclass(frozen=True)
class Cell:
    """What one field of a table says."""

    text: str
    beside: str = ""


def report(
    config: Config, results: Path, summary: Path, html: Path, *, partial: bool = False
) -> Summary:
    """Write summary.json and report.html.

    Args:
        config: The evaluation.
        results: The `results/` folder.
        summary: Where the summary is written.
        html: Where the report is written.
        partial: The evaluation did not finish. Both files get a modification time of 0, so
            that Snakemake builds them again once it has.

    Returns:
        The summary.
    """
    configurations = read_all(results, config.model, config.configurations)
    summed = summarise_read(config, results, configurations)
    summed.write(summary)
    write_text(html, render(config, summed, configurations, partial=partial))
    if partial:
        for path in (summary, html):
            os.utime(path, (0, 0))
    return summed


def render(
    config: Config,
    summary: Summary,
    configurations: Sequence[ConfigurationResults],
    *,
    partial: bool = False,
) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "gate_value": gate_value}
    verdicts = [summary.configurations[found.name].verdict for found in configurations]
    return environment.get_template(TEMPLATE.name).render(
        config=config,
        summary=summary,
        configurations=configurations,
        partial=partial,
        passed=verdicts.count("pass"),
        tables={
            "Speed": _table(speed_columns(config), configurations, summary),
            "Quality": _table(quality_columns(config), configurations, summary),
            "Tasks": _table(task_columns(config, configurations), configurations, summary),
            "NKI in the model": _table(nki_columns(), configurations, summary),
        },
        latency_plot=latency_plot(configurations, verdicts),
        quality_plot=quality_plot(configurations, verdicts, config.accuracy.tolerances),
        kernels=sorted({k for c in summary.configurations.values() for k in c.kernel_calls}),
        describe_detail=describe_detail,
        place=place,
        commit=git_commit(),
        versions=versions(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def speed_columns(config: Config) -> list[Column]:
    """Latency and throughput."""
    source = f"measured on {config.device}"

    def measured(field: str) -> Callable[[ConfigurationResults], float | None]:
        return lambda found: (
            float(getattr(found.generation.measured, field)) if found.generation else None
        )

    titles = {
        "ttft_ms_p50": "TTFT p50, ms",
        "tpot_ms_p50": "TPOT p50, ms",
        "end_to_end_ms_p50": "End to end p50, ms",
        "output_tokens_per_s": "Throughput, tokens/s",
    }
    return [
        Column(title, source, measured(field), number, relative=True)
        for field, title in titles.items()
    ]


def quality_columns(config: Config) -> list[Column]:
    """Logits against HF, the worse of both graphs."""
    source = f"measured on {config.device}"
    tolerances = config.accuracy.tolerances

    def logits(dtype: str, measure: str) -> Callable[[ConfigurationResults], float | None]:
        return lambda found: worst(found, dtype, measure)

    columns = [
        Column(
            "Relative L2 error, fp32",
            source,
            logits("float32", "relative_l2_error"),
            number,
            limit=f"≤ {number(tolerances.float32_relative_l2)}",
        )
    ]
    if config.dtype == "bfloat16":
        columns += [
            Column(
                "KL, bf16, nats/token",
                source,
                logits("bfloat16", "kl_per_token_mean"),
                number,
                limit=f"≤ {number(tolerances.bfloat16_kl_per_token)}",
            ),
            Column(
                "Top-1 agreement, bf16",
                source,
                logits("bfloat16", "top1_agreement"),
                percent,
                limit=f"≥ {percent(tolerances.bfloat16_top1_agreement)}",
            ),
        ]
    return columns


def task_columns(config: Config, configurations: Sequence[ConfigurationResults]) -> list[Column]:
    """The lm-eval tasks that any configuration has a result of."""
    tasks = {
        (task.task, metric): task.chance
        for found in configurations
        for task in (found.accuracy.tasks if found.accuracy else [])
        for metric in task.metrics
        if not metric.endswith("_stderr")
    }
    return [
        Column(
            f"{task}: {metric}",
            f"measured on {config.device}",
            _task(task, metric),
            number,
            limit="" if chance is None else f"chance {number(chance)}",
        )
        for (task, metric), chance in tasks.items()
    ]


def _task(task: str, metric: str) -> Callable[[ConfigurationResults], float | None]:
    def value(found: ConfigurationResults) -> float | None:
        results = found.accuracy.tasks if found.accuracy else []
        return next((r.metrics.get(metric) for r in results if r.task == task), None)

    return value


def nki_columns() -> list[Column]:
    """How much of the model runs in NKI, and what compiling it took."""
    return [
        Column(
            "MACs in NKI (NKI FLOPs ratio)",
            "counted",
            lambda found: found.trace.nki_flops_ratio if found.trace else None,
            percent,
        ),
        Column(
            "Programs",
            "counted",
            lambda found: len(found.manifest.programs) if found.manifest else None,
            number,
        ),
        Column(
            "Instructions in them",
            "counted",
            lambda found: (
                sum(p.instructions for p in found.manifest.programs) if found.manifest else None
            ),
            number,
        ),
        Column(
            "Compile, s",
            "measured on the host",
            lambda found: found.manifest.compile_seconds_measured if found.manifest else None,
            number,
        ),
    ]


def _table(
    columns: Sequence[Column], configurations: Sequence[ConfigurationResults], summary: Summary
) -> dict[str, Any]:
    baseline = next((found for found in configurations if found.name == BASELINE), None)

    def passed(name: str) -> bool:
        return summary.configurations[name].verdict == "pass"

    def cell(column: Column, found: ConfigurationResults) -> Cell:
        value = column.value(found)
        if value is None:
            return Cell("–")
        text = column.text(value)
        base = column.value(baseline) if baseline else None
        if not column.relative or not base or found is baseline:
            return Cell(text)
        if not (passed(found.name) and passed(BASELINE)):
            return Cell(text, "not compared")
        return Cell(text, f"{value / base:.2f}× baseline")

    return {
        "columns": columns,
        "rows": [
            (found.name, [cell(column, found) for column in columns]) for found in configurations
        ],
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
