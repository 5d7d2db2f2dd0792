"""The latency stage's file: what was measured, on which device, how surely.

Times are clock readings in milliseconds on the device named in the record. What TTFT, TPOT,
ITL, end-to-end latency and throughput mean is said once, in docs/evaluation.md.
"""

from __future__ import annotations

from typing import Literal

from evaluation.estimates import Comparison, Estimate, Metric
from evaluation.records import Gate
from model.records import Device, Part, Record, RunTiming

Side = Literal["configuration", "baseline"]


class Distribution(Part):
    """One metric of one side, over all timed runs, outliers included."""

    metric: Metric
    samples: int
    mean: Estimate
    p50: Estimate
    p90: Estimate
    p95: Estimate
    p99: Estimate
    standard_error: float | None
    """Of the mean, relative to it; the correlation of neighbouring rounds is allowed for. None
    with too few rounds."""


class PromptLatency(Part):
    """One side at one prompt."""

    prompt: str
    prompt_tokens: int
    new_tokens: int
    ttft_ms: Distribution
    tpot_ms: Distribution
    end_to_end_ms: Distribution
    total_tokens_per_s: float
    """Prompt and output tokens of all runs / their summed end-to-end time, as the contest
    counts throughput."""


class SideLatency(Part):
    """One side, all prompts together, each as often as any other."""

    configuration: str
    metrics: dict[Metric, Distribution]
    output_tokens_per_s: Estimate
    """Output tokens of all runs / their summed end-to-end time; one sequence at a time."""
    prompts: list[PromptLatency]
    outliers: int
    """Timed runs flagged as outliers; they are in every figure."""


class TimedRun(Part):
    """One timed generation, in the order in which they ran."""

    round: int
    side: Side
    prompt: str
    timing: RunTiming
    outlier: bool
    """Beyond three interquartile ranges of its side's and prompt's end-to-end latencies."""


class LatencyConditions(Part):
    """How the runs were made, so that they can be made again."""

    device_name: str
    """E.g. `simulator on CPU: NAME`; never an accelerator's unless it ran there."""
    seed: int
    """The order of prompts and sides in every round was drawn from it."""
    threads: int
    warmup_rounds: int
    warmup_stable: bool
    """False: the warm-up ended by its share of the time, not because times had settled."""
    rounds: int
    stopped_because: Literal["error of the mean", "time budget"]
    standard_error_target: float
    time_budget_s: float
    measured_s: float
    """Wall clock that warm-up and rounds took."""
    smallest_difference: float
    """`no difference` means: the 95 % interval is within this of 1."""
    load_average_start: float | None
    load_average_end: float | None
    """Of the machine over one minute; more than `threads` means that others disturbed."""


class LatencyRecord(Record):
    """results/latency/MODEL/CONFIGURATION/latency.json

    A configuration that failed a gate has no timings: `conditions`, both sides are None,
    `comparisons` and `runs` empty. The baseline is measured against a second copy of itself.
    """

    model: str
    configuration: str
    baseline: str
    device: Device
    dtype: str
    gates: list[Gate]
    withheld: list[str]
    """Why there are no timings: a sentence for each failed gate; empty if there are."""
    conditions: LatencyConditions | None
    measured: SideLatency | None
    measured_baseline: SideLatency | None
    """The baseline, interleaved with the configuration in the same process."""
    comparisons: list[Comparison]
    runs: list[TimedRun]
    fingerprint: str

    def comparison(self, metric: Metric = "end_to_end_ms") -> Comparison | None:
        """The comparison by one metric; None if the timings were withheld."""
        return next((found for found in self.comparisons if found.metric == metric), None)
