"""`--sdk`: the same tests by AWS's SDK, and never silently by this repository's simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import real_sdk

ROOT = Path(__file__).parents[2]

FAKE = '''
"""A stand-in for AWS's nki: kernels compute nothing; what `simulate` was given is written down."""
def jit(function):
    return Kernel(function.__name__, 1)
class Kernel:
    def __init__(self, name, cores):
        self.name, self.cores = name, cores
    def __getitem__(self, cores):
        return Kernel(self.name, cores)
def simulate(kernel):
    def run(*arguments, **parameters):
        print("SIMULATED", kernel.name, kernel.cores, list(arguments[0].shape))
        return arguments[0]
    return run
class Name(str):
    def __getattr__(self, name):
        return Name(name)
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Name(name)
'''


def run_pytest(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "NKI_SIMULATOR"}
    environment["PYTHONPATH"] = f"{path}:{ROOT}" if path else str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("mode", real_sdk.MODES)
def test_without_the_sdk_nothing_runs(mode: str) -> None:
    result = run_pytest("tests/kernels/test_attention_kernels.py", f"--sdk={mode}")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--sdk={mode}: the AWS Neuron SDK is not installed here" in result.stderr
    assert "passed" not in result.stdout


def test_with_the_sdk_its_simulator_gets_every_call(tmp_path: Path) -> None:
    """A kernel that computes nothing must fail the unchanged test."""
    (tmp_path / "nki").mkdir()
    (tmp_path / "nki" / "__init__.py").write_text(FAKE)
    for module in ("language", "isa"):
        (tmp_path / "nki" / f"{module}.py").write_text("from nki import __getattr__\n")
    result = run_pytest(
        "tests/kernels/test_attention_kernels.py", "--sdk=simulator", "-x",
        "-k", "test_flash_attention and 129 and float32 and None-2", path=tmp_path,
    )  # fmt: skip
    assert "SIMULATED nki_flash_attention_kernel 2 [1, 129, 2, 16]" in result.stdout
    assert result.returncode == pytest.ExitCode.TESTS_FAILED


def test_a_launcher_has_no_programs() -> None:
    with pytest.raises(pytest.skip.Exception, match="only this repository's simulator"):
        real_sdk.Launcher(object(), "simulator", object()).specialise()
