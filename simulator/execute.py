"""Execute: replay a Program on data.

A `Plan` resolves every view once. On-chip tensors share one arena, packed by lifetime, so
that a replay touches little memory; views of arguments and outputs are bound at each call.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.check import lifetimes
from simulator.instructions.table import Array, Run
from simulator.program import Program
from simulator.targets import PARTITIONS
from simulator.tensor import MemoryRegion, NkiTensor

_ALIGNMENT = 64  # bytes: a cache line


class Plan:
    """A Program made ready to run. Safe to call from several threads, one at a time."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._slots: dict[tuple[Any, ...], int] = {}
        self._tensors: list[NkiTensor | None] = []
        self._accumulators: dict[str, int] = {}
        self._lock = threading.Lock()
        self._views: list[Array] | None = None
        self._steps: list[Run] = [i.spec.lower(i, self) for i in program.instructions]
        results = [self(result) for result in program.results]
        self._results = results
        self._bound = [
            (slot, tensor)
            for slot, tensor in enumerate(self._tensors)
            if tensor is not None and tensor.storage.role != "temporary"
        ]
        self._outputs = [s for s in program.storages if s.role == "output"]

    # --- slots: what the instructions' lowerings ask for ------------------------------------

    def __call__(self, tensor: NkiTensor) -> int:
        """The index of a tensor's view."""
        key = (tensor.storage.index, tensor.offset, tensor.shape, tensor.strides, tensor.dtype)
        if key not in self._slots:
            self._slots[key] = len(self._tensors)
            self._tensors.append(tensor)
        return self._slots[key]

    def accumulators(self, engine: str) -> int:
        """The index of an engine's accumulator registers, fp32[128]."""
        if engine not in self._accumulators:
            self._accumulators[engine] = len(self._tensors)
            self._tensors.append(None)
        return self._accumulators[engine]

    # --- running ----------------------------------------------------------------------------

    def run(self, arguments: Mapping[str, Array]) -> list[Array]:
        """Replay on contiguous arrays, one per tensor argument; arguments may be written.

        Returns:
            One array per result, in order; a result that is an argument is its view.
        """
        memory: dict[int, Array] = {
            tensor.storage.index: arguments[name] for name, tensor in self.program.arguments.items()
        }
        for storage in self._outputs:
            memory[storage.index] = np.empty(storage.shape, storage.dtype.numpy)
        with self._lock, np.errstate(all="ignore"):
            if self._views is None:
                self._views = self._allocate()
            views = self._views
            for slot, tensor in self._bound:
                views[slot] = _resolve(tensor, memory[tensor.storage.index], 0)
            for step in self._steps:
                step(views)
            results = [views[slot] for slot in self._results]
            for slot, _ in self._bound:  # keep no caller's memory alive
                views[slot] = _NOTHING
        return results

    def _allocate(self) -> list[Array]:
        addresses, size = _pack(self.program)
        arena = np.zeros(size, np.uint8)
        views: list[Array] = []
        for tensor in self._tensors:
            if tensor is None:
                views.append(np.zeros(PARTITIONS, np.float32))
            elif tensor.storage.role == "temporary":
                views.append(_resolve(tensor, arena, addresses[tensor.storage.index]))
            else:
                views.append(_NOTHING)
        return views


_NOTHING = np.empty(0, np.uint8)


def _resolve(tensor: NkiTensor, memory: Array, address: int) -> Array:
    """The view of `memory` (a storage's bytes from `address` on) that a tensor describes."""
    size = tensor.dtype.itemsize
    return np.ndarray(
        tensor.shape,
        tensor.dtype.numpy,
        memory.data if memory.dtype == np.uint8 else memory.view(np.uint8).data,
        address + tensor.offset * size,
        tuple(stride * size for stride in tensor.strides),
    )


def _pack(program: Program) -> tuple[dict[int, int], int]:
    """First-fit addresses for all temporaries, reusing bytes whose tensor has died."""
    addresses: dict[int, int] = {}
    size = 0
    for buffer in MemoryRegion:
        live: list[tuple[int, int, int]] = []  # (start, end, last use)
        base = size
        for lifetime in lifetimes(program, buffer):
            storage = lifetime.storage
            if storage.role != "temporary":
                continue
            live = sorted(block for block in live if block[2] >= lifetime.first)
            needed = -(-storage.bytes // _ALIGNMENT) * _ALIGNMENT
            start = base
            for block_start, block_end, _ in live:
                if block_start - start >= needed:
                    break
                start = max(start, block_end)
            live.append((start, start + needed, lifetime.last))
            addresses[storage.index] = start
            size = max(size, start + needed)
    return addresses, size
