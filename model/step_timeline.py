"""One Perfetto trace of a whole run of a graph: every layer, every op, every engine.

Open the file in ui.perfetto.dev, which takes it gzipped. Its processes are the graph (lanes: ops,
collectives) and the logical core's physical cores with their engines and DMA queues. Ops follow
each other; a kernel's instructions are its timeline, moved to where the op begins. Layers that
call the same kernel at the same shapes show the same timeline again. Every time is predicted.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.timing import Timeline
from simulator.timing.perfetto import events

GRAPH_PID = 100
"""The graph's process; the cores' are 0 and 1."""
OPS_LANE, COLLECTIVES_LANE = 1, 2
SAME_US = 1e-4
"""Times this close are the same; sums of floats differ by less."""
LANES = 100
"""More than a core has."""


@dataclass(frozen=True)
class Slot:
    """An op's place in a run of the graph."""

    op: str
    kernel: str
    layer: int | None
    begin_us: float
    predicted_us: float
    collective: bool = False
    timeline: Timeline | None = None
    """Of its kernel; None for references and collectives, which have no engine lanes."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`layer 3 rope` or `lm_head`."""
        return self.op if self.layer is None else f"layer {self.layer} {self.op}"


def graph_events(slots: Iterable[Slot], target: str) -> Iterator[dict[str, Any]]:
    """Trace events of a run, in µs from its begin."""
    for lane in (_name("process", GRAPH_PID, f"{target} graph (predicted)"),
                 _name("thread", GRAPH_PID, "ops", OPS_LANE),
                 _name("thread", GRAPH_PID, "collectives", COLLECTIVES_LANE)):  # fmt: skip
        yield lane
    replays: dict[int, _Replay] = {}
    named: set[tuple[int, int]] = set()
    for slot in slots:
        yield {
            "ph": "X", "name": slot.name, "pid": GRAPH_PID,
            "tid": COLLECTIVES_LANE if slot.collective else OPS_LANE,
            "ts": _rounded(slot.begin_us), "dur": _rounded(slot.predicted_us),
            "args": {"kernel": slot.kernel, **slot.details},
        }  # fmt: skip
        if slot.timeline is None:
            continue
        replay = replays.setdefault(id(slot.timeline), _Replay(slot.timeline))
        for lane in replay.lanes:
            where = (lane["pid"], lane.get("tid", -1))
            if where not in named:
                named.add(where)
                yield lane
        yield from replay.at(slot.begin_us)


class _Replay:
    """A kernel's own trace, to be shown again at another time."""

    def __init__(self, timeline: Timeline) -> None:
        found = list(events(timeline))
        self.lanes = [event for event in found if event["ph"] == "M"]
        self.slices = [event for event in found if event["ph"] == "X"]
        self.launch_us = timeline.machine.launch_ns / 1000
        self._spread()

    def _spread(self) -> None:
        """Move slices that overlap with others of their lane to lanes below it.

        Several DMAs of a ring move data at once; a viewer shows one slice of a lane at a time.
        """
        names = {(e["pid"], e["tid"]): e["args"]["name"] for e in self.lanes if "tid" in e}
        ends: dict[tuple[int, int], list[float]] = {}
        self.slices.sort(key=lambda event: float(event["ts"]))
        for event in self.slices:
            lane = (event["pid"], event["tid"])
            below = ends.setdefault(lane, [])
            free = (n for n, end in enumerate(below) if end <= event["ts"] + SAME_US)
            number = next(free, len(below))
            if number == len(below):
                below.append(0.0)
                if number:
                    name = f"{names[lane]} ({number + 1})"
                    tid = lane[1] + number * LANES
                    self.lanes.append(_name("thread", lane[0], name, tid))
            below[number] = event["ts"] + event["dur"]
            event["tid"] += number * LANES

    def at(self, begin_us: float) -> Iterator[dict[str, Any]]:
        """Its slices, the launch left out, from `begin_us` on."""
        for event in self.slices:
            start = max(0.0, event["ts"] - self.launch_us)
            yield {
                "ph": "X", "name": event["name"], "pid": event["pid"], "tid": event["tid"],
                "ts": _rounded(begin_us + start), "dur": _rounded(event["dur"]),
            }  # fmt: skip


def _name(kind: str, pid: int, name: str, tid: int | None = None) -> dict[str, Any]:
    lane = {} if tid is None else {"tid": tid}
    return {"ph": "M", "name": f"{kind}_name", "pid": pid, **lane, "args": {"name": name}}


def _rounded(time_us: float) -> float:
    """To a tenth of a ns."""
    return round(time_us, 4)


def write_graph_trace(slots: Iterable[Slot], target: str, about: str, path: Path) -> None:
    """Write the trace of a run, gzipped, whole or not at all.

    Args:
        slots: the run's ops, in order.
        target: of the predictions.
        about: what run it is, for the reader of the file.
        path: ends in `.json.gz`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # No time stamp and no name inside: the same run makes the same bytes.
        with os.fdopen(handle, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            head = {"displayTimeUnit": "ns", "otherData": {"about": about}}
            file.write((json.dumps(head)[:-1] + ', "traceEvents": [\n').encode())
            for number, event in enumerate(graph_events(slots, target)):
                text = json.dumps(event, separators=(",", ":"))
                file.write(((",\n" if number else "") + text).encode())
            file.write(b"\n]}\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
