"""Every gate before the latency is shown to close, by a kernel or a file broken on purpose.

Wherever a test says `withheld`, the whole stage ran and its record has the reason and no timing.
"""

from __future__ import annotations

import copy
import functools
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_kernel import KERNEL
from torch.export import ExportedProgram

import evaluation.latency
import model.compile
import model.runtime
from evaluation.gates import output_gates, same_work_gates, sentences
from evaluation.inputs import EvaluationError
from evaluation.interleave import Runner, Session
from evaluation.latency import latency
from evaluation.latency_records import LatencyRecord, Side
from evaluation.records import Gate
from kernels.contracts import CONTRACTS
from model.compile import compile_configuration
from model.configuration import parse_config
from model.download import download
from model.ops import GRAPHS, KernelOp
from model.qwen3_moe import Qwen3Moe
from model.records import CheckpointRecord, CompileManifest, Graph, RecordError
from model.runtime import CompiledGraphs

ROOT = Path(__file__).parents[2]
LOAD = torch.export.load

ROOT_OF_MEAN = "reciprocal_root(total, hidden, eps)"


class Bench:
    """The tiny model with one kernel, compiled in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = parse_config(
            {
                "model": "tiny",
                "models": {
                    "tiny": {
                        "source": str(ROOT / "model/checkpoints/tiny-qwen3-moe"),
                        "manifest": str(ROOT / "model/checkpoints/tiny-qwen3-moe/manifest.json"),
                    }
                },
                "configurations": ["baseline", "mine"],
                "buckets": {"context_encoding": [16], "max_length": 24},
                "generate": {"prompts": str(ROOT / "config/prompts/default.yaml")},
                "latency": {"prompts": ["short"], "new_tokens": 3, "time_budget_s": 0.2},
                "accuracy": {"texts": "t", "tasks": "t", "batch_size": 1},
            }
        )
        (root / "config/kernels").mkdir(parents=True)
        self.write("baseline", "{}")
        self.checkpoint = root / "checkpoint.json"
        download(self.config, self.checkpoint)

    def write(self, name: str, ops: str) -> None:
        text = f"description: a test\nops: {ops}\n"
        (self.root / f"config/kernels/{name}.yaml").write_text(text)

    def kernel(self, factor: float = 1.0) -> None:
        """A kernel for silu, `factor` times what it should be."""
        (self.root / "mine.py").write_text(KERNEL.replace("FACTOR", str(factor)))
        self.write("mine", '{silu: {kernel: "mine.py:scale_rows"}}')

    def norm(self, then: str) -> None:
        """A kernel for rmsnorm: ours, and then its rows' factors are changed."""
        source = (ROOT / "kernels/rmsnorm.py").read_text()
        assert source.count(ROOT_OF_MEAN) == 1
        source = source.replace(ROOT_OF_MEAN, f"{ROOT_OF_MEAN}\n    {then}")
        (self.root / "mine.py").write_text(source)
        self.write("mine", '{rmsnorm: {kernel: "mine.py:nki_rmsnorm_kernel"}}')

    def manifest(self, name: str) -> Path:
        return self.root / f"{name}/manifest.json"

    def compile(self, *names: str) -> None:
        for name in names:
            compile_configuration(self.config, name, self.checkpoint, self.manifest(name))

    def latency(self, name: str = "mine") -> LatencyRecord:
        output = self.root / "latency.json"
        record = latency(
            self.config,
            name,
            self.manifest(name),
            self.manifest("baseline"),
            self.checkpoint,
            output,
        )
        assert LatencyRecord.read(output) == record
        return record


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A project whose kernel is right and compiled; copied for each test."""
    made = Bench(tmp_path_factory.mktemp("compiled") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.root)
        made.kernel()
        made.compile("baseline", "mine")
    return made


@pytest.fixture
def bench(compiled: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = copy.copy(compiled)
    made.root = tmp_path / "project"
    made.checkpoint = made.root / "checkpoint.json"
    shutil.copytree(compiled.root, made.root)
    path = made.manifest("mine")  # names the kernel's file, which is outside of the checkout
    moved = path.read_text().replace(str(compiled.root), str(made.root))
    manifest = CompileManifest.model_validate_json(moved)
    manifest.model_copy(update={"fingerprint": manifest.own_fingerprint()}).write(path)
    monkeypatch.chdir(made.root)
    # A later compilation is for its Programs: its graphs take seconds, and the model as it is
    # written does the same.
    monkeypatch.setattr(model.compile, "export_graph", lambda *_, **__: b"a graph")
    monkeypatch.setattr(model.runtime, "CompiledGraphs", graphs_or_none)
    monkeypatch.setattr(torch.export, "load", loaded_once)
    return made


@functools.cache
def program_of(content: bytes) -> ExportedProgram:
    return LOAD(io.BytesIO(content))


def loaded_once(path: Path) -> ExportedProgram:
    """A graph's Program, which takes most of a second; it depends on the file alone."""
    return program_of(path.read_bytes())


