"""Is one configuration faster than another? A verdict for every two, not only with the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from evaluation.estimates import COMPARED, Estimate, Metric, Pair
from evaluation.measured_change import nothing_in_common, through_baseline
from evaluation.records import Verdict
from evaluation.results import ConfigurationResults
from evaluation.statistics import verdict


def pairs(
    configurations: Sequence[ConfigurationResults],
    verdicts: Mapping[str, Verdict],
    smallest_difference: float,
) -> tuple[Pair, ...]:
    """Compare every two configurations that pass and were timed, by each latency.

    The baseline is timed side by side with every other configuration. Two others are compared
    through it (`evaluation.measured_change`).

    Args:
        configurations: In the order in which a person listed them.
        verdicts: Configuration -> verdict; one that fails is in no pair.
        smallest_difference: See `evaluation.statistics.verdict`.

    Returns:
        Each pair once, the earlier as `other`; none where the sessions had other baselines,
        machines or prompts.
    """
    timed = [
        found
        for found in configurations
        if verdicts[found.name] == "pass" and found.latency and found.latency.comparisons
    ]
    return tuple(
        Pair(
            configuration=own.name,
            other=other.name,
            metric=metric,
            ratio=ratio,
            verdict=verdict(ratio, smallest_difference),
            through=through,
        )
        for other, own in combinations(timed, 2)
        for metric, ratio, through in _ratios(own, other)
    )


def inverse(ratio: Estimate) -> Estimate:
    """The same from the other's side."""
    low, high = ratio.low, ratio.high
    return Estimate(
        value=1 / ratio.value, low=None if high is None else 1 / high,
        high=None if low is None else 1 / low,
    )  # fmt: skip


def _ratios(
    own: ConfigurationResults, other: ConfigurationResults
) -> Iterator[tuple[Metric, Estimate, str | None]]:
    """Metric, own / other, and what it goes through; nothing if they cannot be compared."""
    ours, theirs = own.latency, other.latency
    if ours is None or theirs is None or nothing_in_common(ours, theirs):
        return
    for metric in COMPARED:
        mine, yours = ours.comparison(metric), theirs.comparison(metric)
        if mine is None or yours is None:
            continue
        if other.name == ours.baseline:
            yield metric, mine.ratio, None
        elif own.name == theirs.baseline:
            yield metric, inverse(yours.ratio), None
        else:
            yield metric, through_baseline(mine.ratio, yours.ratio), ours.baseline
