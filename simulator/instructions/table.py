"""What an instruction is: operands, engines, limits, meaning. One entry per nki.isa function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from simulator.operators import Operator
from simulator.tensor import MemoryRegion, NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

Array = np.ndarray[Any, Any]
Arrays = list[Array]
Run = Callable[[Arrays], None]
"""Executes one instruction on the resolved views of a plan."""


class Slots(Protocol):
    """Gives the plan's index of a tensor's view, or of an engine's accumulators."""

    def __call__(self, tensor: NkiTensor) -> int: ...

    def accumulators(self, engine: str) -> int: ...


ON_CHIP = frozenset({MemoryRegion.sbuf, MemoryRegion.psum})
SBUF = frozenset({MemoryRegion.sbuf})
HBM = frozenset({MemoryRegion.private_hbm, MemoryRegion.shared_hbm})


@dataclass(frozen=True)
class Operand:
    """A tensor operand: how it is accessed, its form, and where it may be."""

    access: Literal["read", "write"]
    form: Literal["tile", "column", "free"] = "tile"
    """tile: P and N of all tiles agree; column: (P, 1); free: the instruction's own rule."""
    buffers: frozenset[MemoryRegion] = ON_CHIP
    number: bool = False
    """A compile-time number may stand in its place."""
    optional: bool = False
    float32: bool = False
    """A column that must be float32 (nki_facts.md §5: scale and operand tiles)."""


def no_check(program: Program, instruction: Instruction) -> None:
    """Nothing beyond the table's own rules."""


@dataclass(frozen=True)
class InstructionSpec:
    """One row of the table."""

    name: str
    parameters: tuple[str, ...]
    operands: dict[str, Operand]
    engines: tuple[str, ...]
    """Engines that can run it; the first is the default."""
    lower: Callable[[Instruction, Slots], Run]
    """Its meaning: an instruction on views → a function on arrays."""
    cost: str
    """Engine cycles as documented; N = elements per partition (nki_facts.md §2.4-2.8)."""
    source: str
    extra_check: Callable[[Program, Instruction], None] = no_check
    operators: dict[str, set[Operator]] = field(default_factory=dict)
    """Parameter -> operators it accepts."""
    macs: Callable[[Instruction], int] | None = None
    accumulates: str | None = None
    """The engine whose accumulator registers it uses."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the operands read."""
        return tuple(name for name, operand in self.operands.items() if operand.access == "read")

    @property
    def writes(self) -> tuple[str, ...]:
        """Names of the operands written."""
        return tuple(name for name, operand in self.operands.items() if operand.access == "write")

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the operands that must be tensors."""
        return tuple(name for name, o in self.operands.items() if not (o.number or o.optional))

    def engine(self, program: Program, instruction: Instruction) -> str:
        """The engine it runs on: the one asked for, else the default."""
        if (
            "engine" not in self.parameters
            or self.engines == ("dma",)
            or instruction["engine"].name == "unknown"
        ):
            return self.engines[0]
        asked = str(instruction["engine"].name)
        if asked not in self.engines:
            program.report(
                instruction,
                "engine",
                f"cannot run on the {asked} engine",
                f"Use one of: {', '.join(self.engines)}",
                operand="engine",
                limit=", ".join(self.engines),
                value=asked,
            )
        return asked

    def check(self, program: Program, instruction: Instruction) -> None:
        """Report every rule of the table that the instruction breaks."""
        from simulator.instructions.checks import check_instruction

        check_instruction(self, program, instruction)
        self.extra_check(program, instruction)
