"""How measured latency changed from one evaluation to another, with a 95 % interval.

A machine is not as fast today as it was last week. The latency stage therefore times every
configuration in turn with the baseline, and what is compared is how many times as long as the
baseline beside it each took: the change is the ratio of those two ratios.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from evaluation.estimates import Estimate, Metric
from evaluation.latency_records import LatencyRecord
from evaluation.results import ConfigurationResults

NAMES: dict[Metric, str] = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "end_to_end_ms": "end to end"}


@dataclass(frozen=True)
class Change:
    """One latency, then and now."""

    what: str
    champion: float | None
    """ms, the mean over all runs."""
    candidate: float | None
    ratio: float
    """Now / then; below 1 is faster."""
    low: float | None
    high: float | None
    """The 95 % interval of `ratio`; None if there is too little data."""
    missing: str = ""

    def text(self) -> str:
        """E.g. `+3.1 % (1.0 to 5.2 %)`."""
        if self.low is None or self.high is None:
            return "–"
        return f"{self.ratio - 1:+.1%} ({self.low - 1:+.1%} to {self.high - 1:+.1%})"


def measured_changes(
    champion: ConfigurationResults, candidate: ConfigurationResults
) -> Iterator[Change]:
    """The change of TTFT, TPOT and end-to-end latency."""
    for metric, name in NAMES.items():
        yield _beside_baseline(metric, name, champion.latency, candidate.latency)


def _beside_baseline(
    metric: Metric, name: str, champion: LatencyRecord | None, candidate: LatencyRecord | None
) -> Change:
    before, after = (
        record.measured.metrics[metric].mean.value if record and record.measured else None
        for record in (champion, candidate)
    )
    old, new = (record.comparison(metric) if record else None for record in (champion, candidate))
    if champion is None or candidate is None or old is None or new is None:
        withheld = candidate.withheld if candidate else []
        missing = f"withheld: {withheld[0]}" if withheld else "not measured"
        return Change(name, before, after, math.nan, None, None, missing)
    if champion.baseline != candidate.baseline:
        missing = f"beside {candidate.baseline}, the champion beside {champion.baseline}"
        return Change(name, before, after, math.nan, None, None, missing)
    if champion == candidate:  # the champion's own record, which nothing was measured after
        return Change(name, before, after, 1.0, 1.0, 1.0)
    ratio = new.ratio.value / old.ratio.value
    was, now = _log_width(old.ratio), _log_width(new.ratio)
    if was is None or now is None:
        return Change(name, before, after, ratio, None, None, "too few runs for an interval")
    # Independent, and normal in the logarithm.
    width = math.hypot(was, now)
    return Change(name, before, after, ratio, ratio * math.exp(-width), ratio * math.exp(width))


def _log_width(ratio: Estimate) -> float | None:
    """Half of an interval's width, in the logarithm."""
    if ratio.low is None or ratio.high is None or not 0 < ratio.low <= ratio.high:
        return None
    return math.log(ratio.high / ratio.low) / 2
