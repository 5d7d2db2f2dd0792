"""Reading result files: what is missing, stale, truncated or foreign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import samples

from evaluation.records import StageError
from evaluation.results import error_folder, read_all, read_results, result_files
from model.records import RecordError


@pytest.fixture
def results(tmp_path: Path) -> Path:
    results = samples.project(tmp_path)
    samples.write(results, "rmsnorm")
    return results


def test_every_file_is_read(results: Path) -> None:
    found = read_results(results, "tiny", "rmsnorm")
    assert found.manifest is not None
    assert found.trace is not None
    assert found.generation is not None
    assert found.accuracy is not None
    assert found.tracked is None
    assert found.errors == ()


def test_a_missing_file_is_none(results: Path) -> None:
    found = read_results(results, "tiny", "norms")
    assert found.manifest is None
    assert found.accuracy is None


@pytest.mark.parametrize("stage", ["compile", "trace", "generate", "accuracy"])
def test_another_schema_version_is_refused_by_file_name(results: Path, stage: str) -> None:
    path = result_files(results, "tiny", "rmsnorm")[stage]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(RecordError) as error:
        read_results(results, "tiny", "rmsnorm")
    assert str(path) in str(error.value)
    assert "schema" in str(error.value)


def test_a_truncated_file_is_refused_by_file_name(results: Path) -> None:
    path = result_files(results, "tiny", "rmsnorm")["accuracy"]
    path.write_text(path.read_text()[:200])
    with pytest.raises(RecordError, match=r"accuracy\.json"):
        read_results(results, "tiny", "rmsnorm")


def test_a_file_about_another_configuration_is_refused(results: Path) -> None:
    path = result_files(results, "tiny", "norms")["generate"]
    path.parent.mkdir(parents=True)
    path.write_text(result_files(results, "tiny", "rmsnorm")["generate"].read_text())
    with pytest.raises(RecordError, match="'rmsnorm', not 'norms'"):
        read_results(results, "tiny", "norms")


def test_files_older_than_a_failed_stage_are_not_believed(results: Path) -> None:
    samples.write_kernel_error(results, "rmsnorm")
    found = read_results(results, "tiny", "rmsnorm")
    assert found.manifest is None
    assert found.generation is None
    assert found.accuracy is None
    assert [error.stage for error in found.errors] == ["compile"]


def test_a_failed_tracking_leaves_the_results(results: Path) -> None:
    StageError(configuration="rmsnorm", stage="track", message="down", details=[]).write(
        error_folder(results, "tiny", "rmsnorm") / "track.json"
    )
    found = read_results(results, "tiny", "rmsnorm")
    assert found.accuracy is not None
    assert found.tracked is None


def test_one_unreadable_configuration_does_not_stop_the_others(results: Path) -> None:
    result_files(results, "tiny", "rmsnorm")["trace"].write_text("{")
    samples.write(results, "baseline")
    broken, whole = read_all(results, "tiny", ["rmsnorm", "baseline"])
    assert broken.manifest is None
    assert "summary.json" in broken.errors[0].message
    assert whole.accuracy is not None
