"""The accuracy stage over HF's own model: what is right passes, what is 5 % wrong does not."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hf_model
import pytest
import safetensors.torch
import torch

import evaluation.accuracy
from evaluation.accuracy import accuracy, decode_prefix
from evaluation.inputs import EvaluationError
from evaluation.records import AccuracyRecord, ErrorMapRecord
from evaluation.reference import read_reference, reference
from kernels.contracts import CONTRACTS
from model.configuration import (
    Accuracy,
    Buckets,
    Config,
    Generate,
    LogitMatching,
    ModelSource,
    kernel_configuration_path,
    read_kernel_configuration,
)
from model.records import CheckpointRecord, CompileManifest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint, tasks, the reference, and manifests of `baseline` and `rmsnorm`."""
    folder = tmp_path_factory.mktemp("stage")
    checkpoint = hf_model.make_checkpoint(folder)
    hf_model.write_tasks(folder / "tasks")
    config = Config(
        model="tiny",
        models={"tiny": ModelSource(source="test")},
        configurations=["baseline"],
        buckets=Buckets(context_encoding=[16, 32], max_length=48),
        generate=Generate(prompts="none"),
        accuracy=Accuracy(
            texts=str(folder / "tasks" / "data" / "texts.jsonl"),
            sequences=6,
            tasks=str(folder / "tasks"),
            documents=5,
            batch_size=4,
            logit_matching=LogitMatching(new_tokens=5),
        ),
    )
    reference(config, checkpoint, folder / "logits.safetensors")
    for name in ("baseline", "rmsnorm"):
        CompileManifest(
            model="tiny",
            configuration=name,
            device="simulator",
            target="trn2",
            dtype="bfloat16",
            checkpoint_fingerprint=CheckpointRecord.read(checkpoint).fingerprint,
            kernels=[],
            programs=[],
            fingerprint=f"of {name}",
            compile_seconds_measured=0.0,
        ).write(folder / f"{name}.json")
    return SimpleNamespace(folder=folder, config=config, checkpoint=checkpoint)


@pytest.fixture
def run(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., AccuracyRecord]:
    """Run the stage on a fake runtime; keywords go to `HfModel`."""
    monkeypatch.chdir(ROOT)

    def run(name: str, cache: Path | None = None, **broken: Any) -> AccuracyRecord:
        def load(config: Config, inputs: Any, dtype: str, check_ops: bool) -> hf_model.HfModel:
            kernels = {op: filled.kernel for op, filled in inputs.kernels.ops.items()}
            return hf_model.HfModel(inputs.checkpoint, kernels, dtype, **broken)

        monkeypatch.setattr(evaluation.accuracy, "load_model", load)
        output = tmp_path / "accuracy.json"
        record = accuracy(
            stage.config,
            name,
            stage.folder / f"{name}.json",
            stage.checkpoint,
            stage.folder / "logits.safetensors",
            output,
            cache=cache,
        )
        assert AccuracyRecord.read(output) == record or not all(x.finite for x in record.logits)
        return record

    return run


def scale_a_norm(factor: float) -> Callable[[Any], object]:
    def corrupt(hf: Any) -> object:
        norm = hf.model.layers[1].post_attention_layernorm
        return norm.register_forward_hook(lambda _module, _inputs, output: output * factor)

    return corrupt


def test_baseline_passes(run: Callable[..., AccuracyRecord]) -> None:
    record = run("baseline")
    assert (record.verdict, record.reasons) == ("pass", [])
    exact = [x for x in record.logits if x.comparison == "float32 vs HF float32"]
    assert [x.graph for x in exact] == ["context_encoding", "token_generation"]
    assert max(x.relative_l2_error for x in exact) < 2e-6
    assert record.ops == []
    assert record.kernel_calls == {}
    assert {x.task: x.documents for x in record.tasks} == {
        "choice": 5,
        "perplexity": 5,
        "generation": 5,
    }
    assert {x.task: x.chance for x in record.tasks}["choice"] == 0.25


