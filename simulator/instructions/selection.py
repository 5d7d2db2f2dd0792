"""Vector instructions that choose between values, and the shuffle of partitions.

Source: nki_facts.md §2.4, §2.6, §11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import dtypes
from simulator.enums import reduce_cmd
from simulator.instructions.accumulators import accumulate, commands
from simulator.instructions.datapath import reader
from simulator.instructions.limits import (
    all_of,
    is_integer,
    is_number,
    not_both_in_psum,
    operators_given,
    refuse_immediate,
    rows_of,
    same_dtype,
)
from simulator.instructions.table import Array, Arrays, Operand, Run, Slots, instruction
from simulator.instructions.vector import FLOATS, SMALL_INTEGERS
from simulator.numerics import store
from simulator.operators import (
    Operator,
    equal,
    greater,
    greater_equal,
    less,
    less_equal,
    maximum,
    not_equal,
)
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.dtypes import DType
    from simulator.program import Instruction, Program

__all__ = ["nc_stream_shuffle", "range_select", "select_reduce", "tensor_copy_predicated"]

COMPARE: dict[Operator, np.ufunc] = {
    equal: np.equal,
    not_equal: np.not_equal,
    greater: np.greater,
    greater_equal: np.greater_equal,
    less: np.less,
    less_equal: np.less_equal,
}
"""The comparisons as masks."""

FP32_MIN = float(np.finfo(np.float32).min)


def constant(dtype: DType, value: float) -> Callable[[Any], Array]:
    """A function (NumPy dtype of a view) -> [value] as an engine writes it to such a view."""
    made: dict[Any, Array] = {}
    write = store(dtype)

    def give(physical: Any) -> Array:
        array = made.get(physical)
        if array is None:
            array = made[physical] = np.empty(1, physical)
            write(array, np.full(1, value, np.float32))
        return array

    return give


def mask_of(predicate: NkiTensor, shape: tuple[int, ...], reverse: bool, slots: Slots) -> Any:
    """A function (views) -> where the predicate is not 0 (reversed: where it is 0)."""
    slot = slots(predicate)
    compare = np.equal if reverse else np.not_equal
    return lambda views: compare(views[slot], 0).reshape(shape)


# --- tensor_copy_predicated ---------------------------------------------------------------


def _copy_predicated(instruction: Instruction, slots: Slots) -> Run:
    dst, src = instruction["dst"], instruction["src"]
    to, shape = slots(dst), dst.shape
    mask = mask_of(instruction["predicate"], shape, instruction["reverse_pred"], slots)
    if isinstance(src, NkiTensor):
        frm = slots(src)

        def copy(views: Arrays) -> None:
            np.copyto(views[to], views[frm].reshape(shape), where=mask(views))

        return copy
    value = constant(dst.dtype, src)

    def fill(views: Arrays) -> None:
        view = views[to]
        np.copyto(view, value(view.dtype), where=mask(views))

    return fill


_UNSIGNED = frozenset({dtypes.uint8, dtypes.uint16, dtypes.uint32})


@instruction(
    operands={
        "dst": Operand("update"),
        "src": Operand("read", number=True),
        "predicate": Operand("read", dtypes=_UNSIGNED),
    },
    engines=("vector",),
    lower=_copy_predicated,
    cost="max(64, N) if one of src and predicate is in PSUM; else max(64, 2N)",
    source="nki_facts.md §2.4",
    extra_check=all_of(
        same_dtype("dst", "src"),
        not_both_in_psum("src", "predicate"),
        indirect=("dst", "predicate"),
    ),
)
def tensor_copy_predicated(
    dst: Any, src: Any, predicate: Any, reverse_pred: bool = False, name: str | None = None
) -> tuple[Any, ...]:
    """dst = src where predicate is not 0; elsewhere dst stays as it is. Moves bits.

    Args:
        dst: (P, N) tile.
        src: (P, N) tile of dst's dtype, or a number.
        predicate: (P, N) tile of uint8, uint16 or uint32; not in PSUM together with src.
        reverse_pred: copy where predicate is 0 instead.
        name: for debugging.
    """
    return dst, src, predicate, reverse_pred, name


# --- nc_stream_shuffle --------------------------------------------------------------------

QUADRANT = 32
KEEP = 255
"""In a shuffle mask: this partition of dst stays as it is."""


def _shuffled_rows(instruction: Instruction) -> tuple[list[int], list[int]]:
    """Rows of dst that are written, and the rows of src they come from."""
    mask = instruction["shuffle_mask"]
    to = [row for row in range(instruction["dst"].shape[0]) if mask[row % QUADRANT] != KEEP]
    return to, [row // QUADRANT * QUADRANT + mask[row % QUADRANT] for row in to]


def _is_mask(mask: Any) -> bool:
    return (
        isinstance(mask, list | tuple)
        and len(mask) == QUADRANT
        and all(is_integer(i) and (0 <= i < QUADRANT or i == KEEP) for i in mask)
    )


def _shuffled_parts(instruction: Instruction, name: str, tensor: NkiTensor) -> list[NkiTensor]:
    """Rows a mask leaves out are neither read nor written."""
    if not _is_mask(instruction["shuffle_mask"]):
        return [tensor]
    to, frm = _shuffled_rows(instruction)
    return rows_of(tensor, to if name == "dst" else sorted(set(frm)))


def _shuffle(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    to, frm = slots(dst), slots(instruction["src"])
    dst_rows, src_rows = (np.array(rows) for rows in _shuffled_rows(instruction))
    shape = (len(dst_rows), *dst.shape[1:])
    if len(dst_rows) == 0:
        return lambda views: None

    def run(views: Arrays) -> None:
        views[to][dst_rows] = views[frm][src_rows].reshape(shape)

    return run


def _check_shuffle(program: Program, instruction: Instruction) -> None:
    if not _is_mask(instruction["shuffle_mask"]):
        refuse_immediate(
            program, instruction, "shuffle_mask", "32 numbers, each 0 to 31 or 255",
            "Name for each partition of a quadrant the one it copies from, or 255 to keep it",
        )  # fmt: skip
        return
    dst, src = instruction["dst"], instruction["src"]
    highest = max(_shuffled_rows(instruction)[1], default=0)
    if highest >= src.shape[0]:
        program.report(
            instruction,
            "out-of-bounds",
            f"the mask reads partition {highest} of src, which has {src.shape[0]}",
            "Slice src to whole quadrants, as many as dst has",
            operand="src",
            limit=str(src.shape[0]),
            value=str(highest),
        )
    if dst.free_size != src.free_size:
        program.report(
            instruction,
            "no-broadcast",
            f"src has {src.free_size} elements per partition, dst has {dst.free_size}",
            "Slice both to the same number of elements",
            operand="src",
            limit=str(dst.free_size),
            value=str(src.free_size),
        )
    _check_shuffle_starts(program, instruction, dst, src)


def _check_shuffle_starts(
    program: Program, instruction: Instruction, dst: NkiTensor, src: NkiTensor
) -> None:
    """Both must start where the larger of them may, counted in whole quadrants."""
    larger = max(dst.shape[0], src.shape[0])
    starts = (0,) if larger > 64 else (0, 64) if larger > 32 else (0, 32, 64, 96)
    for name, tensor in (("dst", dst), ("src", src)):
        # The larger one is checked as every operand is.
        if tensor.shape[0] != larger and tensor.start_partition not in starts:
            program.report(
                instruction,
                "partition-start",
                f"a shuffle over {larger} partitions with {name} starting at partition "
                f"{tensor.start_partition}",
                "Shuffle quadrant by quadrant",
                operand=name,
                limit=f"start at {' or '.join(map(str, starts))}",
                value=str(tensor.start_partition),
            )


@instruction(
    operands={"dst": Operand("write", "free"), "src": Operand("read", "free")},
    engines=("vector",),
    lower=_shuffle,
    cost="max(64, N)",
    source="nki_facts.md §2.4",
    extra_check=all_of(same_dtype("dst", "src"), _check_shuffle),
    parts=_shuffled_parts,
)
def nc_stream_shuffle(
    dst: Any, src: Any, shuffle_mask: Any, name: str | None = None
) -> tuple[Any, ...]:
    """In each quadrant of 32 partitions: dst[i] = src[shuffle_mask[i]]; 255 keeps dst[i].

    Args:
        dst: tile; only the partitions that the mask writes are touched.
        src: tile of dst's dtype and elements per partition; may be dst itself.
        shuffle_mask: 32 numbers, used for every quadrant.
        name: for debugging.
    """
    return dst, src, shuffle_mask, name


# --- select_reduce, range_select ----------------------------------------------------------


def _select(instruction: Instruction, slots: Slots, mask: Any, false: Any, true: Any) -> Run:
    """dst = where(mask, true, false), and its maximum into the accumulators."""
    dst = instruction["dst"]
    to, write = slots(dst), store(dst.dtype)
    collect, read_out = accumulate(instruction, slots, maximum, dst.shape[0])

    def run(views: Arrays) -> None:
        values = np.where(mask(views), true(views), false(views))
        collect(views, values)
        write(views[to], values)
        read_out(views)

    return run


def _select_reduce(instruction: Instruction, slots: Slots) -> Run:
    shape = instruction["dst"].shape
    return _select(
        instruction,
        slots,
        mask_of(instruction["predicate"], shape, instruction["reverse_pred"], slots),
        reader(instruction["on_false"], shape, slots),
        reader(instruction["on_true"], shape, slots),
    )


_SELECTABLE = frozenset(
    dtype
    for dtype in dtypes.DTYPES.values()
    if dtype not in (dtypes.tfloat32, dtypes.int32, dtypes.uint32) and not dtype.packed
)
_MAXIMUM = frozenset({maximum})


@instruction(
    operands={
        "dst": Operand("write"),
        "predicate": Operand("read", dtypes=SMALL_INTEGERS),
        "on_true": Operand("read", dtypes=_SELECTABLE),
        "on_false": Operand("read", "column", number=True),
        "reduce_res": Operand("write", "column", optional=True, dtypes=FLOATS),
    },
    engines=("vector",),
    lower=_select_reduce,
    cost="max(64, 2N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(
        not_both_in_psum("on_true", "predicate"),
        commands("idle", "reset_reduce", "reduce"),
        operators_given("reduce_op"),
    ),
    operators={"reduce_op": _MAXIMUM},
    accumulates="vector",
)
def select_reduce(
    dst: Any,
    predicate: Any,
    on_true: Any,
    on_false: Any,
    reduce_res: Any = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    reduce_op: Any = maximum,
    reverse_pred: bool = False,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = on_true where predicate is not 0, else on_false; and its row maximum.

    Args:
        dst: (P, N) tile.
        predicate: (P, N) tile of int8, int16, uint8 or uint16.
        on_true: (P, N) tile, not int32, uint32 or tfloat32; not in PSUM with predicate.
        on_false: number or (P, 1) column.
        reduce_res: (P, 1) floating-point column for the accumulators' maximum.
        reduce_cmd: idle, reset_reduce or reduce.
        reduce_op: maximum.
        reverse_pred: select on_true where predicate is 0.
        name: for debugging.
    """
    return (
        dst, predicate, on_true, on_false, reduce_res, reduce_cmd, reduce_op, reverse_pred, name,
    )  # fmt: skip


