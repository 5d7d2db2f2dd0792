"""What goes wrong on the command line, and where in the user's own code."""

from __future__ import annotations

import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import NkiValidationError, Violation

GOOD, BROKEN, BAD_INPUT = 0, 1, 2
"""Exit codes: the kernel is good, the kernel breaks rules, the command cannot be followed."""

_SIMULATOR = str(Path(__file__).parents[1])
_LIBRARIES = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], "<frozen ")


@dataclass
class BadInput(Exception):
    """The command cannot be followed: what is wrong, how to mend it, and where."""

    message: str
    mend: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file else ""
        return f"{where}{self.message}. {self.mend}"


def user_line(error: BaseException) -> tuple[str, int]:
    """File and line of the user's own code where an exception passed last."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno or 0
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((_SIMULATOR, *_LIBRARIES))]
    return (own[-1].filename, own[-1].lineno or 0) if own else ("", 0)


def _described(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def import_failure(what: str, error: BaseException) -> BadInput:
    """Loading a file failed in the file itself."""
    mend = "Mend the file; `python FILE` shows the whole traceback"
    if "attempted relative import" in str(error):
        mend = "Name it as a dotted module, in the folder that holds its package"
    return BadInput(f"{what} cannot be imported: {_described(error)}", mend, *user_line(error))


def violations_of(error: Exception) -> list[Violation]:
    """An exception of a kernel as broken rules: its own, or the Python error at its line."""
    if isinstance(error, NkiValidationError):
        return [_without_launcher(violation) for violation in error.violations]
    file, line = user_line(error)
    mend = "The kernel's own Python failed: mend it at this line"
    if not file:
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line = last.filename, last.lineno or 0
        mend = "This is a defect of the simulator: please report it with the kernel"
    return [Violation("python-error", _described(error), mend, file, line)]


def _without_launcher(violation: Violation) -> Violation:
    """What is wrong with a launch has no line in the kernel."""
    if Path(violation.file).is_file():
        return violation
    return Violation(**{**violation.as_dict(), "file": "", "line": 0})  # type: ignore[arg-type]
