"""The simulator's command line: check, run or show any NKI kernel at given shapes.

A kernel is named FILE:KERNEL. The simulator is used even where the real SDK is installed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from simulator import enable
from simulator.cli import check, profile, run, show
from simulator.cli.output import Output
from simulator.cli.problems import BAD_INPUT, BadInput

COMMANDS = {"check": check, "run": run, "show": show, "profile": profile, "enable": enable}
"""Name -> module with `add_parser(subparsers)` and `run(args) -> exit code`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process if None.

    Returns:
        0 if all is good, 1 if a kernel breaks rules or differs from its reference, 2 if the
        command cannot be followed.
    """
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add_parser(commands)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed what is wrong, or the help
        return int(stop.code or 0)
    before = os.environ.get("NKI_SIMULATOR")
    os.environ["NKI_SIMULATOR"] = "1"  # `import nki` in the kernel's file finds the simulator
    try:
        code: int = COMMANDS[args.command].run(args)
        return code
    except BadInput as problem:
        Output(getattr(args, "json", False)).bad_input(problem)
        return BAD_INPUT
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    finally:
        if before is None:
            del os.environ["NKI_SIMULATOR"]
        else:
            os.environ["NKI_SIMULATOR"] = before
