"""What a played Program tells: busy times, the critical path, the lines that cost most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simulator.lifetimes import peak_bytes_per_partition
from simulator.tensor import MemoryRegion
from simulator.timing.cost import DMA, ENGINES, QUEUES
from simulator.timing.decode import QUEUE_COUNT

if TYPE_CHECKING:
    from simulator.program import Program
    from simulator.timing.timeline import Line, Timeline

LAUNCH = "launch"
ISSUE = "dma issue"
LATENCY = "dma latency"
BANDWIDTH = "dma bandwidth"
STALL = "dependency stall"
TABLE = "table load"


def compute(engine: str) -> str:
    """The cause `compute on an engine`."""
    return f"{engine} compute"


class Piece(NamedTuple):
    """A stretch of the critical path."""

    instruction: int
    """Its index; -1 for launch and end."""
    cause: str
    begin_ns: float
    end_ns: float


def critical_path(timeline: Timeline) -> Iterator[Piece]:
    """The path that sets the latency, from its end to its begin.

    Each instruction is followed to what it waited for last. The pieces do not overlap and
    cover the latency.
    """
    played = timeline.played
    launch = timeline.machine.launch_ns
    ends = np.maximum(np.frombuffer(played.end), np.frombuffer(played.release))
    index = int(np.argmax(ends))
    until = float(ends[index])
    yield Piece(-1, LAUNCH, until, timeline.latency_ns)
    before = _before(timeline)
    while index >= 0:
        begin = played.start[index]
        yield from _pieces(timeline, index, begin, until)
        until = min(until, begin)
        loading = played.tables.get(index)
        if loading is not None and begin <= loading + timeline.machine.scalar_table_load_ns:
            yield Piece(index, TABLE, loading, until)
            until = loading
            following = int(before[index])
        elif index in played.contended:
            following = played.contended[index]
            if following in timeline.decoded.meets:  # the other core came later: what held it?
                following = _binding(timeline, following, int(before[following]))
        else:
            following = _binding(timeline, index, int(before[index]))
        if following < 0 and until > launch:
            yield Piece(index, STALL, launch, until)
        index = following
    yield Piece(-1, LAUNCH, 0.0, min(until, launch))


def _binding(timeline: Timeline, index: int, before: int) -> int:
    """What an instruction waited for last: an input, or what its queue did before."""
    played, queues = timeline.played, timeline.decoded.queues
    latest, found = -1.0, -1
    if before >= 0:
        latest, found = played.release[before], before
    for j in timeline.decoded.depends[index] or ():
        done = played.end[j]
        if queues[j] == queues[index]:
            chain = timeline.machine.chain_ns(QUEUES[queues[j] % QUEUE_COUNT])
            done = min(done, played.release[j] + chain)
        if done > latest or (done == latest and queues[j] != queues[index]):
            latest, found = done, j
    return found


def _before(timeline: Timeline) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Of each instruction: the one its queue took before."""
    queues = np.frombuffer(timeline.decoded.queues, dtype=np.uint8)
    before = np.full(len(queues), -1, dtype=np.int32)
    for queue in np.unique(queues):
        members = np.flatnonzero(queues == queue)
        before[members[1:]] = members[:-1]
    return before


def _pieces(timeline: Timeline, index: int, begin: float, until: float) -> Iterator[Piece]:
    """What an instruction did between its start and the time at which it was waited for."""
    if until <= begin:
        return
    price = timeline.decoded.costs[index]
    flow = timeline.played.flow.get(index)
    if price.kind == DMA and flow is not None and price.transfer is not None:
        yield from _dma_pieces(timeline, index, begin, until, flow)
        return
    engine = timeline.engine_name(index)
    worked = min(until, timeline.played.release[index])
    if until > worked:
        yield Piece(index, STALL, worked, until)
    yield Piece(index, compute(engine), begin, worked)


