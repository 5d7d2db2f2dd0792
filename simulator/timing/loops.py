"""Dynamic loops, unrolled as often as they run: the trip count must be known or given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from simulator.instructions.control import LOOPS

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

_ENDS = frozenset(LOOPS.values())
Trips = int | Mapping[Any, int]


def unroll(program: Program, trips: Trips | None, assumptions: list[str]) -> list[int]:
    """The positions of the instructions in the order they run.

    Args:
        program: of which core's loops may hold each other.
        trips: for loops whose bounds are registers: one count for all, or a count by the
            loop's line number or "FILE:LINE".
        assumptions: filled with a sentence for each count that was given.

    Raises:
        ValueError: a trip count is not known, or not given for that loop.
    """
    instructions = program.instructions
    counts = _counts(instructions, trips, assumptions)
    return list(_play(instructions, 0, len(instructions), counts))


def _counts(
    instructions: list[Instruction], trips: Trips | None, assumptions: list[str]
) -> dict[int, int]:
    """Position of each loop's begin -> how often its body runs."""
    found: dict[int, int] = {}
    for position, instruction in enumerate(instructions):
        if instruction.spec.name not in LOOPS:
            continue
        known = _known(instruction)
        if known is None:
            known = _given(instruction, trips)
            text = (
                f"dynamic loop at {instruction.file}:{instruction.line} is assumed to run "
                f"{known} times"
            )
            if text not in assumptions:
                assumptions.append(text)
        found[position] = known
    return found


def _known(instruction: Instruction) -> int | None:
    if instruction.spec.name != "loop":
        return None
    start, stop, step = instruction["start"], instruction["stop"], instruction["step"]
    if isinstance(start, int) and isinstance(stop, int):
        return len(range(start, stop, step))
    return None


def _given(instruction: Instruction, trips: Trips | None) -> int:
    where = f"{instruction.file}:{instruction.line}"
    if isinstance(trips, Mapping):
        for key in (instruction.line, where):
            if key in trips:
                return _checked(trips[key], where)
    elif trips is not None:
        return _checked(trips, where)
    raise ValueError(
        f"{where}: the trip count of this loop is known on the device only; give it, or a "
        f"bound, as trips=COUNT or trips={{{instruction.line}: COUNT}}"
    )


def _checked(count: Any, where: str) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"{where}: a trip count must be an integer of at least 0, got {count!r}")
    return count


def _play(
    instructions: list[Instruction], begin: int, end: int, counts: dict[int, int]
) -> Iterator[int]:
    """Walk through [begin, end), repeating loop bodies; a loop's begin takes no time."""
    position = begin
    while position < end:
        if position not in counts:
            yield position
            position += 1
            continue
        head = position
        both = _second_follows(instructions, position)
        body = position + (2 if both else 1)
        close = _close(instructions, position)
        for _ in range(counts[head]):
            yield from _play(instructions, body, close, counts)
            yield close
            if both:
                yield close + 1
        position = close + (2 if both else 1)


def _second_follows(instructions: list[Instruction], position: int) -> bool:
    """Whether the loop is one of both cores: its twin is the next instruction."""
    instruction = instructions[position]
    return (
        instruction.peer is not None
        and position + 1 < len(instructions)
        and instructions[position + 1] is instruction.peer
    )


def _close(instructions: list[Instruction], begin: int) -> int:
    """The position of the first instruction that ends the loop at `begin`."""
    depth = 0
    for position in range(begin, len(instructions)):
        name = instructions[position].spec.name
        depth += (name in LOOPS) - (name in _ENDS)
        if name in _ENDS and (depth == 0 or (depth == 1 and _second_follows(instructions, begin))):
            return position
    raise AssertionError("a loop without an end")
