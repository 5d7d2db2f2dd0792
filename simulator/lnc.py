"""Two cores that run one kernel (LNC2): merging their instructions, and races between them.

Both cores' instructions become one list in which every meeting point (core_barrier, sendrecv)
comes after all that precedes it on either core. A meeting that the other core never comes to
would hang the chip; here it is an error. Source: nki_facts.md §4.2, §8 trap 24.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import NkiValidationError, Violation
from simulator.instructions.collectives import COLLECTIVES
from simulator.instructions.control import LOOPS
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

MEETINGS = ("core_barrier", "sendrecv")
_ENDS = frozenset(LOOPS.values())


def merge(first: list[Instruction], second: list[Instruction]) -> list[Instruction]:
    """The two cores' instructions as one list.

    Raises:
        NkiValidationError: one core waits for the other, which does not come.
    """
    merged: list[Instruction] = []
    positions = [0, 0]
    streams = (first, second)
    while True:
        heads: list[Instruction | None] = []
        taken: list[list[list[Instruction]]] = [[], []]
        for core in (0, 1):
            positions[core] = _advance(streams[core], positions[core], taken[core])
            at = positions[core]
            heads.append(streams[core][at] if at < len(streams[core]) else None)
        for turns in zip_longest(*taken, fillvalue=()):  # the cores run side by side
            for turn in turns:
                merged += turn
        one, other = heads
        if one is None and other is None:
            return merged
        if one is None or other is None:
            raise alone(one, other)
        pair(one, other)
        if one.spec.name in LOOPS:
            ends = [end_of(streams[core], positions[core]) for core in (0, 1)]
            bodies = [streams[c][positions[c] + 1 : ends[c]] for c in (0, 1)]
            last = [streams[c][ends[c]] for c in (0, 1)]
            last[0].peer, last[1].peer = last[1], last[0]
            merged += [one, other, *merge(bodies[0], bodies[1]), last[1], last[0]]
            positions = [ends[0] + 1, ends[1] + 1]
        else:
            merged += [one, other]
            positions = [positions[0] + 1, positions[1] + 1]


def pair(one: Instruction, other: Instruction) -> None:
    """Make the instructions of core 0 and core 1 each other's peers.

    Raises:
        NkiValidationError: they are no partners.
    """
    if one.spec.name != other.spec.name:
        raise alone(one, other)
    _check_meeting(one, other)
    one.peer, other.peer = other, one


def meets(instruction: Instruction) -> bool:
    """Whether both cores must come to an instruction together.

    A collective on HBM is one of the logical core; on SBUF each core has its own.
    """
    name = instruction.spec.name
    if name in COLLECTIVES:
        return not any(tensor.buffer.on_chip for _, tensor in instruction.writes())
    return name in MEETINGS


def _advance(stream: list[Instruction], position: int, taken: list[list[Instruction]]) -> int:
    """Take instructions up to the next meeting, or loop that holds one; a loop is taken whole."""
    while position < len(stream):
        if meets(stream[position]):
            return position
        end = position
        if stream[position].spec.name in LOOPS:
            end = end_of(stream, position)
            if any(meets(instruction) for instruction in stream[position:end]):
                return position
        taken.append(stream[position : end + 1])
        position = end + 1
    return position


def end_of(stream: list[Instruction], begin: int) -> int:
    """The position of the control instruction that ends the loop at `begin`."""
    depth = 0
    for position in range(begin, len(stream)):
        name = stream[position].spec.name
        depth += (name in LOOPS) - (name in _ENDS)
        if depth == 0:
            return position
    raise AssertionError("a loop without an end")


def alone(one: Instruction | None, other: Instruction | None) -> NkiValidationError:
    """The error for a core that waits for a partner that does not come."""
    waiting, missing = (one, other) if one is not None else (other, one)
    assert waiting is not None
    found = "ends" if missing is None else f"comes to {missing.spec.name} at line {missing.line}"
    return NkiValidationError(
        [
            Violation(
                "lnc-partner",
                f"core {waiting.core} waits at {waiting.spec.name} and the other core {found}",
                "Both cores must come to the same barriers and sendrecvs in the same order",
                waiting.file,
                waiting.line,
                waiting.spec.name,
                limit=f"{waiting.spec.name} on both cores",
                value="no partner" if missing is None else missing.spec.name,
            )
        ]
    )


def _check_meeting(one: Instruction, other: Instruction) -> None:
    """A sendrecv's two sides must agree on pipe, direction, shapes and dtypes."""
    if one.spec.name != "sendrecv":
        return
    both = (one, other)
    found: tuple[str, Any, Any] | None = None
    if one["pipe_id"] != other["pipe_id"]:
        found = "pipe_id", one["pipe_id"], other["pipe_id"]
    for receiver in both:
        sender = both[receiver["recv_from_rank"]]
        src, dst = sender["src"], receiver["dst"]
        if sender["send_to_rank"] != receiver.core:
            found = (
                "direction",
                f"core {receiver.core} receives from core {sender.core}",
                f"core {sender.core} sends to core {sender['send_to_rank']}",
            )
        elif src.dtype is not dst.dtype or (
            (src.shape[0], src.free_size) != (dst.shape[0], dst.free_size)
        ):
            found = "the tile sent and the tile received", repr(src), repr(dst)
    if found is not None:
        raise NkiValidationError(
            [
                Violation(
                    "lnc-partner",
                    f"the two sides of a sendrecv differ in {found[0]}",
                    "Give both cores the same pipe, and tiles of the same size and dtype",
                    other.file,
                    other.line,
                    "sendrecv",
                    limit=str(found[1]),
                    value=str(found[2]),
                )
            ]
        )


