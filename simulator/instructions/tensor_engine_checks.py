"""The limits of matmuls: sizes, dtypes, PSUM banks, modes, tiling. Source: nki_facts.md §2.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator import dtypes
from simulator.enums import matmul_perf_mode
from simulator.instructions.transpose_checks import check_bank, check_widened
from simulator.psum import PartlyStarted
from simulator.targets import PARTITIONS
from simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from simulator.dtypes import DType
    from simulator.program import Instruction, Program

STATIONARY_FREE = 128
MOVING_FREE = 512
"""Elements per partition; on gen4 the whole of PSUM limits `moving`."""

_FP8 = frozenset({dtypes.float8_e4m3, dtypes.float8_e5m2, dtypes.float8_e4m3fn})
_WIDE = frozenset({dtypes.float32, dtypes.tfloat32})
MATMUL_DTYPES = _FP8 | _WIDE | {dtypes.bfloat16, dtypes.float16}
_OPERANDS = ("stationary", "moving")


# --- nc_matmul --------------------------------------------------------------------------------


def check_matmul(program: Program, instruction: Instruction) -> None:
    """What the table does not say about nc_matmul."""
    check_accumulate(program, instruction)
    if instruction["perf_mode"] is matmul_perf_mode.double_row:
        if not _check_double_row(program, instruction):
            return
        split = 2
    else:
        split = 1
    stationary, moving = instruction["stationary"], instruction["moving"]
    rows, columns = stationary.free_size // split, moving.free_size // split
    check_shapes(program, instruction, rows, columns)
    _check_input_dtypes(program, instruction)
    if instruction["is_transpose"]:
        _check_transpose_mode(program, instruction)
    else:
        check_sum_dtype(program, instruction)
    check_bank(program, instruction, instruction["dst"])
    check_tiling(program, instruction, rows)
    _check_indirect(program, instruction)


def check_accumulate(program: Program, instruction: Instruction) -> None:
    """`accumulate` is one of three values."""
    if isinstance(instruction["accumulate"], bool | PartlyStarted | None):
        return
    program.report(
        instruction,
        "operand",
        "accumulate must be None, True or False",
        "Write accumulate=(k > 0) on Python numbers",
        operand="accumulate",
        limit="None, True or False",
        value=repr(instruction["accumulate"]),
    )


def check_shapes(program: Program, instruction: Instruction, rows: int, columns: int) -> None:
    """K agrees, M and N agree with dst, and none is too large."""
    stationary, moving, dst = (instruction[name] for name in ("stationary", "moving", "dst"))
    depths = stationary.shape[0], moving.shape[0]
    if depths[0] != depths[1]:
        _shape(
            program,
            instruction,
            "moving",
            "Matmul contraction dimension mismatch: "
            f"stationary[0]={depths[0]} != moving[0]={depths[1]}",
            "Put the contraction on the partitions of both: the left operand is transposed",
            depths[0],
            depths[1],
        )
    if rows > STATIONARY_FREE:
        _limit(
            program,
            instruction,
            "stationary",
            f"Matmul stationary free dimension {rows} exceeds gemm_stationary_fmax="
            f"{STATIONARY_FREE}",
            STATIONARY_FREE,
            rows,
        )
    most = _most_columns(program, dst)
    if columns > most:
        _limit(
            program,
            instruction,
            "moving",
            f"Matmul moving free dimension {columns} exceeds max {most} for "
            f"gen{program.target.generation}",
            most,
            columns,
        )
    if dst.shape[0] != rows or dst.free_size != columns:
        _shape(
            program,
            instruction,
            "dst",
            f"dst is {dst.shape[0]} by {dst.free_size}, the product {rows} by {columns}",
            "Slice dst to stationary's and moving's free sizes",
            f"({rows}, {columns})",
            f"({dst.shape[0]}, {dst.free_size})",
        )


def _most_columns(program: Program, dst: NkiTensor) -> int:
    """All of PSUM on gen4, one bank of fp32 before."""
    if program.target.generation < 4:
        return MOVING_FREE
    return program.target.psum_bytes_per_partition // min(4, max(2, dst.dtype.itemsize))


def _shape(
    program: Program,
    instruction: Instruction,
    operand: str,
    message: str,
    mend: str,
    limit: Any,
    value: Any,
) -> None:
    program.report(
        instruction, "matmul-shape", message, mend, operand=operand, limit=str(limit),
        value=str(value),
    )  # fmt: skip


def _limit(
    program: Program, instruction: Instruction, operand: str, message: str, limit: int, value: int
) -> None:
    program.report(
        instruction, "matmul-limit", message, "Split the matmul into tiles", operand=operand,
        limit=str(limit), value=str(value),
    )  # fmt: skip


def _dtype(
    program: Program,
    instruction: Instruction,
    operand: str,
    message: str,
    mend: str,
    limit: Any,
    value: DType,
) -> None:
    program.report(
        instruction, "matmul-dtype", message, mend, operand=operand, limit=str(limit),
        value=str(value),
    )  # fmt: skip


def _check_input_dtypes(program: Program, instruction: Instruction) -> None:
    kinds = [instruction[name].dtype for name in _OPERANDS]
    if program.target.generation < 4:
        for name, kind in zip(_OPERANDS, kinds, strict=True):
            if kind is dtypes.float8_e4m3fn:
                program.report(
                    instruction,
                    "gen4-only",
                    f"{name} dtype float8_e4m3fn is only supported for NeuronCore-v4 or newer",
                    "Use nl.float8_e4m3 (largest value 240) on trn2",
                    operand=name,
                    limit="trn3",
                    value=program.target.name,
                )
    elif set(kinds) == {dtypes.float8_e4m3, dtypes.float8_e4m3fn}:
        _dtype(
            program,
            instruction,
            "moving",
            "float8_e4m3 and float8_e4m3fn cannot be mixed in one matmul",
            "Convert one of them",
            kinds[0],
            kinds[1],
        )
    if (kinds[0] in _WIDE) != (kinds[1] in _WIDE) and all(k in MATMUL_DTYPES for k in kinds):
        _dtype(
            program,
            instruction,
            "moving",
            "if one input is float32 or tfloat32, the other must be too",
            "Convert the wider input to bfloat16, or the other to float32",
            "float32 or tfloat32" if kinds[0] in _WIDE else "16 or 8 bits",
            kinds[1],
        )


def check_sum_dtype(program: Program, instruction: Instruction) -> None:
    """Sums are fp32, on gen4 also bf16."""
    dst = instruction["dst"]
    allowed = {dtypes.float32} | ({dtypes.bfloat16} if program.target.generation >= 4 else set())
    if dst.dtype not in allowed:
        names = " or ".join(sorted(allowed, reverse=True))
        _dtype(
            program,
            instruction,
            "dst",
            f"{instruction.spec.name} dst dtype must be {names} on "
            f"gen{program.target.generation}, got {dst.dtype}",
            "Allocate the PSUM tile as nl.float32, and cast when you copy it out",
            names,
            dst.dtype,
        )


# --- modes ------------------------------------------------------------------------------------


def _mode(
    program: Program,
    instruction: Instruction,
    operand: str,
    message: str,
    mend: str,
    limit: Any,
    value: Any,
) -> None:
    program.report(
        instruction, "matmul-mode", message, mend, operand=operand, limit=str(limit),
        value=str(value),
    )  # fmt: skip


def _check_double_row(program: Program, instruction: Instruction) -> bool:
    """FP8 with a first free dimension of 2; False if the shapes make no sense further on."""
    good = True
    for name in _OPERANDS:
        tensor = instruction[name]
        if tensor.dtype not in _FP8:
            _mode(
                program,
                instruction,
                name,
                "double_row is for FP8 only",
                "Use perf_mode none, or convert to FP8",
                ", ".join(sorted(_FP8)),
                tensor.dtype,
            )
        if tensor.ndim < 3 or tensor.shape[1] != 2:
            good = False
            _mode(
                program,
                instruction,
                name,
                "double_row needs a first free dimension of 2",
                "Give (K, 2, free): the contraction is over K and that dimension",
                "(K, 2, free)",
                tensor.shape,
            )
    size = instruction["tile_size"]
    tiled = isinstance(size, tuple | list) and len(size) == 2 and size[1] != PARTITIONS
    if instruction["is_transpose"] or tiled:
        _mode(
            program,
            instruction,
            "perf_mode",
            "double_row cannot be combined with column tiling or transpose mode",
            "Use perf_mode none",
            "none",
            "double_row",
        )
    return good


def _check_transpose_mode(program: Program, instruction: Instruction) -> None:
    stationary, moving, dst = (instruction[name] for name in ("stationary", "moving", "dst"))
    if dst.dtype is not stationary.dtype:
        _dtype(
            program,
            instruction,
            "dst",
            "in transpose mode dst must have stationary's dtype",
            "Allocate the PSUM tile in the dtype of the data",
            stationary.dtype,
            dst.dtype,
        )
    if moving.free_size != moving.shape[0]:
        _mode(
            program,
            instruction,
            "moving",
            "in transpose mode moving is an identity matrix",
            "Give the square identity of as many rows as stationary has partitions",
            f"({moving.shape[0]}, {moving.shape[0]})",
            moving.shape,
        )
    check_widened(program, instruction, stationary, dst)


def _check_indirect(program: Program, instruction: Instruction) -> None:
    """`.indirect` (gen4) goes with neither tiling nor a transpose's identity."""
    dynamic = [
        name
        for name in ("dst", *_OPERANDS)
        if instruction[name].dynamic is not None and instruction[name].dynamic.elements is not None
    ]
    position = instruction["tile_position"]
    if dynamic and position and tuple(position) != (0, 0):
        refuse_tiling(program, instruction, "tile_position", "(0, 0) with .indirect", position)
    if instruction["is_transpose"] and "moving" in dynamic:
        _mode(
            program,
            instruction,
            "moving",
            "in transpose mode moving cannot be an indirect view",
            "Give the identity itself",
            "no .indirect",
            ".indirect",
        )


