"""The files that the evaluation's stages write. See model/records.py for the rules."""

from __future__ import annotations

from typing import Any, Literal

from evaluation.estimates import Comparison, Pair, Score
from model.records import Device, Graph, Part, Record

Verdict = Literal["pass", "fail"]


class LogitComparison(Part):
    """Logits of a configuration against a reference, over `tokens` positions."""

    comparison: str
    """e.g. `bfloat16 vs HF bfloat16`."""
    graph: Graph
    tokens: int
    kl_per_token_mean: float
    kl_per_token_median: float
    kl_per_token_p90: float
    kl_per_token_max: float
    top1_agreement: float
    max_abs_error: float
    relative_l2_error: float
    first_diverging_token: int | None
    """Index of the first position whose argmax differs, None if none does."""
    finite: bool


class RoundingComparison(Part):
    """bf16 logits against HF's bf16 logits, both measured from HF's fp32 logits, token by token.

    What bf16 costs is noise that two right implementations share in size, not in value: a flip
    between two experts that are as good as equal moves one token a hundred times the mean. So the
    two distributions are compared, and each token with itself, never one mean with a constant.
    """

    graph: Graph
    tokens: int
    kl_median_ratio: float
    """Median KL divergence from HF fp32, ours / HF bf16's."""
    kl_p90_ratio: float
    """The same of the 90th percentile."""
    error_median_ratio: float
    """Median over tokens of the L2 error of the logits, ours / HF bf16's."""
    further_share: float
    """Share of tokens where ours is further (KL) from HF fp32 than HF bf16 is; about 0.5 for two
    implementations that are equally good."""
    top1_agreement_difference: float
    """Agreement with HF fp32's most likely token, ours - HF bf16's."""


class TopKError(Part):
    """Logit matching: the worst error among the reference's k most likely tokens."""

    k: int | None
    """None: the whole vocabulary."""
    relative_error: float
    """max (|ours - reference| - absolute_tolerance) / max |reference|, shift removed; the worst
    position."""
    absolute_tolerance: float
    relative_tolerance: float
    sequence: int
    token: int
    """Where the worst is: the sequence, and the new token's index, from 0."""
    passed: bool


class LogitMatch(Part):
    """Logit matching as NxD Inference defines it, over greedy continuations of the reference."""

    comparison: str
    """e.g. `float32 vs HF float32`."""
    sequences: int
    tokens: int
    """New tokens compared, over all sequences."""
    top_k: list[TopKError]
    divergences: int
    """Positions whose most likely token is not the reference's."""
    first_divergence: int | None
    """The smallest new token's index of them, None if there is none."""
    max_divergence_difference: float
    """Largest max(ours) - ours[the reference's token] at a divergence; 0 if there is none."""
    divergence_tolerance: float
    restarts: int
    """How often generation began again from the reference's tokens."""
    max_abs_shift: float
    """Largest constant that was removed from the logits of a position."""
    finite: bool
    passed: bool


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
    source: Literal["local", "standard"] = "local"
    """`standard`: a task of lm-eval's own, its data from the hub."""
    requests: int = 0
    """Model requests behind the metrics."""
    requests_cached: int = 0
    """How many of them an earlier run of the same sources had answered."""


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
    rounding: list[RoundingComparison]
    """One per graph if the configuration runs in bf16, else none."""
    matches: list[LogitMatch]
    ops: list[OpCheck]
    tasks: list[TaskResult]
    gates: list[Gate]
    verdict: Verdict
    reasons: list[str]
    """Why the verdict is fail; empty if it is pass."""
    kernel_calls: dict[str, dict[Graph, int]]
    fingerprint: str


class OpError(Part):
    """Error budget: what one kernel of the configuration, switched on alone, does to the logits.

    Compared with the same model without any kernel, in the same data type, on the same tokens.
    """

    op: str
    """`all`: the whole configuration at once."""
    kernel: str
    """Empty for `all`."""
    dtype: str
    graph: Graph
    tokens: int
    calls: int
    """Of the kernel, in this graph's run."""
    relative_l2_error: float
    kl_per_token_mean: float
    kl_per_token_median: float
    top1_agreement: float
    max_abs_error: float
    share: float | None
    """Of the summed squared relative L2 errors of the single ops; None for `all`, and where no
    kernel moves anything."""


