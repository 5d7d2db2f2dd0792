"""A Program: a kernel specialised at given shapes, dtypes, parameters and target."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.context import VERSIONS, feature
from simulator.errors import NkiValidationError, Violation, kernel_location, refuse
from simulator.psum import PsumState
from simulator.registers import VirtualRegister
from simulator.targets import Target
from simulator.tensor import MemoryRegion, NkiTensor, Storage, row_major

if TYPE_CHECKING:
    from simulator.dtypes import DType
    from simulator.eager import Eager
    from simulator.instructions.table import InstructionSpec
    from simulator.lifetimes import Lifetime


class Instruction:
    """One instruction: `operands` follow `spec.parameters`."""

    __slots__ = ("after", "core", "engine", "file", "line", "operands", "peer", "spec")

    def __init__(
        self, spec: InstructionSpec, operands: tuple[Any, ...], engine: str, file: str, line: int
    ) -> None:
        self.spec = spec
        self.operands = operands
        self.engine = engine
        self.file = file
        self.line = line
        self.core = 0
        self.peer: Instruction | None = None
        """The other core's instruction that this one meets (sendrecv, core_barrier, loops)."""
        self.after: tuple[Instruction, ...] = ()
        """Instructions it was told to wait for."""

    def __getitem__(self, parameter: str) -> Any:
        return self.operands[self.spec.index[parameter]]

    def get(self, parameter: str, default: Any = None) -> Any:
        """The operand, or `default` if the instruction has no such parameter."""
        position = self.spec.index.get(parameter)
        return default if position is None else self.operands[position]

    def set(self, parameter: str, value: Any) -> None:
        """Replace an operand while the instruction is being emitted."""
        at = self.spec.index[parameter]
        self.operands = (*self.operands[:at], value, *self.operands[at + 1 :])

    def depends_on(self, *producers: Instruction) -> None:
        """Wait for `producers`, as `NkiInstruction.depends_on` of the SDK (0.6).

        Raises:
            NkiValidationError: one of them is no instruction.
        """
        feature("NkiInstruction.depends_on", since="0.6")
        for producer in producers:
            if not isinstance(producer, Instruction):
                raise refuse(
                    "depends-on",
                    f"depends_on a {type(producer).__name__}",
                    "Give what nisa functions return",
                    instruction=self.spec.name,
                    limit="NkiInstruction",
                    value=type(producer).__name__,
                )
        self.after = (*self.after, *producers)

    def reads(self) -> list[tuple[str, NkiTensor]]:
        """The tensors it reads, by operand name; index tiles of dynamic views included."""
        found = self._tensors(self.spec.read_positions)
        for name, tensor in found + self._tensors(self.spec.write_positions):
            if tensor.dynamic is not None:
                found += [(name, index) for index in tensor.dynamic.tensors()]
        return found

    def writes(self) -> list[tuple[str, NkiTensor]]:
        """The tensors it writes, by operand name."""
        return self._tensors(self.spec.write_positions)

    @property
    def written(self) -> list[Any]:
        """The operands it writes, as they were given."""
        return [self.operands[position] for _, position in self.spec.write_positions]

    def _tensors(self, positions: tuple[tuple[str, int], ...]) -> list[tuple[str, NkiTensor]]:
        found: list[tuple[str, NkiTensor]] = []
        operands = self.operands
        for name, position in positions:
            value = operands[position]
            if value.__class__ is NkiTensor:
                found.append((name, value))
            elif value.__class__ is tuple or value.__class__ is list:
                found += [(name, item) for item in value if isinstance(item, NkiTensor)]
        parts = self.spec.parts
        if parts is not None:
            return [(name, part) for name, whole in found for part in parts(self, name, whole)]
        return found

    def registers(self) -> list[tuple[str, VirtualRegister]]:
        """The registers among its operands and in their addresses, by operand name."""
        found: list[tuple[str, VirtualRegister]] = []
        for name, value in zip(self.spec.parameters, self.operands, strict=True):
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, VirtualRegister):
                    found.append((name, item))
                elif isinstance(item, NkiTensor) and item.dynamic is not None:
                    indices = [scalar.index for scalar in item.dynamic.scalars]
                    found += [(name, i) for i in indices if isinstance(i, VirtualRegister)]
        return found

    def __str__(self) -> str:
        shown = [
            f"{name}={_text(value)}"
            for name, value in zip(self.spec.parameters, self.operands, strict=True)
            if value is not None and name not in ("engine", "name")
        ]
        core = "core1:" if self.core else ""
        return f"{core}{self.engine}.{self.spec.name}({', '.join(shown)})"


def _text(value: Any) -> str:
    if isinstance(value, NkiTensor):
        pattern = " ".join(f"{s}x{n}" for s, n in value.get_pattern())
        text = f"%{value.storage.index}:{value.dtype}@{value.offset}[{pattern}]"
        return text if value.dynamic is None else text + _dynamic_text(value)
    if isinstance(value, VirtualRegister):
        return f"r{value.index}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_text, value)) + ")"
    return repr(value)


