"""What the two cores of an LNC2 launch do together, and device_print.

Source: nki_facts.md §2.4, §2.11. `lnc.merge` pairs the cores' instructions (`Instruction.peer`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.enums import dma_engine, engine
from simulator.instructions.table import HBM, SBUF, Arrays, Operand, Run, Slots, instruction
from simulator.tensor import MemoryRegion, NkiTensor

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["core_barrier", "device_print", "sendrecv"]

GPSIMD_DMA_BYTES = {4: 1024, 2: 512, 1: 256}
"""Bytes per partition that the GpSimd's own DMA moves, by element size (nki_facts.md §2.4)."""


def _nothing(views: Arrays) -> None:
    """The other core's instruction does the work."""


def _needs_two_cores(program: Program, instruction: Instruction) -> bool:
    """Report an instruction that needs a partner on a launch that has none."""
    if program.lnc == 2:
        return True
    program.report(
        instruction,
        "lnc-launch",
        f"{instruction.spec.name} needs the second core of an LNC2 launch",
        "Launch as kernel[2](…), or leave it out where nl.num_programs() is 1",
        limit="2 cores",
        value="1 core",
    )
    return False


# --- sendrecv -------------------------------------------------------------------------------


def _sendrecv(instruction: Instruction, slots: Slots) -> Run:
    """Both directions at once, carried out by the first core's instruction."""
    peer = instruction.peer
    assert peer is not None
    if instruction.core == 1:
        return _nothing
    both = (instruction, peer)
    moves = []
    for receiver in both:
        sender = both[receiver["recv_from_rank"]]
        moves.append((slots(receiver["dst"]), slots(sender["src"]), receiver["dst"].shape))

    def run(views: Arrays) -> None:
        sent = [views[src].reshape(shape).copy() for _, src, shape in moves]
        for (dst, _, _), values in zip(moves, sent, strict=True):
            views[dst][...] = values

    return run


def _check_sendrecv(program: Program, instruction: Instruction) -> None:
    if not _needs_two_cores(program, instruction):
        return
    for operand in ("send_to_rank", "recv_from_rank"):
        _check_integer(program, instruction, operand, "sendrecv-rank", (0, 1))
    _check_integer(program, instruction, "pipe_id", "sendrecv-pipe", None)
    src, dst = instruction["src"], instruction["dst"]
    if src.dtype is not dst.dtype:
        program.report(
            instruction,
            "sendrecv-dtype",
            f"src is {src.dtype} and dst {dst.dtype}",
            "A sendrecv moves bytes: give both the same dtype",
            operand="dst",
            limit=str(src.dtype),
            value=str(dst.dtype),
        )
    limit = GPSIMD_DMA_BYTES[src.dtype.itemsize]
    if instruction["dma_engine"] is dma_engine.gpsimd_dma and src.free_bytes > limit:
        program.report(
            instruction,
            "sendrecv-size",
            f"the GpSimd DMA moves at most {limit} bytes per partition of a {src.dtype} tile",
            "Use nisa.dma_engine.dma, or split the tile",
            operand="src",
            limit=f"{limit} bytes per partition",
            value=f"{src.free_bytes} bytes per partition",
        )


def _check_overlap(program: Program, instruction: Instruction) -> None:
    src, dst = instruction["src"], instruction["dst"]
    if src.storage is dst.storage and _share_bytes(src, dst):
        program.report(
            instruction,
            "sendrecv-overlap",
            f"receives into the part of `{dst.name}` that it sends",
            "Receive into another tile: the two transfers have no order",
            operand="dst",
            limit="tiles that do not overlap",
            value="overlapping tiles",
        )


def _share_bytes(a: NkiTensor, b: NkiTensor) -> bool:
    """Whether two static views of one storage have a byte in common."""
    from simulator.lnc import overlap

    return a.dynamic is None and b.dynamic is None and overlap(a, b)


def _check_integer(
    program: Program,
    instruction: Instruction,
    operand: str,
    rule: str,
    allowed: tuple[int, ...] | None,
) -> None:
    value = instruction[operand]
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer and (value >= 0 if allowed is None else value in allowed):
        return
    limit = "an integer >= 0" if allowed is None else " or ".join(map(str, allowed))
    program.report(
        instruction,
        rule,
        f"{operand} must be {limit}",
        "Ranks are the two cores of the launch: 0 and 1" if allowed else "Number pipes from 0",
        operand=operand,
        limit=limit,
        value=repr(value),
    )


