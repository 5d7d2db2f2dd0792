"""How measured latency changed from one evaluation to another, with a 95 % interval.

A machine is not as fast today as it was last week. The latency stage therefore times every
configuration in turn with the baseline, and what is compared is how many times as long as the
baseline beside it each took: the change is the ratio of those two ratios. Where that stage did not
run, each prompt is compared with itself: the geometric mean over prompts of (mean latency now /
mean latency then), its interval Student's t of the logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from evaluation.estimates import Estimate, Metric
from evaluation.latency_records import LatencyRecord
from evaluation.metrics import tpot_ms
from evaluation.results import ConfigurationResults
from model.records import GenerationRecord, RunTiming

LEAST_PROMPTS = 3
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
        if champion.latency is not None or candidate.latency is not None:
            yield _beside_baseline(metric, name, champion.latency, candidate.latency)
        else:
            old, new = (_by_prompt(x.generation, name) for x in (champion, candidate))
            yield _change(name, old, new)


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


def _change(name: str, old: dict[str, list[float]], new: dict[str, list[float]]) -> Change:
    before = fmean(x for values in old.values() for x in values) if old else None
    after = fmean(x for values in new.values() for x in values) if new else None
    common = sorted(set(old) & set(new))
    if set(old) != set(new) or len(common) < LEAST_PROMPTS:
        missing = "not measured" if not old or not new else (
            f"{len(common)} prompts in common, at least {LEAST_PROMPTS} are needed"
        )  # fmt: skip
        return Change(name, before, after, math.nan, None, None, missing)
    logs = [math.log(fmean(new[prompt]) / fmean(old[prompt])) for prompt in common]
    interval = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    low, high = math.exp(interval.low), math.exp(interval.high)
    return Change(name, before, after, math.exp(fmean(logs)), low, high)


def _by_prompt(generation: GenerationRecord | None, name: str) -> dict[str, list[float]]:
    """Prompt and mode -> its runs' latencies, ms."""
    found = {}
    for prompt in generation.prompts if generation else []:
        values = [value for run in prompt.runs if (value := _value(run, name)) is not None]
        if values:
            found[f"{prompt.name} {prompt.mode}"] = values
    return found


def _value(run: RunTiming, name: str) -> float | None:
    if name == "TPOT":
        return tpot_ms(run)
    return run.ttft_ms if name == "TTFT" else run.end_to_end_ms
