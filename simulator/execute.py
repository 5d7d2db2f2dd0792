"""Execute: replay a Program on data.

A `Plan` resolves every view once, packs on-chip tensors by lifetime into one arena, and binds
arguments and outputs at each call.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from simulator.arena import pack
from simulator.contract import contract
from simulator.errors import NkiValidationError, Violation
from simulator.forward import forward
from simulator.instructions.control import LOOPS
from simulator.instructions.table import Array, Run
from simulator.lnc import end_of
from simulator.machine import BUFFER, NOTHING, UNINITIALISED, Machine, fill, flat_bytes, poison
from simulator.program import Instruction, Program
from simulator.registers import VirtualRegister
from simulator.schedule import accumulator_chains, schedule, workers
from simulator.tensor import NkiTensor


class Plan(Machine):
    """A Program made ready to run. Safe to call from several threads, one at a time."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._lock = threading.Lock()
        self._allocated = False
        self._forwarding = forward(program)
        contract(program, self._forwarding)
        self._segments = self._prepare()
        self._results = [self(result) for result in program.results]
        external = ("argument", "output")
        self._bound = [
            (slot, tensor)
            for slot, tensor in enumerate(self._tensors)
            if tensor is not None and tensor.storage.role in external
        ]
        self._runs = [state for key, state in self.states.items() if key.startswith("runs:")]
        self._outputs = [s for s in program.storages if s.role == "output"]
        self._uncertain = [program.storages[index] for index in sorted(program.uncertain)]
        registers = [slot for key, slot in self._slots.items() if key[0] == "register"]
        self._registers = [self.views[slot] for slot in registers]

    def is_constant(self, tensor: NkiTensor) -> bool:
        """Whether the view shows an argument that the Program does not write."""
        if tensor.dynamic is not None:
            return False
        storage = self._forwarding.root(tensor).storage
        return storage.role == "argument" and storage.name not in self.program.written_arguments

    # --- preparing --------------------------------------------------------------------------

    def _prepare(self) -> list[list[list[Run]]]:
        """The segments of the schedule, each with the steps of its workers."""
        self._schedule = schedule(self.program, self._forwarding, workers())
        chains = accumulator_chains(self.program)
        prepared = []
        for segment in self._schedule:
            lanes = []
            for self._worker, units in enumerate(segment.lanes):
                steps: list[Run] = []
                for unit in units:
                    self._chain = chains.get(unit.first, 0)
                    steps += self._block(unit.first, unit.last + 1)
                lanes.append(steps)
            self._worker = 0
            prepared.append(lanes)
        return prepared

    def _block(self, position: int, stop: int) -> list[Run]:
        """The steps of the instructions from `position` up to `stop`, loops as one step."""
        steps: list[Run] = []
        instructions = self.program.instructions
        while position < stop:
            instruction = instructions[position]
            if instruction.spec.name in LOOPS:
                end = end_of(instructions, position)
                body = self._block(position + 1, end)
                if instruction.peer is None or instruction.core == 0:
                    steps.append(self._loop(instruction, body, instructions[end]))
                else:  # the other core's begin of a loop that both run
                    steps += body
                position = end + 1
                continue
            if position not in self._forwarding.skipped:
                replaced = self._forwarding.replaced.get(position, instruction)
                steps.append(self.lower(replaced))
            position += 1
        return steps

    def _loop(self, begin: Instruction, body: list[Run], end: Instruction) -> Run:
        registers = [self.register(begin["register"])]
        if begin.peer is not None:
            registers.append(self.register(begin.peer["register"]))
        if begin.spec.name == "while_begin":
            return self._while(begin, body, end, registers)
        bounds = [self._bounds(begin)]
        if begin.peer is not None:
            bounds.append(self._bounds(begin.peer))

        def run(views: list[Array]) -> None:
            trips = [bound(views) for bound in bounds]
            if len({len(trip) for trip in trips}) > 1:
                raise _divergent(begin, [len(trip) for trip in trips])
            for values in zip(*trips, strict=True):
                for register, value in zip(registers, values, strict=True):
                    views[register][...] = value
                for step in body:
                    step(views)

        return run

    def _bounds(self, begin: Instruction) -> Callable[[list[Array]], range]:
        def reader(bound: Any) -> Callable[[list[Array]], int]:
            if not isinstance(bound, VirtualRegister):
                return lambda views: int(bound)
            slot = self.register(bound)
            return lambda views: int(views[slot])

        start, stop, step = reader(begin["start"]), reader(begin["stop"]), begin["step"]
        return lambda views: range(start(views), stop(views), step)

    def _while(
        self, begin: Instruction, body: list[Run], end: Instruction, registers: list[int]
    ) -> Run:
        ends = [end] if end.peer is None else [end, end.peer]
        following = [self.register(each["following"]) for each in ends]

        def run(views: list[Array]) -> None:
            while True:
                alive = {bool(views[register]) for register in registers}
                if len(alive) > 1:
                    raise _divergent(begin, [int(views[register]) for register in registers])
                if alive == {False}:
                    return
                for step in body:
                    step(views)
                for register, new in zip(registers, following, strict=True):
                    views[register][...] = views[new]

        return run

    # --- running ----------------------------------------------------------------------------

    def run(self, arguments: Mapping[str, Array]) -> list[Array]:
        """Replay on contiguous arrays, one per tensor argument; arguments may be written.

        Returns:
            One array per result, in order; a result that is an argument is its view.
        """
        with self._lock, np.errstate(all="ignore"):
            np.setbufsize(BUFFER)  # until errstate ends
            self._bind(arguments)
            views = self.views
            for counter in self._runs:
                counter[0] += 1
            for lanes in self._segments:
                others = [_pool().submit(_run_lane, lane, views) for lane in lanes[1:]]
                try:
                    for step in lanes[0]:
                        step(views)
                finally:
                    wait(others)
                for other in others:
                    other.result()
            results = [views[slot] for slot in self._results]
            if not self.precise:
                self._write_back(arguments)
            for slot, tensor in self._bound:  # keep no caller's memory alive
                views[slot] = NOTHING
                self.memory.pop(tensor.storage.index, None)
        return results

    def _bind(self, arguments: Mapping[str, Array]) -> None:
        if not self._allocated:
            self._allocate()
        memory = self.memory
        for name, tensor in self.program.arguments.items():
            memory[tensor.storage.index] = flat_bytes(arguments[name], self.precise, tensor)
        if self.program.written_arguments:
            self._part_shared_arguments(arguments)
        for storage in self._outputs:
            memory[storage.index] = np.empty(self.bytes_of(storage), np.uint8)
        for storage in self._uncertain:
            poison(memory[storage.index], storage, self)
        for register in self._registers:
            register[...] = UNINITIALISED
        for slot, tensor in self._bound:
            self.views[slot] = self.resolve(tensor, memory[tensor.storage.index])

    def _part_shared_arguments(self, arguments: Mapping[str, Array]) -> None:
        """An array given twice, and written through one name, is copied for the other."""
        written = self.program.written_arguments
        for name, tensor in self.program.arguments.items():
            if name not in written and any(
                np.may_share_memory(arguments[name], arguments[other]) for other in written
            ):
                index = tensor.storage.index
                self.memory[index] = self.memory[index].copy()

    def _allocate(self) -> None:
        addresses, size = pack(self.program, self.bytes_of, self._forwarding, self._schedule)
        arena = np.zeros(size, np.uint8)
        for storage in self.program.storages:
            if storage.role == "constant":
                self.memory[storage.index] = fill(storage, self)
            elif storage.role == "temporary" and storage.index in self.program.uncertain:
                self.memory[storage.index] = np.zeros(self.bytes_of(storage), np.uint8)
            elif storage.index in addresses:
                start = addresses[storage.index]
                self.memory[storage.index] = arena[start : start + self.bytes_of(storage)]
        for slot, tensor in enumerate(self._tensors):
            if tensor is not None and tensor.storage.index in self.memory:
                self.views[slot] = self.resolve(tensor, self.memory[tensor.storage.index])
        self._allocated = True


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads for the segments that use more than one."""
    return ThreadPoolExecutor(max(1, workers() - 1), "nki-simulator")


def _run_lane(steps: list[Run], views: list[Array]) -> None:
    """One worker's steps, in its thread."""
    with np.errstate(all="ignore"):
        np.setbufsize(BUFFER)
        for step in steps:
            step(views)


def _divergent(begin: Instruction, found: list[int]) -> NkiValidationError:
    return NkiValidationError(
        [
            Violation(
                "lnc-divergence",
                "the cores run a loop with a barrier a different number of times",
                "Give both cores the same trip count",
                begin.file,
                begin.line,
                begin.spec.name,
                limit="the same on both cores",
                value=" and ".join(map(str, found)),
            )
        ]
    )
