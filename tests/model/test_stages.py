"""Compile and generate: what they leave behind, and how they fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_model import VOCABULARY
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.compile import CompileError, compile_configuration
from model.configuration import Config
from model.custom_ops import GraphError
from model.generate import generate, is_correct, summarise
from model.records import (
    CheckpointRecord,
    CompileManifest,
    GenerationRecord,
    PromptResult,
    RecordError,
    RunTiming,
)
from model.runtime import PromptError

PROMPTS = """
prompts:
  - {name: one, task: null, length: short, text: w1 w2 w3, expected: null}
  - {name: two, task: null, length: medium, text: w5 w6 w7 w8 w9 w10 w11 w12 w13, expected: w1}
"""


class Bench:
    """A project folder with one configuration and a checkpoint."""

    def __init__(self, root: Path, record: CheckpointRecord, config: Config, cache: Path) -> None:
        self.cache = cache
        (root / "config/kernels").mkdir(parents=True)
        self.root, self.config = root, config
        self.checkpoint = root / "checkpoint.json"
        self.manifest = root / "compiled/manifest.json"
        record.write(self.checkpoint)
        (root / "prompts.yaml").write_text(PROMPTS)
        words = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<unk>": VOCABULARY - 2}
        tokenizer = Tokenizer(models.WordLevel(words | {"<eos>": VOCABULARY - 1}, "<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>"
        ).save_pretrained(record.directory)

    def configure(self, ops: str) -> None:
        text = f"description: a test\nops: {ops}\n"
        (self.root / "config/kernels/mine.yaml").write_text(text)

    def compile(self) -> CompileManifest:
        return compile_configuration(
            self.config, "mine", self.checkpoint, self.manifest, self.cache
        )

    def generate(self) -> GenerationRecord:
        output = self.root / "generation.json"
        return generate(self.config, "mine", self.manifest, self.checkpoint, output)


@pytest.fixture
def bench(
    tmp_path: Path,
    record: CheckpointRecord,
    config: Config,
    compilations: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, record, config, compilations)


def test_the_manifest_says_what_runs_how_often_and_at_which_shapes(bench: Bench) -> None:
    bench.configure("{rmsnorm: {kernel: nki_rmsnorm_kernel}}")
    manifest = bench.compile()
    assert CompileManifest.read(bench.manifest) == manifest
    assert {(p.graph, p.bucket) for p in manifest.programs} == {
        *(("context_encoding", f"{b}x{s}") for b in (1, 2) for s in (8, 16)),
        *(("token_generation", f"{b}x1") for b in (1, 2)),
    }
    entry = next(p for p in manifest.programs if p.bucket == "2x16")
    assert entry.calls == 5  # two layers of two norms, and the last
    assert entry.arguments == {
        "x": "bfloat16[32,64]",
        "weight": "bfloat16[64]",
        "eps": "1e-06",
    }
    # One tile: weight to 32 partitions, x in, out; 2 bytes each.
    assert entry.hbm_read_bytes == 2 * (32 * 64 + 32 * 64)
    assert entry.hbm_write_bytes == 2 * 32 * 64
    assert entry.instructions_by_engine == {"dma": 3, "scalar": 2, "vector": 2}
    assert {f.name.partition("-")[0] for f in bench.manifest.parent.glob("programs/*")} == {
        "rmsnorm"
    }


def test_baseline_compiles_to_no_programs(bench: Bench) -> None:
    bench.configure("{}")
    manifest = bench.compile()
    assert manifest.kernels == manifest.programs == []


def test_the_fingerprint_follows_parameters_and_kernels(bench: Bench) -> None:
    prints = []
    for ops in (
        "{}",
        "{silu: {kernel: nki_silu_kernel}}",
        "{silu: {kernel: nki_silu_kernel, parameters: {tile_columns: 8}}}",
        "{silu: {kernel: nki_silu_kernel}}",
    ):
        bench.configure(ops)
        prints.append(bench.compile().fingerprint)
    assert len(set(prints)) == 3
    assert prints[1] == prints[3]


BROKEN = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def mine(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray((8, x.shape[1]), dtype=x.dtype, buffer=nl.sbuf)
    nisa.activation(dst=tile[1:3, :], op=nl.silu, data=tile[0:2, :])
    nisa.dma_copy(dst=out, src=x)
    return out
"""


