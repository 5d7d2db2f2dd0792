"""The accuracy stage: does a kernel configuration still compute the model?

The configuration's model is loaded three times: in float32 and in the data type it is run
in, with every kernel call checked against its op's reference while the logits of both graphs
are compared with HF's; and once more, unchecked, for the lm-eval tasks.
"""

# ruff: noqa: I001
from __future__ import annotations

import evaluation.offline  # noqa: F401  before any Hugging Face library

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.error_map import error_map as make_error_map
from evaluation.inputs import EvaluationError
from evaluation.interface import KernelCheck, LanguageModel
from evaluation.lm_eval_adapter import run_tasks
from evaluation.logit_matching import continuation, match_logits
from evaluation.logits import compare_logits, compare_rounding
from evaluation.records import (
    AccuracyRecord,
    LogitComparison,
    LogitMatch,
    OpCheck,
    RoundingComparison,
    TaskResult,
)
from evaluation.reference import (
    ReferenceDtype,
    ReferenceLogits,
    read_reference,
    reference_tokens,
)
from evaluation.request_cache import RequestCache, sources
from evaluation.tasks import LoadedTask, load_standard_tasks, load_tasks
from evaluation.verdict import (
    TASKS_RUN,
    Measurements,
    check_gates,
    comparison_name,
    judge,
    model_dtypes,
    op_tolerance,
)
from model import runtime
from model.configuration import (
    Config,
    KernelConfiguration,
    Tolerances,
    kernel_configuration_path,
    read_kernel_configuration,
)
from model.fingerprint import fingerprint
from model.ops import kernel_entries
from model.records import CheckpointRecord, CompileManifest, Graph, write_json

log = logging.getLogger(__name__)

Calls = dict[str, dict[Graph, int]]


@dataclass(frozen=True)
class Inputs:
    """What the stage was given, read and found to belong together."""

    kernels: KernelConfiguration
    manifest: CompileManifest
    checkpoint: CheckpointRecord
    reference: ReferenceLogits


def accuracy(
    config: Config,
    name: str,
    manifest: Path,
    checkpoint: Path,
    reference: Path,
    output: Path,
    error_map: Path | None = None,
    cache: Path | None = None,
) -> AccuracyRecord:
    """Measure a kernel configuration's accuracy, judge it, and write the record.

    A configuration whose numbers are wrong gets a record with the verdict fail; only inputs
    that are wrong, or a kernel that cannot run, raise.

    Args:
        config: The evaluation.
        name: The kernel configuration, a file of `config/kernels`.
        manifest: The configuration's compile manifest.
        checkpoint: The checkpoint's record.
        reference: HF's logits (`evaluation.reference.reference`).
        output: The record to write.
        error_map: The record of the error budget and the cut points to write, if any.
        cache: The folder of answers to lm-eval's requests that earlier runs gave; None for none.

    Raises:
        EvaluationError: inputs are wrong or do not belong together.
    """
    inputs = read_inputs(config, name, manifest, checkpoint, reference)
    tasks = load_tasks(Path(config.accuracy.tasks))
    tasks += load_standard_tasks(config.accuracy.standard_tasks, [task.name for task in tasks])
    measured = measure(config, inputs, tasks, cache)
    tolerances = config.accuracy.tolerances
    gates = check_gates(measured, inputs.kernels, tolerances, [task.name for task in tasks])
    verdict, reasons = judge(gates)
    made_from = fingerprint(
        "accuracy",
        name,
        inputs.kernels,
        inputs.manifest.fingerprint,
        inputs.checkpoint.fingerprint,
        inputs.reference.fingerprint,
        config.accuracy,
        config.buckets,
        [config.device, config.target, config.dtype],
        [task.identity(config.accuracy.documents) for task in tasks],
        *(file for task in tasks for file in task.files),
    )
    record = AccuracyRecord(
        model=config.model,
        configuration=name,
        device=config.device,
        logits=list(measured.logits),
        rounding=list(measured.rounding),
        matches=list(measured.matches),
        ops=[check for checks in measured.ops.values() for check in checks],
        tasks=list(measured.tasks),
        gates=gates,
        verdict=verdict,
        reasons=reasons,
        kernel_calls=_sum_calls(measured.kernel_calls.values()),
        fingerprint=made_from,
    )
    write_json(output, without_infinities(record.model_dump(mode="json")))
    if error_map is not None:
        dtypes = model_dtypes(config.dtype)
        found = make_error_map(
            config, name, inputs.kernels, inputs.checkpoint, inputs.reference.tokens, dtypes,
            made_from,
        )  # fmt: skip
        write_json(error_map, without_infinities(found.model_dump(mode="json")))
    log.info("accuracy of %s: %s", name, verdict)
    for reason in reasons:
        log.warning("accuracy of %s: %s", name, reason)
    return record


