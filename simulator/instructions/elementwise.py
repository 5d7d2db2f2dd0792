"""Vector-class instructions: element by element, and reductions over free dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.enums import engine
from simulator.instructions.table import Array, Operand, Run, Slots, instruction
from simulator.numerics import as_float32, compute
from simulator.operators import ALU, REDUCTIONS, Operator
from simulator.registers import VirtualRegister
from simulator.tensor import MemoryRegion, NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["reciprocal", "scalar_tensor_tensor", "tensor_reduce", "tensor_scalar", "tensor_tensor"]

Shape = tuple[int, ...]


def reader(value: Any, shape: Shape, slots: Slots) -> Any:
    """A function (views) -> fp32 array that broadcasts to `shape`; numbers stay constants.

    A tile is given `shape`; a (P, 1) column is given (P, 1, …, 1).
    """
    if isinstance(value, VirtualRegister):
        register = slots.register(value)
        return lambda views: views[register].astype(np.float32)
    if not isinstance(value, NkiTensor):
        number = np.float32(value)
        return lambda views: number
    slot = slots(value)
    wanted = shape if value.size == int(np.prod(shape)) else (shape[0],) + (1,) * (len(shape) - 1)
    if value.shape == wanted:
        return lambda views: as_float32(views[slot])
    return lambda views: as_float32(views[slot]).reshape(wanted)


def binary(operator: Operator, reverse: bool) -> Any:
    """`operator` as f(x, y, out=None), with its operands swapped if `reverse`."""
    function = operator.binary
    assert function is not None
    if not reverse:
        return function
    return lambda x, y, out=None: function(y, x, out=out)


def _tensor_tensor(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    x = reader(instruction["data1"], dst.shape, slots)
    y = reader(instruction["data2"], dst.shape, slots)
    write = compute(slots(dst), dst.dtype, dst.shape, binary(instruction["op"], False))
    return lambda views: write(views, (x(views), y(views)))


def _not_both_in_psum(first: str, second: str) -> Callable[[Program, Instruction], None]:
    """A check that at most one of two operands is in PSUM."""

    def check(program: Program, instruction: Instruction) -> None:
        if all(instruction[name].buffer is MemoryRegion.psum for name in (first, second)):
            program.report(
                instruction,
                "psum-inputs",
                f"{first} and {second} cannot both be in PSUM",
                "Copy one of them to SBUF with nisa.tensor_copy",
                operand=second,
                limit="one of them in SBUF",
                value="both in PSUM",
            )

    return check


def _tensor_scalar(instruction: Instruction, slots: Slots) -> Run:
    """dst = (data op0 operand0) op1 operand1; operand1 is a column, a number or a tile."""
    dst = instruction["dst"]
    x = reader(instruction["data"], dst.shape, slots)
    a = reader(instruction["operand0"], dst.shape, slots)
    first = binary(instruction["op0"], instruction["reverse0"])
    if instruction["op1"] is None:
        write = compute(slots(dst), dst.dtype, dst.shape, first)
        return lambda views: write(views, (x(views), a(views)))
    b = reader(instruction["operand1"], dst.shape, slots)
    second = binary(instruction["op1"], instruction["reverse1"])

    def both(x: Array, a: Array, b: Array, out: Array | None = None) -> Array:
        return second(first(x, a), b, out=out)  # type: ignore[no-any-return]

    write = compute(slots(dst), dst.dtype, dst.shape, both)
    return lambda views: write(views, (x(views), a(views), b(views)))


def _check_tensor_scalar(program: Program, instruction: Instruction) -> None:
    if (instruction["op1"] is None) != (instruction["operand1"] is None):
        program.report(
            instruction,
            "operand",
            "op1 and operand1 go together",
            "Give both or neither",
            operand="operand1",
            limit="both or neither",
            value=f"op1={instruction['op1']!r}, operand1={instruction['operand1']!r}",
        )


def _axes(instruction: Instruction) -> tuple[int, ...]:
    """The reduced axes as a sorted tuple of non-negative integers."""
    axis = instruction["axis"]
    rank = instruction["data"].ndim
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    return tuple(sorted(a + rank if a < 0 else a for a in axes))


def _tensor_reduce(instruction: Instruction, slots: Slots) -> Run:
    dst, data = instruction["dst"], instruction["data"]
    frm, axes = slots(data), _axes(instruction)
    ufunc: np.ufunc = instruction["op"].reduction
    negate: bool = instruction["negate"]
    shape = dst.shape

    def reduce(x: Array, out: Array | None = None) -> Array:
        y: Array = ufunc.reduce(x, axis=axes).reshape(shape)
        if negate:
            y = np.negative(y)
        if out is None:
            return y
        np.copyto(out, y)
        return out

    write = compute(slots(dst), dst.dtype, shape, reduce)
    return lambda views: write(views, (as_float32(views[frm]),))


def _check_tensor_reduce(program: Program, instruction: Instruction) -> None:
    data: NkiTensor = instruction["data"]
    dst: NkiTensor = instruction["dst"]
    axes = _axes(instruction)
    if not axes or axes != tuple(range(axes[0], data.ndim)) or axes[0] < 1:
        program.report(
            instruction,
            "reduce-axis",
            "tensor_reduce axis must be the last contiguous dim(s) of the tile",
            "Reduce trailing free dimensions; over partitions use a matmul with ones",
            operand="axis",
            limit=f"trailing axes of {data.ndim} dimensions, not 0",
            value=str(instruction["axis"]),
        )
        return
    kept = int(np.prod(data.shape[1 : axes[0]]))
    if dst.free_size != kept:
        program.report(
            instruction,
            "shape",
            f"dst has {dst.free_size} elements per partition, the reduction leaves {kept}",
            "Give dst the shape of the dimensions that are kept",
            operand="dst",
            limit=str(kept),
            value=str(dst.free_size),
        )


def _reciprocal(instruction: Instruction, slots: Slots) -> Run:
    dst = instruction["dst"]
    x = reader(instruction["data"], dst.shape, slots)
    write = compute(slots(dst), dst.dtype, dst.shape, np.reciprocal)
    return lambda views: write(views, (x(views),))


COLUMN = Operand("read", "column", number=True, float32=True)


@instruction(
    operands={"dst": Operand("write"), "data1": Operand("read"), "data2": Operand("read")},
    engines=("vector", "gpsimd"),
    lower=_tensor_tensor,
    cost="max(64, 2N); max(64, N) if one input is in PSUM or all are bf16 in SBUF",
    source="nki_facts.md §2.6",
    extra_check=_not_both_in_psum("data1", "data2"),
    operators={"op": ALU},
)
def tensor_tensor(
    dst: Any,
    data1: Any,
    data2: Any,
    op: Any,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = data1 op data2."""
    return dst, data1, data2, op, engine, name


