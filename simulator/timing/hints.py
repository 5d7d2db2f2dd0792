"""What to change: known bad patterns, looked for in a Timeline. The three that cost most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulator.timing.analyse import BANDWIDTH, ISSUE, LATENCY
from simulator.timing.cost import QUEUES, tensors_of
from simulator.timing.decode import QUEUE_COUNT

if TYPE_CHECKING:
    from simulator.timing.timeline import Timeline

WANTED = 3
_WORTH = 0.02
"""Hints that touch less than this share of the latency are not given."""


@dataclass(frozen=True)
class Hint:
    """One thing to change."""

    pattern: str
    message: str
    file: str
    line: int
    cost_us: float
    """Predicted time that the pattern touches; an upper bound of what mending it gains."""


def hints(timeline: Timeline) -> list[Hint]:
    """At most three hints, those first that touch most of the time."""
    found = [hint for pattern in PATTERNS for hint in pattern(timeline)]
    worth = [hint for hint in found if hint.cost_us >= _WORTH * timeline.latency_us]
    return sorted(worth, key=lambda h: -h.cost_us)[:WANTED]


def _by_line(timeline: Timeline, note: str) -> dict[tuple[str, int], list[int]]:
    """Instructions whose cost carries a note, by line."""
    found: dict[tuple[str, int], list[int]] = {}
    for index, price in enumerate(timeline.decoded.costs):
        if price.note == note:
            instruction = timeline.instruction(index)
            found.setdefault((instruction.file, instruction.line), []).append(index)
    return found


def _short_rows(timeline: Timeline) -> Iterator[Hint]:
    machine = timeline.machine
    for (file, line), indices in _by_line(timeline, "short-rows").items():
        moved = timeline.decoded.costs[indices[0]].transfer
        assert moved is not None
        ideal = moved.size_bytes / machine.dma_core_bytes_per_ns
        lost = len(indices) * max(0.0, moved.busy_ns - ideal) / 1000
        yield Hint(
            "short-rows",
            f"DMA descriptors of {moved.descriptor_bytes} B, {moved.descriptors} per transfer: "
            f"below {machine.dma_efficient_bytes:.0f} B the descriptor costs more than its bytes. "
            "Make what is contiguous in HBM longer: load several rows per partition, or change "
            "the layout",
            file,
            line,
            lost,
        )


def _fp32_matmul(timeline: Timeline) -> Iterator[Hint]:
    machine = timeline.machine
    for (file, line), indices in _by_line(timeline, "fp32-matmul").items():
        time = sum(timeline.played.release[i] - timeline.played.start[i] for i in indices)
        gain = time * (1 - 1 / machine.tensor_fp32_passes) / 1000
        yield Hint(
            "fp32-matmul",
            f"fp32 operands take {machine.tensor_fp32_passes:.0f} passes of the Tensor engine. "
            "With bf16 operands (PSUM still accumulates in fp32) it takes one",
            file,
            line,
            gain,
        )


def _single_buffered(timeline: Timeline) -> Iterator[Hint]:
    """Loads that wait for the last use of the tile they write: WAR on the `loads` ring."""
    decoded, played = timeline.decoded, timeline.played
    loads = QUEUES.index("loads")
    waits: dict[tuple[str, int], float] = {}
    previous: dict[int, float] = {}
    for index, price in enumerate(decoded.costs):
        if price.queue != loads or price.transfer is None:
            continue
        queue = decoded.queues[index]
        storage = timeline.instruction(index)["dst"].storage
        users = [
            j
            for j in decoded.depends[index] or ()
            if any(t.storage is storage for t in tensors_of(timeline.instruction(j)))
        ]
        ready = max((played.end[j] for j in users), default=0.0)
        waited = min(ready, played.start[index]) - previous.get(queue, timeline.machine.launch_ns)
        previous[queue] = played.release[index]
        if waited > 0:
            instruction = timeline.instruction(index)
            key = (instruction.file, instruction.line)
            waits[key] = waits.get(key, 0.0) + waited
    for (file, line), time in waits.items():
        yield Hint(
            "single-buffered",
            "the load waits until the tile it overwrites has been used. Allocate the tile inside "
            "the loop, so that the next iteration's load runs while this one computes",
            file,
            line,
            time / 1000,
        )


def _table_thrash(timeline: Timeline) -> Iterator[Hint]:
    loads = list(timeline.played.tables)
    if len(loads) < 4:
        return
    names = {_function(timeline, i) for i in loads}
    instruction = timeline.instruction(loads[-1])
    yield Hint(
        "table-thrash",
        f"{len(loads)} activation tables are loaded, as {', '.join(sorted(names))} alternate; "
        f"each load takes {timeline.machine.scalar_table_load_ns:.0f} ns. Do all of one function "
        "before the next, or compute one of them on the Vector engine",
        instruction.file,
        instruction.line,
        len(loads) * timeline.machine.scalar_table_load_ns / 1000,
    )


def _function(timeline: Timeline, index: int) -> str:
    operator = timeline.instruction(index).get("op")
    return str(getattr(operator, "name", operator))


def _vector_copies(timeline: Timeline) -> Iterator[Hint]:
    """A Vector engine that is busy with copies while the Scalar engine idles."""
    use = timeline.utilisation
    vector = max((u for n, u in use.items() if n.endswith("vector")), default=0.0)
    scalar = min((u for n, u in use.items() if n.endswith("scalar")), default=1.0)
    if vector < 0.5 or scalar > 0.7 * vector:
        return
    for (file, line), indices in _by_line(timeline, "copy").items():
        time = sum(timeline.played.release[i] - timeline.played.start[i] for i in indices)
        yield Hint(
            "vector-copies",
            f"the Vector engine is {vector:.0%} busy, the Scalar engine {scalar:.0%}: give every "
            "other of these copies to it (engine=nisa.engine.scalar)",
            file,
            line,
            time / 2000,
        )


def _issue_bound(timeline: Timeline) -> Iterator[Hint]:
    """Many small transfers: the path is spent on starting DMAs, not on bytes."""
    causes = timeline.critical_path_us
    starting = causes.get(ISSUE, 0.0) + causes.get(LATENCY, 0.0)
    if starting < 0.15 * timeline.latency_us or starting < causes.get(BANDWIDTH, 0.0):
        return
    moved = [
        (index, price.transfer.size_bytes)
        for index, price in enumerate(timeline.decoded.costs)
        if price.transfer is not None
    ]
    if not moved:
        return
    median = float(np.median([size for _, size in moved]))
    instruction = timeline.instruction(moved[len(moved) // 2][0])
    yield Hint(
        "small-transfers",
        f"{len(moved)} DMAs of {median / 1024:.0f} KiB (median): starting them takes longer than "
        "moving their bytes. Move more with each: one DMA for several tiles",
        instruction.file,
        instruction.line,
        starting,
    )


def _cold_tensor(timeline: Timeline) -> Iterator[Hint]:
    """A Tensor engine that never gets warm, as it idles between its instructions."""
    lanes = timeline.decoded.queues
    tensor = QUEUES.index("tensor")
    members = [i for i, q in enumerate(lanes) if q % QUEUE_COUNT == tensor]
    if len(members) < 16 or timeline.played.cold < 0.5 * len(members):
        return
    time = sum(timeline.played.release[i] - timeline.played.start[i] for i in members)
    instruction = timeline.instruction(members[len(members) // 2])
    yield Hint(
        "cold-tensor",
        f"{timeline.played.cold} of {len(members)} Tensor instructions run at the cold clock: it "
        "idles too long between them. Group matmuls, and keep several PSUM banks in flight",
        instruction.file,
        instruction.line,
        time / 2000,
    )


PATTERNS: tuple[Callable[[Timeline], Iterator[Hint]], ...] = (
    _short_rows,
    _fp32_matmul,
    _single_buffered,
    _table_thrash,
    _vector_copies,
    _issue_bound,
    _cold_tensor,
)
