"""What an instruction is: operands, engines, limits, meaning. One row per nki.isa function.

A row is the API function itself: its signature names the operands, its body only returns
them in order, and the decorator `instruction` holds the rest.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from simulator.context import current_program, feature
from simulator.dtypes import DType
from simulator.errors import refuse
from simulator.operators import Operator
from simulator.registers import VirtualRegister
from simulator.tensor import MemoryRegion, NkiTensor, OutsideTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

Array = np.ndarray[Any, Any]
Arrays = list[Array]
Run = Callable[[Arrays], None]
"""Executes one instruction on the resolved views of a plan."""


class Slots(Protocol):
    """Gives the index, in the list of resolved views, of what an instruction works on."""

    def __call__(self, tensor: NkiTensor) -> int:
        """A tensor's view. Scalar offsets and `.indirect` are resolved before each run."""
        ...

    def register(self, register: VirtualRegister) -> int:
        """A register: a 0-d int64 array."""
        ...

    def accumulators(self, engine: str) -> int:
        """The accumulator registers of an engine of the current core, fp32[128]."""
        ...

    def rows(self, tensor: NkiTensor) -> int:
        """For a view with vector_offset: all rows there are, (rows, *tensor.shape[1:])."""
        ...

    def is_constant(self, tensor: NkiTensor) -> bool:
        """Whether the view's values cannot change during a run."""
        ...

    def state(self, name: str, make: Callable[[], Any]) -> Any:
        """An object that lives as long as the plan's memory, e.g. a random generator.

        `runs` is a list of one number that is another in every run.
        """
        ...


ON_CHIP = frozenset({MemoryRegion.sbuf, MemoryRegion.psum})
SBUF = frozenset({MemoryRegion.sbuf})
PSUM = frozenset({MemoryRegion.psum})
HBM = frozenset({MemoryRegion.private_hbm, MemoryRegion.shared_hbm})


@dataclass(frozen=True)
class Operand:
    """A tensor operand: how it is accessed, its form, and where it may be."""

    access: Literal["read", "write", "update"]
    """update: written in part, so that what was there before must have been written."""
    form: Literal["tile", "column", "free"] = "tile"
    """tile: P and N of all tiles agree; column: (P, 1); free: the instruction's own rule."""
    buffers: frozenset[MemoryRegion] = ON_CHIP
    number: bool = False
    """A compile-time number or a register may stand in its place."""
    optional: bool = False
    float32: bool = False
    """A column that must be float32 (nki_facts.md §5: scale and operand tiles)."""
    dtypes: frozenset[DType] | None = None
    """The dtypes it may have; None for any."""
    many: bool = False
    """A list or tuple of tensors."""
    own_starts: bool = False
    """The instruction has a rule of its own for the partition it starts at."""


def no_check(program: Program, instruction: Instruction) -> None:
    """Nothing beyond the table's own rules."""