@instruction(
    operands={
        "src": Operand("read", buffers=SBUF),
        "dst": Operand("write", buffers=SBUF),
    },
    engines=("dma",),
    lower=_sendrecv,
    cost="DMA",
    source="nki_facts.md §2.4",
    extra_check=_check_sendrecv,
    resolve=_check_overlap,
)
def sendrecv(
    src: Any,
    dst: Any,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: dma_engine = dma_engine.dma,
    name: str | None = None,
) -> tuple[Any, ...]:
    """Exchange SBUF tiles between the two cores of an LNC2 launch.

    Args:
        src: tile [P, …] to send.
        dst: tile of the same P, elements per partition and dtype, to receive into.
        send_to_rank: the core that receives src: 0 or 1.
        recv_from_rank: the core whose src is received.
        pipe_id: both cores' sendrecvs must name the same pipe.
        dma_engine: dma, or gpsimd_dma for at most 1024, 512 or 256 bytes per partition of
            32-, 16- and 8-bit types.
        name: a label.
    """
    return src, dst, send_to_rank, recv_from_rank, pipe_id, dma_engine, name


# --- core_barrier ---------------------------------------------------------------------------


def _barrier(instruction: Instruction, slots: Slots) -> Run:
    return _nothing


def _check_barrier(program: Program, instruction: Instruction) -> None:
    data, cores = instruction["data"], instruction["cores"]
    named = tuple(cores) if isinstance(cores, tuple | list) else cores
    if program.lnc == 1 and named == (0,):
        return  # a barrier of one core: public kernels write it where LNC is 1
    if not _needs_two_cores(program, instruction):
        return
    if named != (0, 1):
        program.report(
            instruction,
            "barrier-cores",
            "only cores (0, 1) can meet at a barrier",
            "Write cores=(0, 1)",
            operand="cores",
            limit="(0, 1)",
            value=repr(cores),
        )
    if not isinstance(data, NkiTensor):
        program.report(
            instruction,
            "operand",
            f"data must be a tensor, got {type(data).__name__}",
            "Name the shared_hbm tensor that the cores wait for",
            operand="data",
            limit="NkiTensor",
            value=type(data).__name__,
        )
    elif data.buffer is not MemoryRegion.shared_hbm:
        # AWS documents shared HBM only; its own kernels also pass an SBUF tile, to wait only.
        program.warn(
            instruction,
            "barrier-buffer",
            f"data is in {data.buffer.value}, which the other core cannot see",
            "Name the shared_hbm tensor that the cores wait for",
            operand="data",
            limit="shared_hbm",
            value=data.buffer.value,
        )


@instruction(
    operands={},
    engines=("gpsimd", "vector", "scalar", "tensor", "sync"),
    lower=_barrier,
    cost="semaphore",
    source="nki_facts.md §2.4",
    extra_check=_check_barrier,
    serial=True,
)
def core_barrier(
    data: Any, cores: Any, engine: engine = engine.gpsimd, name: str | None = None
) -> tuple[Any, ...]:
    """Wait until both cores of an LNC2 launch are here, so that `data` can be read.

    Args:
        data: a shared_hbm tensor that both cores write or read.
        cores: (0, 1).
        engine: that waits.
        name: a label.
    """
    return data, cores, engine, name


# --- device_print ---------------------------------------------------------------------------


def _print(instruction: Instruction, slots: Slots) -> Run:
    slot, prefix = slots(instruction["tensor"]), instruction["print_prefix"]

    def run(views: Arrays) -> None:
        with np.printoptions(threshold=1000):
            print(f"{prefix} {views[slot]}", flush=True)

    return run


def _check_print(program: Program, instruction: Instruction) -> None:
    prefix = instruction["print_prefix"]
    if isinstance(prefix, str):
        return
    program.report(
        instruction,
        "operand",
        f"print_prefix must be a string, got {type(prefix).__name__}",
        "Write nl.device_print('text', tensor)",
        operand="print_prefix",
        limit="str",
        value=type(prefix).__name__,
    )


@instruction(
    operands={"tensor": Operand("read", "free", HBM | SBUF)},
    engines=("dma",),
    lower=_print,
    cost="DMA",
    source="nki_facts.md §2.11",
    extra_check=_check_print,
    serial=True,
)
def device_print(print_prefix: str, tensor: Any) -> tuple[Any, ...]:
    """Print a tensor's values as the kernel runs. Hardware writes them to files instead.

    Args:
        print_prefix: text before the values.
        tensor: in SBUF or HBM.
    """
    return print_prefix, tensor
