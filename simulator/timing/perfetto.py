"""A Timeline as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.timing.decode import QUEUE_COUNT

if TYPE_CHECKING:
    from simulator.timing.timeline import Timeline


def events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """One lane per engine and DMA queue; slices carry the kernel's line. Times in µs."""
    decoded, played = timeline.decoded, timeline.played
    for core in range(timeline.program.lnc):
        name = f"{timeline.target} core {core} (predicted)"
        yield {"ph": "M", "name": "process_name", "pid": core, "args": {"name": name}}
    for number, lane in enumerate(timeline.lanes):
        pid, tid = divmod(number, QUEUE_COUNT)
        yield _lane(pid, tid, lane)
        if lane.endswith(("loads", "stores", "gpsimd", "scalar")):
            yield _lane(pid, tid + QUEUE_COUNT, f"{lane} DMA transfers")
    for index, instruction in enumerate(decoded.instructions):
        pid, tid = divmod(decoded.queues[index], QUEUE_COUNT)
        begin = played.start[index]
        place = f"{os.path.basename(instruction.file)}:{instruction.line}"
        shown = {"line": place, "instruction": index, "readable_us": played.end[index] / 1000}
        name = f"{instruction.spec.name} {place}"
        yield _slice(pid, tid, name, begin, played.release[index], shown)
        flow = played.flow.get(index)
        moved = decoded.costs[index].transfer
        if flow is not None and moved is not None:
            details = {**shown, "bytes": moved.size_bytes, "descriptors": moved.descriptors}
            yield _slice(pid, tid + QUEUE_COUNT, name, *flow, details)
        loading = played.tables.get(index)
        if loading is not None:
            end = loading + timeline.machine.scalar_table_load_ns
            yield _slice(pid, tid, "activation table load", loading, end, {"line": place})


def _lane(pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}


def _slice(
    pid: int, tid: int, name: str, begin: float, end: float, details: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X", "name": name, "pid": pid, "tid": tid, "ts": begin / 1000,
        "dur": max(0.0, end - begin) / 1000, "args": details,
    }  # fmt: skip


def write_trace(timeline: Timeline, path: str | Path) -> None:
    """Write the trace, event by event."""
    with Path(path).open("w") as file:
        file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
        for number, event in enumerate(events(timeline)):
            file.write((",\n" if number else "") + json.dumps(event))
        file.write("\n]}\n")
