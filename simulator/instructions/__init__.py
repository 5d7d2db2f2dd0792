"""The instruction table: what checker, executor and timing model read."""

from simulator.instructions import (
    affine,
    collectives,
    control,
    cores,
    dma,
    elementwise,
    gathers,
    gpsimd,
    microscaling,
    movement,
    random,
    scalar_engine,
    selection,
    statistics,
    tensor_engine,
    top8,
    vector,
)
from simulator.instructions.table import INSTRUCTIONS, InstructionSpec

__all__ = [
    "INSTRUCTIONS", "InstructionSpec", "affine", "collectives", "control", "cores", "dma",
    "elementwise", "gathers", "gpsimd", "microscaling", "movement", "random", "scalar_engine",
    "selection", "statistics", "tensor_engine", "top8", "vector",
]  # fmt: skip
