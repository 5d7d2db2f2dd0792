"""The latency stage: a configuration against the baseline, interleaved, once the gates are passed.

Both are loaded into one process and run in turn (evaluation.interleave), so that they meet the
same machine. What is measured is wall clock on the device named in the record; the simulator's
says nothing about Trainium. Definitions are in docs/evaluation.md.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
from pathlib import Path

import torch

from evaluation.estimates import COMPARED, Comparison, Estimate
from evaluation.gates import (
    Inputs,
    artefact_gates,
    both_graphs,
    model_gates,
    read_inputs,
    same_work_gates,
    sentences,
)
from evaluation.inputs import EvaluationError
from evaluation.interleave import SIDES, Runner, Session, interleave
from evaluation.latency_records import LatencyConditions, LatencyRecord, Side, TimedRun
from evaluation.latency_summary import far_out_runs, side_latency
from evaluation.records import Gate
from evaluation.statistics import estimate_ratio, verdict
from model import runtime
from model.configuration import (
    Config,
    KernelConfiguration,
    kernel_configuration_path,
    read_kernel_configuration,
)
from model.fingerprint import file_sha256, fingerprint
from model.prompts import read_prompts
from model.records import RunTiming
from model.runtime import LanguageModel

log = logging.getLogger(__name__)


class TimedModel:
    """Runs prompts on a model, and keeps account of what the runs did."""

    def __init__(self, model: LanguageModel, prompts: dict[str, list[int]], new_tokens: int):
        """`prompts` are tokens by name; every run gives `new_tokens` of them."""
        self.model = model
        self.prompts = prompts
        self.new_tokens = new_tokens
        self.tokens: dict[str, list[list[int]]] = {name: [] for name in prompts}
        self.calls: dict[str, set[tuple[tuple[str, int], ...]]] = {name: set() for name in prompts}

    def __call__(self, prompt: str) -> RunTiming:
        """One greedy generation; no stop token ends it."""
        before = self._calls()
        [run] = self.model.generate([self.prompts[prompt]], self.new_tokens, [])
        after = self._calls()
        if run.tokens not in self.tokens[prompt]:
            self.tokens[prompt].append(list(run.tokens))
        counts = tuple((name, after[name] - before.get(name, 0)) for name in sorted(after))
        self.calls[prompt].add(counts)
        return RunTiming(ttft_ms=run.ttft_ms, itl_ms=run.itl_ms, end_to_end_ms=run.end_to_end_ms)

    def _calls(self) -> dict[str, int]:
        return {name: sum(c.values()) for name, c in self.model.kernel_calls().items()}


def latency(
    config: Config,
    name: str,
    manifest: Path,
    baseline_manifest: Path,
    checkpoint: Path,
    output: Path,
) -> LatencyRecord:
    """Check the gates, measure, compare, and write the record.

    A failed gate withholds the timings and is said in the record; the stage succeeds.

    Args:
        config: The evaluation.
        name: The kernel configuration.
        manifest: Its compile manifest.
        baseline_manifest: That of `config.latency.baseline`.
        checkpoint: The checkpoint's record.
        output: The record to write.

    Raises:
        RecordError: an input is missing, truncated or of another schema version.
        EvaluationError: a prompt that `latency.prompts` names is missing or does not fit.
    """
    torch.set_num_threads(1)  # readings must compare whatever the machine has
    sides: dict[Side, Inputs] = {
        "configuration": read_inputs(name, _kernels(name), manifest, checkpoint),
        "baseline": read_inputs(
            config.latency.baseline,
            _kernels(config.latency.baseline),
            baseline_manifest,
            checkpoint,
        ),
    }
    gates = [
        _of(side, gate, sides) for side in SIDES for gate in artefact_gates(config, sides[side])
    ]
    session: Session | None = None
    prompts: dict[str, list[int]] = {}
    conditions = None
    if all(gate.passed for gate in gates):
        compiled = {"configuration": manifest, "baseline": baseline_manifest}
        models = {side: _load(config, sides[side], compiled[side]) for side in SIDES}
        prompts = read_tokens(config, models["baseline"])
        reference = models["baseline"]
        if sides["baseline"].kernels.ops:
            reference = _load(config, dataclasses.replace(sides["baseline"], kernels=NO_KERNELS))
        sequences = list(prompts.values())
        exact = both_graphs(reference, sequences)
        for side in SIDES:
            found = model_gates(config, sides[side], models[side], exact, sequences)
            gates += [_of(side, gate, sides) for gate in found]
        if all(gate.passed for gate in gates):
            session, conditions, after = _measure(config, models, prompts)
            gates += [_of(side, gate, sides) for side in SIDES for gate in after[side]]
    withheld = sentences(gates)
    if withheld:
        session = conditions = None
    record = _record(config, sides, gates, withheld, session, conditions, prompts)
    record.write(output)
    for reason in withheld:
        log.warning("latency of %s is withheld: %s", name, reason)
    for comparison in record.comparisons:
        log.info("%s: %s %s", name, comparison.metric, comparison)
    return record


NO_KERNELS = KernelConfiguration(description="The PyTorch references.")


def _kernels(name: str) -> KernelConfiguration:
    return read_kernel_configuration(kernel_configuration_path(name))


def _load(config: Config, side: Inputs, compiled: Path | None = None) -> LanguageModel:
    """A side's model; with `compiled`, what its compile stage made of it is what runs."""
    return runtime.load(
        side.checkpoint,
        side.kernels,
        dtype=config.dtype,
        config=config,
        batch_size=1,
        compiled=compiled,
    )


