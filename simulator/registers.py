"""Registers of an engine's sequencer: 32-bit integers known only on the device.

Source: nki_facts.md §2.9, §6.4.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

from simulator.errors import refuse

if TYPE_CHECKING:
    from simulator.program import Program

REGISTERS = 64
"""Registers of each engine's sequencer (nki_facts.md §2.9)."""


class VirtualRegister:
    """A register. Its value is known on the device only; eager mode shows it."""

    __slots__ = ("frozen", "index", "open_loop", "program")

    def __init__(self, program: Program, index: int, frozen: bool = False) -> None:
        """`frozen`: a loop's induction variable, which nothing may write."""
        self.program = program
        self.index = index
        self.frozen = frozen
        self.open_loop = False

    @property
    def value(self) -> int | None:
        """The value in eager mode, else None."""
        return self.program.eager_register(self)

    def __repr__(self) -> str:
        return f"r{self.index}" if self.value is None else f"r{self.index}={self.value}"

    def __bool__(self) -> bool:
        """`while register:` is a loop of the device; any other truth value is unknown."""
        if self.open_loop or _is_while_statement():
            return self.program.while_register(self)
        raise _unknown("the truth value")

    def __int__(self) -> int:
        raise _unknown("int()")

    __index__ = __int__

    def __iter__(self) -> NoReturn:
        raise _unknown("iteration")


def _is_while_statement() -> bool:
    """Whether the kernel's current line is a `while`."""
    import linecache

    frame = sys._getframe(2)
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.strip().startswith("while")


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
