"""tensor_reduce: its meaning and its limits. Source: nki_facts.md §2.6, §2.10."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from simulator.instructions import bits
from simulator.instructions.arithmetic import check_dtypes, warn_widths
from simulator.instructions.datapath import Body, Reader, reader, row_sums, write
from simulator.instructions.table import Array, Arrays, Run, Slots
from simulator.operators import Operator, add
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program


def _axes(instruction: Instruction) -> tuple[int, ...]:
    """The reduced axes as a sorted tuple of non-negative integers; empty if they are none."""
    axis = instruction["axis"]
    rank = instruction["data"].ndim
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    if any(isinstance(a, bool) or not isinstance(a, int) for a in axes):
        return ()
    return tuple(sorted(a + rank if a < 0 else a for a in axes))


def lower_tensor_reduce(instruction: Instruction, slots: Slots) -> Run:
    """dst = the reduction, in fp32 or on bits."""
    dst, data, operator = instruction["dst"], instruction["data"], instruction["op"]
    kept = data.shape[: _axes(instruction)[0]]
    if operator.kind == "bitvec":
        return bits.reduce(instruction, slots, kept)
    x = reader(data, data.shape, slots, 1)
    negate, shape = bool(instruction["negate"]), dst.shape
    if data.ndim == 2 and shape == (data.shape[0], 1) and operator.name in ("maximum", "minimum"):
        return write(dst, slots, _rows(operator, x, negate), (data,))
    reduce = _reducer(operator, kept)

    def body(views: Arrays, out: Array) -> None:
        reduced = reduce(x(views)).reshape(shape)
        if negate:
            np.negative(reduced, out=out, casting="unsafe")
        else:
            np.copyto(out, reduced)

    return write(dst, slots, body)


def _rows(operator: Operator, x: Reader, negate: bool) -> Body:
    """The rows of a matrix reduced to a column, in one call."""
    ufunc = operator.reduction
    assert ufunc is not None

    def body(views: Arrays, out: Array) -> None:
        ufunc.reduce(x(views), axis=1, out=out, keepdims=True)
        if negate:
            np.multiply(out, np.float32(-1), out=out)  # np.negative errs on steps of 16 bytes

    return body


def _reducer(operator: Operator, kept: tuple[int, ...]) -> Callable[[Array], Array]:
    """A function that reduces what follows the kept dimensions of an fp32 array."""
    ufunc = operator.reduction
    assert ufunc is not None
    if operator is add and ufunc is np.add:
        if len(kept) == 1:
            return row_sums
        rows = int(np.prod(kept))
        return lambda x: row_sums(x.reshape(rows, -1))
    if operator.predicate is not None:
        return lambda x: ufunc.reduce(x.reshape((*kept, -1)), axis=-1).astype(np.float32)
    return lambda x: ufunc.reduce(x.reshape((*kept, -1)), axis=-1)


def check_tensor_reduce(program: Program, instruction: Instruction) -> None:
    """Trailing axes, dst's shape, dtypes."""
    data: NkiTensor = instruction["data"]
    axes = _axes(instruction)
    if not axes or axes != tuple(range(axes[0], data.ndim)) or axes[0] < 1:
        program.report(
            instruction,
            "reduce-axis",
            "tensor_reduce axis must be the last contiguous dim(s) of the tile",
            "Reduce trailing free dimensions; over partitions use a matmul with ones",
            operand="axis",
            limit=f"trailing axes of {data.ndim} dimensions, not 0",
            value=str(instruction["axis"]),
        )
    else:
        _check_reduced_shape(program, instruction, axes[0])
    operator = instruction["op"]
    if operator not in instruction.spec.operators["op"]:
        return
    check_dtypes(program, instruction, operator.kind, "dst", "data")
    if operator.kind == "bitvec":
        warn_widths(program, instruction, "dst", "data")
        if instruction["negate"]:
            program.report(
                instruction,
                "operand",
                "negate goes with arithmetic operators only",
                "Leave negate out",
                operand="negate",
                limit="False",
                value=str(instruction["negate"]),
            )


def _check_reduced_shape(program: Program, instruction: Instruction, first: int) -> None:
    dst, data = instruction["dst"], instruction["data"]
    kept = int(np.prod(data.shape[1:first]))
    if dst.shape[0] != data.shape[0]:
        program.report(
            instruction,
            "partition-mismatch",
            f"dst has {dst.shape[0]} partitions, data has {data.shape[0]}",
            "A reduction keeps the partitions: slice both alike",
            operand="dst",
            limit=str(data.shape[0]),
            value=str(dst.shape[0]),
        )
    elif dst.free_size != kept:
        program.report(
            instruction,
            "shape",
            f"dst has {dst.free_size} elements per partition, the reduction leaves {kept}",
            "Give dst the shape of the dimensions that are kept",
            operand="dst",
            limit=str(kept),
            value=str(dst.free_size),
        )
