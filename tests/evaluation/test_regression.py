"""What counts as worse than the champion, and that what is not known counts as worse."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import samples
from rich.console import Console

from evaluation.champion import Champion
from evaluation.provenance import cpu_model
from evaluation.records import RegressionRecord, RegressionRow
from evaluation.regression import choose_candidate, compare
from evaluation.results import ConfigurationResults
from evaluation.terminal import print_regression
from model.configuration import ConfigurationError, Tolerances

OPS = ["rmsnorm", "qk_norm"]


def results(slower: float = 1.0, predicted: float = 1.0, **quality: Any) -> ConfigurationResults:
    return ConfigurationResults(
        name="norms",
        manifest=samples.manifest("norms", OPS),
        trace=samples.trace("norms", OPS, predicted),
        generation=samples.generation("norms", OPS, slower),
        latency=samples.latency("norms", slower),
        accuracy=samples.accuracy("norms", OPS, **quality),
    )


def champion(**changes: Any) -> Champion:
    whole: dict[str, Any] = {
        "configuration": "norms",
        "version": "3",
        "mlflow_run_id": "r",
        "fingerprint": "f",
        "evaluation": "e",
        "git_commit": "abc",
        "cpu": cpu_model(),
        "results": results(),
    }
    return Champion(**(whole | changes))


def check(
    found: ConfigurationResults, against: Champion | None = None, evaluation: str = "e"
) -> RegressionRecord:
    return compare(
        samples.config(), against or champion(), found, fingerprint="g", evaluation=evaluation
    )


def rows(record: RegressionRecord, source: str) -> list[RegressionRow]:
    return [row for row in record.rows if row.source == source]


def with_task(found: ConfigurationResults, **metrics: float) -> ConfigurationResults:
    assert found.accuracy is not None
    tasks = [
        task.model_copy(update={"metrics": {k: metrics.get(k, v) for k, v in task.metrics.items()}})
        for task in found.accuracy.tasks
    ]
    return replace(found, accuracy=found.accuracy.model_copy(update={"tasks": tasks}))


def test_equal_results_pass_in_every_row() -> None:
    record = check(results())
    assert record.verdict == "pass"
    assert record.reasons == []
    assert {row.source for row in record.rows} == {"measured", "predicted", "quality"}
    assert all(row.outcome == "equal" for row in record.rows)


def test_a_measured_slowdown_beyond_the_threshold_fails() -> None:
    record = check(results(slower=1.1))
    assert record.verdict == "fail"
    assert {row.outcome for row in rows(record, "measured")} == {"worse"}
    assert {row.outcome for row in rows(record, "predicted")} == {"equal"}
    assert any("measured TPOT" in reason and "10.0%" in reason for reason in record.reasons)


def test_a_slowdown_within_the_threshold_passes() -> None:
    assert check(results(slower=1.04)).verdict == "pass"


def test_a_predicted_slowdown_is_gated_apart() -> None:
    record = check(results(predicted=1.02))
    assert record.verdict == "fail"
    assert {row.outcome for row in rows(record, "measured")} == {"equal"}
    assert {row.what for row in rows(record, "predicted") if row.outcome == "worse"} == {
        "TTFT, for trn2", "TTFT, for trn3", "TPOT, for trn2", "TPOT, for trn3",
    }  # fmt: skip


def test_faster_is_better_and_passes() -> None:
    record = check(results(slower=0.5, predicted=0.5))
    assert record.verdict == "pass"
    assert {row.outcome for row in rows(record, "measured")} == {"better"}
    assert {row.outcome for row in rows(record, "predicted")} == {"better"}


def timed(ratio: float, spread: float = 0.01) -> ConfigurationResults:
    """Results of the latency stage: so many times the baseline's latency."""
    return replace(results(), latency=samples.latency("norms", ratio, spread))


def test_latency_is_compared_by_what_the_baseline_beside_it_took() -> None:
    # 1.1 times the baseline then, 1.21 times now: 10 % slower, however fast the machine is today.
    record = check(timed(1.21), champion(results=timed(1.1)))
    assert {row.outcome for row in rows(record, "measured")} == {"worse"}
    (end_to_end,) = [row for row in rows(record, "measured") if row.what.startswith("end to end")]
    # Two intervals of 1 % each, combined.
    assert end_to_end.change == "+10.0% (+8.5% to +11.6%)"


def test_a_slowdown_within_the_noise_or_the_threshold_passes() -> None:
    assert check(timed(1.3, spread=0.2), champion(results=timed(1.1, spread=0.2))).verdict == "pass"
    assert check(timed(1.14), champion(results=timed(1.1))).verdict == "pass"
    assert check(timed(0.9), champion(results=timed(1.1))).verdict == "pass"


def short(ratio: float) -> ConfigurationResults:
    """Results whose latency stage had too few runs for intervals."""
    found = results(ratio)
    assert found.latency is not None
    comparisons = [
        x.model_copy(update={"ratio": x.ratio.model_copy(update={"low": None, "high": None})})
        for x in found.latency.comparisons
    ]
    return replace(found, latency=found.latency.model_copy(update={"comparisons": comparisons}))


def test_too_few_runs_for_an_interval_fail_unless_the_record_is_the_champions_own() -> None:
    champions = champion(results=short(1.0))
    own = check(short(1.0), champions)
    assert [row.outcome for row in rows(own, "measured")] == ["equal"] * 3
    assert own.verdict == "pass"
    anew = check(short(1.001), champions)
    assert anew.verdict == "fail"
    assert [row.outcome for row in rows(anew, "measured")] == ["not comparable"] * 3


