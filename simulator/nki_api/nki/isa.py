"""`nki.isa`: one function per instruction. Rows and meaning: `simulator.instructions`."""

from __future__ import annotations

from enum import Enum
from typing import Any

from simulator.errors import NkiValidationError
from simulator.instructions import INSTRUCTIONS
from simulator.specialise import current_program

__all__ = [
    "NkiValidationError", "activation", "activation_reduce", "dge_mode", "dma_copy", "engine",
    "get_nc_version", "memset", "nc_version", "oob_mode", "reciprocal", "reduce_cmd",
    "scalar_tensor_tensor", "tensor_copy", "tensor_reduce", "tensor_scalar", "tensor_tensor",
]  # fmt: skip


class engine(Enum):
    """Engines of a NeuronCore."""

    unknown = 0
    tensor = 1
    scalar = 2
    gpsimd = 3
    dma = 4
    vector = 5
    sync = 6


class reduce_cmd(Enum):
    """Commands to an engine's accumulator registers."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class dge_mode(Enum):
    """Who makes the DMA descriptors."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):
    """What a dynamic DMA does with an index out of bounds."""

    error = 0
    skip = 1


class nc_version(Enum):
    """Generations of NeuronCore; compare as integers."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


tensor_engine = engine.tensor
vector_engine = engine.vector
scalar_engine = engine.scalar
gpsimd_engine = engine.gpsimd
unknown_engine = engine.unknown


def get_nc_version() -> nc_version:
    """The generation the kernel is compiled for."""
    return nc_version(current_program().target.generation)


def _emit(instruction: str, *operands: Any) -> None:
    current_program().emit(INSTRUCTIONS[instruction], operands)


def dma_copy(
    dst: Any,
    src: Any,
    priority: Any = None,
    oob_mode: oob_mode = oob_mode.error,
    dge_mode: dge_mode = dge_mode.unknown,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> None:
    """dst = src by DMA, between HBM and SBUF in any combination."""
    _emit("dma_copy", dst, src, priority, oob_mode, dge_mode, engine, name)


def tensor_copy(
    dst: Any, src: Any, engine: engine = engine.unknown, name: str | None = None
) -> None:
    """dst = src on chip; bit-accurate if the dtypes are equal, else through fp32."""
    _emit("tensor_copy", dst, src, engine, name)


def memset(dst: Any, value: Any, engine: engine = engine.unknown, name: str | None = None) -> None:
    """Fill dst with a compile-time number."""
    _emit("memset", dst, value, engine, name)


def tensor_tensor(
    dst: Any,
    data1: Any,
    data2: Any,
    op: Any,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> None:
    """dst = data1 op data2."""
    _emit("tensor_tensor", dst, data1, data2, op, engine, name)


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
) -> None:
    """dst = (data op0 operand0) op1 operand1; operands are numbers or (P, 1) fp32 columns."""
    _emit(
        "tensor_scalar", dst, data, op0, operand0, reverse0, op1, operand1, reverse1, engine, name
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
) -> None:
    """dst = (data op0 operand0) op1 operand1; operand0 a number or column, operand1 a tile."""
    _emit("scalar_tensor_tensor", dst, data, op0, operand0, op1, operand1, reverse0, reverse1, name)


def tensor_reduce(
    dst: Any,
    op: Any,
    data: Any,
    axis: Any,
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> None:
    """Reduce trailing free dimensions."""
    _emit("tensor_reduce", dst, op, data, axis, negate, keepdims, name)


def reciprocal(dst: Any, data: Any, name: str | None = None) -> None:
    """dst = 1 / data on the Vector engine."""
    _emit("reciprocal", dst, data, name)


def activation(
    dst: Any,
    op: Any,
    data: Any,
    bias: Any = None,
    scale: Any = 1.0,
    reduce_op: Any = None,
    reduce_res: Any = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    name: str | None = None,
) -> None:
    """dst = op(data * scale + bias) on the Scalar engine, with its accumulators."""
    _emit("activation", dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd, name)


def activation_reduce(
    dst: Any,
    op: Any,
    data: Any,
    reduce_op: Any,
    reduce_res: Any,
    bias: Any = None,
    scale: Any = 1.0,
    name: str | None = None,
) -> None:
    """dst = op(data * scale + bias), and its sum over all free dimensions in reduce_res."""
    _emit("activation_reduce", dst, op, data, reduce_op, reduce_res, bias, scale, name)