def graphs_or_none(model: Qwen3Moe, manifest: CompileManifest, folder: Path) -> Any:
    """The compiled graphs, unless they are stand-ins."""
    if any((folder / entry.file).read_bytes() == b"a graph" for entry in manifest.graphs):
        return None
    return CompiledGraphs(model, manifest, folder)


def failed(gates: list[Gate]) -> list[str]:
    return [gate.name for gate in gates if not gate.passed]


def test_a_right_kernel_is_timed(bench: Bench) -> None:
    record = bench.latency()
    assert record.withheld == []
    assert all(gate.passed for gate in record.gates)
    assert record.conditions is not None
    assert record.conditions.device_name.startswith("simulator on CPU")
    assert record.measured is not None
    assert record.measured.metrics["end_to_end_ms"].samples == record.conditions.rounds
    assert [x.metric for x in record.comparisons] == ["end_to_end_ms", "ttft_ms", "tpot_ms"]
    assert len(record.runs) == 2 * record.conditions.rounds
    for run in record.runs:
        assert len(run.timing.itl_ms) == 2
        assert run.timing.end_to_end_ms == pytest.approx(
            run.timing.ttft_ms + sum(run.timing.itl_ms)
        )


def test_the_baseline_is_timed_beside_itself(bench: Bench) -> None:
    record = bench.latency("baseline")
    assert record.withheld == []
    assert record.measured_baseline is not None


def withheld(record: LatencyRecord, sentence: str) -> None:
    """The record has no timings at all, and says why."""
    assert any(sentence in reason for reason in record.withheld), record.withheld
    assert record.measured is record.measured_baseline is record.conditions is None
    assert record.comparisons == record.runs == []


def test_a_kernel_that_gives_too_much_is_not_timed(bench: Bench) -> None:
    bench.kernel(factor=3e38)
    bench.compile("mine")
    withheld(bench.latency(), "context_encoding: logits that are NaN or infinite")


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("nisa.memset(dst=total, value=0.0)", "tokens whose logits are all zero: {tokens};"),
        (
            "nisa.tensor_scalar(dst=total, data=total, op0=nl.multiply, operand0=3.0)",
            "range of the logits over the reference's: ",
        ),
    ],
    ids=["zeros", "three times too large"],
)
def test_logits_that_are_dead_or_too_large_are_not_timed(
    bench: Bench, then: str, said: str
) -> None:
    bench.norm(then)
    bench.compile("mine")
    record = bench.latency()
    for graph, tokens in (("context_encoding", 7), ("token_generation", 1)):  # of the prompt
        withheld(record, f"{graph}: {said.format(tokens=tokens)}")


def test_a_kernel_edited_after_it_was_compiled_is_not_timed(bench: Bench) -> None:
    bench.kernel(factor=0.5)
    withheld(bench.latency(), "kernel sources: changed since: ")


def test_a_manifest_that_compile_did_not_write_is_not_believed(bench: Bench) -> None:
    manifest = CompileManifest.read(bench.manifest("mine"))
    programs = [entry.model_copy(update={"macs": 10**9}) for entry in manifest.programs]
    manifest.model_copy(update={"programs": programs}).write(bench.manifest("mine"))
    withheld(bench.latency(), "the manifest is what compile wrote: no")


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("configuration", "baseline"),
        ("model", "another"),
        ("target", "trn3"),
        ("dtype", "float32"),
        ("checkpoint_fingerprint", "0" * 64),
    ],
)
def test_a_manifest_of_another_evaluation_is_not_believed(
    bench: Bench, field: str, other: str
) -> None:
    manifest = CompileManifest.read(bench.manifest("mine"))
    changed = manifest.model_copy(update={field: other})
    changed = changed.model_copy(update={"fingerprint": changed.own_fingerprint()})
    changed.write(bench.manifest("mine"))
    named = field.removesuffix("_fingerprint")
    record = bench.latency()
    withheld(record, f"compiled for this evaluation: for {named} {other!r}")
    assert len(record.withheld) == 1


def test_the_manifest_of_another_configuration_is_not_believed(bench: Bench) -> None:
    bench.manifest("mine").write_bytes(bench.manifest("baseline").read_bytes())
    withheld(bench.latency(), "compiled for this evaluation: for configuration 'baseline'")