@dataclass(frozen=True, eq=False)
class InstructionSpec:
    """One row of the table."""

    name: str
    parameters: tuple[str, ...]
    defaults: tuple[Any, ...]
    operands: dict[str, Operand]
    engines: tuple[str, ...]
    """Engines that can run it; the first is the default."""
    lower: Callable[[Instruction, Slots], Run]
    """Its meaning: an instruction on views → a function on arrays."""
    cost: str
    """Engine cycles as documented; N = elements per partition (nki_facts.md §2.4-2.8)."""
    source: str
    extra_check: Callable[[Program, Instruction], None] = no_check
    operators: dict[str, frozenset[Operator]] = field(default_factory=dict)
    """Parameter -> operators it accepts."""
    macs: Callable[[Instruction], int] | None = None
    accumulates: str | None = None
    """The engine whose accumulator registers it uses."""
    generation: int = 2
    """The first NeuronCore generation that has it."""
    since: str = "0.3"
    """The first `nki` version that has it."""
    parameters_since: dict[str, str] = field(default_factory=dict)
    """The first version of parameters that came later."""
    serial: bool = False
    """It has effects beyond its tensors (random state, output, other cores): keeps its place."""
    resolve: Callable[[Program, Instruction], None] | None = None
    """Runs first: fixes operands that depend on what came before (engine, accumulate)."""
    parts: Callable[[Instruction, str, NkiTensor], list[NkiTensor]] | None = None
    """The parts of an operand that it really reads or writes, if it leaves rows out."""
    index: dict[str, int] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    """Names of the operands read."""
    writes: tuple[str, ...] = ()
    """Names of the operands written."""
    read_positions: tuple[tuple[str, int], ...] = ()
    write_positions: tuple[tuple[str, int], ...] = ()
    """The same with their positions among the parameters."""
    tensors: tuple[str, ...] = ()
    """Names of the operands that must be tensors."""
    enums: tuple[tuple[int, type[Enum]], ...] = ()
    """Positions of the parameters that are enumerations."""
    passed: set[Any] = field(default_factory=set)
    """Operand combinations that were checked before and broke nothing."""

    def prepare(self, program: Program, instruction: Instruction) -> None:
        """Resolve and check an instruction that is being emitted.

        Raises:
            NkiValidationError: a tensor operand is no tensor, or an enumeration no member.
        """
        self._check_kinds(program, instruction)
        if self.resolve is not None:
            self.resolve(program, instruction)
        self._choose_engine(program, instruction)
        key = _signature(program, instruction)
        if key is not None and key in self.passed:
            return
        found = program.notes()
        self._note_versions(instruction)
        self.check(program, instruction)
        if key is not None and program.notes() == found and not self._versions_vary(instruction):
            self.passed.add(key)

    def _versions_vary(self, instruction: Instruction) -> bool:
        """Whether the instruction uses what only some versions have."""
        return self.since != "0.3" or any(
            instruction.operands[self.index[parameter]] != self.defaults[self.index[parameter]]
            for parameter in self.parameters_since
        )

    def _check_kinds(self, program: Program, instruction: Instruction) -> None:
        operands = instruction.operands
        for name in self.operands:
            value = operands[self.index[name]]
            for item in value if isinstance(value, tuple | list) else (value,):
                if isinstance(item, OutsideTensor):
                    raise item.fault
        for name in self.tensors:
            value = operands[self.index[name]]
            if isinstance(value, NkiTensor) or (
                self.operands[name].many and isinstance(value, tuple | list)
            ):
                continue
            raise refuse(
                "operand",
                f"must be a tensor, got {type(value).__name__}",
                "Allocate one with nl.ndarray",
                instruction=self.name,
                operand=name,
                limit="NkiTensor",
                value=type(value).__name__,
            )
        for position, kind in self.enums:
            if operands[position].__class__ is not kind:
                self._check_enum(program, instruction, position, kind)

    def _check_enum(
        self, program: Program, instruction: Instruction, position: int, kind: type[Enum]
    ) -> None:
        """A number or name in place of a member: NKI 0.2 took it, 0.3 and later do not."""
        given, parameter = instruction.operands[position], self.parameters[position]
        details = {
            "operand": parameter,
            "limit": ", ".join(member.name for member in kind),
            "value": repr(given),
        }
        message = f"{parameter} must be a member of nisa.{kind.__name__}"
        mend = f"Write nisa.{kind.__name__}.NAME; numbers and strings are refused since NKI 0.3"
        member = next((m for m in kind if given in (m.value, m.name)), None)
        if member is None or isinstance(given, bool):
            raise refuse("enum", message, mend, instruction=self.name, **details)
        instruction.set(parameter, member)
        program.tolerate(instruction, "enum", message, mend, **details)

    def _note_versions(self, instruction: Instruction) -> None:
        if self.since != "0.3":
            feature(f"nisa.{self.name}", since=self.since)
        for parameter, since in self.parameters_since.items():
            position = self.index[parameter]
            if instruction.operands[position] != self.defaults[position]:
                feature(f"nisa.{self.name}({parameter}=)", since=since)

    def _choose_engine(self, program: Program, instruction: Instruction) -> None:
        """The engine asked for, else the one `resolve` chose, else the default."""
        position = self.index.get("engine")
        if position is None or self.engines == ("dma",):
            return
        asked = instruction.operands[position].name
        if asked == "unknown":
            return
        instruction.engine = asked
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

    def check(self, program: Program, instruction: Instruction) -> None:
        """Report every rule of the table that the instruction breaks."""
        from simulator.instructions.checks import check_instruction

        before = len(program.violations)
        check_instruction(self, program, instruction)
        kinds_hold = not any(
            violation.rule == "operand" for violation in program.violations[before:]
        )
        if kinds_hold:
            self.extra_check(program, instruction)


