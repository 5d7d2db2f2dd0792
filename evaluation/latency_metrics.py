"""The latency stage's and the score's figures as flat metrics; names as in evaluation.metrics."""

from __future__ import annotations

import re

from evaluation.estimates import Estimate, Score
from evaluation.latency_records import LatencyRecord

STATISTICS = ("mean", "p50", "p90", "p95", "p99")


def slug(text: str) -> str:
    """`text` with only characters that MLflow allows within a section, at most 120."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.")[-120:] or "_"


def latency_metrics(record: LatencyRecord) -> dict[str, float]:
    """What was measured on the record's device; empty if the timings were withheld.

    `latency_ratio_measured_DEVICE/` has the ratios to the baseline beside it, below 1 is faster.
    """
    section = f"latency_measured_{record.device}"
    found: dict[str, float] = {
        f"{section}/gates_failed": sum(not gate.passed for gate in record.gates)
    }
    if record.measured is None:
        return found
    for metric, distribution in record.measured.metrics.items():
        for statistic in STATISTICS:
            _put(found, f"{section}/{metric}_{statistic}", getattr(distribution, statistic))
    for prompt in record.measured.prompts:
        name = slug(prompt.prompt)
        found[f"{section}/ttft_ms_p50_{name}_prompts"] = prompt.ttft_ms.p50.value
        found[f"{section}/tpot_ms_p50_{name}_prompts"] = prompt.tpot_ms.p50.value
    found[f"{section}/runs"] = record.measured.metrics["end_to_end_ms"].samples
    found[f"{section}/outliers"] = record.measured.outliers
    throughput = f"throughput_measured_{record.device}/output_tokens_per_s"
    _put(found, throughput, record.measured.output_tokens_per_s)
    for comparison in record.comparisons:
        name = comparison.metric.removesuffix("_ms")
        _put(found, f"latency_ratio_measured_{record.device}/{name}_ratio", comparison.ratio)
    return found


def score_metrics(score: Score) -> dict[str, float]:
    """The score, named by what its latencies are: `score_predicted_TARGET/…` for one.

    The contest's formula and the corrected one, total and prompt by prompt. What they are made
    from is in summary.json, and in the MLflow run as `results/score/score.json`.
    """
    where = f"score_{score.source}_{score.device}"
    found: dict[str, float] = {
        f"{where}/total": score.total,
        f"{where}/total_corrected": score.total_corrected,
        f"{where}/accuracy": score.accuracy,
    }
    for prompt in score.prompts:
        name = slug(prompt.prompt)
        found[f"{where}/prompt_{name}"] = prompt.score
        found[f"{where}/prompt_{name}_corrected"] = prompt.score_corrected
    return found


def _put(found: dict[str, float], name: str, estimate: Estimate) -> None:
    found[name] = estimate.value
    if estimate.low is not None and estimate.high is not None:
        found[f"{name}_low95"] = estimate.low
        found[f"{name}_high95"] = estimate.high
