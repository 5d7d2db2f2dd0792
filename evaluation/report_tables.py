"""The report's tables: one row per configuration, and every column says where it is from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.estimates import COMPARED, LATENCY_NAMES, Estimate, Metric
from evaluation.ledger import QUANTITIES, Quantity, predicted_ms
from evaluation.metrics import worst
from evaluation.numbers import capital, number, percent, within
from evaluation.records import Summary
from evaluation.results import ConfigurationResults
from model.configuration import Config

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
    beside: Callable[[ConfigurationResults], str] | None = None
    """A second, smaller text."""


@dataclass(frozen=True)
class Cell:
    """What one field of a table says."""

    text: str
    beside: str = ""
    kind: str = ""
    """How the page marks it, beside its words."""


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


def interval_columns(
    config: Config, configurations: Sequence[ConfigurationResults]
) -> list[Column]:
    """What the latency stage measured beside the baseline; empty if it did not run."""
    if not any(found.latency for found in configurations):
        return []
    source = f"measured on {config.device}"

    def side(metric: Metric) -> Callable[[ConfigurationResults], Estimate | None]:
        return lambda found: (
            found.latency.measured.metrics[metric].mean
            if found.latency and found.latency.measured
            else None
        )

    return [
        Column(
            f"{capital(LATENCY_NAMES[metric])} mean, ms",
            source,
            _value(side(metric)),
            number,
            beside=_within(side(metric)),
        )
        for metric in COMPARED
    ]


def _value(
    estimate: Callable[[ConfigurationResults], Estimate | None],
) -> Callable[[ConfigurationResults], float | None]:
    def value(found: ConfigurationResults) -> float | None:
        each = estimate(found)
        return each.value if each else None

    return value


def _within(
    estimate: Callable[[ConfigurationResults], Estimate | None],
) -> Callable[[ConfigurationResults], str]:
    """The 95 % interval, as text."""

    def text(found: ConfigurationResults) -> str:
        each = estimate(found)
        return within(each) if each else ""

    return text


def predicted_columns(configurations: Sequence[ConfigurationResults]) -> list[Column]:
    """TTFT and TPOT for every target that anything is predicted for."""
    targets = sorted(
        {
            target
            for found in configurations
            for name in QUANTITIES
            for target in predicted_ms(found.trace, name)
        }
    )

    def value(name: Quantity, target: str) -> Callable[[ConfigurationResults], float | None]:
        return lambda found: predicted_ms(found.trace, name).get(target)

    return [
        Column(
            f"{name.removesuffix('_ms').upper()}, ms", f"predicted for {target}",
            value(name, target), number, relative=True,
        )
        for target in targets
        for name in QUANTITIES
    ]  # fmt: skip


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
    columns.append(
        Column("Logit matching, fp32", source, _matching("float32"), lambda x: "✓" if x else "✗")
    )
    if config.dtype == "bfloat16":
        columns += [
            Column(
                "Error over HF bf16's own",
                source,
                _error_ratio,
                number,
                limit=f"≤ {number(tolerances.bfloat16_error_ratio)}",
            ),
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


def _matching(dtype: str) -> Callable[[ConfigurationResults], float | None]:
    """1 if the logits match as NxD Inference defines it, 0 if not."""

    def value(found: ConfigurationResults) -> float | None:
        matches = found.accuracy.matches if found.accuracy else []
        chosen = [match.passed for match in matches if match.comparison.startswith(f"{dtype} vs ")]
        return float(all(chosen)) if chosen else None

    return value


def _error_ratio(found: ConfigurationResults) -> float | None:
    rounding = found.accuracy.rounding if found.accuracy else []
    return max((each.error_median_ratio for each in rounding), default=None)


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


def table(
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
        if column.beside is not None:
            return Cell(text, column.beside(found))
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
