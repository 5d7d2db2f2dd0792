"""Which operators, dtypes and engines element-wise instructions take.

Source: nki_facts.md §2.6, §2.10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator import dtypes
from simulator.context import feature
from simulator.instructions.bits import WORDS, is_integer
from simulator.operators import UNARY_ALU, Operator, add, multiply, power, rsqrt, subtract
from simulator.tensor import MemoryRegion, NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

SCALAR_ENGINE = {
    3: frozenset({(multiply, add), (multiply, None), (add, None)}),
    4: frozenset(
        {(multiply, add), (multiply, subtract), (multiply, None), (add, None), (subtract, None)}
    ),
}
"""The operator pairs of tensor_scalar on the Scalar engine, by generation. What gen4 has is not
documented for tensor_scalar; these are the pairs of activate2."""


def note_versions(instruction: Instruction, *parameters: str) -> None:
    """Note operators that came later than NKI 0.3."""
    for parameter in parameters:
        operator = instruction[parameter]
        if isinstance(operator, Operator) and operator.since != "0.3":
            feature(f"nl.{operator.name}", since=operator.since)


def choose_tensor_tensor_engine(program: Program, instruction: Instruction) -> None:
    """GpSimd for power, and for 32-bit integers in SBUF, which it computes exactly."""
    note_versions(instruction, "op")
    operator = instruction["op"]
    if operator is power or (_is_arithmetic(operator) and _words_in_sbuf(instruction)):
        instruction.engine = "gpsimd"


def choose_tensor_scalar_engine(program: Program, instruction: Instruction) -> None:
    """GpSimd for rsqrt, which Vector does not have."""
    note_versions(instruction, "op0", "op1")
    if instruction["op0"] is rsqrt:
        instruction.engine = "gpsimd"


def note_operators(program: Program, instruction: Instruction) -> None:
    """`resolve` of instructions that have one engine."""
    note_versions(instruction, *instruction.spec.operators)


def _is_arithmetic(operator: Any) -> bool:
    return isinstance(operator, Operator) and operator.kind == "arithmetic"


def _words_in_sbuf(instruction: Instruction) -> bool:
    tiles = [instruction[name] for name in ("dst", "data1", "data2")]
    return all(t.dtype in WORDS and t.buffer is MemoryRegion.sbuf for t in tiles)


def is_exact(instruction: Instruction) -> bool:
    """Whether a tensor_tensor runs in 32-bit integers on GpSimd. Power goes through fp32."""
    return (
        instruction.engine == "gpsimd"
        and instruction["op"] is not power
        and _words_in_sbuf(instruction)
    )


def check_engine(program: Program, instruction: Instruction, wanted: str, why: str) -> None:
    """Report an operator that only one engine has, on another engine."""
    if instruction.engine != wanted:
        program.report(
            instruction,
            "engine",
            f"{why} runs on the {wanted} engine only",
            "Leave engine out",
            operand="engine",
            limit=wanted,
            value=instruction.engine,
        )


def check_generation(
    program: Program, instruction: Instruction, parameter: str, generation: int
) -> None:
    """Report an operator that a target does not have."""
    if program.target.generation < generation:
        program.report(
            instruction,
            "gen4-only",
            f"{instruction[parameter]!r} as {parameter} is only supported for "
            f"NeuronCore-v{generation} or newer",
            "Use another operator on trn2, e.g. nl.abs with nl.maximum, or nisa.activation",
            operand=parameter,
            limit=f"generation {generation}",
            value=program.target.name,
        )


def check_dtypes(program: Program, instruction: Instruction, kind: str, *names: str) -> None:
    """Bitvec operators take integers; arithmetic takes anything but packed dtypes."""
    for name in names:
        tile = instruction.get(name)
        if not isinstance(tile, NkiTensor):
            continue
        if kind == "bitvec" and not is_integer(tile):
            limit, mend = "an integer dtype", "Reinterpret the bits with tile.view(nl.uint32)"
        elif kind != "bitvec" and tile.dtype.packed:
            limit, mend = "not packed", "Packed dtypes are for nc_matmul_mx; view them as integers"
        else:
            continue
        program.report(
            instruction,
            "dtype",
            f"{name} is {tile.dtype}, which {kind} operators do not take",
            mend,
            operand=name,
            limit=limit,
            value=str(tile.dtype),
        )


def warn_widths(program: Program, instruction: Instruction, *names: str) -> None:
    """Bits of different widths: what the hardware does is not documented."""
    tiles = [instruction[name] for name in names]
    widths = {tile.dtype.itemsize for tile in tiles if isinstance(tile, NkiTensor)}
    if len(widths) > 1:
        program.warn(
            instruction,
            "bitvec-width",
            "bitvec operators work on raw bits, and these tiles have different widths",
            "Give all tiles dtypes of one size",
            limit="one width",
            value=", ".join(f"{8 * width} bits" for width in sorted(widths)),
        )


def kinds_of(instruction: Instruction, *parameters: str) -> set[str]:
    """bitvec, arithmetic or both: what the given operators are."""
    return {
        instruction[parameter].kind
        for parameter in parameters
        if isinstance(instruction[parameter], Operator)
    }


def check_operand(program: Program, instruction: Instruction, operator: str, name: str) -> None:
    """The operand of one stage of tensor_scalar: what the operator asks for."""
    op, value = instruction[operator], instruction[name]
    if not isinstance(op, Operator) or op not in instruction.spec.operators[operator]:
        return
    if op.binary is None:
        _check_unused(program, instruction, op, name)
    elif value is None:
        _refuse_operand(program, instruction, name, f"{op!r} needs {name}", "a number or a column")
    elif isinstance(value, NkiTensor):
        _check_column_dtype(program, instruction, op, name, value)
    elif op.kind == "bitvec" and (isinstance(value, bool) or not isinstance(value, int)):
        _refuse_operand(program, instruction, name, f"{op!r} works on bits", "an integer")


def _check_unused(program: Program, instruction: Instruction, op: Operator, name: str) -> None:
    value = instruction[name]
    if isinstance(value, NkiTensor) or value not in (None, 0):
        _refuse_operand(program, instruction, name, f"{op!r} has no second operand", "None or 0")
    check_generation(program, instruction, f"op{name[-1]}", UNARY_ALU.get(op, 3))


def _refuse_operand(
    program: Program, instruction: Instruction, name: str, message: str, limit: str
) -> None:
    program.report(
        instruction,
        "operand",
        message,
        f"Give {name} as {limit}",
        operand=name,
        limit=limit,
        value=repr(instruction[name]),
    )


def _check_column_dtype(
    program: Program, instruction: Instruction, op: Operator, name: str, tile: NkiTensor
) -> None:
    good = is_integer(tile) if op.kind == "bitvec" else tile.dtype is dtypes.float32
    if not good:
        limit = "an integer dtype" if op.kind == "bitvec" else "float32"
        program.report(
            instruction,
            "dtype",
            f"{name} tile must be {limit}",
            f"Allocate the column as {'nl.uint32' if op.kind == 'bitvec' else 'nl.float32'}",
            operand=name,
            limit=limit,
            value=str(tile.dtype),
        )