def test_an_exported_graph_that_changed_is_not_timed(bench: Bench) -> None:
    manifest = CompileManifest.read(bench.manifest("mine"))
    (bench.manifest("mine").parent / manifest.graphs[0].file).write_bytes(b"another")
    (bench.manifest("mine").parent / manifest.graphs[1].file).unlink()
    said = f"{manifest.graphs[0].file} differs, {manifest.graphs[1].file} is missing"
    withheld(bench.latency(), said)


@pytest.mark.parametrize("wrong", GRAPHS)
def test_a_compiled_graph_that_is_not_the_models_is_not_timed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, wrong: Graph
) -> None:
    run = CompiledGraphs._run

    def other(self: CompiledGraphs, graph: Graph, *inputs: Any) -> torch.Tensor:
        logits = run(self, graph, *inputs)
        return logits.roll(1, -1) if graph == wrong else logits

    monkeypatch.setattr(CompiledGraphs, "_run", other)
    record = bench.latency()
    withheld(record, "the compiled graphs give the model's tokens: no")
    assert {name.removeprefix("baseline (baseline): ") for name in failed(record.gates)} == {
        "the compiled graphs give the model's tokens"
    }


def test_what_is_timed_are_the_compiled_graphs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Graph] = []
    run = CompiledGraphs._run

    def noted(self: CompiledGraphs, graph: Graph, *inputs: Any) -> torch.Tensor:
        ran.append(graph)
        return run(self, graph, *inputs)

    def interleave(sides: dict[Side, Runner], prompts: list[str], *rest: Any) -> Session:
        ran.clear()
        for side in sides.values():
            side(prompts[0])
        assert ran == [GRAPHS[0], GRAPHS[1], GRAPHS[1]] * 2  # three tokens each
        return real(sides, prompts, *rest)

    real = evaluation.latency.interleave
    monkeypatch.setattr(CompiledGraphs, "_run", noted)
    monkeypatch.setattr(evaluation.latency, "interleave", interleave)
    assert bench.latency().withheld == []


def test_programs_that_were_not_compiled_are_not_timed(bench: Bench) -> None:
    manifest = CompileManifest.read(bench.manifest("mine"))
    few = [entry for entry in manifest.programs if entry.graph == "context_encoding"]
    changed = manifest.model_copy(update={"programs": few})
    changed = changed.model_copy(update={"fingerprint": changed.own_fingerprint()})
    changed.write(bench.manifest("mine"))
    withheld(bench.latency(), "Programs that were not compiled: 1")


@pytest.mark.parametrize("change", ["one byte", "gone"])
def test_a_checkpoint_file_that_changed_is_not_timed(bench: Bench, change: str) -> None:
    record = CheckpointRecord.read(bench.checkpoint)
    folder = bench.root / "weights"
    shutil.copytree(ROOT / record.directory, folder)
    record.model_copy(update={"directory": str(folder)}).write(bench.checkpoint)
    weights = folder / "model.safetensors"
    if change == "gone":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    said = "model.safetensors differs" if change == "one byte" else "model.safetensors is missing"
    withheld(bench.latency(), f"checkpoint files: {said}")


@pytest.mark.parametrize("trick", ["plain", "falls back"])
def test_what_only_looks_like_a_kernel_is_not_timed(bench: Bench, trick: str) -> None:
    (bench.root / "trick").write_text(trick)  # since it was compiled
    record = bench.latency()
    withheld(record, "op silu: scale_rows: an NKI kernel: no")
    assert failed(record.gates)[0] == "op silu: scale_rows: an NKI kernel"
    if trick == "plain":
        withheld(record, "scale_rows: Programs that were not compiled: cannot be told")


def test_a_kernel_that_another_op_replaces_is_not_timed(bench: Bench) -> None:
    kernel = "{kernel: nki_lm_head_kernel}"
    bench.write("mine", f"{{lm_head: {kernel}, norm_lm_head: {kernel}}}")
    bench.compile("mine")
    withheld(bench.latency(), "op lm_head: nki_lm_head_kernel: used: no")


def silu_of(self: KernelOp, *arguments: Any) -> Any:
    """The op's reference, in place of its kernel."""
    return self.contract.reference(*arguments)


def test_falling_back_to_the_reference_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall_back(self: KernelOp, *arguments: Any) -> Any:
        self.calls[self.graph] += 1  # what it says of itself is not believed
        return silu_of(self, *arguments)

    monkeypatch.setattr(KernelOp, "__call__", fall_back)
    record = bench.latency()
    withheld(record, "op silu: scale_rows: calls of the reference: ")
    for graph in ("context_encoding", "token_generation"):
        withheld(record, f"{graph}: op silu: scale_rows: calls: 0")
        withheld(record, f"{graph}: op silu: the logits follow scale_rows: no")


