"""The instruction table: what checker, executor and (later) timing model read."""

from simulator.instructions import control, elementwise, movement, scalar_engine
from simulator.instructions.table import INSTRUCTIONS, InstructionSpec

__all__ = ["INSTRUCTIONS", "InstructionSpec", "control", "elementwise", "movement", "scalar_engine"]