def _dynamic_text(tensor: NkiTensor) -> str:
    dynamic = tensor.dynamic
    assert dynamic is not None
    text = "".join(f"+{s.step}*{_text(s.index)}" for s in dynamic.scalars)
    if dynamic.rows is not None:
        text += f"+{dynamic.row_stride}*rows {_text(dynamic.rows)}"
    return text if dynamic.elements is None else text + f"+elements {_text(dynamic.elements)}"


@dataclass
class Feature:
    """Something the kernel uses that only some `nki` versions have."""

    name: str
    since: str
    until: str
    file: str
    line: int

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions that have it."""
        return VERSIONS[VERSIONS.index(self.since) : VERSIONS.index(self.until) + 1]


@dataclass
class Program:
    """The flat instruction list, its storages, and what goes in and out.

    A launch on two cores (LNC2) is one list too: the cores' instructions, each with its
    `core`, in an order that respects every barrier.
    """

    name: str
    target: Target
    lnc: int = 1
    """Physical cores that run it together: 1 or 2."""
    grid: bool = False
    """The launch named their number, as in `kernel[1](…)`."""
    storages: list[Storage] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    arguments: dict[str, NkiTensor] = field(default_factory=dict)
    """Tensor arguments by name, in signature order."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Compile-time arguments by name."""
    results: tuple[NkiTensor, ...] = ()
    second_results: tuple[NkiTensor, ...] = ()
    """What the second core returns: the same tensors."""
    returns_tuple: bool = False
    registers: int = 0
    """Registers used, of both cores."""
    features: dict[str, Feature] = field(default_factory=dict)
    """What only some `nki` versions have."""
    violations: list[Violation] = field(default_factory=list)
    lax: list[Violation] = field(default_factory=list)
    """What the compilers of 0.3 to 0.7 refuse, but older ones or AWS's simulator let through: a
    check refuses it, a call runs it with a warning."""
    warnings: list[Violation] = field(default_factory=list)
    """What runs, but is not what it seems or not what hardware does well."""
    core: int = 0
    """The core whose instructions are being traced."""
    eager: Eager | None = None
    """Executes each instruction as it is emitted."""
    loops: list[int] = field(default_factory=list)
    """The open dynamic loops, by number."""
    no_reorder: bool = False
    """Inside `nl.no_reorder()`."""
    _written: frozenset[str] | None = None
    lifetimes: tuple[int, list[Lifetime]] | None = None
    """What `lifetimes.lifetimes` found, and for how many instructions."""
    uncertain: set[int] = field(default_factory=set)
    """Storages of which parts may be read that only the device knows to be written."""
    psum: PsumState = field(default_factory=PsumState)
    _shared: list[list[NkiTensor]] = field(default_factory=lambda: [[], []])
    _loop_counts: list[int] = field(default_factory=lambda: [0, 0])
    """Loops of each core. Loops that both run have the same number."""

    # --- building ---------------------------------------------------------------------

    def allocate(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        buffer: MemoryRegion,
        name: str = "",
        role: str = "temporary",
        data: Any = None,
        address: tuple[int, int] | None = None,
    ) -> NkiTensor:
        """Add a storage; returns the tensor that covers it.

        On the second core of an LNC2 launch, shared HBM is what the first core allocated.
        """
        shared = buffer is MemoryRegion.shared_hbm and role != "argument" and self.lnc == 2
        if shared and self.core == 1:
            return self._shared_again(shape, dtype, name)
        index = len(self.storages)
        core = None if buffer is MemoryRegion.shared_hbm else self.core
        storage = Storage(index, name or f"t{index}", shape, dtype, buffer, role, core, address)
        storage.data = data
        storage.scope = self.loops[-1] if self.loops else None
        self.storages.append(storage)
        tensor = NkiTensor(storage, shape, row_major(shape))
        if shared:
            self._shared[0].append(tensor)
        if self.eager is not None:
            self.eager.allocate(storage)
        return tensor

    def _shared_again(self, shape: tuple[int, ...], dtype: DType, name: str) -> NkiTensor:
        position = len(self._shared[1])
        first = self._shared[0][position] if position < len(self._shared[0]) else None
        if first is None or first.shape != shape or first.dtype is not dtype:
            raise refuse(
                "lnc-divergence",
                f"core 1 allocates shared_hbm tensor {name or position}, core 0 does not",
                "Allocate the same shared tensors in the same order on both cores",
                limit=repr(first) if first is not None else "none",
                value=f"{dtype}{list(shape)}",
            )
        self._shared[1].append(first)
        return first

    def register(self, frozen: bool = False) -> VirtualRegister:
        """A new register of the core being traced."""
        register = VirtualRegister(self, self.registers, frozen)
        self.registers += 1
        if self.eager is not None:
            self.eager.add_register(register)
        return register

    def open_loop(self) -> int:
        """Enter a dynamic loop; returns its number."""
        self._loop_counts[self.core] += 1
        self.loops.append(self._loop_counts[self.core])
        return self.loops[-1]

    def close_loop(self, number: int) -> None:
        """Leave a dynamic loop, and any inside it that were left by break or return."""
        while self.loops and self.loops.pop() != number:
            pass

    def eager_register(self, register: VirtualRegister) -> int | None:
        """A register's present value in eager mode, else None."""
        return None if self.eager is None else self.eager.value_of(register)

    def while_register(self, register: VirtualRegister) -> bool:
        """`while register:`, see `control.while_statement`."""
        from simulator.control import while_statement

        return while_statement(self, register)

    def use_feature(self, name: str, since: str, until: str) -> None:
        """Note a feature at the kernel's current line."""
        self.features[name] = Feature(name, since, until, *kernel_location())

    def emit(self, spec: InstructionSpec, operands: tuple[Any, ...]) -> Instruction:
        """Append an instruction; what its checks find is kept until the kernel's end.

        Raises:
            NkiValidationError: an operand is no tensor where there must be one, so that
                nothing further can be said.
        """
        file, line = kernel_location()
        instruction = Instruction(spec, operands, spec.engines[0], file, line)
        instruction.core = self.core
        found = len(self.violations)
        spec.prepare(self, instruction)
        self.psum.note(instruction)
        if self._loop_counts[self.core]:
            self._check_scopes(instruction)
        self.instructions.append(instruction)
        if self.eager is not None:
            if len(self.violations) > found:
                self.raise_violations()
            self.eager.execute(instruction)
        return instruction

    def _check_scopes(self, instruction: Instruction) -> None:
        """Nothing made in a dynamic loop's body is used outside it (nki_facts.md §6.4)."""
        used = [(name, t.storage.scope, t.name) for name, t in instruction.reads()]
        used += [(name, t.storage.scope, t.name) for name, t in instruction.writes()]
        used += [(name, r.loop, f"r{r.index}") for name, r in instruction.registers()]
        for operand, scope, name in used:
            if scope is not None and scope not in self.loops:
                self.report(
                    instruction,
                    "loop-scope",
                    f"`{name}` was made in the body of a dynamic loop that is over",
                    "Allocate it before the loop",
                    operand=operand,
                    limit="inside the loop",
                    value="outside",
                )
                return

    def report(
        self, instruction: Instruction, rule: str, message: str, mend: str, **details: str
    ) -> None:
        """Note a violation of `instruction`."""
        self.violations.append(_at(instruction, rule, message, mend, details))

    def tolerate(
        self, instruction: Instruction, rule: str, message: str, mend: str, **details: str
    ) -> None:
        """Note what only older compilers or AWS's simulator let through."""
        self.lax.append(_at(instruction, rule, message, mend, details))

    def warn(
        self, instruction: Instruction, rule: str, message: str, mend: str, **details: str
    ) -> None:
        """Note a warning about `instruction`."""
        self.warnings.append(_at(instruction, rule, message, mend, details))

    def notes(self) -> int:
        """How many violations, warnings and features have been noted."""
        noted = (self.violations, self.lax, self.warnings, self.features)
        return sum(map(len, noted))

    def raise_violations(self) -> None:
        """Raise everything noted so far, if anything that a call cannot run with."""
        if self.violations:
            raise NkiValidationError(list(dict.fromkeys(self.violations + self.lax)))

    # --- reading ----------------------------------------------------------------------

    @property
    def written_arguments(self) -> frozenset[str]:
        """Names of the arguments it writes; found once, when the Program is complete."""
        if self._written is None:
            self._written = frozenset(
                tensor.storage.name
                for instruction in self.instructions
                for _, tensor in instruction.writes()
                if tensor.storage.role == "argument"
            )
        return self._written

    @property
    def versions(self) -> tuple[str, ...]:
        """The `nki` versions that have everything the kernel uses."""
        return tuple(
            version
            for version in VERSIONS
            if all(version in feature.versions for feature in self.features.values())
        )

    def __str__(self) -> str:
        lines = [f"program {self.name} target={self.target.name} lnc={self.lnc}"]
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
        """sha256 of the Program's text without source positions, and of its constants' values."""
        text = "\n".join(line.partition("  # ")[0] for line in str(self).splitlines())
        digest = hashlib.sha256(text.encode())
        for storage in self.storages:
            if storage.data is not None:
                digest.update(np.ascontiguousarray(storage.data).tobytes())
        return digest.hexdigest()

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


def _at(
    instruction: Instruction, rule: str, message: str, mend: str, details: dict[str, str]
) -> Violation:
    return Violation(
        rule,
        message,
        mend,
        instruction.file,
        instruction.line,
        instruction.spec.name,
        **details,
    )
