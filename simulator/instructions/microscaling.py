"""MX formats (gen4): quantisation, and matmuls of quantised operands.

Four elements stand in one x4 container, the first in its lowest bits. A group of 32 elements, 8
partitions of one container each, shares a scale, a power of two. For every 32 partitions of
data there are 4 rows of scales, in the same quadrant of 32 partitions, from its row 0, 4, 8 or
12 on. Source: nki_facts.md §2.5, §2.6, §5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import dtypes
from simulator.dtypes import DType
from simulator.instructions.limits import rows_of
from simulator.instructions.microscaling_checks import check_matmul_mx, check_quantize
from simulator.instructions.table import (
    PSUM,
    SBUF,
    Array,
    Arrays,
    Operand,
    Run,
    Slots,
    instruction,
)
from simulator.instructions.tensor_engine import resolve_accumulate, scratch, write_product
from simulator.numerics import as_float32

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.program import Instruction
    from simulator.tensor import NkiTensor

__all__ = ["nc_matmul_mx", "quantize_mx"]

BIAS = 127
NOT_A_NUMBER = 255
"""Of the scales: byte b is 2^(b - BIAS), the last one NaN."""
LARGEST_EXPONENT = {dtypes.float8_e4m3fn_x4: 8, dtypes.float8_e5m2_x4: 15}


def _power(exponents: Array) -> Array:
    return np.ldexp(np.float32(1), exponents)


_SCALES = np.concatenate([_power(np.arange(255) - BIAS), [np.nan]]).astype(np.float32)
_SAFE = float(2.0**100)
"""Up to this scale no element, times its scale, overflows fp32."""


# --- containers and scales ----------------------------------------------------------------------


def elements(containers: Array, dtype: DType) -> Array:
    """The bit patterns in x4 containers [...], one byte each: uint8[..., 4]."""
    if dtype.itemsize == 4:
        return np.ascontiguousarray(containers).view(np.uint8).reshape(*containers.shape, 4)
    shifts = np.arange(0, 16, 4, dtype=np.uint16)
    return (containers[..., None] >> shifts & np.uint16(0xF)).astype(np.uint8)


def values_of(dtype: DType) -> Array:
    """The fp32 value of every bit pattern of an x4 dtype's elements."""
    assert dtype.element is not None
    count = 256 if dtype.itemsize == 4 else 16
    found: Array = np.arange(count, dtype=np.uint8).view(dtype.element).astype(np.float32)
    return found


