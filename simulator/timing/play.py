"""The event-driven simulation: in-order queues, DMA engines, shared ports and banks.

Each queue runs ahead until its next instruction waits for one that has not been played, or
needs something that queues share: the DMA path, the SBUF port, a PSUM bank. Those are played
in the order of the time at which they are ready.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain

from simulator.timing.cost import DMA, MEET, PORT, QUEUES, TABLE, TENSOR, Cost
from simulator.timing.decode import QUEUE_COUNT, Decoded
from simulator.timing.dma import SOFTWARE, Transfer
from simulator.timing.machine import Machine


@dataclass
class Played:
    """When everything happened. One entry per played instruction; times in ns."""

    start: array[float]
    end: array[float]
    """When results can be read."""
    release: array[float]
    """When the queue could take the next instruction."""
    flow: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Of DMAs: first byte and last byte."""
    tables: dict[int, float] = field(default_factory=dict)
    """Of instructions that load a function table: when the load began."""
    contended: dict[int, int] = field(default_factory=dict)
    """Of instructions that waited for a port, a bank or the other core: who made them wait."""
    cold: int = 0
    """Tensor instructions that ran with a cold clock."""


class _Core:
    """What the queues of one core share."""

    def __init__(self, machine: Machine, begin: float) -> None:
        self.generator = begin
        """Software descriptor generation."""
        self.count = int(machine.dma_engines)
        self.engines = [begin] * self.count
        """Until when each DMA engine is busy, unless `floor` says longer for all of them."""
        self.floor = begin
        self.busy = begin
        """Until when any of them is."""
        self.next_engine = 0
        self.chosen: list[int] = []
        self.pipe = begin
        """The core's way to HBM."""
        self.stack = begin
        """Its share of the HBM stack. One reservation for both cores would make a core wait for
        what the other has queued but not begun: transfers are played when they are issued."""
        self.held: dict[int, tuple[float, int, int]] = {}
        """The SBUF port (0) and the PSUM banks (from 1): until when, by which queue, for which
        instruction."""
        self.table = -1
        self.tensor_streak = -1e18
        self.tensor_last = -1e18


