"""Checks of a whole Program: what only shows once all instructions are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import lnc
from simulator.context import VERSIONS
from simulator.errors import Violation
from simulator.instructions.control import LOOPS
from simulator.lifetimes import Lifetime, in_region, peak, peak_bytes_per_partition
from simulator.register_life import check_registers
from simulator.tensor import MemoryRegion, NkiTensor, Storage

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["check_program", "peak_bytes_per_partition"]

INSTRUCTION_LIMIT = 5_000_000
"""Of the compiler: NCC_EVRF007, NCC_EBVF030 (nki_facts.md §7.2)."""


def check_program(program: Program) -> None:
    """Note every violation that only shows in the Program as a whole."""
    _check_versions(program)
    _check_size(program)
    _check_initialised(program)
    check_registers(program)
    _check_edges(program)
    _check_addresses(program)
    _check_capacity(program)
    if program.lnc == 2:
        lnc.check_races(program)


def _note(
    program: Program, storage: Storage, rule: str, message: str, mend: str, **kw: str
) -> None:
    """Note what AWS's simulator lets through and a chip does not, at an allocation."""
    program.lax.append(Violation(rule, message, mend, storage.file, storage.line, **kw))


def _check_versions(program: Program) -> None:
    if program.versions:
        return
    features = sorted(program.features.values(), key=lambda feature: feature.since)
    last, first = features[-1], min(features, key=lambda feature: feature.until)
    program.violations.append(
        Violation(
            "version",
            f"{first.name} exists until nki {first.until}, {last.name} from {last.since} on",
            "Use what one version has; 0.3 to 0.7 are known",
            last.file,
            last.line,
            limit=f"one of {', '.join(VERSIONS)}",
            value="none",
        )
    )


def _check_size(program: Program) -> None:
    if len(program.instructions) > INSTRUCTION_LIMIT:
        program.tolerate(
            program.instructions[INSTRUCTION_LIMIT],
            "instruction-limit",
            "the kernel unrolls to more instructions than the compiler takes",
            "Use larger tiles or a dynamic loop: static loops are unrolled",
            limit=str(INSTRUCTION_LIMIT),
            value=str(len(program.instructions)),
        )


def _check_edges(program: Program) -> None:
    """depends_on stays within one loop body and one core (nki_facts.md §6.4)."""
    if not any(instruction.after for instruction in program.instructions):
        return
    place: dict[int, tuple[int, ...]] = {}
    open_loops: list[int] = []
    for instruction in program.instructions:
        if instruction.engine == "control":
            if instruction.spec.name in LOOPS:
                open_loops.append(id(instruction))
            else:
                open_loops.pop()
        place[id(instruction)] = (instruction.core, *open_loops)
    for instruction in program.instructions:
        for producer in instruction.after:
            if place.get(id(producer)) != place[id(instruction)]:
                program.report(
                    instruction,
                    "depends-on",
                    f"depends on {producer.spec.name} of another loop body or core",
                    "Order them through a tensor, or put both into one loop body",
                    limit="the same loop body",
                    value=f"line {producer.line}",
                )


# --- what was written before it is read ---------------------------------------------------


