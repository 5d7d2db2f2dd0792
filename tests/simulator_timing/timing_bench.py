"""Small kernels and a machine of round numbers for the timing tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki.isa as nisa
import nki.language as nl

from simulator import dtypes
from simulator.context import CURRENT
from simulator.program import Program
from simulator.specialise import TensorSpec
from simulator.targets import TARGETS
from simulator.tensor import MemoryRegion
from simulator.timing import Machine, Timeline, load_machine, predict

X = TensorSpec((128, 512), dtypes.float32)

ROUND = load_machine("trn2").with_changes(
    launch_ns=0, finish_ns=0, tensor_semaphore_ns=0, vector_semaphore_ns=0,
    scalar_semaphore_ns=0, gpsimd_semaphore_ns=0, sync_semaphore_ns=0,
    vector_clock_ghz=1, vector_fixed_ns=100, vector_interval_cycles=50, vector_column_ns=0,
    vector_chain_cycles=50,
    vector_rate_sbuf=1, vector_rate_two_inputs=1,
    scalar_clock_ghz=1, scalar_copy_fixed_ns=200, scalar_copy_interval_ns=40,
    scalar_sbuf_fixed_ns=200, scalar_sbuf_interval_ns=40, scalar_psum_fixed_ns=200,
    scalar_psum_interval_ns=40, scalar_table_load_ns=1000,
    gpsimd_clock_ghz=1, gpsimd_fixed_cycles=100,
    tensor_clock_ghz=2, tensor_cold_clock_ghz=1, tensor_warm_after_ns=0, tensor_fixed_ns=50,
    tensor_fixed_cycles=0, tensor_load_fixed_ns=0, tensor_load_cycles=128,
    hwdge_issue_ns=500, dma_start_ns=1000, dma_done_ns=100, dma_descriptor_ns=0,
    dma_bytes_per_ns=16, dma_core_bytes_per_ns=1e9, hbm_stack_bytes_per_ns=1e9,
    swdge_issue_ns=50, swdge_generate_ns=800, swdge_start_ns=700,
)  # fmt: skip
"""trn2 with round numbers: Vector 512 columns in 562 ns (readable after 612), Scalar in 552
(712), a load of 256 KiB in 500 + 1000 + 1024 + 100 ns."""

VECTOR, VECTOR_READY = 562, 612
SCALAR, SCALAR_READY = 552, 712
LOAD = 500 + 1000 + 8 * 2048 / 16 + 100


def program(kernel: Callable[..., Any], *tensors: TensorSpec, **parameters: Any) -> Program:
    """A kernel's instructions, traced but not checked: bodies here need not return anything."""
    traced = Program(kernel.__name__, TARGETS["trn2"])
    arguments = [
        traced.allocate(one.shape, one.dtype, MemoryRegion.shared_hbm, f"x{i}", "argument")
        for i, one in enumerate(tensors)
    ]
    token = CURRENT.set(traced)
    try:
        kernel(*arguments, **parameters)
    finally:
        CURRENT.reset(token)
    traced.raise_violations()
    return traced


def played(
    kernel: Callable[..., Any], *tensors: TensorSpec, machine: Machine = ROUND, **parameters: Any
) -> Timeline:
    """A kernel played on the machine of round numbers."""
    return predict(program(kernel, *tensors, **parameters), machine)


def starts(timeline: Timeline, name: str) -> list[float]:
    """When the instructions of one name started, in ns."""
    found = enumerate(timeline.decoded.instructions)
    return [float(timeline.starts[i]) for i, one in found if one.spec.name == name]


def sbuf(columns: int = 512, dtype: Any = nl.float32) -> Any:
    """An SBUF tile of 128 partitions."""
    return nl.ndarray((128, columns), dtype=dtype, buffer=nl.sbuf)


def psum(columns: int = 512, dtype: Any = nl.float32) -> Any:
    """A PSUM tile of 128 partitions."""
    return nl.ndarray((128, columns), dtype=dtype, buffer=nl.psum)


def filled(columns: int = 512, dtype: Any = nl.float32) -> Any:
    """An SBUF tile that the Vector engine has filled."""
    tile = sbuf(columns, dtype)
    nisa.memset(dst=tile, value=0.0, engine=nisa.engine.vector)
    return tile


def product(columns: int = 512, dtype: Any = nl.bfloat16) -> Any:
    """A PSUM tile that the Tensor engine has written."""
    tile = psum(columns)
    nisa.nc_matmul(dst=tile, stationary=filled(128, dtype), moving=filled(columns, dtype))
    return tile


def buffered(x: Any, repeats: int = 8, inside: bool = True) -> Any:
    """Load and use, `repeats` times; the tile is allocated inside the loop or outside."""
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = sbuf()
    result = sbuf()
    for _ in range(repeats):
        if inside:
            tile = sbuf()
        nisa.dma_copy(dst=tile, src=x)
        nisa.activation(dst=result, op=nl.copy, data=tile)
    nisa.dma_copy(dst=out, src=result)
    return out
