"""`nki.language`: dtypes, buffers, allocation, operators, loops."""

from __future__ import annotations

from typing import Any

from simulator.context import current_program
from simulator.control import dynamic_range, fori_loop, no_reorder, while_loop
from simulator.dtypes import (
    as_dtype,
    bfloat16,
    bool_,
    float8_e4m3,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    int8,
    int16,
    int32,
    uint8,
    uint16,
    uint32,
)
from simulator.errors import refuse
from simulator.instructions.cores import device_print
from simulator.operators import (
    abs,
    add,
    copy,
    equal,
    exp,
    greater,
    greater_equal,
    less,
    less_equal,
    log,
    maximum,
    minimum,
    multiply,
    not_equal,
    power,
    reciprocal,
    relu,
    rsqrt,
    sigmoid,
    silu,
    sqrt,
    square,
    subtract,
    tanh,
)
from simulator.targets import PARTITIONS, current_target
from simulator.tensor import DynamicSlice, MemoryRegion, NkiTensor

sbuf = MemoryRegion.sbuf
psum = MemoryRegion.psum
hbm = private_hbm = MemoryRegion.private_hbm
shared_hbm = MemoryRegion.shared_hbm


class NKIObject:
    """Base class of the classes that kernels may use."""


class _TileSize:
    """Sizes of tiles, in elements or bytes (nki_facts.md §2.2)."""

    pmax = PARTITIONS
    psum_fmax = 512
    psum_bank_fmax = 512
    psum_bank_fmax_bytes = 2048
    gemm_stationary_fmax = 128
    gemm_moving_fmax = 512
    bn_stats_fmax = 512
    psum_num_banks = 8

    @property
    def sbuf_size_bytes(self) -> int:
        """Usable SBUF of all partitions."""
        return self.sbuf_fmax_bytes * PARTITIONS

    @property
    def sbuf_fmax_bytes(self) -> int:
        """Usable SBUF bytes per partition."""
        return current_target().sbuf_bytes_per_partition

    @property
    def total_available_sbuf_size(self) -> int:
        """The name of `sbuf_fmax_bytes` in 0.3."""
        return self.sbuf_fmax_bytes

    @property
    def sbuf_fmax(self) -> int:
        """Usable SBUF per partition, in fp32 elements."""
        return self.sbuf_fmax_bytes // 4


tile_size = _TileSize()


def ndarray(
    shape: tuple[int, ...],
    dtype: Any,
    buffer: Any = sbuf,
    name: str = "",
    address: Any = None,
) -> NkiTensor:
    """Allocate a tensor without setting its values.

    Raises:
        NkiValidationError: a shape that cannot be allocated, or an unknown dtype or buffer.
    """
    if not isinstance(buffer, MemoryRegion):
        raise refuse(
            "buffer",
            f"buffer {buffer!r} is not a memory region",
            "Use nl.sbuf, nl.psum, nl.shared_hbm or nl.private_hbm",
            limit="nl.sbuf, nl.psum, nl.shared_hbm, nl.private_hbm",
            value=repr(buffer),
        )
    if address is not None:
        raise refuse("unsupported", "manual addresses are not simulated yet", "Leave address out")
    shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    if any(isinstance(n, bool) or not isinstance(n, int) or n <= 0 for n in shape) or not shape:
        raise refuse(
            "shape",
            f"shape must be a tuple of positive integers, got {shape}",
            "Allocate at least one element per dimension",
            limit=">= 1",
            value=str(shape),
        )
    if buffer.on_chip and len(shape) < 2:
        raise refuse(
            "rank",
            "SBUF and PSUM tensors must have at least 2 dimensions (partition-dim and free-dim)",
            "Allocate (P, 1) for a column",
            limit="2",
            value=str(len(shape)),
        )
    program = current_program()
    if buffer.on_chip and shape[0] > PARTITIONS:
        raise refuse(
            "partition-limit",
            f"Size of partition dimension {shape[0]} exceeds architecture limitation of 128",
            "Split into tiles of at most 128 rows",
            limit=str(PARTITIONS),
            value=str(shape[0]),
        )
    return program.allocate(shape, as_dtype(dtype), buffer, name)


def ds(start: int, size: int) -> DynamicSlice:
    """`size` elements from `start`, as an index."""
    return DynamicSlice(start, size)


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Python's range (a deprecated name)."""
    return range(start) if stop is None else range(start, stop, step)


sequential_range = affine_range
static_range = affine_range


def program_id(axis: int = 0) -> int:
    """This core's number in the launch: 0, or 1 on the second core of an LNC2 launch."""
    if axis != 0:
        raise refuse(
            "program-axis",
            f"invalid program axis {axis} (must be zero)",
            "Use program_id(0)",
            limit="0",
            value=str(axis),
        )
    return current_program().core


def num_programs(axes: int = 0) -> int:
    """Number of cores of the launch."""
    return current_program().lnc


def program_ndim() -> int:
    """Dimensions of the launch grid: 1 for `kernel[n](…)`, 0 for `kernel(…)`."""
    return int(current_program().grid)


__all__ = [
    "MemoryRegion", "NKIObject", "NkiTensor", "abs", "add", "affine_range", "bfloat16", "bool_",
    "copy", "device_print", "ds", "dynamic_range", "equal", "exp", "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float16",
    "float32", "fori_loop", "greater", "greater_equal", "hbm", "int8", "int16", "int32", "less", "less_equal",
    "log", "maximum", "minimum", "multiply", "ndarray", "no_reorder", "not_equal", "num_programs", "power",
    "private_hbm", "program_id", "program_ndim", "psum", "reciprocal", "relu", "rsqrt", "sbuf",
    "sequential_range", "shared_hbm", "sigmoid", "silu", "sqrt", "square", "static_range",
    "subtract", "tanh", "tile_size", "uint8", "uint16", "uint32",
    "while_loop",
]  # fmt: skip
