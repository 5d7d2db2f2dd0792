"""Registers and the control instructions of dynamic loops. Source: nki_facts.md §2.9."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.context import current_program
from simulator.dtypes import DTYPES
from simulator.errors import refuse
from simulator.instructions.table import HBM, SBUF, Arrays, Operand, Run, Slots, instruction
from simulator.registers import VirtualRegister
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["register_alloc", "register_load", "register_move", "register_store"]

INTEGERS = frozenset(d for d in DTYPES.values() if not d.is_float and not d.packed)
LOOPS = {"loop": "end_loop", "while_begin": "end_while"}
"""Control instructions that open a block, and those that close it."""


def _block(instruction: Instruction, slots: Slots) -> Run:
    raise AssertionError(f"{instruction.spec.name} is carried out by the plan itself")


@instruction(operands={}, engines=("control",), lower=_block, cost="0", source="§2.11")
def loop(register: Any, start: Any, stop: Any, step: int, number: int) -> tuple[Any, ...]:
    """Begin of a counted loop: `register` takes start, start + step, … below stop.

    `number` tells the Program's loops apart (`Storage.scope`).
    """
    return register, start, stop, step, number


@instruction(operands={}, engines=("control",), lower=_block, cost="0", source="§2.11")
def end_loop(register: Any) -> tuple[Any, ...]:
    """End of a counted loop."""
    return (register,)


@instruction(operands={}, engines=("control",), lower=_block, cost="0", source="§2.11")
def while_begin(register: Any, number: int) -> tuple[Any, ...]:
    """Begin of a loop that runs while `register` is not zero."""
    return register, number


@instruction(operands={}, engines=("control",), lower=_block, cost="0", source="§2.11")
def end_while(register: Any, following: Any) -> tuple[Any, ...]:
    """End of such a loop: `register` takes the value of `following`."""
    return register, following


def wrap32(value: Any) -> int:
    """An integer as the 32-bit two's complement number a register holds."""
    return (int(value) + 2**31) % 2**32 - 2**31


def _check_register(program: Program, instruction: Instruction) -> None:
    for name in instruction.spec.parameters:
        value = instruction[name]
        if name == "dst" and isinstance(value, VirtualRegister) and value.frozen:
            program.report(
                instruction,
                "register-frozen",
                "writes the variable of a dynamic loop",
                "Copy it into another register first",
                operand=name,
                limit="read only",
                value=repr(value),
            )
        tensor_side = instruction.spec.operands.get(name) is not None
        if tensor_side and isinstance(value, NkiTensor) and value.dtype not in INTEGERS:
            program.report(
                instruction,
                "dtype",
                f"{instruction.spec.name} of a {value.dtype}: registers hold integers",
                "Convert it first with nisa.tensor_copy into an integer tile",
                operand=name,
                limit=", ".join(sorted(INTEGERS)),
                value=str(value.dtype),
            )
        good = (
            isinstance(value, NkiTensor) and value.size == 1
            if tensor_side
            else isinstance(value, VirtualRegister)
            or (name == "src" and isinstance(value, int) and not isinstance(value, bool))
        )
        if not good:
            wanted = "a tensor of one element" if tensor_side else "a register"
            program.report(
                instruction,
                "operand",
                f"must be {wanted}",
                "Registers come from nisa.register_alloc",
                operand=name,
                limit=wanted,
                value=repr(value),
            )


def _move(instruction: Instruction, slots: Slots) -> Run:
    to, src = slots.register(instruction["dst"]), instruction["src"]
    if not isinstance(src, VirtualRegister):
        number = wrap32(src)

        def immediate(views: Arrays) -> None:
            views[to][...] = number

        return immediate
    frm = slots.register(src)

    def run(views: Arrays) -> None:
        views[to][...] = views[frm]

    return run


def _load(instruction: Instruction, slots: Slots) -> Run:
    to, frm = slots.register(instruction["dst"]), slots(instruction["src"])

    def run(views: Arrays) -> None:
        views[to][...] = wrap32(views[frm].reshape(-1)[0])

    return run


def _store(instruction: Instruction, slots: Slots) -> Run:
    to, frm = slots(instruction["dst"]), slots.register(instruction["src"])

    def run(views: Arrays) -> None:
        views[to][...] = views[frm].astype(views[to].dtype)

    return run


ONE = Operand("read", "free", HBM | SBUF)


@instruction(
    operands={}, engines=("sync",), lower=_move, cost="sequencer", source="nki_facts.md §2.9",
    extra_check=_check_register,
)  # fmt: skip
def register_move(dst: Any, src: Any) -> tuple[Any, ...]:
    """Register dst = register or integer src."""
    return dst, src


@instruction(
    operands={"src": ONE}, engines=("sync",), lower=_load, cost="sequencer",
    source="nki_facts.md §2.9", extra_check=_check_register,
)  # fmt: skip
def register_load(dst: Any, src: Any) -> tuple[Any, ...]:
    """Register dst = the one element of a tensor in HBM or SBUF."""
    return dst, src


@instruction(
    operands={"dst": Operand("write", "free", HBM | SBUF)}, engines=("sync",), lower=_store,
    cost="sequencer", source="nki_facts.md §2.9", extra_check=_check_register,
)  # fmt: skip
def register_store(dst: Any, src: Any) -> tuple[Any, ...]:
    """The one element of a tensor in HBM or SBUF = register src."""
    return dst, src


def register_alloc(x: Any = None) -> VirtualRegister:
    """A new register; without a value if `x` is None.

    Args:
        x: the integer it starts with, or (as public kernels do) a tensor of one element.

    Raises:
        NkiValidationError: x is something else.
    """
    if x is not None and (
        isinstance(x, bool) or not isinstance(x, int | np.integer | NkiTensor | VirtualRegister)
    ):
        raise refuse(
            "operand",
            f"register_alloc of a {type(x).__name__}",
            "Give an integer or nothing; nisa.register_load reads a tensor",
            instruction="register_alloc",
            operand="x",
            limit="int",
            value=repr(x),
        )
    register = current_program().register()
    if isinstance(x, NkiTensor):
        register_load(dst=register, src=x)
    elif x is not None:
        register_move(dst=register, src=x if isinstance(x, VirtualRegister) else int(x))
    return register
