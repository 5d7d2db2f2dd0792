"""Element-wise instructions of the Vector class, and reductions over free dimensions.

Source: nki_facts.md §2.6. Which operators go with what is in `arithmetic.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.enums import engine
from simulator.instructions import bits
from simulator.instructions.arithmetic import (
    SCALAR_ENGINE,
    check_dtypes,
    check_engine,
    check_generation,
    check_operand,
    choose_tensor_scalar_engine,
    choose_tensor_tensor_engine,
    is_exact,
    kinds_of,
    note_operators,
    warn_widths,
)
from simulator.instructions.datapath import Reader, one_pass, scratch, write
from simulator.instructions.datapath import reader as reader
from simulator.instructions.limits import all_of, not_both_in_psum
from simulator.instructions.reductions import check_tensor_reduce, lower_tensor_reduce
from simulator.instructions.table import Array, Arrays, Operand, Run, Slots, instruction
from simulator.numerics import store
from simulator.operators import (
    ALU,
    BITVEC,
    REDUCTIONS,
    UNARY_ALU,
    Operator,
    invert,
    maximum,
    minimum,
    power,
    rsqrt,
)
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["reciprocal", "scalar_tensor_tensor", "tensor_reduce", "tensor_scalar", "tensor_tensor"]

Function = Callable[..., Array]

_LOWEST, _HIGHEST = np.float32(-np.inf), np.float32(np.inf)


def binary(operator: Operator, reverse: bool) -> Function:
    """`operator` as f(x, y, out=None), with its operands swapped if `reverse`."""
    function = operator.binary
    assert function is not None
    if not reverse:
        return function
    return lambda x, y, out=None: function(y, x, out=out)


def stage(operator: Operator, operand: Any, reverse: bool) -> Function:
    """One stage as f(x, y, out=None): `binary`, but faster where the operand is a number."""
    if operator.binary is None:
        unary = operator.unary
        assert unary is not None
        return lambda x, y, out=None: unary(x, out)
    if isinstance(operand, int | float) and operand == operand:  # a NaN must show
        if operator is maximum and operator.binary is np.maximum:
            return lambda x, y, out=None: x.clip(y, _HIGHEST, out=out)
        if operator is minimum and operator.binary is np.minimum:
            return lambda x, y, out=None: x.clip(_LOWEST, y, out=out)
    return binary(operator, reverse)


def _truth_to(
    dst: NkiTensor,
    slots: Slots,
    predicate: np.ufunc,
    reverse: bool,
    first: Callable[[Arrays, Array], Array],
    y: Reader,
) -> Run:
    """dst = predicate(first, y) as 1 or 0, which every dtype holds: no cast through fp32."""
    to, memory = slots(dst), scratch(slots, dst.shape, 0)
    in_place = not dst.dtype.is_float and dst.dtype.itemsize == 1

    def run(views: Arrays) -> None:
        a, b = first(views, memory), y(views)
        if reverse:
            a, b = b, a
        if in_place:
            predicate(a, b, out=views[to].view(np.bool_))
        else:
            np.copyto(views[to], predicate(a, b), casting="unsafe")

    return run


def _holds(predicate: np.ufunc, reverse: bool, x: Reader, y: Reader) -> Callable[[Arrays], Array]:
    """A function (views) -> the predicate of both as booleans."""
    if reverse:
        x, y = y, x
    return lambda views: predicate(x(views), y(views))


_MANY = 4096
"""Elements from which `_two_outcomes` saves more passes than it makes calls."""


def _two_outcomes(
    dst: NkiTensor,
    slots: Slots,
    held: Callable[[Arrays], Array],
    last: Function,
    z: Reader,
) -> Run:
    """dst = last(held, z), where z is a number or a column: each row has but two results."""
    to, cast = slots(dst), store(dst.dtype)
    shape = (dst.shape[0],) + (1,) * (len(dst.shape) - 1)
    truths = np.zeros(shape, np.float32), np.ones(shape, np.float32)

    def run(views: Arrays) -> None:
        where, operand, view = held(views), z(views), views[to]
        outcomes = np.empty((2, *shape), view.dtype)
        for outcome, truth in zip(outcomes, truths, strict=True):
            cast(outcome, last(truth, operand))
        view[...] = outcomes[0]
        np.copyto(view, outcomes[1], where=where)

    return run


def _is_column(value: Any, dst: NkiTensor) -> bool:
    """Whether an operand has one value for each row: no tile."""
    return not isinstance(value, NkiTensor) or value.size == dst.shape[0]


# --- tensor_tensor --------------------------------------------------------------------------


def _tensor_tensor(instruction: Instruction, slots: Slots) -> Run:
    dst, operator = instruction["dst"], instruction["op"]
    y = instruction["data2"]
    if operator.kind == "bitvec":
        return bits.chain(instruction, slots, [(operator, y, False)], "data1")
    if is_exact(instruction):
        return bits.exact_words(instruction, slots)
    if operator.predicate is None:
        return one_pass(dst, slots, binary(operator, False), instruction["data1"], y)
    first = reader(instruction["data1"], dst.shape, slots, 0)
    second = reader(y, dst.shape, slots, 1)
    return _truth_to(dst, slots, operator.predicate, False, lambda views, _: first(views), second)


def _check_tensor_tensor(program: Program, instruction: Instruction) -> None:
    not_both_in_psum("data1", "data2")(program, instruction)
    operator = instruction["op"]
    if operator not in instruction.spec.operators["op"]:
        return
    tiles = ("dst", "data1", "data2")
    check_generation(program, instruction, "op", operator.generation)
    check_dtypes(program, instruction, operator.kind, *tiles)
    if operator.kind == "bitvec":
        warn_widths(program, instruction, *tiles)
    if operator is power:
        check_engine(program, instruction, "gpsimd", "nl.power")


# --- tensor_scalar and scalar_tensor_tensor --------------------------------------------------


def _tensor_scalar(instruction: Instruction, slots: Slots) -> Run:
    """dst = (data op0 operand0) op1 operand1; operand1 is a column, a number or a tile."""
    dst, op0, op1 = instruction["dst"], instruction["op0"], instruction["op1"]
    a, b = instruction["operand0"], instruction["operand1"]
    reverse0, reverse1 = instruction["reverse0"], instruction["reverse1"]
    if op0.kind == "bitvec":
        steps = [(op0, a, reverse0)] + ([] if op1 is None else [(op1, b, reverse1)])
        return bits.chain(instruction, slots, steps, "data")
    operand = 0 if a is None else a
    if op1 is None and op0.predicate is None:
        return one_pass(dst, slots, stage(op0, a, reverse0), instruction["data"], operand)
    x = reader(instruction["data"], dst.shape, slots, 0)
    y = reader(operand, dst.shape, slots)
    if op1 is None:
        return _truth_to(dst, slots, op0.predicate, reverse0, lambda views, _: x(views), y)
    first = stage(op0, a, reverse0)
    z = reader(b, dst.shape, slots, 1)

    def start(views: Arrays, memory: Array) -> Array:
        return first(x(views), y(views), out=memory)

    if op1.predicate is not None:
        return _truth_to(dst, slots, op1.predicate, reverse1, start, z)
    last = stage(op1, b, reverse1)
    if op0.predicate is not None and dst.size >= _MANY and _is_column(b, dst):
        return _two_outcomes(dst, slots, _holds(op0.predicate, reverse0, x, y), last, z)
    return write(dst, slots, lambda views, out: last(start(views, out), z(views), out=out), (b,))


def _check_tensor_scalar(program: Program, instruction: Instruction) -> None:
    op0, op1 = instruction["op0"], instruction["op1"]
    if op0 is None:
        program.report(
            instruction,
            "operand",
            "op0 is missing",
            "Give an operator as op0; an operator that is optional goes in op1",
            operand="op0",
            limit="an operator",
            value="None",
        )
        return
    if (op1 is None) != (instruction["operand1"] is None):
        program.report(
            instruction,
            "operand",
            "op1 and operand1 go together",
            "Give both or neither",
            operand="operand1",
            limit="both or neither",
            value=f"op1={op1!r}, operand1={instruction['operand1']!r}",
        )
        return
    kinds = kinds_of(instruction, "op0", "op1")
    if len(kinds) > 1:
        program.report(
            instruction,
            "operator",
            "op0 and op1 must both be bitvec operators or both arithmetic",
            "Use two instructions",
            operand="op1",
            limit=f"a {op0.kind} operator",
            value=repr(op1),
        )
    check_operand(program, instruction, "op0", "operand0")
    if op1 is not None:
        check_operand(program, instruction, "op1", "operand1")
    _check_tensor_scalar_kind(program, instruction, kinds)


def _check_tensor_scalar_kind(program: Program, instruction: Instruction, kinds: set[str]) -> None:
    op0, op1 = instruction["op0"], instruction["op1"]
    for parameter, operator in (("op0", op0), ("op1", op1)):
        if operator in instruction.spec.operators[parameter] and operator not in UNARY_ALU:
            check_generation(program, instruction, parameter, operator.generation)
    kind = "bitvec" if "bitvec" in kinds else "arithmetic"
    if len(kinds) == 1:
        check_dtypes(program, instruction, kind, "dst", "data")
    if kind == "bitvec":
        warn_widths(program, instruction, "dst", "data", "operand0", "operand1")
        check_engine(program, instruction, "vector", "a bitvec tensor_scalar")
    elif op0 is rsqrt:
        check_engine(program, instruction, "gpsimd", "nl.rsqrt in tensor_scalar")
    elif instruction.engine == "gpsimd":
        check_engine(program, instruction, "vector", "tensor_scalar without nl.rsqrt")
    elif instruction.engine == "scalar":
        _check_scalar_engine(program, instruction)


def _check_scalar_engine(program: Program, instruction: Instruction) -> None:
    pairs = SCALAR_ENGINE[program.target.generation]
    given = (instruction["op0"], instruction["op1"])
    if given not in pairs:
        program.report(
            instruction,
            "engine",
            f"the Scalar engine does not have the operators {given}",
            "Leave engine out",
            operand="engine",
            limit=", ".join(sorted(str(pair) for pair in pairs)),
            value=str(given),
        )


def _check_scalar_tensor_tensor(program: Program, instruction: Instruction) -> None:
    not_both_in_psum("data", "operand1")(program, instruction)
    for parameter in ("op0", "op1"):
        operator = instruction[parameter]
        if operator is None:
            program.report(
                instruction,
                "operand",
                f"{parameter} is missing",
                f"Give an operator as {parameter}",
                operand=parameter,
                limit="an operator",
                value="None",
            )
        elif operator in instruction.spec.operators[parameter]:
            check_generation(program, instruction, parameter, operator.generation)
    check_dtypes(program, instruction, "arithmetic", "dst", "data", "operand1")


# --- reciprocal -------------------------------------------------------------------------------


def _reciprocal(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    x = reader(instruction["data"], dst.shape, slots, 0)
    return write(dst, slots, lambda views, out: np.reciprocal(x(views), out=out))


def _check_reciprocal(program: Program, instruction: Instruction) -> None:
    check_dtypes(program, instruction, "arithmetic", "dst", "data")


# --- the rows of the table ------------------------------------------------------------------

_BINARY = ALU - {power}
COLUMN = Operand("read", "column", number=True, float32=True)


@instruction(
    operands={"dst": Operand("write"), "data1": Operand("read"), "data2": Operand("read")},
    engines=("vector", "gpsimd"),
    lower=_tensor_tensor,
    cost="max(64, 2N); max(64, N) if one input is in PSUM or all are bf16 in SBUF",
    source="nki_facts.md §2.6",
    extra_check=all_of(_check_tensor_tensor, indirect=("dst", "data1")),
    operators={"op": ALU | BITVEC - {invert}},
    resolve=choose_tensor_tensor_engine,
)
def tensor_tensor(
    dst: Any,
    data1: Any,
    data2: Any,
    op: Any,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = data1 op data2, element by element; nothing is broadcast.

    Bitvec operators take integers as bits. Where dst, data1 and data2 are int32 or uint32 in
    SBUF, GpSimd computes in integers modulo 2**32, unless engine=vector asks for fp32.
    """
    return dst, data1, data2, op, engine, name


