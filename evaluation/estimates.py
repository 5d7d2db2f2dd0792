"""What a comparison and a score consist of; both are in the summary and in what it is made from."""

from __future__ import annotations

from typing import Literal

from model.records import Part

Metric = Literal["ttft_ms", "tpot_ms", "itl_ms", "end_to_end_ms"]
COMPARED: tuple[Metric, ...] = ("end_to_end_ms", "ttft_ms", "tpot_ms")
"""What two configurations are compared by; the first decides the pair's verdict."""

LATENCY_NAMES: dict[Metric, str] = {
    "ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "end_to_end_ms": "end to end",
}  # fmt: skip

PairVerdict = Literal["faster", "slower", "no difference", "not enough data"]


class Estimate(Part):
    """A figure and its 95 % interval, by `evaluation.statistics`."""

    value: float
    low: float | None
    high: float | None
    """Both None where the runs are too few for an interval."""


class Comparison(Part):
    """How many times as long the configuration took as the baseline beside it."""

    metric: Metric
    ratio: Estimate
    """Below 1 is faster. The interval is of the ratio itself, from paired rounds."""
    verdict: PairVerdict


class Pair(Part):
    """How many times as long one configuration took as another; both passed every gate."""

    configuration: str
    other: str
    metric: Metric
    ratio: Estimate
    """configuration / other; below 1 is faster."""
    verdict: PairVerdict
    through: str | None
    """The baseline that both were timed beside, each in a session of its own, so that this is
    the ratio of two ratios; None if the two themselves were timed side by side."""


class PromptScore(Part):
    """The score of one prompt, with every ingredient."""

    prompt: str
    """The contest's number, or a prompt's name."""
    context_tokens: int
    new_tokens: int
    context_bucket: int
    """Tokens of the context-encoding graph that runs it."""
    base_latency_ms: float
    """End to end; 99th percentile where measured."""
    latency_ms: float
    base_tokens_per_s: float
    """Prompt and new tokens over the time, as the contest counts."""
    tokens_per_s: float
    nki_flops_ratio: float
    """(MACs in NKI) / (all MACs), each graph once, at its smallest bucket: the contest's."""
    nki_flops_ratio_weighted: float
    """The same at this prompt's own buckets, token generation as often as it runs."""
    score: float
    """accuracy * base_latency / latency * tokens_per_s / base_tokens_per_s * (1 + ratio)"""
    score_corrected: float
    """The same with `nki_flops_ratio_weighted`."""


class Score(Part):
    """The contest's score of a configuration; predicted figures never pass for measured ones."""

    source: Literal["predicted", "measured"]
    device: str
    """The target that is predicted, or the device that was measured."""
    base: str
    """Where the base latencies come from."""
    comparable: bool
    """True if model, prompts and base are the contest's, so that its entries compare."""
    accuracy: Literal[0, 1]
    """1 if every gate of accuracy and latency was passed."""
    prompts: tuple[PromptScore, ...]
    total: float
    total_corrected: float
    notes: tuple[str, ...]
    """What the figures leave out."""
