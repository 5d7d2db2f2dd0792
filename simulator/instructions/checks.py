"""The rules that hold for every instruction, read from its row of the table.

Sources: nki_facts.md §2 (generic rules), §3.2 (partitions), §7 (what the SDK says).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator import dtypes
from simulator.operators import ALU, SIMULATOR_ONLY, Operator, power
from simulator.registers import VirtualRegister
from simulator.targets import PARTITIONS
from simulator.tensor import MemoryRegion, NkiTensor

if TYPE_CHECKING:
    from simulator.instructions.table import InstructionSpec, Operand
    from simulator.program import Instruction, Program


def check_instruction(spec: InstructionSpec, program: Program, instruction: Instruction) -> None:
    """Report what is wrong with an instruction's operands."""
    _check_generation(spec, program, instruction)
    for name, operand in spec.operands.items():
        value = instruction[name]
        if isinstance(value, tuple | list) and operand.many:
            for item in value:
                _check_tensor(program, instruction, name, operand, item)
        elif isinstance(value, NkiTensor):
            _check_tensor(program, instruction, name, operand, value)
        elif value is not None or not operand.optional:
            _check_number(program, instruction, name, value)
    for name, allowed in spec.operators.items():
        _check_operator(program, instruction, name, allowed)
    _check_agreement(spec, program, instruction)


def _check_generation(spec: InstructionSpec, program: Program, instruction: Instruction) -> None:
    if program.target.generation < spec.generation:
        program.report(
            instruction,
            "gen4-only",
            f"{spec.name} is only supported for NeuronCore-v{spec.generation} or newer",
            "Use it for trn3 only (NEURON_PLATFORM_TARGET_OVERRIDE=trn3)",
            limit=f"generation {spec.generation}",
            value=program.target.name,
        )


def _check_tensor(
    program: Program, instruction: Instruction, name: str, operand: Operand, tensor: Any
) -> None:
    if not isinstance(tensor, NkiTensor):
        if operand.number:
            _check_number(program, instruction, name, tensor)
        else:
            _report_no_tensor(program, instruction, name, tensor)
        return
    _check_buffer(program, instruction, name, operand, tensor)
    if tensor.dynamic is not None:
        _check_dynamic(program, instruction, name, tensor)
    if tensor.dynamic is not None and tensor.dynamic.rows is not None:
        _check_rows(program, instruction, name, tensor.dynamic.rows)
    if instruction.engine != "dma":
        _check_partitions(program, instruction, name, operand, tensor)
        _check_pattern(program, instruction, name, tensor)
    if operand.form == "column":
        _check_column(program, instruction, name, operand, tensor)
    if operand.dtypes is not None and tensor.dtype not in operand.dtypes:
        names = ", ".join(sorted(operand.dtypes))
        program.report(
            instruction,
            "dtype",
            f"{instruction.spec.name} {name} dtype {tensor.dtype} not supported",
            "Convert it first, e.g. with nisa.tensor_copy into a tile of that dtype",
            operand=name,
            limit=names,
            value=str(tensor.dtype),
        )


def _check_rows(program: Program, instruction: Instruction, name: str, rows: NkiTensor) -> None:
    """One row number per partition, but for dma_transpose."""
    if rows.free_size > 1 and instruction.spec.name != "dma_transpose":
        program.report(
            instruction,
            "dynamic-offset",
            f"vector_offset of {name} must have shape (P, 1)",
            "Give one row number per row of the pattern; only dma_transpose takes several columns",
            operand=name,
            limit="(P, 1)",
            value=str(rows.shape),
        )


def _report_no_tensor(program: Program, instruction: Instruction, name: str, value: Any) -> None:
    program.report(
        instruction,
        "operand",
        f"{name} holds a {type(value).__name__}",
        "Give a list of tensors",
        operand=name,
        limit="NkiTensor",
        value=type(value).__name__,
    )


BY_ROW = ("dma_copy", "dma_compute", "dma_transpose")
"""Instructions that take a vector_offset (nki_facts.md §2.4)."""


def _check_dynamic(
    program: Program, instruction: Instruction, name: str, tensor: NkiTensor
) -> None:
    """Rows by number are a DMA's, elements by number (.indirect) a compute engine's."""
    dynamic = tensor.dynamic
    assert dynamic is not None
    if dynamic.rows is not None and instruction.spec.name not in BY_ROW:
        limit, value = ", ".join(BY_ROW), instruction.spec.name
        message = f"{name} has a vector_offset"
    elif dynamic.elements is not None and instruction.engine == "dma":
        limit, value = "a compute engine", "dma"
        message = f"{name} is an indirect view"
    else:
        return
    program.report(
        instruction,
        "dynamic-offset",
        message,
        "Copy it with an instruction that takes it, then use the copy",
        operand=name,
        limit=limit,
        value=value,
    )


FREE_DIMENSIONS = 4
FREE_COUNT = 65535
"""Free dimensions of an access pattern, and elements of each (nki_facts.md §3.2)."""


