"""How a measured latency compares with one of another session, with a 95 % interval.

A machine is not as fast today as it was last week, nor as it was a minute ago. The latency stage
therefore times every configuration in turn with the baseline, and two sessions are compared by
how many times as long as the baseline beside it each configuration took: the ratio of those two
ratios. The champion is compared so (`measured_changes`), and any two configurations of an
evaluation (evaluation/pairs.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from evaluation.estimates import COMPARED, LATENCY_NAMES, Estimate, Metric
from evaluation.latency_records import LatencyRecord
from evaluation.results import ConfigurationResults


@dataclass(frozen=True)
class Change:
    """One latency, then and now."""

    what: str
    champion: float | None
    """ms, the mean over all runs."""
    candidate: float | None
    ratio: Estimate | None
    """Now / then; below 1 is faster. None if they cannot be compared."""
    missing: str = ""
    """Why there is no ratio."""

    def text(self) -> str:
        """E.g. `+3.1 % (1.0 to 5.2 %)`."""
        if self.ratio is None or self.ratio.low is None or self.ratio.high is None:
            return "–"
        low, high = self.ratio.low - 1, self.ratio.high - 1
        return f"{self.ratio.value - 1:+.1%} ({low:+.1%} to {high:+.1%})"


def through_baseline(own: Estimate, other: Estimate) -> Estimate:
    """How many times as long one configuration takes as another.

    The sessions are independent, and the ratios' errors about normal in the logarithm, so that
    the squares of the intervals' widths add up.

    Args:
        own: The one's latency over the baseline's beside it.
        other: The same of the other, in a session of its own.

    Returns:
        own / other; without an interval if either has none.
    """
    value = own.value / other.value
    widths = [width for each in (own, other) if (width := _log_width(each)) is not None]
    if len(widths) < 2:
        return Estimate(value=value, low=None, high=None)
    reach = math.exp(math.hypot(*widths))
    return Estimate(value=value, low=value / reach, high=value * reach)


def nothing_in_common(own: LatencyRecord, other: LatencyRecord) -> str:
    """Why two sessions cannot be compared through their baselines; empty if they can."""
    if own.baseline != other.baseline:
        return f"beside {own.baseline}, {other.configuration} beside {other.baseline}"
    if (own.device, own.dtype) != (other.device, other.dtype) or _place(own) != _place(other):
        return f"on {_place(own)} in {own.dtype}, {other.configuration} on {_place(other)} in " + (
            other.dtype
        )
    if _work(own) != _work(other):
        return f"{own.configuration} and {other.configuration} were timed on other prompts"
    return ""


def measured_changes(
    champion: ConfigurationResults, candidate: ConfigurationResults
) -> Iterator[Change]:
    """The change of end-to-end latency, TTFT and TPOT."""
    for metric in COMPARED:
        yield _change(metric, champion.latency, candidate.latency)


def _change(
    metric: Metric, champion: LatencyRecord | None, candidate: LatencyRecord | None
) -> Change:
    before, after = (
        record.measured.metrics[metric].mean.value if record and record.measured else None
        for record in (champion, candidate)
    )
    old, new = (record.comparison(metric) if record else None for record in (champion, candidate))
    what = LATENCY_NAMES[metric]
    if champion is None or candidate is None or old is None or new is None:
        withheld = candidate.withheld if candidate else []
        missing = f"withheld: {withheld[0]}" if withheld else "not measured"
        return Change(what, before, after, None, missing)
    missing = nothing_in_common(candidate, champion)
    if missing:
        return Change(what, before, after, None, missing)
    if champion == candidate:  # the champion's own record, which nothing was measured after
        return Change(what, before, after, Estimate(value=1.0, low=1.0, high=1.0))
    return Change(what, before, after, through_baseline(new.ratio, old.ratio))


def _log_width(ratio: Estimate) -> float | None:
    """Half of an interval's width, in the logarithm."""
    if ratio.low is None or ratio.high is None or not 0 < ratio.low <= ratio.high:
        return None
    return math.log(ratio.high / ratio.low) / 2


def _place(record: LatencyRecord) -> str:
    """The machine that the clock was on."""
    return record.conditions.device_name if record.conditions else record.device


def _work(record: LatencyRecord) -> list[tuple[str, int, int]]:
    """The prompts and their lengths."""
    prompts = record.measured.prompts if record.measured else []
    return [(x.prompt, x.prompt_tokens, x.new_tokens) for x in prompts]
