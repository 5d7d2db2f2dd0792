"""The 8 largest values of each partition: max8, nc_find_index8, nc_match_replace8.

All comparisons are in fp32. Source: nki_facts.md §2.6, §8 trap 28.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import dtypes
from simulator.instructions.datapath import scratch
from simulator.instructions.limits import (
    all_of,
    elements,
    elements_between,
    free_dimensions,
    is_number,
    refuse_immediate,
    same_partitions,
)
from simulator.instructions.selection import constant
from simulator.instructions.table import Array, Arrays, Operand, Run, Slots, instruction
from simulator.numerics import as_float32, store

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["max8", "nc_find_index8", "nc_match_replace8"]

MOST = 16_384
"""Elements per partition these instructions look at."""

INDICES = frozenset({dtypes.uint16, dtypes.uint32})
ABSENT = -1
"""All ones in an unsigned dtype."""


SORTED = 512
"""Rows up to this length are sorted; in longer ones the largest is sought 8 times."""


def largest(x: Array, memory: Array | None) -> Array:
    """The 8 largest of each row in descending order; NaN counts as the largest.

    Args:
        x: fp32[P, N].
        memory: fp32[P, N] for rows that are too long to sort.
    """
    if memory is None:
        return np.sort(x, axis=1)[:, : -9 if x.shape[1] > 8 else None : -1]
    np.copyto(memory, x)
    rows = np.arange(len(x))
    found = np.empty((len(x), 8), np.float32)
    for column in range(8):
        at = memory.argmax(axis=1)
        found[:, column] = memory[rows, at]
        memory[rows, at] = -np.inf
    return found


def _max8(instruction: Instruction, slots: Slots) -> Run:
    dst, src = instruction["dst"], instruction["src"]
    to, frm, write = slots(dst), slots(src), store(dst.dtype)
    rows = (src.shape[0], src.free_size)
    memory = scratch(slots, rows, 0) if rows[1] > SORTED else None

    def run(views: Arrays) -> None:
        top = largest(as_float32(views[frm]).reshape(rows), memory)
        write(views[to], top.reshape(dst.shape))

    return run


@instruction(
    operands={"dst": Operand("write", "free"), "src": Operand("read", "free")},
    engines=("vector",),
    lower=_max8,
    cost="N",
    source="nki_facts.md §2.6",
    extra_check=all_of(
        same_partitions("src", "dst"),
        elements("dst", 8),
        elements_between("src", 8, MOST),
        free_dimensions("src", 2),
    ),
)
def max8(dst: Any, src: Any, name: str | None = None) -> tuple[Any, ...]:
    """The 8 largest values of each partition in descending order; equal ones as often as there.

    Args:
        dst: (P, 8) tile.
        src: (P, N) tile, 8 <= N <= 16384.
        name: for debugging.
    """
    return dst, src, name


def find(x: Array, values: Array, from_last: bool) -> Array:
    """Where each of 8 values occurs in its row; equal values take successive occurrences.

    Args:
        x: fp32[P, N].
        values: fp32[P, 8].
        from_last: the last of equal values takes the first occurrence, not the first of them.

    Returns:
        int64[P, 8]; ABSENT where a value has no (further) occurrence.
    """
    same = values[:, :, None] == values[:, None, :]
    earlier = np.triu(same, 1) if from_last else np.tril(same, -1)
    ranks = np.count_nonzero(earlier, axis=2)
    rows = np.arange(len(x))
    found = np.empty(values.shape, np.int64)
    for column in range(8):
        hits = x == values[:, column, None]
        first = hits.argmax(axis=1)
        found[:, column] = np.where(hits[rows, first], first, ABSENT)
        again = np.flatnonzero(ranks[:, column])
        if len(again):
            counts = np.cumsum(hits[again], axis=1)
            wanted = ranks[again, column, None] + 1
            at = (counts == wanted).argmax(axis=1)
            found[again, column] = np.where(counts[:, -1:] >= wanted, at[:, None], ABSENT)[:, 0]
    return found


def _find_index8(instruction: Instruction, slots: Slots) -> Run:
    dst, data = instruction["dst"], instruction["data"]
    to, frm, vals = slots(dst), slots(data), slots(instruction["vals"])
    rows, eight = (data.shape[0], data.free_size), (data.shape[0], 8)

    def run(views: Arrays) -> None:
        values = as_float32(views[vals]).reshape(eight)
        found = find(as_float32(views[frm]).reshape(rows), values, from_last=False)
        view = views[to]
        view[...] = found.astype(view.dtype).reshape(view.shape)

    return run


@instruction(
    operands={
        "dst": Operand("write", "free", dtypes=INDICES),
        "data": Operand("read", "free"),
        "vals": Operand("read", "free"),
    },
    engines=("vector",),
    lower=_find_index8,
    cost="N",
    source="nki_facts.md §2.6",
    extra_check=all_of(
        same_partitions("data", "dst", "vals"),
        elements("dst", 8),
        elements("vals", 8),
        elements_between("data", 8, MOST),
        free_dimensions("data", 2),
        free_dimensions("vals", 2),
    ),
)
def nc_find_index8(dst: Any, data: Any, vals: Any, name: str | None = None) -> tuple[Any, ...]:
    """The index of each of 8 values in its partition.

    The k-th of equal values gives the k-th occurrence; a value that is not there all ones.

    Args:
        dst: (P, 8) tile of uint16 or uint32.
        data: (P, N) tile, 8 <= N <= 16384.
        vals: (P, 8) tile.
        name: for debugging.
    """
    return dst, data, vals, name


def _match_replace8(instruction: Instruction, slots: Slots) -> Run:
    dst, data, indices = instruction["dst"], instruction["data"], instruction["dst_idx"]
    to, frm, vals = slots(dst), slots(data), slots(instruction["vals"])
    to_index = None if indices is None else slots(indices)
    rows, eight = (data.shape[0], data.free_size), (data.shape[0], 8)
    value, write, same = constant(dst.dtype, instruction["imm"]), store(dst.dtype), dst.dtype
    moves = same is data.dtype

    def run(views: Arrays) -> None:
        x = as_float32(views[frm])
        found = find(x.reshape(rows), as_float32(views[vals]).reshape(eight), from_last=True)
        view = views[to]
        if moves:
            view[...] = views[frm].reshape(view.shape)
        else:
            write(view, x.reshape(view.shape))
        row, column = np.nonzero(found != ABSENT)
        view[(row, *np.unravel_index(found[row, column], view.shape[1:]))] = value(view.dtype)
        if to_index is not None:
            index = views[to_index]
            index[...] = found.astype(index.dtype).reshape(index.shape)

    return run


def _check_imm(program: Program, instruction: Instruction) -> None:
    if not is_number(instruction["imm"]):
        refuse_immediate(program, instruction, "imm", "a number", "Give a compile-time number")


@instruction(
    operands={
        "dst": Operand("write"),
        "data": Operand("read"),
        "vals": Operand("read", "free"),
        "dst_idx": Operand("write", "free", optional=True, dtypes=INDICES),
    },
    engines=("vector",),
    lower=_match_replace8,
    cost="max(64, N)",
    source="nki_facts.md §2.6, A13",
    extra_check=all_of(
        same_partitions("data", "vals", "dst_idx"),
        elements("vals", 8),
        elements("dst_idx", 8),
        elements_between("data", 1, MOST),
        free_dimensions("vals", 2),
        _check_imm,
    ),
)
def nc_match_replace8(
    dst: Any, data: Any, vals: Any, imm: Any, dst_idx: Any = None, name: str | None = None
) -> tuple[Any, ...]:
    """dst = data with the first occurrence of each of 8 values replaced by imm.

    vals is worked off from the last to the first, and each element is replaced once: of equal
    values the last one takes the first occurrence. Values are sought in data as it was.

    Args:
        dst: (P, N) tile; may be data itself.
        data: (P, N) tile, N <= 16384.
        vals: (P, 8) tile.
        imm: number.
        dst_idx: (P, 8) tile of uint16 or uint32 for where the values were; all ones if nowhere.
        name: for debugging.
    """
    return dst, data, vals, imm, dst_idx, name
