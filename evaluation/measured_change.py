"""How measured latency changed from one evaluation to another, with a 95 % interval.

Both evaluations ran the same prompts, so each prompt is compared with itself: the change is the
geometric mean over prompts of (mean latency now / mean latency then), its interval Student's t of
the logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from evaluation.metrics import tpot_ms
from evaluation.results import ConfigurationResults
from model.records import GenerationRecord, RunTiming

LEAST_PROMPTS = 3


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
    for name in ("TTFT", "TPOT", "end to end"):
        yield _change(
            name, _by_prompt(champion.generation, name), _by_prompt(candidate.generation, name)
        )


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


__all__: Sequence[str] = ["Change", "measured_changes"]
