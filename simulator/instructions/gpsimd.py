"""GpSimd: segments, non-zero elements, top k, reductions over partitions.

GpSimd cannot reach PSUM: every operand is in SBUF. Source: nki_facts.md §2.6, §2.8, §11.
Affine patterns are in `affine.py`, gathers in `gathers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import dtypes
from simulator.instructions.affine import store_integers
from simulator.instructions.arithmetic import note_operators
from simulator.instructions.limits import (
    all_of,
    elements,
    integer,
    is_integer,
    operators_given,
    partitions_multiple_of,
    refuse_immediate,
    same_partitions,
)
from simulator.instructions.table import SBUF, Array, Arrays, Operand, Run, Slots, instruction
from simulator.numerics import as_float32, store
from simulator.operators import OPERATORS
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["nonzero_with_count", "sequence_bounds", "tensor_partition_reduce", "topk"]

CORE = 16
"""Partitions that each of the 8 GpSimd cores is connected to."""


# --- sequence_bounds, nonzero_with_count --------------------------------------------------


def _bounds(instruction: Instruction, slots: Slots) -> Run:
    dst, ids = instruction["dst"], instruction["segment_ids"]
    to, frm, write = slots(dst), slots(ids), store_integers(dst.dtype)
    size = ids.free_size
    index = np.arange(size)

    def run(views: Arrays) -> None:
        segments = views[frm].reshape(size)
        new = np.ones(size + 1, np.bool_)  # element i begins a segment; so does the end
        new[1:size] = segments[1:] != segments[:-1]
        start = np.maximum.accumulate(np.where(new[:-1], index, 0))
        end = np.minimum.accumulate(np.where(new[1:], index + 1, size)[::-1])[::-1]
        padding = segments == 0
        found = np.stack((np.where(padding, size, start), np.where(padding, -1, end)))
        write(views[to], found.reshape(dst.shape))

    return run


def _check_one_partition(program: Program, instruction: Instruction) -> None:
    count = instruction["segment_ids"].shape[0]
    if count != 1:
        program.report(
            instruction,
            "shape",
            f"sequence_bounds works on one partition, segment_ids has {count}",
            "Call it row by row",
            operand="segment_ids",
            limit="1 partition",
            value=str(count),
        )


_FLOAT_OR_INT = frozenset({dtypes.float32, dtypes.int32})


@instruction(
    operands={
        "dst": Operand("write", "free", SBUF, dtypes=_FLOAT_OR_INT),
        "segment_ids": Operand("read", "free", SBUF, dtypes=_FLOAT_OR_INT),
    },
    engines=("gpsimd",),
    lower=_bounds,
    cost="150 + N",
    source="nki_facts.md §2.8",
    extra_check=all_of(
        _check_one_partition,
        same_partitions("segment_ids", "dst"),
        elements("dst", lambda instruction: 2 * instruction["segment_ids"].free_size),
    ),
)
def sequence_bounds(dst: Any, segment_ids: Any, name: str | None = None) -> tuple[Any, ...]:
    """Where the run of equal segment ids that an element belongs to starts and ends.

    Args:
        dst: (1, 2, n) fp32 or int32 tile: starts, then ends (one past the last element).
            Padding gets (n, -1).
        segment_ids: (1, n) fp32 or int32 tile of numbers >= 0; 0 is padding.
        name: for debugging.
    """
    return dst, segment_ids, name


def _nonzero(instruction: Instruction, slots: Slots) -> Run:
    dst, src = instruction["dst"], instruction["src"]
    to, frm, size = slots(dst), slots(src), src.free_size
    rows = -(-src.shape[0] // CORE)
    offset, padding = int(instruction["index_offset"]), int(instruction["padding_val"])

    def run(views: Arrays) -> None:
        row, column = np.nonzero(views[frm][::CORE].reshape(rows, size))
        counts = np.bincount(row, minlength=rows)
        begins = np.cumsum(counts) - counts
        found = np.full((rows, size + 1), padding, np.int32)
        found[row, np.arange(len(row)) - begins[row]] = column + offset
        found[:, size] = counts
        views[to][::CORE] = found.reshape((rows, *dst.shape[1:]))

    return run


def _first_of_cores(instruction: Instruction, name: str, tensor: NkiTensor) -> list[NkiTensor]:
    """Each core reads and writes its first partition only."""
    return [tensor[::CORE]]


@instruction(
    operands={
        "dst": Operand("write", "free", SBUF, dtypes=frozenset({dtypes.int32})),
        "src": Operand("read", "free", SBUF, dtypes=_FLOAT_OR_INT),
    },
    engines=("gpsimd",),
    lower=_nonzero,
    cost="150 + N",
    source="nki_facts.md §2.8",
    extra_check=all_of(
        same_partitions("src", "dst"),
        elements("dst", lambda instruction: instruction["src"].free_size + 1),
        integer("index_offset"),
        integer("padding_val"),
    ),
    parts=_first_of_cores,
)
def nonzero_with_count(
    dst: Any, src: Any, index_offset: int = 0, padding_val: int = -1, name: str | None = None
) -> tuple[Any, ...]:
    """Indices of the non-zero elements of partitions 0, 16, 32, …; padding; how many there are.

    Args:
        dst: (P, N + 1) int32 tile in SBUF; its other partitions stay as they are.
        src: (P, N) fp32 or int32 tile in SBUF; its other partitions are not read.
        index_offset: int32 added to every index.
        padding_val: int32 between the last index and the count.
        name: for debugging.
    """
    return dst, src, index_offset, padding_val, name


# --- topk ---------------------------------------------------------------------------------


def _topk(instruction: Instruction, slots: Slots) -> Run:
    values, indices, src = (instruction[name] for name in ("val_dst", "idx_dst", "src"))
    to, to_index, frm = slots(values), slots(indices), slots(src)
    cores, size, n, k = src.shape[0] // CORE, src.free_size, instruction["n"], values.free_size
    wide = (cores, CORE, k)

    def run(views: Arrays) -> None:
        snake = views[frm].reshape(cores, CORE, size).transpose(0, 2, 1).reshape(cores, -1)[:, :n]
        order = np.argsort(-snake.astype(np.float32), axis=1, kind="stable")[:, k - 1 :: -1]
        best = np.take_along_axis(snake, order, axis=1)
        for slot, found in ((to, best), (to_index, order)):
            view = views[slot]
            repeated = np.broadcast_to(found[:, None, :], wide).reshape(view.shape)
            view[...] = repeated.astype(view.dtype)

    return run


def _check_topk(program: Program, instruction: Instruction) -> None:
    n, k, size = instruction["n"], instruction["val_dst"].free_size, instruction["src"].free_size
    most = min(CORE * size, 65_535)
    if not is_integer(n) or not 8 <= n <= most:
        refuse_immediate(
            program, instruction, "n", f"8 to {most}",
            "n elements lie 16 to a column over 16 partitions: src needs ceil(n / 16) columns",
        )  # fmt: skip
    elif k > min(n, 32_767):
        program.report(
            instruction,
            "free-size",
            f"topk of {k} among {n} elements",
            "Ask for fewer, or split the search",
            operand="val_dst",
            limit=f"1 to {min(n, 32_767)}",
            value=str(k),
        )


@instruction(
    operands={
        "val_dst": Operand("write", "free", SBUF, dtypes=frozenset({dtypes.bfloat16})),
        "idx_dst": Operand("write", "free", SBUF, dtypes=frozenset({dtypes.uint32})),
        "src": Operand("read", "free", SBUF, dtypes=frozenset({dtypes.bfloat16})),
    },
    engines=("gpsimd",),
    lower=_topk,
    cost="4 n + K",
    source="nki_facts.md §2.8",
    extra_check=all_of(
        same_partitions("src", "val_dst", "idx_dst"),
        partitions_multiple_of("src", CORE),
        elements("idx_dst", lambda instruction: instruction["val_dst"].free_size),
        _check_topk,
    ),
    since="0.6",
)
def topk(val_dst: Any, idx_dst: Any, src: Any, n: Any, name: str | None = None) -> tuple[Any, ...]:
    """The K largest of the n elements that each 16 partitions hold, in ascending order.

    Element i of a group of 16 partitions is at partition i % 16, column i // 16. All 16
    partitions of the group get the same result.

    Args:
        val_dst: (P, K) bf16 tile in SBUF, P a multiple of 16, 1 <= K <= 32767, K <= n.
        idx_dst: (P, K) uint32 tile in SBUF: the elements' numbers. Of equal elements those
            with lower numbers are taken, and the higher number comes first.
        src: (P, X) bf16 tile in SBUF, X >= ceil(n / 16).
        n: compile-time integer, 8 to 65535.
        name: for debugging.
    """
    return val_dst, idx_dst, src, n, name


# --- tensor_partition_reduce --------------------------------------------------------------


def _average(x: Array, axis: int) -> Any:
    return np.add.reduce(x, axis=axis) / np.float32(x.shape[axis])


_OVER_PARTITIONS: dict[str, Callable[..., Any]] = {
    "add": np.add.reduce,
    "average": _average,
    "maximum": np.maximum.reduce,
    "bitwise_and": np.bitwise_and.reduce,
    "bitwise_or": np.bitwise_or.reduce,
}


def _is_bitwise(instruction: Instruction) -> bool:
    return getattr(instruction["op"], "name", "").startswith("bitwise")


def _partition_reduce(instruction: Instruction, slots: Slots) -> Run:
    dst, data = instruction["dst"], instruction["data"]
    to, frm, write = slots(dst), slots(data), store(dst.dtype)
    reduce = _OVER_PARTITIONS[instruction["op"].name]
    if _is_bitwise(instruction):

        def bits(views: Arrays) -> None:
            views[to][...] = reduce(views[frm], axis=0).reshape(dst.shape)

        return bits

    def run(views: Arrays) -> None:
        write(views[to], reduce(as_float32(views[frm]), axis=0).reshape(dst.shape))

    return run


def _check_partition_reduce(program: Program, instruction: Instruction) -> None:
    dst, data = instruction["dst"], instruction["data"]
    if dst.shape[0] != 1:
        program.report(
            instruction,
            "shape",
            f"dst must have one partition, it has {dst.shape[0]}",
            "Slice it to its first partition",
            operand="dst",
            limit="1 partition",
            value=str(dst.shape[0]),
        )
    if _is_bitwise(instruction) and (dst.dtype is not data.dtype or dst.dtype.is_float):
        program.report(
            instruction,
            "dtype",
            "bitwise operators work on bits: dst and data must have one integer dtype",
            "Give both the same integer dtype",
            operand="dst",
            limit="data's dtype, an integer one",
            value=f"{dst.dtype} from {data.dtype}",
        )


@instruction(
    operands={
        "dst": Operand("write", "free", SBUF),
        "data": Operand("read", "free", SBUF),
    },
    engines=("gpsimd",),
    lower=_partition_reduce,
    cost="150 + N",
    source="nki_facts.md §2.6, §8 trap 16",
    extra_check=all_of(
        _check_partition_reduce,
        elements("dst", lambda instruction: instruction["data"].free_size),
        operators_given("op"),
    ),
    operators={"op": frozenset(OPERATORS[name] for name in _OVER_PARTITIONS)},
    resolve=note_operators,
)
def tensor_partition_reduce(
    dst: Any, op: Any, data: Any, name: str | None = None
) -> tuple[Any, ...]:
    """dst = op over data's partitions. Very slow: prefer nc_matmul with ones.

    Args:
        dst: (1, N) tile in SBUF.
        op: add, average, maximum, bitwise_and or bitwise_or.
        data: (P, N) tile in SBUF.
        name: for debugging.
    """
    return dst, op, data, name
