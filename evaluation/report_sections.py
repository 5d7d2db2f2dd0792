"""What the report says beside its tables: headline, changes since the champion, ops, provenance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation import ledger
from evaluation.champion import ChampionError, read_champion
from evaluation.numbers import number
from evaluation.plots_model import by_op
from evaluation.plots_timeline import read_step, timeline_figure
from evaluation.provenance import evaluation_fingerprint
from evaluation.records import LedgerEntry, OpError, RegressionRecord, Summary
from evaluation.regression import compare
from evaluation.report_tables import BASELINE
from evaluation.results import ConfigurationResults, result_files
from evaluation.run_contents import results_fingerprint
from evaluation.stamp import stamp_path
from evaluation.store import TrackingError
from evaluation.svg import Picture, picture
from model.configuration import Config
from model.records import OpTrace, RecordError

LEDGER_SHOWN = 20


def best(summary: Summary, configurations: Sequence[ConfigurationResults]) -> str | None:
    """The configuration that passes with the least predicted TPOT, baseline left out.

    Where nothing is predicted: the first that passes.
    """
    passed = [
        found
        for found in configurations
        if summary.configurations[found.name].verdict == "pass" and found.name != BASELINE
    ]

    def tpot(found: ConfigurationResults) -> float:
        predicted = ledger.predicted_ms(found.trace, "tpot_ms")
        return predicted.get(found.trace.target, float("inf")) if found.trace else float("inf")

    return min(passed, key=tpot).name if passed else None


def headline(
    config: Config, summary: Summary, configurations: Sequence[ConfigurationResults]
) -> str:
    """One sentence about the best configuration: predicted, and beside it measured."""
    name = best(summary, configurations)
    if name is None:
        return "No configuration beside the baseline passes."
    by_name = {found.name: found for found in configurations}
    found, baseline = by_name[name], by_name.get(BASELINE)
    said = []
    tpot = ledger.predicted_ms(found.trace, "tpot_ms").get(config.target)
    if tpot is not None:
        text = f"predicted TPOT on {config.target} {number(tpot)} ms"
        base = ledger.predicted_ms(baseline.trace, "tpot_ms").get(config.target) if baseline else 0
        said.append(f"{text}, {tpot / base:.2f}× baseline's" if base else text)
    comparison = found.latency.comparison() if found.latency else None
    if comparison is not None:
        said.append(
            f"measured end-to-end latency on the {config.device} {comparison.ratio.value:.2f}× "
            f"baseline's ({comparison.verdict})"
        )
    if found.trace is not None:
        said.append(f"{found.trace.nki_flops_ratio:.1%} of the MACs in NKI (counted)")
    return f"Best that passes: {name}" + (": " + "; ".join(said) if said else "") + "."


@dataclass(frozen=True)
class Changes:
    """What changed since the champion: a comparison per configuration, or why there is none."""

    records: tuple[RegressionRecord, ...] = ()
    message: str = ""


def changes(
    config: Config, results: Path, configurations: Sequence[ConfigurationResults]
) -> Changes:
    """Every configuration that has results against the champion, its namesake first.

    A store that is down is no reason to have no report.
    """
    if not stamp_path(config).is_file():
        return Changes(
            message="No configuration has been promoted yet: "
            "snakemake --cores 1 promote --config champion=NAME"
        )
    try:
        champion = read_champion(config)
    except (ChampionError, TrackingError) as error:
        return Changes(message=str(error).partition("\n")[0])
    evaluation = evaluation_fingerprint(config, results)
    records = [
        compare(
            config,
            champion,
            found,
            fingerprint=results_fingerprint(config, found, results),
            evaluation=evaluation,
        )
        for found in configurations
        if found.accuracy is not None
    ]
    records.sort(key=lambda record: record.candidate != champion.configuration)
    return Changes(tuple(records))


@dataclass(frozen=True)
class Ops:
    """Where a configuration's predicted decode step goes."""

    name: str
    target: str
    shape: str
    rows: tuple[OpTrace, ...]


def op_tables(configurations: Sequence[ConfigurationResults]) -> list[Ops]:
    """One per configuration with predictions; a decode step's ops, the longest first."""
    tables = []
    for found in configurations:
        trace = found.trace
        prediction = trace.predictions.get(trace.target) if trace else None
        if trace is None or prediction is None:
            continue
        ops = by_op([op for op in prediction.ops if op.graph == "token_generation"])
        shape = f"TP={trace.tp_degree}, context {trace.context}, {trace.dtype}"
        tables.append(Ops(found.name, trace.target, shape, tuple(ops)))
    return tables


@dataclass(frozen=True)
class Budget:
    """Which op moves a configuration's logits most."""

    name: str
    dtype: str
    graph: str
    rows: tuple[OpError, ...]


def budgets(configurations: Sequence[ConfigurationResults]) -> list[Budget]:
    """One per configuration, data type and graph."""
    found_budgets = []
    for found in configurations:
        rows = found.error_map.budget if found.error_map else []
        for dtype, graph in dict.fromkeys((row.dtype, row.graph) for row in rows):
            chosen = [row for row in rows if (row.dtype, row.graph) == (dtype, graph)]
            if len(chosen) > 1:
                found_budgets.append(Budget(found.name, dtype, graph, tuple(chosen)))
    return found_budgets


def timeline(config: Config, results: Path, found: ConfigurationResults | None) -> Picture | None:
    """The engines' timeline of one decode step; None if the trace stage left none."""
    if found is None or found.trace is None or found.trace.timeline is None:
        return None
    path = result_files(results, config.model, found.name)["trace"].parent / found.trace.timeline
    if not path.is_file():
        return None
    try:
        step, target = read_step(path), found.trace.target
    except RecordError as error:
        # The numbers do not depend on it.
        print(error, file=sys.stderr)
        return None
    return picture("timeline", lambda wide: timeline_figure(step, target, wide))


@dataclass(frozen=True)
class Source:
    """Where a section's numbers are from."""

    section: str
    kind: str
    file: str
    stage: str


def sources(config: Config) -> list[Source]:
    """For every section: measured, predicted or counted, by which stage, in which file."""
    measured, target = f"measured on {config.device}", f"predicted for {config.target}"
    compared = f"computed on {config.device}, compared"
    score = measured if config.device == "neuron" else target
    rows = (
        ("Latency, verdicts, conditions", measured, "latency", "latency"),
        ("Every run", measured, "generate", "generate"),
        ("Predicted latency, ops, timeline", target, "trace", "trace"),
        ("Contest score", f"{score}; ratios counted", "trace, latency", "trace"),
        ("MACs, Programs", "counted", "compile", "compile"),
        ("Quality, tasks, gates", f"{compared} with Hugging Face", "accuracy", "accuracy"),
        ("Error budget, cut points", f"{compared} without kernels", "accuracy", "error_map"),
    )
    files = result_files(Path("results"), config.model, "NAME")
    return [
        Source(section, kind, files[key].as_posix(), stage) for section, kind, stage, key in rows
    ]


def ledger_entries(config: Config) -> tuple[list[LedgerEntry], str]:
    """The newest entries about this model, and why there are none if they cannot be read."""
    try:
        entries = [entry for entry in ledger.read() if entry.model == config.model]
    except RecordError as error:
        return [], str(error).partition("\n")[0]
    return entries[: -LEDGER_SHOWN - 1 : -1], ""