def _dma_pieces(
    timeline: Timeline, index: int, begin: float, until: float, flow: tuple[float, float]
) -> Iterator[Piece]:
    moved = timeline.decoded.costs[index].transfer
    assert moved is not None
    issued = timeline.played.release[index]
    available = min(flow[0], issued + moved.generate_ns + moved.start_ns)
    marks = ((ISSUE, issued), (LATENCY, available), (BANDWIDTH, flow[1]), (LATENCY, until))
    at = begin
    pieces = []
    for cause, mark in marks:
        mark = min(max(mark, at), until)
        if mark > at:
            pieces.append(Piece(index, cause, at, mark))
        at = mark
    yield from reversed(pieces)


def by_cause(timeline: Timeline) -> dict[str, float]:
    """The critical path's time by cause in µs, the largest first."""
    found: dict[str, float] = {}
    for piece in critical_path(timeline):
        found[piece.cause] = found.get(piece.cause, 0.0) + piece.end_ns - piece.begin_ns
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {cause: time / 1000 for cause, time in ordered if time > 0}


def busy_us(timeline: Timeline) -> dict[str, float]:
    """Busy time of each engine of each core, and of the DMA engines."""
    played, decoded = timeline.played, timeline.decoded
    queues = np.frombuffer(decoded.queues, dtype=np.uint8)
    start = np.frombuffer(played.start, dtype=np.float64)
    worked = np.frombuffer(played.release, dtype=np.float64) - start
    found: dict[str, float] = {}
    cores = timeline.program.lnc
    sums = np.bincount(queues, weights=worked, minlength=cores * QUEUE_COUNT)
    for core in range(cores):
        prefix = f"{core}." if cores > 1 else ""
        base = core * QUEUE_COUNT
        for number, engine in enumerate(ENGINES):
            found[prefix + engine] = float(sums[base + number]) / 1000
        found[f"{prefix}sync"] += float(sums[base + QUEUES.index("loads")]) / 1000
        found[f"{prefix}dma"] = _dma_busy(timeline, core) / 1000
    for index in played.tables:
        core = decoded.queues[index] // QUEUE_COUNT
        prefix = f"{core}." if cores > 1 else ""
        found[f"{prefix}scalar"] += timeline.machine.scalar_table_load_ns / 1000
    return found


def _dma_busy(timeline: Timeline, core: int) -> float:
    """Time in which at least one DMA engine of a core moves data."""
    queues = timeline.decoded.queues
    spans = sorted(
        span for i, span in timeline.played.flow.items() if queues[i] // QUEUE_COUNT == core
    )
    busy = 0.0
    until = -1.0
    for first, last in spans:
        if last > until:
            busy += last - max(first, until)
            until = last
    return busy


def lines(timeline: Timeline) -> list[Line]:
    """Cost per line of the kernel."""
    from simulator.timing.timeline import Line

    decoded, played = timeline.decoded, timeline.played
    table: dict[tuple[str, int], list[float]] = {}
    lanes: dict[tuple[str, int], set[int]] = {}
    for index, instruction in enumerate(decoded.instructions):
        key = (instruction.file, instruction.line)
        entry = table.get(key)
        if entry is None:
            entry = table[key] = [0.0, 0.0, 0.0]
            lanes[key] = set()
        entry[0] += 1
        entry[1] += played.release[index] - played.start[index]
        lanes[key].add(decoded.queues[index])
    for index, (first, last) in played.flow.items():
        instruction = decoded.instructions[index]
        table[instruction.file, instruction.line][1] += last - first
    for piece in critical_path(timeline):
        if piece.instruction >= 0:
            instruction = decoded.instructions[piece.instruction]
            entry = table[instruction.file, instruction.line]
            entry[2] += piece.end_ns - piece.begin_ns
    found = [
        Line(
            file,
            line,
            int(entry[0]),
            entry[1] / 1000,
            entry[2] / 1000,
            tuple(dict.fromkeys(QUEUES[q % QUEUE_COUNT] for q in sorted(lanes[file, line]))),
        )
        for (file, line), entry in table.items()
    ]
    return sorted(found, key=lambda item: (-item.critical_us, -item.busy_us, item.file, item.line))


def high_water(program: Program) -> dict[str, int]:
    """The most bytes per partition that live at once."""
    return {
        name: peak_bytes_per_partition(program, region)[0]
        for name, region in (("sbuf", MemoryRegion.sbuf), ("psum", MemoryRegion.psum))
    }
