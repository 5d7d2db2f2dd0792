"""Specialise: run a kernel's Python once on tensors without data, giving a checked Program."""

from __future__ import annotations

import contextlib
import gc
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator import lnc as cores
from simulator.check import check_program
from simulator.context import CURRENT, current_program
from simulator.dtypes import DType
from simulator.eager import Eager
from simulator.errors import NkiValidationError, Violation
from simulator.program import Program
from simulator.targets import Target
from simulator.tensor import MemoryRegion, NkiTensor

__all__ = ["TensorSpec", "current_program", "run_eagerly", "specialise"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor argument: what a Program is specialised for."""

    shape: tuple[int, ...]
    dtype: DType

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def specialise(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    target: Target,
    lnc: int = 1,
    grid: bool = False,
) -> Program:
    """Trace `function` with tensors in place of every `TensorSpec` and check the result.

    Args:
        function: the kernel's Python function.
        arguments: name -> TensorSpec or compile-time value, in signature order.
        target: whose limits hold.
        lnc: cores of the launch; the kernel is traced once for each.
        grid: the launch named that number, as in `kernel[1](…)`.

    Raises:
        NkiValidationError: with every violation that was found.
    """
    with _no_garbage_collection():
        return _specialise(function, arguments, target, lnc, grid)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A trace makes many objects and no garbage; collecting would cost a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _specialise(
    function: Callable[..., Any], arguments: dict[str, Any], target: Target, lnc: int, grid: bool
) -> Program:
    program = Program(function.__name__, target, lnc, grid)
    values = _arguments(program, arguments)
    streams = []
    for core in range(lnc):
        program.core, program.instructions = core, []
        _trace(program, function, values)
        streams.append(program.instructions)
    _check_same_results(program, function)
    program.raise_violations()  # shapes are wrong: what follows would only repeat it
    program.instructions = streams[0] if lnc == 1 else cores.merge(*streams)
    check_program(program)
    program.raise_violations()
    return program


def run_eagerly(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    data: Mapping[str, np.ndarray[Any, Any]],
    target: Target,
    lnc: int = 1,
    grid: bool = False,
) -> tuple[Program, list[np.ndarray[Any, Any]]]:
    """Execute each instruction as it is traced; then check the Program.

    Args:
        function: the kernel's Python function.
        arguments: as for `specialise`.
        data: contiguous arrays of the tensor arguments; may be written.
        target: whose limits hold.
        lnc: cores of the launch. The second runs in a thread of its own and takes turns with
            the first.
        grid: the launch named that number.

    Returns:
        The Program, with dynamic loops unrolled as they ran, and one array per result.

    Raises:
        NkiValidationError: at the first instruction that breaks a rule, or what the checks
            of the whole Program found.
    """
    program = Program(function.__name__, target, lnc, grid)
    program.eager = eager = Eager(program, data)
    values = _arguments(program, arguments)
    eager.bind_arguments()
    if eager.turns is None:
        _trace(program, function, values)
    else:
        eager.turns.run(lambda: _trace(program, function, values))
    _check_same_results(program, function)
    program.raise_violations()
    check_program(program)
    program.raise_violations()
    results = eager.results()
    program.eager = None
    return program, results


def _arguments(program: Program, arguments: dict[str, Any]) -> dict[str, Any]:
    """The values the kernel's function is called with."""
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if _has_tensors(value):
            values[name] = _nested(program, name, value)
        else:
            program.parameters[name] = values[name] = value
    return values


def _has_tensors(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_has_tensors(item) for item in value)
    if isinstance(value, dict):
        return any(_has_tensors(item) for item in value.values())
    return isinstance(value, TensorSpec)


def _nested(program: Program, name: str, value: Any) -> Any:
    """Allocate the tensors in an argument: itself, or inside tuples and dictionaries."""
    if isinstance(value, TensorSpec):
        # nl.hbm; shared_hbm where two cores see it (nki_facts.md §4.1).
        region = MemoryRegion.private_hbm if program.lnc == 1 else MemoryRegion.shared_hbm
        tensor = program.allocate(value.shape, value.dtype, region, name, "argument")
        program.arguments[name] = tensor
        return tensor
    if isinstance(value, tuple):
        items = [_nested(program, f"{name}.{i}", item) for i, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, dict):
        return {key: _nested(program, f"{name}.{key}", item) for key, item in value.items()}
    return value


def _trace(program: Program, function: Callable[..., Any], values: dict[str, Any]) -> None:
    """Run the kernel's Python on one core."""
    token = CURRENT.set(program)
    try:
        returned = function(**values)
    except NkiValidationError as error:
        found = [*_before_error(program), *error.violations]
        raise NkiValidationError(list(dict.fromkeys(found))) from None
    except AssertionError as error:
        found = [*_before_error(program), _assertion(error, function)]
        raise NkiValidationError(found) from None
    finally:
        CURRENT.reset(token)
    if program.loops:
        program.violations.append(
            Violation(
                "loop-break",
                "break not allowed within dynamic loop",
                "Let the `while register:` run to its end; clear the register to stop it",
                *definition(function),
            )
        )
    _take_results(program, function, returned)


def _before_error(program: Program) -> list[Violation]:
    """What was found before an error; that it left the loops it was in is no news."""
    return [violation for violation in program.violations if violation.rule != "loop-break"]


def definition(function: Callable[..., Any]) -> tuple[str, int]:
    """File and line of a kernel."""
    try:
        file = inspect.getsourcefile(function) or ""
    except TypeError:
        file = ""
    code = getattr(function, "__code__", None)
    return file, code.co_firstlineno if code is not None else 0


def _assertion(error: AssertionError, function: Callable[..., Any]) -> Violation:
    """A kernel's own `assert` as a violation at its line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Violation(
        "kernel-assert",
        str(error) or f"assertion failed: {last.line}",
        f"{function.__name__} refuses these arguments; see its docstring for its limits",
        last.filename,
        last.lineno or 0,
    )


def _flat(returned: Any) -> list[Any]:
    """What a kernel returned, nested tuples and dictionaries flattened."""
    if returned is None:
        return []
    if isinstance(returned, tuple | list):
        return [item for part in returned for item in _flat(part)]
    if isinstance(returned, dict):
        return [item for part in returned.values() for item in _flat(part)]
    return [returned]


def _take_results(program: Program, function: Callable[..., Any], returned: Any) -> None:
    program.returns_tuple = isinstance(returned, tuple | list | dict)
    results = _flat(returned)
    file, line = definition(function)
    for result in results:
        if not isinstance(result, NkiTensor):
            program.violations.append(
                Violation(
                    "return",
                    f"a kernel returns tensors, not {type(result).__name__}",
                    "Return tensors allocated in nl.shared_hbm, or a tuple of them",
                    file,
                    line,
                    limit="NkiTensor",
                    value=type(result).__name__,
                )
            )
        elif result.buffer is not MemoryRegion.shared_hbm and result.storage.role != "argument":
            # 0.2 took private outputs, AWS's simulator does; on chip tensors nothing takes.
            private = result.buffer is MemoryRegion.private_hbm
            (program.lax if private else program.violations).append(
                Violation(
                    "output-buffer",
                    f"returned tensor {result.name} is in {result.buffer.value}",
                    "Allocate outputs with buffer=nl.shared_hbm and store into them",
                    result.storage.file,
                    result.storage.line,
                    limit="shared_hbm",
                    value=result.buffer.value,
                )
            )
        elif result.storage.scope is not None:
            program.violations.append(
                Violation(
                    "loop-scope",
                    f"returned tensor `{result.name}` was made in the body of a dynamic loop",
                    "Allocate it before the loop",
                    result.storage.file,
                    result.storage.line,
                    limit="inside the loop",
                    value="outside",
                )
            )
        if (
            isinstance(result, NkiTensor)
            and not result.buffer.on_chip
            and result.storage.role == "temporary"
        ):
            result.storage.role = "output"
    tensors = tuple(result for result in results if isinstance(result, NkiTensor))
    if program.core == 1:
        program.second_results = tensors
        return
    written = {tensor.storage.role for i in program.instructions for _, tensor in i.writes()}
    if not results and "argument" not in written:
        program.violations.append(
            Violation(
                "missing-return",
                "the kernel returns nothing and writes to none of its arguments",
                "Return the output tensors",
                file,
                line,
                limit="at least one output",
                value="none",
            )
        )
    program.results = tensors


def _check_same_results(program: Program, function: Callable[..., Any]) -> None:
    """Both cores return the same tensors."""
    tensors = program.second_results
    file, line = definition(function)
    mine = [tensor.storage.index for tensor in tensors]
    theirs = [tensor.storage.index for tensor in program.results]
    if program.lnc == 2 and mine != theirs:
        program.violations.append(
            Violation(
                "lnc-divergence",
                "the cores return different tensors",
                "Return the same shared_hbm tensors on both cores",
                file,
                line,
                limit=str([tensor.name for tensor in program.results]),
                value=str([tensor.name for tensor in tensors]),
            )
        )