def _check_pattern(
    program: Program, instruction: Instruction, name: str, tensor: NkiTensor
) -> None:
    """At most 4 free dimensions once those that follow each other are merged."""
    if not tensor.buffer.on_chip or (tensor.ndim <= 2 and tensor.shape[-1] <= FREE_COUNT):
        return
    merged: list[tuple[int, int]] = []
    for count, stride in zip(tensor.shape[1:], tensor.strides[1:], strict=True):
        if count == 1:
            continue
        if merged and merged[-1][1] == stride * count:
            merged[-1] = (merged[-1][0] * count, stride)
        else:
            merged.append((count, stride))
    if len(merged) > FREE_DIMENSIONS or any(count > FREE_COUNT for count, _ in merged):
        program.report(
            instruction,
            "free-dimensions",
            f"{name}'s access pattern is too large for one instruction",
            "Split it over several instructions",
            operand=name,
            limit=f"{FREE_DIMENSIONS} free dimensions of at most {FREE_COUNT} elements",
            value=str([count for count, _ in merged]),
        )


def _check_buffer(
    program: Program, instruction: Instruction, name: str, operand: Operand, tensor: NkiTensor
) -> None:
    allowed = operand.buffers
    if instruction.engine == "gpsimd":
        allowed = allowed - {MemoryRegion.psum}
    if tensor.buffer not in allowed:
        names = sorted(region.value for region in allowed)
        program.report(
            instruction,
            "buffer",
            f"{name} must be in {names}, got {tensor.buffer.value}",
            "Move it: nisa.dma_copy between HBM and SBUF, nisa.tensor_copy out of PSUM",
            operand=name,
            limit=", ".join(names),
            value=tensor.buffer.value,
        )


def _check_partitions(
    program: Program, instruction: Instruction, name: str, operand: Operand, tensor: NkiTensor
) -> None:
    if not tensor.buffer.on_chip:
        return
    count = tensor.shape[0]
    if count > PARTITIONS:
        program.report(
            instruction,
            "partition-limit",
            f"{instruction.spec.name} {name} partition dimension {count} exceeds maximum "
            f"{PARTITIONS}",
            "Work on tiles of at most 128 rows",
            operand=name,
            limit=str(PARTITIONS),
            value=str(count),
        )
    start = tensor.start_partition
    starts = (0,) if count > 64 else (0, 64) if count > 32 else (0, 32, 64, 96)
    if start not in starts and not operand.own_starts:
        program.report(
            instruction,
            "partition-start",
            f"invalid access of {count} partitions starting at partition {start}",
            "Start there, or move the rows by DMA, which is exempt",
            operand=name,
            limit=f"start at {' or '.join(map(str, starts))}",
            value=str(start),
        )


def _check_column(
    program: Program, instruction: Instruction, name: str, operand: Operand, tensor: NkiTensor
) -> None:
    if tensor.free_size != 1:
        program.report(
            instruction,
            "shape",
            f"{name} must be a column (P, 1)",
            "Slice one column, e.g. tile[:, 0:1]; a whole tile goes through nisa.tensor_tensor",
            operand=name,
            limit="(P, 1)",
            value=str(tensor.shape),
        )
    if operand.float32 and tensor.dtype is not dtypes.float32:
        program.report(
            instruction,
            "dtype",
            f"{name} tile must be float32",
            "Allocate the column as nl.float32",
            operand=name,
            limit="float32",
            value=str(tensor.dtype),
        )


def _check_number(program: Program, instruction: Instruction, name: str, value: Any) -> None:
    if isinstance(value, VirtualRegister) and instruction.spec.operands[name].number:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        program.report(
            instruction,
            "operand",
            f"{name} must be a tensor or a number, got {type(value).__name__}",
            "Give a tile or a compile-time number",
            operand=name,
            limit="tensor or number",
            value=repr(value),
        )


def _check_operator(
    program: Program, instruction: Instruction, name: str, allowed: frozenset[Operator]
) -> None:
    value = instruction[name]
    if value is None or value in allowed:
        return
    names = ", ".join(sorted(f"nl.{operator.name}" for operator in allowed))
    lax = value in SIMULATOR_ONLY and allowed | {power} >= ALU
    (program.tolerate if lax else program.report)(
        instruction,
        "operator",
        f"{name} cannot be {value!r}",
        f"Use one of: {names}. There is no divide in hardware: nisa.reciprocal and multiply",
        operand=name,
        limit=names,
        value=repr(value),
    )


def _check_agreement(spec: InstructionSpec, program: Program, instruction: Instruction) -> None:
    """All operands share P; all tiles share N: the engines do not broadcast."""
    forms = [
        (name, instruction[name], operand.form)
        for name, operand in spec.operands.items()
        if operand.form != "free" and isinstance(instruction[name], NkiTensor)
    ]
    if not forms:
        return
    first_name, first, _ = forms[0]
    for name, tensor, form in forms[1:]:
        if tensor.shape[0] != first.shape[0]:
            program.report(
                instruction,
                "partition-mismatch",
                f"{name} has {tensor.shape[0]} partitions, {first_name} has {first.shape[0]}",
                "Engines do not broadcast over partitions: repeat the row by a DMA "
                "(.ap([[0, P], [1, N]]) of an HBM tensor) or a matmul with ones",
                operand=name,
                limit=str(first.shape[0]),
                value=str(tensor.shape[0]),
            )
        if form == "tile" and tensor.free_size != first.free_size:
            program.report(
                instruction,
                "no-broadcast",
                f"{name} has {tensor.free_size} elements per partition, {first_name} has "
                f"{first.free_size}",
                "Engines do not broadcast: use nisa.tensor_scalar with a (P, 1) column, or a "
                "step of 0 in .ap()",
                operand=name,
                limit=str(first.free_size),
                value=str(tensor.free_size),
            )
