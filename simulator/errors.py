"""What is wrong with a kernel: one exception type, any number of violations."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

_HERE = str(Path(__file__).parent)


@dataclass(frozen=True)
class Violation:
    """One broken rule at one place of a kernel."""

    rule: str
    message: str
    mend: str
    file: str = ""
    line: int = 0
    instruction: str = ""
    operand: str = ""
    limit: str = ""
    value: str = ""

    def as_dict(self) -> dict[str, str | int]:
        """The violation as JSON-able values."""
        return asdict(self)

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else "kernel"
        what = ".".join(part for part in (self.instruction, self.operand) if part)
        numbers = f" (limit {self.limit}, found {self.value})" if self.limit else ""
        return (
            f"{where}: [{self.rule}] {what}{': ' if what else ''}{self.message}{numbers}. "
            f"{self.mend}"
        )


class NkiValidationError(AssertionError):
    """A kernel breaks rules of the hardware or of the compiler.

    It is an AssertionError because the SDK's own checks are. `violations` holds every
    independent one that was found.
    """

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = violations
        count = len(violations)
        head = f"{count} rules are broken:\n" if count > 1 else ""
        super().__init__(head + "\n".join(map(str, violations)))


class NkiLaxWarning(UserWarning):
    """A kernel runs on the simulator that no compiler of NKI 0.3 to 0.7 would take."""


def kernel_location() -> tuple[str, int]:
    """File and line of the kernel's code that called into the simulator."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "", 0
    return frame.f_code.co_filename, frame.f_lineno


def refuse(rule: str, message: str, mend: str, **details: str) -> NkiValidationError:
    """An error for a single violation at the kernel's current line."""
    file, line = kernel_location()
    return NkiValidationError([Violation(rule, message, mend, file, line, **details)])
