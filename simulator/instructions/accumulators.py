"""The Vector engine's accumulator registers: one fp32 for each partition of an instruction.

exponential, range_select, select_reduce, tensor_scalar_reduce and tensor_scalar_cumulative
share them (nki_facts.md §2.9). An instruction that runs with `idle` may leave anything in
them; here it leaves NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.instructions.datapath import row_sums
from simulator.instructions.limits import Check
from simulator.instructions.table import Array, Arrays, Slots
from simulator.numerics import as_float32, store
from simulator.operators import Operator, add
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

IDENTITY = {
    "add": 0.0,
    "subtract": 0.0,
    "multiply": 1.0,
    "maximum": -np.inf,
    "minimum": np.inf,
}
"""What `reset` and `reset_reduce` put in the registers, by operator."""

Collect = Callable[[Arrays, Array], None]
ReadOut = Callable[[Arrays], None]


def column(value: Any, count: int, slots: Slots) -> Callable[[Arrays], Any]:
    """A function (views) -> fp32 number, or fp32[count] of a (P, 1) tile."""
    if not isinstance(value, NkiTensor):
        number = np.float32(value)
        return lambda views: number
    slot = slots(value)
    return lambda views: as_float32(views[slot]).reshape(count)


def accumulate(
    instruction: Instruction, slots: Slots, operator: Operator, count: int
) -> tuple[Collect, ReadOut]:
    """The two halves of what an instruction does to the registers.

    Args:
        instruction: with reduce_cmd, reduce_res and perhaps reduce_init, reduce_res_negate.
        slots: of the plan.
        operator: add, multiply, maximum or minimum.
        count: partitions of the instruction.

    Returns:
        A function (views, fp32 values of any shape with `count` rows) that updates the
        registers, and a function (views) that writes them to reduce_res, to be called after
        dst is written.
    """
    command: str = instruction["reduce_cmd"].name
    registers = slots.accumulators("vector")
    ufunc = operator.reduction
    assert ufunc is not None
    reduce = row_sums if operator is add else _over_free_dimensions(ufunc)
    identity = np.float32(IDENTITY[operator.name])
    init = instruction.get("reduce_init")
    initial = column(0.0 if init is None else init, count, slots)

    def collect(views: Arrays, values: Array) -> None:
        held = views[registers]
        if command == "idle":
            held[...] = np.nan
            return
        held = held[:count]
        if command == "reset":
            held[...] = identity
            return
        reduced = reduce(values)
        if command == "reset_reduce":
            held[...] = reduced
        else:
            ufunc(held if command == "reduce" else initial(views), reduced, out=held)

    return collect, _read_out(instruction, slots, registers, count)


def _over_free_dimensions(ufunc: np.ufunc) -> Callable[[Array], Array]:
    return lambda values: ufunc.reduce(values, axis=tuple(range(1, values.ndim)))


def _read_out(instruction: Instruction, slots: Slots, registers: int, count: int) -> ReadOut:
    result = instruction["reduce_res"]
    if result is None:
        return lambda views: None
    to, write, shape = slots(result), store(result.dtype), result.shape
    negate = bool(instruction.get("reduce_res_negate", False))

    def read_out(views: Arrays) -> None:
        held = views[registers][:count].reshape(shape)
        write(views[to], np.negative(held) if negate else held)

    return read_out


def commands(*allowed: str) -> Check:
    """The accumulator commands an instruction has, and initial values only where loaded."""

    def check(program: Program, instruction: Instruction) -> None:
        command = instruction["reduce_cmd"].name
        if command not in allowed:
            program.report(
                instruction,
                "reduce-cmd",
                f"{instruction.spec.name} has no accumulator command {command}",
                f"Use one of: {', '.join(allowed)}",
                operand="reduce_cmd",
                limit=", ".join(allowed),
                value=command,
            )

    return check


def initial_value(name: str) -> Check:
    """The registers' initial value: given exactly where `load_reduce` loads it."""

    def check(program: Program, instruction: Instruction) -> None:
        value, default = instruction[name], instruction.spec.defaults[instruction.spec.index[name]]
        given = isinstance(value, NkiTensor) or value not in (None, 0.0)
        loads = instruction["reduce_cmd"].name == "load_reduce"
        missing = loads and value is None and default is None
        if missing or (given and not loads):
            program.report(
                instruction,
                "reduce-init",
                f"{name} is what load_reduce loads into the accumulators",
                f"Give {name} with reduce_cmd.load_reduce, and only then",
                operand=name,
                limit=f"{name} with load_reduce",
                value=f"{'no' if missing else 'a'} {name} with {instruction['reduce_cmd'].name}",
            )

    return check
