"""A Timeline as JSON, as a table, as lanes of text, and two of them side by side."""

from __future__ import annotations

import linecache
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.timing.decode import QUEUE_COUNT
from simulator.timing.hints import hints

if TYPE_CHECKING:
    from simulator.timing.timeline import Line, Timeline

SCHEMA = "nki-assay/timeline/1"
SHOWN_LINES = 8
_SHADES = " ░▒▓█"


def as_dict(timeline: Timeline) -> dict[str, Any]:
    """Everything a Timeline says, as JSON-able values (schema: timeline.schema.json)."""
    roofline = timeline.roofline
    return {
        "schema": SCHEMA,
        "kind": "predicted",
        "program": timeline.program.name,
        "device": timeline.target,
        "lnc": timeline.program.lnc,
        "instructions": len(timeline),
        "assumptions": timeline.assumptions,
        "latency_us": timeline.latency_us,
        "busy_us": timeline.busy_us,
        "utilisation": timeline.utilisation,
        "critical_path_us": timeline.critical_path_us,
        "macs": timeline.macs,
        "hbm_bytes": timeline.hbm_bytes,
        "mfu": timeline.mfu,
        "mbu": timeline.mbu,
        "sbuf_bytes_per_partition": timeline.high_water["sbuf"],
        "psum_bytes_per_partition": timeline.high_water["psum"],
        "roofline": {
            "bound": roofline.bound,
            "bound_us": roofline.bound_us,
            "compute_us": roofline.compute_us,
            "memory_us": roofline.memory_us,
            "gap": timeline.gap,
        },
        "lines": [
            {
                "file": line.file,
                "line": line.line,
                "instructions": line.count,
                "busy_us": line.busy_us,
                "critical_us": line.critical_us,
                "queues": list(line.queues),
            }
            for line in timeline.lines
        ],
        "hints": [
            {
                "pattern": hint.pattern,
                "message": hint.message,
                "file": hint.file,
                "line": hint.line,
                "cost_us": hint.cost_us,
            }
            for hint in hints(timeline)
        ],
    }


def text(timeline: Timeline, width: int = 72) -> str:
    """The report a person reads."""
    parts = [_head(timeline), _engines(timeline), _causes(timeline), _lines(timeline)]
    parts += [lanes(timeline, width), _hints(timeline)]
    return "\n\n".join(part for part in parts if part)


def _head(timeline: Timeline) -> str:
    roofline = timeline.roofline
    water = timeline.high_water
    cores = f", {timeline.program.lnc} cores" if timeline.program.lnc > 1 else ""
    rows = [
        f"{timeline.program.name}: {timeline.latency_us:,.2f} µs predicted for {timeline.target}"
        f"{cores} ({len(timeline):,} instructions)",
        f"  roofline {roofline.bound_us:,.2f} µs ({roofline.bound}; compute "
        f"{roofline.compute_us:,.2f}, memory {roofline.memory_us:,.2f}): "
        f"{timeline.gap:.2f} × the bound",
        f"  MFU {timeline.mfu:.1%} of bf16 peak, MBU {timeline.mbu:.1%}; "
        f"{timeline.macs:,} MACs, {timeline.hbm_bytes:,} HBM bytes",
        f"  SBUF {water['sbuf']:,} B, PSUM {water['psum']:,} B per partition at most",
    ]
    rows += [f"  assumed: {assumption}" for assumption in timeline.assumptions]
    return "\n".join(rows)


def _engines(timeline: Timeline) -> str:
    rows = ["engine            busy µs    share"]
    for name, busy in timeline.busy_us.items():
        rows.append(f"  {name:<12} {busy:>10,.2f}  {busy / timeline.latency_us:>6.1%}")
    return "\n".join(rows)


def _causes(timeline: Timeline) -> str:
    rows = ["critical path          µs    share"]
    for cause, time in timeline.critical_path_us.items():
        rows.append(f"  {cause:<16} {time:>8,.2f}  {time / timeline.latency_us:>6.1%}")
    return "\n".join(rows)


def _lines(timeline: Timeline) -> str:
    shown = [line for line in timeline.lines[:SHOWN_LINES] if line.file]
    if not shown:
        return ""
    rows = ["line                     critical µs   busy µs   count"]
    for line in shown:
        rows.append(
            f"  {place(line):<24} {line.critical_us:>8,.2f}  {line.busy_us:>9,.2f} {line.count:>7,}"
            f"  {source(line)}"
        )
    return "\n".join(rows)


def place(line: Line) -> str:
    """FILE:LINE, the file without its folders."""
    return f"{os.path.basename(line.file)}:{line.line}"


def source(line: Line) -> str:
    """The line's text, shortened."""
    found = linecache.getline(line.file, line.line).strip()
    return found if len(found) <= 48 else found[:47] + "…"