def read_inputs(
    config: Config, name: str, manifest: Path, checkpoint: Path, reference: Path
) -> Inputs:
    """Read the stage's inputs.

    Raises:
        EvaluationError: they were made for another model, configuration, data type or
            checkpoint, or with other texts.
    """
    inputs = Inputs(
        kernels=read_kernel_configuration(kernel_configuration_path(name)),
        manifest=CompileManifest.read(manifest),
        checkpoint=CheckpointRecord.read(checkpoint),
        reference=read_reference(reference),
    )
    weights = inputs.checkpoint.fingerprint
    for path, what, found, wanted in (
        (manifest, "configuration", inputs.manifest.configuration, name),
        (manifest, "model", inputs.manifest.model, config.model),
        (manifest, "dtype", inputs.manifest.dtype, config.dtype),
        (manifest, "checkpoint", inputs.manifest.checkpoint_fingerprint, weights),
        (reference, "checkpoint", inputs.reference.checkpoint_fingerprint, weights),
    ):
        if found != wanted:
            raise EvaluationError(
                f"{path}: was made for {what} {found}, this evaluation has {wanted}; "
                "run snakemake again, it rebuilds what is out of date"
            )
    if inputs.reference.tokens != reference_tokens(config, inputs.checkpoint):
        raise EvaluationError(
            f"{reference}: was made for other texts than accuracy.texts, accuracy.sequences and "
            "buckets.context_encoding say; run snakemake again, it rebuilds what is out of date"
        )
    return inputs


def measure(
    config: Config, inputs: Inputs, tasks: Sequence[LoadedTask], cache: Path | None = None
) -> Measurements:
    """Run the models and compare."""
    logits: list[LogitComparison] = []
    rounding: list[RoundingComparison] = []
    matches: list[LogitMatch] = []
    ops: dict[str, list[OpCheck]] = {}
    calls: dict[str, Calls] = {}
    tolerances = config.accuracy.tolerances
    for dtype in model_dtypes(config.dtype):
        model = load_model(config, inputs, dtype, check_ops=True)
        found, relative = compare_graphs(model, dtype, inputs.reference)
        logits += found
        rounding += relative
        matches.append(match_continuations(model, dtype, inputs.reference, config))
        ops[dtype] = [op_check(check, tolerances) for check in model.op_checks()]
        calls[dtype] = _copy_calls(model.kernel_calls())
        del model
    model = load_model(config, inputs, config.dtype, check_ops=False)
    answers = RequestCache(cache, answers_key(config, inputs))
    results, error = _run_tasks(config, model, tasks, answers)
    calls[TASKS_RUN] = _sum_calls([model.kernel_calls(), answers.kernel_calls()])
    return Measurements(config.dtype, logits, ops, calls, results, error, rounding, matches)


def load_model(config: Config, inputs: Inputs, dtype: str, check_ops: bool) -> LanguageModel:
    """The configuration's model, from the checkpoint's record."""
    start = time.perf_counter()
    model = runtime.load(
        inputs.checkpoint, inputs.kernels, dtype=dtype, config=config, check_ops=check_ops
    )
    log.info("loaded the model in %s in %.1f s", dtype, time.perf_counter() - start)
    return model


def answers_key(config: Config, inputs: Inputs) -> str:
    """What an answer of the model depends on, beside the request."""
    return fingerprint(
        inputs.manifest.fingerprint,
        inputs.checkpoint.fingerprint,
        inputs.kernels,
        [entry.model_dump(mode="json") for entry in kernel_entries(inputs.kernels)],
        config.buckets,
        [config.device, config.target, config.dtype, config.accuracy.batch_size],
        sources(),
    )


