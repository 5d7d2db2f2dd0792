"""The files that the evaluation's stages write. See model/records.py for the rules."""

from __future__ import annotations

from typing import Any, Literal

from model.records import Device, Graph, Part, Record

Verdict = Literal["pass", "fail"]


class LogitComparison(Part):
    """Logits of a configuration against a reference, over `tokens` positions."""

    comparison: str
    """e.g. `bfloat16 vs HF bfloat16`."""
    graph: Graph
    tokens: int
    kl_per_token_mean: float
    kl_per_token_max: float
    top1_agreement: float
    max_abs_error: float
    relative_l2_error: float
    first_diverging_token: int | None
    """Index of the first position whose argmax differs, None if none does."""
    finite: bool


class OpCheck(Part):
    """A kernel's outputs against its PyTorch reference on the inputs the model gave it."""

    op: str
    kernel: str
    dtype: str
    calls: dict[Graph, int]
    max_relative_error: float
    """max |kernel - reference| / max |reference|, the worst call."""
    tolerance: float
    passed: bool


class TaskResult(Part):
    """One lm-eval task."""

    task: str
    documents: int
    metrics: dict[str, float]
    """e.g. acc, acc_stderr, word_perplexity, exact_match."""
    chance: float | None
    """What guessing scores in the headline metric."""


class Gate(Part):
    """One condition of the verdict."""

    name: str
    value: float | str | None
    limit: str
    passed: bool


class AccuracyRecord(Record):
    """results/accuracy/MODEL/CONFIGURATION/accuracy.json"""

    model: str
    configuration: str
    device: Device
    logits: list[LogitComparison]
    ops: list[OpCheck]
    tasks: list[TaskResult]
    gates: list[Gate]
    verdict: Verdict
    reasons: list[str]
    """Why the verdict is fail; empty if it is pass."""
    kernel_calls: dict[str, dict[Graph, int]]
    fingerprint: str


class TrackedRun(Record):
    """results/tracked/MODEL/CONFIGURATION.json"""

    configuration: str
    mlflow_run_id: str
    mlflow_experiment: str
    fingerprint: str


class StageError(Record):
    """results/errors/MODEL/CONFIGURATION/STAGE.json: a stage that failed, kept for the report."""

    configuration: str
    stage: str
    message: str
    details: list[dict[str, Any]]
    """For a kernel that failed its checks: rule, file, line, operand, limit, value, mend."""


class ConfigurationSummary(Part):
    """One configuration in summary.json."""

    verdict: Verdict
    reasons: list[str]
    device: Device
    metrics: dict[str, float]
    """The metrics as MLflow has them; names say unit, measured or predicted, device."""
    kernel_calls: dict[str, int]
    """Kernel -> calls in generation and accuracy together."""
    mlflow_run_id: str | None


class Summary(Record):
    """results/summary.json"""

    model: str
    evaluation: str
    """Fingerprint of what all configurations share; runs of equal evaluation compare."""
    configurations: dict[str, ConfigurationSummary]
