from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.records import StageError
from model.records import RecordError
from simulator.errors import NkiValidationError, Violation
from workflow.stage import failures, job, stage

FILE = Path("errors/tiny/all/compile.json")


def test_success_removes_the_error_of_an_earlier_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), stage(tmp_path, "tiny", ["all"], "compile"):
        raise RecordError("no such file")
    assert StageError.read(tmp_path / FILE).message == "no such file"
    with stage(tmp_path, "tiny", ["all"], "compile"):
        pass
    assert not (tmp_path / FILE).exists()


def test_a_shared_stage_leaves_one_error_per_configuration(tmp_path: Path) -> None:
    with (
        pytest.raises(SystemExit, match="download failed for every configuration"),
        stage(tmp_path, "tiny", ["baseline", "all"], "download"),
    ):
        raise RecordError("wrong checksum")
    for name in ("baseline", "all"):
        error = StageError.read(tmp_path / f"errors/tiny/{name}/download.json")
        assert error.configuration == name


def test_violations_become_details(tmp_path: Path) -> None:
    violation = Violation("PSUM-2", "bank overrun", "Split it.", "k.py", 3, limit="2048")
    with pytest.raises(SystemExit), stage(tmp_path, "tiny", ["all"], "compile"):
        raise NkiValidationError([violation])
    (details,) = StageError.read(tmp_path / FILE).details
    assert (details["rule"], details["line"], details["limit"]) == ("PSUM-2", 3, "2048")


def test_only_a_foreign_error_gets_its_type_and_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="failed for all: no such file"):  # noqa: SIM117
        with stage(tmp_path, "tiny", ["all"], "compile"):
            raise RecordError("no such file")
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match="ZeroDivisionError: division by zero"):  # noqa: SIM117
        with stage(tmp_path, "tiny", ["all"], "compile"):
            _ = 1 / 0
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_not_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), stage(tmp_path, "tiny", ["all"], "compile"):
        raise KeyboardInterrupt
    assert not (tmp_path / FILE).exists()


def test_failures_are_listed_for_a_person(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), stage(tmp_path, "tiny", ["all"], "compile"):
        raise RecordError("first line\nsecond line")
    assert failures(tmp_path, "tiny", ["baseline", "all"]) == ["all: compile: first line"]


SCRIPT = """
import logging, os, sys, yaml
from pathlib import Path
from workflow.stage import job
config = yaml.safe_load(Path({config!r}).read_text())
with job("compile", config, "job.log", "all"):
    print("printed")
    os.write(2, b"from C\\n")
    logging.getLogger("x").info("logged")
    raise ValueError("broken")
"""


def test_a_jobs_output_goes_to_its_log_and_the_error_to_the_terminal(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(config=str(root / "config/config.yaml"))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "compile failed for all: ValueError: broken\n(log: job.log)\n"
    log = (tmp_path / "job.log").read_text()
    for line in ("printed", "from C", "x: logged", "Traceback", "ValueError: broken"):
        assert line in log
    assert (tmp_path / "results/errors/tiny-qwen3-moe/all/compile.json").exists()


def test_output_comes_back_after_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(SystemExit), job("compile", {"wrong": 1}, "job.log", "all"):
        pass
    print("after")
    captured = capfd.readouterr()
    assert captured.out == "after\n"
    assert "unknown key" in captured.err
