"""Where ranks meet: the exchange behind nki.collectives, between threads of one process.

A rank that does not come to a collective would hang the others on the chip; here it is an
error on each of them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import NkiValidationError, Violation

if TYPE_CHECKING:
    from simulator.program import Instruction

Array = np.ndarray[Any, Any]
Group = tuple[int, ...]
"""The ranks that exchange data, in the order of the replica group."""


@dataclass
class Meeting:
    """One exchange of a group: what each rank that has come brought."""

    brought: dict[int, list[Array]] = field(default_factory=dict)
    instructions: dict[int, Instruction] = field(default_factory=dict)
    complete: bool = False
    taken: int = 0
    """Ranks that have their values."""


class World:
    """All ranks of a launch, and what they wait for."""

    def __init__(self, size: int) -> None:
        """`size` ranks, all running."""
        self.size = size
        self._changed = threading.Condition()
        self._meetings: dict[tuple[Group, int], Meeting] = {}
        self._counts: dict[tuple[Group, int], int] = {}
        self._waiting: dict[int, Meeting] = {}
        self._ended: dict[int, str] = {}

    def exchange(
        self, rank: int, group: Group, instruction: Instruction, values: list[Array]
    ) -> list[list[Array]]:
        """Give `values`; wait for the group; returns what each of its ranks gave, in order.

        Raises:
            NkiValidationError: a rank of the group does not come, or comes to another collective.
        """
        with self._changed:
            number = self._counts.get((group, rank), 0)
            self._counts[group, rank] = number + 1
            meeting = self._meetings.setdefault((group, number), Meeting())
            meeting.brought[rank] = values
            meeting.instructions[rank] = instruction
            meeting.complete = len(meeting.brought) == len(group)
            self._waiting[rank] = meeting
            self._changed.notify_all()
            while not meeting.complete:
                self._check_partners(rank, group, meeting, instruction)
                self._changed.wait()
            self._waiting.pop(rank, None)
            meeting.taken += 1
            if meeting.taken == len(group):
                del self._meetings[group, number]
        self._check_same(rank, meeting)
        return [meeting.brought[member] for member in group]

    def end(self, rank: int, how: str) -> None:
        """A rank has run to its end, or into an error."""
        with self._changed:
            self._waiting.pop(rank, None)
            self._ended[rank] = how
            self._changed.notify_all()

    def _check_partners(
        self, rank: int, group: Group, meeting: Meeting, instruction: Instruction
    ) -> None:
        """Raise if the meeting cannot take place any more."""
        stuck = [m for m in self._waiting.values() if not m.complete]
        deadlock = len(stuck) + len(self._ended) == self.size
        for member in group:
            if member in meeting.brought:
                continue
            if member >= self.size:
                found = f"does not exist: the launch has {self.size} ranks"
            elif member in self._ended:
                found = self._ended[member]
            elif deadlock:
                other = self._waiting[member].instructions[member]
                found = f"waits at {other.spec.name} (line {other.line})"
            else:
                continue
            self._waiting.pop(rank, None)
            raise partner_error(instruction, f"rank {rank} waits for rank {member}, which {found}")

    def _check_same(self, rank: int, meeting: Meeting) -> None:
        mine = meeting.instructions[rank]
        for other in meeting.instructions.values():
            if other.spec is not mine.spec:
                raise partner_error(
                    mine, f"rank {rank} is at {mine.spec.name}, another rank at {other.spec.name}"
                )


class Ranks:
    """What a plan knows of its rank; `simulate_ranks` sets it."""

    def __init__(self) -> None:
        """A launch of its own: rank 0 and no others."""
        self.rank = 0
        self.world: World | None = None

    def group(self, lists: tuple[Group, ...], instruction: Instruction) -> Group:
        """The rank list that this rank belongs to."""
        for members in lists:
            if self.rank in members:
                return members
        raise partner_error(
            instruction, f"rank {self.rank} is in no rank list of the replica group {lists}"
        )

    def exchange(
        self, group: Group, instruction: Instruction, values: list[Array]
    ) -> list[list[Array]]:
        """See `World.exchange`; a group of one has nobody to wait for."""
        if group == (self.rank,):
            return [values]
        if self.world is None:
            raise partner_error(
                instruction, f"rank {self.rank} runs alone, and its group is {list(group)}"
            )
        return self.world.exchange(self.rank, group, instruction, values)


def partner_error(instruction: Instruction, message: str) -> NkiValidationError:
    """The error for a rank that is not there."""
    return NkiValidationError(
        [
            Violation(
                "collective-partner",
                message,
                "Every rank of a group must come to the same collectives in the same order; run "
                "several ranks with simulator.collectives.simulate_ranks",
                instruction.file,
                instruction.line,
                instruction.spec.name,
                limit="every rank of the group",
                value="a rank is missing",
            )
        ]
    )
