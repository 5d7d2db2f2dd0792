"""A machine whose latencies are known: skewed, drifting, with stalls, on a clock of its own.

The benchmark of the statistics lets `evaluation.interleave` run it in place of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.estimates import Metric
from evaluation.interleave import SIDES, values
from evaluation.latency_records import Side
from evaluation.latency_summary import METRICS
from model.records import RunTiming

PERCENTILES = (50, 90, 95, 99)
STEP_MS = 2.4
FIRST_MS = {"short": 9.0, "medium": 11.0, "long": 18.0}
"""A generation's undisturbed times, about those of the tiny model without kernels on a quiet
x86-64 core (README's table)."""
PROMPTS = list(FIRST_MS)


@dataclass(frozen=True)
class Noise:
    """How a machine disturbs what runs on it."""

    name: str
    jitter: float
    """Standard deviation of a step's own noise, relative; gamma of shape 2, so skewed by 1.4."""
    drift: float
    """Standard deviation of the machine's speed (logarithm): an Ornstein-Uhlenbeck process."""
    drift_s: float
    """Its correlation time."""
    stalls_per_s: float
    """Poisson; a stall takes log-normally 8 ms (sigma 0.8), up to half a generation."""
    switches: bool = False
    """Instead of wandering, the speed switches between `drift` and -`drift`, after exponential
    times of mean `drift_s`, as a clock does between two frequencies."""


QUIET = Noise("quiet", jitter=0.03, drift=0.01, drift_s=0.3, stalls_per_s=0.3)
DRIFTING = Noise("drifting", jitter=0.03, drift=0.03, drift_s=0.3, stalls_per_s=0.5)
STALLING = Noise("stalling", jitter=0.05, drift=0.02, drift_s=0.2, stalls_per_s=2.0)
SWITCHING = Noise(
    "switching", jitter=0.03, drift=0.02, drift_s=0.4, stalls_per_s=0.5, switches=True
)
"""Held out: no setting of the statistics was chosen by it."""
SHARED = Noise("shared", jitter=0.1, drift=0.22, drift_s=0.5, stalls_per_s=0.5, switches=True)
"""A core whose other half is somebody else's: steps take 3.7 or 6 ms for half a second at a time
(measured, tiny model without kernels on the simulator, a virtual machine of two x86-64 cores)."""
SLOW_DRIFT = Noise("slow drift", jitter=0.03, drift=0.03, drift_s=5.0, stalls_per_s=0.5)
"""Drift as long as a session: its mean cannot be known from one session; ratios can."""


class Machine:
    """Runs both sides; its clock is advanced by what they take."""

    def __init__(self, noise: Noise, seed: int, ratio: float = 1.0) -> None:
        """`ratio` is how many times as long the configuration takes as the baseline."""
        self.noise = noise
        self.random = np.random.default_rng(seed)
        self.seconds = 0.0
        self.ratio = ratio
        self.speed = noise.drift * self.random.standard_normal()

    def clock(self) -> float:
        """Seconds since the machine was made."""
        return self.seconds

    def sides(self) -> dict[Side, Callable[[str], RunTiming]]:
        """What `interleave` runs."""
        scales = {"configuration": self.ratio, "baseline": 1.0}
        return {side: self._runner(scales[side]) for side in SIDES}

    def _runner(self, scale: float) -> Callable[[str], RunTiming]:
        def run(prompt: str) -> RunTiming:
            first = self._step(FIRST_MS[prompt] * scale)
            gaps = [self._step(STEP_MS * scale) for _ in range(7)]
            return RunTiming(ttft_ms=first, itl_ms=gaps, end_to_end_ms=first + sum(gaps))

        return run

    def _step(self, ms: float) -> float:
        noise, random = self.noise, self.random
        keep = math.exp(-ms / 1e3 / noise.drift_s)
        if noise.switches:
            self.speed = math.copysign(noise.drift, self.speed)
            self.speed *= 1 if random.random() < keep else -1
        else:
            change = noise.drift * math.sqrt(1 - keep * keep)
            self.speed = keep * self.speed + change * random.standard_normal()
        skewed = (random.gamma(2.0) - 2.0) / math.sqrt(2.0)
        taken = ms * math.exp(self.speed) * max(0.5, 1 + noise.jitter * skewed)
        if random.random() < noise.stalls_per_s * ms / 1e3:
            taken += random.lognormal(math.log(8.0), 0.8)
        self.seconds += taken / 1e3
        return taken


def truths(noise: Noise, runs: int = 60_000) -> dict[tuple[Metric, str], float]:
    """The long-run figures of the baseline, ms: (metric, `mean` or `p50`, `p90`, …) -> figure."""
    machine = Machine(noise, seed=10**9)
    run = machine.sides()["baseline"]
    timings = [run(PROMPTS[i % len(PROMPTS)]) for i in range(runs)]
    found: dict[tuple[Metric, str], float] = {}
    for metric in METRICS:
        sample = np.array([x for timing in timings for x in values(timing, metric)])
        found[metric, "mean"] = float(sample.mean())
        for percentile in PERCENTILES:
            found[metric, f"p{percentile}"] = float(np.quantile(sample, percentile / 100))
    return found
