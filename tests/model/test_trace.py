"""What a trace counts and predicts, from config.json alone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import random_model

from kernels import OPS
from model.checkpoint import CheckpointError
from model.configuration import Config, ConfigurationError, ModelSource, parse_config
from model.estimate import STOCK
from model.op_calls import CompileError
from model.ops import STEPS
from model.records import GraphTrace, OpTrace, RecordError, TraceSummary
from model.trace import flops_ratios, trace
from model.work import WORK

ROOT = Path(__file__).parents[2]
QWEN = ROOT / "model/checkpoints/qwen3-30b-a3b"
# One rank of four of Qwen3-30B-A3B.
LAYERS, HIDDEN, HEADS, HEAD, VOCABULARY = 48, 2048, 8, 128, 37984
EXPERTS, CHOSEN, INNER = 128, 8, 192
CONTEXT = 640

Trace = Callable[..., TraceSummary]


def settings(**layout: Any) -> dict[str, Any]:
    given = {"tp_degree": 4, "lnc": 2, "context": CONTEXT, "context_encoding": [128], **layout}
    source = {"source": "hf://Qwen/Qwen3-30B-A3B@" + "0" * 40, "architecture": str(QWEN)}
    return {
        "model": "qwen",
        "models": {"qwen": {**source, "layout": given}},
        "configurations": ["mine"],
        "buckets": {"context_encoding": [8], "max_length": 24},
        "generate": {"prompts": "prompts.yaml"},
        "accuracy": {"texts": "texts.jsonl", "tasks": "tasks"},
    }


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Traces a configuration of these ops, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(ops: str = "{}", config: Config | None = None, **layout: Any) -> TraceSummary:
        file = tmp_path / "config/kernels/mine.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"description: a test\nops: {ops}\n")
        config = config or parse_config(settings(**layout))
        return trace(config, "mine", tmp_path / "traces/mine/summary.json")

    return run


def rows(summary: TraceSummary, graph: str, target: str = "trn2") -> dict[str, OpTrace]:
    """The table of one graph; an op at several shapes by its most frequent."""
    found: dict[str, OpTrace] = {}
    for row in summary.predictions[target].ops:
        if row.graph == graph and (row.op not in found or found[row.op].calls < row.calls):
            found[row.op] = row
    return found


def test_every_op_of_the_table_can_be_counted_and_estimated() -> None:
    ops = {*OPS, *STEPS, "experts"}
    assert ops <= set(WORK)
    only_where_filled = {"experts_decode", "attention_block_decode"}
    collectives = {"all_reduce", "all_gather"}
    assert ops - only_where_filled - collectives <= set(STOCK)


# --- counted --------------------------------------------------------------------------------


def test_macs_and_bytes_are_those_of_the_formulas(traced: Trace) -> None:
    summary = traced()
    ops = rows(summary, "token_generation")
    width = (HEADS + 2) * HEAD
    expected = {
        "qkv_proj": LAYERS * HIDDEN * width,
        "attention_decode": LAYERS * 2 * HEADS * CONTEXT * HEAD,
        "o_proj": LAYERS * HEADS * HEAD * HIDDEN,
        "router": LAYERS * HIDDEN * EXPERTS,
        "experts": LAYERS * CHOSEN * 3 * HIDDEN * INNER,
        "lm_head": HIDDEN * VOCABULARY,
    }
    assert {op: row.macs for op, row in ops.items() if row.macs} == expected
    decode = next(g for g in summary.graphs if g.graph == "token_generation")
    assert (decode.macs_total, decode.macs_nki) == (sum(expected.values()), 0)
    expert = 3 * HIDDEN * INNER
    assert ops["experts"].hbm_bytes_needed == LAYERS * (
        2 * CHOSEN * expert  # weights
        + 2 * 2 * HIDDEN  # x, result
        + 8 * CHOSEN  # fp32 weights, int32 numbers
    )
    assert ops["attention_decode"].hbm_bytes_needed == LAYERS * 2 * (
        2 * CONTEXT * HEAD + 2 * (HEADS + 2) * HEAD
    )


def test_a_model_without_a_layout_is_traced_on_one_core_by_the_buckets(
    traced: Trace, random_checkpoint: Path, config: Config
) -> None:
    source = ModelSource(source=str(random_checkpoint))
    here = config.model_copy(update={"models": {"random": source}})
    summary = traced("{silu: {kernel: nki_silu_kernel}}", config=here)
    assert (summary.tp_degree, summary.lnc, summary.context) == (1, 1, 24)
    assert [g.bucket for g in summary.graphs] == ["1x8", "1x16", "1x1"]
    decode = summary.graphs[-1]
    hidden, heads, kv, head, experts, k, inner, cache = 64, 4, 2, 16, 16, 4, 32, 24
    layer = hidden * head * (2 * heads + 2 * kv)  # q, k, v, o
    layer += 2 * heads * head * cache  # scores and values over the whole static cache
    layer += hidden * experts + k * 3 * hidden * inner
    assert decode.macs_total == 2 * layer + hidden * random_model.VOCABULARY
    assert (decode.macs_nki, decode.nki_kernel_calls) == (0, 2)
    assert summary.nki_flops_ratio == 0


def test_prefill_counts_full_squares_and_needs_half_of_them(traced: Trace) -> None:
    row = rows(traced(), "context_encoding")["attention_prefill"]
    assert row.macs == LAYERS * 2 * HEADS * 128 * 128 * HEAD
    assert row.macs_needed == LAYERS * HEADS * 128 * 129 * HEAD


def test_a_step_reads_the_active_weights_once_at_least(traced: Trace) -> None:
    prediction = traced().predictions["trn2"]
    needed = sum(row.hbm_bytes_needed for row in prediction.ops if row.graph == "token_generation")
    layer = HIDDEN * (10 * HEAD + HEADS * HEAD + EXPERTS + 3 * CHOSEN * INNER)
    weights = 2 * (LAYERS * layer + HIDDEN * VOCABULARY)
    assert weights < needed < 1.03 * weights


def counted(graph: str, done: tuple[int, int], needed: tuple[int, int]) -> GraphTrace:
    return GraphTrace(
        graph=graph,  # type: ignore[arg-type]
        bucket="1x1",
        macs_nki=done[0],
        macs_total=done[1],
        macs_needed_nki=needed[0],
        macs_needed_total=needed[1],
        nki_instructions=0,
        nki_kernel_calls=0,
        nki_hbm_bytes=0,
    )


def test_the_ratio_is_the_contests_and_the_weighted_one_counts_steps() -> None:
    graphs = [
        counted("context_encoding", (600, 1000), (500, 900)),  # the smallest: the contest's _bk0
        counted("context_encoding", (5, 50_000), (5, 50_000)),
        counted("token_generation", (90, 100), (20, 30)),
    ]
    contest, weighted = flops_ratios(graphs, decode_steps=10)
    assert contest == (600 + 90) / (1000 + 100)
    assert weighted == (500 + 10 * 20) / (900 + 10 * 30)


def test_macs_in_nki_are_what_the_kernel_does(traced: Trace) -> None:
    summary = traced("{router: {kernel: nki_expert_router_kernel}}")
    prefill, decode = summary.graphs
    assert prefill.macs_nki == LAYERS * 128 * HIDDEN * EXPERTS
    assert (decode.macs_nki, decode.nki_kernel_calls) == (LAYERS * HIDDEN * EXPERTS, LAYERS)
    share = (prefill.macs_nki + decode.macs_nki) / (prefill.macs_total + decode.macs_total)
    assert summary.nki_flops_ratio == share
    assert 0 < summary.nki_flops_ratio < 0.1
    steps = summary.decode_steps
    assert steps == CONTEXT - 128
    needed = prefill.macs_needed_total + steps * decode.macs_needed_total
    inside = prefill.macs_needed_nki + steps * decode.macs_needed_nki
    assert summary.nki_flops_ratio_weighted == inside / needed != share


# --- predicted ------------------------------------------------------------------------------


def test_parts_add_up_to_graphs_and_graphs_to_ttft_and_tpot(traced: Trace) -> None:
    summary = traced("{router: {kernel: nki_expert_router_kernel}}", context_encoding=[128, 256])
    for target, prediction in summary.predictions.items():
        for graph in prediction.graphs:
            ops = [
                row
                for row in prediction.ops
                if (row.graph, row.bucket) == (graph.graph, graph.bucket)
            ]
            assert sum(row.predicted_us for row in ops) == pytest.approx(1e3 * graph.predicted_ms)
            assert graph.predicted_ms == pytest.approx(
                graph.predicted_nki_ms + graph.predicted_reference_ms
                + graph.predicted_collective_ms
            )  # fmt: skip
            assert 0 < graph.roofline_ms < graph.predicted_ms
            assert min(graph.predicted_nki_ms, graph.predicted_collective_ms) > 0
        by_bucket = {graph.bucket: graph.predicted_ms for graph in prediction.graphs}
        assert prediction.predicted_ttft_ms == by_bucket["1x256"] > by_bucket["1x128"]
        assert prediction.predicted_tpot_ms == by_bucket["1x1"]
        if target == summary.target:
            assert summary.predicted_ttft_ms == prediction.predicted_ttft_ms
            assert summary.predicted_tpot_ms == prediction.predicted_tpot_ms
    assert list(summary.predictions) == ["trn2", "trn3"]
    assert summary.predictions["trn3"].predicted_tpot_ms < summary.predicted_tpot_ms


def test_a_row_says_what_its_time_rests_on(traced: Trace) -> None:
    ops = rows(traced("{router: {kernel: nki_expert_router_kernel}}"), "token_generation")
    said = {op: (row.kernel, row.nki, row.basis) for op, row in ops.items()}
    assert said["router"] == ("nki_expert_router_kernel", True, "timing model")
    assert said["experts"] == ("reference", False, "coarse estimate")
    assert said["all_reduce"] == ("collective", False, "formula")
    assert all(row.predicted_us >= row.roofline_us for row in ops.values())


def test_every_layer_reduces_twice_and_the_head_gathers(traced: Trace) -> None:
    ops = rows(traced(), "token_generation")
    assert {op: row.calls for op, row in ops.items() if row.bound_by == "link"} == {
        "all_reduce": 2 * LAYERS,
        "all_gather": 1,
    }
    # 2 us, one hop of 1.5 us, and twice three quarters of 4 KiB at 80 B/ns
    each = ops["all_reduce"].predicted_us / ops["all_reduce"].calls
    assert each == pytest.approx(3.5 + 1.5 * 2 * HIDDEN / 80 / 1000)
    gathered = 4 * VOCABULARY * 2
    assert ops["all_gather"].roofline_us == pytest.approx(0.75 * gathered / 80 / 1000)


def test_one_rank_has_no_collectives(traced: Trace) -> None:
    ops = rows(traced(tp_degree=1), "token_generation")
    assert not [op for op, row in ops.items() if row.bound_by == "link"]


def test_the_baseline_is_of_the_size_of_the_published_stock_model(traced: Trace) -> None:
    """facts/nxdi.md §2: contest prompt 4, trn2: 402 tokens and 238 more take 3042 ms, published.

    The two constants of the estimate are solved from this and the experts' share.
    """
    summary = traced(context_encoding=[640])
    whole = summary.predicted_ttft_ms + 238 * summary.predicted_tpot_ms
    assert whole == pytest.approx(3042, rel=0.02)
    ops = rows(summary, "token_generation")
    experts = ops["experts"].predicted_us + ops["router"].predicted_us
    assert experts / 1000 / summary.predicted_tpot_ms == pytest.approx(0.6, abs=0.03)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tp_degree", "message"),
    [(3, r"num_attention_heads \(32\) does not divide by tp_degree 3"), (64, "tp_degree 64")],
)
def test_a_tp_degree_that_does_not_fit_is_refused(
    traced: Trace, tmp_path: Path, tp_degree: int, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        traced(tp_degree=tp_degree)
    assert not (tmp_path / "traces/mine").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": None}, r"config\.json.*num_attention_heads"),
        ({"architectures": ["LlamaForCausalLM"]}, r"config\.json.*architectures"),
        ({"num_experts": "many"}, r"config\.json.*num_experts"),
    ],
)
def test_a_wrong_config_json_is_named(
    traced: Trace, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    value = json.loads((QWEN / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(value))
    given = settings()
    given["models"]["qwen"]["architecture"] = str(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        traced(config=parse_config(given))


def test_a_model_that_is_not_here_needs_its_config_json(traced: Trace) -> None:
    given = settings()
    del given["models"]["qwen"]["architecture"]
    with pytest.raises(ConfigurationError, match=r"models\.qwen\.architecture"):
        traced(config=parse_config(given))


def test_a_context_beyond_the_models_positions_is_refused(traced: Trace) -> None:
    with pytest.raises(ConfigurationError, match=r"40961.*max_position_embeddings \(40960\)"):
        traced(context=40961)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"context": 64}, "must hold the largest context_encoding"),
        ({"context_encoding": [256, 128]}, "ascending"),
        ({"lnc": 3}, "lnc"),
        ({"tp_degree": 0}, "tp_degree"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_config(settings(**layout))


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


def test_a_kernel_that_breaks_a_rule_is_named_and_leaves_nothing(
    traced: Trace, tmp_path: Path
) -> None:
    (tmp_path / "k.py").write_text(BROKEN)
    message = r"op silu, kernel .*mine, trn2.*x=bfloat16"
    with pytest.raises(CompileError, match=message) as caught:
        traced(f"{{silu: {{kernel: '{tmp_path}/k.py:mine'}}}}")
    assert "partition-start" in {violation.rule for violation in caught.value.violations}
    assert not (tmp_path / "traces/mine").exists()


# --- the file -------------------------------------------------------------------------------


def test_the_summary_is_read_back_whole_or_not_at_all(traced: Trace, tmp_path: Path) -> None:
    summary = traced()
    path = tmp_path / "traces/mine/summary.json"
    assert TraceSummary.read(path) == summary
    path.write_text(path.read_text()[:-100])
    with pytest.raises(RecordError, match=r"summary\.json: not a TraceSummary"):
        TraceSummary.read(path)


def test_the_fingerprint_follows_kernels_and_layout(traced: Trace) -> None:
    prints = [
        traced().fingerprint,
        traced("{silu: {kernel: nki_silu_kernel}}").fingerprint,
        traced(context=512).fingerprint,
        traced().fingerprint,
    ]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]


# --- the timeline ---------------------------------------------------------------------------


def read_timeline(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        value = json.load(file)
    assert set(value) == {"displayTimeUnit", "otherData", "traceEvents"}
    events: list[dict[str, Any]] = value["traceEvents"]
    return events


def test_the_timeline_shows_the_whole_step(traced: Trace, tmp_path: Path) -> None:
    summary = traced(
        "{router: {kernel: nki_expert_router_kernel}, rope: {kernel: nki_rope_kernel}, "
        "attention_decode: {kernel: nki_decode_attention_kernel}}"
    )
    events = read_timeline(tmp_path / "traces/mine/decode_step.json.gz")
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X"]
    assert {e["ph"] for e in events} == {"M", "X"}
    assert {(e["pid"], e["tid"]) for e in slices} <= named
    assert all(e["ts"] >= 0 and e["dur"] >= 0 and isinstance(e["name"], str) for e in slices)

    def lane(event: dict[str, Any]) -> tuple[int, int]:
        return event["pid"], event["tid"]

    # Ops and collectives follow each other without overlap, and end when the step does.
    graph = sorted((e for e in slices if e["pid"] == 100), key=lambda e: e["ts"])
    for before, after in pairwise(graph):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"], abs=1e-3)
    end = graph[-1]["ts"] + graph[-1]["dur"]
    assert end == pytest.approx(1e3 * summary.predicted_tpot_ms, abs=0.1)
    assert {f"layer {layer} router" for layer in range(LAYERS)} <= {e["name"] for e in graph}
    assert sum(e["tid"] == 2 for e in graph) == 2 * LAYERS + 1

    # In a lane of a core nothing overlaps, and all is over when the last op is.
    engines = [e for e in slices if e["pid"] != 100]
    for where, group in groupby(sorted(engines, key=lambda e: (lane(e), e["ts"])), key=lane):
        for before, after in pairwise(group):
            assert after["ts"] >= before["ts"] + before["dur"] - 1e-3, where
    assert max(e["ts"] + e["dur"] for e in engines) <= end
    # Every kernel's instructions lie within their op: nothing before it begins.
    router = next(e for e in graph if e["name"] == "layer 7 router")
    inside = [e for e in engines if router["ts"] <= e["ts"] < router["ts"] + router["dur"]]
    assert any("router.py" in e["name"] for e in inside)
    assert not [e for e in inside if "rope.py" in e["name"]]


def test_the_timeline_of_the_same_step_is_the_same_file(traced: Trace, tmp_path: Path) -> None:
    path = tmp_path / "traces/mine/decode_step.json.gz"
    traced("{rope: {kernel: nki_rope_kernel}}")
    first = path.read_bytes()
    traced("{rope: {kernel: nki_rope_kernel}}")
    assert path.read_bytes() == first


def test_a_kernel_inside_a_references_op_is_not_counted_twice(traced: Trace) -> None:
    def needed(summary: TraceSummary) -> int:
        ops = summary.predictions["trn2"].ops
        return sum(row.macs_needed for row in ops if row.graph == "token_generation")

    plain = traced()
    before = rows(plain, "token_generation")
    mixed = traced("{expert_mlp: {kernel: nki_fused_expert_mlp_kernel}}")
    ops = rows(mixed, "token_generation")
    assert ops["expert_mlp"].calls == LAYERS * CHOSEN
    assert ops["expert_mlp"].macs_needed == before["experts"].macs_needed
    assert ops["experts"].macs == 0
    assert needed(mixed) == needed(plain)
    assert 0 <= ops["experts"].predicted_us < before["experts"].predicted_us
    softmax = rows(traced("{softmax: {kernel: nki_softmax_kernel}}"), "token_generation")
    for op in ("attention_decode", "router"):  # one step less
        saved = before[op].predicted_us - softmax[op].predicted_us
        assert saved == pytest.approx(LAYERS * 3.5, rel=0.1)
