"""The NKI API on a CPU. See `simulator` for what it is and how it is found."""

from nki import collectives, compiler, dtype, isa, language, typing
from simulator.kernel import Kernel, jit, simulate

__all__ = [
    "Kernel", "collectives", "compiler", "dtype", "isa", "jit", "language", "simulate", "typing",
]  # fmt: skip
