"""What the report says of the latency stage: every pair, and how the figures came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.estimates import COMPARED, Metric, Pair
from evaluation.interleave import WATCHED
from evaluation.latency_records import LatencyRecord
from evaluation.numbers import number, percent, ratio
from evaluation.pairs import inverse
from evaluation.records import Gate, Summary
from evaluation.report_tables import Cell
from evaluation.results import ConfigurationResults

OPPOSITE = {"faster": "slower", "slower": "faster"}


@dataclass(frozen=True)
class Matrix:
    """Row against column: every pair by one latency."""

    metric: Metric
    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    """Name, and a cell for each of `names`: None with itself."""


def matrices(summary: Summary) -> list[Matrix]:
    """One per latency, end to end first; empty if no pair goes beyond one with the baseline.

    Those are in the table beside the baseline already.
    """
    if not any(pair.through for pair in summary.pairs):
        return []
    named = {name for pair in summary.pairs for name in (pair.configuration, pair.other)}
    names = tuple(name for name in summary.configurations if name in named)
    found = []
    for metric in COMPARED:
        cells: dict[tuple[str, str], Cell] = {}
        for pair in summary.pairs:
            if pair.metric == metric:
                cells[pair.configuration, pair.other] = _cell(pair)
                cells[pair.other, pair.configuration] = _cell(_opposite(pair))
        rows = tuple(
            (
                row,
                tuple(
                    None if row == column else cells.get((row, column), Cell("not compared"))
                    for column in names
                ),
            )
            for row in names
        )
        found.append(Matrix(metric, names, rows))
    return found


def _cell(pair: Pair) -> Cell:
    return Cell(pair.verdict, ratio(pair), pair.verdict.replace(" ", "-"))


def _opposite(pair: Pair) -> Pair:
    return pair.model_copy(
        update={
            "configuration": pair.other,
            "other": pair.configuration,
            "ratio": inverse(pair.ratio),
            "verdict": OPPOSITE.get(pair.verdict, pair.verdict),
        }
    )


@dataclass(frozen=True)
class Conditions:
    """How a configuration was timed, in words."""

    name: str
    on: str
    rounds: str
    warm_up: str
    ended: str
    error: str
    """Of the mean: the largest of both sides and all watched latencies."""
    load: str
    outliers: str
    seed: int


def conditions(configurations: Sequence[ConfigurationResults]) -> list[Conditions]:
    """One per configuration that was timed."""
    return [
        _conditions(found.name, found.latency)
        for found in configurations
        if found.latency and found.latency.conditions
    ]


def _conditions(name: str, record: LatencyRecord) -> Conditions:
    made = record.conditions
    assert made is not None
    sides = [side for side in (record.measured, record.measured_baseline) if side]
    errors = [side.metrics[metric].standard_error for side in sides for metric in WATCHED]
    known = [error for error in errors if error is not None]
    load = [
        "?" if each is None else f"{each:.1f}"
        for each in (made.load_average_start, made.load_average_end)
    ]
    return Conditions(
        name=name,
        on=f"{made.device_name}, {_plural(made.threads, 'thread')}",
        rounds=number(made.rounds),
        warm_up=f"{_plural(made.warmup_rounds, 'round')}, "
        f"{'' if made.warmup_stable else 'not '}settled",
        ended=f"{made.stopped_because}, after {number(made.measured_s)} s of "
        f"{number(made.time_budget_s)} s",
        error=f"{percent(max(known))}, aim {percent(made.standard_error_target)}"
        if len(known) == len(errors)
        else "too few rounds to say",
        load=" to ".join(load),
        outliers=" and ".join(f"{side.outliers} of {side.configuration}" for side in sides),
        seed=made.seed,
    )


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Gates:
    """What a configuration had to pass: before it was timed, and to be right."""

    name: str
    timing: tuple[Gate, ...]
    accuracy: tuple[Gate, ...]

    @property
    def failed(self) -> bool:
        """Whether any is closed."""
        return not all(gate.passed for gate in (*self.timing, *self.accuracy))


def gates(configurations: Sequence[ConfigurationResults]) -> list[Gates]:
    """One per configuration; without any if none was checked."""
    return [
        Gates(
            found.name,
            tuple(found.latency.gates if found.latency else ()),
            tuple(found.accuracy.gates if found.accuracy else ()),
        )
        for found in configurations
    ]