def decode_prefix(tokens: Sequence[Sequence[int]]) -> int:
    """How many tokens are context, the rest being decoded: half of the shortest text."""
    return max(1, min(map(len, tokens)) // 2)


def compare_graphs(
    model: LanguageModel, dtype: ReferenceDtype, reference: ReferenceLogits
) -> tuple[list[LogitComparison], list[RoundingComparison]]:
    """Both graphs' logits against HF's: in fp32, and for bf16 also in bf16, where HF's own
    bf16 error is added as the yardstick.
    """
    prefix = decode_prefix(reference.tokens)
    start = time.perf_counter()
    encoded = model.logits(reference.tokens)
    log.info("context encoding in %s: %.1f s", dtype, time.perf_counter() - start)
    start = time.perf_counter()
    decoded = model.decode_logits(reference.tokens, prefix)
    log.info("token generation in %s: %.1f s", dtype, time.perf_counter() - start)
    runs: tuple[tuple[Graph, Sequence[torch.Tensor], int], ...] = (
        ("context_encoding", encoded, 0),
        ("token_generation", decoded, prefix),
    )
    result: list[LogitComparison] = []
    rounding: list[RoundingComparison] = []
    for graph, ours, first in runs:
        hf = {name: [rows[first:] for rows in x] for name, x in reference.logits.items()}
        against: list[ReferenceDtype] = ["float32"]
        if dtype == "bfloat16":
            against = ["bfloat16", "float32"]
            own_name = comparison_name("HF bfloat16", "HF float32")
            result.append(compare_logits(own_name, graph, hf["bfloat16"], hf["float32"], first))
            rounding.append(compare_rounding(graph, ours, hf["bfloat16"], hf["float32"]))
        for other in against:
            found = compare_logits(
                comparison_name(dtype, f"HF {other}"), graph, ours, hf[other], first
            )
            log.info(
                "%s: %s: relative L2 error %.3g, KL %.3g nats per token, top-1 agreement %.4f",
                graph, found.comparison, found.relative_l2_error, found.kl_per_token_mean,
                found.top1_agreement,
            )  # fmt: skip
            result.append(found)
    return result, rounding


def match_continuations(
    model: LanguageModel, dtype: ReferenceDtype, reference: ReferenceLogits, config: Config
) -> LogitMatch:
    """Logit matching with HF in the same data type."""
    start = time.perf_counter()
    settings = config.accuracy.logit_matching
    tolerances = [x for x in settings.top_k if x.k is None or x.k <= model.vocab_size]
    found = match_logits(
        comparison_name(dtype, f"HF {dtype}"),
        reference.prompts,
        reference.continued[dtype],
        continuation(model),
        tolerances,
        settings.divergence_tolerance,
    )
    log.info("logit matching in %s: %.1f s", dtype, time.perf_counter() - start)
    return found


def op_check(check: KernelCheck, tolerances: Tolerances) -> OpCheck:
    """Judge a kernel's error by the tolerance of its data type; NaN does not pass."""
    dtype = str(check.dtype).removeprefix("torch.")
    tolerance = op_tolerance(dtype, tolerances)
    error = float(check.max_relative_error)
    return OpCheck(
        op=check.op,
        kernel=check.kernel,
        dtype=dtype,
        calls=dict(check.calls),
        max_relative_error=error,
        tolerance=tolerance,
        passed=math.isfinite(error) and 0 <= error <= tolerance and sum(check.calls.values()) > 0,
    )


def without_infinities(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the strings pydantic reads back as such."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_infinities(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _run_tasks(
    config: Config, model: LanguageModel, tasks: Sequence[LoadedTask], cache: RequestCache
) -> tuple[list[TaskResult], str | None]:
    """The tasks' results, or why there are none."""
    settings, largest = config.accuracy, config.buckets.context_encoding[-1]
    try:
        results = run_tasks(model, tasks, settings.documents, largest, settings.batch_size, cache)
    except EvaluationError as error:  # e.g. NaN logits: a failed gate, not a failed stage
        log.warning("the tasks failed: %s", error)
        return [], str(error)
    return results, None


def _copy_calls(calls: Mapping[str, Mapping[Graph, int]]) -> Calls:
    return {kernel: dict(by_graph) for kernel, by_graph in calls.items()}


def _sum_calls(runs: Any) -> Calls:
    total: Calls = {}
    for calls in runs:
        for kernel, by_graph in calls.items():
            counts = total.setdefault(kernel, {})
            for graph, number in by_graph.items():
                counts[graph] = counts.get(graph, 0) + number
    return total
