"""Registers of an engine's sequencer: 32-bit integers known only on the device.

Source: nki_facts.md §2.9, §6.4.
"""

from __future__ import annotations

import dis
import functools
import sys
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from simulator.errors import refuse

if TYPE_CHECKING:
    from simulator.program import Program

REGISTERS = 64
"""Registers of each engine's sequencer (nki_facts.md §2.9)."""


class VirtualRegister:
    """A register. Its value is known on the device only; eager mode shows it."""

    __slots__ = ("frozen", "index", "loop", "open_loop", "program")

    def __init__(self, program: Program, index: int, frozen: bool = False) -> None:
        """`frozen`: a loop's induction variable, which nothing may write."""
        self.program = program
        self.index = index
        self.frozen = frozen
        self.loop = program.loops[-1] if frozen else None
        """The loop whose variable it is."""
        self.open_loop: tuple[int, tuple[str, int]] | None = None
        """The `while` statement that tests it now: its number and line."""

    @property
    def value(self) -> int | None:
        """The value in eager mode, else None."""
        return self.program.eager_register(self)

    def __repr__(self) -> str:
        return f"r{self.index}" if self.value is None else f"r{self.index}={self.value}"

    def __bool__(self) -> bool:
        """`while register:` is a loop of the device; any other truth value is unknown."""
        if _is_while_statement(sys._getframe(1)):
            return self.program.while_register(self)
        raise _unknown("the truth value")

    def __int__(self) -> int:
        raise _unknown("int()")

    __index__ = __int__

    def __iter__(self) -> NoReturn:
        raise _unknown("iteration")


def _is_while_statement(frame: FrameType) -> bool:
    """Whether a frame tests exactly one value to decide on another round of a `while`.

    Python compiles `while x:` to a test before the body and one after it that jumps back, both
    on the line of the `while`.
    """
    code = frame.f_code
    tests = _tests(code).get(frame.f_lineno, [])
    names = [name for _, name in tests]
    return names == _WHILE and frame.f_lasti in [at for at, _ in tests]


_WHILE = ["POP_JUMP_FORWARD_IF_FALSE", "POP_JUMP_BACKWARD_IF_TRUE"]


@functools.cache
def _tests(code: CodeType) -> dict[int, list[tuple[int, str]]]:
    """The conditional jumps of a function: line -> (offset, name)."""
    found: dict[int, list[tuple[int, str]]] = {}
    line = code.co_firstlineno
    for step in dis.get_instructions(code):
        line = step.starts_line or line
        if step.opname.startswith("POP_JUMP"):
            found.setdefault(line, []).append((step.offset, step.opname))
    return found


def _unknown(what: str) -> Exception:
    return refuse(
        "register-value",
        f"{what} of a register is not known while the kernel is compiled",
        "Use it as a scalar_offset, a loop bound or an instruction's operand",
    )


def _no_operator(symbol: str) -> Any:
    def operator(self: VirtualRegister, other: Any = None) -> Any:
        raise TypeError(
            f"unsupported operand type(s) for {symbol}: registers have no arithmetic in Python; "
            "compute in a tile and load it with nisa.register_load"
        )

    return operator


for _name, _symbol in {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%",
    "pow": "**", "and": "&", "or": "|", "xor": "^", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}.items():  # fmt: skip
    setattr(VirtualRegister, f"__{_name}__", _no_operator(_symbol))
    if _name not in ("lt", "le", "gt", "ge"):
        setattr(VirtualRegister, f"__r{_name}__", _no_operator(_symbol))


def _equal(self: VirtualRegister, other: object) -> bool:
    if other is None or isinstance(other, VirtualRegister):
        return self is other
    raise _unknown("comparison")


VirtualRegister.__eq__ = _equal  # type: ignore[method-assign, assignment]
VirtualRegister.__hash__ = object.__hash__  # type: ignore[method-assign]
