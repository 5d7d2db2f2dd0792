"""Registers over a whole Program: read before they are set, and more alive than there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.instructions.control import LOOPS
from simulator.registers import REGISTERS

if TYPE_CHECKING:
    from simulator.program import Instruction, Program
    from simulator.registers import VirtualRegister

_ENDS = frozenset(LOOPS.values())


def check_registers(program: Program) -> None:
    """Note reads of registers without a value, and too many registers alive at once."""
    if not program.registers:
        return
    _check_set(program)
    _check_pressure(program)


def _reads_and_writes(
    instruction: Instruction,
) -> tuple[list[tuple[str, VirtualRegister]], list[VirtualRegister]]:
    """The registers an instruction reads, by operand, and those it sets."""
    name = instruction.spec.name
    reads: list[tuple[str, VirtualRegister]] = []
    writes: list[VirtualRegister] = []
    for operand, register in instruction.registers():
        itself = instruction[operand] is register
        sets = operand == "dst" or (operand == "register" and name in ("loop", "end_while"))
        if itself and sets:
            writes.append(register)
        elif name != "end_loop":
            reads.append((operand, register))
    return reads, writes


def _check_set(program: Program) -> None:
    known: set[int] = set()
    for instruction in program.instructions:
        reads, writes = _reads_and_writes(instruction)
        for operand, register in reads:
            if register.index not in known and not register.frozen:
                known.add(register.index)
                program.report(
                    instruction,
                    "uninitialised-read",
                    f"reads register r{register.index}, which was never set",
                    "Set it with nisa.register_load, nisa.register_move or register_alloc(value)",
                    operand=operand,
                    limit="a value",
                    value="none",
                )
        known.update(register.index for register in writes)


def _check_pressure(program: Program) -> None:
    """Registers are shared by those that are not alive at the same time (nki_facts.md §2.9)."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    core: dict[int, int] = {}
    loops: list[tuple[int, set[int]]] = []
    for position, instruction in enumerate(program.instructions):
        name = instruction.spec.name
        if name in LOOPS:
            loops.append((position, set()))
        for _, register in instruction.registers():
            index = register.index
            first.setdefault(index, position)
            last[index] = position
            core[index] = instruction.core
            for begin, used in loops:
                if first[index] < begin:
                    used.add(index)
        if name in _ENDS:
            for index in loops.pop()[1]:  # set before the loop: needed in its next round
                last[index] = position
    if len(first) <= REGISTERS:
        return
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for index, position in first.items():
        begins.setdefault(position, []).append(index)
        ends.setdefault(last[index], []).append(index)
    alive = [0, 0]
    for position, instruction in enumerate(program.instructions):
        for index in begins.get(position, ()):
            alive[core[index]] += 1
            if alive[core[index]] == REGISTERS + 1:
                program.report(
                    instruction,
                    "register-limit",
                    "more registers are needed at once than an engine's sequencer has",
                    "Reuse registers with nisa.register_move",
                    limit=str(REGISTERS),
                    value=str(alive[core[index]]),
                )
        for index in ends.get(position, ()):
            alive[core[index]] -= 1
