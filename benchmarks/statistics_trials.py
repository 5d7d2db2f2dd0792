"""The trials behind benchmarks/statistics.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.synthetic_latency import (
    DRIFTING,
    PERCENTILES,
    PROMPTS,
    QUIET,
    SHARED,
    SLOW_DRIFT,
    STALLING,
    SWITCHING,
    Machine,
    Noise,
    truths,
)
from evaluation.estimates import Estimate, Metric
from evaluation.interleave import Session, interleave
from evaluation.latency import compare
from evaluation.latency_summary import METRICS, distribution
from model.configuration import Latency

DIFFERENCE = 1.03
KINDS = ("ratio", "mean", *(f"p{percentile}" for percentile in PERCENTILES))
"""Of intervals."""


@dataclass
class Figures:
    """What the trials of one machine found."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *(f"coverage: {kind}" for kind in KINDS), "false faster", "false slower",
        "no difference", "power 3 %", "rounds", "stopped by error", "half interval of ratio",
        "of mean",
    )  # fmt: skip

    machine: str
    counted: bool
    """Whether the headline figures hold it."""
    coverage: dict[str, list[bool]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    """Kind -> for each interval, of all metrics, whether it holds the truth."""
    verdicts: list[str] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    precise: list[bool] = field(default_factory=list)
    half_widths: list[float] = field(default_factory=list)
    mean_half_widths: list[float] = field(default_factory=list)

    @property
    def false_faster(self) -> float:
        """Of equal sides."""
        return self.verdicts.count("faster") / len(self.verdicts)

    @property
    def power(self) -> float:
        """Of a true difference of 3 %."""
        return sum(self.found) / len(self.found)

    def as_dict(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "machine": self.machine,
            "trials": len(self.verdicts),
            "counted": self.counted,
            **{f"coverage_{kind}": share(hits) for kind, hits in self.coverage.items()},
            "false_faster": self.false_faster,
            "false_slower": self.verdicts.count("slower") / len(self.verdicts),
            "no_difference": self.verdicts.count("no difference") / len(self.verdicts),
            "power_3pct": self.power,
            "rounds_median": float(np.median(self.rounds)),
            "stopped_by_error": sum(self.precise) / len(self.precise),
            "ratio_half_width_median": float(np.median(self.half_widths)),
            "mean_half_width_median": float(np.median(self.mean_half_widths)),
        }

    def cells(self) -> list[str]:
        """For the table."""
        return [
            "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
            for key, value in self.as_dict().items()
            if key not in ("machine", "trials", "counted")
        ]


def share(hits: list[bool]) -> float | None:
    """Of intervals that hold the truth; None if there were none."""
    return round(sum(hits) / len(hits), 4) if hits else None


def study(trials: int, seed: int, console: Console) -> list[Figures]:
    """Run every machine: `trials` sessions of equal sides, and as many 3 % apart.

    Trial i has seed `seed` + 2 i, and one more for the sides that differ.
    """
    counted, others = (QUIET, DRIFTING, STALLING, SWITCHING), (SHARED, SLOW_DRIFT)
    return [
        _machine(noise, noise in counted, trials, seed, console) for noise in (*counted, *others)
    ]


def session(noise: Noise, seed: int, ratio: float) -> tuple[Session, Latency]:
    """One session with the default settings, but for the seed."""
    settings = Latency(seed=seed)
    machine = Machine(noise, seed, ratio)
    return interleave(machine.sides(), PROMPTS, settings, machine.clock), settings


def _machine(noise: Noise, counted: bool, trials: int, seed: int, console: Console) -> Figures:
    figures, truth = Figures(noise.name, counted), truths(noise)
    for trial in track(range(trials), description=noise.name, console=console):
        own = seed + 2 * trial
        equal, settings = session(noise, own, 1.0)
        _judge_one_side(figures, equal, truth)
        comparisons = compare(equal, settings.smallest_difference, settings.seed)
        for comparison in comparisons:
            _cover(figures, "ratio", comparison.ratio, 1.0)
        first = comparisons[0]
        figures.verdicts.append(first.verdict)
        figures.rounds.append(equal.rounds)
        figures.precise.append(equal.stopped_because == "error of the mean")
        figures.half_widths.append(_half_width(first.ratio))
        slower = trial % 2 == 0
        apart, settings = session(noise, own + 1, DIFFERENCE if slower else 1 / DIFFERENCE)
        verdict = compare(apart, settings.smallest_difference, settings.seed)[0].verdict
        figures.found.append(verdict == ("slower" if slower else "faster"))
    return figures


def _judge_one_side(
    figures: Figures, session: Session, truth: dict[tuple[Metric, str], float]
) -> None:
    """Every interval that the latency stage gives for the baseline, all prompts together."""
    for metric in METRICS:
        found = distribution(metric, session.sample("baseline", metric))
        _cover(figures, "mean", found.mean, truth[metric, "mean"])
        if metric == "end_to_end_ms":
            figures.mean_half_widths.append(_half_width(found.mean) / found.mean.value)
        for percentile in PERCENTILES:
            estimate: Estimate = getattr(found, f"p{percentile}")
            if estimate.low is not None:  # else too few runs for one
                _cover(figures, f"p{percentile}", estimate, truth[metric, f"p{percentile}"])


def _half_width(estimate: Estimate) -> float:
    if estimate.low is None or estimate.high is None:
        return math.nan
    return (estimate.high - estimate.low) / 2


def _cover(figures: Figures, kind: str, estimate: Estimate, truth: float) -> None:
    """No interval counts as a miss."""
    low, high = estimate.low, estimate.high
    figures.coverage[kind].append(low is not None and high is not None and low <= truth <= high)
