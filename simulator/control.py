"""Dynamic loops: loops whose trip count the device knows.

`nl.dynamic_range` and `while register` (0.2-0.6), `nl.fori_loop` and `nl.while_loop` (0.6 on).
A loop's body is traced once, between two control instructions. In eager mode it is run as
often as the device would. Source: nki_facts.md §1.4, §2.11, §6.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def no_reorder() -> Iterator[None]:
    """`with nl.no_reorder():` keeps the order of its instructions. Replay keeps every order."""
    program = current_program()
    outer, program.no_reorder = program.no_reorder, True
    try:
        yield
    finally:
        program.no_reorder = outer


def _enter(program: Program) -> int:
    """Open a loop; returns its number."""
    if program.no_reorder:
        raise refuse(
            "loop-in-no-reorder",
            "a dynamic loop inside nl.no_reorder()",
            "Put no_reorder inside the loop's body, or unroll the loop with range",
        )
    if program.loops:
        feature("nested dynamic loops", since="0.6")
    return program.open_loop()


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
    number = _enter(program)
    where = kernel_location()
    register = program.register(frozen=True)
    finished = False
    try:
        if program.eager is not None:
            for value in _values(program, start, stop, step):
                program.eager.set_register(register, value)
                program.psum.restart(number)
                yield register
        else:
            loop(register=register, start=start, stop=stop, step=step, number=number)
            yield register
        finished = True
    finally:
        if not finished:  # left by break, return or an error
            _left(program, where)
        if program.eager is None:
            end_loop(register=register)
        program.close_loop(number)


def _left(program: Program, where: tuple[str, int]) -> None:
    program.violations.append(
        Violation(
            "loop-break",
            "break not allowed within dynamic loop",
            "Use a predicate or nl.while_loop; a dynamic loop runs to its end",
            *where,
        )
    )


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
    number = _enter(program)
    register = program.register(frozen=True)
    if program.eager is not None:
        for value in _values(program, lower, upper, step):
            program.eager.set_register(register, value)
            program.psum.restart(number)
            _returns_nothing(body_fun(register))
    else:
        loop(register=register, start=lower, stop=upper, step=step, number=number)
        _returns_nothing(body_fun(register))
        end_loop(register=register)
    program.close_loop(number)


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
    register = _checked(init)
    number = _enter(program)
    if program.eager is not None:
        while program.eager_register(register):
            program.psum.restart(number)
            register = _checked(body_fun(register))
    else:
        while_begin(register=register, number=number)
        end_while(register=register, following=_checked(body_fun(register)))
    program.close_loop(number)


def _checked(value: Any) -> VirtualRegister:
    if isinstance(value, VirtualRegister):
        return value
    raise refuse(
        "loop-body",
        f"nl.while_loop tests a register, not a {type(value).__name__}",
        "Give a register, and return the next one from the body",
        limit="register",
        value=type(value).__name__,
    )


def while_statement(program: Program, register: VirtualRegister) -> bool:
    """`while register:`, called at each test: opens the loop, then closes it.

    In eager mode it is called once more for each iteration.
    """
    where = kernel_location()
    if register.open_loop is None or register.open_loop[1] != where:
        if register.open_loop is not None:  # that one was left by break or return
            _left(program, register.open_loop[1])
            program.close_loop(register.open_loop[0])
        feature("while register", until="0.6")
        register.open_loop = (_enter(program), where)
        if program.eager is None:
            while_begin(register=register, number=register.open_loop[0])
            return True
    number, _ = register.open_loop
    if program.eager is not None and program.eager_register(register):
        program.psum.restart(number)
        return True
    register.open_loop = None
    if program.eager is None:
        end_while(register=register, following=register)
    program.close_loop(number)
    return False
