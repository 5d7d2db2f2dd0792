"""Compiled graphs are the model, are only run if they are what was compiled, and are kept."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from model import compile as compile_module
from model.checkpoint import CheckpointError, read_config
from model.compile import CompileError, compile_configuration
from model.compile_cache import CompileCache
from model.configuration import Config, KernelConfiguration, read_kernel_configuration
from model.custom_ops import GraphError
from model.export import load_graph
from model.fingerprint import file_sha256
from model.qwen3_moe import Cache
from model.records import CheckpointRecord, CompileManifest, write_text
from model.runtime import LanguageModel, load

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SILU = "{silu: {kernel: nki_silu_kernel}}"


class Compiler:
    """A project folder with one configuration."""

    def __init__(self, root: Path, record: CheckpointRecord, config: Config, cache: Path) -> None:
        self.root, self.record, self.config, self.cache = root, record, config, cache
        self.manifest = root / "compiled/manifest.json"
        record.write(root / "checkpoint.json")

    def configure(self, ops: str) -> KernelConfiguration:
        path = self.root / "config/kernels/mine.yaml"
        write_text(path, f"description: a test\nops: {ops}\n")
        return read_kernel_configuration(path)

    def run(self, **changes: object) -> CompileManifest:
        config = Config.model_validate(self.config.model_dump() | changes)
        return compile_configuration(
            config, "mine", self.root / "checkpoint.json", self.manifest, self.cache
        )

    def load(self, kernels: KernelConfiguration, dtype: str = "bfloat16") -> LanguageModel:
        return load(self.record, kernels, dtype=dtype, config=self.config, compiled=self.manifest)

    def run_with_own_cache(self) -> CompileManifest:
        """A compilation, and from here on a cache with nothing else in it."""
        keys: list[str] = []
        find = CompileCache.find

        def find_and_note(store: CompileCache, key: str) -> Path | None:
            keys.append(key)
            return find(store, key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CompileCache, "find", find_and_note)
            manifest = self.run()  # with the shared cache: it is made only if no test made it
        (key,) = keys
        shutil.copytree(self.cache / key, self.root / "cache" / key)
        self.cache = self.root / "cache"
        return manifest

    def left(self) -> list[str]:
        """Everything under the manifest's folder."""
        return sorted(str(p.relative_to(self.root)) for p in self.manifest.parent.rglob("*"))


@pytest.fixture
def compiler(
    tmp_path: Path,
    record: CheckpointRecord,
    config: Config,
    compilations: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Compiler:
    monkeypatch.chdir(tmp_path)
    return Compiler(tmp_path, record, config, compilations)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("baseline", "bfloat16"), ("all", "bfloat16"), ("all", "float32"), ("parts", "bfloat16")],
)
def test_compiled_graphs_give_the_models_numbers(compiler: Compiler, name: str, dtype: str) -> None:
    kernels = read_kernel_configuration(ROOT / f"config/kernels/{name}.yaml")
    shutil.copytree(ROOT / "config/kernels", "config/kernels", dirs_exist_ok=True)
    config = Config.model_validate(compiler.config.model_dump() | {"dtype": dtype})
    manifest = compile_configuration(
        config, name, compiler.root / "checkpoint.json", compiler.manifest, compiler.cache
    )
    assert {(g.graph, g.bucket) for g in manifest.graphs} == {
        ("context_encoding", "1x8"), ("context_encoding", "1x16"), ("token_generation", "1x1"),
    }  # fmt: skip
    compiled = compiler.load(kernels, dtype)
    plain = load(compiler.record, kernels, dtype=dtype, config=config)
    kind = getattr(torch, dtype)
    caches = [Cache.empty(compiled.model.config, 1, 24, kind) for _ in range(2)]
    tokens = torch.arange(1, 17)[None]
    with torch.inference_mode():
        for lengths in (torch.tensor([[11]]), torch.tensor([[16]])):
            found, wanted = (
                each.context_encoding(tokens, lengths.int(), cache)
                for each, cache in zip((compiled.graphs, plain.model), caches, strict=True)
            )
            assert torch.equal(found, wanted)
        for position in (16, 17):
            found, wanted = (
                each.token_generation(tokens[:, :1], torch.tensor([[position]]).int(), cache)
                for each, cache in zip((compiled.graphs, plain.model), caches, strict=True)
            )
            assert torch.equal(found, wanted)
    for mine, other in zip(*(cache.keys + cache.values for cache in caches), strict=True):
        assert torch.equal(mine, other)
        assert mine[:, :, :18].abs().sum(-1).min() > 0
    assert compiled.kernel_calls() == plain.kernel_calls()
    runs = {"context_encoding": 2, "token_generation": 2}
    counted: Counter[tuple[str, str]] = Counter()
    for graph in manifest.graphs:
        if graph.bucket != "1x8":
            counted.update({(k, graph.graph): n for k, n in graph.kernel_calls.items()})
    assert {(k, g): n for k, by in compiled.kernel_calls().items() for g, n in by.items() if n} == {
        (kernel, graph): n * runs[graph] for (kernel, graph), n in counted.items()
    }


