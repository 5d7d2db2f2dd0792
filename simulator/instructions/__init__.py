"""The instruction table: what the checker, the executor and (later) the timing model read."""

from simulator.instructions import elementwise, movement, scalar_engine
from simulator.instructions.table import InstructionSpec

INSTRUCTIONS: dict[str, InstructionSpec] = {
    spec.name: spec
    for family in (movement.SPECS, elementwise.SPECS, scalar_engine.SPECS)
    for spec in family
}
