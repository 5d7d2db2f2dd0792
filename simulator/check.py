"""Checks of a whole Program: reads of what was never written, outputs, on-chip capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import Violation
from simulator.tensor import MemoryRegion, NkiTensor, Storage

if TYPE_CHECKING:
    from simulator.program import Instruction, Program


def check_program(program: Program) -> None:
    """Note every violation that only shows in the Program as a whole."""
    _check_initialised(program)
    _check_capacity(program)


# --- what was written before it is read ---------------------------------------------------


class _Written:
    """Which elements of a storage have been written."""

    def __init__(self, storage: Storage) -> None:
        self.full = storage.role == "argument"
        self.storage = storage
        self.mask = None if self.full else np.zeros(storage.size, np.bool_)

    def _view(self, tensor: NkiTensor) -> Any:
        assert self.mask is not None
        if tensor.dtype.itemsize != self.storage.dtype.itemsize:  # reinterpreted: whole span
            ratio = tensor.dtype.itemsize / self.storage.dtype.itemsize
            span = 1 + sum(s * (n - 1) for s, n in zip(tensor.strides, tensor.shape, strict=True))
            first = int(tensor.offset * ratio)
            return self.mask[first : first + max(1, int(span * ratio))]
        return np.ndarray(tensor.shape, np.bool_, self.mask, tensor.offset, tensor.strides)

    def write(self, tensor: NkiTensor) -> None:
        if self.full:
            return
        if tensor.size == self.storage.size and tensor.is_contiguous():
            self.full = True
            self.mask = None
        else:
            self._view(tensor)[...] = True

    def missing(self, tensor: NkiTensor) -> int:
        """How many elements of the view were never written."""
        if self.full:
            return 0
        view = self._view(tensor)
        return int(view.size - np.count_nonzero(view))


def _check_initialised(program: Program) -> None:
    written = [_Written(storage) for storage in program.storages]
    accumulating: set[str] = set()
    reported: set[tuple[int, int]] = set()
    for instruction in program.instructions:
        for operand, tensor in instruction.reads():
            missing = written[tensor.storage.index].missing(tensor)
            key = (tensor.storage.index, instruction.line)
            if missing and key not in reported:
                reported.add(key)
                program.report(
                    instruction,
                    "uninitialised-read",
                    f"reads {missing} of {tensor.size} elements of `{tensor.name}` "
                    "that were never written",
                    "Write them first (nisa.memset, nisa.dma_copy), or slice to what is valid",
                    operand=operand,
                    limit="0 unwritten elements",
                    value=str(missing),
                )
        _check_accumulators(program, instruction, accumulating)
        for _, tensor in instruction.writes():
            written[tensor.storage.index].write(tensor)
    for result in program.results:
        missing = written[result.storage.index].missing(result)
        if missing:
            program.violations.append(
                Violation(
                    "output-not-written",
                    f"{missing} of {result.size} elements of output `{result.name}` are never "
                    "written",
                    "Store every element before returning it",
                    result.storage.file,
                    result.storage.line,
                    limit="0 unwritten elements",
                    value=str(missing),
                )
            )


def _check_accumulators(program: Program, instruction: Instruction, started: set[str]) -> None:
    """The accumulators hold garbage until a reset (nki_facts.md §2.9)."""
    engine = instruction.spec.accumulates
    if engine is None:
        return
    parameters = instruction.spec.parameters
    command = instruction["reduce_cmd"].name if "reduce_cmd" in parameters else "reset_reduce"
    if command in ("reset", "reset_reduce"):
        started.add(engine)
    elif (command == "reduce" or instruction["reduce_res"] is not None) and engine not in started:
        program.report(
            instruction,
            "accumulator-reset",
            f"reads the {engine} engine's accumulators before any reset",
            "Start with reduce_cmd.reset_reduce",
            operand="reduce_cmd",
            limit="reset or reset_reduce first",
            value=command,
        )


# --- on-chip memory by lifetime -----------------------------------------------------------


@dataclass(frozen=True)
class Lifetime:
    """First and last instruction that touch a storage."""

    storage: Storage
    first: int
    last: int


def lifetimes(program: Program, buffer: MemoryRegion) -> list[Lifetime]:
    """The lifetimes of a region's storages, in order of first use."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, instruction in enumerate(program.instructions):
        for _, tensor in (*instruction.reads(), *instruction.writes()):
            if tensor.buffer is buffer:
                first.setdefault(tensor.storage.index, position)
                last[tensor.storage.index] = position
    return [Lifetime(program.storages[i], first[i], last[i]) for i in first]


def peak_bytes_per_partition(program: Program, buffer: MemoryRegion) -> tuple[int, Storage | None]:
    """The most bytes per partition that live at once, and the storage that brings them there."""
    live: list[Lifetime] = []
    current = peak = 0
    at: Storage | None = None
    for lifetime in lifetimes(program, buffer):
        for ended in [other for other in live if other.last < lifetime.first]:
            live.remove(ended)
            current -= footprint(program, ended.storage)
        live.append(lifetime)
        current += footprint(program, lifetime.storage)
        if current > peak:
            peak, at = current, lifetime.storage
    return peak, at


def footprint(program: Program, storage: Storage) -> int:
    """Bytes per partition that a storage takes: whole banks in PSUM."""
    size = storage.bytes_per_partition
    if storage.buffer is MemoryRegion.psum:
        bank = program.target.psum_bank_bytes
        return -(-size // bank) * bank
    return size


def _check_capacity(program: Program) -> None:
    limits = {
        MemoryRegion.sbuf: program.target.sbuf_bytes_per_partition,
        MemoryRegion.psum: program.target.psum_bytes_per_partition,
    }
    for buffer, limit in limits.items():
        peak, at = peak_bytes_per_partition(program, buffer)
        if peak > limit and at is not None:
            program.violations.append(
                Violation(
                    f"{buffer.value}-capacity",
                    f"tensors alive together when `{at.name}` is first used take {peak} bytes per "
                    f"partition of {buffer.value.upper()} on {program.target.name}",
                    "Use smaller tiles, fewer buffers, or end lifetimes earlier",
                    at.file,
                    at.line,
                    limit=f"{limit} bytes per partition",
                    value=f"{peak} bytes per partition",
                )
            )
