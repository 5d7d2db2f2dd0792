"""Runs two sides in turn until their latencies are known well enough or the time is spent.

A round runs every prompt once on each side. The order of the prompts, and of the sides at each
prompt, is drawn from a seed, so that neither always meets a warm cache or the other's garbage.
Nothing here knows what a side is: the stage passes models, the benchmark of the statistics
passes synthetic ones and their clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

import numpy as np

from evaluation.estimates import Metric
from evaluation.latency_records import Side
from evaluation.statistics import Array, Paired, estimate_ratio, relative_standard_error
from model.configuration import Latency
from model.records import RunTiming

Runner = Callable[[str], RunTiming]
"""Runs one prompt, given by its name, and gives the run's times."""
StopReason = Literal["error of the mean", "time budget"]

SIDES: tuple[Side, Side] = ("configuration", "baseline")
WATCHED: tuple[Metric, ...] = ("ttft_ms", "tpot_ms", "end_to_end_ms")
"""The metrics whose mean must be known well enough."""

FEWEST_ROUNDS = 24
"""Rounds before the error is looked at: an error estimated from fewer is itself a guess, and
stopping at the first lucky guess would make the intervals too short."""
BUDGET_ROUNDS = 6
"""Rounds that are made even if the time is spent, as far as three times the budget lasts;
with fewer there is no interval (evaluation.statistics)."""
GRACE = 3.0
WARMUP_WINDOW = 2
"""Warm-up ends when so many rounds took about as long as the so many before."""
WARMUP_TOLERANCE = 0.05
WARMUP_SHARE = 0.25
"""Of the time budget: the longest warm-up, one round excepted."""
CHECK_GROWTH = 1.1
"""The error is looked at again when there are a tenth more rounds: each look is another
chance to stop by luck, and takes time."""


@dataclass(frozen=True)
class Run:
    """One timed run, in its place in the order."""

    round: int
    side: Side
    prompt: str
    timing: RunTiming


@dataclass
class Session:
    """What was run."""

    prompts: Sequence[str]
    runs: list[Run] = field(default_factory=list)
    rounds: int = 0
    warmup_rounds: int = 0
    warmup_stable: bool = False
    stopped_because: StopReason = "time budget"
    measured_s: float = 0.0

    def sample(self, side: Side, metric: Metric, prompt: str | None = None) -> Array:
        """One side's latencies, ms: `[rounds, runs]`, for ITL `[rounds, runs * gaps]`.

        Args:
            side: whose.
            metric: which.
            prompt: of one prompt only; else of all, in the session's order of prompts.
        """
        rows: list[list[float]] = [[] for _ in range(self.rounds)]
        for name in self.prompts if prompt is None else [prompt]:
            for run in self.runs:
                if run.side == side and run.prompt == name:
                    rows[run.round] += values(run.timing, metric)
        return np.array(rows)

    def pair(self, metric: Metric, prompt: str | None = None) -> Paired:
        """Both sides' latencies, round beside round."""
        return Paired(*(self.sample(side, metric, prompt) for side in SIDES))


def values(timing: RunTiming, metric: Metric) -> list[float]:
    """A run's figures: one, except for ITL. TPOT is the mean time of the tokens after the first."""
    if metric == "ttft_ms":
        return [timing.ttft_ms]
    if metric == "end_to_end_ms":
        return [timing.end_to_end_ms]
    if metric == "itl_ms":
        return timing.itl_ms
    return [(timing.end_to_end_ms - timing.ttft_ms) / len(timing.itl_ms)]


def interleave(
    sides: Mapping[Side, Runner],
    prompts: Sequence[str],
    settings: Latency,
    clock: Callable[[], float] = time.perf_counter,
) -> Session:
    """Warm both sides up, then run them in turn.

    Args:
        sides: What runs a prompt; each must give at least two tokens.
        prompts: Names of the prompts, the same for both sides.
        settings: When to stop, and the seed.
        clock: Seconds; only decides when the time is spent.
    """
    session = Session(prompts)
    random = np.random.default_rng(settings.seed)
    start = clock()
    with _no_collections():
        _warm_up(session, sides, settings, random, clock)
        begin, next_look = clock(), FEWEST_ROUNDS
        while True:
            session.runs += _round(session.rounds, sides, prompts, random)
            session.rounds += 1
            spent = clock() - begin
            few = session.rounds < BUDGET_ROUNDS and spent < GRACE * settings.time_budget_s
            if spent >= settings.time_budget_s and not few:
                break
            if session.rounds >= next_look:
                if precise(session, settings):
                    session.stopped_because = "error of the mean"
                    break
                next_look = max(next_look + 1, round(session.rounds * CHECK_GROWTH))
    session.measured_s = clock() - start
    return session


def precise(session: Session, settings: Latency) -> bool:
    """Whether every mean's error is small enough, and the sides' ratio known well enough.

    The ratio's interval must be no wider than the smallest difference that matters, so that a
    difference of that size is told from none.
    """
    for side in SIDES:
        for metric in WATCHED:
            if relative_standard_error(session.sample(side, metric)) > settings.standard_error:
                return False
    ratio = estimate_ratio(session.pair("end_to_end_ms"), settings.seed)
    if ratio.low is None or ratio.high is None:
        return False
    return ratio.high / ratio.low <= 1 + settings.smallest_difference


def _warm_up(
    session: Session,
    sides: Mapping[Side, Runner],
    settings: Latency,
    random: np.random.Generator,
    clock: Callable[[], float],
) -> None:
    begin = clock()
    totals: dict[Side, list[float]] = {side: [] for side in SIDES}
    while True:
        runs = _round(0, sides, session.prompts, random)
        session.warmup_rounds += 1
        for side in SIDES:
            totals[side].append(sum(r.timing.end_to_end_ms for r in runs if r.side == side))
        session.warmup_stable = all(map(_settled, totals.values()))
        if session.warmup_stable or clock() - begin > WARMUP_SHARE * settings.time_budget_s:
            return


def _settled(totals: list[float]) -> bool:
    """Whether the last rounds are no faster than those before; slower is noise, not warm-up."""
    last, before = totals[-WARMUP_WINDOW:], totals[-2 * WARMUP_WINDOW : -WARMUP_WINDOW]
    return len(before) == WARMUP_WINDOW and fmean(last) >= (1 - WARMUP_TOLERANCE) * fmean(before)


def _round(
    number: int,
    sides: Mapping[Side, Runner],
    prompts: Sequence[str],
    random: np.random.Generator,
) -> list[Run]:
    runs = []
    for prompt in random.permutation(len(prompts)):
        for side in random.permutation(len(SIDES)):
            name = prompts[prompt]
            runs.append(Run(number, SIDES[side], name, sides[SIDES[side]](name)))
    gc.collect()
    return runs


@contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage is collected between rounds, not within a run (as timeit does)."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()  # what exists already (torch, the models) is not looked through every round
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