class _Written:
    """Which elements of a storage have been written.

    Three means, from cheap to dear: views seen before, ranges of elements that follow each
    other, and a mask of all elements.
    """

    __slots__ = ("_known", "_mask", "_pending", "_ranges", "any", "full", "storage")

    def __init__(self, storage: Storage) -> None:
        self.full = storage.role in ("argument", "constant")
        self.any = self.full
        self.storage = storage
        self._known: set[Any] = set()
        self._pending: list[NkiTensor] = []
        self._ranges: list[tuple[int, int]] = []
        self._mask: Any = None

    @staticmethod
    def _key(tensor: NkiTensor) -> Any:
        return tensor.offset, tensor.shape, tensor.strides, tensor.dtype.itemsize

    def _range(self, tensor: NkiTensor) -> tuple[int, int] | None:
        """The view's elements as start and stop, if they follow each other in the storage."""
        if tensor.dtype.itemsize != self.storage.dtype.itemsize:
            return None
        expected = 1
        for count, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
            if count != 1:
                if stride != expected:
                    return None
                expected *= count
        return tensor.offset, tensor.offset + expected

    def _view(self, tensor: NkiTensor) -> Any:
        if tensor.dtype.itemsize != self.storage.dtype.itemsize:  # reinterpreted: whole span
            ratio = tensor.dtype.itemsize / self.storage.dtype.itemsize
            span = 1 + sum(s * (n - 1) for s, n in zip(tensor.strides, tensor.shape, strict=True))
            first = int(tensor.offset * ratio)
            return self._mask[first : first + max(1, int(span * ratio))]
        return np.ndarray(tensor.shape, np.bool_, self._mask, tensor.offset, tensor.strides)

    def write(self, tensor: NkiTensor) -> None:
        """The view is written; a view whose address is dynamic may be anywhere."""
        if self.full:
            return
        self.any = True
        whole = tensor.size * tensor.dtype.itemsize == self.storage.bytes
        if tensor.dynamic is not None or (whole and tensor.is_contiguous()):
            self.full = True
            return
        key = self._key(tensor)
        if key not in self._known:
            self._known.add(key)
            self._pending.append(tensor)
            span = self._range(tensor)
            if span is not None:
                self._add_range(span)

    def _add_range(self, span: tuple[int, int]) -> None:
        """Merge a range with its neighbour if it follows the last one, as loops write."""
        if self._ranges and self._ranges[-1][1] == span[0]:
            span = (self._ranges.pop()[0], span[1])
        self._ranges.append(span)
        if span == (0, self.storage.size):
            self.full = True

    def missing(self, tensor: NkiTensor) -> int:
        """How many elements of the view were never written."""
        if self.full:
            return 0
        if tensor.dynamic is not None:
            return 0 if self.any else tensor.size
        key = self._key(tensor)
        if key in self._known:
            return 0
        span = self._range(tensor)
        if span is not None and any(a <= span[0] and span[1] <= b for a, b in self._ranges[-4:]):
            return 0
        if self._mask is None:
            self._mask = np.zeros(self.storage.size, np.bool_)
        for written in self._pending:
            self._view(written)[...] = True
        self._pending.clear()
        view = self._view(tensor)
        count = int(view.size - np.count_nonzero(view))
        if count == 0:
            self._known.add(key)
        return count


def _check_initialised(program: Program) -> None:
    written = [_Written(storage) for storage in program.storages]
    accumulating: dict[tuple[str, int], int] = {}
    reported: set[tuple[int, int]] = set()
    loops: list[tuple[bool, Instruction]] = []
    for instruction in program.instructions:
        if instruction.engine == "control":
            _follow_loops(loops, instruction)
            continue
        for operand, tensor in instruction.reads():
            state = written[tensor.storage.index]
            if state.full:
                continue
            if tensor.dynamic is not None:
                program.uncertain.add(tensor.storage.index)
            missing = state.missing(tensor)
            key = (tensor.storage.index, instruction.line)
            if missing:
                program.uncertain.add(tensor.storage.index)
            if missing and key not in reported:
                reported.add(key)
                program.tolerate(
                    instruction,
                    "uninitialised-read",
                    f"reads {missing} of {tensor.size} elements of `{tensor.name}` "
                    "that were never written",
                    "Write them first (nisa.memset, nisa.dma_copy), or slice to what is valid",
                    operand=operand,
                    limit="0 unwritten elements",
                    value=str(missing),
                )
        if instruction.spec.accumulates is not None:
            _check_accumulators(program, instruction, accumulating)
        for _, tensor in instruction.writes():
            state = written[tensor.storage.index]
            if not state.full and _may_not_write(instruction, tensor, loops):
                program.uncertain.add(tensor.storage.index)
            state.write(tensor)
    for result in program.results:
        missing = written[result.storage.index].missing(result)
        if missing:
            program.uncertain.add(result.storage.index)
            _note(
                program,
                result.storage,
                "output-not-written",
                f"{missing} of {result.size} elements of output `{result.name}` are never written",
                "Store every element before returning it",
                limit="0 unwritten elements",
                value=str(missing),
            )


def _follow_loops(loops: list[tuple[bool, Instruction]], instruction: Instruction) -> None:
    """Keep the open dynamic loops, each with whether its body surely runs."""
    if instruction.spec.name not in LOOPS:
        loops.pop()
        return
    start, stop = instruction.get("start"), instruction.get("stop")
    runs = isinstance(start, int) and isinstance(stop, int) and start < stop
    loops.append((runs, instruction))


