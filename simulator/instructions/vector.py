"""Vector instructions that carry a value along: scans, and reductions into the accumulators.

Source: nki_facts.md §2.6, §2.9, §11. Free dimensions count as one, flattened. What is
reduced is the fp32 result, before it is cast to dst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import dtypes
from simulator.context import feature
from simulator.enums import reduce_cmd
from simulator.instructions.accumulators import (
    IDENTITY,
    accumulate,
    column,
    commands,
    initial_value,
)
from simulator.instructions.arithmetic import (
    check_dtypes,
    check_generation,
    check_operand,
    note_operators,
)
from simulator.instructions.datapath import reader, scratch
from simulator.instructions.elementwise import binary
from simulator.instructions.limits import (
    Check,
    all_of,
    free_dimensions,
    not_both_in_psum,
    operators_given,
)
from simulator.instructions.table import Array, Arrays, Operand, Run, Slots, instruction
from simulator.numerics import as_float32, store
from simulator.operators import (
    ALU,
    OPERATORS,
    Operator,
    add,
    maximum,
    minimum,
    multiply,
    subtract,
)

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = [
    "exponential", "tensor_scalar_cumulative", "tensor_scalar_reduce", "tensor_tensor_scan",
]  # fmt: skip

FLOATS = frozenset(
    {
        dtypes.float32, dtypes.tfloat32, dtypes.bfloat16, dtypes.float16, dtypes.float8_e4m3,
        dtypes.float8_e4m3fn, dtypes.float8_e5m2,
    }
)  # fmt: skip
SMALL_INTEGERS = frozenset({dtypes.int8, dtypes.int16, dtypes.uint8, dtypes.uint16})
NUMBER = Operand("read", "column", number=True, float32=True)
OPTIONAL_NUMBER = Operand("read", "column", number=True, optional=True, float32=True)


def _arithmetic(*tiles: str) -> Check:
    """Operators that the target has, on tiles that hold plain numbers."""

    def check(program: Program, instruction: Instruction) -> None:
        check_dtypes(program, instruction, "arithmetic", *tiles)
        for name in instruction.spec.operators:
            operator = instruction[name]
            if isinstance(operator, Operator) and operator.binary is not None:
                check_generation(program, instruction, name, operator.generation)

    return check


# --- tensor_tensor_scan -------------------------------------------------------------------


def _scan(instruction: Instruction, slots: Slots) -> Run:
    """Column by column over all partitions at once, which is the engine's own order."""
    dst = instruction["dst"]
    count, size = dst.shape[0], dst.free_size
    to, cast, shape = slots(dst), store(dst.dtype), dst.shape
    data0, data1 = slots(instruction["data0"]), slots(instruction["data1"])
    initial = column(instruction["initial"], count, slots)
    first = binary(instruction["op0"], instruction["reverse0"])
    second = binary(instruction["op1"], instruction["reverse1"])
    columns = [scratch(slots, (size, count), number) for number in range(3)]
    steps = list(zip(*columns, strict=True))

    def run(views: Arrays) -> None:
        for columned, data in zip(columns, (data0, data1), strict=False):
            np.copyto(columned, as_float32(views[data]).reshape(count, size).T)
        state = np.empty(count, np.float32)
        state[...] = initial(views)
        for x, y, result in steps:
            first(x, state, out=result)
            second(result, y, out=result)
            state = result
        cast(views[to], columns[2].T.reshape(shape))

    return run


