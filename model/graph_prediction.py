"""What one run of a graph does and takes: its op calls, each with its cost, and their sums.

Ops follow each other: the latency of a graph is the sum of its ops' latencies. That is what a
graph of kernels does whose every input is the one before's output; that the compiler may load the
next kernel's weights early, or overlap a collective with compute, is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from model import collectives
from model.estimate import estimate, roofline_us
from model.op_calls import OpCall
from model.ops import kernel_name
from model.predict import Predictions
from model.records import Graph, GraphPrediction, GraphTrace, OpTrace
from model.step_timeline import Slot
from model.work import size_bytes, work_of
from simulator.timing import load_machine

Basis = Literal["timing model", "coarse estimate", "formula"]
Bound = Literal["compute", "memory", "link"]


@dataclass(frozen=True)
class Cost:
    """One call of an op on one target; fields as in `OpTrace`."""

    kernel: str
    basis: Basis
    macs: int
    macs_needed: int
    hbm_bytes: int
    hbm_bytes_needed: int
    predicted_us: float
    roofline_us: float
    bound_by: Bound
    slowed_by: str
    instructions: int = 0

    @property
    def nki(self) -> bool:
        """A kernel fills the op."""
        return self.basis == "timing model"

    def without(self, part: Cost) -> Cost:
        """This op, of which `part` is a call of its own."""
        return dataclasses.replace(
            self,
            macs=max(0, self.macs - part.macs),
            macs_needed=max(0, self.macs_needed - part.macs_needed),
            hbm_bytes=max(0, self.hbm_bytes - part.hbm_bytes),
            hbm_bytes_needed=max(0, self.hbm_bytes_needed - part.hbm_bytes_needed),
            predicted_us=max(0.0, self.predicted_us - part.predicted_us),
            roofline_us=max(0.0, self.roofline_us - part.roofline_us),
        )


@dataclass(frozen=True)
class GraphRun:
    """One run of a graph at one bucket: its calls, in order."""

    graph: Graph
    bucket: str
    calls: Sequence[OpCall]


class Costs:
    """Prices op calls on one target; equal calls once."""

    def __init__(self, target: str, predictions: Predictions) -> None:
        """`predictions` knows the kernels and the size of a logical core."""
        self.machine = load_machine(target)
        self.predictions = predictions
        self._known: dict[OpCall, Cost] = {}

    def of_run(self, run: GraphRun) -> list[Cost]:
        """Of every call; what an op's reference leaves to other calls is only in theirs.

        Raises:
            CompileError: a kernel breaks a rule at the shapes of a call.
        """
        found = [self.of(call) for call in run.calls]
        enclosing: list[tuple[str, int | None, int]] = []
        for index, call in enumerate(run.calls):
            while enclosing and enclosing[-1][:2] != (call.inside, call.layer):
                enclosing.pop()
            if enclosing:  # only the nearest: it has been relieved of this in turn
                outer = enclosing[-1][2]
                found[outer] = found[outer].without(self._reference(call))
            enclosing.append((call.op, call.layer, index))
        return found

    def of(self, call: OpCall) -> Cost:
        """Of one call by itself."""
        key = dataclasses.replace(call, layer=None, inside=None)
        if key not in self._known:
            if collectives.is_collective(call.op):
                self._known[key] = self._collective(call)
            else:
                self._known[key] = self._kernel(call) if call.kernel else self._reference(call)
        return self._known[key]

    def _kernel(self, call: OpCall) -> Cost:
        work = work_of(call)
        least, bound = roofline_us(work, self.machine, self.predictions.lnc)
        found = self.predictions.predict(call, self.machine.name)
        return Cost(
            kernel=kernel_name(call.kernel or ""),
            basis="timing model",
            macs=found.macs,
            macs_needed=work.macs,
            hbm_bytes=found.hbm_bytes,
            hbm_bytes_needed=work.hbm_bytes,
            predicted_us=found.predicted_us,
            roofline_us=least,
            bound_by="compute" if bound == "compute" else "memory",
            slowed_by=found.slowed_by,
            instructions=found.instructions,
        )

    def _reference(self, call: OpCall) -> Cost:
        work = work_of(call)
        least, bound = roofline_us(work, self.machine, self.predictions.lnc)
        found = estimate(call, work, self.machine, self.predictions.lnc)
        return Cost(
            kernel="reference",
            basis="coarse estimate",
            macs=work.dot_macs,
            macs_needed=work.macs,
            hbm_bytes=found.traffic_bytes,
            hbm_bytes_needed=work.hbm_bytes,
            predicted_us=found.predicted_us,
            roofline_us=least,
            bound_by="compute" if bound == "compute" else "memory",
            slowed_by=found.slowed_by,
        )

    def _collective(self, call: OpCall) -> Cost:
        bytes_moved = size_bytes(*call.tensors.values(), *call.results)
        return Cost(
            kernel="collective",
            basis="formula",
            macs=0,
            macs_needed=0,
            hbm_bytes=bytes_moved,
            hbm_bytes_needed=bytes_moved,
            predicted_us=collectives.predicted_us(call, self.machine),
            roofline_us=collectives.roofline_us(call, self.machine),
            bound_by="link",
            slowed_by="latency and link",
        )


def op_traces(run: GraphRun, costs: Sequence[Cost]) -> list[OpTrace]:
    """Rows of the table: an op's calls at the same shapes and cost together, in first order."""
    rows: dict[tuple[str, str, Cost], OpTrace] = {}
    for call, cost in zip(run.calls, costs, strict=True):
        shapes = ", ".join(f"{name}={tensor}" for name, tensor in call.tensors.items())
        key = (call.op, shapes, cost)
        row = rows.get(key)
        rows[key] = _row(run, call.op, shapes, cost, 1 if row is None else row.calls + 1)
    return list(rows.values())


