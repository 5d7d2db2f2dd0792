"""What a person is told when the input is wrong or a stage fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stubbed_checkout import Checkout

from evaluation.records import StageError

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(fresh: Checkout, tmp_path: Path) -> Checkout:
    """A checkout of this test's own, never run."""
    return fresh.copy(tmp_path / "checkout")


def test_a_wrong_configuration_stops_snakemake_with_the_message_alone(fresh: Checkout) -> None:
    done = fresh.snakemake("-n", "--config", "configurations=[rmsnrm]", "dtype=int8")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == (
        "config/config.yaml, --config: dtype: Input should be 'bfloat16' or 'float32'; found 'int8'"
    )
    assert "Traceback" not in done.stdout
    assert 'File "' not in done.stdout


def test_a_failing_configuration_leaves_the_others_alone(checkout: Checkout) -> None:
    checkout.write("fail/compile-all", "violation")
    done = checkout.snakemake("--config", "configurations=[baseline, all]")
    assert done.returncode != 0
    assert "compile failed for all: kernels/silu.py:7: [SBUF-1] too large" in done.stdout
    assert "failed: all: compile: kernels/silu.py:7" in done.stdout
    assert "Traceback" not in done.stdout

    results = checkout.root / "results"
    assert (results / "tracked/tiny-qwen3-moe/baseline.json").exists()
    assert not (results / "tracked/tiny-qwen3-moe/all.json").exists()
    file = results / "errors/tiny-qwen3-moe/all/compile.json"
    error = StageError.read(file)
    assert (error.configuration, error.stage) == ("all", "compile")
    assert error.details[0]["rule"] == "SBUF-1"
    assert error.details[0]["line"] == 7
    partial = "partial: --partial --config results/config.yaml"
    assert (results / "report.html").read_text() == partial
    assert "- baseline\n- all\nd" in (results / "config.yaml").read_text()

    (checkout.root / "fail/compile-all").unlink()
    done = checkout.snakemake("--config", "configurations=[baseline, all]")
    assert done.returncode == 0, done.stdout
    assert not file.exists()
    assert json.loads((results / "report.html").read_text())["stage"] == "report"


def test_a_failing_shared_stage_fails_every_configuration(checkout: Checkout) -> None:
    checkout.write("fail/download-model", "error")
    assert checkout.snakemake("compile_all").returncode != 0
    errors = checkout.root / "results/errors/tiny-qwen3-moe"
    assert len(list(errors.glob("*/download.json"))) == 3


def test_a_partial_report_is_not_taken_for_the_report(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "checkout")
    checkout.append("evaluation/report.py", "# edited\n")
    checkout.write("fail/report-all", "error")
    assert checkout.snakemake().returncode != 0
    (checkout.root / "fail/report-all").unlink()
    assert checkout.jobs() == {"report"}
