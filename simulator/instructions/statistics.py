"""Mean and variance on the Vector engine: bn_stats and bn_aggr. Source: nki_facts.md §2.6."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.instructions.limits import all_of, elements, elements_between, same_partitions
from simulator.instructions.table import Array, Arrays, Operand, Run, Slots, instruction
from simulator.numerics import as_float32, store

if TYPE_CHECKING:
    from simulator.program import Instruction, Program

__all__ = ["bn_aggr", "bn_stats"]

MOST = 512
"""Elements per partition that bn_stats takes (nl.tile_size.bn_stats_fmax)."""


def _moments(x: Array) -> tuple[Any, Any, Any]:
    """Count, mean and variance * count of each row; zeros for empty rows."""
    count = x.shape[1]
    if count == 0:
        return 0, 0, 0
    mean = np.add.reduce(x, axis=1) / np.float32(count)
    apart = x - mean[:, None]
    return count, mean, np.add.reduce(apart * apart, axis=1)


def _stats(instruction: Instruction, slots: Slots) -> Run:
    dst, data = instruction["dst"], instruction["data"]
    to, frm, write = slots(dst), slots(data), store(dst.dtype)
    rows = (data.shape[0], data.free_size)

    def run(views: Arrays) -> None:
        x = as_float32(views[frm]).reshape(rows)
        found = np.empty((rows[0], 6), np.float32)
        for half in range(2):  # even elements, odd elements
            for i, value in enumerate(_moments(x[:, half::2])):
                found[:, 3 * half + i] = value
        write(views[to], found.reshape(dst.shape))

    return run


@instruction(
    operands={"dst": Operand("write", "free"), "data": Operand("read", "free")},
    engines=("vector",),
    lower=_stats,
    cost="max(64, N)",
    source="nki_facts.md §2.6",
    extra_check=all_of(
        same_partitions("data", "dst"), elements("dst", 6), elements_between("data", 1, MOST)
    ),
)
def bn_stats(dst: Any, data: Any, name: str | None = None) -> tuple[Any, ...]:
    """Count, mean, variance * count of the even elements, then of the odd ones.

    Args:
        dst: (P, 6) tile.
        data: (P, N) tile, N <= 512. With N = 1 the odd elements give three zeros.
        name: for debugging.
    """
    return dst, data, name


def _aggregate(instruction: Instruction, slots: Slots) -> Run:
    dst, data = instruction["dst"], instruction["data"]
    to, frm, write = slots(dst), slots(data), store(dst.dtype)
    groups = (data.shape[0], data.free_size // 3, 3)

    def run(views: Arrays) -> None:
        counts, means, squares = np.moveaxis(as_float32(views[frm]).reshape(groups), 2, 0)
        total = np.add.reduce(counts, axis=1)
        mean = np.add.reduce(counts * means, axis=1) / total
        apart = means - mean[:, None]
        variance = np.add.reduce(squares + counts * apart * apart, axis=1) / total
        write(views[to], np.stack((mean, variance), axis=1).reshape(dst.shape))

    return run


def _check_triples(program: Program, instruction: Instruction) -> None:
    size = instruction["data"].free_size
    if size % 3:
        program.report(
            instruction,
            "free-size",
            f"data has {size} elements per partition, which is no whole number of triples",
            "Give bn_aggr what bn_stats wrote: count, mean, variance * count, …",
            operand="data",
            limit="a multiple of 3",
            value=str(size),
        )


@instruction(
    operands={"dst": Operand("write", "free"), "data": Operand("read", "free")},
    engines=("vector",),
    lower=_aggregate,
    cost="max(64, 13 N / 3)",
    source="nki_facts.md §2.6",
    extra_check=all_of(same_partitions("data", "dst"), elements("dst", 2), _check_triples),
)
def bn_aggr(dst: Any, data: Any, name: str | None = None) -> tuple[Any, ...]:
    """Mean and population variance from bn_stats results.

    Args:
        dst: (P, 2) tile: mean, variance.
        data: (P, 3 k) tile of triples (count, mean, variance * count).
        name: for debugging.
    """
    return dst, data, name