def _row(run: GraphRun, op: str, shapes: str, cost: Cost, calls: int) -> OpTrace:
    return OpTrace(
        op=op,
        kernel=cost.kernel,
        nki=cost.nki,
        graph=run.graph,
        bucket=run.bucket,
        shapes=shapes,
        calls=calls,
        macs=calls * cost.macs,
        macs_needed=calls * cost.macs_needed,
        hbm_bytes=calls * cost.hbm_bytes,
        hbm_bytes_needed=calls * cost.hbm_bytes_needed,
        predicted_us=calls * cost.predicted_us,
        roofline_us=calls * cost.roofline_us,
        bound_by=cost.bound_by,
        slowed_by=cost.slowed_by,
        basis=cost.basis,
    )


def graph_trace(run: GraphRun, costs: Sequence[Cost]) -> GraphTrace:
    """What is counted."""
    kernels = [cost for cost in costs if cost.nki]
    return GraphTrace(
        graph=run.graph,
        bucket=run.bucket,
        macs_nki=sum(cost.macs for cost in kernels),
        macs_total=sum(cost.macs for cost in costs),
        macs_needed_nki=sum(cost.macs_needed for cost in kernels),
        macs_needed_total=sum(cost.macs_needed for cost in costs),
        nki_instructions=sum(cost.instructions for cost in kernels),
        nki_kernel_calls=len(kernels),
        nki_hbm_bytes=sum(cost.hbm_bytes for cost in kernels),
    )


def graph_prediction(run: GraphRun, costs: Sequence[Cost]) -> GraphPrediction:
    """What is predicted; the parts add up."""

    def milliseconds(basis: Basis) -> float:
        return sum(cost.predicted_us for cost in costs if cost.basis == basis) / 1000

    parts = [milliseconds(b) for b in ("timing model", "coarse estimate", "formula")]
    return GraphPrediction(
        graph=run.graph,
        bucket=run.bucket,
        predicted_ms=sum(parts),
        predicted_nki_ms=parts[0],
        predicted_reference_ms=parts[1],
        predicted_collective_ms=parts[2],
        roofline_ms=sum(cost.roofline_us for cost in costs) / 1000,
        hbm_bytes=sum(cost.hbm_bytes for cost in costs),
    )


def slots(
    run: GraphRun, costs: Sequence[Cost], predictions: Predictions, target: str
) -> Iterable[Slot]:
    """The run's ops one after the other, kernels with their timelines."""
    begin = 0.0
    for call, cost in zip(run.calls, costs, strict=True):
        yield Slot(
            op=call.op,
            kernel=cost.kernel,
            layer=call.layer,
            begin_us=begin,
            predicted_us=cost.predicted_us,
            collective=cost.basis == "formula",
            timeline=predictions.timeline(call, target) if cost.nki else None,
            details={"basis": cost.basis, "slowed by": cost.slowed_by},
        )
        begin += cost.predicted_us
