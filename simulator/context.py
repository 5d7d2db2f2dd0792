"""What is being specialised now, and which `nki` versions its features leave."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from simulator.errors import refuse

if TYPE_CHECKING:
    from simulator.program import Program

VERSIONS = ("0.3", "0.4", "0.5", "0.6", "0.7")
"""The versions of the `nki` namespace that are simulated: SDK 2.29 to 2.33."""

CURRENT: ContextVar[Program | None] = ContextVar("program", default=None)


def current_program() -> Program:
    """The Program being built.

    Raises:
        NkiValidationError: no kernel is being specialised.
    """
    program = CURRENT.get()
    if program is None:
        raise refuse(
            "outside-kernel",
            "nki functions work only inside a kernel",
            "Call them from a function decorated with @nki.jit",
        )
    return program


def note_lax(rule: str, message: str, mend: str, **details: str) -> None:
    """Note, at the kernel's current line, what only older compilers or AWS's simulator take.

    Raises:
        NkiValidationError: no kernel is being specialised, so that nobody would see the note.
    """
    program = CURRENT.get()
    if program is None:
        raise refuse(rule, message, mend, **details)
    program.lax += refuse(rule, message, mend, **details).violations


def feature(name: str, since: str = VERSIONS[0], until: str = VERSIONS[-1]) -> None:
    """Note that the kernel uses something only versions `since` to `until` have."""
    program = CURRENT.get()
    if program is not None and name not in program.features:
        program.use_feature(name, since, until)
