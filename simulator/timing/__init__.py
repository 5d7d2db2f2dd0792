"""How long a Program takes on trn2 or trn3, and why. See docs/timing.md."""

from simulator.timing.machine import Machine, load_machine
from simulator.timing.predict import predict
from simulator.timing.timeline import Timeline

__all__ = ["Machine", "Timeline", "load_machine", "predict"]
