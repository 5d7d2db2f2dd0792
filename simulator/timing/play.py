"""The event-driven simulation: in-order queues, DMA engines, shared ports and banks.

Each queue runs ahead until its next instruction waits for one that has not been played, or
needs something that queues share: the DMA path, the SBUF port, a PSUM bank. Those are played
in the order of the time at which they are ready.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from heapq import heappop, heappush

from simulator.timing.cost import DMA, MEET, PORT, QUEUES, TABLE, TENSOR, Cost
from simulator.timing.decode import QUEUE_COUNT, Decoded
from simulator.timing.dma import SOFTWARE, Transfer
from simulator.timing.machine import Machine

SYNC, LOADS, STORES = (QUEUES.index(name) for name in ("sync", "loads", "stores"))
GPSIMD = QUEUES.index("gpsimd")
_SYNC_FED = (SYNC, LOADS, STORES)

START, ORDER, DEPENDENCY, SHARED, TABLE_LOAD, PEER = range(6)
"""Why an instruction did not start earlier: the begin of the kernel, its engine was busy, its
inputs were not ready, a shared port or bank was taken, a table was loaded, the
other core had not come."""


@dataclass
class Played:
    """When everything happened. One entry per played instruction; times in ns."""

    start: array[float]
    end: array[float]
    """When results can be read."""
    release: array[float]
    """When the queue could take the next instruction."""
    binding: array[int]
    """The instruction it waited for last; -1 for none."""
    cause: bytearray
    flow: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Of DMAs: first byte and last byte."""
    tables: list[tuple[int, float]] = field(default_factory=list)
    """(instruction, begin of the table load before it)."""
    port_waits: int = 0
    bank_waits: int = 0
    cold: int = 0
    """Tensor instructions that ran with a cold clock."""


