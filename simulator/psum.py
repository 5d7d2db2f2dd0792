"""What each PSUM location was last written by: the Tensor engine's accumulation rules.

`accumulate=None` overwrites the first time and adds later, location by location;
`accumulate=True` needs a location that a matmul started (nki_facts.md §2.5, §8 trap 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.tensor import MemoryRegion, NkiTensor

if TYPE_CHECKING:
    from simulator.instructions.table import InstructionSpec
    from simulator.program import Instruction
    from simulator.tensor import Storage

UNWRITTEN, MATMUL, OTHER, EVICTED, REPLACED = range(5)
"""EVICTED: written by a matmul, and read by another engine since. REPLACED: written by a
matmul, and written by another instruction since."""

# What a state becomes: state before -> state after.
_BY_MATMUL = (MATMUL,) * 5
_BY_OTHER = (OTHER, REPLACED, OTHER, REPLACED, REPLACED)
_UNCHANGED = (UNWRITTEN, MATMUL, OTHER, EVICTED, REPLACED)
_BY_READ = (UNWRITTEN, EVICTED, OTHER, EVICTED, REPLACED)

HOLDS_A_SUM = 1 << MATMUL | 1 << EVICTED
"""The states, as bits, of locations that a matmul may add to."""

_MOST_PARTS = 64


class _Record:
    """The states of one storage's bytes: of disjoint parts and of the rest, or of each byte."""

    __slots__ = ("boxes", "covered", "mask", "parts", "rest", "storage", "whole")

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.rest = UNWRITTEN
        self.parts: dict[Any, int] = {}
        """View -> state of all its bytes, as long as the views touched are disjoint."""
        self.boxes: dict[Any, tuple[int, int, int, int]] = {}
        self.covered = 0
        self.mask: Any = None
        self.whole: set[Any] = set()
        """Views known to cover everything."""

    def change(self, tensor: NkiTensor, after: tuple[int, ...]) -> int:
        """Move a view's states on; gives the states before, as bits."""
        key = _key(tensor)
        before = None if tensor.dynamic is not None else self.parts.get(key)
        if before is not None:
            self.parts[key] = after[before]
            return 1 << before
        if tensor.dynamic is not None or key in self.whole:
            return self._change_all(after)
        size = tensor.size * tensor.dtype.itemsize
        if size == self.storage.bytes and tensor.is_contiguous():
            self.whole.add(key)
            return self._change_all(after)
        if self.mask is None:
            box = _box(self.storage, tensor)
            if box is not None and len(self.parts) < _MOST_PARTS and self._is_free(box):
                self.parts[key] = after[self.rest]
                self.boxes[key] = box
                self.covered += size
                return 1 << self.rest
            self._spread()
        view = self.view(tensor)
        bits = _bits(view)
        view[...] = np.array(after, np.uint8)[view]
        return bits

    def _change_all(self, after: tuple[int, ...]) -> int:
        if self.mask is not None:
            bits = _bits(self.mask)
            self.mask = np.array(after, np.uint8)[self.mask]
            return bits
        bits = 0 if self.covered == self.storage.bytes else 1 << self.rest
        for key, state in self.parts.items():
            bits |= 1 << state
            self.parts[key] = after[state]
        self.rest = after[self.rest]
        return bits

    def _is_free(self, box: tuple[int, int, int, int]) -> bool:
        top, bottom, left, right = box
        for a, b, c, d in self.boxes.values():
            if top < b and a < bottom and left < d and c < right:
                return False
        return True

    def _spread(self) -> None:
        """Go over to one state for each byte."""
        self.mask = np.full(self.storage.bytes, self.rest, np.uint8)
        for key, state in self.parts.items():
            self._bytes(*key)[...] = state
        self.parts.clear()
        self.boxes.clear()

    def _bytes(
        self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], size: int
    ) -> Any:
        steps = (*(stride * size for stride in strides), 1)
        return np.ndarray((*shape, size), np.uint8, self.mask, offset * size, steps)

    def view(self, tensor: NkiTensor) -> Any:
        """The states of a view's bytes, (*tensor.shape, itemsize)."""
        if self.mask is None:
            self._spread()
        if tensor.dynamic is not None:
            return np.broadcast_to(_either(self.mask), (*tensor.shape, 1))
        return self._bytes(*_key(tensor))

    def copy(self) -> _Record:
        """The same states, to go on from separately."""
        new = _Record(self.storage)
        new.rest, new.covered = self.rest, self.covered
        new.parts, new.boxes = dict(self.parts), dict(self.boxes)
        new.mask = None if self.mask is None else self.mask.copy()
        new.whole = set(self.whole)
        return new


def _either(mask: Any) -> int:
    """MATMUL if any location holds a sum: for views whose place is not known."""
    return MATMUL if _bits(mask) & HOLDS_A_SUM else UNWRITTEN


def _key(tensor: NkiTensor) -> Any:
    return tensor.offset, tensor.shape, tensor.strides, tensor.dtype.itemsize


