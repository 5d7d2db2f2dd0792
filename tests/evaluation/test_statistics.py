"""The statistics on data whose truth is known; at length in benchmarks/statistics.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.estimates import Estimate
from evaluation.statistics import (
    FEWEST_ROUNDS,
    Paired,
    block_length,
    estimate_mean,
    estimate_percentile,
    estimate_ratio,
    far_out,
    relative_standard_error,
    verdict,
)


def drifting(rounds: int, correlation: float, seed: int = 0) -> np.ndarray:
    """An autoregressive series around 10."""
    random = np.random.default_rng(seed)
    values = np.empty(rounds)
    state = 0.0
    for i in range(rounds):
        noise = random.standard_normal()
        state = correlation * state + math.sqrt(1 - correlation**2) * noise
        values[i] = 10 + state
    return values


def test_a_drift_makes_blocks_longer_and_the_error_larger() -> None:
    white, drift = drifting(400, 0.0), drifting(400, 0.9)
    assert block_length(white, drifts=False) <= 2
    assert block_length(drift, drifts=False) > 10
    shuffled = np.random.default_rng(1).permutation(drift)
    assert relative_standard_error(drift[:, None]) > 2 * relative_standard_error(shuffled[:, None])


def test_the_interval_of_a_mean_is_students_on_independent_rounds() -> None:
    """A normal sample of 8 rounds: blocks of one, so the bootstrap must find Student's t."""
    found = [estimate_mean(drifting(8, 0.0, seed)[:, None], seed) for seed in range(40)]
    widths = [x.high - x.low for x in found if x.high is not None and x.low is not None]
    samples = [drifting(8, 0.0, seed) for seed in range(40)]
    student = [2 * 2.365 * x.std(ddof=1) / math.sqrt(8) for x in samples]
    assert len(widths) == 40
    assert np.mean(np.array(widths) / student) == pytest.approx(1.0, abs=0.06)


def test_what_slows_both_sides_cancels_out_of_the_ratio() -> None:
    machine = np.exp(0.3 * (drifting(40, 0.95) - 10))[:, None]
    jitter = 1 + 0.005 * np.random.default_rng(2).standard_normal((40, 1))
    ratio = estimate_ratio(Paired(13.0 * machine * jitter, 10.0 * machine), 0)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 1.3 < ratio.high
    assert ratio.high - ratio.low < 0.01
    mean = estimate_mean(10.0 * machine, 0)
    assert mean.low is not None
    assert mean.high is not None
    assert (mean.high - mean.low) / mean.value > 0.1


def test_one_stall_does_not_decide_a_comparison_but_is_in_the_mean() -> None:
    sides = 10 + 0.01 * np.random.default_rng(3).standard_normal((2, 30, 1))
    sides[0, 7] = 5000.0
    ratio = estimate_ratio(Paired(sides[0], sides[1]), 0)
    assert ratio.value == pytest.approx(1.0, abs=0.002)
    assert estimate_mean(sides[0], 0).value > 100
    assert list(np.flatnonzero(far_out(sides[0].ravel()))) == [7]
    assert not far_out(sides[1].ravel()).any()


def test_the_same_seed_gives_the_same_interval() -> None:
    sample = drifting(30, 0.5)[:, None]
    assert estimate_mean(sample, 4) == estimate_mean(sample, 4)
    assert estimate_mean(sample, 4) != estimate_mean(sample, 5)


def test_a_percentile_has_an_interval_only_if_enough_lies_beyond_it() -> None:
    sample = drifting(30, 0.0)[:, None]
    assert estimate_percentile(sample, 50, 0).low is not None
    p99 = estimate_percentile(sample, 99, 0)
    assert (p99.low, p99.high) == (None, None)
    assert p99.value == pytest.approx(float(np.quantile(sample, 0.99)))
    many = drifting(2000, 0.0)[:, None]
    assert estimate_percentile(many, 99, 0).low is not None


def test_too_few_rounds_have_no_interval() -> None:
    sample = drifting(FEWEST_ROUNDS - 1, 0.0)[:, None]
    assert estimate_mean(sample, 0).low is None
    assert relative_standard_error(sample) == math.inf


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.90, 0.99, "faster"),
        (1.001, 1.002, "slower"),
        (0.98, 1.02, "no difference"),
        (0.98, 1.04, "not enough data"),
        (0.90, 1.01, "not enough data"),
        (None, None, "not enough data"),
        (math.nan, 0.9, "not enough data"),
    ],
)
def test_verdicts(low: float | None, high: float | None, expected: str) -> None:
    assert verdict(Estimate(value=1.0, low=low, high=high), 0.03) == expected
