"""Two cores in eager mode: two threads that take turns, so that runs repeat exactly.

Core 0 runs in the caller's thread up to its first meeting (`lnc.meets`), then core 1 up to its
own; the meeting takes place, and so on. A core whose partner does not come gets an error.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from simulator import lnc

if TYPE_CHECKING:
    from simulator.program import Instruction, Program


class _Abandoned(BaseException):
    """The other core has failed; its error is the one to show."""


class Turns:
    """Whose turn it is, and who waits at which instruction."""

    def __init__(self, program: Program) -> None:
        """For a Program that is executed as it is traced."""
        self._program = program
        self._changed = threading.Condition()
        self._turn = 0
        self._waiting: list[Instruction | None] = [None, None]
        self._ended = [False, False]
        self._error: BaseException | None = None
        self._loops: list[list[int]] = [[], []]
        self._no_reorder = [False, False]

    def run(self, trace: Callable[[], None]) -> None:
        """Trace the kernel on both cores.

        Raises:
            NkiValidationError: what either core raises.
        """
        context = contextvars.copy_context()
        other = threading.Thread(target=context.run, args=(self._core, 1, trace), daemon=True)
        other.start()
        self._core(0, trace)
        other.join()
        self._program.core = 0
        if self._error is not None:
            raise self._error

    def _core(self, core: int, trace: Callable[[], None]) -> None:
        """One core, in its thread."""
        try:
            self._wait(core)
            trace()
        except _Abandoned:
            pass
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._ended[core] = True
            self._pass_on(core, 1 - core)

    def meet(self, instruction: Instruction, execute: Callable[[Instruction], None]) -> None:
        """Wait for the other core, then execute both cores' instructions."""
        program, core = self._program, instruction.core
        program.instructions.pop()  # it comes when both are there
        self._waiting[core] = instruction
        other = self._waiting[1 - core]
        if other is None:
            if self._ended[1 - core]:
                raise lnc.alone(*self._in_order(instruction, None))
            self._pass_on(core, 1 - core)
            self._wait(core)
            if self._waiting[core] is not None:  # nobody came
                raise lnc.alone(*self._in_order(instruction, None))
            return
        one, two = self._in_order(instruction, other)
        assert one is not None
        assert two is not None
        lnc.pair(one, two)
        program.instructions += [one, two]
        self._waiting = [None, None]
        for each in (one, two):
            execute(each)
        if core == 1:  # core 0 always goes first
            self._pass_on(core, 0)
            self._wait(core)

    @staticmethod
    def _in_order(
        mine: Instruction, other: Instruction | None
    ) -> tuple[Instruction | None, Instruction | None]:
        return (other, mine) if mine.core else (mine, other)

    def _pass_on(self, core: int, following: int) -> None:
        """Give the turn to the other core, if it is still there."""
        program = self._program
        with self._changed:
            self._loops[core], self._no_reorder[core] = program.loops, program.no_reorder
            self._turn = core if self._ended[following] else following
            self._changed.notify_all()

    def _wait(self, core: int) -> None:
        """Wait for the turn, then take up where this core was."""
        program = self._program
        with self._changed:
            self._changed.wait_for(lambda: self._turn == core)
            if self._error is not None:
                raise _Abandoned
            program.core = core
            program.loops, program.no_reorder = self._loops[core], self._no_reorder[core]
