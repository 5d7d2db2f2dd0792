"""The limits of dma_transpose and dma_compute. Source: nki_facts.md §2.4, §9 A9."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator import dtypes
from simulator.instructions.limits import operators_given
from simulator.tensor import MemoryRegion, NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}
LAST_DIMENSION = 128
SOURCES = 16


# --- dma_transpose ------------------------------------------------------------------------------


def check_dma_transpose(program: Program, instruction: Instruction) -> None:
    """What the table does not say about dma_transpose."""
    dst, src = instruction["dst"], instruction["src"]
    by_row = src.dynamic is not None and src.dynamic.rows is not None
    _check_axes(program, instruction)
    if dst.dtype is not src.dtype or src.dtype.itemsize == 1:
        program.report(
            instruction,
            "transpose-dtype",
            "dma_transpose moves elements of 2 or 4 bytes and does not cast",
            "Give both the same dtype; view pairs of bytes as a 16-bit dtype",
            operand="dst" if dst.dtype is not src.dtype else "src",
            limit=str(src.dtype) if dst.dtype is not src.dtype else "2 or 4 bytes",
            value=str(dst.dtype) if dst.dtype is not src.dtype else str(src.dtype),
        )
    if instruction["priority"] is not None and program.target.generation < 4:
        program.report(
            instruction,
            "gen4-only",
            "dma_transpose priority is only supported for NeuronCore-v4 or newer",
            "Leave priority out on trn2",
            operand="priority",
            limit="trn3",
            value=program.target.name,
        )
    _check_modes(program, instruction, by_row)
    if by_row:
        _check_gather(program, instruction)
    elif instruction["dge_mode"].name == "hwdge":
        _check_hardware(program, instruction)


def _check_axes(program: Program, instruction: Instruction) -> None:
    dst, src, axes = instruction["dst"], instruction["src"], instruction["axes"]
    wanted = _AXES.get(src.ndim)
    given = tuple(axes) if isinstance(axes, list | tuple) else axes
    if wanted is None or given not in (None, wanted):
        program.report(
            instruction,
            "transpose-axes",
            f"dma_transpose axes must be one of [(1, 0), (2, 1, 0), (3, 1, 2, 0)], got {given} "
            f"for {src.ndim} dimensions",
            "Reshape or permute src so that its first and last dimensions are exchanged",
            operand="axes",
            limit=str(wanted) if wanted else "2 to 4 dimensions",
            value=str(given) if wanted else f"{src.ndim} dimensions",
        )
        return
    permuted = tuple(src.shape[axis] for axis in wanted)
    if dst.shape != permuted:
        program.report(
            instruction,
            "transpose-shape",
            f"dst must have exactly the permuted shape of src, got {dst.shape}",
            "Give dst that shape and rank, e.g. with .ap(), reshape or expand_dim",
            operand="dst",
            limit=str(permuted),
            value=str(dst.shape),
        )


def _check_modes(program: Program, instruction: Instruction, by_row: bool) -> None:
    mode = instruction["dge_mode"].name
    # none: descriptors written when the kernel is compiled, as public kernels ask for.
    allowed = ("unknown", "swdge") if by_row else ("unknown", "hwdge", "none")
    if mode not in allowed:
        (program.report if by_row else program.tolerate)(
            instruction,
            "dge-mode",
            f"dma_transpose {'of gathered rows ' if by_row else ''}cannot use dge_mode {mode}",
            "Leave dge_mode out",
            operand="dge_mode",
            limit=" or ".join(allowed),
            value=mode,
        )
    if instruction["oob_mode"].name == "skip" and not by_row:
        _refuse_skip(program, instruction)


def _refuse_skip(program: Program, instruction: Instruction) -> None:
    program.report(
        instruction,
        "oob-mode",
        "oob_mode.skip without a dynamic address: nothing can be out of bounds",
        "Leave oob_mode out, or gather rows with .ap(vector_offset=…)",
        operand="oob_mode",
        limit="error",
        value="skip",
    )


def _hardware(
    program: Program, instruction: Instruction, message: str, limit: str, value: Any
) -> None:
    program.report(
        instruction,
        "transpose-hwdge",
        f"hardware descriptors cannot transpose this: {message}",
        "Leave dge_mode unknown, or split src",
        operand="src",
        limit=limit,
        value=str(value),
    )


def _check_hardware(program: Program, instruction: Instruction) -> None:
    src = instruction["src"]
    shape = src.shape
    if src.dtype.itemsize != 2:
        _hardware(program, instruction, "elements must have 2 bytes", "2 bytes", src.dtype)
    if shape[-1] > LAST_DIMENSION:
        _hardware(program, instruction, "the last dimension is too long", "128", shape[-1])
    if src.ndim == 2 and shape[0] != 16:
        _hardware(program, instruction, "a 2-D source has 16 rows", "16", shape[0])
    if src.ndim > 2 and shape[0] not in (1, 2, 4, 8, 16):
        _hardware(program, instruction, "the first dimension", "1, 2, 4, 8 or 16", shape[0])
    if src.ndim > 2 and shape[0] * shape[-2] % 16:
        product = shape[0] * shape[-2]
        _hardware(
            program, instruction, "shape[0] * shape[-2]", "a multiple of 16", product
        )  # fmt: skip


def _gather(
    program: Program, instruction: Instruction, message: str, limit: str, value: Any
) -> None:
    program.report(
        instruction,
        "transpose-gather",
        f"rows cannot be gathered and transposed: {message}",
        "Gather with nisa.dma_copy and transpose then, or pad to these sizes",
        operand="src",
        limit=limit,
        value=str(value),
    )


def _check_gather(program: Program, instruction: Instruction) -> None:
    src = instruction["src"]
    index: NkiTensor = src.dynamic.rows
    if src.dtype.itemsize != 2:
        _gather(program, instruction, "elements must have 2 bytes", "2 bytes", src.dtype)
    if src.shape[-1] > LAST_DIMENSION:
        _gather(program, instruction, "the last dimension is too long", "128", src.shape[-1])
    if src.shape[0] % 16:
        _gather(
            program, instruction, "the number of rows", "a multiple of 16", src.shape[0]
        )  # fmt: skip
    if src.ndim == 4 and 1 not in src.shape[1:3]:
        _gather(
            program, instruction, "one of the middle dimensions must be 1", "1", src.shape[1:3]
        )  # fmt: skip
    if index.dtype is not dtypes.uint32:
        _gather(program, instruction, "the row numbers' dtype", "uint32", index.dtype)
    if index.ndim != 2 or index.shape[0] % 16:
        limit = "(16 to 128 by 16, N)"
        _gather(program, instruction, "the index tile's shape", limit, index.shape)
    elif index.shape[1] > 1 and index.shape[0] != 128:
        limit = "128 partitions for several columns"
        _gather(program, instruction, "the index tile's shape", limit, index.shape)


# --- dma_compute --------------------------------------------------------------------------------


def check_dma_compute(program: Program, instruction: Instruction) -> None:
    """What the table does not say about dma_compute."""
    operators_given("reduce_op")(program, instruction)
    dst, srcs = instruction["dst"], instruction["srcs"]
    tensors = isinstance(srcs, list | tuple) and all(isinstance(s, NkiTensor) for s in srcs)
    if not tensors or not 1 <= len(srcs) <= SOURCES:
        program.report(
            instruction,
            "dma-sources",
            "srcs must be a list of tensors",
            "Add in several steps; a number is no source",
            operand="srcs",
            limit=f"1 to {SOURCES} tensors",
            value=f"{len(srcs)} tensors" if tensors else type(srcs).__name__,
        )
        return
    for position, src in enumerate(srcs):
        if src.size != dst.size:
            program.report(
                instruction,
                "dma-size",
                "dma_compute requires srcs and dst to have the same number of elements, got "
                f"src={src.size}, dst={dst.size}",
                "Slice all to the same number of elements",
                operand=f"srcs[{position}]",
                limit=str(dst.size),
                value=str(src.size),
            )
    _check_scales(program, instruction, len(srcs))
    _check_addresses(program, instruction)


def _check_scales(program: Program, instruction: Instruction, count: int) -> None:
    scales = instruction["scales"]
    if scales is None:
        return
    good = (
        isinstance(scales, list | tuple)
        and len(scales) == count
        and all(isinstance(s, int | float) and not isinstance(s, bool) and s == 1 for s in scales)
    )
    if not good:
        program.report(
            instruction,
            "dma-scales",
            "dma_compute adds without scaling: every scale is 1.0",
            "Leave scales out, and scale with nisa.tensor_scalar",
            operand="scales",
            limit=f"None or [1.0] * {count}",
            value=repr(scales),
        )


def _check_addresses(program: Program, instruction: Instruction) -> None:
    """Static addresses, or a read-modify-write of rows by number."""
    dst, srcs = instruction["dst"], instruction["srcs"]
    for name, tensor in [("dst", dst), *(("srcs", src) for src in srcs)]:
        if tensor.dynamic is not None and (tensor.dynamic.scalars or tensor.dynamic.elements):
            program.report(
                instruction,
                "dma-address",
                "dma_compute needs addresses that are known when it is compiled",
                "Copy to a fixed place with nisa.dma_copy first",
                operand=name,
                limit="a static address or vector_offset",
                value="a dynamic address",
            )
    if not any(_by_row(tensor) for tensor in (dst, *srcs)):
        if instruction["oob_mode"].name == "skip":
            _refuse_skip(program, instruction)
        return
    if instruction["unique_indices"] is not True:
        program.report(
            instruction,
            "dma-indices",
            "rows that come twice are not supported",
            "Make row numbers unique, and say unique_indices=True",
            operand="unique_indices",
            limit="True",
            value=repr(instruction["unique_indices"]),
        )
    _check_read_modify_write(program, instruction)


def _by_row(tensor: NkiTensor) -> bool:
    return tensor.dynamic is not None and tensor.dynamic.rows is not None


def matches(a: NkiTensor, b: NkiTensor) -> bool:
    """Whether two views are the same elements, rows by number included."""
    same = (a.storage, a.offset, a.shape, a.strides) == (b.storage, b.offset, b.shape, b.strides)
    if not same or _by_row(a) != _by_row(b):
        return False
    if a.dynamic is None or b.dynamic is None:
        return True
    return (
        a.dynamic.row_stride == b.dynamic.row_stride
        and a.dynamic.rows is not None
        and b.dynamic.rows is not None
        and matches(a.dynamic.rows, b.dynamic.rows)
    )


def _check_read_modify_write(program: Program, instruction: Instruction) -> None:
    dst, srcs = instruction["dst"], instruction["srcs"]
    others = [src for src in srcs if not matches(src, dst)]
    if _by_row(dst):
        good = dst.buffer.on_chip is False and not any(_by_row(src) for src in others)
    else:
        good = dst.buffer is MemoryRegion.sbuf and all(_by_row(src) for src in others)
    if not good or len(srcs) != 2 or len(others) != 1:
        program.report(
            instruction,
            "dma-rows",
            "with rows by number, dma_compute adds one source to dst",
            "Give two sources, of which one is dst: dst[rows] += src in HBM, or dst += src[rows] "
            "in SBUF",
            operand="srcs",
            limit="dst and one other source",
            value=f"{len(srcs)} sources, {len(srcs) - len(others)} of them dst",
        )