def _may_not_write(
    instruction: Instruction, tensor: NkiTensor, loops: list[tuple[bool, Instruction]]
) -> bool:
    """Whether only the device knows what of a view is written, if any."""
    if tensor.dynamic is not None or instruction.spec.name in PARTIAL:
        return True
    mode = instruction.get("oob_mode")
    if mode is not None and mode.name == "skip":
        return True
    scope = tensor.storage.scope
    inner = next((at + 1 for at, (_, loop) in enumerate(loops) if loop["number"] == scope), 0)
    return not all(runs for runs, _ in loops[inner:])


PARTIAL = frozenset({"all_to_all_v", "all_gather_v", "collective_permute"})
"""Instructions that may leave parts of what they write as they were."""


def _check_accumulators(
    program: Program, instruction: Instruction, started: dict[tuple[str, int], int]
) -> None:
    """The accumulators hold garbage until a reset, partition by partition (nki_facts.md §2.9).

    `started` keeps how many partitions were reset. The Vector engine's are clobbered by idle.
    """
    engine = instruction.spec.accumulates
    assert engine is not None
    key = (engine, instruction.core)
    count = instruction["dst"].shape[0]
    command = instruction.get("reduce_cmd")
    command = "reset_reduce" if command is None else command.name
    if command in ("reset", "reset_reduce", "load_reduce"):
        started[key] = count
        return
    if command == "idle" and engine == "vector":
        started.pop(key, None)
    if command != "reduce" and instruction.get("reduce_res") is None:
        return
    if started.get(key, 0) < count:
        program.report(
            instruction,
            "accumulator-reset",
            f"reads the {engine} engine's accumulators before any reset",
            "Start with reduce_cmd.reset_reduce on the same partitions",
            operand="reduce_cmd",
            limit=f"{started[key]} partitions" if key in started else "reset or reset_reduce first",
            value=f"{count} partitions" if key in started else command,
        )


# --- on-chip memory -----------------------------------------------------------------------


def _check_capacity(program: Program) -> None:
    limits = {
        MemoryRegion.sbuf: program.target.sbuf_bytes_per_partition,
        MemoryRegion.psum: program.target.psum_bytes_per_partition,
    }
    for buffer, limit in limits.items():
        for core in range(program.lnc):
            most, at = peak(program, in_region(program, buffer, core))
            if most > limit and at is not None:
                _note(
                    program,
                    at,
                    f"{buffer.value}-capacity",
                    f"tensors alive together when `{at.name}` is first used take {most} bytes per "
                    f"partition of {buffer.value.upper()} on {program.target.name}",
                    "Use smaller tiles, fewer buffers, or end lifetimes earlier",
                    limit=f"{limit} bytes per partition",
                    value=f"{most} bytes per partition",
                )
                break


def _check_addresses(program: Program) -> None:
    """Tensors whose addresses the kernel chose must not overlap while both live."""
    for buffer in (MemoryRegion.sbuf, MemoryRegion.psum):
        placed = [life for life in in_region(program, buffer) if life.storage.address is not None]
        live: list[Lifetime] = []
        for lifetime in placed:
            live = [other for other in live if other.last >= lifetime.first]
            for other in live:
                if _overlap(other.storage, lifetime.storage) and other.last > lifetime.first:
                    _note(
                        program,
                        lifetime.storage,
                        "address-overlap",
                        f"`{lifetime.storage.name}` lies over `{other.storage.name}`, "
                        "which is still in use",
                        "Choose addresses that do not overlap, or leave address out",
                        limit=f"outside {_range(other.storage)}",
                        value=_range(lifetime.storage),
                    )
                    break
            live.append(lifetime)


def _overlap(a: Storage, b: Storage) -> bool:
    assert a.address is not None
    assert b.address is not None
    return (
        a.core == b.core
        and a.address[0] < b.address[0] + b.shape[0]
        and b.address[0] < a.address[0] + a.shape[0]
        and a.address[1] < b.address[1] + b.bytes_per_partition
        and b.address[1] < a.address[1] + a.bytes_per_partition
    )


def _range(storage: Storage) -> str:
    assert storage.address is not None
    partition, start = storage.address
    return (
        f"partitions {partition}-{partition + storage.shape[0] - 1}, "
        f"bytes {start}-{start + storage.bytes_per_partition - 1}"
    )
