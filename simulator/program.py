"""A Program: a kernel specialised at given shapes, dtypes, parameters and target."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from simulator.errors import NkiValidationError, Violation, kernel_location, refuse
from simulator.targets import Target
from simulator.tensor import MemoryRegion, NkiTensor, Storage, row_major

if TYPE_CHECKING:
    from simulator.dtypes import DType
    from simulator.instructions.table import InstructionSpec


class Instruction:
    """One instruction: `operands` follow `spec.parameters`."""

    __slots__ = ("engine", "file", "line", "operands", "spec")

    def __init__(
        self, spec: InstructionSpec, operands: tuple[Any, ...], engine: str, file: str, line: int
    ) -> None:
        self.spec = spec
        self.operands = operands
        self.engine = engine
        self.file = file
        self.line = line

    def __getitem__(self, parameter: str) -> Any:
        return self.operands[self.spec.parameters.index(parameter)]

    def reads(self) -> list[tuple[str, NkiTensor]]:
        """The tensors it reads, by operand name."""
        return self._tensors(self.spec.reads)

    def writes(self) -> list[tuple[str, NkiTensor]]:
        """The tensors it writes, by operand name."""
        return self._tensors(self.spec.writes)

    def _tensors(self, names: tuple[str, ...]) -> list[tuple[str, NkiTensor]]:
        found = ((name, self[name]) for name in names)
        return [(name, value) for name, value in found if isinstance(value, NkiTensor)]

    def __str__(self) -> str:
        shown = [
            f"{name}={_text(value)}"
            for name, value in zip(self.spec.parameters, self.operands, strict=True)
            if value is not None and name not in ("engine", "name")
        ]
        return f"{self.engine}.{self.spec.name}({', '.join(shown)})"


def _text(value: Any) -> str:
    if isinstance(value, NkiTensor):
        pattern = " ".join(f"{s}x{n}" for s, n in value.get_pattern())
        return f"%{value.storage.index}:{value.dtype}@{value.offset}[{pattern}]"
    return repr(value)


@dataclass
class Program:
    """The flat instruction list, its storages, and what goes in and out."""

    name: str
    target: Target
    storages: list[Storage] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    arguments: dict[str, NkiTensor] = field(default_factory=dict)
    """Tensor arguments by name, in signature order."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Compile-time arguments by name."""
    results: tuple[NkiTensor, ...] = ()
    returns_tuple: bool = False
    violations: list[Violation] = field(default_factory=list)

    # --- building ---------------------------------------------------------------------

    def allocate(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        buffer: MemoryRegion,
        name: str = "",
        role: str = "temporary",
    ) -> NkiTensor:
        """Add a storage; returns the tensor that covers it."""
        index = len(self.storages)
        storage = Storage(index, name or f"t{index}", shape, dtype, buffer, role)
        self.storages.append(storage)
        return NkiTensor(storage, shape, row_major(shape))

    def emit(self, spec: InstructionSpec, operands: tuple[Any, ...]) -> None:
        """Append an instruction; what its checks find is kept until the kernel's end.

        Raises:
            NkiValidationError: an operand is no tensor where there must be one, so that
                nothing further can be said.
        """
        file, line = kernel_location()
        instruction = Instruction(spec, operands, "", file, line)
        for name in (*spec.writes, *spec.reads):
            value = instruction[name]
            if not isinstance(value, NkiTensor) and name in spec.tensors:
                raise refuse(
                    "operand",
                    f"must be a tensor, got {type(value).__name__}",
                    "Allocate one with nl.ndarray",
                    instruction=spec.name,
                    operand=name,
                    limit="NkiTensor",
                    value=type(value).__name__,
                )
        instruction.engine = spec.engine(self, instruction)
        spec.check(self, instruction)
        self.instructions.append(instruction)

    def report(
        self, instruction: Instruction, rule: str, message: str, mend: str, **details: str
    ) -> None:
        """Note a violation of `instruction`."""
        self.violations.append(
            Violation(
                rule,
                message,
                mend,
                instruction.file,
                instruction.line,
                instruction.spec.name,
                **details,
            )
        )

    def raise_violations(self) -> None:
        """Raise everything noted so far, if anything."""
        if self.violations:
            raise NkiValidationError(list(dict.fromkeys(self.violations)))

    # --- reading ----------------------------------------------------------------------

    def __str__(self) -> str:
        lines = [f"program {self.name} target={self.target.name}"]
        lines += [f"  parameter {name} = {value!r}" for name, value in self.parameters.items()]
        for storage in self.storages:
            dims = ",".join(map(str, storage.shape))
            lines.append(
                f"  %{storage.index} = {storage.role} {storage.name}: {storage.dtype}[{dims}] "
                f"in {storage.buffer.value}"
            )
        for i in self.instructions:
            lines.append(f"  {i}  # {PurePath(i.file).name}:{i.line}")
        lines.append(f"  return {', '.join(_text(result) for result in self.results)}")
        return "\n".join(lines) + "\n"

    def fingerprint(self) -> str:
        """sha256 of the Program's text without source positions."""
        text = "\n".join(line.partition("  # ")[0] for line in str(self).splitlines())
        return hashlib.sha256(text.encode()).hexdigest()

    def instructions_by_engine(self) -> dict[str, int]:
        """Engine -> number of instructions."""
        counts: dict[str, int] = {}
        for instruction in self.instructions:
            counts[instruction.engine] = counts.get(instruction.engine, 0) + 1
        return counts

    def hbm_bytes(self) -> tuple[int, int]:
        """Bytes read from and written to HBM, as moved (a broadcast counts each time)."""
        read = written = 0
        for instruction in self.instructions:
            for _, tensor in instruction.reads():
                if not tensor.buffer.on_chip:
                    read += tensor.size * tensor.dtype.itemsize
            for _, tensor in instruction.writes():
                if not tensor.buffer.on_chip:
                    written += tensor.size * tensor.dtype.itemsize
        return read, written

    def macs(self) -> int:
        """Multiply-accumulates on the Tensor engine."""
        return sum(i.spec.macs(i) for i in self.instructions if i.spec.macs is not None)
