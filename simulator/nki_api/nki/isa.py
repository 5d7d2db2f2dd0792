"""`nki.isa`: one function per instruction. Rows and meaning: `simulator.instructions`."""

from __future__ import annotations

from simulator.context import current_program
from simulator.enums import (
    dge_mode,
    dma_engine,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
from simulator.errors import NkiValidationError
from simulator.instructions.control import (
    register_alloc,
    register_load,
    register_move,
    register_store,
)
from simulator.instructions.elementwise import (
    reciprocal,
    scalar_tensor_tensor,
    tensor_reduce,
    tensor_scalar,
    tensor_tensor,
)
from simulator.instructions.movement import dma_copy, memset, tensor_copy
from simulator.instructions.scalar_engine import activation, activation_reduce
from simulator.program import Instruction as NkiInstruction

tensor_engine = engine.tensor
vector_engine = engine.vector
scalar_engine = engine.scalar
gpsimd_engine = engine.gpsimd
unknown_engine = engine.unknown


def get_nc_version() -> nc_version:
    """The generation the kernel is compiled for."""
    return nc_version(current_program().target.generation)


__all__ = [
    "NkiInstruction", "NkiValidationError", "activation", "activation_reduce", "dge_mode",
    "dma_copy", "dma_engine", "engine", "get_nc_version", "matmul_perf_mode", "memset",
    "nc_version", "oob_mode", "reciprocal", "reduce_cmd", "register_alloc", "register_load",
    "register_move", "register_store", "scalar_tensor_tensor", "tensor_copy", "tensor_reduce",
    "tensor_scalar", "tensor_tensor",
]  # fmt: skip
