"""What nki.language has besides functions on tiles: NKIObject, tile_size, ranges, the launch.

Source: nki_facts.md §2.2, §2.11, §6.2.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from enum import Enum
from typing import Any

from simulator.context import CURRENT, current_program, feature, note_lax
from simulator.errors import refuse
from simulator.targets import PARTITIONS, Target, current_target
from simulator.tensor import DynamicSlice


class NKIObject:
    """Base class of the classes that kernels may use.

    A class without `__init__` takes its annotated attributes as arguments, in order or by name,
    with what the class assigns as defaults, `@dataclass` or not. As in the compilers up to 0.6,
    which read the class and do not run it, a dataclass lets arguments be missing, and attributes
    without annotation be given by name; a check refuses both.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__init__ is NKIObject.__init__ and not issubclass(cls, Enum):
            cls.__init__ = NKIObject.__init__  # type: ignore[method-assign]  # dataclass keeps it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Set the annotated attributes, then call `__post_init__` if there is one.

        Raises:
            TypeError: unknown, missing or too many arguments.
        """
        cls = type(self)
        if issubclass(cls, Enum):
            return
        names, only_by_name, defaults = _attributes(cls)
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__} takes {len(names)} arguments, got {len(args)}")
        values = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in values:
                raise TypeError(f"{cls.__name__} got two values for {name!r}")
            if name not in names and name not in only_by_name:
                _check_unannotated(cls, name)
            values[name] = value
        for name in (*names, *only_by_name):
            if name in values:
                continue
            if name in defaults:
                values[name] = defaults[name]()
            elif not hasattr(cls, name):
                _check_missing(cls, name)
                values[name] = None
        _finish(self, values)


Factories = dict[str, Callable[[], Any]]


def _attributes(cls: type) -> tuple[list[str], list[str], Factories]:
    """The names of a class's arguments, those given by name only, and what makes defaults."""
    if not dataclasses.is_dataclass(cls):
        bases = reversed(cls.__mro__)
        return [name for base in bases for name in inspect.get_annotations(base)], [], {}
    fields = [field for field in _fields(cls) if field.init]
    defaults: Factories = {}
    for field in _fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = functools.partial(_same, field.default)
    by_name = [field.name for field in fields if field.kw_only is True]
    by_name += [field.name for field in _fields(cls) if not field.init and field.name in defaults]
    return [f.name for f in fields if f.kw_only is not True], by_name, defaults


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """A dataclass's fields, and what it only passes on to `__post_init__`."""
    found = cls.__dataclass_fields__.values()
    return [field for field in found if _is(field) != "_FIELD_CLASSVAR"]


def _is(field: Any) -> str:
    """Whether a field is one, or InitVar or ClassVar."""
    return str(getattr(field, "_field_type", None))


def _same(value: Any) -> Any:
    return value


def _check_unannotated(cls: type, name: str) -> None:
    """An argument that is no field: an attribute without annotation, as older compilers take."""
    if not dataclasses.is_dataclass(cls) or name.startswith("__") or not hasattr(cls, name):
        raise TypeError(f"{cls.__name__} has no attribute {name!r}")
    note_lax(
        "object-field",
        f"{cls.__name__}.{name} has no annotation, so that Python's dataclass has no such argument",
        "Annotate the attribute",
        limit="annotated attributes",
        value=name,
    )


def _check_missing(cls: type, name: str) -> None:
    """An argument that was not given and has no default: a dataclass's is None."""
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} misses the argument {name!r}")
    note_lax(
        "object-field",
        f"{cls.__name__} misses the argument {name!r}, which Python's dataclass demands",
        "Give it, or give the attribute a default",
        limit=name,
        value="missing",
    )


def _finish(target: Any, values: dict[str, Any]) -> None:
    """Set attributes, of frozen objects too, and call `__post_init__`."""
    fields = getattr(type(target), "__dataclass_fields__", {})
    passed_on = []
    for name, value in values.items():
        if name in fields and _is(fields[name]) == "_FIELD_INITVAR":
            passed_on.append(value)
        else:
            object.__setattr__(target, name, value)
    after = getattr(target, "__post_init__", None)
    if after is not None:
        after(*passed_on)


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
