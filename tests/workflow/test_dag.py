"""Which jobs run after which change. The stages are stubs; see stubbed_checkout.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from stubbed_checkout import CONFIGURATIONS, Checkout

pytestmark = pytest.mark.slow
STAGES = ("compile", "trace", "generate", "latency", "accuracy", "track")


def jobs_of(*names: str) -> set[str]:
    return {f"{stage} {name}" for stage in STAGES for name in names}


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    """A finished evaluation of this test's own."""
    return finished.copy(tmp_path / "checkout")


def test_a_fresh_run_makes_every_configuration_and_the_report(fresh: Checkout) -> None:
    shared = {"download", "reference", "track_init", "report"}
    assert fresh.jobs() == shared | jobs_of(*CONFIGURATIONS)


def test_targets_make_no_more_than_they_say(fresh: Checkout) -> None:
    compiled = {f"compile {name}" for name in CONFIGURATIONS}
    assert fresh.jobs("compile_all") == {"download"} | compiled
    traced = {f"trace {name}" for name in CONFIGURATIONS}
    assert fresh.jobs("trace_all") == traced


def test_a_model_is_traced_without_its_weights(fresh: Checkout) -> None:
    wanted = {f"trace {name}" for name in CONFIGURATIONS}
    assert fresh.jobs("trace_all", "--config", "model=qwen3-30b-a3b") == wanted


def test_one_configuration_alone(fresh: Checkout) -> None:
    # The baseline beside which it is timed is compiled, for the gates compare its fingerprints, and
    # traced, for the score has its base in it.
    shared = {"download", "reference", "track_init", "compile baseline", "trace baseline"}
    wanted = shared | jobs_of("rmsnorm")
    assert fresh.jobs("results/tracked/tiny-qwen3-moe/rmsnorm.json") == wanted
    assert fresh.jobs("--config", "configurations=[rmsnorm]") == wanted | {"report"}


def test_nothing_changed_means_nothing_to_be_done(finished: Checkout) -> None:
    done = finished.snakemake("evaluate_all")
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout


def test_every_job_has_its_log_and_benchmark(finished: Checkout) -> None:
    log = finished.root / "results/logs/compile/tiny-qwen3-moe/all.log"
    text = log.read_text()
    for line in ("stdout of compile", "stderr of compile", "logging of compile"):
        assert line in text
    benchmarks = finished.root / "results/benchmarks"
    assert len(list(benchmarks.rglob("*.tsv"))) == 4 + len(STAGES) * len(CONFIGURATIONS)


@pytest.mark.parametrize(
    ("file", "users"),
    [
        ("kernels/silu.py", ["all"]),
        ("kernels/qk_rmsnorm.py", ["norms", "all"]),
        ("config/kernels/norms.yaml", ["norms"]),
    ],
)
def test_editing_a_file_runs_the_configurations_that_use_it(
    checkout: Checkout, file: str, users: list[str]
) -> None:
    checkout.append(file, "\n# edited\n")
    assert checkout.jobs() == jobs_of(*users) | {"report"}


def test_touching_a_file_runs_nothing(checkout: Checkout) -> None:
    (checkout.root / "kernels/silu.py").touch()
    assert checkout.jobs() == set()


def test_altered_missing_and_new_weights_are_verified_again(checkout: Checkout) -> None:
    weights = checkout.root / "model/checkpoints/tiny-qwen3-moe/model.safetensors"
    weights.write_text("altered")
    assert "download" in checkout.jobs("results/models/tiny-qwen3-moe/checkpoint.json")
    weights.unlink()
    assert "download" in checkout.jobs()


def test_generation_settings_run_generation_and_what_reads_it(checkout: Checkout) -> None:
    wanted = {f"{stage} {name}" for stage in ("generate", "track") for name in CONFIGURATIONS}
    changed = checkout.jobs("--config", "generate={max_new_tokens: 3}")
    assert changed == wanted | {"report"}


def test_latency_settings_time_again_and_run_what_reads_it(checkout: Checkout) -> None:
    wanted = {f"{stage} {name}" for stage in ("latency", "track") for name in CONFIGURATIONS}
    assert checkout.jobs("--config", "latency={time_budget_s: 1.0}") == wanted | {"report"}


def test_a_new_baseline_is_timed_beside_every_configuration(checkout: Checkout) -> None:
    checkout.append("config/kernels/baseline.yaml", "# edited\n")
    wanted = {f"latency {name}" for name in CONFIGURATIONS}
    assert {job for job in checkout.jobs() if job.startswith("latency")} == wanted
    assert "generate all" not in checkout.jobs()


def test_accuracy_settings_and_tasks_run_accuracy_and_what_reads_it(checkout: Checkout) -> None:
    wanted = {f"{stage} {name}" for stage in ("accuracy", "track") for name in CONFIGURATIONS}
    assert checkout.jobs("--config", "accuracy={documents: 3}") == wanted | {"report"}
    checkout.append("config/tasks/arithmetic.yaml", "\n# edited\n")
    assert checkout.jobs() == wanted | {"report"}


def test_texts_run_the_reference_too(checkout: Checkout) -> None:
    checkout.append("config/tasks/data/heldout.jsonl", "\n")
    assert "reference" in checkout.jobs()
    assert "generate all" not in checkout.jobs()


def test_dtype_and_environment_run_every_configuration(checkout: Checkout) -> None:
    wanted = jobs_of(*CONFIGURATIONS) | {"reference", "report"}
    assert checkout.jobs("--config", "dtype=float32") == wanted
    checkout.append("envs/cpu/requirements.txt", "\n")
    assert checkout.jobs() == wanted


def test_fewer_configurations_run_the_report_alone(checkout: Checkout) -> None:
    assert checkout.jobs("--config", "configurations=[baseline, all]") == {"report"}


def test_another_store_or_a_deleted_one_gets_every_run(checkout: Checkout) -> None:
    wanted = {f"track {name}" for name in CONFIGURATIONS} | {"track_init", "report"}
    uri = "http://user:secret@127.0.0.1:9"
    assert checkout.jobs(MLFLOW_TRACKING_URI=uri) == wanted
    (checkout.root / "mlflow/ready.json").unlink()
    assert checkout.jobs() == wanted


def test_the_stores_password_is_written_nowhere(checkout: Checkout) -> None:
    done = checkout.snakemake(MLFLOW_TRACKING_URI="http://user:secret@127.0.0.1:9")
    assert done.returncode == 0
    assert "secret" not in done.stdout
    files = (path for path in checkout.root.rglob("*") if path.is_file())
    assert not [path for path in files if b"user:secret" in path.read_bytes()]


def test_a_users_own_kernel_is_an_input(checkout: Checkout) -> None:
    checkout.write("mine/fast.py", "from kernels import tiling\ndef fast(): pass\n")
    checkout.write(
        "config/kernels/mine.yaml",
        "description: Mine.\nops:\n  silu:\n    kernel: mine/fast.py:fast\n",
    )
    only = ("compile_all", "--config", "configurations=[mine]")
    assert checkout.snakemake(*only).returncode == 0
    assert checkout.jobs(*only) == set()
    checkout.append("mine/fast.py", "# edited\n")
    assert checkout.jobs(*only) == {"compile mine"}
