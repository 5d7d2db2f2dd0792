"""A copy of the checkout whose stages are stubs, so that the wiring is tested in seconds."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, CompletedProcess, run

import pytest
import yaml
from warm_snakemake import WarmSnakemake

ROOT = Path(__file__).parents[2]
FOLDERS = ("config", "envs", "evaluation", "kernels", "model", "profiles", "simulator", "workflow")

CONFIGURATIONS = ("baseline", "norms", "all")

STUB = '''
"""Writes its outputs, and the configuration's name into them; fails if fail/STAGE-NAME exists."""

import json
import logging
import sys
from pathlib import Path

from simulator.errors import NkiValidationError, Violation


def run(stage, name, *outputs):
    print("stdout of", stage)
    print("stderr of", stage, file=sys.stderr)
    logging.getLogger(stage).info("logging of %s", stage)
    fail = Path("fail", f"{stage}-{name}")
    if fail.exists() and fail.read_text() == "violation":
        violation = Violation("SBUF-1", "too large", "Tile it.", "kernels/silu.py", 7)
        raise NkiValidationError([violation])
    if fail.exists():
        raise ValueError("a stub was told to fail")
    for output in outputs:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"stage": stage, "configuration": name}))
'''

STAGES = {
    "model/download.py": """
def download(config, output):
    run("download", "model", output)
""",
    "model/compile.py": """
import model.ops
def compile_configuration(config, name, checkpoint, output):
    run("compile", name, output)
""",
    "model/ops.py": """
import kernels.reference
""",
    "model/trace.py": """
def trace(config, name, output):
    run("trace", name, output, output.parent / "decode_step.json.gz")
""",
    "model/generate.py": """
def generate(config, name, manifest, checkpoint, output):
    run("generate", name, output)
""",
    "evaluation/latency.py": """
def latency(config, name, manifest, baseline_manifest, checkpoint, output):
    run("latency", name, output)
""",
    "evaluation/reference.py": """
def reference(config, checkpoint, output):
    run("reference", "model", output)
""",
    "evaluation/accuracy.py": """
def accuracy(config, name, manifest, checkpoint, reference, output, error_map, cache):
    run("accuracy", name, output, error_map)
""",
    "evaluation/tracking.py": """
def initialise(config, output):
    run("track_init", "store", output)
def track(config, name, results, output):
    run("track", name, output)
""",
    "evaluation/report.py": """
def report(config, results, summary, html):
    run("report", "all", summary, html)
    (html.parent / "plots").mkdir(exist_ok=True)
    for name in (
        "latency_measured", "runs_measured", "quality", "macs_in_nki", "ops_predicted",
        "cut_points", "timeline_predicted",
    ):
        (html.parent / f"plots/{name}.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    from evaluation.records import ConfigurationSummary, Summary
    each = ConfigurationSummary(
        verdict="pass", reasons=[], device="simulator", metrics={}, kernel_calls={},
        mlflow_run_id=None,
    )
    Summary(
        model="tiny", evaluation="e", configurations=dict.fromkeys(config.configurations, each)
    ).write(summary)
if __name__ == "__main__":
    from pathlib import Path
    Path("results/report.html").write_text("partial: " + " ".join(sys.argv[1:]))
""",
}

KERNELS = {
    "kernels/reference.py": "",
    "kernels/tiling.py": "",
    "kernels/rmsnorm.py": """
from kernels import tiling
import nki
def nki_rmsnorm_kernel(): pass
""",
    "kernels/qk_rmsnorm.py": """
from .tiling import something
def nki_qk_rmsnorm_kernel(): pass
""",
    "kernels/add_rmsnorm.py": "def nki_fused_add_rmsnorm_kernel(): pass\n",
    "kernels/softmax.py": "def nki_softmax_kernel(): pass\n",
    "kernels/silu.py": "def nki_silu_kernel(): pass\n",
}


ALL = """
description: All the stubs.
ops:
  rmsnorm: {kernel: nki_rmsnorm_kernel}
  qk_norm: {kernel: nki_qk_rmsnorm_kernel}
  softmax: {kernel: nki_softmax_kernel}
  silu: {kernel: nki_silu_kernel}
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of this checkout in a temporary folder."""

    root: Path
    warm: WarmSnakemake

    def snakemake(self, *arguments: str, **environment: str) -> CompletedProcess[str]:
        """Run snakemake there; its output is in `stdout`, both streams together."""
        return self.warm.run(
            self.root, ["--cores", "1", "--nocolor", *arguments], self._environment(**environment)
        )

    def command(self, *arguments: str) -> CompletedProcess[str]:
        """The same by a person's command, which imports everything anew."""
        return run(
            [sys.executable, "-m", "snakemake", "--cores", "1", "--nocolor", *arguments],
            cwd=self.root,
            env=self._environment(),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
            timeout=120,
        )

    @staticmethod
    def _environment(**changes: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
        return {**inherited, "OMP_NUM_THREADS": "1", **changes}

    def jobs(self, *arguments: str, **environment: str) -> set[str]:
        """What a dry run would run: the jobs' messages up to a colon."""
        done = self.snakemake("-n", *arguments, **environment)
        assert done.returncode == 0, done.stdout
        return set(re.findall(r"^Job \d+: ([^:\n]+)", done.stdout, re.MULTILINE))

    def write(self, name: str, text: str) -> None:
        """Write a file, making its folder."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def append(self, name: str, text: str) -> None:
        """Add to a file."""
        with (self.root / name).open("a") as file:
            file.write(text)

    def copy(self, target: Path) -> Checkout:
        """Another copy, times of files kept."""
        shutil.copytree(self.root, target, symlinks=True)
        return Checkout(target, self.warm)


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmSnakemake]:
    process = WarmSnakemake()
    yield process
    process.close()


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory, warm: WarmSnakemake) -> Checkout:
    """A checkout with stubs, never run; copy it before changing it."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout") / "fresh", warm)
    skip = shutil.ignore_patterns("__pycache__", "checkpoints", "training", "data")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, checkout.root / folder, ignore=skip)
    shutil.copy(ROOT / "Snakefile", checkout.root)
    checkout.write("stub.py", STUB)
    for name, text in STAGES.items():
        checkout.write(name, f"import sys\nfrom stub import run\n{text}")
    checkout.write("config/kernels/all.yaml", ALL)
    for name, text in KERNELS.items():
        checkout.write(name, text)
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["configurations"] = list(CONFIGURATIONS)
    checkout.write("config/config.yaml", yaml.safe_dump(config))
    source = config["models"][config["model"]]
    checkout.write(f"{source['source']}/model.safetensors", "weights")
    checkout.write(source["manifest"], "{}")
    checkout.write(config["generate"]["prompts"], "[]")
    checkout.write(config["accuracy"]["texts"], "{}")
    checkout.write(f"{config['accuracy']['tasks']}/arithmetic.yaml", "task: arithmetic")
    return checkout


@pytest.fixture(scope="session")
def finished(fresh: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose evaluation is complete; copy it before changing it."""
    checkout = fresh.copy(tmp_path_factory.mktemp("finished") / "checkout")
    done = checkout.command("evaluate_all")
    assert done.returncode == 0, done.stdout
    return checkout
