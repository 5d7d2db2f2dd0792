"""One configuration's results as flat metrics, named so that a number explains itself.

A name is `SECTION/WHAT_UNIT`. The section (a chart section in MLflow) says how the number came
about and, where a clock or a device did it, which one:

- `latency_measured_DEVICE/`, `throughput_measured_DEVICE/`: wall clock on DEVICE
- `latency_ratio_measured_DEVICE/`: the same over the baseline's beside it; below 1 is faster
- `stages_measured_host/`: wall clock of the pipeline's stages, always on the host's CPU
- `latency_predicted_TARGET/`: the timing model's, for TARGET, which no clock has seen
- `score_predicted_TARGET/`: the contest's score from those predictions, by its formula and by the
  corrected one; `score_measured_DEVICE/` where a device's clock was read, never the simulator's
- `programs_counted_TARGET/`: counted in the Programs specialised for TARGET
- `trace_counted/`, `nki_calls_counted/`: counted in the graphs and during the runs
- `quality/`: the configuration's outputs compared with a reference or with right answers
- `quality_rounding/`, `quality_matching/`: bf16 against HF's own bf16 error, and logit matching
- `quality_error_budget/`: how far each kernel alone moves the logits

MLflow sorts its chart sections by name, so that latency comes first.

DEVICE is `simulator` or `neuron`; a simulator's wall clock says nothing about Trainium.
"""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import median

from evaluation.estimates import Score
from evaluation.latency_metrics import latency_metrics, score_metrics, slug
from evaluation.records import AccuracyRecord, ErrorMapRecord, LogitComparison, LogitMatch
from evaluation.results import ConfigurationResults
from kernels import KERNELS
from model.records import CompileManifest, GenerationRecord, PromptResult, RunTiming, TraceSummary


def metrics(results: ConfigurationResults, score: Score | None = None) -> dict[str, float]:
    """All metrics of one configuration.

    Args:
        results: Of the stages.
        score: The contest's (evaluation/score.py), which needs the baseline's results too.

    Values that are not finite are left out, since they fit neither JSON nor a chart;
    `quality/…_finite_…` is 0 then, and the verdict is fail.
    """
    found: dict[str, float] = {}
    if results.manifest is not None:
        found |= _compile_metrics(results.manifest)
    if results.trace is not None:
        found |= _trace_metrics(results.trace)
    if results.generation is not None:
        found |= _generation_metrics(results.generation)
    if results.latency is not None:
        # The interleaved runs replace the generation's, also where a gate withheld them.
        clocks = ("latency_measured_", "throughput_measured_")
        found = {name: value for name, value in found.items() if not name.startswith(clocks)}
        found |= latency_metrics(results.latency)
    if score is not None:
        found |= score_metrics(score)
    if results.accuracy is not None:
        if results.accuracy.verdict == "fail":  # how fast it is wrong compares with nothing
            found = {n: x for n, x in found.items() if not n.startswith("latency_ratio_measured_")}
        found |= _accuracy_metrics(results.accuracy)
        found |= _agreement_metrics(results.accuracy)
    if results.error_map is not None:
        found |= _error_budget_metrics(results.error_map)
    if results.generation is not None or results.accuracy is not None:
        # 0 for a kernel that is not used: a comparison of runs would show NaN.
        for kernel, calls in (dict.fromkeys(KERNELS, 0) | kernel_calls(results)).items():
            found[f"nki_calls_counted/{slug(kernel)}"] = calls
    # By name: MLflow's compare page draws the first that was logged, which is a latency then.
    return {name: float(found[name]) for name in sorted(found) if math.isfinite(found[name])}


def key_metrics(device: str, target: str) -> list[str]:
    """The metrics by which a person compares configurations first."""
    return [
        f"latency_measured_{device}/ttft_ms_p50",
        f"latency_measured_{device}/tpot_ms_p50",
        f"latency_predicted_{slug(target)}/ttft_ms",
        f"latency_predicted_{slug(target)}/tpot_ms",
        f"score_{'predicted' if device == 'simulator' else 'measured'}_"
        f"{slug(target) if device == 'simulator' else device}/total",
        "trace_counted/nki_flops_ratio",
        "quality/gates_failed",
    ]


