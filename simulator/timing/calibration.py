"""The laws against the measured instruction table: trn2 profiles, row by row.

The table (machines/trn2_instructions.csv) holds per-opcode medians read from ten public trn2
profiles. Each row that a Program can hold is built as that instruction, and its latency, and
where the table has it its back-to-back interval, is predicted.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from simulator import dtypes
from simulator.context import CURRENT
from simulator.enums import engine
from simulator.instructions import elementwise, movement, scalar_engine
from simulator.operators import add as plus
from simulator.operators import exp, maximum, multiply
from simulator.program import Instruction, Program
from simulator.targets import TARGETS
from simulator.tensor import MemoryRegion, NkiTensor
from simulator.timing.cost import cost, load_cycles
from simulator.timing.machine import Machine, load_machine

TABLE = Path(__file__).parent / "machines" / "trn2_instructions.csv"
_DTYPES = {"fp32": dtypes.float32, "bfloat16": dtypes.bfloat16}

NOT_MODELLED = {
    "EVENT_SEMAPHORE": "its time is mostly waiting, which the simulation finds by itself; the "
    "shortest value is the constant *_semaphore_ns",
    "EVENT_SEMAPHORE_RANGE_CLEAR": "once per launch, in launch_ns",
    "NOTIFY": "once or twice per launch, in launch_ns and finish_ns",
    "DRAIN": "between the parts of a launch, in finish_ns",
    "NOP": "once per launch",
    "SET_ORDERING_MODE": "once per launch",
    "WRITE": "once per launch",
}
"""Opcodes of the sequencers that no Program holds, and where their time went."""


@dataclass(frozen=True)
class Row:
    """One measured number beside its prediction; trn2, ns."""

    row: str
    predicted_ns: float
    measured_ns: float

    @property
    def error_pct(self) -> float:
        """Prediction over measurement, less 100 %."""
        return 100 * (self.predicted_ns / self.measured_ns - 1)


@cache
def instruction_table_error(machine: Machine | None = None) -> tuple[Row, ...]:
    """Every row of the table that the model has a law for, latency and interval apart."""
    with TABLE.open() as file:
        entries = list(csv.DictReader(file))
    machine = machine or load_machine("trn2")
    return tuple(row for entry in entries for row in _compare(entry, machine))


def instruction_median_error_pct(machine: Machine | None = None) -> float:
    """Median |error| over the rows, in %."""
    return statistics.median(abs(row.error_pct) for row in instruction_table_error(machine))


def _compare(entry: dict[str, str], machine: Machine) -> Iterator[Row]:
    predicted = _predict(entry, machine)
    if predicted is None:
        return
    shape = f"{entry['src_dtype']} {entry['src_mem']} {entry['src_elems_per_partition']}"
    name = " ".join(f"{entry['engine']} {entry['opcode']} {entry['variant']} {shape}".split())
    latency, interval = predicted
    yield Row(name, latency, float(entry["dur_ns_median"]))
    between = float(entry["backtoback_interval_ns_median"] or 0)
    if between and interval:
        yield Row(f"{name} interval", interval, between)


def _predict(entry: dict[str, str], machine: Machine) -> tuple[float, float] | None:
    """(latency, interval) by the model's laws; None for what no Program holds."""
    opcode, unit = entry["opcode"], entry["engine"]
    constants = {
        "ACT_TABLE_LOAD": machine.scalar_table_load_ns,
        "TENSOR_LOAD": machine.register_ns,
        "COMPARE_BRANCH": machine.branch_ns,
    }
    if opcode in NOT_MODELLED:
        return None
    if opcode in constants:
        return constants[opcode], 0.0
    if opcode == "DMA_DIRECT2D":
        return (machine.swdge_issue_ns if unit == "GpSimd" else machine.hwdge_issue_ns), 0.0
    if opcode in ("MATMUL", "LDWEIGHTS"):
        return _tensor(entry, machine)
    price = cost(_build(entry), machine)
    return price.latency, price.interval


def _tensor(entry: dict[str, str], machine: Machine) -> tuple[float, float]:
    """MATMUL and LDWEIGHTS as the profiler shows them: for fp32 the half of a call each."""
    warm = "warm" in entry["variant"]
    clock = machine.tensor_clock_ghz if warm else machine.tensor_cold_clock_ghz
    fp32 = entry["src_dtype"] == "fp32"
    columns = float(entry["src_elems_per_partition"])
    if entry["opcode"] == "MATMUL":
        passes = machine.tensor_fp32_passes / 2 if fp32 else 1.0
        fixed = machine.tensor_fixed_ns + machine.tensor_fixed_cycles / clock
        return passes * columns / clock + fixed, passes * columns / clock
    transposes = " T " in entry["variant"]
    cycles = load_cycles(machine, int(columns), fp32, transposes)
    if fp32 and not transposes:
        cycles /= 2
    return machine.tensor_load_fixed_ns + cycles / clock, 0.0


def _build(entry: dict[str, str]) -> Instruction:
    """A row as the instruction that shows up so in a profile."""
    program = Program("row", TARGETS["trn2"])
    token = CURRENT.set(program)
    try:
        return _emit(program, entry)
    finally:
        CURRENT.reset(token)


def _tile(program: Program, entry: dict[str, str], side: str) -> NkiTensor:
    count = int(entry[f"{side}_elems_per_partition"])
    region = MemoryRegion.psum if entry[f"{side}_mem"] == "PSUM" else MemoryRegion.sbuf
    return program.allocate((128, count), _DTYPES[entry[f"{side}_dtype"]], region)


def _emit(program: Program, entry: dict[str, str]) -> Instruction:
    opcode = entry["opcode"]
    src, dst = _tile(program, entry, "src"), _tile(program, entry, "dst")
    column = program.allocate((128, 1), dtypes.float32, MemoryRegion.sbuf)
    emitted: Any
    if opcode in ("COPY", "CAST"):
        unit = engine.scalar if entry["engine"] == "Scalar" else engine.vector
        emitted = movement.tensor_copy(dst=dst, src=src, engine=unit)
    elif opcode == "ACTIVATE":
        emitted = scalar_engine.activation(dst=dst, op=exp, data=src, bias=column)
    elif opcode == "TENSOR_SCALAR":
        emitted = elementwise.tensor_scalar(dst=dst, data=src, op0=multiply, operand0=column)
    elif opcode == "RECIPROCAL":
        emitted = elementwise.reciprocal(dst=dst, data=src)
    elif opcode == "TENSOR_REDUCE":
        operator = maximum if entry["variant"] == "MAX" else plus
        kept = dst.free_size
        data = src
        if kept > 1:
            data = src.reshape((128, kept, max(1, src.free_size // kept)))
        emitted = elementwise.tensor_reduce(dst=dst, op=operator, data=data, axis=data.ndim - 1)
    else:
        raise ValueError(f"no instruction for the row {opcode}")
    found: Instruction = emitted
    return found
