"""Answers to lm-eval's requests that an earlier run of the same sources gave, kept on disk.

One file of JSON lines per key, `results/cache/lm_eval/KEY.jsonl`; the key is a fingerprint of all
that an answer depends on beside the request itself. A line is one batch: its answers, the kernel
calls that made them, and a checksum. It is appended in one write, so that an interrupted run
loses the batch it was in and no other. The kernel calls are kept with the answers so that the gate
on them judges a cached run by the calls that were really made: a kernel that was not called then is
still missing now.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache as once
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from model.fingerprint import file_sha256, fingerprint
from model.records import Graph, Part

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
PACKAGES = ("lm_eval", "ml_dtypes", "numpy", "tokenizers", "torch", "transformers")
KEPT = 64
"""Files that are kept; the least recently used go first. One has about 100 bytes per request."""

Calls = dict[str, dict[Graph, int]]
Score = tuple[float, bool]
Tokens = tuple[int, ...]


class Line(Part):
    """One batch of answers."""

    scores: dict[str, Score]
    """Request -> log-likelihood in nats, and whether it is greedy."""
    tokens: dict[str, Tokens]
    """Request -> the tokens that were generated."""
    calls: Calls
    """The kernel calls that this batch took."""
    checksum: str

    def expected_checksum(self) -> str:
        """Of the other fields."""
        return fingerprint(self.model_dump(mode="json", exclude={"checksum"}))


@once
def sources() -> str:
    """A fingerprint of the code and the packages between a request and its answer."""
    folders = ("kernels", "model", "nki", "simulator")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    files += [ROOT / "evaluation" / name for name in ("lm_eval_adapter.py", "request_cache.py")]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return fingerprint(
        {str(file.relative_to(ROOT)): file_sha256(file) for file in files},
        versions,
        [platform.python_version(), platform.machine()],
    )


def request_key(kind: str, *parts: object) -> str:
    """What a request is kept under."""
    return fingerprint(kind, *parts)


class RequestCache:
    """The answers of one key; with no folder it keeps nothing."""

    def __init__(self, folder: Path | None, key: str) -> None:
        """Read what is there; from the first line that is not whole on, it is dropped.

        Args:
            folder: Where the files are.
            key: A fingerprint of model, kernels, settings and code (`sources`).
        """
        self.path = None if folder is None else folder / f"{key}.jsonl"
        self._lines: list[Line] = []
        self._line_of: dict[str, int] = {}
        self._used: set[int] = set()
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked() as file:
                self._read(file)
            _prune(self.path.parent, KEPT)

    def score(self, key: str) -> Score | None:
        """A score that an earlier run gave."""
        line = self._find(key)
        return None if line is None else line.scores.get(key)

    def tokens(self, key: str) -> Tokens | None:
        """Tokens that an earlier run generated."""
        line = self._find(key)
        return None if line is None else line.tokens.get(key)

    def kernel_calls(self) -> Calls:
        """The calls behind all answers that were taken from here."""
        total: Calls = {}
        for index in self._used:
            _add(total, self._lines[index].calls)
        return total

    def keep(self, scores: Mapping[str, Score], tokens: Mapping[str, Tokens], calls: Calls) -> None:
        """Append one batch; a score that is not finite is an error to look into, not to keep."""
        if self.path is None or not all(math.isfinite(value) for value, _ in scores.values()):
            return
        line = Line(scores=dict(scores), tokens=dict(tokens), calls=calls, checksum="")
        line = line.model_copy(update={"checksum": line.expected_checksum()})
        with self._locked() as file:
            file.write(json.dumps(line.model_dump(mode="json")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _find(self, key: str) -> Line | None:
        index = self._line_of.get(key)
        if index is None:
            return None
        self._used.add(index)
        return self._lines[index]

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        whole = 0
        for text in file:
            line = _parse(text)
            if line is None:
                log.warning("%s: dropped from byte %d on: not a whole line", self.path, whole)
                file.truncate(whole)
                break
            whole += len(text)
            for key in (*line.scores, *line.tokens):
                self._line_of.setdefault(key, len(self._lines))
            self._lines.append(line)

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        assert self.path is not None
        with self.path.open("a+b", buffering=1 << 20) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another evaluation may append to the same file
            os.utime(file.fileno())
            yield file


def difference(after: Mapping[str, Mapping[Graph, int]], before: Calls) -> Calls:
    """Kernel -> graph -> calls made between two readings; a kernel without any has zeros."""
    return {
        kernel: {
            graph: number - before.get(kernel, {}).get(graph, 0)
            for graph, number in by_graph.items()
        }
        for kernel, by_graph in after.items()
    }


def _parse(text: bytes) -> Line | None:
    """None unless the line is whole, of this form, and has its checksum."""
    if not text.endswith(b"\n"):
        return None
    try:
        line = Line.model_validate_json(text)
    except ValidationError:
        return None
    return line if line.checksum == line.expected_checksum() else None


def _add(total: Calls, calls: Mapping[str, Mapping[Graph, int]]) -> None:
    for kernel, by_graph in calls.items():
        counts = total.setdefault(kernel, {})
        for graph, number in by_graph.items():
            counts[graph] = counts.get(graph, 0) + number


def _prune(folder: Path, kept: int) -> None:
    files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for file in files[kept:]:
        file.unlink(missing_ok=True)
