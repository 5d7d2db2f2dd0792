"""`python -m simulator`: the simulator's command line."""

import sys

from simulator import finder  # noqa: F401  (`import nki` works from here on)
from simulator.cli import main

if __name__ == "__main__":
    sys.exit(main())
