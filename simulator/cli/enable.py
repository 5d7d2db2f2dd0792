"""`enable`: make `import nki` find the simulator in a virtual environment."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from simulator import finder
from simulator.cli.problems import GOOD, BadInput


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "enable", help="make `import nki` find the simulator in this virtual environment"
    )
    parser.add_argument("root", help="the folder that holds the package simulator")


def run(args: argparse.Namespace) -> int:
    """Write the .pth file.

    Raises:
        BadInput: this is no virtual environment.
    """
    if sys.prefix == sys.base_prefix:
        raise BadInput(
            "this Python is that of no virtual environment",
            "Run this with the Python of a virtual environment",
        )
    print(f"import nki is enabled by {finder.enable(args.root)}")
    return GOOD