def lanes(timeline: Timeline, width: int = 72) -> str:
    """One row per engine and DMA ring: how busy it is over time, darker is busier."""
    played = timeline.played
    queues = np.frombuffer(timeline.decoded.queues, dtype=np.uint8)
    start = timeline.starts
    stop = np.frombuffer(played.release, dtype=np.float64).copy()
    for index, (_, last) in played.flow.items():
        if queues[index] % QUEUE_COUNT >= 5:
            stop[index] = last
    total = timeline.latency_ns
    rows = [f"{'':<10}0 µs{f'{timeline.latency_us:,.2f} µs':>{width - 4}}"]
    for number, name in enumerate(timeline.lanes):
        members = np.flatnonzero(queues == number)
        if len(members):
            filled = _coverage(start[members], stop[members], total, width)
            shades = "".join(_SHADES[min(4, int(np.ceil(4 * share)))] for share in filled)
            rows.append(f"{name:<10}{shades}")
    return "\n".join(rows)


def _coverage(
    start: np.ndarray[Any, Any], stop: np.ndarray[Any, Any], total: float, width: int
) -> np.ndarray[Any, Any]:
    """The share of each of `width` slots in which something runs."""
    order = np.argsort(start, kind="stable")
    begin, end = start[order], np.maximum.accumulate(stop[order])
    begin = np.maximum(begin, np.concatenate([[0.0], end[:-1]]))  # no overlaps
    edges = np.linspace(0.0, total, width + 1)

    def worked(until: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Time worked before each of these moments."""
        spans = np.maximum(end - begin, 0.0)
        before = np.concatenate([[0.0], np.cumsum(spans)])
        at = np.searchsorted(begin, until, side="right")
        last = np.maximum(at - 1, 0)
        over = np.where(at > 0, np.maximum(end[last] - np.maximum(until, begin[last]), 0.0), 0.0)
        found: np.ndarray[Any, Any] = before[at] - over
        return found

    share: np.ndarray[Any, Any] = np.clip(np.diff(worked(edges)) / (total / width), 0.0, 1.0)
    return share


def _hints(timeline: Timeline) -> str:
    rows = []
    for number, hint in enumerate(hints(timeline), 1):
        where = f"{os.path.basename(hint.file)}:{hint.line}"
        rows.append(f"  {number}. {where} [{hint.pattern}, {hint.cost_us:,.2f} µs] {hint.message}")
    return "\n".join(["hints", *rows]) if rows else ""


def compare(first: Timeline, second: Timeline) -> str:
    """Two predictions side by side, and what changed most."""
    rows = [f"{'predicted':<26} {_title(first):>24} {_title(second):>24}   change"]
    for name, a, b in _values(first, second):
        change = "" if not a else f"{100 * (b / a - 1):+8.1f} %"
        rows.append(f"  {name:<24} {a:>24,.2f} {b:>24,.2f}  {change}")
    return "\n".join([*rows, "", *_verdict(first, second)])


def comparison(first: Timeline, second: Timeline) -> dict[str, Any]:
    """The comparison as JSON-able values."""
    return {
        "first": as_dict(first),
        "second": as_dict(second),
        "speedup": first.latency_ns / second.latency_ns,
        "changed": _verdict(first, second),
    }


def _title(timeline: Timeline) -> str:
    return f"{timeline.program.name[-17:]} {timeline.target}"


def _values(first: Timeline, second: Timeline) -> list[tuple[str, float, float]]:
    rows = [
        ("latency µs", first.latency_us, second.latency_us),
        ("roofline bound µs", first.roofline.bound_us, second.roofline.bound_us),
        ("instructions", len(first), len(second)),
        ("MFU %", 100 * first.mfu, 100 * second.mfu),
        ("MBU %", 100 * first.mbu, 100 * second.mbu),
        ("HBM MB", first.hbm_bytes / 1e6, second.hbm_bytes / 1e6),
        ("MMACs", first.macs / 1e6, second.macs / 1e6),
    ]
    for kind, a, b in (
        ("busy", first.busy_us, second.busy_us),
        ("path", first.critical_path_us, second.critical_path_us),
    ):
        for name in dict.fromkeys((*a, *b)):
            rows.append((f"{kind} {name} µs", a.get(name, 0.0), b.get(name, 0.0)))
    return [row for row in rows if row[1] or row[2]]


def _verdict(first: Timeline, second: Timeline) -> list[str]:
    ratio = first.latency_ns / second.latency_ns
    faster = "faster" if ratio >= 1 else "slower"
    name = second.program.name
    rows = [f"{name} is predicted {max(ratio, 1 / ratio):.2f} × {faster} on {second.target}"]
    causes = dict.fromkeys((*first.critical_path_us, *second.critical_path_us))
    changes = {
        cause: second.critical_path_us.get(cause, 0.0) - first.critical_path_us.get(cause, 0.0)
        for cause in causes
    }
    for cause, change in sorted(changes.items(), key=lambda item: -abs(item[1]))[:3]:
        if change:
            rows.append(f"  {cause}: {change:+,.2f} µs on the critical path")
    return rows
