"""How long a kernel takes at the shapes at which a graph calls it: specialised, then played.

Predicted by the timing model (docs/timing.md), never measured. A kernel in a graph has no launch
and no finish of its own: the graph compiler assembles the kernels' instructions into the one
executable that it makes of the graph (SDK documentation, "How does the NKI Compiler work with
the Neuron SDK"), which is launched once. What is left of a hand-over is in the timeline: the
first loads wait for a DMA's latency, the last store ends when its semaphores have arrived.

Predictions are kept in `store`, by everything they depend on, so that configurations which share
a kernel at a shape share its prediction.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from model.op_calls import CompileError, OpCall, specialise
from model.records import write_text
from simulator.program import Program
from simulator.targets import TARGETS
from simulator.timing import Timeline, predict

SIMULATOR = Path(__file__).parent.parent / "simulator"
ONE_CORE = {"lnc-race", "lnc-divergence"}
"""What a kernel breaks that does not divide its work between two cores."""


@dataclass(frozen=True)
class KernelPrediction:
    """One call of a kernel in a graph, on one target."""

    cores: int
    """It runs on: all of the logical core's, or one if it does not divide its work."""
    macs: int
    """Of its matrix instructions, transposes left out."""
    instructions: int
    hbm_bytes: int
    """Moved."""
    predicted_us: float
    """Without launch and finish."""
    slowed_by: str


class Predictions:
    """Predicts kernels' calls, each distinct one once."""

    def __init__(
        self, lnc: int, store: Path | None = None, sources: Mapping[str, Any] | None = None
    ) -> None:
        """A predictor.

        Args:
            lnc: physical cores of a logical one, 1 or 2.
            store: folder in which predictions are kept between runs, None for none.
            sources: op -> checksums of its kernel's source files; needed with `store`.
        """
        self.lnc = lnc
        self.store = store
        self.sources = sources or {}
        self._known: dict[str, KernelPrediction] = {}
        self._timelines: dict[str, Timeline] = {}

    def predict(self, call: OpCall, target: str) -> KernelPrediction:
        """What a call's kernel takes on `target`, `trn2` or `trn3`.

        Raises:
            CompileError: the kernel breaks a rule at these shapes.
        """
        key = self._key(call, target)
        if key not in self._known:
            kept = self._read(key)
            if kept is None:
                kept = _summary(self.timeline(call, target))
                self._write(key, kept)
            self._known[key] = kept
        return self._known[key]

    def timeline(self, call: OpCall, target: str) -> Timeline:
        """The kernel's Program at the call's shapes, played on `target`.

        Raises:
            CompileError: see `predict`.
        """
        key = self._key(call, target)
        if key not in self._timelines:
            self._timelines[key] = predict(specialised(call, target, self.lnc), target)
        return self._timelines[key]

    def _key(self, call: OpCall, target: str) -> str:
        what = [
            *(call.op, call.kernel, call.parameters, target, self.lnc),
            [(name, str(value)) for name, value in call.arguments],
            self.sources.get(call.op),
            simulator_digest() if self.store else None,
        ]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _read(self, key: str) -> KernelPrediction | None:
        """A kept prediction; None if there is none that can be read."""
        if self.store is None:
            return None
        try:
            return KernelPrediction(**json.loads((self.store / f"{key}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, key: str, prediction: KernelPrediction) -> None:
        if self.store is not None:
            write_text(
                self.store / f"{key}.json", json.dumps(dataclasses.asdict(prediction)) + "\n"
            )


def outside_us(timeline: Timeline) -> float:
    """Launch and finish of a kernel by itself, which a graph has once and not per kernel."""
    return (timeline.machine.launch_ns + timeline.machine.finish_ns) / 1000


def _summary(timeline: Timeline) -> KernelPrediction:
    causes = {c: t for c, t in timeline.critical_path_us.items() if c != "launch"}
    return KernelPrediction(
        cores=timeline.program.lnc,
        macs=timeline.program.macs(),
        instructions=len(timeline),
        hbm_bytes=timeline.hbm_bytes,
        predicted_us=timeline.latency_us - outside_us(timeline),
        slowed_by=max(causes, key=lambda cause: causes[cause]),
    )


def specialised(call: OpCall, target: str, lnc: int) -> Program:
    """The Program that a call's kernel becomes.

    On a logical core of two, the kernel is launched on both if it divides its work between
    them; one that does not would race with itself, and is launched on one.

    Raises:
        CompileError: the kernel breaks a rule.
    """
    try:
        return specialise(call, TARGETS[target], lnc, where=target)
    except CompileError as error:
        rules = {violation.rule for violation in error.violations}
        if lnc == 1 or not rules or not rules <= ONE_CORE:
            raise
    return specialised(call, target, 1)


@cache
def simulator_digest() -> str:
    """sha256 of all that a prediction depends on beside the kernel."""
    digest = hashlib.sha256()
    for path in sorted(SIMULATOR.rglob("*")):
        if path.suffix in {".py", ".yaml", ".csv"}:
            digest.update(path.relative_to(SIMULATOR).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
