"""`python -m simulator`: the simulator's command line."""

import sys

from simulator import finder  # noqa: F401  (`import nki` works from here on)


def main() -> int:
    """Run the command line; `enable` works before any package is installed."""
    if sys.argv[1:2] == ["enable"]:
        from simulator import enable

        return enable.main()
    from simulator.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
