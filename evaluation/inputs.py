"""Reading the evaluation's own data files, and the error for everything it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class EvaluationError(Exception):
    """The evaluation cannot go on; the message says what is wrong, where and how to mend it."""


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; empty lines are skipped.

    Raises:
        EvaluationError: the file is missing or empty, or a line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise EvaluationError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise EvaluationError(f"{path}:{number}: must be a JSON object, found {line[:60]!r}")
        rows.append(row)
    if not rows:
        raise EvaluationError(f"{path}: holds no lines")
    return rows


def read_texts(path: Path, count: int) -> list[str]:
    """The `text` of the first `count` lines of a JSONL file.

    Raises:
        EvaluationError: see `read_jsonl`; or there are fewer texts, or one is no text.
    """
    rows = read_jsonl(path)
    if len(rows) < count:
        raise EvaluationError(
            f"{path}: holds {len(rows)} texts; accuracy.sequences asks for {count}"
        )
    texts = []
    for number, row in enumerate(rows[:count], start=1):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise EvaluationError(
                f"{path}: entry {number}: needs `text`, a string that says something"
            )
        texts.append(text)
    return texts
