"""A Program played on a machine: what `predict` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from simulator.timing import analyse
from simulator.timing.cost import ENGINES, QUEUES, Cost
from simulator.timing.decode import QUEUE_COUNT, Decoded
from simulator.timing.machine import Machine
from simulator.timing.play import Played

if TYPE_CHECKING:
    from simulator.program import Instruction, Program


@dataclass(frozen=True)
class Roofline:
    """The least time that the machine's peaks allow, and what sets it."""

    compute_us: float
    """MACs at the Tensor engine's peak for their dtypes."""
    memory_us: float
    """HBM bytes at the cores' share of HBM bandwidth."""

    @property
    def bound_us(self) -> float:
        """The larger of both."""
        return max(self.compute_us, self.memory_us)

    @property
    def bound(self) -> str:
        """`compute` or `memory`."""
        return "compute" if self.compute_us >= self.memory_us else "memory"


@dataclass(frozen=True)
class Line:
    """A line of the kernel: what its instructions took."""

    file: str
    line: int
    count: int
    """Instructions."""
    busy_us: float
    """On engines, DMA engines included."""
    critical_us: float
    """On the critical path."""
    queues: tuple[str, ...]


@dataclass
class Timeline:
    """A prediction. All times are predicted for `machine`, none is measured."""

    program: Program
    machine: Machine
    decoded: Decoded = field(repr=False)
    played: Played = field(repr=False)

    def __len__(self) -> int:
        """Instructions played; those of dynamic loops as often as they run."""
        return len(self.decoded.costs)

    @property
    def target(self) -> str:
        """The machine's name."""
        return self.machine.name

    @property
    def assumptions(self) -> list[str]:
        """What was assumed about dynamic loops."""
        return self.decoded.assumptions

    @cached_property
    def latency_ns(self) -> float:
        """From the kernel's launch to the end of its last instruction, in ns."""
        ends = [max(self.played.end, default=0.0), max(self.played.release, default=0.0)]
        return max(ends) + self.machine.finish_ns

    @property
    def latency_us(self) -> float:
        """The predicted latency in µs."""
        return self.latency_ns / 1000

    @property
    def lanes(self) -> tuple[str, ...]:
        """Names of the queues, core by core."""
        if self.program.lnc == 1:
            return QUEUES
        return tuple(f"{core}.{queue}" for core in range(self.program.lnc) for queue in QUEUES)

    @cached_property
    def busy_us(self) -> dict[str, float]:
        """Per engine: time in which it works on instructions; `dma`: some DMA engine moves data."""
        return analyse.busy_us(self)

    @property
    def utilisation(self) -> dict[str, float]:
        """Busy time over latency, 0 to 1."""
        return {name: busy / self.latency_us for name, busy in self.busy_us.items()}

    @cached_property
    def critical_path_us(self) -> dict[str, float]:
        """Where the time goes, by cause; the values add up to the latency."""
        return analyse.by_cause(self)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates on the Tensor engine, transposes not counted."""
        return sum(price.macs * n for price, n in self.cost_counts)

    @cached_property
    def hbm_bytes(self) -> int:
        """Bytes read from and written to HBM."""
        return sum(p.transfer.hbm_bytes * n for p, n in self.cost_counts if p.transfer is not None)

    @cached_property
    def cost_counts(self) -> list[tuple[Cost, int]]:
        """Each distinct cost, and how often it was played."""
        counts: dict[int, int] = {}
        prices: dict[int, Cost] = {}
        for price in self.decoded.costs:
            counts[id(price)] = counts.get(id(price), 0) + 1
            prices[id(price)] = price
        return [(prices[key], n) for key, n in counts.items()]

    @cached_property
    def roofline(self) -> Roofline:
        """The bound by compute and by memory."""
        peak = self.machine.tensor_macs_per_ns * self.program.lnc
        compute = sum(p.macs * p.peak_passes / p.peak_rows * n for p, n in self.cost_counts) / peak
        memory = self.hbm_bytes / (self.machine.hbm_core_bytes_per_ns * self.program.lnc)
        return Roofline(compute / 1000, memory / 1000)

    @property
    def gap(self) -> float:
        """Latency over the roofline's bound; 0 if nothing bounds it."""
        bound = self.roofline.bound_us
        return self.latency_us / bound if bound else 0.0

    @property
    def mfu(self) -> float:
        """MACs over what the Tensor engines could do in bf16 in the latency, 0 to 1."""
        peak = self.machine.tensor_macs_per_ns * self.program.lnc
        return self.macs / (self.latency_ns * peak)

    @property
    def mbu(self) -> float:
        """HBM bytes over what the cores' share of HBM could move in the latency, 0 to 1."""
        peak = self.machine.hbm_core_bytes_per_ns * self.program.lnc
        return self.hbm_bytes / (self.latency_ns * peak)

    @cached_property
    def high_water(self) -> dict[str, int]:
        """The most bytes per partition of SBUF and PSUM that live at once."""
        return analyse.high_water(self.program)

    @cached_property
    def lines(self) -> list[Line]:
        """The kernel's lines, those first that take most of the critical path."""
        return analyse.lines(self)

    @cached_property
    def starts(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """When each played instruction started, in ns."""
        return np.frombuffer(self.played.start, dtype=np.float64)

    def instruction(self, index: int) -> Instruction:
        """The instruction played as number `index`."""
        return self.decoded.instructions[index]

    def queue_name(self, index: int) -> str:
        """The lane of a played instruction."""
        return self.lanes[self.decoded.queues[index]]

    def engine_name(self, index: int) -> str:
        """Its engine: DMA rings belong to `dma`."""
        queue = self.decoded.queues[index] % QUEUE_COUNT
        return QUEUES[queue] if queue < len(ENGINES) else "dma"
