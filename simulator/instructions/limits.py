"""Limits that several instructions share, as checks to put together for a row of the table."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.instructions.checks import FREE_DIMENSIONS
from simulator.tensor import MemoryRegion, NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

Check = Callable[["Program", "Instruction"], None]

INT32 = range(-(2**31), 2**31)


def all_of(*checks: Check, indirect: Collection[str] = ()) -> Check:
    """Run all checks; only the operands `indirect` may be views made by `.indirect`."""

    def check(program: Program, instruction: Instruction) -> None:
        for name in instruction.spec.operands:
            value = instruction[name]
            dynamic = value.dynamic if isinstance(value, NkiTensor) else None
            if name not in indirect and dynamic is not None and dynamic.elements is not None:
                program.report(
                    instruction,
                    "indirect",
                    f"{name} cannot be an .indirect() view",
                    "Gather first, e.g. with nisa.tensor_copy of the .indirect() view",
                    operand=name,
                    limit=", ".join(indirect) or "none",
                    value=name,
                )
        for each in checks:
            each(program, instruction)

    return check


def is_integer(value: Any) -> bool:
    """Whether a compile-time value is an integer that fits 32 bits."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value in INT32


def is_number(value: Any) -> bool:
    """Whether a compile-time value is a number."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def refuse_immediate(
    program: Program, instruction: Instruction, name: str, limit: str, mend: str, value: Any = None
) -> None:
    """Report a compile-time parameter that the instruction does not take."""
    program.report(
        instruction,
        "immediate",
        f"{instruction.spec.name} does not take this {name}",
        mend,
        operand=name,
        limit=limit,
        value=repr(instruction[name]) if value is None else str(value),
    )


def integer(name: str) -> Check:
    """A parameter that must be a compile-time int32."""

    def check(program: Program, instruction: Instruction) -> None:
        if not is_integer(instruction[name]):
            refuse_immediate(program, instruction, name, "int32", "Give a compile-time integer")

    return check


def not_both_in_psum(first: str, second: str) -> Check:
    """At most one of two operands is in PSUM."""

    def check(program: Program, instruction: Instruction) -> None:
        operands = [instruction[name] for name in (first, second)]
        if all(isinstance(o, NkiTensor) and o.buffer is MemoryRegion.psum for o in operands):
            program.report(
                instruction,
                "psum-inputs",
                f"{first} and {second} cannot both be in PSUM",
                "Copy one of them to SBUF with nisa.tensor_copy",
                operand=second,
                limit="one of them in SBUF",
                value="both in PSUM",
            )

    return check


def same_dtype(first: str, second: str) -> Check:
    """Two operands that move bits must have one dtype."""

    def check(program: Program, instruction: Instruction) -> None:
        a, b = instruction[first], instruction[second]
        if isinstance(a, NkiTensor) and isinstance(b, NkiTensor) and a.dtype is not b.dtype:
            program.report(
                instruction,
                "dtype",
                f"{second} must have the dtype of {first}: {instruction.spec.name} does not cast",
                "Convert it first, e.g. with nisa.tensor_copy into a tile of that dtype",
                operand=second,
                limit=str(a.dtype),
                value=str(b.dtype),
            )

    return check


def same_partitions(first: str, *others: str) -> Check:
    """Operands of different form that must have the same number of partitions."""

    def check(program: Program, instruction: Instruction) -> None:
        count = instruction[first].shape[0]
        for name in others:
            tensor = instruction[name]
            if isinstance(tensor, NkiTensor) and tensor.shape[0] != count:
                program.report(
                    instruction,
                    "partition-mismatch",
                    f"{name} has {tensor.shape[0]} partitions, {first} has {count}",
                    "Slice both to the same partitions",
                    operand=name,
                    limit=str(count),
                    value=str(tensor.shape[0]),
                )

    return check


def elements(name: str, count: int | Callable[[Instruction], int]) -> Check:
    """An operand that must have a fixed number of elements per partition."""

    def check(program: Program, instruction: Instruction) -> None:
        tensor = instruction[name]
        wanted = count if isinstance(count, int) else count(instruction)
        if isinstance(tensor, NkiTensor) and tensor.free_size != wanted:
            program.report(
                instruction,
                "shape",
                f"{name} must have {wanted} elements per partition",
                "Allocate or slice it to that size",
                operand=name,
                limit=str(wanted),
                value=str(tensor.free_size),
            )

    return check


def elements_between(name: str, least: int, most: int) -> Check:
    """An operand whose number of elements per partition has bounds."""

    def check(program: Program, instruction: Instruction) -> None:
        found = instruction[name].free_size
        if not least <= found <= most:
            program.report(
                instruction,
                "free-size",
                f"{name} has {found} elements per partition",
                "Split the tile, or pad it",
                operand=name,
                limit=f"{least} to {most}",
                value=str(found),
            )

    return check


def partitions_multiple_of(name: str, divisor: int) -> Check:
    """An operand whose partitions are worked on in groups."""

    def check(program: Program, instruction: Instruction) -> None:
        count = instruction[name].shape[0]
        if count % divisor:
            program.report(
                instruction,
                "partition-group",
                f"{instruction.spec.name} works on groups of {divisor} partitions",
                "Pad the tile to whole groups",
                operand=name,
                limit=f"a multiple of {divisor}",
                value=str(count),
            )

    return check


def free_dimensions(name: str, most: int) -> Check:
    """An operand whose access pattern has fewer free dimensions than engines allow in general.

    Dimensions that follow each other in memory count as one, those of one element as none.
    """

    def check(program: Program, instruction: Instruction) -> None:
        tensor = instruction[name]
        found = pattern_dimensions(tensor) if isinstance(tensor, NkiTensor) else 0
        if most < found <= FREE_DIMENSIONS:  # more than that: refused for every instruction
            program.report(
                instruction,
                "free-dimensions",
                f"{name}'s access pattern has {found} free dimensions",
                "Split it over several instructions, or copy it to a contiguous tile first",
                operand=name,
                limit=str(most),
                value=str(found),
            )

    return check


def pattern_dimensions(tensor: NkiTensor) -> int:
    """Free dimensions of a view's access pattern."""
    found = 0
    inner = 0  # stride that the next outer dimension must have to belong to this one
    for count, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.strides[1:]), strict=True):
        if count == 1:
            continue
        found += stride != inner or found == 0
        inner = stride * count
    return found


