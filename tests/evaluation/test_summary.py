"""The verdicts: what passes, what fails, and that the reason is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import samples

from evaluation.records import StageError, Summary, TrackedRun
from evaluation.results import error_folder, result_files
from evaluation.summary import describe_detail, summarise


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    results = samples.project(tmp_path)
    for name in samples.OPS_OF:
        samples.write(results, name)
    return results


def test_a_whole_configuration_passes(results: Path) -> None:
    TrackedRun(
        configuration="norms", mlflow_run_id="r1", mlflow_experiment="e", fingerprint="f"
    ).write(result_files(results, "tiny", "norms")["track"])
    norms = summarise(samples.config(), results).configurations["norms"]
    assert norms.verdict == "pass"
    assert norms.reasons == []
    assert norms.device == "simulator"
    assert norms.kernel_calls == {"nki_rmsnorm_kernel": 288, "nki_qk_rmsnorm_kernel": 288}
    assert norms.metrics["latency_measured_simulator/ttft_ms_p50"] == pytest.approx(21.56)
    assert norms.mlflow_run_id == "r1"


def test_every_two_configurations_are_compared_by_every_latency(results: Path) -> None:
    summary = summarise(samples.config(), results)
    found = {(x.configuration, x.other, x.metric): x for x in summary.pairs}
    chosen = (("rmsnorm", "baseline"), ("norms", "baseline"), ("norms", "rmsnorm"))
    metrics = ("end_to_end_ms", "ttft_ms", "tpot_ms")
    assert set(found) == {(*two, metric) for two in chosen for metric in metrics}
    assert len(found) == len(summary.pairs)
    direct = found["norms", "baseline", "ttft_ms"]
    assert (direct.ratio.value, direct.verdict, direct.through) == (1.1, "slower", None)
    indirect = found["norms", "rmsnorm", "ttft_ms"]
    assert indirect.ratio.value == pytest.approx(1.1 / 1.05)
    assert (indirect.verdict, indirect.through) == ("slower", "baseline")


def test_what_fails_is_compared_with_nothing(results: Path) -> None:
    def fails(name: str) -> Summary:
        path = result_files(results, "tiny", name)["accuracy"]
        before = path.read_text()
        samples.accuracy(name, ["rmsnorm"], kl=0.2, passed=False).write(path)
        summary = summarise(samples.config(), results)
        path.write_text(before)
        return summary

    summary = fails("norms")
    assert {(x.configuration, x.other) for x in summary.pairs} == {("rmsnorm", "baseline")}
    assert summary.configurations["norms"].comparisons == ()
    assert len(summary.configurations["rmsnorm"].comparisons) == 3
    summary = fails("baseline")
    assert {(x.configuration, x.other) for x in summary.pairs} == {("norms", "rmsnorm")}
    assert all(found.comparisons == () for found in summary.configurations.values())


def test_the_score_has_its_base_though_the_baseline_is_not_chosen(results: Path) -> None:
    alone = summarise(samples.config(configurations=["norms"]), results).configurations["norms"]
    assert alone.score is not None
    assert alone.score.total == pytest.approx(2 * 1.25**2 * 1.02)
    assert alone.metrics["score_predicted_trn2/total"] == alone.score.total
    assert alone.score == summarise(samples.config(), results).configurations["norms"].score


def test_the_summary_survives_its_file(results: Path, tmp_path: Path) -> None:
    summary = summarise(samples.config(), results)
    summary.write(tmp_path / "summary.json")
    assert Summary.read(tmp_path / "summary.json") == summary


def test_a_failed_gate_fails(results: Path) -> None:
    samples.accuracy("norms", ["rmsnorm"], kl=0.2, passed=False).write(
        result_files(results, "tiny", "norms")["accuracy"]
    )
    norms = summarise(samples.config(), results).configurations["norms"]
    assert norms.verdict == "fail"
    assert "0.2" in norms.reasons[0]


@pytest.mark.parametrize("stage", ["compile", "trace", "generate", "accuracy"])
def test_a_missing_result_fails(results: Path, stage: str) -> None:
    result_files(results, "tiny", "norms")[stage].unlink()
    summary = summarise(samples.config(), results)
    assert summary.configurations["norms"].verdict == "fail"
    assert stage in summary.configurations["norms"].reasons[0]
    assert summary.configurations["rmsnorm"].verdict == "pass"


def test_a_refused_kernel_fails_with_rule_file_and_line(results: Path) -> None:
    samples.write_kernel_error(results, "rmsnorm")
    rmsnorm = summarise(samples.config(), results).configurations["rmsnorm"]
    assert rmsnorm.verdict == "fail"
    assert rmsnorm.reasons == [
        "compile: kernels/rmsnorm.py:42: [sbuf-capacity] nl.ndarray.x_tile: the tile does not fit "
        "(limit 192 KiB, found 256 KiB). Split the free dimension."
    ]
    assert not any("latency" in name for name in rmsnorm.metrics), "timings of the old kernel"


def test_an_error_without_details_says_its_message(results: Path) -> None:
    StageError(configuration="norms", stage="generate", message="out of memory", details=[]).write(
        error_folder(results, "tiny", "norms") / "generate.json"
    )
    norms = summarise(samples.config(), results).configurations["norms"]
    assert norms.reasons == ["generate: out of memory"]


@pytest.mark.parametrize("stage", ["track_init", "track", "report"])
def test_a_server_that_is_down_changes_no_verdict(results: Path, stage: str) -> None:
    StageError(configuration="norms", stage=stage, message="down", details=[]).write(
        error_folder(results, "tiny", "norms") / f"{stage}.json"
    )
    norms = summarise(samples.config(), results).configurations["norms"]
    assert norms.verdict == "pass"
    assert norms.mlflow_run_id is None


def test_an_unreadable_result_fails_only_its_configuration(results: Path) -> None:
    result_files(results, "tiny", "norms")["accuracy"].write_text("{")
    summary = summarise(samples.config(), results)
    assert "accuracy.json" in summary.configurations["norms"].reasons[0]
    assert summary.configurations["baseline"].verdict == "pass"


def test_the_evaluation_is_what_is_common(results: Path, tmp_path: Path) -> None:
    first = summarise(samples.config(), results).evaluation
    assert summarise(samples.config(configurations=["norms"]), results).evaluation == first
    assert summarise(samples.config(dtype="float32"), results).evaluation != first
    (tmp_path / "tasks/arithmetic.yaml").write_text("task: other\n")
    assert summarise(samples.config(), results).evaluation != first


def test_a_details_file_is_relative_to_the_project(results: Path, tmp_path: Path) -> None:
    detail = {"rule": "r", "file": str(tmp_path / "kernels/a.py"), "line": 3, "message": "no"}
    assert describe_detail(detail) == "kernels/a.py:3: [r] no"
