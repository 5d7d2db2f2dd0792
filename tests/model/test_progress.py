"""Lines about how far a step is: seldom, whole, and none without a terminal to write to."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from model.progress import progress, show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    yield now
    show_progress(None)


def walk(clock: list[float], seconds: float) -> list[int]:
    done = []
    for item in progress(range(10), "prompts"):
        clock[0] += seconds
        done.append(item)
    return done


def test_a_terminal_is_told_every_few_seconds(clock: list[float]) -> None:
    terminal = Terminal()
    show_progress(terminal, "generate all")
    assert walk(clock, 3.0) == list(range(10))
    lines = terminal.getvalue().splitlines()
    assert lines[0] == "generate all: 2 of 10 prompts, 6 s, about 24 s left"
    assert len(lines) == 4


def test_a_file_is_told_seldom(clock: list[float]) -> None:
    file = io.StringIO()
    show_progress(file, "generate all")
    walk(clock, 3.0)
    assert file.getvalue() == ""
    walk(clock, 30.0)
    assert len(file.getvalue().splitlines()) == 4


def test_nobody_is_told_when_nobody_waits(clock: list[float]) -> None:
    assert walk(clock, 100.0) == list(range(10))