@instruction(
    operands={
        "dst": Operand("write"),
        "data": Operand("read"),
        "operand0": COLUMN,
        "operand1": Operand("read", "column", number=True, optional=True, float32=True),
    },
    engines=("vector", "scalar", "gpsimd"),
    lower=_tensor_scalar,
    cost="max(64, N)",
    source="nki_facts.md §2.6",
    extra_check=_check_tensor_scalar,
    operators={"op0": ALU, "op1": ALU},
)
def tensor_scalar(
    dst: Any,
    data: Any,
    op0: Any,
    operand0: Any,
    reverse0: bool = False,
    op1: Any = None,
    operand1: Any = None,
    reverse1: bool = False,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = (data op0 operand0) op1 operand1; operands are numbers or (P, 1) fp32 columns."""
    return dst, data, op0, operand0, reverse0, op1, operand1, reverse1, engine, name


@instruction(
    operands={
        "dst": Operand("write"),
        "data": Operand("read"),
        "operand0": COLUMN,
        "operand1": Operand("read"),
    },
    engines=("vector",),
    lower=_tensor_scalar,
    cost="max(64, 2N)",
    source="nki_facts.md §2.6",
    extra_check=_not_both_in_psum("data", "operand1"),
    operators={"op0": ALU, "op1": ALU},
)
def scalar_tensor_tensor(
    dst: Any,
    data: Any,
    op0: Any,
    operand0: Any,
    op1: Any,
    operand1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = (data op0 operand0) op1 operand1; operand0 a number or column, operand1 a tile."""
    return dst, data, op0, operand0, op1, operand1, reverse0, reverse1, name


@instruction(
    operands={"dst": Operand("write", "free"), "data": Operand("read", "free")},
    engines=("vector",),
    lower=_tensor_reduce,
    cost="max(64, N); N/2 if bf16 in and out and add or max",
    source="nki_facts.md §2.6",
    extra_check=_check_tensor_reduce,
    operators={"op": REDUCTIONS},
)
def tensor_reduce(
    dst: Any,
    op: Any,
    data: Any,
    axis: Any,
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple[Any, ...]:
    """Reduce trailing free dimensions."""
    return dst, op, data, axis, negate, keepdims, name


@instruction(
    operands={"dst": Operand("write"), "data": Operand("read")},
    engines=("vector",),
    lower=_reciprocal,
    cost="max(64, 8N)",
    source="nki_facts.md §2.6",
)
def reciprocal(dst: Any, data: Any, name: str | None = None) -> tuple[Any, ...]:
    """dst = 1 / data."""
    return dst, data, name