def test_a_kernel_whose_result_is_thrown_away_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, reference = KernelOp.__call__, CONTRACTS["silu"].reference

    def discard(self: KernelOp, *arguments: Any) -> Any:
        run(self, *arguments)
        return reference(*arguments)

    monkeypatch.setattr(KernelOp, "__call__", discard)
    record = bench.latency()
    assert failed(record.gates) == [
        "context_encoding: op silu: the logits follow scale_rows",
        "token_generation: op silu: the logits follow scale_rows",
    ]
    withheld(record, "the logits follow scale_rows: no")


@pytest.mark.parametrize("left", ["context_encoding", "token_generation"])
def test_a_kernel_left_out_of_one_graph_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    run, reference = KernelOp.__call__, CONTRACTS["silu"].reference

    def leave_out(self: KernelOp, *arguments: Any) -> Any:
        if self.graph == left:
            return reference(*arguments)
        return run(self, *arguments)

    monkeypatch.setattr(KernelOp, "__call__", leave_out)
    record = bench.latency()
    withheld(record, f"{left}: op silu: scale_rows: calls: 0")
    assert all(name.startswith(left) for name in failed(record.gates))


@pytest.mark.parametrize("change", ["tokens", "calls"])
def test_timed_runs_that_do_other_work_are_withheld(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Once the clock runs, the kernel gives something else, or is left out."""
    run, start = KernelOp.__call__, evaluation.latency.interleave
    timed = False

    def other(self: KernelOp, *arguments: Any) -> Any:
        if timed and change == "calls":
            return silu_of(self, *arguments)
        result = run(self, *arguments)
        return -30 * result if timed else result

    def interleave(*arguments: Any) -> Any:
        nonlocal timed
        timed = True
        return start(*arguments)

    monkeypatch.setattr(KernelOp, "__call__", other)
    monkeypatch.setattr(evaluation.latency, "interleave", interleave)
    record = bench.latency()
    assert all(gate.passed for gate in record.gates[:-4])
    if change == "tokens":
        withheld(record, "timed runs gave the untimed run's tokens: not at short")
    else:
        withheld(record, "timed runs called each kernel as often as the untimed run: not at short")


def test_outputs_must_be_alive_and_of_the_references_size() -> None:
    reference = [torch.randn(4, 50, generator=torch.Generator().manual_seed(0))]

    def closed(ours: torch.Tensor) -> list[str]:
        gates = output_gates("context_encoding", [ours], reference)
        return [name.removeprefix("context_encoding: ") for name in failed(gates)]

    size = "range of the logits over the reference's"
    assert closed(reference[0]) == closed(1.9 * reference[0]) == closed(0.6 * reference[0]) == []
    assert closed(2.1 * reference[0]) == closed(0.4 * reference[0]) == [size]
    assert closed(torch.zeros(4, 50)) == ["tokens whose logits are all zero", size]
    one_row = reference[0].clone()
    one_row[2] = 0
    assert closed(one_row) == ["tokens whose logits are all zero"]
    for bad in (float("nan"), float("inf")):
        broken = reference[0].clone()
        broken[1, 7] = bad
        assert closed(broken) == ["logits that are NaN or infinite", size]


def test_every_timed_run_must_do_the_same_work() -> None:
    calls = {"p": {(("k", 8),)}}
    assert failed(same_work_gates({"p": [[1, 2]]}, calls)) == []
    [other_tokens] = same_work_gates({"p": [[1, 2], [1, 3]]}, calls)[:1]
    assert sentences([other_tokens]) == [
        "timed runs gave the untimed run's tokens: not at p; must be: the same tokens, always"
    ]
    fewer = same_work_gates({"p": [[1, 2]]}, {"p": {(("k", 8),), (("k", 0),)}})
    assert failed(fewer) == ["timed runs called each kernel as often as the untimed run"]
    assert len(failed(same_work_gates({}, {}))) == 2


def test_a_prompt_that_is_not_there_or_does_not_fit_is_said(bench: Bench) -> None:
    for prompts, said in ((["nowhere"], "it has: short, medium"), (["long"], "must have 2 to 16")):
        section = bench.config.latency.model_copy(update={"prompts": prompts})
        bench.config = bench.config.model_copy(update={"latency": section})
        with pytest.raises(EvaluationError, match=said):
            bench.latency()


def test_a_record_of_another_schema_version_is_refused(bench: Bench) -> None:
    path = bench.root / "latency.json"
    bench.manifest("mine").write_bytes(bench.manifest("baseline").read_bytes())
    bench.latency()  # withheld, and so made at once
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 7'))
    with pytest.raises(RecordError, match=r"latency\.json: not a LatencyRecord of schema version"):
        LatencyRecord.read(path)
    with pytest.raises(RecordError, match="no such result file"):
        LatencyRecord.read(bench.root / "nowhere.json")
