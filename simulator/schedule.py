"""Which instructions of a replay may run at the same time, on two threads or more.

A Program's tiles are mostly independent of each other: row tiles of a normalisation, query
tiles of an attention. The instructions are cut into segments; within a segment those that
share no data form components, which are dealt out to workers. Each worker keeps the Program's
order, so results do not depend on the number of threads. NumPy releases the interpreter's lock
in its loops, so this pays where tiles are large.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulator.instructions.control import LOOPS

if TYPE_CHECKING:
    from simulator.forward import Forwarding
    from simulator.program import Instruction, Program
    from simulator.tensor import NkiTensor

MINIMUM_COST = 400_000
"""Element passes below which a second thread costs more than it gives (about 0.2 ms, measured
on this project's two-core machines)."""
MERGE_COST = 60_000
"""Components heavier than this are not merged: a new segment begins instead."""


def workers() -> int:
    """Threads to use: the cores there are, or OMP_NUM_THREADS if it is fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        asked = int(os.environ.get("OMP_NUM_THREADS", ""))
    except ValueError:
        asked = cores or 1
    return max(1, min(cores or 1, asked))


@dataclass
class Unit:
    """An instruction, or a dynamic loop with its body: positions [first, last]."""

    first: int
    last: int
    reads: set[Hashable] = field(default_factory=set)
    writes: set[Hashable] = field(default_factory=set)
    cost: int = 0
    serial: bool = False


@dataclass
class Segment:
    """Units for each worker; one list if they run one after the other."""

    lanes: list[list[Unit]]


def schedule(program: Program, forwarding: Forwarding, threads: int) -> list[Segment]:
    """Cut a Program into segments for `threads` workers."""
    units = _units(program, forwarding)
    if threads < 2 or sum(unit.cost for unit in units) < MINIMUM_COST:
        return [Segment([units])]
    segments: list[Segment] = []
    for group in _groups(units):
        lanes = _deal(group, threads)
        if len(lanes) == 1 and segments and len(segments[-1].lanes) == 1:
            segments[-1].lanes[0] += lanes[0]
        else:
            segments.append(Segment(lanes))
    return segments


# --- units ------------------------------------------------------------------------------------


def _units(program: Program, forwarding: Forwarding) -> list[Unit]:
    units: list[Unit] = []
    chains = accumulator_chains(program)
    depth = 0
    for position, instruction in enumerate(program.instructions):
        if position in forwarding.skipped:
            continue
        if not depth:
            units.append(Unit(position, position))
        unit = units[-1]
        unit.last = position
        if instruction.engine == "control":
            depth += 1 if instruction.spec.name in LOOPS else -1
            unit.serial = True
            continue
        instruction = forwarding.replaced.get(position, instruction)
        unit.serial = unit.serial or instruction.spec.serial or instruction.peer is not None
        _add(unit, instruction, forwarding)
        if position in chains:
            chain = ("accumulators", instruction.spec.accumulates, chains[position])
            unit.reads.add(chain)
            unit.writes.add(chain)
    return units


def _add(unit: Unit, instruction: Instruction, forwarding: Forwarding) -> None:
    """Note what an instruction reads, writes and costs."""
    largest = 0
    for _, tensor in instruction.reads():
        unit.reads.add(_resource(tensor, forwarding))
        largest = max(largest, tensor.size)
    for _, tensor in instruction.writes():
        resource = _resource(tensor, forwarding)
        if resource not in forwarding.disjoint_outputs:
            unit.writes.add(resource)
        largest = max(largest, tensor.size)
    if instruction.spec.macs is not None:
        largest = max(largest, instruction.spec.macs(instruction) // 16)
    unit.cost += largest
    if instruction.spec.engines[0] == "sync":  # registers
        unit.serial = True


def _resource(tensor: NkiTensor, forwarding: Forwarding) -> int:
    """The storage that stands for a view's data; tiles computed in place stand for themselves."""
    storage = tensor.storage
    while True:
        alias = forwarding.aliases.get(storage.index)
        if alias is None or alias.root.storage.role == "output":
            return storage.index
        storage = alias.root.storage


def accumulator_chains(program: Program) -> dict[int, int]:
    """For each position that uses accumulator registers: which chain of accumulations.

    A reset of all partitions in use begins a new chain, which shares nothing with the last; with
    dynamic loops all is one chain.
    """
    chains: dict[int, int] = {}
    current: dict[tuple[str, int], int] = {}
    used: dict[tuple[str, int], tuple[int, int]] = {}
    loops = any(instruction.engine == "control" for instruction in program.instructions)
    for position, instruction in enumerate(program.instructions):
        engine = instruction.spec.accumulates
        if engine is None:
            continue
        command = instruction.get("reduce_cmd")
        name = "reset_reduce" if command is None else command.name
        if name == "idle" and instruction.get("reduce_res") is None:
            continue
        key = (engine, instruction.core)
        first, stop = _partitions(instruction)
        low, high = used.get(key, (first, stop))
        resets = name in ("reset", "reset_reduce", "load_reduce")
        if resets and not loops and first <= low and high <= stop:
            current[key] = position + 1
            low, high = first, stop
        used[key] = min(low, first), max(high, stop)
        chains[position] = current.get(key, 0)
    return chains


def _partitions(instruction: Instruction) -> tuple[int, int]:
    """The partitions an instruction with accumulators works on; it starts at its data's."""
    tensors = [tensor for _, tensor in (*instruction.reads(), *instruction.writes())]
    first = min(tensor.start_partition for tensor in tensors)
    return first, max(tensor.start_partition + tensor.shape[0] for tensor in tensors)


# --- components -------------------------------------------------------------------------------


class _Components:
    """Units of one segment, joined where they share data that one of them writes."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self._parents: list[int] = []
        self._costs: list[int] = []
        self._writers: dict[Hashable, int] = {}
        self._readers: dict[Hashable, set[int]] = {}

    def find(self, unit: int) -> int:
        """The component of a unit."""
        while self._parents[unit] != unit:
            self._parents[unit] = self._parents[self._parents[unit]]
            unit = self._parents[unit]
        return unit

    def touched(self, unit: Unit) -> set[int]:
        """The components whose data a new unit shares."""
        found = {self._writers[r] for r in unit.reads if r in self._writers}
        for resource in unit.writes:
            if resource in self._writers:
                found.add(self._writers[resource])
            found |= self._readers.get(resource, set())
        return {self.find(each) for each in found}

    def heavy(self, components: set[int]) -> int:
        """How many of them are too heavy to be merged."""
        return sum(self._costs[component] > MERGE_COST for component in components)

    def add(self, unit: Unit, touched: set[int]) -> None:
        """Add a unit and join the components it touches."""
        index = len(self.units)
        self.units.append(unit)
        self._parents.append(index)
        self._costs.append(unit.cost)
        for component in touched:
            self._parents[component] = index
            self._costs[index] += self._costs[component]
        for resource in unit.reads:
            self._readers.setdefault(resource, set()).add(index)
        for resource in unit.writes:
            self._writers[resource] = index

    def components(self) -> list[list[int]]:
        """The units of each component."""
        found: dict[int, list[int]] = {}
        for index in range(len(self.units)):
            found.setdefault(self.find(index), []).append(index)
        return list(found.values())


def _groups(units: list[Unit]) -> list[_Components]:
    """Cut the units where independent heavy components would have to be joined."""
    groups = [_Components()]
    for unit in units:
        touched = groups[-1].touched(unit)
        if groups[-1].units and (
            unit.serial or groups[-1].units[-1].serial or groups[-1].heavy(touched) > 1
        ):
            groups.append(_Components())
            touched = set()
        groups[-1].add(unit, touched)
    return groups


def _deal(group: _Components, threads: int) -> list[list[Unit]]:
    """Deal components out to workers, the heaviest first; one list if it does not pay."""
    components = group.components()
    costs = [sum(group.units[i].cost for i in component) for component in components]
    loads = [0] * threads
    lanes: list[list[int]] = [[] for _ in range(threads)]
    for component in sorted(range(len(components)), key=lambda c: -costs[c]):
        worker = loads.index(min(loads))
        loads[worker] += costs[component]
        lanes[worker] += components[component]
    if sum(loads) - max(loads) < MINIMUM_COST // 2:
        return [group.units]
    return [[group.units[i] for i in sorted(lane)] for lane in lanes if lane]
