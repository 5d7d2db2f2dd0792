"""`predict`: how long a Program takes on a target, and why."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simulator.timing.decode import decode
from simulator.timing.machine import Machine, load_machine
from simulator.timing.play import play
from simulator.timing.timeline import Timeline

if TYPE_CHECKING:
    from simulator.program import Program


def predict(
    program: Program,
    target: str | Machine | None = None,
    trips: int | Mapping[Any, int] | None = None,
) -> Timeline:
    """Play a Program on the engines of a target.

    Args:
        program: of any kernel; need not have been specialised for `target`.
        target: `trn1`, `trn2`, `trn3` or a Machine; the Program's own target if None.
        trips: how often dynamic loops run whose bounds are registers: one count (or bound) for
            all, or a count by line number or "FILE:LINE".

    Returns:
        The Timeline. Every time in it is predicted, none measured.

    Raises:
        ValueError: the target is unknown, a trip count is missing, or the Program is empty.
    """
    if isinstance(target, Machine):
        machine = target
    else:
        machine = load_machine(program.target.name if target is None else target)
    if not program.instructions:
        raise ValueError(
            f"{program.name} has no instructions: there is nothing to time. Does the kernel call "
            "any nisa function at these shapes?"
        )
    with _no_collection():
        decoded = decode(program, machine, trips)
        return Timeline(program, machine, decoded, play(decoded, machine, program.lnc))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the cyclic garbage collector: it would walk through the whole Program again and
    again, and nothing made here is cyclic.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
