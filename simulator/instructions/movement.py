"""Data movement: dma_copy, tensor_copy, memset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.context import current_program
from simulator.enums import dge_mode, engine, oob_mode
from simulator.errors import refuse
from simulator.instructions.rows import gather, scatter
from simulator.instructions.table import (
    HBM,
    ON_CHIP,
    SBUF,
    Arrays,
    Operand,
    Run,
    Slots,
    instruction,
)
from simulator.numerics import as_float32, store
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["dma_copy", "memset", "tensor_copy"]


def _move(instruction: Instruction, slots: Slots) -> Run:
    """dst = src, element by element; bit-accurate for equal dtypes, else through fp32."""
    dst, src = instruction["dst"], instruction["src"]
    to, frm = slots(dst), slots(src)
    shape = dst.shape
    if dst.dtype is src.dtype:

        def same(views: Arrays) -> None:
            views[to][...] = views[frm].reshape(shape)

        return same
    write = store(dst.dtype)

    def convert(views: Arrays) -> None:
        write(views[to], as_float32(views[frm]).reshape(shape))

    return convert


def _dma(instruction: Instruction, slots: Slots) -> Run:
    """A plain copy, or one that gathers or scatters rows."""
    dst, src = instruction["dst"], instruction["src"]
    by_row = [t.dynamic is not None and t.dynamic.rows is not None for t in (dst, src)]
    if not any(by_row):
        return _move(instruction, slots)
    read = gather(instruction, src, slots)
    write = scatter(instruction, dst, slots)

    def run(views: Arrays) -> None:
        values, valid = read(views)
        write(views, values, valid)

    return run


def _check_dma(program: Program, instruction: Instruction) -> None:
    dst, src = instruction["dst"], instruction["src"]
    if dst.size != src.size:
        program.report(
            instruction,
            "dma-size",
            "dma_copy requires src and dst to have the same number of elements, got "
            f"src={src.size}, dst={dst.size}",
            "Slice both to the same number of elements",
            operand="src",
            limit=str(dst.size),
            value=str(src.size),
        )
    if instruction["dge_mode"].name == "hwdge" and dst.dtype is not src.dtype:
        program.report(
            instruction,
            "dma-dtype",
            "hardware descriptor generation cannot cast",
            "Give both the same dtype, or leave dge_mode unknown",
            operand="src",
            limit=str(dst.dtype),
            value=str(src.dtype),
        )
    if instruction["priority"] is not None and program.target.generation < 4:
        program.report(
            instruction,
            "gen4-only",
            "dma_copy priority is only supported for NeuronCore-v4 or newer",
            "Leave priority out on trn2",
            operand="priority",
            limit="trn3",
            value=program.target.name,
        )
    if instruction["engine"].name not in ("unknown", "sync", "scalar"):
        program.report(
            instruction,
            "engine",
            "only the sync and scalar engines can start a dma_copy",
            "Leave engine out",
            operand="engine",
            limit="sync, scalar",
            value=str(instruction["engine"].name),
        )


def _memset(instruction: Instruction, slots: Slots) -> Run:
    to, value = slots(instruction["dst"]), instruction["value"]

    def run(views: Arrays) -> None:
        views[to][...] = value

    return run


def _check_memset(program: Program, instruction: Instruction) -> None:
    dst: NkiTensor = instruction["dst"]
    value = instruction["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        found = type(value).__name__
    elif not dst.dtype.is_float and not isinstance(value, int):
        found = f"{value!r} for {dst.dtype}"
    elif not dst.dtype.is_float and not (
        np.iinfo(dst.dtype.numpy).min <= value <= np.iinfo(dst.dtype.numpy).max
    ):
        found = f"{value!r}, outside {dst.dtype}"
    else:
        return
    program.report(
        instruction,
        "memset-value",
        "value must be a number of dst's dtype class",
        "Give an int for an integer tile, a float for a floating-point tile",
        operand="value",
        limit=str(dst.dtype),
        value=found,
    )


@instruction(
    operands={
        "dst": Operand("write", "free", HBM | SBUF),
        "src": Operand("read", "free", HBM | SBUF),
    },
    engines=("dma",),
    lower=_dma,
    cost="DMA",
    source="nki_facts.md §2.4, §3.4",
    extra_check=_check_dma,
    parameters_since={"priority": "0.4"},
)
def dma_copy(
    dst: Any,
    src: Any,
    priority: Any = None,
    oob_mode: oob_mode = oob_mode.error,
    dge_mode: dge_mode = dge_mode.unknown,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst = src by DMA, between HBM and SBUF in any combination; casts through fp32.

    Either side may be gathered or scattered by rows (`.ap(vector_offset=…)`); with
    oob_mode.skip rows whose number is out of bounds are left out.
    """
    return dst, src, priority, oob_mode, dge_mode, engine, name


@instruction(
    operands={"dst": Operand("write"), "src": Operand("read")},
    engines=("vector", "scalar", "gpsimd"),
    lower=_move,
    cost="max(64, N)",
    source="nki_facts.md §2.4",
)
def tensor_copy(
    dst: Any, src: Any, engine: engine = engine.unknown, name: str | None = None
) -> tuple[Any, ...]:
    """dst = src on chip; bit-accurate if the dtypes are equal, else through fp32."""
    return dst, src, engine, name


@instruction(
    operands={"dst": Operand("write", buffers=ON_CHIP)},
    engines=("vector", "gpsimd"),
    lower=_memset,
    cost="max(64, N)",
    source="nki_facts.md §2.4",
    extra_check=_check_memset,
)
def memset(
    dst: Any, value: Any, engine: engine = engine.unknown, name: str | None = None
) -> tuple[Any, ...]:
    """Fill dst with a compile-time number."""
    return dst, value, engine, name


def assign(dst: NkiTensor, value: Any) -> None:
    """`tensor[key] = value`, which the compilers refuse: by the instruction it stands for."""
    message = "Updating a tile with lvalue assignment is not allowed"
    mend = "Write with an instruction: nisa.tensor_copy(dst=…, src=…)"
    if isinstance(value, NkiTensor):
        copy = tensor_copy if dst.buffer.on_chip and value.buffer.on_chip else dma_copy
        emitted = copy(dst=dst, src=value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and dst.buffer.on_chip:
        emitted = memset(dst=dst, value=float(value) if dst.dtype.is_float else value)
    else:
        raise refuse("tensor-assignment", message, mend)
    current_program().tolerate(emitted, "tensor-assignment", message, mend)