def _signature(program: Program, instruction: Instruction) -> Any:
    """What an instruction's checks can see, as a dictionary key; None if it has none."""
    parts: list[Any] = [program.target.generation, program.lnc, instruction.engine]
    for value in instruction.operands:
        if value.__class__ is NkiTensor:
            if value.dynamic is not None:
                return None
            storage = value.storage
            place = value.start_partition if storage.buffer.on_chip else 0
            parts.append((value.shape, value.strides, value.dtype, storage.buffer, place))
            if storage.buffer is MemoryRegion.psum:
                parts.append((value.offset, storage.dtype, storage.shape, storage.address))
        elif isinstance(value, list | tuple | dict) and not (
            value.__class__ is tuple and all(item.__class__ is int for item in value)
        ):
            return None
        else:
            parts.append((value.__class__, value))
    try:
        hash(key := tuple(parts))
    except TypeError:
        return None
    return key


INSTRUCTIONS: dict[str, InstructionSpec] = {}
"""The table: name -> row."""


def instruction(
    *,
    operands: dict[str, Operand],
    engines: tuple[str, ...],
    lower: Callable[[Instruction, Slots], Run],
    cost: str,
    source: str,
    **rest: Any,
) -> Callable[[Callable[..., tuple[Any, ...]]], Callable[..., Any]]:
    """Make an API function, whose body returns its arguments in order, a row of the table."""

    def decorate(function: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
        parameters = inspect.signature(function).parameters
        names = tuple(parameters)
        defaults = tuple(parameter.default for parameter in parameters.values())
        spec = InstructionSpec(
            function.__name__,
            names,
            defaults,
            operands,
            engines,
            lower,
            cost,
            source,
            index={name: position for position, name in enumerate(names)},
            reads=tuple(n for n, o in operands.items() if o.access != "write"),
            writes=tuple(n for n, o in operands.items() if o.access != "read"),
            read_positions=tuple(
                (n, names.index(n)) for n, o in operands.items() if o.access != "write"
            ),
            write_positions=tuple(
                (n, names.index(n)) for n, o in operands.items() if o.access != "read"
            ),
            tensors=tuple(n for n, o in operands.items() if not (o.number or o.optional)),
            enums=tuple((i, type(d)) for i, d in enumerate(defaults) if isinstance(d, Enum)),
            **rest,
        )
        INSTRUCTIONS[spec.name] = spec

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Instruction:
            if "dtype" in kwargs and "dtype" not in spec.index:
                return _with_dtype(spec, function, args, kwargs)
            return current_program().emit(spec, function(*args, **kwargs))

        return call

    return decorate


def _with_dtype(
    spec: InstructionSpec,
    function: Callable[..., tuple[Any, ...]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Instruction:
    """`dtype=`, which some instructions still took in NKI 0.2; dst decides in any case."""
    program = current_program()
    dtype = kwargs.pop("dtype")
    emitted = program.emit(spec, function(*args, **kwargs))
    program.tolerate(
        emitted,
        "legacy-dtype",
        f"{spec.name} has no dtype= since NKI 0.2",
        "Leave it out: dst decides",
        operand="dtype",
        limit="no such argument",
        value=str(dtype),
    )
    return emitted