# --- tiling -----------------------------------------------------------------------------------


def refuse_tiling(
    program: Program, instruction: Instruction, operand: str, limit: str, value: Any
) -> None:
    """Report a tile that the array of processing elements does not have."""
    program.report(
        instruction,
        "matmul-tiling",
        "the tile does not fit the 128 by 128 processing elements, or the operands not the tile",
        "Tiles are 32, 64 or 128 rows and columns, at multiples of their size; K starts at the "
        "tile's first row, dst at its first column",
        operand=operand,
        limit=limit,
        value=str(value),
    )


def check_tiling(
    program: Program, instruction: Instruction, rows: int, columns_too: bool = True
) -> None:
    """tile_position and tile_size fit the array, and the operands fit the tile.

    Args:
        program: being traced.
        instruction: a matmul of either kind.
        rows: M, the columns of processing elements it uses.
        columns_too: whether the columns may be tiled.
    """
    position, size = instruction["tile_position"], instruction["tile_size"]
    if not position and not size:
        return
    for name, value in (("tile_position", position), ("tile_size", size)):
        if not _is_pair(value):
            refuse_tiling(program, instruction, name, "two integers, for both or neither", value)
            return
    sizes = (32, 64, 128)
    if size[0] not in sizes or size[1] not in (sizes if columns_too else (128,)):
        limit = "32, 64 or 128 rows and columns" if columns_too else "32, 64 or 128 rows, 128"
        refuse_tiling(program, instruction, "tile_size", limit, size)
        return
    if any(
        start % n or not 0 <= start < PARTITIONS for start, n in zip(position, size, strict=True)
    ):
        limit = f"multiples of {size[0]} and {size[1]} below {PARTITIONS}"
        refuse_tiling(program, instruction, "tile_position", limit, position)
        return
    depth = instruction["stationary"].shape[0]
    if depth > size[0] or rows > size[1]:
        refuse_tiling(
            program, instruction, "stationary", f"at most {size[0]} by {size[1]}", (depth, rows)
        )
    for name, start in (("stationary", position[0]), ("moving", position[0]), ("dst", position[1])):
        found = instruction[name]
        if found.buffer.on_chip and found.start_partition != start:
            limit = f"starts at partition {start}"
            refuse_tiling(program, instruction, name, limit, found.start_partition)


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    )
