"""Samples of what the latency stage leaves behind."""

from __future__ import annotations

from evaluation.estimates import COMPARED, Comparison, Estimate, Metric, PairVerdict
from evaluation.latency_records import (
    Distribution,
    LatencyConditions,
    LatencyRecord,
    PromptLatency,
    SideLatency,
)
from evaluation.records import Gate

SCALES = {"baseline": 1.0, "rmsnorm": 1.05, "norms": 1.1}
"""Latency over the baseline's; 1.1 for others."""
BASELINE_MS: dict[Metric, float] = {
    "ttft_ms": 20.0, "tpot_ms": 5.0, "itl_ms": 5.0, "end_to_end_ms": 100.0,
}  # fmt: skip


def latency(name: str, ratio: float | None = None, spread: float = 0.01) -> LatencyRecord:
    """Timed beside the baseline, which takes 100 ms; `spread` is half of every 95 % interval.

    Without a `ratio` it is the configuration's own, by `SCALES`.
    """
    ratio = SCALES.get(name, 1.1) if ratio is None else ratio

    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value * (1 - spread), high=value * (1 + spread))

    def distribution(metric: Metric, value: float) -> Distribution:
        return Distribution(
            metric=metric,
            samples=40,
            mean=estimate(value),
            p50=estimate(value * 0.98),
            p90=estimate(value * 1.05),
            p95=estimate(value * 1.08),
            p99=estimate(value * 1.2),
            standard_error=spread / 2,
        )

    def side(configuration: str, scale: float) -> SideLatency:
        return SideLatency(
            configuration=configuration,
            metrics={x: distribution(x, ms * scale) for x, ms in BASELINE_MS.items()},
            output_tokens_per_s=estimate(160 / scale),
            prompts=[
                PromptLatency(
                    prompt=prompt,
                    prompt_tokens=12,
                    new_tokens=16,
                    ttft_ms=distribution("ttft_ms", 20 * scale),
                    tpot_ms=distribution("tpot_ms", 5 * scale),
                    end_to_end_ms=distribution("end_to_end_ms", 100 * scale),
                    total_tokens_per_s=280 / scale,
                )
                for prompt in ("short", "long")
            ],
            outliers=1,
        )

    verdict: PairVerdict = "no difference"
    if abs(ratio - 1) > spread:
        verdict = "slower" if ratio > 1 else "faster"
    return LatencyRecord(
        model="tiny",
        configuration=name,
        baseline="baseline",
        device="simulator",
        dtype="bfloat16",
        gates=[Gate(name="output is not all zeros", value="yes", limit="yes", passed=True)],
        withheld=[],
        conditions=LatencyConditions(
            device_name="simulator on CPU: a CPU",
            seed=7,
            threads=1,
            warmup_rounds=2,
            warmup_stable=True,
            rounds=20,
            stopped_because="error of the mean",
            standard_error_target=0.01,
            time_budget_s=60.0,
            measured_s=41.0,
            smallest_difference=0.02,
            load_average_start=0.4,
            load_average_end=1.1,
        ),
        measured=side(name, ratio),
        measured_baseline=side("baseline", 1.0),
        comparisons=[
            Comparison(metric=metric, ratio=estimate(ratio), verdict=verdict) for metric in COMPARED
        ],
        runs=[],
        fingerprint="6" * 64,
    )
