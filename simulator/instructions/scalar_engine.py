"""Scalar engine: activation functions with scale, bias and a running sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.enums import reduce_cmd
from simulator.instructions.elementwise import reader
from simulator.instructions.table import Array, Arrays, Operand, Run, Slots, instruction
from simulator.numerics import store
from simulator.operators import ACTIVATIONS, add

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["activation", "activation_reduce"]


def _activated(instruction: Instruction, slots: Slots):  # type: ignore[no-untyped-def]
    """A function (views) -> op(data * scale + bias) in fp32."""
    data, scale, bias = instruction["data"], instruction["scale"], instruction["bias"]
    x = reader(data, data.shape, slots)
    function = instruction["op"].unary
    plain_scale = isinstance(scale, int | float) and scale == 1
    times = reader(scale, data.shape, slots)
    plain_bias = bias is None or (isinstance(bias, int | float) and bias == 0)
    plus = reader(0.0 if bias is None else bias, data.shape, slots)

    def run(views: Arrays) -> Array:
        value = x(views)
        if not plain_scale:
            value = value * times(views)
        if not plain_bias:
            value = value + plus(views)
        return function(value)  # type: ignore[no-any-return]

    return run


def _accumulate(instruction: Instruction, slots: Slots, command: str):  # type: ignore[no-untyped-def]
    """A function (views, fp32 result) that runs the accumulators (nki_facts.md §2.7)."""
    registers = slots.accumulators("scalar")
    result = instruction["reduce_res"]
    count = instruction["data"].shape[0]
    to = None if result is None else slots(result)
    write = None if result is None else store(result.dtype)
    shape = None if result is None else result.shape

    def run(views: Arrays, values: Array) -> None:
        sums = views[registers][:count]
        if command in ("reset", "reset_reduce"):
            sums[...] = 0
        if command in ("reduce", "reset_reduce"):
            sums += np.add.reduce(values.reshape(count, -1), axis=1)
        if to is not None and write is not None:
            write(views[to], sums.reshape(shape))

    return run


def _lower(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    activated = _activated(instruction, slots)
    to, write, shape = slots(dst), store(dst.dtype), dst.shape
    command = command_of(instruction)
    if command == "idle" and instruction["reduce_res"] is None:
        return lambda views: write(views[to], activated(views).reshape(shape))
    accumulate = _accumulate(instruction, slots, command)

    def run(views: Arrays) -> None:
        values = activated(views)
        accumulate(views, values)
        write(views[to], values.reshape(shape))

    return run


def command_of(instruction: Instruction) -> str:
    """The accumulator command; activation_reduce always resets and reduces."""
    if instruction.spec.name == "activation_reduce":
        return "reset_reduce"
    return str(instruction["reduce_cmd"].name)


def _check(program: Program, instruction: Instruction) -> None:
    command = command_of(instruction)
    if command in ("reduce", "reset_reduce") and instruction["reduce_op"] is None:
        program.report(
            instruction,
            "reduce-op",
            f"reduce_cmd {command} needs a reduce_op",
            "Give reduce_op=nl.add",
            operand="reduce_op",
            limit="nl.add",
            value="None",
        )
    if command == "load_reduce":
        program.report(
            instruction,
            "reduce-cmd",
            "load_reduce is not a command of the Scalar engine's accumulators",
            "Use reset_reduce, reduce, reset or idle",
            operand="reduce_cmd",
            limit="idle, reset, reduce, reset_reduce",
            value=command,
        )


_OPERANDS = {
    "dst": Operand("write"),
    "data": Operand("read"),
    "bias": Operand("read", "column", number=True, optional=True),
    "scale": Operand("read", "column", number=True, float32=True),
    "reduce_res": Operand("write", "column", optional=True),
}


@instruction(
    operands=_OPERANDS,
    engines=("scalar",),
    lower=_lower,
    cost="max(64, N); 64 more with reduce_res",
    source="nki_facts.md §2.7",
    extra_check=_check,
    operators={"op": ACTIVATIONS, "reduce_op": frozenset({add})},
    accumulates="scalar",
)
def activation(
    dst: Any,
    op: Any,
    data: Any,
    bias: Any = None,
    scale: Any = 1.0,
    reduce_op: Any = None,
    reduce_res: Any = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = op(data * scale + bias), with the Scalar engine's accumulators."""
    return dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd, name


@instruction(
    operands={**_OPERANDS, "reduce_res": Operand("write", "column")},
    engines=("scalar",),
    lower=_lower,
    cost="max(64, N) + 64",
    source="nki_facts.md §2.7",
    extra_check=_check,
    operators={"op": ACTIVATIONS, "reduce_op": frozenset({add})},
    accumulates="scalar",
)
def activation_reduce(
    dst: Any,
    op: Any,
    data: Any,
    reduce_op: Any,
    reduce_res: Any,
    bias: Any = None,
    scale: Any = 1.0,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = op(data * scale + bias), and its sum over all free dimensions in reduce_res."""
    return dst, op, data, reduce_op, reduce_res, bias, scale, name
