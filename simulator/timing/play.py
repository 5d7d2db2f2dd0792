"""The event-driven simulation: in-order queues, DMA engines, shared ports and banks.

Each queue runs ahead until its next instruction waits for one that has not been played, or
needs something that queues share: the DMA path, the SBUF port, a PSUM bank. Those are played
in the order of the time at which they are ready.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from itertools import chain

import numpy as np

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
    moves: array[int] = field(default_factory=lambda: array("i"))
    """The DMAs, …"""
    first_byte: array[float] = field(default_factory=lambda: array("d"))
    last_byte: array[float] = field(default_factory=lambda: array("d"))
    """… and of each when its bytes began and ended to move."""
    tables: dict[int, float] = field(default_factory=dict)
    """Of instructions that load a function table: when the load began."""
    contended: dict[int, int] = field(default_factory=dict)
    """Of instructions that waited for a port, a bank or the other core: who made them wait."""
    cold: int = 0
    """Tensor instructions that ran with a cold clock."""

    @cached_property
    def flow(self) -> dict[int, tuple[float, float]]:
        """Of DMAs: first byte and last byte."""
        return dict(zip(self.moves, zip(self.first_byte, self.last_byte, strict=True), strict=True))


_NEVER = float("inf")
Step = tuple[int, float, float, Cost]
"""Kind, interval, latency and all of a cost: what most instructions need at hand."""
Head = tuple[int, tuple[int, ...] | None, Step]
"""An instruction, what it waits for, and what it does."""


class _Core:
    """What the queues of one core share."""

    __slots__ = (
        "busy", "chosen", "count", "engines", "floor", "generator", "held", "next_engine",
        "pipe", "stack", "table", "tensor_last", "tensor_streak",
    )  # fmt: skip

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


def _lane(decoded: Decoded, queue: int) -> Iterator[Head]:
    """The instructions of one queue, in order."""
    members = np.flatnonzero(np.frombuffer(decoded.queues, np.uint8) == queue).astype(np.int32)
    order = array("i", members.tobytes())
    kinds = array("i", decoded.price[members].astype(np.int32).tobytes())
    steps: list[Step] = [(p.kind, p.interval, p.latency, p) for p in decoded.prices]
    depends = decoded.depends
    return zip(order, map(depends.__getitem__, order), map(steps.__getitem__, kinds), strict=False)


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
        self.head: list[Head | None] = [None] * queues
        """The instruction that waits; None for none."""
        self.finished = [False] * queues
        self.free = [begin] * queues
        self.cores = [_Core(machine, begin) for _ in range(cores)]
        self.sharers, self.done_ns = cores, machine.dma_done_ns
        semaphores = {
            name: getattr(machine, f"{name}_semaphore_ns", machine.sync_semaphore_ns)
            for name in QUEUES
        }
        self.lanes: list[tuple[Iterator[Head], float, float, _Core]] = [
            (
                _lane(decoded, queue),
                semaphores[QUEUES[queue % QUEUE_COUNT]],
                machine.chain_ns(QUEUES[queue % QUEUE_COUNT]),
                self.cores[queue // QUEUE_COUNT],
            )
            for queue in range(queues)
        ]
        """Of each queue: what it has still to play behind its head; the time of a semaphore; the
        time from its engine's release to its own next use of the result; its core."""
        self.waiting: dict[int, list[int]] = {}
        """Instruction -> the queues whose heads wait for it."""
        self.bound = -_NEVER
        """No queue that can go on wants anything shared before that time: a queue that waited
        for an instruction goes on after its end."""
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
                queue = runnable.pop()
                if not runnable:
                    self.bound = _NEVER
                self._advance(queue, runnable)
            if heap:
                self._shared(*heappop(heap), runnable)
        if not all(self.finished):
            raise RuntimeError("instructions of different queues wait for each other")
        return self.played

    def _advance(self, queue: int, runnable: list[int]) -> None:
        """Play a queue's instructions until one must wait for another queue.

        The hot loop of the simulation: local names, no calls for what is common.
        """
        played, waiting, heap = self.played, self.waiting, self.heap
        end, start, release = played.end, played.start, played.release
        queues, dma = self.decoded.queues, self._dma
        rest, semaphore, chain_ns, core = self.lanes[queue]
        free, head, bound = self.free[queue], self.head[queue], self.bound
        for one in rest if head is None else chain((head,), rest):
            index, waits, (kind, interval, latency, price) = one
            ready = free
            if waits is not None:
                for j in waits:
                    done = end[j]
                    if done < 0:
                        waiting.setdefault(j, []).append(queue)
                        self.free[queue], self.head[queue], self.bound = free, one, bound
                        return
                    if queues[j] != queue:
                        done += semaphore
                    elif release[j] + chain_ns < done:  # the engine follows its own result
                        done = release[j] + chain_ns
                    if done > ready:
                        ready = done
            if kind >= PORT:
                if kind == MEET or ready >= bound or (heap and heap[0] < (ready, queue)):
                    self.free[queue], self.head[queue], self.bound = free, one, bound
                    heappush(heap, (ready, queue))
                    return
                # nobody else wants it earlier
                if kind == DMA:
                    free = dma(core, price.transfer, index, ready)
                    if index in waiting:
                        runnable += waiting.pop(index)
                        bound = min(bound, end[index])
                    continue
                ready = self._arbitrate(core, price, ready, queue, index, free)
            elif kind == TENSOR:
                if ready > free:  # idle: nothing to load the weights behind
                    ready += price.lead
                if ready - core.tensor_last > self.machine.tensor_cool_after_ns:
                    core.tensor_streak = ready
                if ready - core.tensor_streak < self.machine.tensor_warm_after_ns:
                    interval = price.cold_interval
                    latency = price.cold_latency
                    played.cold += 1
                core.tensor_last = ready + interval
            elif kind == TABLE and price.table and price.table != core.table:
                ready = self._table(core, index, price, ready, free)
            start[index] = ready
            end[index] = ready + latency
            release[index] = free = ready + interval
            if index in waiting:
                runnable += waiting.pop(index)
                bound = min(bound, end[index])
        self.free[queue], self.head[queue], self.bound = free, None, bound
        self.finished[queue] = True

    def _table(self, core: _Core, index: int, price: Cost, ready: float, free: float) -> float:
        """Another function table: loaded as soon as the Scalar engine is free."""
        core.table = price.table
        self.played.tables[index] = free
        return max(ready, free + self.machine.scalar_table_load_ns)

    def _shared(self, ready: float, queue: int, runnable: list[int]) -> None:
        """Play the head of a queue, which needs something shared, and go on with the queue."""
        head = self.head[queue]
        assert head is not None
        index, _, (kind, interval, latency, price) = head
        core, free = self.cores[queue // QUEUE_COUNT], self.free[queue]
        if kind == DMA:
            self.free[queue] = self._dma(core, price.transfer, index, ready)
            self._done(index, queue, runnable)
        elif kind == MEET:
            self._meet(index, ready, queue, price, runnable)
            return
        else:
            begin = self._arbitrate(core, price, ready, queue, index, free)
            self._note(index, queue, begin, begin + interval, begin + latency)
            self._done(index, queue, runnable)
        self._advance(queue, runnable)

    def _note(self, index: int, queue: int, begin: float, free: float, finish: float) -> None:
        played = self.played
        played.start[index] = begin
        played.release[index] = self.free[queue] = free
        played.end[index] = finish

    def _done(self, index: int, queue: int, runnable: list[int]) -> None:
        """A queue's head has been played: those that waited for it may go on."""
        self.head[queue] = None
        if index in self.waiting:
            runnable += self.waiting.pop(index)
            self.bound = min(self.bound, self.played.end[index])

    def _arbitrate(
        self, core: _Core, price: Cost, ready: float, queue: int, index: int, free: float
    ) -> float:
        """Wait for the SBUF port or the PSUM bank if another engine holds it."""
        begin = ready
        if price.table and price.table != core.table:
            begin = self._table(core, index, price, ready, free)
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

    def _dma(self, core: _Core, moved: Transfer | None, index: int, ready: float) -> float:
        """Issue, descriptor generation, transfer; returns when the queue is free again."""
        assert moved is not None
        issued = ready + moved.issue_ns
        if moved.path is SOFTWARE:
            core.generator = max(issued, core.generator) + moved.generate_ns
            first = core.generator + moved.start_ns
        else:
            first = issued + moved.start_ns
        some = moved.engines < core.count
        if some:
            first, last = self._some_engines(core, moved, first)
        else:
            if core.busy > first:
                first = core.busy
            last = first + moved.busy_ns
        pipe = core.pipe
        core.pipe = pipe = (pipe if pipe > first else first) + moved.pipe_ns
        if pipe > last:
            last = pipe
        if moved.hbm_ns:
            stack = core.stack
            core.stack = stack = (stack if stack > first else first) + moved.hbm_ns * self.sharers
            if stack > last:
                last = stack
        if some:
            for engine in core.chosen:
                core.engines[engine] = last
            core.busy = max(core.busy, last)
        else:
            core.busy = core.floor = last
        played = self.played
        played.moves.append(index)
        played.first_byte.append(first)
        played.last_byte.append(last)
        played.start[index] = ready
        played.release[index] = issued
        played.end[index] = last + self.done_ns
        return issued

    def _some_engines(self, core: _Core, moved: Transfer, first: float) -> tuple[float, float]:
        """A transfer by some of the DMA engines, taken in turn; returns first and last byte."""
        at = core.next_engine
        core.next_engine = (at + moved.engines) % core.count
        core.chosen = [(at + k) % core.count for k in range(moved.engines)]
        first = max(first, core.floor, max(core.engines[e] for e in core.chosen))
        return first, first + moved.busy_ns

    def _meet(self, index: int, ready: float, queue: int, price: Cost, runnable: list[int]) -> None:
        """Both cores come to a barrier or a sendrecv before either goes on."""
        partner = self.decoded.meets.get(index)
        partners = [(index, queue)]
        begin = ready
        if partner is not None:  # else a Program for one core: nothing to wait for
            if partner not in self.arrived:
                self.arrived[index] = (ready, queue)
                return
            other, other_queue = self.arrived.pop(partner)
            partners.append((partner, other_queue))
            begin = max(ready, other)
            if ready != other:
                early, late = (partner, index) if ready > other else (index, partner)
                self.played.contended[early] = late
        for one, its_queue in partners:
            self._note(one, its_queue, begin, begin + price.interval, begin + price.latency)
            self._done(one, its_queue, runnable)
            runnable.append(its_queue)
        self.bound = min(self.bound, begin)


def play(decoded: Decoded, machine: Machine, cores: int) -> Played:
    """Play decoded instructions on a machine."""
    return _Player(decoded, machine, cores).run()
