"""The enumerations of `nki.isa`. Values: nki_facts.md §2.9."""

from __future__ import annotations

from enum import Enum as _Enum


class Enum(_Enum):
    """Members are single objects: hash by identity, which is the fast way."""

    __hash__ = object.__hash__


class engine(Enum):
    """Engines of a NeuronCore."""

    unknown = 0
    tensor = 1
    scalar = 2
    gpsimd = 3
    dma = 4
    vector = 5
    sync = 6


class reduce_cmd(Enum):
    """Commands to an engine's accumulator registers."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class dge_mode(Enum):
    """Who makes the DMA descriptors."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):
    """What a dynamic DMA does with an index out of bounds."""

    error = 0
    skip = 1


class matmul_perf_mode(Enum):
    """Modes of the Tensor engine."""

    none = "none"
    double_row = "double_row"


class dma_engine(Enum):
    """Which DMA a sendrecv uses."""

    dma = 1
    gpsimd_dma = 2


class nc_version(Enum):
    """Generations of NeuronCore; ordered, among each other and with their numbers."""

    gen2 = 2
    gen3 = 3
    gen4 = 4

    def __lt__(self, other: nc_version | int) -> bool:
        return self.value < _number(other)

    def __le__(self, other: nc_version | int) -> bool:
        return self.value <= _number(other)

    def __gt__(self, other: nc_version | int) -> bool:
        return self.value > _number(other)

    def __ge__(self, other: nc_version | int) -> bool:
        return self.value >= _number(other)


def _number(version: nc_version | int) -> int:
    return version.value if isinstance(version, nc_version) else version
