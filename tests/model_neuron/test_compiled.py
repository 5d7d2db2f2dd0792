"""What compiling leaves behind, with a stand-in for NxD Inference's application."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_hlo import config_of, dot, instruction, kernel, module

from model.configuration import KernelConfiguration, Neuron, OpKernel, read_config
from model.neuron.application import Application, load_application, work_directory
from model.neuron.availability import NeuronError
from model.neuron.compiled import CompiledGraphs, compile_application
from model.neuron.hlo import FOLDERS
from model.neuron.kernels_in_graph import GraphKernels
from model.neuron.work_directory import WorkDirectory
from model.ops import build_ops

BUCKETS = {"context_encoding": [32, 64], "token_generation": [128]}
RMSNORM = KernelConfiguration(
    description="one kernel", ops={"rmsnorm": OpKernel(kernel="nki_rmsnorm_kernel")}
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkDirectory:
    for variable in ("BASE_COMPILE_WORK_DIR", "NEURON_COMPILE_CACHE_URL"):
        monkeypatch.setenv(variable, "unset")
    monkeypatch.delenv("NXD_CPU_MODE", raising=False)
    return WorkDirectory(tmp_path / "work")


def application(work: WorkDirectory, write: Callable[[Path, int], None]) -> Application:
    """Its `compile` traces each bucket, which calls the kernels, and writes the bucket's files."""
    ops = build_ops(RMSNORM)
    kernels = GraphKernels(ops.filled, ops.enter)

    def compile_both(output: str) -> None:
        for graph, buckets in BUCKETS.items():
            for n in range(len(buckets)):
                kernels.enter(graph)
                for _ in range(5):  # as two layers have it
                    kernels("rmsnorm", torch.ones(2, 8), torch.ones(8), 1e-6)
                folder = work.trace / FOLDERS[graph] / f"_tp0_bk{n}"  # type: ignore[index]
                folder.mkdir(parents=True)
                write(folder, n)
        (Path(output) / "model.pt").write_bytes(b"")

    wrappers = {
        f"{graph}_model": SimpleNamespace(
            config=SimpleNamespace(neuron_config=SimpleNamespace(buckets=buckets))
        )
        for graph, buckets in BUCKETS.items()
    }
    model = SimpleNamespace(compile=compile_both, **wrappers)
    return Application(model, ops, kernels, "generation", 1)


def write_hlo(folder: Path, bucket: int) -> None:
    """A dot of 6 MACs and a kernel of 10, 20, … MACs."""
    operands = [instruction(1, "parameter", [2, 3]), instruction(2, "parameter", [3, 1])]
    parts = [
        *operands,
        dot(3, [1, 2], [2, 1], [[1], [0], [], []]),
        kernel(4, config_of(10 * (bucket + 1))),
    ]
    (folder / "model.MODULE_1+2.hlo_module.pb").write_bytes(module(parts))


def test_every_graph_is_counted_and_calls_are_those_of_one_run(work: WorkDirectory) -> None:
    found = compile_application(application(work, write_hlo), work)
    assert found == CompiledGraphs.of(work)
    assert work.is_compiled()
    assert [(g.graph, g.bucket_tokens, g.macs_nki, g.macs_total) for g in found.graphs] == [
        ("context_encoding", 32, 10, 16),
        ("context_encoding", 64, 20, 26),
        ("token_generation", 128, 10, 16),
    ]
    assert found.nki_flops_ratio == 20 / 32
    assert found.kernel_calls == {
        "nki_rmsnorm_kernel": {"context_encoding": 5, "token_generation": 5}
    }


def test_a_bucket_without_hlo_fails_the_compilation(work: WorkDirectory) -> None:
    def only_first(folder: Path, bucket: int) -> None:
        if bucket == 0:
            write_hlo(folder, bucket)

    with pytest.raises(NeuronError, match=r"_tp0_bk1: one HLO module is needed, found none"):
        compile_application(application(work, only_first), work)
    assert not work.is_compiled()


def test_the_compilers_words_are_in_the_error(work: WorkDirectory) -> None:
    def fail(folder: Path, bucket: int) -> None:
        (folder / "log-neuron-cc.txt").write_text("ERROR [NCC_EBVF030] 5 million instructions\n")
        raise RuntimeError("neuronx-cc failed with 70")

    with pytest.raises(NeuronError, match=r"neuronx-cc failed with 70\n.*NCC_EBVF030"):
        compile_application(application(work, fail), work)
    assert not work.is_compiled()


def test_what_was_not_compiled_is_not_loaded(work: WorkDirectory) -> None:
    with pytest.raises(NeuronError, match=r"not compiled; run snakemake compile_all"):
        load_application(application(work, write_hlo), work)


def test_no_two_compilations_share_a_folder() -> None:
    config = read_config(Path("config/config.yaml"))
    softmax = KernelConfiguration(
        description="", ops={"softmax": OpKernel(kernel="nki_softmax_kernel")}
    )
    other = config.model_copy(update={"neuron": Neuron(tp_degree=2)})
    cases: list[tuple[Any, ...]] = [
        (config, RMSNORM, "generation", "bfloat16"),
        (config, RMSNORM, "scoring", "bfloat16"),
        (config, RMSNORM, "generation", "float32"),
        (config, softmax, "generation", "bfloat16"),
        (other, RMSNORM, "generation", "bfloat16"),
    ]
    folders = [work_directory(*case).root for case in cases]
    assert len(set(folders)) == len(cases)
    assert work_directory(*cases[0]).root == folders[0]
