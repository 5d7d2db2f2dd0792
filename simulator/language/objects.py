"""What nki.language has besides functions on tiles: NKIObject, tile_size, ranges, the launch.

Source: nki_facts.md §2.2, §2.11, §6.2.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

from simulator.context import CURRENT, current_program, feature
from simulator.errors import refuse
from simulator.targets import PARTITIONS, Target, current_target
from simulator.tensor import DynamicSlice


class NKIObject:
    """Base class of the classes that kernels may use.

    A class without `__init__` and without `@dataclass` takes its annotated attributes as
    arguments, in order or by name, with what the class assigns as defaults.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Set the annotated attributes, then call `__post_init__` if there is one.

        Raises:
            TypeError: unknown, missing or too many arguments.
        """
        cls = type(self)
        names = [name for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)]
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__} takes {len(names)} arguments, got {len(args)}")
        values = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names or name in values:
                why = "has no attribute" if name not in names else "got two values for"
                raise TypeError(f"{cls.__name__} {why} {name!r}")
            values[name] = value
        for name in names:
            if name not in values and not hasattr(cls, name):
                raise TypeError(f"{cls.__name__} misses the argument {name!r}")
        for name, value in values.items():
            setattr(self, name, value)
        after = getattr(self, "__post_init__", None)
        if after is not None:
            after()


def _target() -> Target:
    """The target compiled for; outside a kernel, the one of the environment."""
    program = CURRENT.get()
    return current_target() if program is None else program.target


class _TileSize(NKIObject):
    """`nl.tile_size`: sizes of tiles, in elements or bytes."""

    pmax = PARTITIONS
    psum_fmax = 512
    """fp32 elements of a PSUM bank in each partition (the name is deprecated)."""
    gemm_stationary_fmax = 128
    gemm_moving_fmax = 512
    bn_stats_fmax = 512
    psum_min_align = 4
    sbuf_min_align = 4
    """Bytes. AWS publishes no values; these suit every dtype."""

    @property
    def psum_bank_fmax(self) -> int:
        """fp32 elements of a PSUM bank in each partition."""
        feature("nl.tile_size.psum_bank_fmax", since="0.4")
        return _target().psum_bank_bytes // 4

    @property
    def psum_bank_fmax_bytes(self) -> int:
        """Bytes of a PSUM bank in each partition."""
        feature("nl.tile_size.psum_bank_fmax_bytes", since="0.4")
        return _target().psum_bank_bytes

    @property
    def psum_num_banks(self) -> int:
        """PSUM banks; one is kept for transposes if they replace DMA transposes."""
        feature("nl.tile_size.psum_num_banks", since="0.5")
        reserved = os.environ.get("NKI_DMA_TRANSPOSE_AS_PE_TRANSPOSE", "").lower() == "true"
        return _target().psum_banks - reserved

    @property
    def sbuf_fmax_bytes(self) -> int:
        """Usable SBUF bytes in each partition."""
        feature("nl.tile_size.sbuf_fmax_bytes", since="0.4")
        return _target().sbuf_bytes_per_partition

    @property
    def sbuf_fmax(self) -> int:
        """Usable SBUF in each partition, in fp32 elements."""
        feature("nl.tile_size.sbuf_fmax", since="0.4")
        return _target().sbuf_bytes_per_partition // 4

    @property
    def sbuf_size_bytes(self) -> int:
        """Usable SBUF of all partitions."""
        feature("nl.tile_size.sbuf_size_bytes", since="0.4")
        return _target().sbuf_bytes_per_partition * PARTITIONS

    @property
    def total_available_sbuf_size(self) -> int:
        """The name of `sbuf_fmax_bytes` in 0.3: bytes in each partition."""
        return _target().sbuf_bytes_per_partition


tile_size = _TileSize()


def ds(start: Any, size: int) -> DynamicSlice:
    """`size` elements from `start`, an int or a register, as an index."""
    return DynamicSlice(start, size)


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Python's range (a deprecated name)."""
    return range(start) if stop is None else range(start, stop, step)


def program_id(axis: int = 0) -> int:
    """This core's number in the launch: 0, or 1 on the second core of an LNC2 launch."""
    _check_axis(axis)
    return current_program().core


def num_programs(axes: Any = 0) -> Any:
    """Number of cores of the launch; a tuple for a tuple of axes."""
    if isinstance(axes, tuple | list):
        return tuple(num_programs(axis) for axis in axes)
    if axes is not None:
        _check_axis(axes)
    return current_program().lnc


def _check_axis(axis: Any) -> None:
    if axis != 0:
        raise refuse(
            "program-axis",
            f"invalid program axis {axis} (must be zero)",
            "Use program_id(0)",
            limit="0",
            value=str(axis),
        )


def program_ndim() -> int:
    """Dimensions of the launch grid: 1 for `kernel[n](…)`, 0 for `kernel(…)`."""
    return int(current_program().grid)
