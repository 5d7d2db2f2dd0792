"""The contest's one-file submission."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import real_source
import torch

from model.configuration import (
    ConfigurationError,
    KernelConfiguration,
    OpKernel,
    kernel_configuration_path,
    read_kernel_configuration,
)
from model.neuron.bundle import CLASS, FILE, bundle, write_submission
from model.neuron.sources import SourceError
from model.ops import build_ops

CONFIGURATIONS = sorted(path.stem for path in Path("config/kernels").glob("*.yaml"))
OURS = {"kernels", "model", "evaluation", "simulator", "workflow"}

IMPORT_ALONE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError("the submission imports " + name)
import simulator.finder  # where `nki` comes from here
import simulator.subset, simulator.kernel, nki, torch
sys.meta_path.insert(0, Block())
sys.path[:0] = {path}
import neuron_stubs
neuron_stubs.CLOSED += ("neuronx_distributed", "neuronx_distributed_inference")
neuron_stubs.install()
import qwen_with_nki as submission
from simulator.subset import check_subset, subset_violations
for op, filled in submission.KERNELS.items():
    assert isinstance(filled.kernel, simulator.kernel.Kernel), op
    found = subset_violations(check_subset(filled.kernel.function))
    assert not found, (op, found)
print(submission.{name}.__name__, sorted(submission.KERNELS))
"""


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_has_one(name: str, tmp_path: Path) -> None:
    write_submission(name, tmp_path / FILE)
    assert (tmp_path / FILE).read_text().endswith(f"{CLASS} = bind(GraphKernels(KERNELS))\n")


@pytest.mark.parametrize("name", ["parts", "all"])
def test_it_stands_alone_and_its_kernels_are_within_the_subset(name: str, tmp_path: Path) -> None:
    write_submission(name, tmp_path / FILE)
    path = [str(tmp_path), str(Path(__file__).parent)]
    program = IMPORT_ALONE.format(blocked=OURS - {"simulator"}, path=path, name=CLASS)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-1500:]
    ops = read_kernel_configuration(kernel_configuration_path(name)).ops
    assert result.stdout.strip() == f"{CLASS} {sorted(ops)}"


def test_it_imports_nothing_of_ours_and_defines_each_name_once() -> None:
    text = bundle(read_kernel_configuration(kernel_configuration_path("all")), "all")
    tree = ast.parse(text)
    imported = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not imported & OURS
    assert {"nki", "torch", "neuronx_distributed", "neuronx_distributed_inference"} <= imported
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert len(names) == len(set(names))
    assert "KernelOp" not in text  # the op table's checks and counts stay here


def test_names_that_two_modules_define_are_told_apart(tmp_path: Path) -> None:
    kernel = (
        "import nki\nimport nki.language as nl\nfrom kernels.tiling import load_rows as rows\n\n"
        'SIZE = 3\n"""Mine."""\n\n'
        "def transpose_weight(SIZE):\n    return SIZE\n\n\n"
        "@nki.jit\ndef mine(x, weight, eps):\n    plain = SIZE\n"
        "    return rows(x, transpose_weight(plain), SIZE)\n"
    )
    (tmp_path / "mine.py").write_text(kernel)
    source = f"{tmp_path / 'mine.py'}:mine"
    configuration = KernelConfiguration(description="m", ops={"rmsnorm": OpKernel(kernel=source)})
    text = bundle(configuration, "mine")
    assert '\nSIZE = 3\n"""Mine."""\n' in text
    assert "def transpose_weight_mine(SIZE):\n    return SIZE\n" in text
    assert "def transpose_weight_kernels_in_graph(layer" in text
    assert "    plain = SIZE\n    return load_rows(x, transpose_weight_mine(plain), SIZE)\n" in text
    assert "        transpose_weight_kernels_in_graph(self.o_proj.o_proj)\n" in text


def test_what_cannot_be_moved_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("import nki\nfor n in range(3):\n    pass\n")
    source = f"{tmp_path / 'odd.py'}:odd"
    with pytest.raises(SourceError, match=r"odd\.py:2: a contest submission is one file of def"):
        bundle(KernelConfiguration(description="", ops={"silu": OpKernel(kernel=source)}), "odd")
    with pytest.raises(ConfigurationError, match="unknown kernel configuration 'none'"):
        write_submission("none", tmp_path / "out" / FILE)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not real_source.available(), reason=real_source.REASON)
@pytest.mark.parametrize("name", ["norms", "parts", "all"])
def test_it_gives_the_adapters_logits_to_the_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(os.environ)
    real_source.enable()
    try:
        from model.neuron.kernels_in_graph import GraphKernels
        from model.neuron.modeling import bind

        folder = tmp_path / "checkpoint"
        real_source.random_checkpoint(folder)
        write_submission(name, tmp_path / f"submission_{name}.py")
        monkeypatch.syspath_prepend(tmp_path)
        submission = __import__(f"submission_{name}")
        ops = build_ops(read_kernel_configuration(kernel_configuration_path(name)))
        adapter = bind(GraphKernels(ops.filled, ops.enter))
        tokens = torch.randint(2, 256, (1, 12), generator=torch.Generator().manual_seed(1))
        found = [
            real_source.run(real_source.application(each, folder), tokens, 8)
            for each in (getattr(submission, CLASS), adapter)
        ]
        assert all(a.equal(b) for a, b in zip(*found, strict=True))
        assert getattr(submission, CLASS).kernels.runs == {
            "context_encoding": 1,
            "token_generation": 4,
        }
    finally:
        os.environ.clear()
        os.environ.update(before)
