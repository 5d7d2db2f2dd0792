"""`nki.isa`: one function per instruction. Rows and meaning: `simulator.instructions`."""

from __future__ import annotations

import sys

from simulator import enums as constants
from simulator.context import current_program, feature
from simulator.enums import (  # noqa: F401
    dge_mode,
    dma_engine,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
from simulator.errors import NkiValidationError  # noqa: F401
from simulator.instructions.affine import *  # noqa: F403
from simulator.instructions.control import *  # noqa: F403
from simulator.instructions.cores import *  # noqa: F403
from simulator.instructions.dma import *  # noqa: F403
from simulator.instructions.elementwise import *  # noqa: F403
from simulator.instructions.gathers import *  # noqa: F403
from simulator.instructions.gpsimd import *  # noqa: F403
from simulator.instructions.microscaling import *  # noqa: F403
from simulator.instructions.movement import *  # noqa: F403
from simulator.instructions.random import *  # noqa: F403
from simulator.instructions.scalar_engine import *  # noqa: F403
from simulator.instructions.selection import *  # noqa: F403
from simulator.instructions.statistics import *  # noqa: F403
from simulator.instructions.tensor_engine import *  # noqa: F403
from simulator.instructions.top8 import *  # noqa: F403
from simulator.instructions.vector import *  # noqa: F403
from simulator.program import Instruction as NkiInstruction  # noqa: F401

sys.modules[f"{__name__}.constants"] = constants
"""`nki.isa.constants`: the enumerations, under the name that public kernels import them by."""

tensor_engine = engine.tensor
vector_engine = engine.vector
scalar_engine = engine.scalar
gpsimd_engine = engine.gpsimd
unknown_engine = engine.unknown


def get_nc_version() -> nc_version:
    """The generation the kernel is compiled for."""
    return nc_version(current_program().target.generation)


def get_nc_sub_version() -> int:
    """The revision within the generation: 0, the first one."""
    feature("nisa.get_nc_sub_version", since="0.5")
    current_program()
    return 0
