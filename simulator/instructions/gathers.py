"""Gathers within SBUF on the GpSimd engine: local_gather, nc_n_gather.

Bits are moved, never cast. An index out of bounds is undefined on the chip, an error here.
Source: nki_facts.md §2.4, §11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import dtypes
from simulator.instructions.gpsimd import CORE
from simulator.instructions.limits import (
    all_of,
    elements,
    is_integer,
    partitions_multiple_of,
    refuse_immediate,
    same_dtype,
    same_partitions,
)
from simulator.instructions.table import SBUF, Array, Arrays, Operand, Run, Slots, instruction
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["local_gather", "nc_n_gather"]

MOST_INDICES = 4096
"""Indices of local_gather for each core."""
ELEMENTS_PER_INDEX = (1, 2, 4, 8, 16, 32)


def _in_bounds(instruction: Instruction, tensor: NkiTensor, indices: Array, limit: int) -> None:
    from simulator.machine import dynamic_out_of_bounds

    if indices.size and indices.max() >= limit:
        raise dynamic_out_of_bounds(instruction, tensor, int(indices.max()), limit)


def _valid_indices(instruction: Instruction) -> int:
    """How many indices each core uses."""
    valid = instruction["num_valid_indices"]
    return CORE * instruction["index"].free_size if valid is None else int(valid)


def _local_gather(instruction: Instruction, slots: Slots) -> Run:
    dst, src, index = (instruction[name] for name in ("dst", "src_buffer", "index"))
    to, frm, at = slots(dst), slots(src), slots(index)
    cores, size, per_row = src.shape[0] // CORE, src.free_size, index.free_size
    valid, each = _valid_indices(instruction), instruction["num_elem_per_idx"]
    run_of = np.arange(each)

    def run(views: Arrays) -> None:
        # A core reads its indices partition by partition, then column by column.
        lists = views[at].reshape(cores, CORE, per_row).transpose(0, 2, 1).reshape(cores, -1)
        places = lists[:, :valid].astype(np.intp)
        if each > 1:
            places = (places[:, :, None] + run_of).reshape(cores, -1)
        _in_bounds(instruction, src, places, size)
        rows, target = views[frm].reshape(-1, size), views[to]
        if (places == places[0]).all():
            target[...] = rows.take(places[0], axis=1).reshape(dst.shape)
            return
        for core, chosen in enumerate(places):
            own = slice(core * CORE, (core + 1) * CORE)
            target[own] = rows[own].take(chosen, axis=1).reshape(target[own].shape)

    return run


def _check_local_gather(program: Program, instruction: Instruction) -> None:
    index, each, valid = (
        instruction[name] for name in ("index", "num_elem_per_idx", "num_valid_indices")
    )
    if not is_integer(each) or each not in ELEMENTS_PER_INDEX:
        refuse_immediate(
            program, instruction, "num_elem_per_idx", "1, 2, 4, 8, 16 or 32",
            "Gather in pieces of such a size",
        )  # fmt: skip
        return
    there = CORE * index.free_size
    if valid is not None and not (is_integer(valid) and 1 <= valid <= there):
        refuse_immediate(
            program, instruction, "num_valid_indices", f"1 to {there}",
            "A core has 16 partitions of indices; leave the parameter out to use all",
        )  # fmt: skip
        return
    if _valid_indices(instruction) > MOST_INDICES:
        refuse_immediate(
            program, instruction, "num_valid_indices", f"1 to {MOST_INDICES}",
            "Gather in several instructions", _valid_indices(instruction),
        )  # fmt: skip
    elements("dst", _valid_indices(instruction) * int(each))(program, instruction)


@instruction(
    operands={
        "dst": Operand("write", "free", SBUF),
        "src_buffer": Operand("read", "free", SBUF),
        "index": Operand("read", "free", SBUF, dtypes=frozenset({dtypes.uint16})),
    },
    engines=("gpsimd",),
    lower=_local_gather,
    cost="150 + num_valid_indices * num_elem_per_idx / C",
    source="nki_facts.md §2.4",
    extra_check=all_of(
        same_partitions("src_buffer", "index", "dst"),
        partitions_multiple_of("src_buffer", CORE),
        same_dtype("src_buffer", "dst"),
        _check_local_gather,
    ),
)
def local_gather(
    dst: Any,
    src_buffer: Any,
    index: Any,
    num_elem_per_idx: int = 1,
    num_valid_indices: int | None = None,
    name: str | None = None,
) -> tuple[Any, ...]:
    """Each GpSimd core gathers the same columns from its 16 partitions.

    Args:
        dst: (P, num_valid_indices * num_elem_per_idx) tile in SBUF.
        src_buffer: (P, N) tile in SBUF of dst's dtype, P a multiple of 16.
        index: (P, I) uint16 tile in SBUF. A core's list is its 16 rows, read column by column;
            an index counts elements of the flattened free dimensions.
        num_elem_per_idx: elements taken from each index on: 1, 2, 4, 8, 16 or 32.
        num_valid_indices: how many of a core's 16 * I indices count, at most 4096; None: all.
        name: for debugging.

    Raises:
        NkiValidationError: at run time, if an index is out of bounds.
    """
    return dst, src_buffer, index, num_elem_per_idx, num_valid_indices, name


def _n_gather(instruction: Instruction, slots: Slots) -> Run:
    dst, data, indices = (instruction[name] for name in ("dst", "data", "indices"))
    to, frm, at = slots(dst), slots(data), slots(indices)
    count, size = data.shape[0], data.free_size

    def run(views: Arrays) -> None:
        places = views[at].reshape(count, -1)
        _in_bounds(instruction, data, places, size)
        rows = views[frm].reshape(count, size)
        found = np.take_along_axis(rows, places.astype(np.intp), axis=1)
        views[to][...] = found.reshape(dst.shape)

    return run


@instruction(
    operands={
        "dst": Operand("write", "free", SBUF),
        "data": Operand("read", "free", SBUF),
        "indices": Operand("read", "free", SBUF, dtypes=frozenset({dtypes.uint32})),
    },
    engines=("gpsimd",),
    lower=_n_gather,
    cost="150 + N",
    source="nki_facts.md §2.4",
    extra_check=all_of(
        same_partitions("data", "indices", "dst"),
        same_dtype("data", "dst"),
        elements("dst", lambda instruction: instruction["indices"].free_size),
    ),
)
def nc_n_gather(dst: Any, data: Any, indices: Any, name: str | None = None) -> tuple[Any, ...]:
    """dst[p, j] = data[p].flat[indices[p, j]], each partition for itself.

    Args:
        dst: (P, J) tile in SBUF.
        data: (P, N) tile in SBUF of dst's dtype.
        indices: (P, J) uint32 tile in SBUF, all below N.
        name: for debugging.

    Raises:
        NkiValidationError: at run time, if an index is out of bounds.
    """
    return dst, data, indices, name
