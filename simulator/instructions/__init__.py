"""The instruction table: what checker, executor and timing model read."""

from simulator.instructions import (
    control,
    cores,
    elementwise,
    gpsimd,
    movement,
    random,
    scalar_engine,
    tensor_engine,
    vector,
)
from simulator.instructions.table import INSTRUCTIONS, InstructionSpec

__all__ = [
    "INSTRUCTIONS", "InstructionSpec", "control", "cores", "elementwise", "gpsimd", "movement",
    "random", "scalar_engine", "tensor_engine", "vector",
]  # fmt: skip