def scale_rows(partitions: int) -> list[int]:
    """The rows of a scale tile that hold the scales of this many partitions of data."""
    return [32 * quadrant + row for quadrant in range(partitions // 32) for row in range(4)]


def _scale_parts(instruction: Instruction, name: str, tensor: NkiTensor) -> list[NkiTensor]:
    """Of a scale tile only some rows are touched."""
    if not name.endswith("scale"):
        return [tensor]
    data = {"dst_scale": "src"}.get(name, name.removesuffix("_scale"))
    rows = scale_rows(instruction[data].shape[0])
    return rows_of(tensor, rows) if rows and rows[-1] < tensor.shape[0] else [tensor]


# --- quantize_mx --------------------------------------------------------------------------------


def _quantize(instruction: Instruction, slots: Slots) -> Run:
    dst, src, dst_scale = (instruction[name] for name in ("dst", "src", "dst_scale"))
    to, frm, to_scale = slots(dst), slots(src), slots(dst_scale)
    partitions, containers = dst.shape[0], dst.free_size
    largest = LARGEST_EXPONENT[dst.dtype]
    rows = scale_rows(partitions)
    groups = (partitions // 8, 8, containers, 4)

    def run(views: Arrays) -> None:
        values = as_float32(views[frm]).reshape(groups)
        highest = np.abs(values).max(axis=(1, 3))
        _, exponents = np.frexp(highest)  # highest = fraction * 2^exponent, fraction < 1
        scale = np.clip(exponents - 1 - (largest - 1), -BIAS, BIAS)
        scale[highest == 0] = -BIAS
        quantised = values * _power(-scale)[:, None, :, None]
        quantised = quantised.astype(dst.dtype.element)
        views[to][...] = quantised.view(np.uint8).view(dst.dtype.numpy).reshape(dst.shape)
        code = (scale + BIAS).astype(np.uint8)
        code[~np.isfinite(highest)] = NOT_A_NUMBER
        _write_scales(views[to_scale], rows, code)

    return run


def _write_scales(view: Array, rows: list[int], code: Array) -> None:
    """Scale bytes, in order of the groups, to their rows."""
    code = code.reshape(len(rows), *view.shape[1:])
    if view.dtype == np.uint8:
        view[rows] = code
    else:
        view[rows] = code.view(dtypes.float8_e8m0fnu.numpy).astype(view.dtype)


_SCALE = frozenset({dtypes.float8_e8m0fnu, dtypes.uint8})
_MXFP8 = frozenset(LARGEST_EXPONENT)


@instruction(
    operands={
        "dst": Operand("write", "free", SBUF, dtypes=_MXFP8),
        "src": Operand(
            "read", "free", SBUF, dtypes=frozenset({dtypes.float16, dtypes.bfloat16})
        ),
        "dst_scale": Operand("write", "free", SBUF, dtypes=_SCALE, own_starts=True),
    },
    engines=("vector",),
    lower=_quantize,
    cost="max(64, N/4)",
    source="nki_facts.md §2.6",
    extra_check=check_quantize,
    generation=4,
    parts=_scale_parts,
)  # fmt: skip
def quantize_mx(dst: Any, src: Any, dst_scale: Any, name: str | None = None) -> tuple[Any, ...]:
    """Quantise fp16 or bf16 to MXFP8: groups of 32 with a common scale.

    The scale of a group whose largest magnitude is a is 2^(floor(log2 a) - (Emax - 1)), Emax
    8 for e4m3fn and 15 for e5m2; 2^-127 for a group of zeros, NaN if a is infinite or NaN.

    Args:
        dst: SBUF [P, F/4] of float8_e4m3fn_x4 or float8_e5m2_x4.
        src: SBUF [P, F] of fp16 or bf16, P a multiple of 32, F of 4.
        dst_scale: SBUF of float8_e8m0fnu or uint8, F/4 columns: P/8 rows if P is 32, else rows
            for all of the data's quadrants.
        name: a label.
    """
    return dst, src, dst_scale, name


# --- nc_matmul_mx -------------------------------------------------------------------------------


class _Quantised:
    """An operand of nc_matmul_mx: bit patterns and scales of [P, F] containers."""

    def __init__(self, data: NkiTensor, scale: NkiTensor, role: str, slots: Slots) -> None:
        self.shape = (data.shape[0], data.free_size)
        self._dtype = data.dtype
        self._data, self._scale = slots(data), slots(scale)
        self._bytes_are_codes = scale.dtype is dtypes.uint8
        self._rows = scale_rows(data.shape[0])
        self._values = values_of(data.dtype)
        partitions, free = self.shape
        self._matrix = scratch(slots, role, (partitions, 4, free))

    def scales(self, views: Arrays) -> Array:
        """fp32[P/8, F]."""
        found = views[self._scale][self._rows].reshape(len(self._rows), -1)
        return _SCALES[found] if self._bytes_are_codes else as_float32(found)

    def plain(self, views: Arrays) -> Array:
        """The elements without their scales: fp32[P, 4, F]."""
        codes = elements(views[self._data].reshape(self.shape), self._dtype)
        np.take(self._values, codes.transpose(0, 2, 1), out=self._matrix, mode="clip")
        return self._matrix

    def scaled(self, views: Arrays, scales: Array) -> Array:
        """The elements times their scales, contraction first: fp32[4 P, F]."""
        partitions, free = self.shape
        matrix = self.plain(views).reshape(partitions // 8, 32, free)
        matrix *= scales[:, None, :]
        return matrix.reshape(4 * partitions, free)


def _matmul_mx(instruction: Instruction, slots: Slots) -> Run:
    left = _Quantised(
        instruction["stationary"], instruction["stationary_scale"], "stationary", slots
    )
    right = _Quantised(instruction["moving"], instruction["moving_scale"], "moving", slots)
    shape = (left.shape[1], right.shape[1])
    return write_product(instruction, shape, _product(left, right), slots)


def _product(left: _Quantised, right: _Quantised) -> Callable[[Arrays, Array], Any]:
    """The sum over groups of both scales times the product, in fp32."""
    groups = left.shape[0] // 8

    def product(views: Arrays, out: Array) -> None:
        scales = left.scales(views), right.scales(views)
        if all(scale.max() <= _SAFE for scale in scales):  # False for NaN
            np.matmul(left.scaled(views, scales[0]).T, right.scaled(views, scales[1]), out=out)
            return
        a = left.plain(views).reshape(groups, 32, -1)
        b = right.plain(views).reshape(groups, 32, -1)
        out[...] = 0
        for group in range(groups):
            both = scales[0][group][:, None] * scales[1][group][None, :]
            out += both * (a[group].T @ b[group])

    return product


def _macs(instruction: Instruction) -> int:
    """4 K·M·N: a container holds 4 elements."""
    stationary, moving = instruction["stationary"], instruction["moving"]
    return 4 * int(stationary.size) * int(moving.free_size)


_MX = _MXFP8 | {dtypes.float4_e2m1fn_x4}


@instruction(
    operands={
        "dst": Operand("write", "free", PSUM),
        "stationary": Operand("read", "free", SBUF, dtypes=_MX),
        "moving": Operand("read", "free", SBUF, dtypes=_MX),
        "stationary_scale": Operand("read", "free", SBUF, dtypes=_SCALE, own_starts=True),
        "moving_scale": Operand("read", "free", SBUF, dtypes=_SCALE, own_starts=True),
    },
    engines=("tensor",),
    lower=_matmul_mx,
    cost="max(min(64, M), N)",
    source="nki_facts.md §2.5",
    extra_check=check_matmul_mx,
    macs=_macs,
    generation=4,
    resolve=resolve_accumulate,
    parts=_scale_parts,
)
def nc_matmul_mx(
    dst: Any,
    stationary: Any,
    moving: Any,
    stationary_scale: Any,
    moving_scale: Any,
    tile_position: Any = None,
    tile_size: Any = None,
    accumulate: bool | None = None,
    name: str | None = None,
) -> tuple[Any, ...]:
    """dst[M, N] (+)= stationary.T @ moving of MXFP8 or MXFP4 operands, in fp32.

    Args:
        dst: PSUM, fp32 or bf16.
        stationary: SBUF [P, M] of x4 containers, P a multiple of 32 and M even: K is 4 P.
        moving: SBUF [P, N] of x4 containers; the formats may differ.
        stationary_scale: SBUF, as quantize_mx writes it.
        moving_scale: SBUF, as quantize_mx writes it.
        tile_position: (row, 0), with `tile_size`.
        tile_size: (rows, 128).
        accumulate: as for nc_matmul.
        name: a label.
    """
    return (
        dst, stationary, moving, stationary_scale, moving_scale, tile_position, tile_size,
        accumulate, name,
    )  # fmt: skip
