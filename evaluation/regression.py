"""Is a configuration worse than the champion? Measured, predicted and quality, each apart.

It fails shut: a figure that the champion has and the configuration lacks, or that cannot be
compared, fails the check, and the row says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from evaluation.champion import Champion, read_champion
from evaluation.ledger import QUANTITIES, predicted_ms
from evaluation.measured_change import measured_changes
from evaluation.metrics import worst
from evaluation.provenance import cpu_model, evaluation_fingerprint
from evaluation.records import AccuracyRecord, RegressionRecord, RegressionRow, TaskResult
from evaluation.results import ConfigurationResults, read_results
from evaluation.run_contents import results_fingerprint
from evaluation.summary import verdict_of
from model.configuration import Config, ConfigurationError, Regression
from model.records import TraceSummary

BASELINE = "baseline"
LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "brier_score", "loss")


def check(config: Config, results: Path) -> RegressionRecord:
    """Compare a configuration with the champion, and write results/regression/MODEL.json.

    Args:
        config: The evaluation; `candidate` may name the configuration.
        results: The `results/` folder.

    Raises:
        ChampionError: there is no champion, or its results cannot be read.
        ConfigurationError: nothing says which configuration to compare.
        RecordError: a result file cannot be read.
        TrackingError: MLflow's store cannot be used.
    """
    champion = read_champion(config)
    found = read_results(results, config.model, choose_candidate(config, champion.configuration))
    record = compare(
        config,
        champion,
        found,
        fingerprint=results_fingerprint(config, found, results),
        evaluation=evaluation_fingerprint(config, results),
    )
    record.write(results / "regression" / f"{config.model}.json")
    return record


def choose_candidate(config: Config, champion: str) -> str:
    """The configuration to compare with the champion.

    Raises:
        ConfigurationError: there are several and nothing says which.
    """
    if config.candidate is not None:
        return config.candidate
    if champion in config.configurations:
        return champion
    others = [name for name in config.configurations if name != BASELINE]
    if len(others) == 1:
        return others[0]
    raise ConfigurationError(
        f"The champion is {champion}, which is not among the configurations "
        f"({', '.join(config.configurations)}): say which to compare with it by "
        "`--config candidate=NAME`"
    )


def compare(
    config: Config,
    champion: Champion,
    found: ConfigurationResults,
    *,
    fingerprint: str,
    evaluation: str,
) -> RegressionRecord:
    """Compare a configuration with the champion.

    Args:
        config: The evaluation, with `regression`'s limits.
        champion: See `evaluation.champion.read_champion`.
        found: The configuration's results.
        fingerprint: Of its results; the champion's own if nothing changed.
        evaluation: Of what its evaluation shares with others; another one than the champion's
            makes nothing comparable.
    """
    rows: list[RegressionRow] = []
    verdict, reasons = verdict_of(found)
    if verdict == "fail":
        reasons = [f"its verdict is fail: {reason}" for reason in reasons]
    if evaluation != champion.evaluation:
        reasons.append(
            "the champion was evaluated on other prompts, texts, tasks, settings, weights or "
            "packages, so that no figure compares; evaluate it again and promote it"
        )
    else:
        rows += _measured_rows(config.regression, champion, found)
        rows += _predicted_rows(config.regression, champion.results.trace, found.trace)
        rows += _quality_rows(config, champion.results, found)
        reasons += [f"{row.source} {row.what}: {row.why}" for row in rows if row.why]
        if not rows:
            reasons.append("neither has a figure to compare")
    return RegressionRecord(
        candidate=found.name,
        champion=champion.configuration,
        champion_version=champion.version,
        champion_run_id=champion.mlflow_run_id,
        champion_commit=champion.git_commit,
        same_results=fingerprint == champion.fingerprint,
        rows=rows,
        verdict="fail" if reasons else "pass",
        reasons=reasons,
    )


def _measured_rows(
    limits: Regression, champion: Champion, found: ConfigurationResults
) -> Iterator[RegressionRow]:
    """Wall clock; only of one kind of machine."""
    limit = f"≤ +{limits.measured_slowdown:.1%}, if significant"
    device = found.generation.device if found.generation else "?"
    if device == "simulator" and champion.cpu != cpu_model():
        yield RegressionRow(
            source="measured",
            what=f"latency on {device}",
            champion=None,
            candidate=None,
            change="–",
            limit=limit,
            outcome="not comparable",
            why=f"the champion was measured on another machine ({champion.cpu}); evaluate it "
            "here and promote it again",
        )
        return
    for change in measured_changes(champion.results, found):
        ratio = change.ratio
        known = ratio is not None and ratio.low is not None and ratio.high is not None
        worse = better = False
        why = ""
        if ratio is not None and ratio.low is not None and ratio.high is not None:
            worse = ratio.low > 1 and ratio.value > 1 + limits.measured_slowdown
            better = ratio.high < 1
        if ratio is not None and worse:
            why = f"significantly slower, by {ratio.value - 1:.1%}"
        elif not known:
            why = change.missing or "too few runs for an interval"
        yield RegressionRow(
            source="measured", what=f"{change.what}, on {device}",
            champion=change.champion, candidate=change.candidate, change=change.text(),
            limit=limit,
            outcome="worse" if worse else "not comparable" if not known else
            "better" if better else "equal",
            why=why,
        )  # fmt: skip


def _predicted_rows(
    limits: Regression, champion: TraceSummary | None, found: TraceSummary | None
) -> Iterator[RegressionRow]:
    """The timing model's TTFT and TPOT for every target that the champion has."""
    limit = f"≤ +{limits.predicted_slowdown:.1%}"
    for name in QUANTITIES:
        old, new = predicted_ms(champion, name), predicted_ms(found, name)
        for target in old or ["?"]:
            what = f"{name.removesuffix('_ms').upper()}, for {target}"
            before, after = old.get(target), new.get(target)
            same_shape = champion and found and _shape(champion) == _shape(found)
            if not before or after is None or not same_shape:
                why = "nothing was predicted" if not (before and after) else "of another shape"
                yield RegressionRow(
                    source="predicted", what=what, champion=before, candidate=after, change="–",
                    limit=limit, outcome="not comparable", why=why,
                )  # fmt: skip
                continue
            ratio = after / before
            worse = not ratio <= 1 + limits.predicted_slowdown
            yield RegressionRow(
                source="predicted", what=what, champion=before, candidate=after,
                change=f"{ratio - 1:+.1%}", limit=limit,
                outcome="worse" if worse else "better" if ratio < 0.999 else "equal",
                why=f"slower by {ratio - 1:.1%}" if worse else "",
            )  # fmt: skip


