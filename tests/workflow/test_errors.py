"""What a person is told when the input is wrong or a stage fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Checkout

from evaluation.records import StageError


@pytest.fixture
def checkout(fresh: Checkout, tmp_path: Path) -> Checkout:
    """A checkout of this test's own, never run."""
    return fresh.copy(tmp_path / "checkout")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("configurations=[rmsnrm]", ["'rmsnrm'", "did you mean 'rmsnorm'", "baseline"]),
        ("configurations=rmsnorm", ["configurations", "list", "'rmsnorm'"]),
        ("model=other", ["model", "'other'", "tiny-qwen3-moe"]),
        ("dtype=int8", ["dtype", "'bfloat16' or 'float32'", "'int8'"]),
        ("bukets=3", ["bukets", "unknown key", "did you mean 'buckets'"]),
        ("accuracy={documents: many}", ["accuracy.documents", "integer", "'many'"]),
        ("accuracy={tolerances: {bf16: 1}}", ["accuracy.tolerances.bf16", "bfloat16_op"]),
        ("generate={prompts: nowhere.yaml}", ["generate.prompts", "nowhere.yaml", "no such file"]),
        ("accuracy={tasks: nowhere}", ["accuracy.tasks", "nowhere", "no such folder"]),
    ],
)
def test_a_wrong_configuration(fresh: Checkout, override: str, words: list[str]) -> None:
    done = fresh.snakemake("-n", "--config", override)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    assert 'File "' not in done.stdout
    for word in words:
        assert word in done.stdout


@pytest.mark.parametrize(
    ("ops", "words"),
    [
        ("{silu: {kernel: nki_silo_kernel}}", ["ops.silu.kernel", "did you mean 'nki_silu"]),
        ("{sillu: {kernel: nki_silu_kernel}}", ["unknown op 'sillu'", "rmsnorm, qk_norm"]),
        ("{softmax: {kernel: nki_silu_kernel}}", ["'softmax' cannot be filled by"]),
        ("{silu: {kernel: nki_silu_kernel, tile: 1}}", ["ops.silu.tile", "kernel, parameters"]),
        ("{silu: {kernel: a/b.py:f}}", ["ops.silu.kernel", "a/b.py", "no such file"]),
        ("{silu: {kernel: 'kernels/silu.py:f'}}", ["no function 'f'", "nki_silu_kernel"]),
        ("[silu]", ["ops", "dictionary", "['silu']"]),
    ],
)
def test_a_wrong_kernel_configuration(checkout: Checkout, ops: str, words: list[str]) -> None:
    checkout.write("config/kernels/all.yaml", f"description: Wrong.\nops: {ops}\n")
    done = checkout.snakemake("-n")
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    for word in ["config/kernels/all.yaml", *words]:
        assert word in done.stdout


def test_a_failing_configuration_leaves_the_others_alone(checkout: Checkout) -> None:
    checkout.write("fail/compile-all", "violation")
    done = checkout.snakemake("--config", "configurations=[baseline, all]")
    assert done.returncode != 0
    assert "compile failed for all: kernels/silu.py:7: [SBUF-1] too large" in done.stdout
    assert "Traceback" not in done.stdout

    results = checkout.root / "results"
    assert (results / "tracked/tiny-qwen3-moe/baseline.json").exists()
    assert not (results / "tracked/tiny-qwen3-moe/all.json").exists()
    file = results / "errors/tiny-qwen3-moe/all/compile.json"
    error = StageError.read(file)
    assert (error.configuration, error.stage) == ("all", "compile")
    assert error.details[0]["rule"] == "SBUF-1"
    assert error.details[0]["line"] == 7
    partial = "partial: --config results/config.yaml --partial"
    assert (results / "report.html").read_text() == partial
    assert "- baseline\n- all\nd" in (results / "config.yaml").read_text()

    (checkout.root / "fail/compile-all").unlink()
    done = checkout.snakemake("--config", "configurations=[baseline, all]")
    assert done.returncode == 0, done.stdout
    assert not file.exists()
    assert json.loads((results / "report.html").read_text())["stage"] == "report"


def test_a_failing_shared_stage_fails_every_configuration(checkout: Checkout) -> None:
    checkout.write("fail/download-model", "error")
    assert checkout.snakemake().returncode != 0
    errors = checkout.root / "results/errors/tiny-qwen3-moe"
    assert len(list(errors.glob("*/download.json"))) == 4


def test_a_partial_report_is_not_taken_for_the_report(checkout: Checkout) -> None:
    only = ("--config", "configurations=[baseline]")
    checkout.write("fail/report-all", "error")
    assert checkout.snakemake(*only).returncode != 0
    (checkout.root / "fail/report-all").unlink()
    assert checkout.jobs(*only) == {"report"}


def test_a_kernel_that_is_not_python_fails_its_own_configurations(checkout: Checkout) -> None:
    checkout.append("kernels/silu.py", "def broken(:\n")
    assert "compile baseline" in checkout.jobs()
