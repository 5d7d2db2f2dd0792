"""How far a long step is, for who waits at the terminal.

A stage's output goes to its log; these lines go to the terminal, whole and seldom, so that two
jobs at once do not write over each other and a log file of a run does not fill up.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TextIO, TypeVar

TERMINAL_SECONDS = 5.0
ELSEWHERE_SECONDS = 60.0

T = TypeVar("T")


@dataclass
class _Shown:
    """Where lines go; nowhere until a job says so."""

    stream: TextIO | None = None
    job: str = ""


_shown = _Shown()


def show_progress(stream: TextIO | None, job: str = "") -> None:
    """From now on, say how far `job` is on `stream`; None for silence."""
    _shown.stream, _shown.job = stream, job


def progress(items: Collection[T], what: str) -> Iterator[T]:
    """Yield the items; now and then a line says how many are done.

    Args:
        items: What is worked through.
        what: Their name, e.g. `prompts`.
    """
    started = said = time.monotonic()
    for number, item in enumerate(items):
        now, stream = time.monotonic(), _shown.stream
        if stream is not None and number:
            every = TERMINAL_SECONDS if stream.isatty() else ELSEWHERE_SECONDS
            if now - said >= every:
                said = now
                left = (now - started) / number * (len(items) - number)
                print(
                    f"{_shown.job}: {number} of {len(items)} {what}, {now - started:.0f} s, "
                    f"about {left:.0f} s left",
                    file=stream,
                    flush=True,
                )
        yield item
