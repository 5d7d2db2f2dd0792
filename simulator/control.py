"""Dynamic loops: loops whose trip count the device knows.

`nl.dynamic_range` and `while register` (0.2-0.6), `nl.fori_loop` and `nl.while_loop` (0.6 on).
A loop's body is traced once, between two control instructions. In eager mode it is run as
often as the device would. Source: nki_facts.md §1.4, §2.11, §6.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from simulator.context import current_program, feature
from simulator.errors import Violation, kernel_location, refuse
from simulator.instructions.control import end_loop, end_while, loop, while_begin
from simulator.registers import VirtualRegister

if TYPE_CHECKING:
    from simulator.program import Program


def _check_bounds(**bounds: Any) -> None:
    for name, value in bounds.items():
        allowed: Any = int if name == "step" else (int, VirtualRegister)
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise refuse(
                "loop-bound",
                f"{name} of a dynamic loop is a {type(value).__name__}",
                "Give integers or registers as bounds, and a positive integer as step",
                operand=name,
                limit="int" if name == "step" else "int or register",
                value=repr(value),
            )
    if bounds["step"] < 1:
        raise refuse(
            "loop-bound",
            "the step of a dynamic loop must be positive",
            "Count upwards",
            operand="step",
            limit=">= 1",
            value=str(bounds["step"]),
        )


def _enter(program: Program) -> None:
    if program.no_reorder:
        raise refuse(
            "loop-in-no-reorder",
            "a dynamic loop inside nl.no_reorder()",
            "Put no_reorder inside the loop's body, or unroll the loop with range",
        )
    if program.loops:
        feature("nested dynamic loops", since="0.6")


def _values(program: Program, start: Any, stop: Any, step: int) -> range:
    """The induction values in eager mode."""

    def known(bound: Any) -> int:
        value = program.eager_register(bound) if isinstance(bound, VirtualRegister) else bound
        assert value is not None
        return int(value)

    return range(known(start), known(stop), step)


def dynamic_range(start: Any, stop: Any = None, step: int = 1) -> Iterator[VirtualRegister]:
    """`for i in nl.dynamic_range(…)`: a loop on the device; `i` is a register.

    Args:
        start: int or register; the stop if `stop` is None.
        stop: int or register.
        step: positive int.
    """
    if stop is None:
        start, stop = 0, start
    _check_bounds(start=start, stop=stop, step=step)
    feature("nl.dynamic_range", until="0.6")
    return _dynamic_range(current_program(), start, stop, step)


def _dynamic_range(program: Program, start: Any, stop: Any, step: int) -> Iterator[VirtualRegister]:
    _enter(program)
    file, line = kernel_location()
    register = program.register(frozen=True)
    finished = False
    try:
        if program.eager is not None:
            for value in _values(program, start, stop, step):
                program.eager.set_register(register, value)
                yield register
        else:
            program.loops.append(register.index)
            loop(register=register, start=start, stop=stop, step=step)
            yield register
            _end(program, register)
        finished = True
    finally:
        if not finished:  # left by break, return or an error
            program.violations.append(
                Violation(
                    "loop-break",
                    "break not allowed within dynamic loop",
                    "Use a predicate or nl.while_loop; a dynamic loop runs to its end",
                    file,
                    line,
                )
            )


def _end(program: Program, register: VirtualRegister) -> None:
    end_loop(register=register)
    program.loops.pop()


def fori_loop(
    lower: Any, upper: Any, body_fun: Callable[[VirtualRegister], Any], step: int = 1
) -> None:
    """`body_fun(i)` for i from `lower` to `upper` (excluded), on the device.

    Args:
        lower: int or register.
        upper: int or register.
        body_fun: takes the register of the loop variable and returns None.
        step: positive int.
    """
    _check_bounds(lower=lower, upper=upper, step=step)
    feature("nl.fori_loop", since="0.6")
    program = current_program()
    _enter(program)
    register = program.register(frozen=True)
    if program.eager is not None:
        for value in _values(program, lower, upper, step):
            program.eager.set_register(register, value)
            _returns_nothing(body_fun(register))
        return
    program.loops.append(register.index)
    loop(register=register, start=lower, stop=upper, step=step)
    _returns_nothing(body_fun(register))
    _end(program, register)


def _returns_nothing(value: Any) -> None:
    if value is not None:
        raise refuse(
            "loop-body",
            f"the body of nl.fori_loop returns a {type(value).__name__}",
            "Return nothing: write results into tiles made before the loop",
            limit="None",
            value=type(value).__name__,
        )


def while_loop(init: VirtualRegister, body_fun: Callable[[Any], VirtualRegister]) -> None:
    """`r = body_fun(r)` as long as register r is not zero.

    Args:
        init: the register tested first.
        body_fun: takes the register, returns the register to test next.
    """
    feature("nl.while_loop", since="0.6")
    program = current_program()
    _enter(program)
    register: Any = init
    if not isinstance(register, VirtualRegister):
        raise _no_register(register)
    if program.eager is not None:
        while program.eager_register(register):
            register = body_fun(register)
            if not isinstance(register, VirtualRegister):
                raise _no_register(register)
        return
    program.loops.append(register.index)
    while_begin(register=register)
    following = body_fun(register)
    if not isinstance(following, VirtualRegister):
        raise _no_register(following)
    end_while(register=register, following=following)
    program.loops.pop()


def _no_register(value: Any) -> Exception:
    return refuse(
        "loop-body",
        f"nl.while_loop tests a register, not a {type(value).__name__}",
        "Give a register, and return the next one from the body",
        limit="register",
        value=type(value).__name__,
    )


def while_statement(program: Program, register: VirtualRegister) -> bool:
    """`while register:`, called at each test: opens the loop, then closes it."""
    if program.eager is not None:
        return bool(program.eager_register(register))
    if register.open_loop:
        register.open_loop = False
        end_while(register=register, following=register)
        program.loops.pop()
        return False
    feature("while register", until="0.6")
    _enter(program)
    register.open_loop = True
    program.loops.append(register.index)
    while_begin(register=register)
    return True
