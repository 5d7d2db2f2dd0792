"""`show`: a kernel's Program as text."""

from __future__ import annotations

import argparse
import linecache
from typing import Any

from simulator.cli.launch import ARGUMENTS, EXIT_CODES, add_launch, read_launch, targets
from simulator.cli.output import Output, shown_path
from simulator.cli.problems import BROKEN, GOOD, violations_of
from simulator.program import Instruction, Program

_EXAMPLES = """examples:
  python -m simulator show kernels/silu.py:nki_silu_kernel --arg x=bf16[256,16]
  python -m simulator show k.py:kernel --arg x=f32[64,32] --source --engine vector --limit 20"""


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "show",
        help="the instructions a kernel becomes",
        description="Specialise a kernel and print its Program: storages and instructions.",
        epilog="\n\n".join(
            (_EXAMPLES, ARGUMENTS, EXIT_CODES.format(broken="the kernel breaks a rule"))
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_launch(parser)
    parser.add_argument("--source", action="store_true", help="the kernel's lines in between")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N instructions")
    parser.add_argument(
        "--engine", action="append", metavar="NAME", help="only this engine's; may be repeated"
    )


def run(args: argparse.Namespace) -> int:
    """Specialise and print; returns the exit code."""
    output = Output(args.json)
    (target,) = targets(args.target)
    launch = read_launch(args, output)
    try:
        with output.kernel_prints():
            program = launch.specialise(target)
    except Exception as error:
        found = violations_of(error)
        output.violations(found)
        output.document({**launch.described(), "ok": False, "violations": _dicts(found)})
        return BROKEN
    chosen = [
        (position, instruction)
        for position, instruction in enumerate(program.instructions)
        if not args.engine or instruction.engine in args.engine
    ]
    shown = chosen if args.limit is None else chosen[: max(args.limit, 0)]
    if not args.json:
        _print(output, program, shown, args.source)
        if len(shown) < len(program.instructions):
            output.line(f"  {len(shown):,} of {len(program.instructions):,} instructions")
    output.document(
        {
            **launch.described(),
            "ok": True,
            "target": target.name,
            "storages": _storages(program),
            "instruction_count": len(program.instructions),
            "instructions": [_instruction(position, i, args.source) for position, i in shown],
            "results": [result.storage.index for result in program.results],
        }
    )
    return GOOD


def _dicts(found: list[Any]) -> list[dict[str, Any]]:
    return [violation.as_dict() for violation in found]


def _print(
    output: Output, program: Program, shown: list[tuple[int, Instruction]], source: bool
) -> None:
    """The Program's own text, its instructions replaced by those to show."""
    head, tail = [], []
    for line in str(program).splitlines():
        if line.startswith("  return"):
            tail.append(line)
        elif not line.startswith("  ") or line.startswith(("  %", "  parameter ")):
            head.append(line)
    for line in head:
        output.line(line)
    last = ("", 0)
    for _, instruction in shown:
        place = (instruction.file, instruction.line)
        if source and place != last:
            text = linecache.getline(*place).strip()
            output.line((f"{shown_path(place[0])}:{place[1]}", "cyan"), f"  {text}", indent=2)
            last = place
        where = "" if source else f"  # {shown_path(place[0])}:{place[1]}"
        output.line(str(instruction), (where, "cyan"), indent=4 if source else 2)
    for line in tail:
        output.line(line)


def _storages(program: Program) -> list[dict[str, Any]]:
    return [
        {
            "index": storage.index,
            "name": storage.name,
            "role": storage.role,
            "dtype": str(storage.dtype),
            "shape": storage.shape,
            "buffer": storage.buffer.value,
        }
        for storage in program.storages
    ]


def _instruction(position: int, instruction: Instruction, source: bool) -> dict[str, Any]:
    facts = {
        "position": position,
        "engine": instruction.engine,
        "name": instruction.spec.name,
        "core": instruction.core,
        "text": str(instruction),
        "file": instruction.file,
        "line": instruction.line,
    }
    if source:
        facts["source"] = linecache.getline(instruction.file, instruction.line).strip()
    return facts