def test_generation_runs_the_compiled_graphs(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = compiler.configure(SILU)
    compiler.run()
    expected = load(compiler.record, kernels, dtype="bfloat16", config=compiler.config)
    wanted = [g.tokens for g in expected.generate([[1, 2, 3], [5] * 9], 4, [])]
    model = compiler.load(kernels)
    with monkeypatch.context() as patch:
        patch.setattr(type(model.model), "_run", None)  # the functions cannot run
        assert [g.tokens for g in model.generate([[1, 2, 3], [5] * 9], 4, [])] == wanted
    # What no graph gives is the functions'.
    assert torch.equal(model.logits([[1, 2]])[0], expected.logits([[1, 2]])[0])
    with pytest.raises(GraphError, match=r"no context_encoding graph was compiled for 2 seq"):
        model.decode_logits([[1, 2]], 1)


def test_a_graph_that_was_changed_is_not_run(compiler: Compiler) -> None:
    kernels = compiler.configure(SILU)
    manifest = compiler.run()
    file = compiler.manifest.parent / manifest.graphs[0].file
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(GraphError, match="is not the graph that was compiled"):
        compiler.load(kernels).generate([[1, 2]], 2, [])
    file.unlink()
    with pytest.raises(GraphError, match="no such compiled graph"):
        compiler.load(kernels).generate([[1, 2]], 2, [])


class _Pickled:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_no_code_in_a_graphs_pickles_runs(compiler: Compiler) -> None:
    """Even if its digest were forged with it."""
    compiler.configure(SILU)
    file = compiler.manifest.parent / compiler.run().graphs[0].file
    program = torch.export.load(file)
    program._example_inputs = ((_Pickled(),), {})
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    file.write_bytes(buffer.getvalue())
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        load_graph(file, file_sha256(file))
    assert not Path("harm").exists()


def test_graphs_of_another_configuration_or_dtype_are_not_run(compiler: Compiler) -> None:
    kernels = compiler.configure(SILU)
    compiler.run()
    with pytest.raises(GraphError, match="compiled for bfloat16, not float32"):
        compiler.load(kernels, "float32")
    other = compiler.configure("{silu: {kernel: nki_silu_kernel, parameters: {tile_columns: 8}}}")
    with pytest.raises(GraphError, match="changed since they were compiled"):
        compiler.load(other)
    model = compiler.load(kernels)
    model.model.ops.filled.clear()
    with pytest.raises(GraphError, match=r"fills silu with nki_silu_kernel, .* with nothing"):
        model.generate([[1, 2]], 1, [])


def test_the_same_compilation_is_done_once(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.configure(SILU)
    first = compiler.run_with_own_cache()
    made: list[object] = []

    def stop(*arguments: object) -> None:
        made.append(arguments)
        raise InterruptedError

    monkeypatch.setattr(compile_module, "_compile", stop)
    again = compiler.run()
    assert not made
    assert again.model_dump(exclude={"compile_seconds_measured"}) == first.model_dump(
        exclude={"compile_seconds_measured"}
    )
    assert compiler.load(compiler.configure(SILU)).generate([[1, 2]], 2, [])
    for change in ({"dtype": "float32"}, {"target": "trn3"},
                   {"buckets": {"context_encoding": [8], "max_length": 24}}):  # fmt: skip
        with pytest.raises(InterruptedError):
            compiler.run(**change)
    compiler.configure("{silu: {kernel: nki_silu_kernel, parameters: {tile_columns: 8}}}")
    with pytest.raises(InterruptedError):
        compiler.run()
    assert len(made) == 4


def test_a_kept_compilation_that_is_spoilt_is_made_again(compiler: Compiler) -> None:
    compiler.configure(SILU)
    first = compiler.run_with_own_cache()
    for file in (compiler.root / "cache").rglob("*.pt2"):
        file.write_bytes(b"spoilt")
    again = compiler.run()
    for graph in again.graphs:
        assert file_sha256(compiler.manifest.parent / graph.file) == graph.sha256
    assert again.fingerprint == first.fingerprint


WRONG = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def {name}(x):
    out = nl.ndarray({shape}, dtype={dtype}, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x{part})
    return out

def plain(x):
    return x

@nki.jit
def fails(x):
    return [][3]
"""


@pytest.mark.parametrize(
    ("function", "values", "message"),
    [
        ("mine", {"shape": "(4, x.shape[1])", "part": "[0:4, :]"}, r"shape|gives"),
        ("mine", {"dtype": "nl.float32"}, r"gives float32\[.*\], not bfloat16"),
        ("plain", {}, "is no function with @nki.jit"),
        ("fails", {}, r"called with x=bfloat16\[32,32\].*\n.*IndexError"),
    ],
)
def test_a_kernel_of_other_results_fails_and_leaves_nothing(
    compiler: Compiler, function: str, values: dict[str, str], message: str
) -> None:
    defaults = {"name": "mine", "shape": "x.shape", "dtype": "x.dtype", "part": ""}
    (compiler.root / "k.py").write_text(WRONG.format(**defaults | values))
    compiler.configure(f"{{silu: {{kernel: '{compiler.root}/k.py:{function}'}}}}")
    compiler.cache = compiler.root / "cache"
    with pytest.raises(CompileError, match=message) as caught:
        compiler.run()
    assert f"op silu, kernel {function}, graph context_encoding" in str(caught.value)
    assert compiler.left() == []
    assert not (compiler.root / "cache").exists()


def test_a_failed_compilation_leaves_the_earlier_one(compiler: Compiler) -> None:
    compiler.configure(SILU)
    compiler.run()
    before = compiler.left()
    (compiler.root / "k.py").write_text("import nki\n@nki.jit\ndef k(x):\n    return 1\n")
    compiler.configure(f"{{silu: {{kernel: '{compiler.root}/k.py:k'}}}}")
    with pytest.raises(CompileError):
        compiler.run()
    assert compiler.left() == before
    assert CompileManifest.read(compiler.manifest).kernels[0].kernel == "nki_silu_kernel"


def test_a_checkpoint_that_does_not_fit_is_not_compiled(
    compiler: Compiler, random_checkpoint: Path
) -> None:
    copy = Path(shutil.copytree(random_checkpoint, compiler.root / "copy"))
    (copy / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    compiler.record.model_copy(update={"directory": str(copy)}).write(
        compiler.root / "checkpoint.json"
    )
    compiler.configure("{}")
    with pytest.raises(CheckpointError, match=r"missing model\.embed_tokens\.weight"):
        compiler.run()
    assert not compiler.manifest.parent.exists()
    assert read_config(copy).hidden_size == 64
