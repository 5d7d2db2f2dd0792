"""Specialise: run a kernel's Python once on tensors without data, giving a checked Program."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from simulator.check import check_program
from simulator.dtypes import DType
from simulator.errors import NkiValidationError, Violation, refuse
from simulator.program import Program
from simulator.targets import Target
from simulator.tensor import MemoryRegion, NkiTensor

_CURRENT: ContextVar[Program | None] = ContextVar("program", default=None)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor argument: what a Program is specialised for."""

    shape: tuple[int, ...]
    dtype: DType

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def current_program() -> Program:
    """The Program being built.

    Raises:
        NkiValidationError: no kernel is being specialised.
    """
    program = _CURRENT.get()
    if program is None:
        raise refuse(
            "outside-kernel",
            "nki functions work only inside a kernel",
            "Call them from a function decorated with @nki.jit",
        )
    return program


def specialise(function: Callable[..., Any], arguments: dict[str, Any], target: Target) -> Program:
    """Trace `function` with tensors in place of every `TensorSpec` and check the result.

    Args:
        function: the kernel's Python function.
        arguments: name -> TensorSpec or compile-time value, in signature order.
        target: whose limits hold.

    Raises:
        NkiValidationError: with every violation that was found.
    """
    program = Program(function.__name__, target)
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, TensorSpec):
            program.arguments[name] = values[name] = program.allocate(
                value.shape, value.dtype, MemoryRegion.shared_hbm, name, "argument"
            )
        else:
            program.parameters[name] = values[name] = value
    token = _CURRENT.set(program)
    try:
        returned = function(**values)
    except NkiValidationError as error:
        raise NkiValidationError([*program.violations, *error.violations]) from None
    except AssertionError as error:
        raise NkiValidationError([*program.violations, _assertion(error, function)]) from None
    finally:
        _CURRENT.reset(token)
    _take_results(program, function, returned)
    program.raise_violations()  # shapes are wrong: what follows would only repeat it
    check_program(program)
    program.raise_violations()
    return program


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


def _take_results(program: Program, function: Callable[..., Any], returned: Any) -> None:
    program.returns_tuple = isinstance(returned, tuple | list)
    results = tuple(returned) if program.returns_tuple else (returned,)
    if returned is None:
        results = ()
    file = inspect.getsourcefile(function) or ""
    line = function.__code__.co_firstlineno
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
        elif result.buffer is not MemoryRegion.shared_hbm:
            program.violations.append(
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
        elif result.storage.role == "temporary":
            result.storage.role = "output"
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
    program.results = tuple(result for result in results if isinstance(result, NkiTensor))
