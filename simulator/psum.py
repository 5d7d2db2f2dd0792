"""What each PSUM location was last written by: the Tensor engine's accumulation rules.

`accumulate=None` overwrites the first time and adds later, location by location;
`accumulate=True` needs a location that a matmul started (nki_facts.md §2.5, §8 trap 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from simulator.tensor import NkiTensor

UNWRITTEN, MATMUL, OTHER, EVICTED = range(4)
"""EVICTED: written by a matmul, and read by another engine since."""


class PsumState:
    """The state of every element of every PSUM storage of a Program being traced."""

    def __init__(self) -> None:
        self._states: dict[int, Any] = {}

    def _view(self, tensor: NkiTensor) -> Any:
        storage = tensor.storage
        state = self._states.get(storage.index)
        if state is None:
            state = self._states[storage.index] = np.zeros(storage.size, np.uint8)
        ratio = storage.dtype.itemsize / tensor.dtype.itemsize
        if ratio != 1 or tensor.dynamic is not None:
            return state  # reinterpreted or dynamic: the whole storage
        return np.ndarray(tensor.shape, np.uint8, state, tensor.offset, tensor.strides)

    def states(self, tensor: NkiTensor) -> set[int]:
        """The states found among a view's elements."""
        view = self._view(tensor)
        first = view.flat[0]
        if (view == first).all():
            return {int(first)}
        return {int(state) for state in np.unique(view)}

    def wrote(self, tensor: NkiTensor, by_matmul: bool) -> None:
        """An instruction wrote a view."""
        self._view(tensor)[...] = MATMUL if by_matmul else OTHER

    def was_read(self, tensor: NkiTensor) -> None:
        """An engine read a view."""
        view = self._view(tensor)
        np.copyto(view, EVICTED, where=view == MATMUL)
