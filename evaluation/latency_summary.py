"""A session's runs as distributions: per side and metric, per prompt, with intervals."""

from __future__ import annotations

from typing import get_args

import numpy as np

from evaluation.estimates import Estimate, Metric
from evaluation.interleave import Session
from evaluation.latency_records import Distribution, PromptLatency, Side, SideLatency
from evaluation.statistics import (
    Array,
    estimate_mean,
    estimate_percentile,
    far_out,
    relative_standard_error,
)

METRICS: tuple[Metric, ...] = get_args(Metric)


def distribution(metric: Metric, sample: Array) -> Distribution:
    """The figures of `[rounds, runs]`, outliers included."""
    error = relative_standard_error(sample)
    return Distribution(
        metric=metric,
        samples=sample.size,
        mean=estimate_mean(sample),
        p50=estimate_percentile(sample, 50),
        p90=estimate_percentile(sample, 90),
        p95=estimate_percentile(sample, 95),
        p99=estimate_percentile(sample, 99),
        standard_error=error if np.isfinite(error) else None,
    )


def far_out_runs(session: Session) -> list[bool]:
    """For each run of the session, whether its end-to-end latency is an outlier of its kind."""
    flags = [False] * len(session.runs)
    kinds = {(run.side, run.prompt) for run in session.runs}
    for side, prompt in sorted(kinds):
        places = [i for i, r in enumerate(session.runs) if (r.side, r.prompt) == (side, prompt)]
        values = np.array([session.runs[i].timing.end_to_end_ms for i in places])
        for place, flag in zip(places, far_out(values), strict=True):
            flags[place] = bool(flag)
    return flags


def side_latency(
    session: Session,
    side: Side,
    configuration: str,
    prompt_tokens: dict[str, int],
    new_tokens: int,
) -> SideLatency:
    """One side's figures.

    Args:
        session: what was run.
        side: whose.
        configuration: its name.
        prompt_tokens: prompt -> tokens.
        new_tokens: tokens that every run generated.
    """
    metrics = {m: distribution(m, session.sample(side, m)) for m in METRICS}
    flags = far_out_runs(session)
    return SideLatency(
        configuration=configuration,
        metrics=metrics,
        output_tokens_per_s=_throughput(metrics["end_to_end_ms"].mean, new_tokens),
        prompts=[
            PromptLatency(
                prompt=name,
                prompt_tokens=tokens,
                new_tokens=new_tokens,
                ttft_ms=distribution("ttft_ms", session.sample(side, "ttft_ms", name)),
                tpot_ms=distribution("tpot_ms", session.sample(side, "tpot_ms", name)),
                end_to_end_ms=distribution(
                    "end_to_end_ms", session.sample(side, "end_to_end_ms", name)
                ),
                total_tokens_per_s=1e3
                * (tokens + new_tokens)
                / float(session.sample(side, "end_to_end_ms", name).mean()),
            )
            for name, tokens in prompt_tokens.items()
        ],
        outliers=sum(f for f, run in zip(flags, session.runs, strict=True) if run.side == side),
    )


def _throughput(mean_ms: Estimate, tokens: int) -> Estimate:
    """Tokens per second of runs of so many tokens: all tokens / all time."""
    return Estimate(
        value=1e3 * tokens / mean_ms.value,
        low=None if mean_ms.high is None else 1e3 * tokens / mean_ms.high,
        high=None if mean_ms.low is None else 1e3 * tokens / mean_ms.low,
    )