def _box(storage: Storage, tensor: NkiTensor) -> tuple[int, int, int, int] | None:
    """First and last + 1 of a view's partitions and of its bytes in them; None if it wraps."""
    size, free = tensor.dtype.itemsize, storage.bytes_per_partition
    top, left = divmod(tensor.offset * size, free)
    step, odd = divmod(tensor.strides[0] * size, free)
    if (odd and tensor.shape[0] > 1) or any(stride < 0 for stride in tensor.strides):
        return None
    spans = zip(tensor.strides[1:], tensor.shape[1:], strict=True)
    right = left + size * (1 + sum(stride * (count - 1) for stride, count in spans))
    return None if right > free else (top, top + step * (tensor.shape[0] - 1) + 1, left, right)


def _bits(states: Any) -> int:
    first = int(states.flat[0])
    if (states == first).all():
        return 1 << first
    return sum(1 << int(state) for state in np.unique(states))


class PartlyStarted:
    """`accumulate` where only some locations hold a sum already: add there, overwrite elsewhere."""

    def __init__(self, mask: np.ndarray[Any, Any]) -> None:
        self.mask = mask

    def __repr__(self) -> str:
        return f"{np.count_nonzero(self.mask)} of {self.mask.size} locations"


class PsumState:
    """The state of every byte of every PSUM storage of a Program being traced.

    Typical views cost no array work: the same view again, the whole storage, or disjoint parts.
    A view whose address is dynamic counts as its whole storage.
    """

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}
        self._positions: dict[InstructionSpec, tuple[tuple[int, tuple[int, ...]], ...]] = {}
        self._starts: dict[int, dict[int, _Record]] = {}
        """Dynamic loop -> the states before its first iteration."""
        self.warned: set[tuple[str, int]] = set()
        """Lines that were warned about."""

    def _change(self, tensor: NkiTensor, after: tuple[int, ...]) -> int:
        storage = tensor.storage
        record = self._records.get(storage.index)
        if record is None:
            record = self._records[storage.index] = _Record(storage)
        return record.change(tensor, after)

    def states(self, tensor: NkiTensor) -> int:
        """The states found among a view's locations, as bits: 1 << MATMUL | …."""
        return self._change(tensor, _UNCHANGED)

    def matmul(self, tensor: NkiTensor) -> tuple[int, Any]:
        """A matmul writes a view.

        Returns:
            The states before, as bits, and, if only some locations held a sum, which:
            bool[tensor.shape], else None.
        """
        storage = tensor.storage
        record = self._records.get(storage.index)
        if record is None:
            record = self._records[storage.index] = _Record(storage)
        if tensor.dynamic is None:
            key = (tensor.offset, tensor.shape, tensor.strides, tensor.dtype.itemsize)
            state = record.parts.get(key)
            if state is not None:
                record.parts[key] = MATMUL
                return 1 << state, None
            if key in record.whole and record.mask is None and not record.parts:
                state, record.rest = record.rest, MATMUL
                return 1 << state, None
        states = record.change(tensor, _UNCHANGED)
        mixed = states & HOLDS_A_SUM and states & ~HOLDS_A_SUM
        held = self.holds_sum(tensor) if mixed else None
        record.change(tensor, _BY_MATMUL)
        return states, held

    def transposed(self, tensor: NkiTensor) -> None:
        """The Tensor engine writes a view in transpose mode, which starts no sum."""
        self._change(tensor, _BY_OTHER)

    def holds_sum(self, tensor: NkiTensor) -> Any:
        """bool[tensor.shape]: which of a view's locations a matmul may add to."""
        states = self._records[tensor.storage.index].view(tensor)[..., 0]
        return (states == MATMUL) | (states == EVICTED)

    def note(self, instruction: Instruction) -> None:
        """Follow what an instruction other than a matmul reads and writes in PSUM."""
        spec = instruction.spec
        positions = self._positions.get(spec)
        if positions is None:
            positions = self._positions[spec] = _positions(spec)
        for position, after in positions:
            value = instruction.operands[position]
            if value.__class__ is NkiTensor and value.storage.buffer is MemoryRegion.psum:
                self._change(value, after)

    def restart(self, loop: int) -> None:
        """An iteration of a dynamic loop begins, in eager mode: each decides as the first did.

        Args:
            loop: its number; loops inside it have higher ones.
        """
        self._starts = {number: kept for number, kept in self._starts.items() if number <= loop}
        if loop in self._starts:
            self._records = {i: record.copy() for i, record in self._starts[loop].items()}
        else:
            self._starts[loop] = {i: record.copy() for i, record in self._records.items()}


def _positions(spec: InstructionSpec) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Operands of an instruction that may be in PSUM, reads first, and what happens to them."""
    if spec.name in ("nc_matmul", "nc_matmul_mx"):
        return ()  # their own `resolve` does it
    reads = [(name, _BY_READ) for name in spec.reads]
    writes = [(name, _BY_OTHER) for name in spec.writes]
    return tuple(
        (spec.index[name], after)
        for name, after in (*reads, *writes)
        if MemoryRegion.psum in spec.operands[name].buffers
    )
