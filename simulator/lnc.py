"""Two cores that run one kernel (LNC2): merging their instructions, and races between them.

Both cores' instructions become one list in which every meeting point (core_barrier, sendrecv)
comes after all that precedes it on either core. A meeting that the other core never comes to
would hang the chip; here it is an error. Source: nki_facts.md §4.2, §8 trap 24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import NkiValidationError, Violation
from simulator.instructions.control import LOOPS

if TYPE_CHECKING:
    from simulator.program import Instruction, Program
    from simulator.tensor import NkiTensor

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
        for core in (0, 1):
            positions[core] = _advance(streams[core], positions[core], merged)
            at = positions[core]
            heads.append(streams[core][at] if at < len(streams[core]) else None)
        one, other = heads
        if one is None and other is None:
            return merged
        if one is None or other is None or one.spec.name != other.spec.name:
            raise _alone(one, other)
        if one.spec.name in MEETINGS:
            _check_meeting(one, other)
        one.peer, other.peer = other, one
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


def _advance(stream: list[Instruction], position: int, merged: list[Instruction]) -> int:
    """Take instructions up to the next meeting, or loop that holds one."""
    while position < len(stream):
        name = stream[position].spec.name
        if name in MEETINGS:
            return position
        if name in LOOPS:
            end = end_of(stream, position)
            if any(i.spec.name in MEETINGS for i in stream[position:end]):
                return position
            merged += stream[position : end + 1]
            position = end + 1
            continue
        merged.append(stream[position])
        position += 1
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


def _alone(one: Instruction | None, other: Instruction | None) -> NkiValidationError:
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
    """A sendrecv's two sides must agree on pipe, shapes and dtypes."""
    if one.spec.name != "sendrecv":
        return
    problem = ""
    if one["pipe_id"] != other["pipe_id"]:
        problem, limit, value = "pipe_id", str(one["pipe_id"]), str(other["pipe_id"])
    for source, sink in ((one, other), (other, one)):
        src, dst = source["src"], sink["dst"]
        if src.size != dst.size or src.dtype is not dst.dtype:
            problem = "src of one core and dst of the other"
            limit, value = repr(src), repr(dst)
    if problem:
        raise NkiValidationError(
            [
                Violation(
                    "lnc-partner",
                    f"the two sides of a sendrecv differ in {problem}",
                    "Give both cores the same pipe, and tiles of the same size and dtype",
                    other.file,
                    other.line,
                    "sendrecv",
                    limit=limit,
                    value=value,
                )
            ]
        )


# --- races ----------------------------------------------------------------------------------


def check_races(program: Program) -> None:
    """Shared HBM that one core writes and the other touches needs a core_barrier between."""
    accesses: dict[int, tuple[list[_Access], list[_Access]]] = {}
    reported: set[tuple[int, int]] = set()
    for instruction in program.instructions:
        if instruction.spec.name == "core_barrier":
            _check_epoch(program, accesses, reported)
            accesses.clear()
            continue
        written = {id(tensor) for _, tensor in instruction.writes()}
        for _, tensor in (*instruction.reads(), *instruction.writes()):
            if tensor.storage.core is not None or tensor.storage.role == "constant":
                continue
            if tensor.dynamic is not None:  # may be anywhere: gets the benefit of the doubt
                continue
            cores = accesses.setdefault(tensor.storage.index, ([], []))
            cores[instruction.core].append((instruction, tensor, id(tensor) in written))
    _check_epoch(program, accesses, reported)


def _check_epoch(
    program: Program,
    accesses: dict[int, tuple[list[_Access], list[_Access]]],
    reported: set[tuple[int, int]],
) -> None:
    """Races between two barriers."""
    for cores in accesses.values():
        for writer in (0, 1):
            writes = [access for access in cores[writer] if access[2]]
            others = cores[1 - writer]
            if not writes or not others:
                continue
            mask = _mask([tensor for _, tensor, _ in writes])
            for other in others:
                if _touches(mask, other[1]):
                    access = next((w for w in writes if _overlap(w[1], other[1])), writes[0])
                    _report_race(program, other, access, reported)


_Access = tuple["Instruction", "NkiTensor", bool]


def _span(tensor: NkiTensor) -> tuple[int, int]:
    """The first byte and the byte after the last that a view may touch."""
    size = tensor.dtype.itemsize
    pairs = list(zip(tensor.strides, tensor.shape, strict=True))
    low = tensor.offset + sum(s * (n - 1) for s, n in pairs if s < 0)
    high = tensor.offset + sum(s * (n - 1) for s, n in pairs if s > 0)
    return low * size, (high + 1) * size


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
    base, covered = mask
    low, high = _span(tensor)
    if high <= base or low >= base + covered.size:
        return False
    window = covered[max(low - base, 0) : high - base]
    if not window.any():
        return False
    padded = np.zeros(high - low, np.bool_)
    padded[max(base - low, 0) : max(base - low, 0) + window.size] = window
    return bool(_bytes(padded, low, tensor).any())


def _overlap(a: NkiTensor, b: NkiTensor) -> bool:
    """Whether two views of a storage share a byte."""
    return _touches(_mask([a]), b)


def _report_race(
    program: Program, access: _Access, other: _Access, reported: set[tuple[int, int]]
) -> None:
    instruction, tensor, writes = access
    key = (instruction.line, other[0].line)
    if key in reported:
        return
    reported.add(key)
    program.report(
        instruction,
        "lnc-race",
        f"core {instruction.core} {'writes' if writes else 'reads'} part of `{tensor.name}` that "
        f"core {other[0].core} {'writes' if other[2] else 'reads'} at line {other[0].line}, "
        "with no core_barrier between",
        "Give each core its own part by nl.program_id(0), or put nisa.core_barrier between",
        limit="a barrier, or parts that do not overlap",
        value="overlapping accesses",
    )
