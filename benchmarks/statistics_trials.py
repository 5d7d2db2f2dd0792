"""The trials behind benchmarks/statistics.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.synthetic_latency import (
    DRIFTING,
    PROMPTS,
    QUIET,
    SLOW_DRIFT,
    STALLING,
    Machine,
    Noise,
    truths,
)
from evaluation.estimates import COMPARED, Estimate
from evaluation.interleave import Session, interleave
from evaluation.latency import compare
from evaluation.statistics import estimate_mean, estimate_percentile
from model.configuration import Latency

DIFFERENCE = 1.03


@dataclass
class Figures:
    """What the trials of one machine found."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "coverage: end-to-end ratio", "TTFT ratio", "TPOT ratio", "mean", "median",
        "false faster", "false slower", "no difference", "power 3 %", "rounds",
        "stopped by error", "half interval of ratio",
    )  # fmt: skip

    machine: str
    counted: bool
    """Whether the headline figures hold it: not where the mean is beyond one session."""
    coverage: dict[str, list[bool]] = field(
        default_factory=lambda: {kind: [] for kind in (*COMPARED, "mean", "p50")}
    )
    verdicts: list[str] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    precise: list[bool] = field(default_factory=list)
    half_widths: list[float] = field(default_factory=list)

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
            **{f"coverage_{k}": round(sum(v) / len(v), 4) for k, v in self.coverage.items()},
            "false_faster": self.false_faster,
            "false_slower": self.verdicts.count("slower") / len(self.verdicts),
            "no_difference": self.verdicts.count("no difference") / len(self.verdicts),
            "power_3pct": self.power,
            "rounds_median": float(np.median(self.rounds)),
            "stopped_by_error": sum(self.precise) / len(self.precise),
            "ratio_half_width_median": float(np.median(self.half_widths)),
        }

    def cells(self) -> list[str]:
        """For the table."""
        return [
            f"{value:.3f}" if isinstance(value, float) else str(value)
            for key, value in self.as_dict().items()
            if key not in ("machine", "trials", "counted")
        ]


def study(trials: int, console: Console) -> list[Figures]:
    """Run every machine: `trials` sessions of equal sides, and as many 3 % apart."""
    machines = ((QUIET, True), (DRIFTING, True), (STALLING, True), (SLOW_DRIFT, False))
    return [_machine(noise, counted, trials, console) for noise, counted in machines]


def session(noise: Noise, seed: int, ratio: float) -> tuple[Session, Latency]:
    """One session with the default settings, but for the seed."""
    settings = Latency(seed=seed)
    machine = Machine(noise, seed, ratio)
    return interleave(machine.sides(), PROMPTS, settings, machine.clock), settings


def _machine(noise: Noise, counted: bool, trials: int, console: Console) -> Figures:
    figures, truth = Figures(noise.name, counted), truths(noise)
    for trial in track(range(trials), description=noise.name, console=console):
        equal, settings = session(noise, trial, 1.0)
        comparisons = compare(equal, settings.smallest_difference, settings.seed)
        first = comparisons[0]
        sample = equal.sample("baseline", "end_to_end_ms")
        for comparison in comparisons:
            _cover(figures, comparison.metric, comparison.ratio, 1.0)
        _cover(figures, "mean", estimate_mean(sample, trial), truth["mean"])
        _cover(figures, "p50", estimate_percentile(sample, 50, trial), truth["p50"])
        figures.verdicts.append(first.verdict)
        figures.rounds.append(equal.rounds)
        figures.precise.append(equal.stopped_because == "error of the mean")
        if first.ratio.low is not None and first.ratio.high is not None:
            figures.half_widths.append((first.ratio.high - first.ratio.low) / 2)
        slower = trial % 2 == 0
        apart, settings = session(noise, 10**6 + trial, DIFFERENCE if slower else 1 / DIFFERENCE)
        verdict = compare(apart, settings.smallest_difference, settings.seed)[0].verdict
        figures.found.append(verdict == ("slower" if slower else "faster"))
    return figures


def _cover(figures: Figures, kind: str, estimate: Estimate, truth: float) -> None:
    """No interval counts as a miss."""
    low, high = estimate.low, estimate.high
    figures.coverage[kind].append(low is not None and high is not None and low <= truth <= high)