@instruction(
    operands={
        "dst": Operand("write"),
        "data0": Operand("read"),
        "data1": Operand("read"),
        "initial": Operand("read", "column", number=True),
    },
    engines=("vector",),
    lower=_scan,
    cost="max(64, 2N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(
        not_both_in_psum("data0", "data1"),
        operators_given("op0", "op1"),
        _arithmetic("dst", "data0", "data1"),
    ),
    operators={"op0": ALU, "op1": ALU},
    resolve=note_operators,
)
def tensor_tensor_scan(
    dst: Any,
    data0: Any,
    data1: Any,
    initial: Any,
    op0: Any,
    op1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst[:, i] = (data0[:, i] op0 dst[:, i-1]) op1 data1[:, i], in fp32 all along.

    Args:
        dst: (P, N) tile.
        data0: (P, N) tile.
        data1: (P, N) tile; not in PSUM together with data0.
        initial: what stands before the first element, a number or a (P, 1) column.
        op0: binary arithmetic operator.
        op1: binary arithmetic operator.
        reverse0: swap op0's operands.
        reverse1: swap op1's operands.
        name: for debugging.
    """
    return dst, data0, data1, initial, op0, op1, reverse0, reverse1, name


# --- tensor_scalar_cumulative -------------------------------------------------------------


def _cumulate(operator: Operator, values: Array, state: Array) -> None:
    """values[:, i] = operator(values[:, i], values[:, i-1]), beginning with `state`, in place.

    `ufunc.accumulate` goes from left to right as the engine does. value - sum alternates: with
    every second sign turned it is an addition, exactly, since negation is exact.
    """
    assert operator.binary is not None
    values[:, 0] = operator.binary(values[:, 0], state)
    if operator is not subtract:
        assert operator.reduction is not None
        operator.reduction.accumulate(values, axis=1, out=values)
        return
    np.negative(values[:, 1::2], out=values[:, 1::2])
    np.add.accumulate(values, axis=1, out=values)
    np.negative(values[:, 1::2], out=values[:, 1::2])


def _cumulative(instruction: Instruction, slots: Slots) -> Run:
    dst, src = instruction["dst"], instruction["src"]
    count, size, shape = dst.shape[0], dst.free_size, dst.shape
    to, write = slots(dst), store(dst.dtype)
    x = reader(src, (count, size), slots)
    a = reader(instruction["imm0"], (count, size), slots)
    first = binary(instruction["op0"], False)
    op1: Operator = instruction["op1"]
    registers = slots.accumulators("vector")
    command = instruction["reduce_cmd"].name
    start = instruction["imm1"] if command == "load_reduce" else IDENTITY[op1.name]
    initial = column(start, count, slots)

    def run(views: Arrays) -> None:
        held = views[registers][:count]
        values = np.empty((count, size), np.float32)
        first(x(views), a(views), out=values)
        _cumulate(op1, values, held if command == "reduce" else initial(views))
        held[...] = values[:, -1]
        write(views[to], values.reshape(shape))

    return run


_CUMULATIVE_DTYPES = (FLOATS - {dtypes.tfloat32}) | SMALL_INTEGERS


@instruction(
    operands={
        "dst": Operand("write", dtypes=_CUMULATIVE_DTYPES),
        "src": Operand("read", dtypes=_CUMULATIVE_DTYPES),
        "imm0": NUMBER,
        "imm1": OPTIONAL_NUMBER,
    },
    engines=("vector",),
    lower=_cumulative,
    cost="max(64, 2N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(
        commands("reset_reduce", "reduce", "load_reduce"),
        initial_value("imm1"),
        operators_given("op0", "op1"),
        _arithmetic(),
        indirect=("dst", "src"),
    ),
    operators={"op0": ALU, "op1": frozenset({add, subtract, multiply, maximum, minimum})},
    accumulates="vector",
    resolve=note_operators,
)
def tensor_scalar_cumulative(
    dst: Any,
    src: Any,
    op0: Any,
    op1: Any,
    imm0: Any,
    imm1: Any = None,
    reduce_cmd: reduce_cmd = reduce_cmd.reset_reduce,
    name: str | None = None,
) -> tuple[Any, ...]:
    """register = (src[:, i] op0 imm0) op1 register; dst[:, i] = register.

    Args:
        dst: (P, N) tile, floating point or integers of at most 16 bits.
        src: (P, N) tile, likewise.
        op0: binary arithmetic operator.
        op1: add, subtract, multiply, maximum or minimum.
        imm0: number or (P, 1) fp32 column.
        imm1: the register's first value, for load_reduce only.
        reduce_cmd: reset_reduce begins with op1's identity (0, 1, ∓inf), reduce with what the
            registers hold, load_reduce with imm1.
        name: for debugging.
    """
    return dst, src, op0, op1, imm0, imm1, reduce_cmd, name


# --- tensor_scalar_reduce, exponential ----------------------------------------------------

_UNARY = frozenset({OPERATORS[name] for name in ("abs", "square", "relu")})
"""Of one operand; square and relu on trn3 only."""


def _scalar_reduce(instruction: Instruction, slots: Slots) -> Run:
    dst, op0 = instruction["dst"], instruction["op0"]
    to, write, shape = slots(dst), store(dst.dtype), dst.shape
    x = reader(instruction["data"], shape, slots)
    collect, read_out = accumulate(instruction, slots, instruction["reduce_op"], shape[0])
    unary = op0.binary is None
    a = reader(0.0 if unary else instruction["operand0"], shape, slots)
    function = op0.unary if unary else op0.binary
    direct = dst.dtype is dtypes.float32

    def run(views: Arrays) -> None:
        inputs = (x(views),) if unary else (x(views), a(views))
        values = function(*inputs, out=views[to] if direct else None)
        collect(views, values)
        if not direct:
            write(views[to], values)
        read_out(views)

    return run


def _check_scalar_reduce(program: Program, instruction: Instruction) -> None:
    check_operand(program, instruction, "op0", "operand0")
    if instruction["reverse0"]:
        program.report(
            instruction,
            "immediate",
            "reverse0 is declared but not supported yet, up to nki 0.7",
            "Choose another operator, or use nisa.tensor_scalar and nisa.tensor_reduce",
            operand="reverse0",
            limit="False",
            value="True",
        )


def _note_optional_result(program: Program, instruction: Instruction) -> None:
    note_operators(program, instruction)
    if instruction["reduce_res"] is None:
        feature("nisa.tensor_scalar_reduce without reduce_res", since="0.6")


@instruction(
    operands={
        "dst": Operand("write"),
        "data": Operand("read"),
        "operand0": OPTIONAL_NUMBER,
        "reduce_res": Operand("write", "column", optional=True),
        "reduce_init": OPTIONAL_NUMBER,
    },
    engines=("vector",),
    lower=_scalar_reduce,
    cost="max(64, N) + 64",
    source="nki_facts.md §2.6",
    extra_check=all_of(
        _check_scalar_reduce,
        commands("reset_reduce", "reduce", "load_reduce"),
        initial_value("reduce_init"),
        operators_given("op0", "reduce_op"),
        _arithmetic("dst", "data"),
        free_dimensions("dst", 3),
        free_dimensions("data", 3),
        indirect=("dst", "data"),
    ),
    operators={
        "op0": ALU | _UNARY,
        "reduce_op": frozenset({add, multiply, maximum, minimum}),
    },
    accumulates="vector",
    parameters_since={"reduce_cmd": "0.4", "reduce_init": "0.4", "reduce_res_negate": "0.6"},
    resolve=_note_optional_result,
)
def tensor_scalar_reduce(
    dst: Any,
    data: Any,
    op0: Any,
    operand0: Any,
    reduce_op: Any,
    reduce_res: Any = None,
    reverse0: bool = False,
    reduce_cmd: reduce_cmd = reduce_cmd.reset_reduce,
    reduce_init: Any = None,
    reduce_res_negate: bool = False,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = data op0 operand0, and its reduction over all free dimensions.

    Args:
        dst: (P, N) tile.
        data: (P, N) tile.
        op0: arithmetic operator; abs, and on trn3 square and relu, are unary.
        operand0: number or (P, 1) fp32 column; None for a unary operator.
        reduce_op: add, multiply, maximum or minimum.
        reduce_res: (P, 1) column for what the registers hold afterwards; None leaves it there.
        reverse0: not supported yet by the SDK.
        reduce_cmd: reset_reduce, reduce (go on with what the registers hold) or load_reduce.
        reduce_init: what load_reduce loads, a number or a (P, 1) fp32 column.
        reduce_res_negate: write -registers to reduce_res.
        name: for debugging.
    """
    return (
        dst, data, op0, operand0, reduce_op, reduce_res, reverse0, reduce_cmd, reduce_init,
        reduce_res_negate, name,
    )  # fmt: skip


def _exponential(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    to, write, shape = slots(dst), store(dst.dtype), dst.shape
    x = reader(instruction["src"], shape, slots)
    highest = reader(instruction["max_value"], shape, slots)
    collect, read_out = accumulate(instruction, slots, add, shape[0])

    def run(views: Arrays) -> None:
        values = np.subtract(x(views), highest(views))
        np.exp(values, out=values)
        collect(views, values)
        write(views[to], values)
        read_out(views)

    return run


_EIGHT_BITS = frozenset({dtypes.float8_e4m3, dtypes.float8_e5m2})
_EXP_FLOATS = _EIGHT_BITS | {dtypes.float16, dtypes.bfloat16, dtypes.float32}
_EXP_INTEGERS = SMALL_INTEGERS | {dtypes.int32}


@instruction(
    operands={
        "dst": Operand("write", dtypes=_EXP_FLOATS | {dtypes.tfloat32} | _EXP_INTEGERS),
        "src": Operand("read", dtypes=_EXP_FLOATS | _EXP_INTEGERS | {dtypes.uint32}),
        "max_value": NUMBER,
        "reduce_res": Operand(
            "write", "column", optional=True, dtypes=_EXP_FLOATS | {dtypes.tfloat32}
        ),
        "reduce_init": NUMBER,
    },
    engines=("vector",),
    lower=_exponential,
    cost="max(64, N / 4)",
    source="nki_facts.md §2.6",
    extra_check=all_of(
        commands("idle", "reset_reduce", "reduce", "load_reduce"),
        initial_value("reduce_init"),
        free_dimensions("dst", 3),
        free_dimensions("src", 3),
        indirect=("dst", "src"),
    ),
    accumulates="vector",
    generation=4,
)
def exponential(
    dst: Any,
    src: Any,
    max_value: Any = 0.0,
    reduce_res: Any = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    reduce_init: Any = 0.0,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = exp(src - max_value), and its sum over all free dimensions. trn3 only.

    Args:
        dst: (P, N) tile.
        src: (P, N) tile.
        max_value: number or (P, 1) fp32 column.
        reduce_res: (P, 1) column for what the registers hold afterwards.
        reduce_cmd: idle, reset_reduce, reduce or load_reduce.
        reduce_init: what load_reduce loads, a number or a (P, 1) fp32 column.
        name: for debugging.
    """
    return dst, src, max_value, reduce_res, reduce_cmd, reduce_init, name
