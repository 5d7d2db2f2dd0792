"""results/summary.json: each configuration's verdict, metrics, kernel calls and MLflow run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.estimates import Score
from evaluation.metrics import kernel_calls, metrics
from evaluation.provenance import evaluation_fingerprint
from evaluation.records import ConfigurationSummary, StageError, Summary, Verdict
from evaluation.results import TRACKING, ConfigurationResults, read_all
from evaluation.score import score
from model.configuration import Config
from model.records import Device


def summarise(config: Config, results: Path) -> Summary:
    """Sum up the configurations that `config` chooses, from the files there are.

    Args:
        config: The evaluation.
        results: The `results/` folder.

    Returns:
        The summary. A configuration whose results are missing or unreadable has the verdict
        fail, with the reason.
    """
    return summarise_read(config, results, read_all(results, config.model, config.configurations))


def summarise_read(
    config: Config, results: Path, configurations: Sequence[ConfigurationResults]
) -> Summary:
    """`summarise` for configurations already read."""
    # scipy, which jobs that only want a verdict have no use for.
    from evaluation.pairs import pairs

    verdicts = {found.name: verdict_of(found)[0] for found in configurations}
    return Summary(
        model=config.model,
        evaluation=evaluation_fingerprint(config, results),
        configurations={
            found.name: _configuration(config, found, results, verdicts) for found in configurations
        },
        pairs=pairs(configurations, verdicts, config.latency.smallest_difference),
    )


def score_of(config: Config, found: ConfigurationResults, results: Path) -> Score | None:
    """The contest's score; the baseline's results are read even if it is not chosen."""
    [baseline] = read_all(results, config.model, [config.latency.baseline])
    return score(config, found, baseline)


def verdict_of(found: ConfigurationResults) -> tuple[Verdict, list[str]]:
    """The verdict and, if it is fail, why.

    Pass needs a pass of the accuracy stage, the results of every stage before it, and no
    stage that failed. Tracking does not count: an unreachable server breaks no kernel.
    """
    reasons = [
        reason
        for error in found.errors
        if error.stage not in TRACKING
        for reason in error_reasons(error)
    ]
    if not reasons:
        stages = {
            "compile": found.manifest,
            "trace": found.trace,
            "generate": found.generation,
            "latency": found.latency,
            "accuracy": found.accuracy,
        }
        missing = [stage for stage, record in stages.items() if record is None]
        if missing:
            reasons.append(f"no result of {', '.join(missing)}: did not run or did not finish")
    if found.latency is not None:
        reasons += [f"latency withheld: {reason}" for reason in found.latency.withheld]
    if found.accuracy is not None and found.accuracy.verdict != "pass":
        reasons += found.accuracy.reasons or ["accuracy: the verdict is fail"]
    return ("fail" if reasons else "pass"), reasons


def error_reasons(error: StageError) -> list[str]:
    """One sentence per thing that went wrong: rule, file and line, and what."""
    located = [detail for detail in error.details if "rule" in detail or "file" in detail]
    if not located:
        return [f"{error.stage}: {error.message}"]
    return [f"{error.stage}: {describe_detail(detail) or error.message}" for detail in located]


def describe_detail(detail: dict[str, object]) -> str:
    """`FILE:LINE: [RULE] INSTRUCTION.OPERAND: MESSAGE (limit L, found V). MEND`, what is known."""
    text = {key: str(value) for key, value in detail.items() if value not in (None, "", 0)}
    rule = f"[{text['rule']}]" if "rule" in text else ""
    head = ": ".join(part for part in (place(detail), rule) if part)
    operand = ".".join(text[key] for key in ("instruction", "operand") if key in text)
    said = ": ".join(part for part in (operand, text.get("message", "").rstrip(".")) if part)
    if "limit" in text:
        said += f" (limit {text['limit']}, found {text.get('value', '?')})"
    return ". ".join(part for part in (f"{head} {said}".strip(), text.get("mend")) if part)


def place(detail: dict[str, object]) -> str:
    """`FILE:LINE` of an error's detail, the file relative to the project's root."""
    file = Path(str(detail.get("file") or ""))
    if file.is_absolute() and file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    line = detail.get("line")
    return "" if file == Path() else f"{file}:{line}" if line else str(file)


def device_of(config: Config, found: ConfigurationResults) -> Device:
    """The device the configuration ran on; the one it was to run on if it did not."""
    for record in (found.generation, found.accuracy, found.manifest):
        if record is not None:
            return record.device
    return config.device


def _configuration(
    config: Config,
    found: ConfigurationResults,
    results: Path,
    verdicts: Mapping[str, Verdict],
) -> ConfigurationSummary:
    verdict, reasons = verdict_of(found)
    scored = score_of(config, found, results)
    # How fast a wrong answer comes is of no interest, nor how much slower right ones are.
    compared = verdict == "pass" and verdicts.get(config.latency.baseline, "pass") == "pass"
    return ConfigurationSummary(
        verdict=verdict,
        reasons=reasons,
        device=device_of(config, found),
        metrics=metrics(found, scored),
        kernel_calls=kernel_calls(found),
        comparisons=tuple(found.latency.comparisons) if found.latency and compared else (),
        score=scored,
        mlflow_run_id=found.tracked.mlflow_run_id if found.tracked else None,
    )
