"""Each gate fires alone; what was not measured does not pass."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from evaluation.records import (
    LogitComparison,
    LogitMatch,
    OpCheck,
    RoundingComparison,
    TaskResult,
    TopKError,
)
from evaluation.verdict import (
    GRAPHS,
    Measurements,
    at_least,
    at_most,
    check_gates,
    judge,
    op_tolerance,
)
from model.configuration import KernelConfiguration, OpKernel, Tolerances

KERNEL = "nki_rmsnorm_kernel"
KERNELS = KernelConfiguration(description="one", ops={"rmsnorm": OpKernel(kernel=KERNEL)})
BASELINE = KernelConfiguration(description="none")
TASKS = ["choice", "perplexity"]
COMPARISONS = {
    "float32 vs HF float32": 1e-6,
    "bfloat16 vs HF bfloat16": 5e-3,
    "bfloat16 vs HF float32": 1e-2,
    "HF bfloat16 vs HF float32": 1e-2,
}
"""Name -> relative L2 error, as a right configuration has it."""


def comparison(name: str, graph: Any, **changes: Any) -> LogitComparison:
    good = LogitComparison(
        comparison=name,
        graph=graph,
        tokens=100,
        kl_per_token_mean=1e-5,
        kl_per_token_median=1e-6,
        kl_per_token_p90=1e-5,
        kl_per_token_max=1e-4,
        top1_agreement=0.98,
        max_abs_error=0.01,
        relative_l2_error=COMPARISONS[name],
        first_diverging_token=None,
        finite=True,
    )
    return good.model_copy(update=changes)


def rounding(graph: Any, **changes: Any) -> RoundingComparison:
    """As right kernels have it: no further from fp32 than HF's own bf16."""
    good = RoundingComparison(
        graph=graph,
        tokens=100,
        kl_median_ratio=1.0,
        kl_p90_ratio=0.97,
        error_median_ratio=0.95,
        further_share=0.48,
        top1_agreement_difference=-0.01,
    )
    return good.model_copy(update=changes)


def match(**changes: Any) -> LogitMatch:
    good = LogitMatch(
        comparison="float32 vs HF float32",
        sequences=4,
        tokens=64,
        top_k=[
            TopKError(
                k=None,
                relative_error=1e-6,
                absolute_tolerance=1e-5,
                relative_tolerance=0.05,
                sequence=0,
                token=0,
                passed=True,
            )
        ],
        divergences=0,
        first_divergence=None,
        max_divergence_difference=0.0,
        divergence_tolerance=1e-3,
        restarts=0,
        max_abs_shift=1e-6,
        finite=True,
        passed=True,
    )
    return good.model_copy(update=changes)


def check(dtype: str, **changes: Any) -> OpCheck:
    good = OpCheck(
        op="rmsnorm",
        kernel=KERNEL,
        dtype=dtype,
        calls={"context_encoding": 7, "token_generation": 7},
        max_relative_error=1e-6,
        tolerance=1e-5,
        passed=True,
    )
    return good.model_copy(update=changes)


def good() -> Measurements:
    calls: Any = {KERNEL: {graph: 7 for graph in GRAPHS}}
    return Measurements(
        dtype="bfloat16",
        logits=[comparison(name, graph) for name in COMPARISONS for graph in GRAPHS],
        ops={dtype: [check(dtype)] for dtype in ("float32", "bfloat16")},
        kernel_calls={"float32": calls, "bfloat16": calls, "tasks": calls},
        tasks=[
            TaskResult(task=name, documents=50, metrics={"acc": 0.9}, chance=0.25) for name in TASKS
        ],
        rounding=[rounding(graph) for graph in GRAPHS],
        matches=[match(), match(comparison="bfloat16 vs HF bfloat16", passed=False)],
    )


def failures(
    measured: Measurements,
    kernels: KernelConfiguration = KERNELS,
    tolerances: Tolerances | None = None,
) -> list[str]:
    gates = check_gates(measured, kernels, tolerances or Tolerances(), TASKS)
    verdict, reasons = judge(gates)
    failed = [gate.name for gate in gates if not gate.passed]
    assert (verdict == "fail") == bool(failed)
    assert len(reasons) == len(failed)
    assert all(reason.startswith(name) for reason, name in zip(reasons, failed, strict=True))
    return failed


def with_logits(name: str, graph: str, **changes: Any) -> Measurements:
    measured = good()
    logits = [
        x.model_copy(update=changes) if (x.comparison, x.graph) == (name, graph) else x
        for x in measured.logits
    ]
    return replace(measured, logits=logits)


def test_a_right_configuration_passes_all_gates() -> None:
    assert failures(good()) == []


def test_baseline_needs_no_kernels() -> None:
    assert failures(replace(good(), ops={}, kernel_calls={}), BASELINE) == []


def test_float32_needs_no_bfloat16() -> None:
    measured = good()
    logits = [x for x in measured.logits if x.comparison.startswith("float32")]
    ops = {"float32": measured.ops["float32"]}
    assert failures(replace(measured, dtype="float32", logits=logits, ops=ops)) == []