def operators_given(*names: str) -> Check:
    """Operators that have no default and cannot be left out."""

    def check(program: Program, instruction: Instruction) -> None:
        for name in names:
            if instruction[name] is None:
                allowed = sorted(f"nl.{o.name}" for o in instruction.spec.operators[name])
                program.report(
                    instruction,
                    "operator",
                    f"{name} cannot be left out",
                    f"Use one of: {', '.join(allowed)}",
                    operand=name,
                    limit=", ".join(allowed),
                    value="None",
                )

    return check


def rows_of(tensor: NkiTensor, rows: list[int]) -> list[NkiTensor]:
    """Views of some rows of a tensor: as few as evenly spaced rows allow.

    Args:
        tensor: any view.
        rows: ascending, without duplicates.

    Returns:
        The views, or the tensor itself if it has not all of these rows (which is refused).
    """
    if len(rows) == tensor.shape[0] or (rows and rows[-1] >= tensor.shape[0]):
        return [tensor]
    found = []
    first = 0
    while first < len(rows):
        last = first
        step = rows[first + 1] - rows[first] if first + 1 < len(rows) else 1
        while last + 1 < len(rows) and rows[last + 1] - rows[last] == step:
            last += 1
        found.append(tensor[slice(rows[first], rows[last] + 1, step)])
        first = last + 1
    return found
