"""Eager mode: instructions are carried out as they are traced, by the one instruction table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulator.instructions.control import wrap32
from simulator.instructions.table import Array
from simulator.lnc import meets
from simulator.machine import UNINITIALISED, Machine, fill, flat_bytes
from simulator.program import Instruction, Program
from simulator.registers import VirtualRegister
from simulator.tensor import NkiTensor, Storage
from simulator.turns import Turns


class Eager(Machine):
    """Executes instructions as they are traced, so that a debugger sees values."""

    def __init__(self, program: Program, arguments: Mapping[str, Array]) -> None:
        super().__init__(program)
        self._arguments = arguments
        self.turns = Turns(program) if program.lnc == 2 else None

    def bind_arguments(self) -> None:
        """Give the arguments, which are allocated by now, their data."""
        for name, tensor in self.program.arguments.items():
            self.memory[tensor.storage.index] = flat_bytes(
                self._arguments[name], self.precise, tensor
            )

    def allocate(self, storage: Storage) -> None:
        """A storage of the Program comes to life."""
        if storage.role != "argument":
            self.memory[storage.index] = fill(storage, self)

    def execute(self, instruction: Instruction) -> None:
        """Carry out one instruction now; where the cores meet, once both are there."""
        if self.turns is not None and meets(instruction):
            self.turns.meet(instruction, self._execute)
        else:
            self._execute(instruction)

    def _execute(self, instruction: Instruction) -> None:
        with np.errstate(all="ignore"):
            self.lower(instruction)(self.views)

    def results(self) -> list[Array]:
        """The results when the kernel has ended, one array each; arguments are up to date."""
        if not self.precise:
            self._write_back(self._arguments)
        return [self.views[self(result)] for result in self.program.results]

    def values(self, tensor: NkiTensor) -> Array | None:
        """A copy of a tensor's present values; None where an instruction decides what it is."""
        if tensor.dynamic is not None:
            return None
        return self.views[self(tensor)].copy()

    def add_register(self, register: VirtualRegister) -> None:
        """A register comes to life."""
        self.views[Machine.register(self, register)][...] = UNINITIALISED

    def value_of(self, register: VirtualRegister) -> int:
        """A register's present value."""
        return int(self.views[Machine.register(self, register)])

    def set_register(self, register: VirtualRegister, value: int) -> None:
        """Set a loop's variable."""
        self.views[Machine.register(self, register)][...] = wrap32(value)
