"""What a DMA costs: its descriptors, the DMA engines it occupies, the path that issues it.

Source: nki_facts.md §3.4 and the DMA rows of published_latencies.csv.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from simulator.tensor import MemoryRegion, NkiTensor
from simulator.timing.machine import Machine

if TYPE_CHECKING:
    from simulator.program import Instruction

HARDWARE, SOFTWARE, STATIC = "hardware", "software", "static"
"""Who makes the descriptors: the DGE blocks, the GpSimd engine, or the host beforehand."""


@dataclass(frozen=True)
class Transfer:
    """One DMA instruction's transfer. Times in ns."""

    descriptors: int
    descriptor_bytes: int
    size_bytes: int
    hbm_bytes: int
    engines: int
    """DMA engines it is spread over."""
    busy_ns: float
    """How long each of them is occupied."""
    pipe_ns: float = 0.0
    """The least time its bytes take on the core's way to memory."""
    hbm_ns: float = 0.0
    """The least time its bytes take in the HBM stack, which two cores share."""
    path: str = STATIC
    issue_ns: float = 0.0
    """On the sequencer that starts it."""
    generate_ns: float = 0.0
    """On the GpSimd's descriptor generation, beside the GpSimd's own instructions."""
    start_ns: float = 0.0
    """From the issue to the first byte."""
    note: str = ""


def run_elements(tensor: NkiTensor) -> int:
    """Elements that follow each other in memory: within a partition, or in HBM."""
    first = 1 if tensor.buffer.on_chip else 0
    run = 1
    for axis in range(tensor.ndim - 1, first - 1, -1):
        count = tensor.shape[axis]
        if count == 1:
            continue
        if tensor.strides[axis] != run:
            break
        run *= count
    return run


def transfer(dst: NkiTensor, src: NkiTensor, machine: Machine) -> Transfer:
    """The transfer dst = src: descriptors of the longest run contiguous on both sides."""
    size = dst.size * max(dst.dtype.itemsize, src.dtype.itemsize)
    run = math.gcd(run_elements(dst), run_elements(src))
    if any(t.dynamic is not None and t.dynamic.rows is not None for t in (dst, src)):
        rows = dst if dst.dynamic is not None and dst.dynamic.rows is not None else src
        run = min(run, rows.size // rows.shape[0])
    count = max(1, dst.size // run)
    in_hbm = [t for t in (dst, src) if not t.buffer.on_chip]
    engines = _engines(dst, src, count, machine)
    if len(in_hbm) == 2 and count < engines:  # one long run is cut between the engines
        run, count = -(-dst.size // engines), engines
    descriptor_bytes = size * run // dst.size
    each = machine.dma_descriptor_ns + descriptor_bytes / machine.dma_bytes_per_ns
    if descriptor_bytes < machine.dma_element_bytes:
        each = machine.dma_element_ns
    return Transfer(
        descriptors=count,
        descriptor_bytes=descriptor_bytes,
        size_bytes=size,
        hbm_bytes=sum(t.size * t.dtype.itemsize for t in in_hbm),
        engines=engines,
        busy_ns=-(-count // engines) * each,
        note="short-rows" if descriptor_bytes < machine.dma_efficient_bytes and count > 1 else "",
    )


def _engines(dst: NkiTensor, src: NkiTensor, count: int, machine: Machine) -> int:
    partitions = max((t.shape[0] for t in (dst, src) if t.buffer.on_chip), default=0)
    most = int(machine.dma_engines)
    if partitions:
        return min(most, -(-partitions // int(machine.dma_engine_partitions)))
    size = dst.size * dst.dtype.itemsize
    return min(most, max(count, int(size // machine.dma_efficient_bytes), 1))


def of_instruction(instruction: Instruction, machine: Machine) -> tuple[Transfer, str]:
    """A DMA instruction's transfer with its issue path, and the queue that starts it.

    `dge_mode.unknown` becomes hardware generation where the machine has it and the DMA allows
    it (no cast, no indices), and software generation by the GpSimd engine where not. Without
    an engine named, loads and stores have a ring, and a DGE block, each: a compiler puts a
    store, which waits for compute, behind the loads it does not depend on.
    """
    dst: NkiTensor = instruction["dst"]
    if instruction.spec.name == "dma_compute":
        sources: list[NkiTensor] = list(instruction["srcs"])
        moved = _sum([transfer(dst, source, machine) for source in sources])
        path = SOFTWARE
    else:
        src: NkiTensor = instruction["src"]
        path = _path(instruction, dst, src, machine)
        if instruction.spec.name == "dma_transpose":
            moved = _transpose(dst, src, machine)
        else:
            moved = transfer(dst, src, machine)
    if path == SOFTWARE:
        return _issued(moved, machine, path, machine.swdge_issue_ns, machine.swdge_start_ns,
                       machine.swdge_generate_ns), "gpsimd"  # fmt: skip
    asked = instruction.get("engine")
    if asked is not None and asked.name == "scalar":
        queue = "scalar"
    else:
        queue = "stores" if dst.buffer in _HBM else "loads"
    issue = machine.hwdge_issue_ns if path == HARDWARE else machine.static_issue_ns
    return _issued(moved, machine, path, issue, machine.dma_start_ns, 0.0), queue


_HBM = (MemoryRegion.private_hbm, MemoryRegion.shared_hbm)


def _path(instruction: Instruction, dst: NkiTensor, src: NkiTensor, machine: Machine) -> str:
    mode = instruction.get("dge_mode")
    asked = "unknown" if mode is None else mode.name
    by_index = any(t.dynamic is not None and t.dynamic.tensors() for t in (dst, src))
    if asked == "swdge" or (asked == "unknown" and (by_index or dst.dtype is not src.dtype)):
        return SOFTWARE
    if asked == "none" or not machine.dma_hardware_generation:
        return STATIC
    return HARDWARE


def _issued(
    moved: Transfer, machine: Machine, path: str, issue: float, start: float, generate: float
) -> Transfer:
    return replace(
        moved,
        path=path,
        issue_ns=issue,
        generate_ns=generate,
        start_ns=start,
        pipe_ns=moved.size_bytes / machine.dma_core_bytes_per_ns,
        hbm_ns=moved.hbm_bytes / machine.hbm_stack_bytes_per_ns,
    )


def _transpose(dst: NkiTensor, src: NkiTensor, machine: Machine) -> Transfer:
    """A transposing DMA: the rate of a copy of the source's rows, times an efficiency."""
    size = src.size * src.dtype.itemsize
    hbm = size if not src.buffer.on_chip else 0
    engines = min(int(machine.dma_engines), max(1, src.size // 128))
    rate = machine.dma_bytes_per_ns * machine.dma_transpose_efficiency
    row = max(1, run_elements(src) * src.dtype.itemsize)
    count = max(1, size // row)
    each = machine.dma_descriptor_ns + row / rate
    return Transfer(count, row, size, hbm, engines, -(-count // engines) * each)


def _sum(parts: list[Transfer]) -> Transfer:
    """Transfers that run one after another on the same engines."""
    first = parts[0]
    return Transfer(
        sum(p.descriptors for p in parts),
        first.descriptor_bytes,
        sum(p.size_bytes for p in parts),
        sum(p.hbm_bytes for p in parts),
        max(p.engines for p in parts),
        sum(p.busy_ns for p in parts),
        note=first.note,
    )
