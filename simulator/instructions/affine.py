"""GpSimd: affine patterns, as values (iota) and as masks (affine_select).

Source: nki_facts.md §2.8, §11.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.instructions.limits import (
    all_of,
    integer,
    is_integer,
    is_number,
    operators_given,
    refuse_immediate,
)
from simulator.instructions.selection import COMPARE, constant
from simulator.instructions.table import SBUF, Array, Arrays, Operand, Run, Slots, instruction
from simulator.numerics import as_float32, store
from simulator.operators import equal
from simulator.registers import VirtualRegister

if TYPE_CHECKING:
    from simulator.dtypes import DType
    from simulator.program import Instruction, Program

__all__ = ["affine_select", "iota"]


def store_integers(dtype: DType) -> Callable[[Array, Array], None]:
    """A function (dst, int32 values) that writes integers exactly, or saturated, or as floats."""
    if dtype.is_float:
        write = store(dtype)
        return lambda dst, values: write(dst, values.astype(np.float32))
    info = np.iinfo(dtype.numpy)

    def exact(dst: Array, values: Array) -> None:
        dst[...] = np.clip(values.astype(np.int64), info.min, info.max).astype(dst.dtype)

    return exact


def _affine(instruction: Instruction, slots: Slots) -> Callable[[Arrays], Array]:
    """A function (views) -> offset + p * channel_multiplier + Σ step * i, as int32 of dst's shape.

    int32 arithmetic wraps. Without registers it is the same array every time.
    """
    dst = instruction["dst"]
    values = np.arange(dst.shape[0], dtype=np.int64)[:, None] * instruction["channel_multiplier"]
    for step, count in instruction["pattern"]:
        steps = np.arange(count, dtype=np.int64) * int(step)
        values = (values[:, :, None] + steps).reshape(dst.shape[0], -1)
    values = values.reshape(dst.shape)
    offset = instruction["offset"]
    if isinstance(offset, VirtualRegister):
        register = slots.register(offset)
        return lambda views: (values + views[register]).astype(np.int32)
    fixed = (values + int(offset)).astype(np.int32)
    return lambda views: fixed


def _iota(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    to, write = slots(dst), store_integers(dst.dtype)
    values = _affine(instruction, slots)
    if isinstance(instruction["offset"], VirtualRegister):
        return lambda views: write(views[to], values(views))
    made: dict[Any, Array] = {}

    def run(views: Arrays) -> None:
        view = views[to]
        if view.dtype not in made:
            made[view.dtype] = np.empty(view.shape, view.dtype)
            write(made[view.dtype], values(views))
        view[...] = made[view.dtype]

    return run


def _affine_select(instruction: Instruction, slots: Slots) -> Run:
    dst, src = instruction["dst"], instruction["on_true_tile"]
    to, frm, shape = slots(dst), slots(src), dst.shape
    values, compare = _affine(instruction, slots), COMPARE[instruction["cmp_op"]]
    false, write = constant(dst.dtype, instruction["on_false_value"]), store(dst.dtype)
    moves, in_place = src.dtype is dst.dtype, to == frm
    fixed = None
    if not isinstance(instruction["offset"], VirtualRegister):
        fixed = np.logical_not(compare(values([]), 0))

    def run(views: Arrays) -> None:
        view = views[to]
        if not moves:
            write(view, as_float32(views[frm]).reshape(shape))
        elif not in_place:
            view[...] = views[frm].reshape(shape)
        outside = np.logical_not(compare(values(views), 0)) if fixed is None else fixed
        np.copyto(view, false(view.dtype), where=outside)

    return run


def _is_pattern(pattern: Any) -> bool:
    return (
        isinstance(pattern, list | tuple)
        and 1 <= len(pattern) <= 4
        and all(
            isinstance(entry, list | tuple)
            and len(entry) == 2
            and all(is_integer(number) for number in entry)
            and entry[1] >= 1
            for entry in pattern
        )
    )


def _check_affine(program: Program, instruction: Instruction) -> None:
    pattern, size = instruction["pattern"], instruction["dst"].free_size
    if not _is_pattern(pattern):
        refuse_immediate(
            program, instruction, "pattern", "1 to 4 pairs [step, number of steps]",
            "Give one pair for each free dimension",
        )  # fmt: skip
    elif math.prod(count for _, count in pattern) != size:
        found = math.prod(count for _, count in pattern)
        refuse_immediate(
            program, instruction, "pattern", f"{size} elements, as dst has",
            "The product of the numbers of steps is dst's number of elements per partition",
            f"{found} elements",
        )  # fmt: skip
    if not isinstance(instruction["offset"], VirtualRegister):
        integer("offset")(program, instruction)


def _check_on_false(program: Program, instruction: Instruction) -> None:
    if not is_number(instruction["on_false_value"]):
        refuse_immediate(
            program, instruction, "on_false_value", "a number",
            "Give a compile-time number; to choose between tiles use nisa.select_reduce",
        )  # fmt: skip


@instruction(
    operands={"dst": Operand("write", buffers=SBUF)},
    engines=("gpsimd",),
    lower=_iota,
    cost="150 + N",
    source="nki_facts.md §2.8",
    extra_check=all_of(_check_affine, integer("channel_multiplier")),
)
def iota(
    dst: Any, pattern: Any, offset: Any = 0, channel_multiplier: int = 0, name: str | None = None
) -> tuple[Any, ...]:
    """dst = offset + p * channel_multiplier + Σ step * i, in int32, then cast.

    Args:
        dst: (P, N) tile in SBUF, of any dtype; integers saturate.
        pattern: up to 4 pairs [step, count], outermost first; the counts multiply to N.
        offset: int32, or a register.
        channel_multiplier: int32, times the partition's number within dst.
        name: for debugging.
    """
    return dst, pattern, offset, channel_multiplier, name


@instruction(
    operands={
        "dst": Operand("write", buffers=SBUF),
        "on_true_tile": Operand("read", buffers=SBUF),
    },
    engines=("gpsimd",),
    lower=_affine_select,
    cost="150 + N",
    source="nki_facts.md §2.8",
    extra_check=all_of(
        _check_affine, integer("channel_multiplier"), _check_on_false, operators_given("cmp_op")
    ),
    operators={"cmp_op": frozenset(COMPARE)},
)
def affine_select(
    dst: Any,
    pattern: Any,
    channel_multiplier: int,
    on_true_tile: Any,
    on_false_value: Any,
    cmp_op: Any = equal,
    offset: Any = 0,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = on_true_tile where the affine value (as in iota) cmp_op 0, else on_false_value.

    Args:
        dst: (P, N) tile in SBUF.
        pattern: as in iota.
        channel_multiplier: as in iota.
        on_true_tile: (P, N) tile in SBUF; its bits are kept if it has dst's dtype.
        on_false_value: number, taken as fp32.
        cmp_op: equal, not_equal, greater, greater_equal, less or less_equal.
        offset: int32, or a register.
        name: for debugging.
    """
    return (
        dst, pattern, channel_multiplier, on_true_tile, on_false_value, cmp_op, offset, name,
    )  # fmt: skip