class _Core:
    """What the queues of one core share."""

    def __init__(self, machine: Machine, begin: float) -> None:
        self.sequencer = begin
        """The Sync engine's sequencer, which feeds both hardware rings."""
        self.generator = begin
        """Software descriptor generation."""
        self.engines = [begin] * int(machine.dma_engines)
        self.next_engine = 0
        self.pipe = begin
        """The core's way to HBM."""
        self.port = begin
        self.port_queue = -1
        self.port_user = -1
        self.banks: dict[int, tuple[float, int, int]] = {}
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
            array("i", [-1]) * count,
            bytearray(count),
        )
        queues = QUEUE_COUNT * cores
        self.order: list[array[int]] = [array("i") for _ in range(queues)]
        for index, queue in enumerate(decoded.queues):
            self.order[queue].append(index)
        self.position = [0] * queues
        self.free = [begin] * queues
        self.last = [-1] * queues
        self.cores = [_Core(machine, begin) for _ in range(cores)]
        self.stack = begin
        semaphores = {
            name: getattr(machine, f"{name}_semaphore_ns", machine.sync_semaphore_ns)
            for name in QUEUES
        }
        self.semaphore = [semaphores[QUEUES[q % QUEUE_COUNT]] for q in range(queues)]
        self.waiting: dict[int, list[int]] = {}
        self.heap: list[tuple[float, int]] = []
        self.head: list[tuple[int, int, int]] = [(0, 0, 0)] * queues
        """Of a queue in the heap: its instruction, what bound it, and why."""
        self.arrived: dict[int, tuple[float, int]] = {}

    def run(self) -> Played:
        """Play everything.

        Raises:
            RuntimeError: instructions wait for each other in a circle.
        """
        runnable = list(range(len(self.order)))
        heap = self.heap
        while runnable or heap:
            while runnable:
                self._advance(runnable.pop(), runnable)
            if heap:
                ready, queue = heappop(heap)
                self._shared(ready, queue, runnable)
                runnable.append(queue)
        if any(p < len(o) for p, o in zip(self.position, self.order, strict=True)):
            raise RuntimeError("instructions of different queues wait for each other")
        return self.played

    def _advance(self, queue: int, runnable: list[int]) -> None:
        """Play a queue's instructions until one must wait for another queue."""
        decoded, played = self.decoded, self.played
        machine, order, costs = self.machine, self.order[queue], decoded.costs
        starts, depends = decoded.starts, decoded.depends
        queues, banks = decoded.queues, decoded.banks
        end, start, release = played.end, played.start, played.release
        binding, cause, waiting = played.binding, played.cause, self.waiting
        semaphore = self.semaphore[queue]
        core = self.cores[queue // QUEUE_COUNT]
        free, last, position = self.free[queue], self.last[queue], self.position[queue]
        length = len(order)
        while position < length:
            index = order[position]
            ready, bound, why = free, last, ORDER
            for at in range(starts[index], starts[index + 1]):
                j = depends[at]
                done = end[j]
                if done < 0:
                    if j in waiting:
                        waiting[j].append(queue)
                    else:
                        waiting[j] = [queue]
                    self.free[queue], self.last[queue], self.position[queue] = free, last, position
                    return
                if queues[j] != queue:
                    done += semaphore
                if done > ready:
                    ready, bound, why = done, j, DEPENDENCY
            price = costs[index]
            kind = price[0]
            if kind >= PORT or (banks[index] and kind != TENSOR):
                self.free[queue], self.last[queue], self.position[queue] = free, last, position
                self.head[queue] = (index, bound, why)
                heappush(self.heap, (ready, queue))
                return
            if kind == TENSOR:
                if ready > free:  # idle: nothing to load the weights behind
                    ready += price[6]
                if ready - core.tensor_last > machine.tensor_cool_after_ns:
                    core.tensor_streak = ready
                if ready - core.tensor_streak >= machine.tensor_warm_after_ns:
                    interval, latency = price[2], price[3]
                else:
                    interval, latency = price[4], price[5]
                    played.cold += 1
                core.tensor_last = ready + interval
            elif kind == TABLE and price[7] and price[7] != core.table:
                ready, why = self._table(core, index, price, ready, free, why)
                interval, latency = price[2], price[3]
            else:
                interval, latency = price[2], price[3]
            start[index] = ready
            end[index] = ready + latency
            free = release[index] = ready + interval
            binding[index] = bound
            cause[index] = why
            last = index
            position += 1
            if waiting and index in waiting:
                runnable += waiting.pop(index)
        self.free[queue], self.last[queue], self.position[queue] = free, last, position

    def _table(
        self, core: _Core, index: int, price: Cost, ready: float, free: float, why: int
    ) -> tuple[float, int]:
        """Another function table: loaded as soon as the Scalar engine is free."""
        core.table = price.table
        self.played.tables.append((index, free))
        loaded = free + self.machine.scalar_table_load_ns
        return (loaded, TABLE_LOAD) if loaded > ready else (ready, why)

    def _shared(self, ready: float, queue: int, runnable: list[int]) -> None:
        """Play the head of a queue, which needs something shared."""
        index, bound, why = self.head[queue]
        price = self.decoded.costs[index]
        if price.kind == MEET:
            self._meet(index, ready, queue, bound, why, runnable)
            return
        core = self.cores[queue // QUEUE_COUNT]
        if price.kind == DMA:
            begin, next_free, finish = self._dma(core, price, ready, queue, index)
        else:
            begin, bound, why = self._arbitrate(core, price, ready, queue, index, bound, why)
            next_free, finish = begin + price.interval, begin + price.latency
        self._done(index, queue, begin, next_free, finish, bound, why, runnable)

    def _done(
        self, index: int, queue: int, begin: float, next_free: float, finish: float,
        bound: int, why: int, runnable: list[int],
    ) -> None:  # fmt: skip
        played = self.played
        played.start[index] = begin
        played.release[index] = self.free[queue] = next_free
        played.end[index] = finish
        played.binding[index] = bound
        played.cause[index] = why
        self.last[queue] = index
        self.position[queue] += 1
        if index in self.waiting:
            runnable += self.waiting.pop(index)

    def _arbitrate(
        self, core: _Core, price: Cost, ready: float, queue: int, index: int, bound: int, why: int
    ) -> tuple[float, int, int]:
        """Wait for the SBUF port and the PSUM bank if another engine holds them."""
        begin = ready
        if price.kind == TABLE and price.table and price.table != core.table:
            begin, why = self._table(core, index, price, ready, self.free[queue], why)
        if price.kind == PORT:
            if core.port > begin and core.port_queue != queue:
                begin, bound, why = core.port, core.port_user, SHARED
                self.played.port_waits += 1
            if begin + price.interval > core.port:
                core.port, core.port_queue = begin + price.interval, queue
                core.port_user = index
        bank = self.decoded.banks[index]
        if bank:
            until, holder, user = core.banks.get(bank, (0.0, -1, -1))
            if until > begin and holder != queue:
                begin, bound, why = until, user, SHARED
                self.played.bank_waits += 1
            if begin + price.interval > until:
                core.banks[bank] = (begin + price.interval, queue, index)
        return begin, bound, why

    def _dma(
        self, core: _Core, price: Cost, ready: float, queue: int, index: int
    ) -> tuple[float, float, float]:
        """Issue, descriptor generation, transfer; returns begin, queue free, end."""
        moved = price.transfer
        assert moved is not None
        begin = ready
        ring = queue % QUEUE_COUNT
        if ring in _SYNC_FED:
            begin = max(ready, core.sequencer)
            core.sequencer = begin + moved.issue_ns
        issued = begin + moved.issue_ns
        available = issued + moved.start_ns
        if moved.path == SOFTWARE:
            core.generator = max(issued, core.generator) + moved.generate_ns
            available = core.generator + moved.start_ns
        first, last = self._transfer(core, moved, available)
        self.played.flow[index] = (first, last)
        return begin, issued, last + self.machine.dma_done_ns

    def _transfer(self, core: _Core, moved: Transfer, available: float) -> tuple[float, float]:
        """Occupy DMA engines and the way to HBM; returns first and last byte."""
        machine = self.machine
        engines = core.engines
        count = moved.engines
        if count == len(engines):
            first = max(available, max(engines))
            last = first + moved.busy_ns
        else:
            at = core.next_engine
            core.next_engine = (at + count) % len(engines)
            chosen = [(at + k) % len(engines) for k in range(count)]
            first = max(available, max(engines[e] for e in chosen))
            last = first + moved.busy_ns
        core.pipe = max(first, core.pipe) + moved.size_bytes / machine.dma_core_bytes_per_ns
        last = max(last, core.pipe)
        if moved.hbm_bytes:
            share = moved.hbm_bytes / machine.hbm_stack_bytes_per_ns
            self.stack = max(first, self.stack) + share
            last = max(last, self.stack)
        if count == len(engines):
            core.engines = [last] * count
        else:
            for engine in chosen:
                engines[engine] = last
        return first, last

    def _meet(
        self, index: int, ready: float, queue: int, bound: int, why: int, runnable: list[int]
    ) -> None:
        """Both cores come to a barrier or a sendrecv before either goes on."""
        partner = self.decoded.meets.get(index)
        price = self.decoded.costs[index]
        if partner is None:  # a Program for one core: nothing to wait for
            self._done(index, queue, ready, ready + price.interval, ready + price.latency,
                       bound, why, runnable)  # fmt: skip
            return
        other = self.arrived.pop(partner, None)
        if other is None:
            self.arrived[index] = (ready, queue)
            self.head[queue] = (index, bound, why)
            return
        begin = max(ready, other[0])
        late, early = (index, partner) if ready >= other[0] else (partner, index)
        _, other_bound, other_why = self.head[other[1]]
        for i, q, b, w in ((index, queue, bound, why), (partner, other[1], other_bound, other_why)):
            if i == early and i != late:
                b, w = late, PEER
            self._done(i, q, begin, begin + price.interval, begin + price.latency, b, w, runnable)
        runnable.append(other[1])


def play(decoded: Decoded, machine: Machine, cores: int) -> Played:
    """Play decoded instructions on a machine."""
    return _Player(decoded, machine, cores).run()
