"""The constants of one generation, read from `machines/NAME.yaml`.

Every constant there has a value, a unit and a source; the names below carry the unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "machines"
NAMES = ("trn1", "trn2", "trn3")


@dataclass(frozen=True)
class Constant:
    """Where a constant comes from."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Machine:
    """What the timing model knows about one NeuronCore generation."""

    name: str
    generation: int

    # Tensor engine
    tensor_clock_ghz: float
    tensor_cold_clock_ghz: float
    tensor_warm_after_ns: float
    tensor_cool_after_ns: float
    tensor_min_cycles: float
    tensor_fp32_passes: float
    tensor_fp32_transpose_passes: float
    tensor_mx_rate: float
    tensor_fixed_ns: float
    tensor_fixed_cycles: float
    tensor_load_fixed_ns: float
    tensor_load_cycles: float
    tensor_load_cycles_fp32: float
    tensor_load_cycles_transpose: float
    tensor_fast_load_factor: float

    # Vector engine
    vector_clock_ghz: float
    vector_fixed_ns: float
    vector_interval_cycles: float
    vector_chain_cycles: float
    vector_column_ns: float
    vector_rate_sbuf: float
    vector_rate_sbuf_16bit: float
    vector_rate_sbuf_16bit_strided: float
    vector_rate_psum_16bit: float
    vector_rate_two_inputs: float
    vector_rate_two_inputs_16bit: float
    vector_rate_reduce_16bit: float
    vector_fast_8bit: float
    vector_reciprocal_cycles: float
    vector_port_shared: float
    dynamic_address_cycles: float
    strided_bytes: float
    strided_slowdown: float

    # Scalar engine
    scalar_clock_ghz: float
    scalar_copy_fixed_ns: float
    scalar_copy_interval_ns: float
    scalar_sbuf_fixed_ns: float
    scalar_sbuf_interval_ns: float
    scalar_psum_fixed_ns: float
    scalar_psum_interval_ns: float
    scalar_reduce_cycles: float
    scalar_table_load_ns: float
    scalar_rate_16bit: float

    # GpSimd engine and sequencers
    gpsimd_clock_ghz: float
    gpsimd_fixed_cycles: float
    tensor_semaphore_ns: float
    vector_semaphore_ns: float
    scalar_semaphore_ns: float
    gpsimd_semaphore_ns: float
    sync_semaphore_ns: float
    register_ns: float
    branch_ns: float
    launch_ns: float
    finish_ns: float

    # DMA and HBM
    dma_engines: float
    dma_engine_partitions: float
    dma_descriptor_ns: float
    dma_bytes_per_ns: float
    dma_element_ns: float
    dma_element_bytes: float
    dma_core_bytes_per_ns: float
    dma_efficient_bytes: float
    dma_start_ns: float
    dma_done_ns: float
    dma_hardware_generation: float
    hwdge_issue_ns: float
    swdge_issue_ns: float
    swdge_generate_ns: float
    swdge_start_ns: float
    static_issue_ns: float
    dma_transpose_efficiency: float
    hbm_core_bytes_per_ns: float
    hbm_stack_bytes_per_ns: float

    # Between cores and chips
    barrier_ns: float
    sendrecv_ns: float
    sendrecv_bytes_per_ns: float
    collective_base_ns: float
    collective_hop_ns: float
    collective_bytes_per_ns: float

    constants: dict[str, Constant] = field(default_factory=dict, compare=False, repr=False)

    def with_changes(self, **changes: float) -> Machine:
        """A machine that differs in some constants, e.g. to ask what bandwidth would buy."""
        changed: Any = changes
        return replace(self, **changed)

    def chain_ns(self, queue: str) -> float:
        """From an instruction's release to the start of one on its own queue that reads its
        result; infinite where the result must have been written (`latency`).
        """
        if queue == "vector":
            return self.vector_chain_cycles / self.vector_clock_ghz
        return math.inf

    @property
    def tensor_macs_per_ns(self) -> float:
        """Peak bf16 multiply-accumulates."""
        return 128 * 128 * self.tensor_clock_ghz


@cache
def load_machine(name: str) -> Machine:
    """The machine `trn1`, `trn2` or `trn3`.

    Raises:
        ValueError: there is no such machine, or its file lacks a constant, a unit or a source.
    """
    if name not in NAMES:
        raise ValueError(f"unknown target {name!r}; known targets: {', '.join(NAMES)}")
    return read_machine(FOLDER / f"{name}.yaml")


def read_machine(path: Path) -> Machine:
    """Read and check a machine file.

    Raises:
        ValueError: a constant is missing or unknown, or has no unit or source.
    """
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    constants: dict[str, Constant] = {}
    for group in content["constants"].values():
        for name, entry in group.items():
            if not (entry.get("unit") and entry.get("source")):
                raise ValueError(f"{path.name}: {name} needs a unit and a source")
            constants[name] = Constant(float(entry["value"]), entry["unit"], entry["source"])
    wanted = {f.name for f in fields(Machine)} - {"name", "generation", "constants"}
    if wanted != set(constants):
        odd = ", ".join(sorted(wanted ^ set(constants)))
        raise ValueError(f"{path.name}: constants missing or unknown: {odd}")
    values = {name: constant.value for name, constant in constants.items()}
    return Machine(content["name"], content["generation"], constants=constants, **values)