# --- races ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """A view that an instruction touches."""

    instruction: Instruction
    tensor: NkiTensor
    writes: bool
    span: tuple[int, int]
    """Its first byte and the byte after its last."""


Cores = tuple[list[Access], list[Access]]
REMEMBERED = 64
"""Accesses of each core to a tensor that are kept behind barriers that name another."""


def check_races(program: Program) -> None:
    """Shared HBM that one core writes and the other touches needs a core_barrier between."""
    races = _Races(program)
    races.scan(0, len(program.instructions))
    races.end_epoch([])


class _Races:
    """What each core touches between two meetings."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.now: dict[int, Cores] = {}
        """Storage -> accesses since the last barrier."""
        self.before: dict[int, Cores] = {}
        """Storage -> earlier accesses, since the last barrier that named it."""
        self.anywhere: set[tuple[int, int]] = set()
        """(storage, core) written at dynamic addresses since the last barrier."""
        self.reported: set[tuple[int, int]] = set()

    def scan(self, position: int, stop: int) -> None:
        """Take in instructions; the body of a loop with meetings twice: its end meets its start."""
        instructions = self.program.instructions
        while position < stop:
            instruction = instructions[position]
            if instruction.spec.name in LOOPS and instruction.peer is not None:
                end = end_of(instructions, position)
                if instruction.core == 0:
                    self.scan(position + 1, end)
                self.scan(position + 1, end)
                position = end + 1
                continue
            if instruction.spec.name == "core_barrier":
                self.end_epoch([instruction["data"]])
            elif instruction.peer is not None and instruction.spec.name in COLLECTIVES:
                # A rank's two cores wait for each other in it (public kernels rely on that).
                touched = instruction.reads() + instruction.writes()
                self.end_epoch([tensor for _, tensor in touched])
            elif instruction.engine != "control":
                self._note(instruction)
            position += 1

    def _note(self, instruction: Instruction) -> None:
        touched = [(tensor, False) for _, tensor in instruction.reads()]
        touched += [(tensor, True) for _, tensor in instruction.writes()]
        for tensor, writes in touched:
            if tensor.storage.core is not None or tensor.storage.role == "constant":
                continue
            if tensor.dynamic is not None:  # may be anywhere: gets the benefit of the doubt
                if writes:
                    self.anywhere.add((tensor.storage.index, instruction.core))
                continue
            cores = self.now.setdefault(tensor.storage.index, ([], []))
            cores[instruction.core].append(Access(instruction, tensor, writes, _span(tensor)))

    def end_epoch(self, named: list[Any]) -> None:
        """The cores meet at a barrier for the tensors `named`: report the races up to here."""
        for index, cores in self.now.items():
            for core in (0, 1):
                self._compare(cores[core], cores[1 - core], self._race)
            earlier = self.before.setdefault(index, ([], []))
            for core in (0, 1):
                self._compare(earlier[core], cores[1 - core], self._weak)
                self._compare(cores[core], earlier[1 - core], self._weak)
            for core in (0, 1):
                earlier[core].extend(cores[core])
                del earlier[core][:-REMEMBERED]
        self.now.clear()
        self.anywhere.clear()
        for tensor in named:
            if isinstance(tensor, NkiTensor):
                self.before.pop(tensor.storage.index, None)

    def _compare(
        self, some: list[Access], others: list[Access], report: Callable[[Access, Access], None]
    ) -> None:
        """Report accesses of one core that touch what the other core writes."""
        writes = _near([access for access in some if access.writes], others)
        others = _near(others, writes)
        if not writes or not others:
            return
        mask = _mask([access.tensor for access in writes])
        for other in others:
            if _touches(mask, other.tensor):
                first = (w for w in writes if overlap(w.tensor, other.tensor))
                report(other, next(first, writes[0]))

    def _race(self, access: Access, other: Access) -> None:
        # Both may write the same: nothing but the values tells, and public kernels do it.
        both_write = (access.writes or self._wrote(access)) and other.writes
        self._report(
            self.program.tolerate if both_write else self.program.report,
            "lnc-race",
            "with no core_barrier between",
            "Give each core its own part by nl.program_id(0), or put nisa.core_barrier between",
            access,
            other,
        )

    def _wrote(self, access: Access) -> bool:
        """Whether the core that reads wrote the same bytes, by then or in this instruction."""
        core = access.instruction.core
        storage = access.tensor.storage.index
        if (storage, core) in self.anywhere:
            return True
        mine: list[NkiTensor] = []
        passed = False
        for each in self.now[storage][core]:
            if passed and each.instruction is not access.instruction:
                break
            passed = passed or each is access
            if each.writes:
                mine.append(each.tensor)
        return bool(mine) and _covers(_mask(mine), access.tensor)

    def _weak(self, access: Access, other: Access) -> None:
        self._report(
            self.program.warn,
            "lnc-barrier-data",
            "and the core_barrier between names another tensor",
            f"Put nisa.core_barrier(data={access.tensor.name}, cores=(0, 1)) between",
            access,
            other,
        )

    def _report(
        self,
        report: Callable[..., None],
        rule: str,
        why: str,
        mend: str,
        access: Access,
        other: Access,
    ) -> None:
        instruction, second = access.instruction, other.instruction
        key = (instruction.line, second.line)
        if key in self.reported or key[::-1] in self.reported:
            return
        self.reported.add(key)
        report(
            instruction,
            rule,
            f"core {instruction.core} {'writes' if access.writes else 'reads'} part of "
            f"`{access.tensor.name}` that core {second.core} "
            f"{'writes' if other.writes else 'reads'} at line {second.line}, {why}",
            mend,
            limit="a barrier, or parts that do not overlap",
            value="overlapping accesses",
        )


def _span(tensor: NkiTensor) -> tuple[int, int]:
    """The first byte and the byte after the last that a view may touch."""
    size = tensor.dtype.itemsize
    pairs = list(zip(tensor.strides, tensor.shape, strict=True))
    low = tensor.offset + sum(s * (n - 1) for s, n in pairs if s < 0)
    high = tensor.offset + sum(s * (n - 1) for s, n in pairs if s > 0)
    return low * size, (high + 1) * size


def _near(some: list[Access], others: list[Access]) -> list[Access]:
    """The accesses of `some` whose byte range meets the range of one of `others`."""
    if not some or not others:
        return []
    spans = np.array(sorted(access.span for access in others))
    reach = np.maximum.accumulate(spans[:, 1])
    mine = np.array([access.span for access in some])
    before = np.searchsorted(spans[:, 0], mine[:, 1])  # others that begin before mine ends
    meets = (before > 0) & (reach[np.maximum(before - 1, 0)] > mine[:, 0])
    return [access for access, near in zip(some, meets, strict=True) if near]


def _mask(tensors: list[NkiTensor]) -> tuple[int, np.ndarray[Any, Any]]:
    """The first byte of a range, and for each byte of it whether a view covers it."""
    spans = [_span(tensor) for tensor in tensors]
    base = min(low for low, _ in spans)
    mask = np.zeros(max(high for _, high in spans) - base, np.bool_)
    for tensor in tensors:
        _bytes(mask, base, tensor)[...] = True
    return base, mask


def _bytes(mask: np.ndarray[Any, Any], base: int, tensor: NkiTensor) -> np.ndarray[Any, Any]:
    """The bytes of a view in a mask that begins at byte `base`."""
    size = tensor.dtype.itemsize
    strides = (*(stride * size for stride in tensor.strides), 1)
    return np.ndarray((*tensor.shape, size), np.bool_, mask, tensor.offset * size - base, strides)


def _touches(mask: tuple[int, np.ndarray[Any, Any]], tensor: NkiTensor) -> bool:
    return bool(_of(mask, tensor).any())


def _covers(mask: tuple[int, np.ndarray[Any, Any]], tensor: NkiTensor) -> bool:
    found = _of(mask, tensor)
    return found.size > 0 and bool(found.all())


def _of(mask: tuple[int, np.ndarray[Any, Any]], tensor: NkiTensor) -> np.ndarray[Any, Any]:
    """The bytes of a view as the mask has them; nothing if it has none of them."""
    base, covered = mask
    low, high = _span(tensor)
    if high <= base or low >= base + covered.size:
        return covered[:0]
    window = covered[max(low - base, 0) : high - base]
    if not window.any():
        return covered[:0]
    padded = np.zeros(high - low, np.bool_)
    padded[max(base - low, 0) : max(base - low, 0) + window.size] = window
    return _bytes(padded, low, tensor)


def overlap(a: NkiTensor, b: NkiTensor) -> bool:
    """Whether two views of a storage share a byte."""
    return _touches(_mask([a]), b)