def _shape(trace: TraceSummary) -> tuple[object, ...]:
    return trace.dtype, trace.tp_degree, trace.lnc, trace.prefill_tokens, trace.context


def _quality_rows(
    config: Config, champion: ConfigurationResults, found: ConfigurationResults
) -> Iterator[RegressionRow]:
    limits, tolerances = config.regression, config.accuracy.tolerances
    errors: list[tuple[str, float, Callable[[ConfigurationResults], float | None]]] = [
        (
            "relative L2 error, fp32",
            tolerances.float32_relative_l2,
            lambda found: worst(found, "float32", "relative_l2_error"),
        )
    ]
    if config.dtype == "bfloat16":
        errors += [
            (
                "error over HF bf16's own, median token",
                tolerances.bfloat16_error_ratio,
                lambda found: _rounding(found, "error_median_ratio"),
            ),
            (
                "share of tokens further off than HF bf16",
                tolerances.bfloat16_further_share,
                lambda found: _rounding(found, "further_share"),
            ),
            (
                "KL over HF bf16's own, 90th percentile",
                tolerances.bfloat16_kl_p90_ratio,
                lambda found: _rounding(found, "kl_p90_ratio"),
            ),
        ]
    for what, tolerance, value in errors:
        old = value(champion)
        room = None if old is None else old + limits.error_growth * max(tolerance - old, 0.0)
        yield _row(what, old, value(found), most=room)
    old, new = (worst(x, config.dtype, "top1_agreement") for x in (champion, found))
    yield _row(
        f"top-1 agreement, {config.dtype}", old, new,
        least=None if old is None else old - limits.agreement_loss,
    )  # fmt: skip
    yield from _task_rows(limits, champion.accuracy, found.accuracy)


def _rounding(found: ConfigurationResults, measure: str) -> float | None:
    """The worse of both graphs."""
    values = [
        float(getattr(x, measure)) for x in (found.accuracy.rounding if found.accuracy else [])
    ]
    return max(values, default=None)


def _task_rows(
    limits: Regression, champion: AccuracyRecord | None, found: AccuracyRecord | None
) -> Iterator[RegressionRow]:
    new = {task.task: task for task in (found.tasks if found else [])}
    for task in champion.tasks if champion else []:
        for metric, old in task.metrics.items():
            if metric.endswith("_stderr"):
                continue
            value = _metric(new.get(task.task), metric)
            what = f"{task.task}: {metric}"
            if any(word in metric for word in LOWER_IS_BETTER):
                yield _row(what, old, value, most=old * (1 + limits.task_loss))
            else:
                yield _row(what, old, value, least=old - limits.task_loss)


def _metric(task: TaskResult | None, metric: str) -> float | None:
    return task.metrics.get(metric) if task else None


def _row(
    what: str,
    champion: float | None,
    candidate: float | None,
    *,
    most: float | None = None,
    least: float | None = None,
) -> RegressionRow:
    """A row of quality: the candidate must be at most `most`, or at least `least`."""
    limit = "–" if most is None and least is None else f"≤ {most:.3g}" if most is not None else (
        f"≥ {least:.4g}"
    )  # fmt: skip
    values = (champion, candidate)
    if any(value is None or not math.isfinite(value) for value in values):
        return RegressionRow(
            source="quality", what=what,
            champion=_finite(champion), candidate=_finite(candidate), change="–", limit=limit,
            outcome="not comparable", why="not measured, or not finite",
        )  # fmt: skip
    assert champion is not None and candidate is not None  # noqa: PT018
    sign = 1 if most is not None else -1
    bound = most if most is not None else least
    worse = bound is not None and not sign * candidate <= sign * bound + 1e-12
    better = sign * candidate < sign * champion
    return RegressionRow(
        source="quality", what=what, champion=champion, candidate=candidate,
        change=f"{candidate - champion:+.2g}", limit=limit,
        outcome="worse" if worse else "better" if better else "equal",
        why=f"{candidate:.4g}, must be {limit}" if worse else "",
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
