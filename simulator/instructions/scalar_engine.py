"""Scalar engine: activation functions with scale, bias and a running reduction.

Source: nki_facts.md §2.7, §2.9, §11. There is one accumulator register for each partition; an
instruction uses those of the partitions its data is in. What is reduced is the fp32 result,
before it is cast to dst.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import activations, dtypes
from simulator.enums import reduce_cmd
from simulator.instructions.arithmetic import check_dtypes, note_operators
from simulator.instructions.datapath import (
    Reader,
    held_as_float32,
    plain_slot,
    reader,
    row_sums,
    scratch,
    write,
)
from simulator.instructions.limits import all_of
from simulator.instructions.table import Array, Arrays, Operand, Run, Slots, instruction
from simulator.numerics import store
from simulator.operators import (
    ACTIVATIONS,
    Operator,
    abs_max,
    abs_min,
    add,
    bypass,
    maximum,
    minimum,
    multiply,
    prelu,
    subtract,
)
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["activate2", "activation", "activation_reduce"]

Step = tuple[Callable[..., Array], Reader]
Function = Callable[[Arrays, Array, Array], Any]
"""Applies an activation function: f(views, x, out)."""

IDENTITY = {add: 0.0, maximum: -np.inf, minimum: np.inf, abs_max: 0.0, abs_min: np.inf}
"""What a reset puts in the accumulators."""


# --- (data op0 imm0) op1 imm1 ------------------------------------------------------------------


def _stages(instruction: Instruction) -> list[tuple[Operator, Any, bool]]:
    """What happens to the data before the function: (operator, operand, reverse) of each stage.

    That is scale and bias, or activate2's two operators, without those that change nothing.
    """
    if instruction.spec.name == "activate2":
        stages = [
            (instruction[f"op{i}"], instruction[f"imm{i}"], instruction[f"reverse{i}"])
            for i in (0, 1)
        ]
        return [stage for stage in stages if stage[0] is not bypass]
    scale, bias = instruction["scale"], instruction["bias"]
    found = []
    if not (isinstance(scale, int | float) and scale == 1):
        found.append((multiply, scale, False))
    if not (bias is None or (isinstance(bias, int | float) and bias == 0)):
        found.append((add, bias, False))
    return found


def _steps(instruction: Instruction, slots: Slots) -> list[Step]:
    """The stages as functions on arrays."""
    shape = instruction["dst"].shape
    return [
        (_stage(operator, reverse), reader(value, shape, slots))
        for operator, value, reverse in _stages(instruction)
    ]


def _stage(operator: Operator, reverse: bool) -> Callable[..., Array]:
    function = operator.binary
    assert function is not None
    return (lambda x, y, out: function(y, x, out=out)) if reverse else function


def _function(instruction: Instruction, slots: Slots, overlaps: bool) -> Function:
    """The activation function; `overlaps`: x may lie in what is written."""
    operator: Operator = instruction["op"]
    unary = operator.unary
    assert unary is not None
    if operator is prelu:
        slope = reader(instruction["relu_param"], instruction["dst"].shape, slots)
        return lambda views, x, out: activations.prelu(x, out, slope(views))
    if not operator.reuses_input:
        return lambda views, x, out: unary(x, out)
    if not overlaps:
        return lambda views, x, out: unary(x, out, out)
    other = scratch(slots, instruction["dst"].shape, 2)
    return lambda views, x, out: unary(x, out, other)


def _body(instruction: Instruction, slots: Slots) -> Callable[[Arrays, Array], None]:
    """A function (views, out) that computes the fp32 result in `out`."""
    dst, data = instruction["dst"], instruction["data"]
    x = reader(data, dst.shape, slots, 1)
    steps = _steps(instruction, slots)
    overlaps = not steps and held_as_float32(data) and data.storage is dst.storage
    function = _function(instruction, slots, overlaps)
    if not steps:
        return lambda views, out: function(views, x(views), out)
    keeps = instruction["op"].reuses_input or instruction["op"] is prelu
    memory = scratch(slots, dst.shape, 1) if keeps else None

    def body(views: Arrays, out: Array) -> None:
        value = x(views)
        target = out if memory is None else memory
        for apply, operand in steps:
            value = apply(value, operand(views), out=target)
        function(views, value, out)

    return body


# --- accumulators ------------------------------------------------------------------------------


def command_of(instruction: Instruction) -> str:
    """The accumulator command; activation_reduce always resets and reduces."""
    if instruction.spec.name == "activation_reduce":
        return "reset_reduce"
    return str(instruction["reduce_cmd"].name)


def _by_magnitude(find: Callable[..., Any]) -> Callable[[Array], Array]:
    """The element with the largest or smallest magnitude of each row; the last of equal ones."""

    def reduce(values: Array) -> Array:
        backwards = values.reshape(values.shape[0], -1)[:, ::-1]
        at = find(np.abs(backwards), axis=1)
        found: Array = np.take_along_axis(backwards, at[:, None], axis=1)[:, 0]
        return found

    return reduce


def _row_reduction(operator: Operator) -> Callable[[Array], Array]:
    if operator is add:
        return row_sums
    if operator in (abs_max, abs_min):
        return _by_magnitude(np.argmax if operator is abs_max else np.argmin)
    ufunc = operator.reduction
    assert ufunc is not None
    return lambda values: ufunc.reduce(values, axis=tuple(range(1, values.ndim)))


def _collect(instruction: Instruction, slots: Slots) -> Callable[[Arrays, Array], None]:
    """A function (views, fp32 result) that runs the accumulator command."""
    operator: Operator = instruction["reduce_op"] or add
    combine, reduce = operator.binary, _row_reduction(operator)
    assert combine is not None
    command, identity = command_of(instruction), np.float32(IDENTITY[operator])
    registers, lanes = slots.accumulators("scalar"), _lanes(instruction)

    def collect(views: Arrays, values: Array) -> None:
        held = views[registers][lanes]
        if command == "reset":
            held[...] = identity
        elif command == "reset_reduce":
            held[...] = reduce(values)
        elif command == "reduce":
            combine(held, reduce(values), out=held)

    return collect


def _lanes(instruction: Instruction) -> slice:
    """The registers of the partitions that the data is in."""
    data: NkiTensor = instruction["data"]
    return slice(data.start_partition, data.start_partition + data.shape[0])


def _in_one_call(instruction: Instruction, slots: Slots) -> Run | None:
    """A function of plain fp32 data and nothing else; None if there is more to it."""
    dst, operator = instruction["dst"], instruction["op"]
    unary = operator.unary
    if dst.dtype is not dtypes.float32 or operator.reuses_input or operator is prelu:
        return None
    if unary is None or _stages(instruction):
        return None
    frm = plain_slot(instruction["data"], dst.shape, slots)
    if frm is None:
        return None
    to = slots(dst)
    return lambda views: unary(views[frm], views[to])


def _lower(instruction: Instruction, slots: Slots) -> Run:
    dst, result = instruction["dst"], instruction["reduce_res"]
    later = [instruction.get(name) for name in ("bias", "imm1", "relu_param")]
    if command_of(instruction) == "idle" and result is None:
        return _in_one_call(instruction, slots) or write(
            dst, slots, _body(instruction, slots), later
        )
    body = _body(instruction, slots)
    collect = _collect(instruction, slots)

    def body_and_reduction(views: Arrays, out: Array) -> None:
        body(views, out)
        collect(views, out)

    main = write(dst, slots, body_and_reduction, later)
    if result is None:
        return main
    to, cast, shape = slots(result), store(result.dtype), result.shape
    registers, lanes = slots.accumulators("scalar"), _lanes(instruction)

    def run(views: Arrays) -> None:
        main(views)  # first, since reduce_res is read out by a second instruction
        cast(views[to], views[registers][lanes].reshape(shape))

    return run


# --- checks ----------------------------------------------------------------------------------


def _check(program: Program, instruction: Instruction) -> None:
    check_dtypes(program, instruction, "arithmetic", "dst", "data", "bias")
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
    if command == "idle" and instruction["reduce_op"] is not None:
        program.warn(
            instruction,
            "reduce-idle",
            "with reduce_cmd idle, which is the default, nothing is reduced",
            "Give reduce_cmd=nisa.reduce_cmd.reset_reduce",
            operand="reduce_cmd",
            limit="reduce or reset_reduce",
            value=command,
        )
    bias = instruction.get("bias")
    if isinstance(bias, NkiTensor) and bias.dtype is dtypes.tfloat32:
        program.report(
            instruction,
            "dtype",
            "bias may have any dtype but tfloat32",
            "Copy it into a float32 column",
            operand="bias",
            limit="not tfloat32",
            value=str(bias.dtype),
        )


PAIRS = frozenset(
    {
        (multiply, add), (multiply, subtract), (multiply, bypass), (add, bypass),
        (subtract, bypass), (bypass, bypass),
    }
)  # fmt: skip
"""(op0, op1) of activate2 (nki_facts.md §2.7)."""


def _check_activate2(program: Program, instruction: Instruction) -> None:
    _check(program, instruction)
    pair = (instruction["op0"], instruction["op1"])
    allowed = [instruction.spec.operators[name] for name in ("op0", "op1")]
    if pair not in PAIRS and pair[0] in allowed[0] and pair[1] in allowed[1]:
        program.report(
            instruction,
            "operator",
            "activate2 does not have this pair of operators",
            "Leave an operator out with nl.bypass",
            operand="op1",
            limit=", ".join(sorted(str(each) for each in PAIRS)),
            value=str(pair),
        )
    for i, operator in enumerate(pair):
        unused, missing = operator is bypass, instruction[f"imm{i}"] is None
        name = f"reverse{i}" if unused and instruction[f"reverse{i}"] else f"imm{i}"
        if (unused and instruction[f"reverse{i}"]) or (missing and not unused):
            program.report(
                instruction,
                "operand",
                f"{name} goes with an operator: op{i} is {operator!r}",
                f"Give op{i} and imm{i}, or nl.bypass without reverse{i}",
                operand=name,
                limit="False" if unused else "a number or a column",
                value=repr(instruction[name]),
            )
    if instruction["op"] is not prelu and _is_set(instruction["relu_param"]):
        program.warn(
            instruction,
            "relu-param",
            f"{instruction['op']!r} does not read relu_param",
            "Use op=nl.prelu for a slope of negative inputs",
            operand="relu_param",
            limit="0.0",
            value=repr(instruction["relu_param"]),
        )


def _is_set(value: Any) -> bool:
    return isinstance(value, NkiTensor) or value != 0


# --- the rows of the table ----------------------------------------------------------------------

_OPERANDS = {
    "dst": Operand("write"),
    "data": Operand("read"),
    "bias": Operand("read", "column", number=True, optional=True),
    "scale": Operand("read", "column", number=True, float32=True),
    "reduce_res": Operand("write", "column", optional=True),
}
_IMMEDIATE = Operand("read", "column", number=True, optional=True, float32=True)
_WITHOUT_PARAMETER = ACTIVATIONS - {prelu}
"""prelu needs its slope, which only activate2 takes."""


@instruction(
    operands=_OPERANDS,
    engines=("scalar",),
    lower=_lower,
    cost="max(64, N); 64 more with reduce_res",
    source="nki_facts.md §2.7",
    extra_check=all_of(_check, indirect=("dst", "data")),
    operators={"op": _WITHOUT_PARAMETER, "reduce_op": frozenset({add})},
    accumulates="scalar",
    resolve=note_operators,
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
    """dst = op(data * scale + bias), with the Scalar engine's accumulators.

    scale is a number or an fp32 column, bias a number or a column of any dtype but tfloat32.
    """
    return dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd, name


@instruction(
    operands=_OPERANDS,
    engines=("scalar",),
    lower=_lower,
    cost="max(64, N) + 64",
    source="nki_facts.md §2.7",
    extra_check=all_of(_check, indirect=("dst", "data")),
    operators={"op": _WITHOUT_PARAMETER, "reduce_op": frozenset({add})},
    accumulates="scalar",
    resolve=note_operators,
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
    """dst = op(data * scale + bias), and its sum over all free dimensions in reduce_res.

    With reduce_res None the sum stays in the accumulators.
    """
    return dst, op, data, reduce_op, reduce_res, bias, scale, name


@instruction(
    operands={
        "dst": Operand("write"),
        "data": Operand("read"),
        "imm0": _IMMEDIATE,
        "imm1": _IMMEDIATE,
        "relu_param": Operand("read", "column", number=True, float32=True),
        "reduce_res": Operand("write", "column", optional=True),
    },
    engines=("scalar",),
    lower=_lower,
    cost="max(64, N); 64 more with reduce_res",
    source="nki_facts.md §2.7",
    extra_check=all_of(_check_activate2, indirect=("dst", "data")),
    operators={
        "op": ACTIVATIONS,
        "op0": frozenset({multiply, add, subtract, bypass}),
        "op1": frozenset({add, subtract, bypass}),
        "reduce_op": frozenset(IDENTITY),
    },
    accumulates="scalar",
    generation=4,
    since="0.4",
    resolve=note_operators,
)
def activate2(
    dst: Any,
    op: Any,
    data: Any,
    imm0: Any,
    imm1: Any,
    op0: Any,
    op1: Any,
    relu_param: Any = 0.0,
    reverse0: bool = False,
    reverse1: bool = False,
    reduce_op: Any = None,
    reduce_res: Any = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = op((data op0 imm0) op1 imm1), with the Scalar engine's accumulators (trn3).

    (op0, op1) is one of PAIRS; imm0 and imm1 are numbers or fp32 columns, None for nl.bypass.
    relu_param is the slope of nl.prelu.
    """
    return (
        dst, op, data, imm0, imm1, op0, op1, relu_param, reverse0, reverse1, reduce_op,
        reduce_res, reduce_cmd, name,
    )  # fmt: skip