def kernel_calls(results: ConfigurationResults) -> dict[str, int]:
    """Kernel -> calls in generation and accuracy together; 0 for one that was never called."""
    total: dict[str, int] = defaultdict(int)
    for entry in results.manifest.kernels if results.manifest else []:
        total[entry.kernel] = 0
    for record in (results.generation, results.accuracy):
        for kernel, by_graph in (record.kernel_calls if record else {}).items():
            total[kernel] += sum(by_graph.values())
    return dict(total)


def tpot_ms(run: RunTiming) -> float | None:
    """Time per output token after the first, ms; None if there was only one."""
    return sum(run.itl_ms) / len(run.itl_ms) if run.itl_ms else None


def token_latencies(generation: GenerationRecord) -> list[float]:
    """Inter-token latency (ms) by position in the output, the median over prompts and repeats.

    Item 0 is the latency between the first and the second output token.
    """
    by_position: dict[int, list[float]] = defaultdict(list)
    for run in _runs(generation.prompts):
        for position, latency in enumerate(run.itl_ms):
            by_position[position].append(latency)
    return [median(by_position[position]) for position in sorted(by_position)]


def comparison_slug(comparison: LogitComparison | LogitMatch) -> str:
    """`bfloat16` for `bfloat16 vs HF bfloat16`, else the words joined."""
    ours, _, theirs = comparison.comparison.partition(" vs ")
    if theirs.split()[-1:] == [ours]:
        return slug(ours)
    return slug(comparison.comparison.lower())


def worst(results: ConfigurationResults, dtype: str, measure: str) -> float | None:
    """The worst `measure` over both graphs of the logits compared with HF at `dtype`.

    `measure` is a field of `LogitComparison`; for an agreement the worst is the least.
    NaN is worse than any number.
    """
    comparisons = results.accuracy.logits if results.accuracy else []
    values = [float(getattr(c, measure)) for c in comparisons if comparison_slug(c) == dtype]
    if not values or any(math.isnan(value) for value in values):
        return math.nan if values else None
    return min(values) if measure.endswith("agreement") else max(values)


def _runs(prompts: list[PromptResult]) -> list[RunTiming]:
    return [run for prompt in prompts for run in prompt.runs]


def _compile_metrics(manifest: CompileManifest) -> dict[str, float]:
    programs = manifest.programs
    counted = f"programs_counted_{manifest.target}"
    found: dict[str, float] = {
        "stages_measured_host/compile_s": manifest.compile_seconds_measured,
        f"{counted}/programs": len(programs),
    }
    if programs:
        found |= {
            f"{counted}/instructions": sum(p.instructions for p in programs),
            f"{counted}/sbuf_bytes_per_partition_max": max(
                p.sbuf_bytes_per_partition for p in programs
            ),
            f"{counted}/psum_bytes_per_partition_max": max(
                p.psum_bytes_per_partition for p in programs
            ),
        }
    return found


def _trace_metrics(trace: TraceSummary) -> dict[str, float]:
    found = {"trace_counted/nki_flops_ratio": trace.nki_flops_ratio}
    for graph in trace.graphs:
        where = f"{graph.graph}_{slug(graph.bucket)}"
        found |= {
            f"trace_counted/nki_macs_{where}": graph.macs_nki,
            f"trace_counted/total_macs_{where}": graph.macs_total,
            f"trace_counted/nki_instructions_{where}": graph.nki_instructions,
            f"trace_counted/nki_kernel_calls_{where}": graph.nki_kernel_calls,
            f"trace_counted/nki_hbm_bytes_{where}": graph.nki_hbm_bytes,
        }
    if trace.nki_flops_ratio_weighted is not None:
        found["trace_counted/nki_flops_ratio_weighted"] = trace.nki_flops_ratio_weighted
    for target, prediction in trace.predictions.items():
        latency = f"latency_predicted_{slug(target)}"
        found[f"{latency}/ttft_ms"] = prediction.predicted_ttft_ms
        found[f"{latency}/tpot_ms"] = prediction.predicted_tpot_ms
        for part in prediction.graphs:
            where = f"{part.graph}_{slug(part.bucket)}"
            found |= {
                f"{latency}/graph_ms_{where}": part.predicted_ms,
                f"{latency}/nki_ms_{where}": part.predicted_nki_ms,
                f"{latency}/roofline_ms_{where}": part.roofline_ms,
            }
    return found


