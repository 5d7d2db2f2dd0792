"""What a result was made from: evaluation, commit, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from model.configuration import Config
from model.fingerprint import fingerprint
from model.records import CheckpointRecord

PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "mlflow", "snakemake", "nki")


NOT_EVALUATION = {"configurations", "tracking", "models", "champion", "candidate", "regression"}
"""Settings that say which results are wanted and what becomes of them, not how they come about."""


@dataclass(frozen=True)
class Commit:
    """The checkout's git commit."""

    sha: str
    """`unknown` outside a git checkout."""
    dirty: bool
    """True if a file differs from the commit, or is in none and not ignored."""


def evaluation_fingerprint(config: Config, results: Path) -> str:
    """The fingerprint of what all configurations share; runs of equal evaluation compare.

    It covers the checkpoint, prompts, texts and task files by content, the settings of
    generation and accuracy, device, dtype and buckets, and the environment's lock files.
    Which configurations are chosen and where they are tracked is not part of it.
    """
    checkpoint = results / "models" / config.model / "checkpoint.json"
    settings = config.model_dump(mode="json", exclude=NOT_EVALUATION)
    return fingerprint(
        CheckpointRecord.read(checkpoint).fingerprint if checkpoint.exists() else None,
        settings,
        _contents(Path(config.generate.prompts)),
        _contents(Path(config.accuracy.texts)),
        _contents(Path(config.accuracy.tasks)),
        _contents(Path("envs/cpu" if config.device == "simulator" else "envs/trn2"), "*.txt"),
    )


def _contents(path: Path, pattern: str = "*") -> dict[str, str]:
    """File (relative to `path`) -> fingerprint of its content; empty if there is none."""
    if path.is_file():
        return {"": fingerprint(path)}
    return {
        file.relative_to(path).as_posix(): fingerprint(file)
        for file in sorted(path.rglob(pattern))
        if file.is_file() and "__pycache__" not in file.parts
    }


def git_commit() -> Commit:
    """The commit of the working directory's checkout."""
    sha = _git("rev-parse", "HEAD")
    if not sha:
        return Commit("unknown", dirty=False)
    return Commit(sha, dirty=bool(_git("status", "--porcelain")))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Python's and the packages' versions, as far as they are installed."""
    found = {"python": platform.python_version(), "platform": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The machine's processor, e.g. `Intel Xeon Platinum 8488C, 2 CPUs`; no name of a host."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:  # not Linux
        pass
    return f"{name}, {os.cpu_count()} CPUs"