def test_a_cached_run_is_judged_by_the_calls_that_were_made(
    run: Callable[..., AccuracyRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (run("rmsnorm", cache=tmp_path / "cache") for _ in range(2))
    assert [task.requests_cached for task in first.tasks] == [0, 0, 0]
    assert [task.requests_cached for task in second.tasks] == [x.requests for x in first.tasks]
    assert [task.metrics for task in second.tasks] == [task.metrics for task in first.tasks]
    assert (second.verdict, second.gates) == ("pass", first.gates)
    assert second.kernel_calls == first.kernel_calls

    # Kept by a run in which the tasks never called the kernel: no later run passes by it.
    monkeypatch.setattr(hf_model.HfModel, "_count", lambda *_: None)
    for _ in range(2):
        record = run("rmsnorm", cache=tmp_path / "another")
        gate = "context_encoding: calls of nki_rmsnorm_kernel (tasks): not measured"
        assert any(reason.startswith(gate) for reason in record.reasons)
    assert record.tasks[0].requests_cached == record.tasks[0].requests > 0


@pytest.mark.parametrize("change", ["kernels", "dtype", "batch", "manifest", "buckets"])
def test_what_an_answer_depends_on_is_in_its_key(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.chdir(ROOT)
    paths = (stage.checkpoint, stage.folder / "logits.safetensors")
    inputs = evaluation.accuracy.read_inputs(
        stage.config, "rmsnorm", stage.folder / "rmsnorm.json", *paths
    )
    config, other = stage.config, inputs
    if change == "kernels":
        norms = read_kernel_configuration(kernel_configuration_path("norms"))
        other = replace(inputs, kernels=norms)
    elif change == "manifest":
        manifest = inputs.manifest.model_copy(update={"fingerprint": "another"})
        other = replace(inputs, manifest=manifest)
    elif change == "dtype":
        config = config.model_copy(update={"dtype": "float32"})
    elif change == "buckets":
        buckets = Buckets(context_encoding=[32], max_length=48)
        config = config.model_copy(update={"buckets": buckets})
    else:
        settings = config.accuracy.model_copy(update={"batch_size": 2})
        config = config.model_copy(update={"accuracy": settings})
    key = evaluation.accuracy.answers_key
    assert key(stage.config, inputs) == key(stage.config, replace(inputs))
    assert key(config, other) != key(stage.config, inputs)


def test_a_configuration_with_a_right_kernel_passes(run: Callable[..., AccuracyRecord]) -> None:
    record = run("rmsnorm")
    assert record.verdict == "pass", record.reasons
    assert [(x.op, x.dtype) for x in record.ops] == [
        ("rmsnorm", "float32"),
        ("rmsnorm", "bfloat16"),
    ]
    assert set(record.kernel_calls["nki_rmsnorm_kernel"]) == {
        "context_encoding",
        "token_generation",
    }


def test_a_norm_5_percent_off_fails_by_its_logits(run: Callable[..., AccuracyRecord]) -> None:
    record = run("rmsnorm", corrupt=scale_a_norm(1.05))
    assert record.verdict == "fail"
    assert any(
        "context_encoding: float32 vs HF float32: relative L2 error" in x for x in record.reasons
    )
    assert any("token_generation" in x for x in record.reasons)


def test_a_kernel_off_its_reference_fails_by_its_op(run: Callable[..., AccuracyRecord]) -> None:
    record = run("rmsnorm", op_error=0.05)
    assert record.verdict == "fail"
    assert all(reason.startswith("op rmsnorm: nki_rmsnorm_kernel") for reason in record.reasons)
    assert len(record.reasons) == 2


@pytest.mark.parametrize("factor", [0.0, math.nan])
def test_zeros_and_nan_leave_a_record_that_fails_and_can_be_read(
    run: Callable[..., AccuracyRecord], tmp_path: Path, factor: float
) -> None:
    def corrupt(hf: Any) -> object:
        return hf.lm_head.register_forward_hook(lambda _m, _i, output: output * factor)

    record = run("rmsnorm", corrupt=corrupt)
    assert record.verdict == "fail"
    assert any("finite, and not equal for all tokens" in reason for reason in record.reasons)
    again = AccuracyRecord.read(tmp_path / "accuracy.json")
    ours = [x for x in again.logits if not x.comparison.startswith("HF")]
    assert {x.relative_l2_error for x in ours} == {math.inf}
    assert again.reasons == record.reasons


def test_kernels_that_never_ran_fail(
    run: Callable[..., AccuracyRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_model.HfModel, "_count", lambda *_: None)
    record = run("rmsnorm")
    assert record.verdict == "fail"
    assert any("calls of nki_rmsnorm_kernel" in reason for reason in record.reasons)


RIGHT, WRONG = "reciprocal_root(total, hidden, eps)", "reciprocal_root(total, hidden * 1.1, eps)"


@pytest.mark.parametrize("change", ["none", "5 percent", "zeros"])
def test_a_users_kernel_in_the_real_model_is_judged(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    source = (ROOT / "kernels" / "rmsnorm.py").read_text()
    assert source.count(RIGHT) == 1
    if change == "5 percent":  # the root of 1.1 is 1.049
        source = source.replace(RIGHT, WRONG)
    elif change == "zeros":
        source = source.replace(RIGHT, f"{RIGHT}\n    nisa.memset(dst=total, value=0.0)")
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "config" / "kernels").mkdir(parents=True)
    (tmp_path / "config" / "kernels" / "mine.yaml").write_text(
        "description: a copy of ours\nops:\n  rmsnorm: {kernel: 'mine.py:nki_rmsnorm_kernel'}\n"
    )
    manifest = CompileManifest.read(stage.folder / "rmsnorm.json")
    manifest.model_copy(update={"configuration": "mine"}).write(tmp_path / "mine.json")
    monkeypatch.chdir(tmp_path)
    record = accuracy(
        stage.config,
        "mine",
        tmp_path / "mine.json",
        stage.checkpoint,
        stage.folder / "logits.safetensors",
        tmp_path / "accuracy.json",
        tmp_path / "error_map.json",
    )
    assert AccuracyRecord.read(tmp_path / "accuracy.json").verdict == record.verdict
    found = ErrorMapRecord.read(tmp_path / "error_map.json")
    assert (found.configuration, found.fingerprint) == ("mine", record.fingerprint)
    assert {row.op for row in found.budget} == {"rmsnorm", "all"}
    first = next(point for point in found.cut_points if point.filled_by)
    assert (first.layer, first.op) == (0, "rmsnorm")
    assert first.local_relative_error is not None
    assert (first.local_relative_error < 1e-5) == (change == "none")
    if change == "none":
        assert (record.verdict, record.reasons) == ("pass", [])
        return
    assert record.verdict == "fail"
    for gate in (
        "op rmsnorm: nki_rmsnorm_kernel in float32 (float32 model): relative error",
        "op rmsnorm: nki_rmsnorm_kernel in bfloat16 (bfloat16 model): relative error",
        "context_encoding: float32 vs HF float32: relative L2 error",
        "token_generation: float32 vs HF float32: relative L2 error",
    ):
        assert any(reason.startswith(gate) for reason in record.reasons), gate


@pytest.mark.parametrize(
    ("name", "op"),
    [("norms", "rmsnorm"), ("norms", "qk_norm"), ("parts", "softmax"), ("parts", "silu")],
)
def test_each_op_5_percent_off_in_the_real_model_fails(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, op: str
) -> None:
    right = CONTRACTS[op]

    def wrong(*arguments: Any, **parameters: Any) -> Any:
        result = right.call(*arguments, **parameters)
        return tuple(x * 1.05 for x in result) if isinstance(result, tuple) else result * 1.05

    monkeypatch.setitem(CONTRACTS, op, replace(right, call=wrong))
    monkeypatch.chdir(ROOT)
    manifest = CompileManifest.read(stage.folder / "rmsnorm.json")
    manifest.model_copy(update={"configuration": name}).write(tmp_path / "manifest.json")
    record = accuracy(
        stage.config,
        name,
        tmp_path / "manifest.json",
        stage.checkpoint,
        stage.folder / "logits.safetensors",
        tmp_path / "accuracy.json",
    )
    assert record.verdict == "fail"
    failed = {check.op for check in record.ops if not check.passed}
    assert failed == {op}
    for graph in ("context_encoding", "token_generation"):
        gate = f"{graph}: float32 vs HF float32: relative L2 error"
        assert any(reason.startswith(gate) for reason in record.reasons)


def test_the_reference_is_read_as_written(stage: SimpleNamespace) -> None:
    found = read_reference(stage.folder / "logits.safetensors")
    assert [len(ids) for ids in found.tokens] == [10, 11, 12, 13, 14, 15]
    assert decode_prefix(found.tokens) == 5
    assert found.logits["float32"][2].shape == (12, 24)
    assert found.logits["bfloat16"][0].dtype == torch.float32
    assert not torch.equal(found.logits["bfloat16"][0], found.logits["float32"][0])


def test_texts_are_cut_to_the_largest_bucket_and_no_socket_is_opened(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    buckets = Buckets(context_encoding=[8, 12], max_length=48)
    config = stage.config.model_copy(update={"buckets": buckets})
    reference(config, stage.checkpoint, tmp_path / "cut.safetensors")
    found = read_reference(tmp_path / "cut.safetensors")
    assert [len(ids) for ids in found.tokens] == [10, 11, 12, 12, 12, 12]


def test_a_damaged_reference_is_refused(stage: SimpleNamespace, tmp_path: Path) -> None:
    whole = (stage.folder / "logits.safetensors").read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    with pytest.raises(EvaluationError, match="no such file"):
        read_reference(damaged)
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EvaluationError, match="not a readable safetensors file"):
        read_reference(damaged)
    safetensors.torch.save_file({"x": torch.zeros(1)}, damaged)
    with pytest.raises(EvaluationError, match="not a reference"):
        read_reference(damaged)


@pytest.mark.parametrize(
    ("name", "buckets", "message"),
    [
        ("rmsnorm", [16, 32], "was made for configuration baseline, this evaluation has rmsnorm"),
        ("baseline", [12], "was made for other texts"),
    ],
)
def test_inputs_of_another_evaluation_are_refused(
    stage: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    buckets: list[int],
    message: str,
) -> None:
    monkeypatch.chdir(ROOT)
    changed = Buckets(context_encoding=buckets, max_length=48)
    with pytest.raises(EvaluationError, match=message):
        accuracy(
            stage.config.model_copy(update={"buckets": changed}),
            name,
            stage.folder / "baseline.json",
            stage.checkpoint,
            stage.folder / "logits.safetensors",
            tmp_path / "accuracy.json",
        )
    assert not (tmp_path / "accuracy.json").exists()