@instruction(
    operands={
        "dst": Operand("write"),
        "data": Operand("read"),
        "operand0": Operand("read", "column", number=True, optional=True),
        "operand1": Operand("read", "column", number=True, optional=True),
    },
    engines=("vector", "scalar", "gpsimd"),
    lower=_tensor_scalar,
    cost="max(64, N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(_check_tensor_scalar, indirect=("dst", "data")),
    operators={
        "op0": _BINARY | BITVEC | frozenset(UNARY_ALU),
        "op1": _BINARY | BITVEC - {invert},
    },
    resolve=choose_tensor_scalar_engine,
)
def tensor_scalar(
    dst: Any,
    data: Any,
    op0: Any,
    operand0: Any,
    reverse0: bool = False,
    op1: Any = None,
    operand1: Any = None,
    reverse1: bool = False,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = (data op0 operand0) op1 operand1; operands are numbers or (P, 1) columns.

    Columns are fp32 for arithmetic operators, integers for bitvec operators. An op0 with one
    operand (nl.abs, nl.rsqrt, nl.reciprocal, nl.invert; nl.square and nl.relu on trn3) needs
    operand0 None or 0.
    """
    return dst, data, op0, operand0, reverse0, op1, operand1, reverse1, engine, name


@instruction(
    operands={
        "dst": Operand("write"),
        "data": Operand("read"),
        "operand0": COLUMN,
        "operand1": Operand("read"),
    },
    engines=("vector",),
    lower=_tensor_scalar,
    cost="max(64, 2N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(_check_scalar_tensor_tensor),
    operators={"op0": _BINARY, "op1": _BINARY},
    resolve=note_operators,
)
def scalar_tensor_tensor(
    dst: Any,
    data: Any,
    op0: Any,
    operand0: Any,
    op1: Any,
    operand1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = (data op0 operand0) op1 operand1; operand0 a number or column, operand1 a tile."""
    return dst, data, op0, operand0, op1, operand1, reverse0, reverse1, name


@instruction(
    operands={"dst": Operand("write", "free"), "data": Operand("read", "free")},
    engines=("vector",),
    lower=lower_tensor_reduce,
    cost="max(64, N); N/2 if bf16 in and out and add or max",
    source="nki_facts.md §2.6",
    extra_check=all_of(check_tensor_reduce, indirect=("dst", "data")),
    operators={"op": REDUCTIONS},
)
def tensor_reduce(
    dst: Any,
    op: Any,
    data: Any,
    axis: Any,
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple[Any, ...]:
    """Reduce trailing free dimensions; nl.subtract takes all others off the first element."""
    return dst, op, data, axis, negate, keepdims, name


@instruction(
    operands={"dst": Operand("write"), "data": Operand("read")},
    engines=("vector",),
    lower=_reciprocal,
    cost="max(64, 8N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(_check_reciprocal),
)
def reciprocal(dst: Any, data: Any, name: str | None = None) -> tuple[Any, ...]:
    """dst = 1 / data."""
    return dst, data, name