class _Player:
    """The state of one simulation."""

    def __init__(self, decoded: Decoded, machine: Machine, cores: int) -> None:
        count = len(decoded.costs)
        self.decoded = decoded
        self.machine = machine
        begin = machine.launch_ns
        self.played = Played(
            array("d", bytes(8 * count)),
            array("d", [-1.0]) * count,
            array("d", bytes(8 * count)),
        )
        queues = QUEUE_COUNT * cores
        order: list[array[int]] = [array("i") for _ in range(queues)]
        for index, queue in enumerate(decoded.queues):
            order[queue].append(index)
        self.head = [-1] * queues
        """The instruction that waits; -1 for none."""
        self.finished = [False] * queues
        self.free = [begin] * queues
        self.cores = [_Core(machine, begin) for _ in range(cores)]
        semaphores = {
            name: getattr(machine, f"{name}_semaphore_ns", machine.sync_semaphore_ns)
            for name in QUEUES
        }
        self.lanes: list[tuple[Iterator[int], float, float, _Core]] = [
            (
                iter(one),
                semaphores[QUEUES[q % QUEUE_COUNT]],
                machine.chain_ns(QUEUES[q % QUEUE_COUNT]),
                self.cores[q // QUEUE_COUNT],
            )
            for q, one in enumerate(order)
        ]
        """Of each queue: what it has still to play behind its head; the time of a semaphore; the
        time from its engine's release to its own next use of the result; its core."""
        self.waiting: dict[int, list[int]] = {}
        """Instruction -> the queues whose heads wait for it."""
        played = self.played
        self.hot = (
            decoded.costs, decoded.depends, decoded.queues,
            played.end, played.start, played.release, self.waiting,
        )  # fmt: skip
        self.heap: list[tuple[float, int]] = []
        """Queues whose heads are ready for something shared, by time."""
        self.arrived: dict[int, tuple[float, int]] = {}

    def run(self) -> Played:
        """Play everything.

        Raises:
            RuntimeError: instructions wait for each other in a circle.
        """
        runnable = list(range(len(self.lanes)))
        heap = self.heap
        while runnable or heap:
            while runnable:
                self._advance(runnable.pop(), runnable)
            if heap:
                ready, queue = heappop(heap)
                self._shared(ready, queue, runnable)
        if not all(self.finished):
            raise RuntimeError("instructions of different queues wait for each other")
        return self.played

    def _advance(self, queue: int, runnable: list[int]) -> None:
        """Play a queue's instructions until one must wait for another queue.

        The hot loop of the simulation: local names, no calls for what is common.
        """
        costs, depends, queues, end, start, release, waiting = self.hot
        rest, semaphore, chain_ns, core = self.lanes[queue]
        free, head = self.free[queue], self.head[queue]
        for index in chain((head,), rest) if head >= 0 else rest:
            ready = free
            waits = depends[index]
            if waits is not None:
                for j in waits:
                    done = end[j]
                    if done < 0:
                        waiting.setdefault(j, []).append(queue)
                        self.free[queue], self.head[queue] = free, index
                        return
                    if queues[j] != queue:
                        done += semaphore
                    elif release[j] + chain_ns < done:  # the engine follows its own result
                        done = release[j] + chain_ns
                    if done > ready:
                        ready = done
            price = costs[index]
            kind = price[0]
            if kind >= PORT:
                self.free[queue], self.head[queue] = free, index
                heappush(self.heap, (ready, queue))
                return
            interval = price[2]
            latency = price[3]
            if kind == TENSOR:
                if ready > free:  # idle: nothing to load the weights behind
                    ready += price[6]
                if ready - core.tensor_last > self.machine.tensor_cool_after_ns:
                    core.tensor_streak = ready
                if ready - core.tensor_streak < self.machine.tensor_warm_after_ns:
                    interval = price[4]
                    latency = price[5]
                    self.played.cold += 1
                core.tensor_last = ready + interval
            elif kind == TABLE and price[7] and price[7] != core.table:
                ready = self._table(core, index, price, ready, free)
            start[index] = ready
            end[index] = ready + latency
            release[index] = free = ready + interval
            if index in waiting:
                runnable += waiting.pop(index)
        self.free[queue], self.head[queue] = free, -1
        self.finished[queue] = True

    def _table(self, core: _Core, index: int, price: Cost, ready: float, free: float) -> float:
        """Another function table: loaded as soon as the Scalar engine is free."""
        core.table = price.table
        self.played.tables[index] = free
        return max(ready, free + self.machine.scalar_table_load_ns)

    def _shared(self, ready: float, queue: int, runnable: list[int]) -> None:
        """Play the head of a queue, which needs something shared."""
        index = self.head[queue]
        price = self.decoded.costs[index]
        kind = price[0]
        core = self.cores[queue // QUEUE_COUNT]
        if kind == DMA:
            self._dma(core, price, ready, index, queue, runnable)
        elif kind == MEET:
            self._meet(index, ready, queue, runnable)
        else:
            begin = self._arbitrate(core, price, ready, queue, index)
            self._done(index, queue, begin, begin + price[2], begin + price[3], runnable)

    def _done(
        self, index: int, queue: int, begin: float, next_free: float, finish: float,
        runnable: list[int],
    ) -> None:  # fmt: skip
        played = self.played
        played.start[index] = begin
        played.release[index] = self.free[queue] = next_free
        played.end[index] = finish
        self.head[queue] = -1
        runnable.append(queue)
        if index in self.waiting:
            runnable += self.waiting.pop(index)

    def _arbitrate(self, core: _Core, price: Cost, ready: float, queue: int, index: int) -> float:
        """Wait for the SBUF port or the PSUM bank if another engine holds it."""
        begin = ready
        if price.table and price.table != core.table:
            begin = self._table(core, index, price, ready, self.free[queue])
        resource = 0 if price.kind == PORT else self.decoded.banks.get(index, -1)
        if resource < 0:
            return begin
        until, holder, user = core.held.get(resource, (0.0, -1, -1))
        if until > begin and holder != queue:
            begin = until
            self.played.contended[index] = user
        if begin + price.interval > until:
            core.held[resource] = (begin + price.interval, queue, index)
        return begin

    def _dma(
        self, core: _Core, price: Cost, ready: float, index: int, queue: int, runnable: list[int]
    ) -> None:
        """Issue, descriptor generation, transfer."""
        moved = price.transfer
        assert moved is not None
        issued = ready + moved.issue_ns
        if moved.path is SOFTWARE:
            core.generator = max(issued, core.generator) + moved.generate_ns
            first = core.generator + moved.start_ns
        else:
            first = issued + moved.start_ns
        if moved.engines < core.count:
            first, last = self._some_engines(core, moved, first)
        else:
            if core.busy > first:
                first = core.busy
            last = first + moved.busy_ns
        pipe = (core.pipe if core.pipe > first else first) + moved.pipe_ns
        core.pipe = pipe
        if pipe > last:
            last = pipe
        if moved.hbm_ns:
            share = moved.hbm_ns * len(self.cores)
            stack = (core.stack if core.stack > first else first) + share
            core.stack = stack
            if stack > last:
                last = stack
        if moved.engines < core.count:
            for engine in core.chosen:
                core.engines[engine] = last
            core.busy = max(core.busy, last)
        else:
            core.busy = core.floor = last
        played = self.played
        played.flow[index] = (first, last)
        played.start[index] = ready
        played.release[index] = self.free[queue] = issued
        played.end[index] = last + self.machine.dma_done_ns
        self.head[queue] = -1
        runnable.append(queue)
        if index in self.waiting:
            runnable += self.waiting.pop(index)

    def _some_engines(self, core: _Core, moved: Transfer, first: float) -> tuple[float, float]:
        """A transfer by some of the DMA engines, taken in turn; returns first and last byte."""
        at = core.next_engine
        core.next_engine = (at + moved.engines) % core.count
        core.chosen = [(at + k) % core.count for k in range(moved.engines)]
        first = max(first, core.floor, max(core.engines[e] for e in core.chosen))
        return first, first + moved.busy_ns

    def _meet(self, index: int, ready: float, queue: int, runnable: list[int]) -> None:
        """Both cores come to a barrier or a sendrecv before either goes on."""
        partner = self.decoded.meets.get(index)
        price = self.decoded.costs[index]
        interval, latency = price.interval, price.latency
        if partner is None:  # a Program for one core: nothing to wait for
            self._done(index, queue, ready, ready + interval, ready + latency, runnable)
            return
        if partner not in self.arrived:
            self.arrived[index] = (ready, queue)
            return
        other, other_queue = self.arrived.pop(partner)
        begin = max(ready, other)
        if ready != other:
            early, late = (partner, index) if ready > other else (index, partner)
            self.played.contended[early] = late
        self._done(index, queue, begin, begin + interval, begin + latency, runnable)
        self._done(partner, other_queue, begin, begin + interval, begin + latency, runnable)


def play(decoded: Decoded, machine: Machine, cores: int) -> Played:
    """Play decoded instructions on a machine."""
    return _Player(decoded, machine, cores).run()
