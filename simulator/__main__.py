"""`python -m simulator`: the simulator's command line."""

from __future__ import annotations

import argparse
import sys

from simulator import finder


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    enable = commands.add_parser(
        "enable", help="make `import nki` find the simulator in this virtual environment"
    )
    enable.add_argument("root", help="the folder that holds the package simulator")
    arguments = parser.parse_args()
    if sys.prefix == sys.base_prefix:
        parser.error("run this with the Python of a virtual environment")
    print(f"import nki is enabled by {finder.enable(arguments.root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