class CutPoint(Part):
    """Cut-point map: one op's output in a configuration's run against the run without kernels.

    The two runs have the same tokens and weights, so that `relative_error` is what all kernels
    up to here have added up to, and `local_relative_error` what this op's kernel adds itself.
    """

    dtype: str
    graph: Graph
    order: int
    """Of execution within the graph, from 0."""
    layer: int | None
    """From 0; None before and after the layers."""
    op: str
    """Of the op table: whose output this is in the run without kernels."""
    filled_by: str | None
    """The kernel that computed it, alone or as part of a composite; None: the reference did."""
    bit_exact: bool
    relative_error: float
    """max |ours - reference| / max |reference|, the worst output and step."""
    relative_l2_error: float
    local_relative_error: float | None
    """max |kernel - reference| / max |reference| on the same inputs; None if no kernel did it."""


class ErrorMapRecord(Record):
    """results/accuracy/MODEL/CONFIGURATION/error_map.json"""

    model: str
    configuration: str
    device: Device
    dtypes: list[str]
    sequences: int
    context_tokens: int
    """Per sequence, in context encoding."""
    decoded_tokens: int
    """Per sequence, one by one in token generation after the context."""
    rounding_relative_l2_error: dict[Graph, float]
    """The scale of it: the model without kernels, bf16 against fp32."""
    budget: list[OpError]
    """By data type and graph, the largest first, `all` at the end."""
    cut_points: list[CutPoint]
    """By data type and graph, in order of execution."""
    fingerprint: str


class TrackedRun(Record):
    """results/tracked/MODEL/CONFIGURATION.json"""

    configuration: str
    mlflow_run_id: str
    mlflow_experiment: str
    fingerprint: str


class RegressionRow(Part):
    """One thing in which a configuration is compared with the champion."""

    source: Literal["measured", "predicted", "quality"]
    what: str
    champion: float | None
    candidate: float | None
    change: str
    """E.g. `+3.1 % (1.0 to 5.2 %)`."""
    limit: str
    outcome: Literal["better", "equal", "worse", "not comparable"]
    """`equal`: no difference that counts. The last two fail the check."""
    why: str
    """Empty unless the row fails."""


class RegressionRecord(Record):
    """results/regression/MODEL.json: a configuration against the champion."""

    candidate: str
    champion: str
    champion_version: str
    champion_run_id: str
    champion_commit: str
    same_results: bool
    """The candidate's results are the champion's own."""
    rows: list[RegressionRow]
    verdict: Verdict
    reasons: list[str]


class LedgerQuantity(Part):
    """TTFT or TPOT of a run, predicted and measured."""

    quantity: Literal["ttft_ms", "tpot_ms"]
    predicted_ms: dict[str, float]
    """Target -> predicted."""
    predicted_for: str
    """The shape that is predicted."""
    measured_ms: float | None
    """The median over all measured runs, on `measured_on`."""
    measured_on: Device | None
    same_thing: bool
    """True if the clock ran on the predicted target; on the simulator it did not."""
    note: str
    predicted_over_measured: float | None
    """Only of the same thing."""


class LedgerEntry(Record):
    """A line of mlflow/ledger.jsonl: one tracked run."""

    date: str
    """ISO 8601, UTC."""
    configuration: str
    model: str
    mlflow_run_id: str
    fingerprint: str
    evaluation: str
    git_commit: str
    cpu: str
    """The machine that tracked the run."""
    verdict: Verdict
    quantities: list[LedgerQuantity]


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
    comparisons: tuple[Comparison, ...] = ()
    """Measured on `device` against the baseline, interleaved; the end-to-end latency first.
    Empty if there are no timings, or it fails; `reasons` says why."""
    score: Score | None = None
    """The contest's score; None if its figures are missing."""
    mlflow_run_id: str | None


class Summary(Record):
    """results/summary.json"""

    model: str
    evaluation: str
    """Fingerprint of what all configurations share; runs of equal evaluation compare."""
    configurations: dict[str, ConfigurationSummary]
    pairs: tuple[Pair, ...] = ()
    """Every two configurations that pass, each pair once and by each latency, measured on their
    `device`. Each verdict is of its own 95 % interval: among many pairs of equals one in twenty
    may look different."""
