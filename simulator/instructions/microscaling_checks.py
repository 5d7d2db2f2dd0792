"""The limits of quantize_mx and nc_matmul_mx. Source: nki_facts.md §2.5, §2.6."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator.instructions.limits import partitions_multiple_of
from simulator.instructions.tensor_engine_checks import (
    check_accumulate,
    check_shapes,
    check_sum_dtype,
    check_tiling,
)

if TYPE_CHECKING:
    from simulator.program import Instruction, Program
    from simulator.tensor import NkiTensor


def check_quantize(program: Program, instruction: Instruction) -> None:
    """What the table does not say about quantize_mx."""
    dst, src = instruction["dst"], instruction["src"]
    partitions_multiple_of("src", 32)(program, instruction)
    if src.free_size % 4:
        _shape(
            program, instruction, "src", "four elements go into a container", "a multiple of 4",
            src.free_size,
        )  # fmt: skip
    wanted = (src.shape[0], src.free_size // 4)
    if (dst.shape[0], dst.free_size) != wanted:
        found = (dst.shape[0], dst.free_size)
        _shape(program, instruction, "dst", "dst has a quarter of src's columns", wanted, found)
    _check_scale(program, instruction, "dst_scale", src, src.free_size // 4)


def check_matmul_mx(program: Program, instruction: Instruction) -> None:
    """What the table does not say about nc_matmul_mx."""
    check_accumulate(program, instruction)
    stationary, moving = instruction["stationary"], instruction["moving"]
    partitions_multiple_of("stationary", 32)(program, instruction)
    if stationary.free_size % 2:
        _shape(
            program, instruction, "stationary", "stationary has an even number of columns",
            "even", stationary.free_size,
        )  # fmt: skip
    check_shapes(program, instruction, stationary.free_size, moving.free_size)
    check_sum_dtype(program, instruction)
    check_tiling(program, instruction, stationary.free_size, columns_too=False)
    for name in ("stationary", "moving"):
        data = instruction[name]
        _check_scale(program, instruction, f"{name}_scale", data, data.free_size)


def _shape(
    program: Program, instruction: Instruction, operand: str, message: str, limit: Any, value: Any
) -> None:
    program.report(
        instruction,
        "mx-shape",
        message,
        "Pad or slice the operands to whole groups of 8 partitions by 4 elements",
        operand=operand,
        limit=str(limit),
        value=str(value),
    )


def _check_scale(
    program: Program, instruction: Instruction, name: str, data: NkiTensor, columns: int
) -> None:
    """Scales stand in the quadrants of their data, 4 rows from row 0, 4, 8 or 12 on."""
    scale = instruction[name]
    if not scale.buffer.on_chip or not data.buffer.on_chip or data.shape[0] % 32:
        return
    least = data.shape[0] - 28
    if scale.shape[0] < least or scale.free_size != columns:
        _scale(
            program, instruction, name, f"at least {least} rows of {columns}",
            f"{scale.shape[0]} rows of {scale.free_size}",
        )  # fmt: skip
    quadrant, row = divmod(scale.start_partition, 32)
    if row not in (0, 4, 8, 12) or quadrant != data.start_partition // 32:
        first = data.start_partition // 32 * 32
        limit = f"from partition {first}, {first + 4}, {first + 8} or {first + 12} on"
        _scale(program, instruction, name, limit, f"from partition {scale.start_partition} on")


def _scale(
    program: Program, instruction: Instruction, operand: str, limit: str, value: str
) -> None:
    program.report(
        instruction,
        "mx-scale",
        "the scales do not stand where the data's groups need them",
        "For P partitions allocate (P, columns), or (4, columns) for 32: four rows of scales at "
        "the start of each quadrant of 32 partitions",
        operand=operand,
        limit=limit,
        value=value,
    )