def test_a_kernel_that_breaks_a_rule_fails_with_op_shapes_rule_and_line(bench: Bench) -> None:
    (bench.root / "k.py").write_text(BROKEN)
    bench.configure(f"{{silu: {{kernel: '{bench.root}/k.py:mine'}}}}")
    with pytest.raises(CompileError) as caught:
        bench.compile()
    message = str(caught.value)
    assert "op silu, kernel mine, graph context_encoding, called with x=bfloat16[32,32]" in message
    (violation,) = caught.value.violations
    assert (violation.rule, violation.line) == ("partition-start", 10)
    assert violation.file.endswith("k.py")
    assert not bench.manifest.exists()


def test_generation_keeps_outputs_timings_and_calls(bench: Bench) -> None:
    bench.configure("{silu: {kernel: nki_silu_kernel}}")
    bench.compile()
    record = bench.generate()
    assert GenerationRecord.read(bench.root / "generation.json") == record
    assert [(p.name, p.mode) for p in record.prompts] == [
        ("one", "greedy"), ("two", "greedy"), ("one", "sampling"), ("two", "sampling"),
    ]  # fmt: skip
    assert all(len(p.runs) == 3 and 1 <= len(p.output_tokens) <= 4 for p in record.prompts)
    assert [p.prompt_tokens for p in record.prompts] == [3, 9, 3, 9]
    assert record.prompts[0].correct is None
    assert record.prompts[1].correct is (record.prompts[1].output_text.split()[0] == "w1")
    assert record.kernel_calls["nki_silu_kernel"]["context_encoding"] == 4 * 4 * 2
    again = bench.generate()
    assert [p.output_tokens for p in again.prompts] == [p.output_tokens for p in record.prompts]


def test_artefacts_of_an_edited_kernel_are_not_used(bench: Bench) -> None:
    source = (Path(__file__).parents[2] / "kernels/silu.py").read_text()
    file = bench.root / "k.py"
    file.write_text(source)
    bench.configure(f"{{silu: {{kernel: '{file}:nki_silu_kernel'}}}}")
    bench.compile()
    file.write_text(source + "\n# edited\n")
    with pytest.raises(GraphError, match="changed since they were compiled"):
        bench.generate()


@pytest.mark.parametrize(
    ("text", "message"),
    [("w1 nowhere", "outside the model's vocabulary"), ("w1 " * 17, "17 tokens, more than")],
)
def test_a_prompt_that_does_not_fit_is_named(bench: Bench, text: str, message: str) -> None:
    bench.configure("{}")
    bench.compile()
    (bench.root / "prompts.yaml").write_text(
        f"prompts: [{{name: odd, length: short, text: '{text}'}}]"
    )
    with pytest.raises(PromptError, match=f"'odd'.*{message}"):
        bench.generate()
    assert not (bench.root / "generation.json").exists()


def test_a_truncated_manifest_is_not_believed(bench: Bench) -> None:
    bench.configure("{}")
    bench.compile()
    bench.manifest.write_text(bench.manifest.read_text()[:50])
    with pytest.raises(RecordError, match=r"manifest\.json: not a CompileManifest"):
        bench.generate()


def test_latencies_are_summed_up_over_all_runs() -> None:
    runs = [
        RunTiming(ttft_ms=10, itl_ms=[2, 4], end_to_end_ms=16),
        RunTiming(ttft_ms=20, itl_ms=[5], end_to_end_ms=25),
        RunTiming(ttft_ms=30, itl_ms=[], end_to_end_ms=30),
    ]
    result = PromptResult(
        name="p", task=None, length="short", prompt_tokens=1, mode="greedy", seed=None,
        output_tokens=[1], output_text="", expected=None, correct=None, runs=runs,
    )  # fmt: skip
    measured = summarise([result])
    assert (measured.ttft_ms_p50, measured.tpot_ms_p50, measured.end_to_end_ms_p50) == (20, 4, 25)
    assert measured.output_tokens_per_s == pytest.approx(1e3 * 6 / 71)
    assert measured.runs == 3


def test_an_answer_is_right_by_whole_words() -> None:
    assert is_correct("eleven .", "eleven")
    assert is_correct("the red fox", "the red")
    assert not is_correct("elevenses", "eleven")
    assert not is_correct("", "eleven")
