"""The NKI API on a CPU. See `simulator` for what it is and how it is found."""

from nki import collectives, isa, language, typing
from simulator.kernel import Kernel, jit, simulate

__all__ = ["Kernel", "collectives", "isa", "jit", "language", "simulate", "typing"]
