"""The statistics on data whose truth is known; at length in benchmarks/statistics.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

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
    assert block_length(white) <= 2
    assert block_length(drift) > 10
    shuffled = np.random.default_rng(1).permutation(drift)
    assert relative_standard_error(drift[:, None]) > 2 * relative_standard_error(shuffled[:, None])


def test_the_interval_of_a_ratio_is_students_on_independent_rounds() -> None:
    """Normal logarithms of 8 rounds: blocks of one, so the bootstrap must find Student's t."""
    samples = [0.01 * (drifting(8, 0.0, seed) - 10) for seed in range(40)]
    sides = [(np.exp(sample)[:, None], np.ones((8, 1))) for sample in samples]
    found = [estimate_ratio(Paired(*pair), seed) for seed, pair in enumerate(sides)]
    widths = [math.log(x.high / x.low) for x in found if x.high is not None and x.low is not None]
    trimmed = [np.sort(x)[1:-1] for x in samples]  # a fifth of 8 at each end
    winsorised = [
        np.clip(x, y[0], y[-1]).std(ddof=1) for x, y in zip(samples, trimmed, strict=True)
    ]
    yuen = [2 * stats.t.ppf(0.975, 5) * s / (0.6 * math.sqrt(8)) for s in winsorised]
    assert len(widths) == 40
    assert np.mean(np.array(widths) / yuen) == pytest.approx(1.0, abs=0.15)


def test_the_interval_of_one_side_is_students_of_the_sessions_thirds() -> None:
    sample = np.repeat([9.0, 10.0, 12.0], 10)[:, None]
    found = estimate_mean(sample)
    student = stats.ttest_1samp(np.log([9.0, 10.0, 12.0]), 0).confidence_interval(0.95)
    assert found.value == pytest.approx(31 / 3)
    assert found.low is not None
    assert found.high is not None
    assert math.log(found.high / found.low) == pytest.approx(student.high - student.low)
    assert found.low * found.high == pytest.approx(found.value**2)
    assert estimate_percentile(np.tile(sample, 2), 50).low == pytest.approx(found.low * 30 / 31)


def test_an_interval_of_one_side_stays_positive() -> None:
    found = estimate_mean(np.repeat([1.0, 10.0, 400.0], 10)[:, None])
    assert found.low is not None
    assert 0 < found.low < 1


def test_what_slows_both_sides_cancels_out_of_the_ratio() -> None:
    machine = np.exp(0.3 * (drifting(40, 0.95) - 10))[:, None]
    jitter = 1 + 0.005 * np.random.default_rng(2).standard_normal((40, 1))
    ratio = estimate_ratio(Paired(13.0 * machine * jitter, 10.0 * machine), 0)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 1.3 < ratio.high
    assert ratio.high - ratio.low < 0.01
    mean = estimate_mean(10.0 * machine)
    assert mean.low is not None
    assert mean.high is not None
    assert (mean.high - mean.low) / mean.value > 0.1


def test_one_stall_does_not_decide_a_comparison_but_is_in_the_mean() -> None:
    sides = 10 + 0.01 * np.random.default_rng(3).standard_normal((2, 30, 1))
    sides[0, 7] = 5000.0
    ratio = estimate_ratio(Paired(sides[0], sides[1]), 0)
    assert ratio.value == pytest.approx(1.0, abs=0.002)
    assert estimate_mean(sides[0]).value > 100
    assert list(np.flatnonzero(far_out(sides[0].ravel()))) == [7]
    assert not far_out(sides[1].ravel()).any()


def test_the_same_seed_gives_the_same_interval() -> None:
    pair = Paired(drifting(30, 0.5)[:, None], drifting(30, 0.5, 1)[:, None])
    assert estimate_ratio(pair, 4) == estimate_ratio(pair, 4)
    assert estimate_ratio(pair, 4) != estimate_ratio(pair, 5)


def test_a_percentile_has_an_interval_only_if_enough_lies_beyond_it() -> None:
    sample = drifting(30, 0.0)[:, None]
    assert estimate_percentile(sample, 50).low is not None
    p99 = estimate_percentile(sample, 99)
    assert (p99.low, p99.high) == (None, None)
    assert p99.value == pytest.approx(float(np.quantile(sample, 0.99)))
    many = drifting(2000, 0.0)[:, None]
    assert estimate_percentile(many, 99).low is not None


def test_too_few_rounds_have_no_interval() -> None:
    sample = drifting(FEWEST_ROUNDS - 1, 0.0)[:, None]
    assert estimate_mean(sample).low is None
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