def test_withheld_timings_fail_and_say_why() -> None:
    found = timed(1.1)
    assert found.latency is not None
    withheld = found.latency.model_copy(
        update={"withheld": ["output is all zeros"], "comparisons": [], "measured": None}
    )
    record = check(replace(found, latency=withheld), champion(results=timed(1.1)))
    assert record.verdict == "fail"
    assert all(row.why == "withheld: output is all zeros" for row in rows(record, "measured"))
    record = check(replace(results(), latency=None), champion(results=timed(1.1)))
    assert {row.why for row in rows(record, "measured")} == {"not measured"}


def test_a_failed_verdict_fails() -> None:
    record = check(results(kl=0.2, passed=False))
    assert record.verdict == "fail"
    assert record.reasons[0].startswith("its verdict is fail: ")


def rounded(**measures: float) -> ConfigurationResults:
    """Results whose bf16 rounding differs in token generation."""
    found = results()
    assert found.accuracy is not None
    context, token = found.accuracy.rounding
    rounding = [context, token.model_copy(update=measures)]
    return replace(found, accuracy=found.accuracy.model_copy(update={"rounding": rounding}))


@pytest.mark.parametrize(
    ("measure", "tolerance"),
    [
        ("error_median_ratio", Tolerances().bfloat16_error_ratio),
        ("further_share", Tolerances().bfloat16_further_share),
        ("kl_p90_ratio", Tolerances().bfloat16_kl_p90_ratio),
    ],
)
def test_an_error_that_grew_fails_though_it_is_within_the_gates(
    measure: str, tolerance: float
) -> None:
    accuracy = results().accuracy
    assert accuracy is not None
    before = max(getattr(each, measure) for each in accuracy.rounding)
    # A quarter of the way from the champion's value to the gate is allowed.
    little, much = (before + share * (tolerance - before) for share in (0.2, 0.3))
    assert check(rounded(**{measure: little})).verdict == "pass"
    record = check(rounded(**{measure: much}))
    assert record.verdict == "fail"
    assert [row.source for row in record.rows if row.outcome == "worse"] == ["quality"]


@pytest.mark.parametrize(
    ("metrics", "verdict"),
    [
        ({"acc": 0.83}, "pass"),
        ({"acc": 0.81}, "fail"),
        ({"acc": 0.99}, "pass"),
        ({"word_perplexity": 4.25}, "pass"),
        ({"word_perplexity": 4.4}, "fail"),
        ({"word_perplexity": 3.0}, "pass"),
    ],
)
def test_tasks(metrics: dict[str, float], verdict: str) -> None:
    assert check(with_task(results(), **metrics)).verdict == verdict


def test_fewer_agreements_fail() -> None:
    found = results()
    assert found.accuracy is not None
    logits = [x.model_copy(update={"top1_agreement": 0.97}) for x in found.accuracy.logits]
    record = check(replace(found, accuracy=found.accuracy.model_copy(update={"logits": logits})))
    assert record.verdict == "fail"
    assert any("top-1 agreement" in reason for reason in record.reasons)


@pytest.mark.parametrize("missing", ["latency", "trace", "accuracy"])
def test_what_the_candidate_lacks_fails(missing: str) -> None:
    record = check(replace(results(), **{missing: None}))
    assert record.verdict == "fail"
    assert any(row.outcome == "not comparable" and row.why for row in record.rows)


def test_a_task_that_is_gone_fails() -> None:
    found = results()
    assert found.accuracy is not None
    accuracy = found.accuracy.model_copy(update={"tasks": found.accuracy.tasks[:1]})
    record = check(replace(found, accuracy=accuracy))
    assert any("nano_text" in reason and "not measured" in reason for reason in record.reasons)


def test_another_shape_of_prediction_is_not_compared() -> None:
    found = results()
    assert found.trace is not None
    record = check(replace(found, trace=found.trace.model_copy(update={"context": 1024})))
    assert {row.why for row in rows(record, "predicted")} == {"of another shape"}
    assert record.verdict == "fail"


def test_another_machine_is_not_compared() -> None:
    record = check(results(), champion(cpu="another CPU"))
    assert record.verdict == "fail"
    assert [row.outcome for row in rows(record, "measured")] == ["not comparable"]
    assert {row.outcome for row in rows(record, "quality")} == {"equal"}


def test_another_evaluation_compares_nothing() -> None:
    record = check(results(), evaluation="other")
    assert record.rows == []
    assert record.verdict == "fail"
    assert "other prompts" in record.reasons[0]


def test_which_configuration_is_the_candidate() -> None:
    assert choose_candidate(samples.config(), "norms") == "norms"
    assert choose_candidate(samples.config(configurations=["baseline", "all"]), "norms") == "all"
    assert choose_candidate(samples.config(candidate="rmsnorm"), "norms") == "rmsnorm"
    with pytest.raises(ConfigurationError, match="candidate=NAME"):
        choose_candidate(samples.config(configurations=["baseline", "all", "silu"]), "norms")


def test_the_terminals_table_says_why() -> None:
    screen = io.StringIO()
    print_regression(check(results(slower=1.1)), Console(file=screen, width=140))
    text = screen.getvalue()
    assert "norms against the champion norms (version 3, commit abc)" in text
    assert "✗ worse" in text
    assert "significantly slower" in text
    assert "norms is worse than the champion" in text
    assert "\x1b" not in text
