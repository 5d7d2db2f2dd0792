"""DMA that does more than copy: transposes, and sums of several tensors.

Source: nki_facts.md §2.4. The limits are in `dma_checks.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.dtypes import DTYPES
from simulator.enums import dge_mode, oob_mode
from simulator.errors import NkiValidationError, Violation
from simulator.instructions.dma_checks import check_dma_compute, check_dma_transpose, matches
from simulator.instructions.rows import gather, is_by_row, scatter
from simulator.instructions.table import (
    HBM,
    SBUF,
    Array,
    Arrays,
    Operand,
    Run,
    Slots,
    instruction,
)
from simulator.numerics import as_float32, store
from simulator.operators import add
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction

__all__ = ["dma_compute", "dma_transpose"]

AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}
"""Rank -> the one permutation there is."""


# --- dma_transpose ------------------------------------------------------------------------------


def _transpose(instruction: Instruction, slots: Slots) -> Run:
    dst, src = instruction["dst"], instruction["src"]
    axes = AXES[src.ndim]
    if is_by_row(src):
        return _gather_transpose(instruction, axes, slots)
    to, frm = slots(dst), slots(src)

    def run(views: Arrays) -> None:
        views[to][...] = views[frm].transpose(axes)

    return run


def _gather_transpose(instruction: Instruction, axes: tuple[int, ...], slots: Slots) -> Run:
    """Rows by number, the index tile read column by column, then transposed."""
    from simulator.machine import dynamic_out_of_bounds

    dst, src = instruction["dst"], instruction["src"]
    to, table, index = slots(dst), slots.rows(src), slots(src.dynamic.rows)
    count = src.shape[0]
    skip = instruction["oob_mode"].name == "skip"

    def run(views: Arrays) -> None:
        rows = views[index].reshape(len(views[index]), -1).T.reshape(-1)[:count].astype(np.int64)
        limit = len(views[table])
        valid = (rows >= 0) & (rows < limit)
        if valid.all():
            views[to][...] = views[table][rows].transpose(axes)
            return
        if not skip:
            raise dynamic_out_of_bounds(instruction, src, int(rows[~valid][0]), limit)
        views[to][..., valid] = views[table][rows[valid]].transpose(axes)

    return run


@instruction(
    operands={
        "dst": Operand("write", "free", SBUF),
        "src": Operand("read", "free", HBM | SBUF),
    },
    engines=("dma",),
    lower=_transpose,
    cost="DMA",
    source="nki_facts.md §2.4, §3.4",
    extra_check=check_dma_transpose,
    parameters_since={"priority": "0.4"},
)
def dma_transpose(
    dst: Any,
    src: Any,
    axes: Any = None,
    priority: Any = None,
    dge_mode: dge_mode = dge_mode.unknown,
    oob_mode: oob_mode = oob_mode.error,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = src with its dimensions permuted, bit for bit.

    Args:
        dst: SBUF, of src's dtype, of exactly the permuted shape.
        src: HBM or SBUF, of 2 or 4 bytes, of rank 2, 3 or 4; its rows may be gathered
            (`.ap(vector_offset=…)`) by an index tile (16..128, N) that is read column by column.
        axes: (1, 0), (2, 1, 0) or (3, 1, 2, 0), by rank; the default.
        priority: 0 to 3, gen4.
        dge_mode: unknown or hwdge; unknown or swdge with gathered rows.
        oob_mode: skip leaves dst as it is where a row number is out of bounds.
        name: a label.
    """
    return dst, src, axes, priority, dge_mode, oob_mode, name


# --- dma_compute --------------------------------------------------------------------------------


def _compute(instruction: Instruction, slots: Slots) -> Run:
    """The sum in fp32, from the first source to the last."""
    dst, srcs = instruction["dst"], instruction["srcs"]
    if any(is_by_row(tensor) for tensor in (dst, *srcs)):
        return _read_modify_write(instruction, slots)
    to, frm, shape = slots(dst), [slots(src) for src in srcs], dst.shape
    write = store(dst.dtype)

    def run(views: Arrays) -> None:
        total = as_float32(views[frm[0]]).reshape(shape)
        for slot in frm[1:]:
            total = total + as_float32(views[slot]).reshape(shape)
        write(views[to], total)

    return run


def _read_modify_write(instruction: Instruction, slots: Slots) -> Run:
    """dst[rows] += src, or dst += src[rows]."""
    dst, srcs = instruction["dst"], instruction["srcs"]
    first = srcs[0] if matches(srcs[0], dst) else srcs[1]
    second = srcs[1] if first is srcs[0] else srcs[0]
    old, new = gather(instruction, first, slots), gather(instruction, second, slots)
    write = scatter(instruction, dst, slots)
    check = _check_unique(instruction, dst, slots) if is_by_row(dst) else None

    def run(views: Arrays) -> None:
        before, valid = old(views)
        values, rows = new(views)
        if check is not None:
            check(views, valid)
        total = as_float32(before) + as_float32(values).reshape(before.shape)
        write(views, total, rows if valid is None else valid)

    return run


def _check_unique(instruction: Instruction, dst: NkiTensor, slots: Slots) -> Any:
    """A function that raises if two rows of the index are the same: the sums would race."""
    assert dst.dynamic is not None
    assert dst.dynamic.rows is not None
    index = slots(dst.dynamic.rows)

    def check(views: Arrays, valid: Array | None) -> None:
        rows = views[index].reshape(-1)
        rows = rows if valid is None else rows[valid]
        found, counts = np.unique(rows, return_counts=True)
        if len(found) == len(rows):
            return
        raise NkiValidationError(
            [
                Violation(
                    "dma-indices",
                    f"row {int(found[counts > 1][0])} of `{dst.name}` is added to more than once",
                    "Add up what goes to one row first: the DMA reads rows before it writes them",
                    instruction.file,
                    instruction.line,
                    instruction.spec.name,
                    operand="dst",
                    limit="each row once",
                    value=f"{int(counts.max())} times",
                )
            ]
        )

    return check


NUMBERS = frozenset(dtype for dtype in DTYPES.values() if not dtype.packed)


@instruction(
    operands={
        "dst": Operand("write", "free", HBM | SBUF, dtypes=NUMBERS),
        "srcs": Operand("read", "free", HBM | SBUF, dtypes=NUMBERS, many=True),
    },
    engines=("dma",),
    lower=_compute,
    cost="DMA",
    source="nki_facts.md §2.4",
    extra_check=check_dma_compute,
    operators={"reduce_op": frozenset({add})},
    parameters_since={"oob_mode": "0.4"},
)
def dma_compute(
    dst: Any,
    srcs: Any,
    reduce_op: Any,
    scales: Any = None,
    unique_indices: bool = True,
    oob_mode: oob_mode = oob_mode.error,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = the sum of srcs by DMA, in fp32, cast once.

    With rows by number (`.ap(vector_offset=…)`) it adds to what dst holds, with two sources of
    which one is dst: `dst[rows] += src` in HBM, or `dst += src[rows]` in SBUF.

    Args:
        dst: HBM or SBUF.
        srcs: up to 16 tensors of as many elements.
        reduce_op: nl.add.
        scales: None, or a 1.0 for each source.
        unique_indices: must be True; a row that comes twice is an error when it happens.
        oob_mode: skip leaves out rows whose number is out of bounds.
        name: a label.
    """
    return dst, srcs, reduce_op, scales, unique_indices, oob_mode, name
