"""`enable`: make `import nki` find the simulator in a virtual environment.

It runs before any package is installed, so it imports the standard library only.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from simulator import finder


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "enable", help="make `import nki` find the simulator in this virtual environment"
    )
    parser.add_argument("root", help="the folder that holds the package simulator")


def run(args: argparse.Namespace) -> int:
    """Write the .pth file; 2 if this is no virtual environment."""
    if sys.prefix == sys.base_prefix:
        print(
            "error: this Python is that of no virtual environment. Run this with the Python of "
            "a virtual environment",
            file=sys.stderr,
        )
        return 2
    print(f"import nki is enabled by {finder.enable(args.root)}")
    return 0


def main() -> int:
    """The command alone."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    add_parser(parser.add_subparsers(dest="command", required=True))
    return run(parser.parse_args())