def _generation_metrics(generation: GenerationRecord) -> dict[str, float]:
    measured = generation.measured
    latency = f"latency_measured_{generation.device}"
    found = {
        f"{latency}/{field}": getattr(measured, field)
        for field in (
            "ttft_ms_p50",
            "ttft_ms_p99",
            "tpot_ms_p50",
            "tpot_ms_p99",
            "end_to_end_ms_p50",
            "end_to_end_ms_p99",
        )
    }
    found[f"{latency}/runs"] = measured.runs
    found[f"throughput_measured_{generation.device}/output_tokens_per_s"] = (
        measured.output_tokens_per_s
    )
    for length in ("short", "medium", "long"):
        runs = _runs([prompt for prompt in generation.prompts if prompt.length == length])
        tpots = [tpot for run in runs if (tpot := tpot_ms(run)) is not None]
        if runs:
            found[f"{latency}/ttft_ms_p50_{length}_prompts"] = median(r.ttft_ms for r in runs)
        if tpots:
            found[f"{latency}/tpot_ms_p50_{length}_prompts"] = median(tpots)
    answered = [p.correct for p in generation.prompts if p.correct is not None]
    if answered:
        found["quality/prompts_correct_share"] = sum(answered) / len(answered)
    return found


def _accuracy_metrics(accuracy: AccuracyRecord) -> dict[str, float]:
    found: dict[str, float] = {}
    for logits in accuracy.logits:
        measures: dict[str, float | None] = {
            "kl_per_token": logits.kl_per_token_mean,
            "kl_per_token_max": logits.kl_per_token_max,
            "top1_agreement": logits.top1_agreement,
            "max_abs_error": logits.max_abs_error,
            "relative_l2_error": logits.relative_l2_error,
            "first_diverging_token": logits.first_diverging_token,
            "finite": logits.finite,
        }
        for measure, value in measures.items():
            if value is not None:
                found[f"quality/{comparison_slug(logits)}_{measure}_{logits.graph}"] = value
    for op in accuracy.ops:
        name = f"quality/op_{slug(op.op)}_{slug(op.dtype)}_max_relative_error"
        found[name] = max(op.max_relative_error, found.get(name, 0.0))
    for task in accuracy.tasks:
        for metric, value in task.metrics.items():
            found[f"quality/task_{slug(task.task)}_{slug(metric)}"] = value
    found["quality/gates_failed"] = sum(not gate.passed for gate in accuracy.gates)
    return found


def _agreement_metrics(accuracy: AccuracyRecord) -> dict[str, float]:
    """Rounding: ratios to HF's bf16 error. Matching: relative errors, counts, logits."""
    found: dict[str, float] = {}
    for rounding in accuracy.rounding:
        for measure in ("error_median_ratio", "kl_median_ratio", "kl_p90_ratio", "further_share"):
            name = f"quality_rounding/bfloat16_{measure}_{rounding.graph}"
            found[name] = getattr(rounding, measure)
    for match in accuracy.matches:
        section = f"quality_matching/{comparison_slug(match)}"
        for top in match.top_k:
            found[f"{section}_relative_error_top_{top.k or 'all'}"] = top.relative_error
        found |= {
            f"{section}_divergences": match.divergences,
            f"{section}_max_divergence_difference": match.max_divergence_difference,
            f"{section}_passed": match.passed,
        }
    return found


def _error_budget_metrics(error_map: ErrorMapRecord) -> dict[str, float]:
    """Of one kernel alone (`all`: together) against none: relative L2, KL in nats per token."""
    found: dict[str, float] = {}
    for row in error_map.budget:
        section = f"quality_error_budget/{slug(row.dtype)}_{slug(row.op)}"
        found[f"{section}_relative_l2_error_{row.graph}"] = row.relative_l2_error
        found[f"{section}_kl_per_token_median_{row.graph}"] = row.kl_per_token_median
    return found
