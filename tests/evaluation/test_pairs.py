"""One configuration against another through the baseline, on machines whose truth is known."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import permutations

import pytest
import samples

import evaluation.interleave
from benchmarks.synthetic_latency import DRIFTING, PROMPTS, STALLING, Machine, Noise
from evaluation.estimates import COMPARED, Comparison, Estimate
from evaluation.interleave import interleave
from evaluation.latency import compare
from evaluation.measured_change import nothing_in_common, through_baseline
from evaluation.pairs import inverse, pairs
from evaluation.results import ConfigurationResults
from evaluation.statistics import verdict
from model.configuration import Latency


def interval(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high)


def test_independent_errors_add_up_by_their_squares() -> None:
    found = through_baseline(
        interval(1.2, 1.2 / math.exp(0.03), 1.2 * math.exp(0.03)),
        interval(0.8, 0.8 / math.exp(0.04), 0.8 * math.exp(0.04)),
    )
    assert found.value == pytest.approx(1.5)
    assert found.low == pytest.approx(1.5 / math.exp(0.05))
    assert found.high == pytest.approx(1.5 * math.exp(0.05))


def test_without_both_intervals_there_is_none() -> None:
    bare = Estimate(value=0.5, low=None, high=None)
    for found in (
        through_baseline(interval(1.0, 0.9, 1.1), bare),
        through_baseline(bare, interval(1.0, 0.9, 1.1)),
    ):
        assert (found.low, found.high) == (None, None)
        assert verdict(found, 0.03) == "not enough data"


def test_the_others_side_is_the_inverse() -> None:
    assert inverse(interval(2.0, 1.6, 2.5)) == interval(0.5, 0.4, 0.625)
    assert inverse(Estimate(value=2.0, low=None, high=None)).low is None


def timed(name: str, ratio: float) -> ConfigurationResults:
    return ConfigurationResults(name, latency=samples.latency(name, ratio))


def test_a_baseline_that_is_not_listed_first_is_compared_from_the_others_side() -> None:
    found = pairs(
        [timed("norms", 1.25), timed("baseline", 1.0)], {"norms": "pass", "baseline": "pass"}, 0.03
    )
    assert [(x.configuration, x.other, x.through) for x in found] == [
        ("baseline", "norms", None)
    ] * len(COMPARED)
    assert found[0].ratio.value == pytest.approx(0.8)
    assert found[0].verdict == "faster"


def test_sessions_with_nothing_in_common_are_not_compared() -> None:
    own, other = samples.latency("norms"), samples.latency("rmsnorm")
    passed = {"norms": "pass", "rmsnorm": "pass"}
    assert nothing_in_common(own, other) == ""
    assert own.conditions is not None
    assert own.measured is not None
    elsewhere = own.conditions.model_copy(update={"device_name": "simulator on CPU: another"})
    for changes, reason in (
        ({"baseline": "separate"}, "beside separate, rmsnorm beside baseline"),
        ({"conditions": elsewhere}, "on simulator on CPU: another in bfloat16"),
        ({"dtype": "float32"}, "in float32"),
        ({"measured": own.measured.model_copy(update={"prompts": []})}, "on other prompts"),
    ):
        changed = own.model_copy(update=changes)
        assert reason in nothing_in_common(changed, other)
        both = [ConfigurationResults("norms", latency=changed), timed("rmsnorm", 1.05)]
        assert pairs(both, passed, 0.03) == ()  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synthetic machine's clock sees no collection; each would take as long as a session."""
    monkeypatch.setattr(evaluation.interleave, "_no_collections", nullcontext)
    monkeypatch.setattr("evaluation.interleave.gc.collect", lambda: 0)


SESSIONS = 10


def sessions(noise: Noise, ratio: float, first_seed: int) -> list[list[Comparison]]:
    """What the latency stage would find, in sessions of 1.5 s on a synthetic machine."""
    found = []
    for seed in range(first_seed, first_seed + SESSIONS):
        settings = Latency(seed=seed, time_budget_s=1.5)
        machine = Machine(noise, seed, ratio)
        session = interleave(machine.sides(), PROMPTS, settings, machine.clock)
        found.append(compare(session, settings.smallest_difference, seed))
    return found


@pytest.mark.parametrize("noise", [DRIFTING, STALLING], ids=lambda noise: noise.name)
def test_equals_are_rarely_told_apart_and_the_interval_holds_the_truth(noise: Noise) -> None:
    """A against A, each through the baseline in a session of its own; every two sessions."""
    equal = sessions(noise, 1.0, 0)
    ratios = [
        through_baseline(own.ratio, other.ratio)
        for ours, theirs in permutations(equal, 2)
        for own, other in zip(ours, theirs, strict=True)
    ]
    assert len(ratios) == SESSIONS * (SESSIONS - 1) * len(COMPARED)
    held = [x.low <= 1 <= x.high for x in ratios if x.low is not None and x.high is not None]
    assert len(held) == len(ratios)
    faster = [verdict(x, 0.03) == "faster" for x in ratios]
    assert sum(faster) / len(faster) <= 0.05
    assert sum(held) / len(held) >= 0.92  # that intervals are not too wide is the next test


def test_a_difference_is_found_through_the_baseline() -> None:
    """1.02 times the baseline, and 1.10 times as long as that."""
    fast, slow = sessions(DRIFTING, 1.02, 0), sessions(DRIFTING, 1.02 * 1.1, 1000)
    found = [
        through_baseline(ours[0].ratio, theirs[0].ratio)
        for ours, theirs in zip(slow, fast, strict=True)
    ]
    assert [verdict(ratio, 0.03) for ratio in found].count("slower") >= 0.9 * SESSIONS
    held = [x.low <= 1.1 <= x.high for x in found if x.low is not None and x.high is not None]
    assert sum(held) >= 0.8 * SESSIONS
