"""Rows by number: DMA that gathers from or scatters to the rows of an HBM tensor.

Source: nki_facts.md §2.3 (vector_offset), §2.4 (oob_mode).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.instructions.table import Array, Arrays, Slots
from simulator.numerics import as_float32, store
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction

Gather = Callable[[Arrays], tuple[Array, Any]]
"""Gives the values, and which of the leading rows are valid (None: all)."""
Scatter = Callable[[Arrays, Array, Any], None]


def is_by_row(tensor: NkiTensor) -> bool:
    """Whether a view has a vector_offset."""
    return tensor.dynamic is not None and tensor.dynamic.rows is not None


def _row_numbers(
    instruction: Instruction, tensor: NkiTensor, slots: Slots
) -> tuple[int, Callable[[Arrays], tuple[Array, Any]]]:
    """The slot of all rows, and a function that gives checked row numbers."""
    from simulator.machine import dynamic_out_of_bounds

    assert tensor.dynamic is not None
    assert tensor.dynamic.rows is not None
    table, index = slots.rows(tensor), slots(tensor.dynamic.rows)
    skip = instruction["oob_mode"].name == "skip"

    def numbers(views: Arrays) -> tuple[Array, Any]:
        rows = views[index].reshape(-1).astype(np.int64)
        limit = views[table].shape[0]
        valid = (rows >= 0) & (rows < limit)
        if valid.all():
            return rows, None
        if not skip:
            bad = int(rows[~valid][0])
            raise dynamic_out_of_bounds(instruction, tensor, bad, limit)
        return np.where(valid, rows, 0), valid

    return table, numbers


def gather(instruction: Instruction, tensor: NkiTensor, slots: Slots) -> Gather:
    """Read a view, by rows if it says so."""
    if not is_by_row(tensor):
        slot = slots(tensor)
        return lambda views: (views[slot], None)
    table, numbers = _row_numbers(instruction, tensor, slots)

    def run(views: Arrays) -> tuple[Array, Any]:
        rows, valid = numbers(views)
        return views[table][rows], valid

    return run


def scatter(instruction: Instruction, tensor: NkiTensor, slots: Slots) -> Scatter:
    """Write a view, by rows if it says so; equal dtypes bit for bit, else through fp32."""
    write = store(tensor.dtype)
    shape = tensor.shape

    def cast(values: Array, dtype: Any) -> Array:
        values = values.reshape(shape)
        if values.dtype == dtype:
            return values
        converted = np.empty(shape, dtype)
        write(converted, as_float32(values))
        return converted

    if not is_by_row(tensor):
        slot = slots(tensor)

        def plain(views: Arrays, values: Array, valid: Any) -> None:
            view = views[slot]
            if valid is None:
                view[...] = cast(values, view.dtype)
            else:
                keep = np.broadcast_to(
                    valid.reshape((-1,) + (1,) * (values.ndim - 1)), values.shape
                ).reshape(shape)
                np.copyto(view, cast(values, view.dtype), where=keep)

        return plain
    table, numbers = _row_numbers(instruction, tensor, slots)

    def by_row(views: Arrays, values: Array, valid: Any) -> None:
        rows, inside = numbers(views)
        converted = cast(values, views[table].dtype)
        for both in (valid, inside):
            if both is not None:
                inside = both if inside is None else inside & both
        if inside is not None:
            rows, converted = rows[inside], converted[inside]
        views[table][rows] = converted

    return by_row
