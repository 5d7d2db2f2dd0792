"""`profile`: how long a kernel is predicted to take, and why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from simulator.cli.launch import ARGUMENTS, EXIT_CODES, Launch, add_launch, read_launch, targets
from simulator.cli.output import Output
from simulator.cli.problems import BROKEN, GOOD, BadInput, violations_of
from simulator.targets import Target
from simulator.timing import Timeline, predict, report
from simulator.timing.perfetto import write_trace

_EXAMPLES = """examples:
  python -m simulator profile kernels/silu.py:nki_silu_kernel --arg x=bf16[256,2048]
  python -m simulator profile old.py:kernel --arg x=f32[64,32] --compare new.py:kernel
  python -m simulator profile k.py:kernel --arg x=f32[64,32] --target trn3 --trace trace.json"""


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "profile",
        help="how long a kernel is predicted to take, and why",
        description="Play a kernel's Program on the engines of a target. Every time is predicted, "
        "none is measured; docs/timing.md says how well that fits.",
        epilog="\n\n".join(
            (_EXAMPLES, ARGUMENTS, EXIT_CODES.format(broken="the kernel breaks a rule"))
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_launch(parser)
    parser.add_argument(
        "--compare", metavar="FILE:KERNEL", help="another kernel, with the same arguments"
    )
    parser.add_argument(
        "--trips",
        action="append",
        default=[],
        metavar="[LINE=]COUNT",
        help="how often dynamic loops run whose bounds are registers: all, or the one at a line",
    )
    parser.add_argument("--trace", metavar="FILE.json", help="write a trace for ui.perfetto.dev")
    parser.add_argument(
        "--width", type=int, default=72, help="columns of the lane view (default: 72)"
    )


def run(args: argparse.Namespace) -> int:
    """Predict and print; returns the exit code."""
    output = Output(args.json)
    (target,) = targets(args.target)
    trips = _trips(args.trips)
    launches = [read_launch(args, output)]
    if args.compare:
        other = argparse.Namespace(**{**vars(args), "kernel": args.compare})
        launches.append(read_launch(other, output))
    timelines = []
    for launch in launches:
        timeline = _predict(launch, target, trips, output)
        if timeline is None:
            return BROKEN
        timelines.append(timeline)
    if args.trace:
        _write(timelines[-1], args.trace)
    if args.compare:
        output.document({"ok": True, **report.comparison(*timelines)})
        text = report.compare(*timelines)
    else:
        output.document({"ok": True, **launches[0].described(), **report.as_dict(timelines[0])})
        text = report.text(timelines[0], max(20, args.width))
    for line in text.splitlines():
        output.line(line)
    return GOOD


def _predict(
    launch: Launch, target: Target, trips: int | dict[Any, int] | None, output: Output
) -> Timeline | None:
    """The timeline; None if the kernel breaks a rule, which is printed."""
    try:
        with output.kernel_prints():
            program = launch.specialise(target)
    except Exception as error:
        found = violations_of(error)
        output.violations(found)
        dicts = [violation.as_dict() for violation in found]
        output.document({**launch.described(), "ok": False, "violations": dicts})
        return None
    try:
        return predict(program, trips=trips)
    except ValueError as error:
        raise BadInput(str(error), "Loops: --trips COUNT, or --trips LINE=COUNT") from None


def _trips(given: list[str]) -> int | dict[Any, int] | None:
    """The value of --trips for `predict`."""
    by_line: dict[Any, int] = {}
    for text in given:
        line, _, count = text.rpartition("=")
        if not count.isdigit() or (line and not line.isdigit()):
            raise BadInput(f"--trips {text} is no count", "Write --trips 16, or --trips 42=16")
        if not line:
            return int(count)
        by_line[int(line)] = int(count)
    return by_line or None


def _write(timeline: Timeline, path: str) -> None:
    try:
        write_trace(timeline, Path(path))
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}", "Name a file") from None