def _of(side: Side, gate: Gate, sides: dict[Side, Inputs]) -> Gate:
    """The gate, named as the baseline's if it is."""
    if side == "configuration":
        return gate
    return gate.model_copy(update={"name": f"baseline ({sides[side].name}): {gate.name}"})


def read_tokens(config: Config, model: LanguageModel) -> dict[str, list[int]]:
    """The tokens of the prompts that `latency.prompts` names.

    Raises:
        EvaluationError: one is missing, has one token, or does not fit.
    """
    file = Path(config.generate.prompts)
    known = {prompt.name: prompt for prompt in read_prompts(file)}
    tokens: dict[str, list[int]] = {}
    for name in config.latency.prompts:
        if name not in known:
            raise EvaluationError(
                f"latency.prompts names {name!r}, which {file} does not have; it has: "
                f"{', '.join(known)}"
            )
        found = model.tokenizer(known[name].text, add_special_tokens=False)["input_ids"]
        longest = min(
            config.buckets.context_encoding[-1],
            config.buckets.max_length - config.latency.new_tokens,
        )
        if not 2 <= len(found) <= longest:
            raise EvaluationError(
                f"{file}: prompt {name!r} has {len(found)} tokens; for latency.new_tokens = "
                f"{config.latency.new_tokens} it must have 2 to {longest}"
            )
        tokens[name] = list(found)
    return tokens


def _measure(
    config: Config, models: dict[Side, LanguageModel], prompts: dict[str, list[int]]
) -> tuple[Session, LatencyConditions, dict[Side, list[Gate]]]:
    settings = config.latency
    timed = {side: TimedModel(models[side], prompts, settings.new_tokens) for side in SIDES}
    for side in SIDES:
        for prompt in prompts:  # untimed: what the timed runs must repeat
            timed[side](prompt)
    runners: dict[Side, Runner] = dict(timed)
    start = _load_average()
    session = interleave(runners, list(prompts), settings)
    conditions = LatencyConditions(
        device_name=device_name(config),
        seed=settings.seed,
        threads=torch.get_num_threads(),
        warmup_rounds=session.warmup_rounds,
        warmup_stable=session.warmup_stable,
        rounds=session.rounds,
        stopped_because=session.stopped_because,
        standard_error_target=settings.standard_error,
        time_budget_s=settings.time_budget_s,
        measured_s=session.measured_s,
        smallest_difference=settings.smallest_difference,
        load_average_start=start,
        load_average_end=_load_average(),
    )
    gates = {side: same_work_gates(timed[side].tokens, timed[side].calls) for side in SIDES}
    return session, conditions, gates


def compare(session: Session, smallest_difference: float, seed: int) -> list[Comparison]:
    """The sides by each metric; end-to-end latency decides the pair's verdict."""
    found = []
    for metric in COMPARED:
        ratio: Estimate = estimate_ratio(session.pair(metric), seed)
        found.append(
            Comparison(metric=metric, ratio=ratio, verdict=verdict(ratio, smallest_difference))
        )
    return found


def device_name(config: Config) -> str:
    """What the clock read: `simulator on CPU: NAME`, or the accelerator's target."""
    if config.device == "neuron":
        return f"neuron: {config.target}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"simulator on CPU: {name}"


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _record(
    config: Config,
    sides: dict[Side, Inputs],
    gates: list[Gate],
    withheld: list[str],
    session: Session | None,
    conditions: LatencyConditions | None,
    prompts: dict[str, list[int]],
) -> LatencyRecord:
    own, base = sides["configuration"], sides["baseline"]
    runs: list[TimedRun] = []
    if session is not None:
        flags = far_out_runs(session)
        runs = [
            TimedRun(round=r.round, side=r.side, prompt=r.prompt, timing=r.timing, outlier=bool(f))
            for r, f in zip(session.runs, flags, strict=True)
        ]
    lengths = {name: len(tokens) for name, tokens in prompts.items()}
    new, seed = config.latency.new_tokens, config.latency.seed
    measured = {
        side: None
        if session is None
        else side_latency(session, side, sides[side].name, lengths, new)
        for side in SIDES
    }
    return LatencyRecord(
        model=config.model,
        configuration=own.name,
        baseline=base.name,
        device=config.device,
        dtype=config.dtype,
        gates=gates,
        withheld=withheld,
        conditions=conditions,
        measured=measured["configuration"],
        measured_baseline=measured["baseline"],
        comparisons=[]
        if session is None
        else compare(session, config.latency.smallest_difference, seed),
        runs=runs,
        fingerprint=fingerprint(
            own.manifest.fingerprint,
            base.manifest.fingerprint,
            own.checkpoint.fingerprint,
            file_sha256(Path(config.generate.prompts)),
            config.latency,
            config.buckets,
            [run.timing.end_to_end_ms for run in runs],
            [gate.passed for gate in gates],
        ),
    )
