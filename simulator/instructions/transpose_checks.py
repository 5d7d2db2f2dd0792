"""The limits of transposes by an engine: size, dtype, place in PSUM. Source: nki_facts.md §2.4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.tensor import MemoryRegion, NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program


def in_one_byte(tensor: NkiTensor) -> bool:
    """Whether its elements take one byte, which the Tensor engine widens when it transposes."""
    return tensor.dtype.itemsize == 1


def check_bank(program: Program, instruction: Instruction, dst: NkiTensor) -> None:
    """On gen2 and gen3 a matmul writes to one PSUM bank."""
    if dst.buffer is not MemoryRegion.psum or program.target.generation >= 4:
        return
    if dst.dynamic is not None:
        return
    size, bank = dst.dtype.itemsize, program.target.psum_bank_bytes
    base = dst.storage.address[1] if dst.storage.address else 0
    first = base + dst.offset * size % dst.storage.bytes_per_partition
    spans = zip(dst.strides[1:], dst.shape[1:], strict=True)
    last = first + size * (1 + sum(stride * (count - 1) for stride, count in spans)) - 1
    if first // bank != last // bank:
        program.report(
            instruction,
            "psum-bank",
            f"dst lies in more than one PSUM bank of {bank} bytes per partition",
            "Give each matmul a tile of at most 512 float32 that starts on a multiple of 512, "
            "or a PSUM tensor of its own",
            operand="dst",
            limit=f"one bank of {bank} bytes",
            value=f"bytes {first} to {last}",
        )


def check_transpose(program: Program, instruction: Instruction) -> None:
    """What the table does not say about nc_transpose."""
    dst, data = instruction["dst"], instruction["data"]
    count, free = data.shape[0], data.free_size
    on_tensor = instruction.engine == "tensor"
    most = 128 if on_tensor else 32
    if dst.dtype is not data.dtype:
        program.report(
            instruction,
            "transpose-dtype",
            "nc_transpose does not cast: dst must have data's dtype",
            "Allocate dst in the dtype of the data, also in PSUM, and cast when you copy it out",
            operand="dst",
            limit=str(data.dtype),
            value=str(dst.dtype),
        )
    if count > most or free > most:
        kind = "Tensor" if on_tensor else "Vector"
        program.report(
            instruction,
            "transpose-size",
            f"{kind} engine transpose requires shape <= [{most},{most}], got [{count},{free}]",
            "Transpose tile by tile"
            if on_tensor
            else "Transpose tile by tile, or from SBUF into PSUM on the Tensor engine",
            operand="data",
            limit=f"[{most},{most}]",
            value=f"[{count},{free}]",
        )
    if dst.shape[0] != free or dst.free_size != count:
        program.report(
            instruction,
            "transpose-shape",
            f"dst is {dst.shape[0]} by {dst.free_size}, the transpose {free} by {count}",
            "Give dst data's free size as partitions, and data's partitions as free size",
            operand="dst",
            limit=f"({free}, {count})",
            value=f"({dst.shape[0]}, {dst.free_size})",
        )
    if not on_tensor:
        return
    _check_transpose_buffers(program, instruction)
    check_bank(program, instruction, dst)
    check_widened(program, instruction, data, dst)


def _check_transpose_buffers(program: Program, instruction: Instruction) -> None:
    for name, wanted in (("data", MemoryRegion.sbuf), ("dst", MemoryRegion.psum)):
        found = instruction[name].buffer
        if found is not wanted and found.on_chip:
            program.report(
                instruction,
                "buffer",
                f"{name} must be in ['{wanted.value}'] on the Tensor engine, got {found.value}",
                "The Tensor engine reads SBUF and writes PSUM",
                operand=name,
                limit=wanted.value,
                value=found.value,
            )


def check_widened(
    program: Program, instruction: Instruction, data: NkiTensor, dst: NkiTensor
) -> None:
    """Elements of one byte come out of the Tensor engine as 16 bits (nki_facts.md §2.4)."""
    if not in_one_byte(data) or dst.dtype is not data.dtype or not dst.buffer.on_chip:
        return
    free = dst.storage.bytes_per_partition
    spans = zip(dst.strides[1:], dst.shape[1:], strict=True)
    last = dst.offset % free + sum(stride * (count - 1) for stride, count in spans)
    steps = [
        stride for stride, count in zip(dst.strides[1:], dst.shape[1:], strict=True) if count > 1
    ]
    if dst.offset % 2 or any(step % 2 for step in steps) or last + 1 >= free:
        program.report(
            instruction,
            "transpose-fp8",
            "the Tensor engine writes each transposed byte as 16 bits, the upper ones zero",
            "Allocate twice the free size and give dst[:, 0:2 * n:2], or transpose as bfloat16",
            operand="dst",
            limit="every second byte, from an even one",
            value=f"steps {steps} from byte {dst.offset % free}",
        )