def test_no_gates_is_a_fail() -> None:
    assert judge([]) == ("fail", ["no gate was checked"])


GATES = [
    ("float32 vs HF float32", {"relative_l2_error": 2e-4}, "relative L2 error"),
    ("bfloat16 vs HF bfloat16", {"kl_per_token_mean": 3e-3}, "KL per token"),
    ("bfloat16 vs HF bfloat16", {"top1_agreement": 0.89}, "top-1 agreement"),
    ("float32 vs HF float32", {"finite": False}, "float32 logits"),
    ("bfloat16 vs HF bfloat16", {"max_abs_error": math.inf}, "bfloat16 logits"),
]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("name", "change", "gate"), GATES)
def test_each_logit_gate_fires_alone(
    graph: str, name: str, change: dict[str, Any], gate: str
) -> None:
    (failed,) = failures(with_logits(name, graph, **change))
    assert failed.startswith(graph)
    assert failed.endswith(gate)


@pytest.mark.parametrize("graph", GRAPHS)
def test_gross_errors_are_measured_by_hfs_own_where_that_is_large(graph: str) -> None:
    """As on a model of many close calls, where right kernels are 1e-2 from HF."""
    own: dict[str, Any] = {"kl_per_token_mean": 1e-2, "top1_agreement": 0.92}

    def closed(kl: float, agreement: float) -> list[str]:
        measured = with_logits("HF bfloat16 vs HF float32", graph, **own)
        changes: dict[str, Any] = {"kl_per_token_mean": kl, "top1_agreement": agreement}
        logits = [
            x.model_copy(update=changes)
            if (x.comparison, x.graph) == ("bfloat16 vs HF bfloat16", graph)
            else x
            for x in measured.logits
        ]
        return [name.rpartition(": ")[2] for name in failures(replace(measured, logits=logits))]

    assert closed(kl=1.5e-2, agreement=0.85) == []
    assert closed(kl=4.1e-2, agreement=0.85) == ["KL per token"]
    assert closed(kl=1.5e-2, agreement=0.83) == ["top-1 agreement"]
    own = {"kl_per_token_mean": math.inf, "top1_agreement": 0.1}
    assert closed(kl=1e-5, agreement=0.04) == ["KL per token", "top-1 agreement"]


ROUNDING = [
    ({"error_median_ratio": 1.35}, "median error, ratio"),
    ({"further_share": 0.71}, "share of tokens further away"),
    ({"kl_p90_ratio": 2.1}, "90th percentile of KL, ratio"),
]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("change", "gate"), ROUNDING)
def test_each_rounding_gate_fires_alone(graph: str, change: dict[str, Any], gate: str) -> None:
    changed = [x.model_copy(update=change) if x.graph == graph else x for x in good().rounding]
    (failed,) = failures(replace(good(), rounding=changed))
    assert failed.startswith(graph)
    assert failed.endswith(gate)


@pytest.mark.parametrize(("tokens", "passed"), [(45, True), (1000, False)])
def test_a_share_of_few_tokens_has_room_for_chance(tokens: int, passed: bool) -> None:
    found = [rounding(graph, further_share=0.69, tokens=tokens) for graph in GRAPHS]
    assert (failures(replace(good(), rounding=found)) == []) is passed


@pytest.mark.parametrize("graph", GRAPHS)
def test_rounding_that_is_missing_empty_doubled_or_not_finite_fails(graph: str) -> None:
    measured = good()
    others = [x for x in measured.rounding if x.graph != graph]
    for found in (
        others,
        [*others, rounding(graph, tokens=0)],
        [*measured.rounding, rounding(graph)],
        [*others, rounding(graph, error_median_ratio=math.nan, further_share=math.nan,
                           kl_p90_ratio=math.inf)],
    ):  # fmt: skip
        failed = failures(replace(measured, rounding=found))
        assert len(failed) == 3
        assert all(gate.startswith(graph) for gate in failed)


@pytest.mark.parametrize(
    "matches",
    [
        [],
        [match(passed=False)],
        [match(finite=False)],
        [match(tokens=0)],
        [match(top_k=[])],
        [match(), match()],
        [match(comparison="bfloat16 vs HF bfloat16")],
    ],
)
def test_logit_matching_that_failed_or_was_not_made_fails(matches: list[LogitMatch]) -> None:
    assert failures(replace(good(), matches=matches)) == ["logit matching: float32 vs HF float32"]