def _range_select(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    shape = dst.shape
    indices = np.arange(dst.free_size) + instruction["range_start"]
    indices = indices.astype(np.float32).reshape((1, *shape[1:]))
    compare = [COMPARE[instruction[name]] for name in ("comp_op0", "comp_op1")]
    bounds = [reader(instruction[name], shape, slots) for name in ("bound0", "bound1")]

    def mask(views: Arrays) -> Array:
        first: Array = compare[0](indices, bounds[0](views))
        second: Array = compare[1](indices, bounds[1](views))
        return np.logical_and(first, second, out=first)

    true = reader(instruction["on_true_tile"], shape, slots)
    lowest = np.float32(FP32_MIN)
    return _select(instruction, slots, mask, lambda views: lowest, true)


EXACT_INTEGERS = 2**24
"""Integers below it are exact in fp32."""


def _check_range_select(program: Program, instruction: Instruction) -> None:
    value = instruction["on_false_value"]
    if value is not Ellipsis and not (is_number(value) and np.float32(value) == FP32_MIN):
        refuse_immediate(
            program, instruction, "on_false_value", "-3.4028235e+38 (the lowest fp32 number)",
            "The hardware has no other: leave it out, or select with nisa.select_reduce",
        )  # fmt: skip
    start = instruction["range_start"]
    end = instruction["dst"].free_size
    if not is_integer(start) or not -EXACT_INTEGERS <= start <= EXACT_INTEGERS - end:
        refuse_immediate(
            program, instruction, "range_start", f"an integer, range_start + {end} <= 2**24",
            "Indices are compared in fp32, which is exact up to 2**24",
        )  # fmt: skip


_BOUND = Operand("read", "column", float32=True)
_RANGE_COMPARE = frozenset({equal, less, less_equal, greater, greater_equal})


@instruction(
    operands={
        "dst": Operand("write"),
        "on_true_tile": Operand("read", dtypes=FLOATS),
        "bound0": _BOUND,
        "bound1": _BOUND,
        "reduce_res": Operand("write", "column", optional=True),
    },
    engines=("vector",),
    lower=_range_select,
    cost="max(64, N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(
        commands("idle", "reset", "reduce", "reset_reduce"),
        operators_given("comp_op0", "comp_op1", "reduce_op"),
        _check_range_select,
    ),
    operators={"comp_op0": _RANGE_COMPARE, "comp_op1": _RANGE_COMPARE, "reduce_op": _MAXIMUM},
    accumulates="vector",
)
def range_select(
    dst: Any,
    on_true_tile: Any,
    comp_op0: Any,
    comp_op1: Any,
    bound0: Any,
    bound1: Any,
    reduce_cmd: reduce_cmd = reduce_cmd.reset_reduce,
    reduce_res: Any = None,
    reduce_op: Any = maximum,
    range_start: int = 0,
    on_false_value: Any = ...,
    name: str | None = None,
) -> tuple[Any, ...]:
    """Keep the elements whose index lies within bounds, FP32_MIN elsewhere; and the row maximum.

    index[j] = range_start + j over the flattened free dimensions, compared in fp32.

    Args:
        dst: (P, N) tile. FP32_MIN becomes -inf in dtypes smaller than fp32.
        on_true_tile: (P, N) floating-point tile.
        comp_op0: equal, less, less_equal, greater or greater_equal: index comp_op0 bound0.
        comp_op1: likewise with bound1; both must hold.
        bound0: (P, 1) fp32 column.
        bound1: (P, 1) fp32 column.
        reduce_cmd: reset_reduce, reduce, reset or idle.
        reduce_res: (P, 1) column for the accumulators' maximum.
        reduce_op: maximum.
        range_start: compile-time integer.
        on_false_value: FP32_MIN, -3.4028235e+38; nothing else exists in hardware.
        name: for debugging.
    """
    return (
        dst, on_true_tile, comp_op0, comp_op1, bound0, bound1, reduce_cmd, reduce_res, reduce_op,
        range_start, on_false_value, name,
    )  # fmt: skip
