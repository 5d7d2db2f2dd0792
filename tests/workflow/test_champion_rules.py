"""The rules about the champion, and how a run ends. The stages are stubs."""

from __future__ import annotations

from pathlib import Path

import pytest
from stubbed_checkout import CONFIGURATIONS, Checkout

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """A finished evaluation of this test's own."""
    return finished.copy(tmp_path / "checkout")


def test_a_run_ends_with_the_verdicts(checkout: Checkout) -> None:
    checkout.append("evaluation/report.py", "# edited\n")
    done = checkout.snakemake()
    assert done.returncode == 0
    end = done.stdout[done.stdout.index("Evaluation of tiny") :]
    for name in CONFIGURATIONS:
        assert f"{name}" in end
    assert end.count("✓ pass") == len(CONFIGURATIONS)
    assert "\x1b" not in end
    assert "Evaluation of tiny" not in checkout.snakemake("compile_all", "--forcerun").stdout


def test_without_a_champion_the_check_fails_and_says_how_to_promote(checkout: Checkout) -> None:
    before = (checkout.root / "results/report.html").read_bytes()
    done = checkout.snakemake("check_regression")
    assert done.returncode != 0
    assert "check_regression: No configuration of tiny-qwen3-moe on simulator" in done.stdout
    assert "snakemake --cores 1 promote --config champion=NAME" in done.stdout
    assert "Traceback" not in done.stdout
    assert "failed:" not in done.stdout
    assert (checkout.root / "results/report.html").read_bytes() == before
    log = checkout.root / "results/logs/check_regression.log"
    assert "has been promoted" in log.read_text()


def test_promote_needs_a_name_that_exists(checkout: Checkout) -> None:
    done = checkout.snakemake("promote")
    assert done.returncode != 0
    assert "say which configuration to promote: `--config champion=NAME`" in done.stdout
    done = checkout.snakemake("promote", "--config", "champion=normz")
    assert done.returncode != 0
    assert "unknown kernel configuration 'normz' (did you mean 'norms'?)" in done.stdout


def test_a_candidate_or_champion_alone_is_evaluated(fresh: Checkout) -> None:
    wanted = {"download", "reference", "check_regression", "compile baseline"}
    stages = ("compile", "trace", "generate", "latency", "accuracy")
    checked = fresh.jobs("check_regression", "--config", "candidate=rmsnorm")
    assert checked == wanted | {f"{stage} rmsnorm" for stage in stages}
    promoted = fresh.jobs("promote", "--config", "champion=rmsnorm")
    stages = (*stages, "track")
    wanted = {"download", "reference", "track_init", "promote"}
    wanted |= {"compile baseline", "trace baseline"}  # timed beside, and base of the score
    assert promoted == wanted | {f"{stage} rmsnorm" for stage in stages}


def test_snakemakes_own_report_has_every_figure_with_its_caption(checkout: Checkout) -> None:
    done = checkout.snakemake("--report", "snakemake.html")
    assert done.returncode == 0, done.stdout
    page = (checkout.root / "snakemake.html").read_text()
    for caption in (checkout.root / "workflow/report").glob("*.rst"):
        words = caption.read_text().split()[:3]
        assert " ".join(words).strip("*").partition(" {{")[0] in page.replace("\\n", " ")
    assert "results/plots/cut_points.svg" in page


def test_a_new_champion_runs_the_report(checkout: Checkout) -> None:
    checkout.write("mlflow/champion-tiny-qwen3-moe-simulator.json", "{}")
    assert checkout.jobs() == {"report"}