@pytest.mark.parametrize(
    "figure", ["kl_per_token_mean", "kl_per_token_max", "max_abs_error", "relative_l2_error"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["float32 vs HF float32", "bfloat16 vs HF bfloat16"])
def test_no_figure_passes_as_nan_or_infinity(name: str, figure: str, value: float) -> None:
    assert failures(with_logits(name, "context_encoding", **{figure: value}))


def test_nan_passes_no_gate() -> None:
    for gate in (at_most, at_least):
        for value, limit in ((math.nan, 1), (1, math.nan), (math.inf, 1), (1, math.inf)):
            assert not gate("x", value, limit).passed
        assert not gate("x", None, 0).passed
        assert gate("x", 1, 1).passed


def test_tolerances_that_zeros_would_pass_do_not_pass_zeros() -> None:
    anything = Tolerances(
        float32_relative_l2=1e9,
        bfloat16_kl_per_token=1e9,
        bfloat16_top1_agreement=1e-9,
        bfloat16_error_ratio=1e9,
        bfloat16_further_share=1.0,
        bfloat16_kl_p90_ratio=1e9,
        float32_op=1e9,
        bfloat16_op=1e9,
    )
    # What compare_logits says of logits that are all zero.
    zeros = {
        "kl_per_token_mean": math.inf,
        "kl_per_token_max": math.inf,
        "top1_agreement": 0.0,
        "max_abs_error": math.inf,
        "relative_l2_error": math.inf,
    }
    measured = good()
    logits = [
        x if x.comparison.startswith("HF") else x.model_copy(update=zeros) for x in measured.logits
    ]
    failed = failures(replace(measured, logits=logits), tolerances=anything)
    assert len(failed) >= 8


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ["float32 vs HF float32", "bfloat16 vs HF bfloat16"])
def test_a_comparison_that_is_missing_empty_or_doubled_fails(name: str, graph: str) -> None:
    measured = good()
    others = [x for x in measured.logits if (x.comparison, x.graph) != (name, graph)]
    for logits in (
        others,
        [*others, comparison(name, graph, tokens=0)],
        [*measured.logits, comparison(name, graph)],
    ):
        failed = failures(replace(measured, logits=logits))
        assert failed
        assert all(gate.startswith(graph) for gate in failed)


@pytest.mark.parametrize("run", ["float32", "bfloat16"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_kernel_that_did_not_run_in_a_graph_fails(run: str, graph: str) -> None:
    measured = good()
    calls: Any = {
        **measured.kernel_calls,
        run: {KERNEL: {other: 7 for other in GRAPHS if other != graph}},
    }
    (failed,) = failures(replace(measured, kernel_calls=calls))
    assert failed == f"{graph}: calls of {KERNEL} ({run})"
    assert failures(replace(measured, kernel_calls={**calls, run: {KERNEL: {graph: 0}}}))


def test_a_kernel_from_a_file_goes_by_its_functions_name() -> None:
    path = OpKernel(kernel=f"my/kernels.py:{KERNEL}")
    kernels = KernelConfiguration(description="one", ops={"rmsnorm": path})
    assert failures(good(), kernels) == []


def test_tasks_that_ran_without_the_kernel_fail() -> None:
    measured = good()
    assert failures(replace(measured, kernel_calls={**measured.kernel_calls, "tasks": {}})) == [
        f"context_encoding: calls of {KERNEL} (tasks)"
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "checks",
    [
        [],
        [check("float32", op="softmax", kernel="nki_softmax_kernel")],
        [check("float32", kernel="other.py:kernel")],
    ],
)
def test_a_filled_op_without_a_check_fails(dtype: str, checks: list[OpCheck]) -> None:
    measured = good()
    (failed,) = failures(replace(measured, ops={**measured.ops, dtype: checks}))
    assert failed == f"op rmsnorm: {KERNEL} ({dtype} model)"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("error", [0.05, math.nan, math.inf])
def test_an_op_beyond_its_tolerance_fails(dtype: str, error: float) -> None:
    measured = good()
    ops = {**measured.ops, dtype: [check(dtype, max_relative_error=error)]}
    (failed,) = failures(replace(measured, ops=ops))
    assert failed.startswith(f"op rmsnorm: {KERNEL} in {dtype}")


def test_an_op_check_that_says_it_did_not_pass_fails() -> None:
    measured = good()
    assert failures(
        replace(measured, ops={**measured.ops, "float32": [check("float32", passed=False)]})
    )


def test_an_op_of_a_data_type_without_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match="no op tolerance for float8"):
        op_tolerance("float8", Tolerances())


@pytest.mark.parametrize(
    "task",
    [
        None,
        TaskResult(task="choice", documents=0, metrics={"acc": 0.9}, chance=None),
        TaskResult(task="choice", documents=50, metrics={}, chance=None),
        TaskResult(task="choice", documents=50, metrics={"acc": math.nan}, chance=None),
    ],
)
def test_a_task_without_a_result_fails(task: TaskResult | None) -> None:
    measured = good()
    tasks = [x for x in measured.tasks if x.task != "choice"] + ([task] if task else [])
    assert failures(replace(measured, tasks=tasks)) == ["task choice"]


def test_the_reason_says_why_the_tasks_could_not_run() -> None:
    measured = replace(good(), tasks=[], tasks_error="the logits are NaN")
    _, reasons = judge(check_gates(measured, KERNELS, Tolerances(), TASKS))
    assert reasons[0].startswith("task choice: the logits are NaN, must be")


def test_no_tasks_expected_is_no_pass() -> None:
    gates = check_gates(good(), KERNELS, Tolerances(), [])
    assert [gate.name for gate in gates if not gate.passed] == ["tasks"]
