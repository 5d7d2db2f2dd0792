"""The error budget and the cut-point map, on a small random model with kernels made for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_model
import pytest
import torch

from evaluation.error_map import cut_texts, error_map
from evaluation.inputs import EvaluationError
from evaluation.op_outputs import VALUES, difference
from evaluation.records import CutPoint, ErrorMapRecord, OpError
from kernels.contracts import CONTRACTS
from model.configuration import (
    Accuracy,
    Buckets,
    Config,
    Generate,
    KernelConfiguration,
    ModelSource,
    OpKernel,
)
from model.records import CheckpointRecord

TOKENS = [[4 + (7 * i + 3 * j) % 20 for j in range(12)] for i in range(3)]
CONFIG = Config(
    model="tiny",
    models={"tiny": ModelSource(source="test")},
    configurations=["baseline"],
    buckets=Buckets(context_encoding=[8, 16], max_length=24),
    generate=Generate(prompts="none"),
    accuracy=Accuracy(texts="texts", tasks="tasks", batch_size=4),
)
OPS = {
    "rmsnorm": "nki_rmsnorm_kernel",
    "qk_norm": "nki_qk_rmsnorm_kernel",
    "softmax": "nki_softmax_kernel",
    "norm_qkv_proj": "nki_qkv_projection_kernel",
    "o_proj_add": "nki_output_projection_kernel",
    "add_rmsnorm": "nki_fused_add_rmsnorm_kernel",
    "experts_decode": "nki_moe_decode_kernel",
    "norm_lm_head": "nki_lm_head_kernel",
    "attention_block_decode": "nki_attention_block_decode_kernel",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRecord:
    return CheckpointRecord.read(hf_model.make_checkpoint(tmp_path_factory.mktemp("map")))


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a function of the op's arguments in the place of its kernel."""

    def put(op: str, function: Callable[..., Any]) -> None:
        contract = replace(CONTRACTS[op], call=lambda _kernel, *arguments: function(*arguments))
        monkeypatch.setitem(CONTRACTS, op, contract)

    return put


def exact(op: str, instead: Callable[..., None], factor: float = 1.0) -> None:
    """A kernel that is the reference, times a factor."""
    reference = CONTRACTS[op].reference

    def run(*arguments: Any) -> Any:
        result = reference(*arguments)
        if isinstance(result, tuple):
            return tuple(x * factor if x.is_floating_point() else x for x in result)
        return result * factor

    instead(op, run)


def make(
    checkpoint: CheckpointRecord, *ops: str, dtypes: tuple[str, ...] = ("float32",)
) -> ErrorMapRecord:
    kernels = KernelConfiguration(description="x", ops={op: OpKernel(kernel=OPS[op]) for op in ops})
    return error_map(CONFIG, "x", kernels, checkpoint, TOKENS, dtypes, "f")


def points(found: ErrorMapRecord, graph: str) -> list[CutPoint]:
    return [point for point in found.cut_points if point.graph == graph]


def rows(found: ErrorMapRecord, graph: str) -> dict[str, OpError]:
    return {row.op: row for row in found.budget if row.graph == graph}


def layer(first: str, attention: str, experts: str) -> list[str]:
    norm = ["add", "rmsnorm"] if first == "add" else ["rmsnorm"]
    middle = ["qkv_proj", "qk_norm", "rope", attention, "o_proj", "add", "rmsnorm", "router"]
    return [*norm, *middle, experts]


def test_without_kernels_every_op_of_both_graphs_is_exact(checkpoint: CheckpointRecord) -> None:
    found = make(checkpoint)
    assert found.budget == []
    assert (found.sequences, found.context_tokens, found.decoded_tokens) == (3, 8, 4)
    for graph, attention, experts in (
        ("context_encoding", "attention_prefill", "experts_prefill"),
        ("token_generation", "attention_decode", "experts_decode"),
    ):
        made = points(found, graph)
        assert [point.op for point in made] == [
            "embedding",
            *layer("rmsnorm", attention, experts),
            *layer("add", attention, experts),
            "add",
            "rmsnorm",
            "lm_head",
        ]
        assert [point.order for point in made] == list(range(len(made)))
        assert [point.layer for point in made[1:-3]] == [0] * 10 + [1] * 11
        assert all(point.bit_exact and point.relative_error == 0 for point in made)
        assert {(point.filled_by, point.local_relative_error) for point in made} == {(None, None)}


def test_a_kernel_that_is_exact_leaves_everything_exact(
    checkpoint: CheckpointRecord, instead: Callable[..., None]
) -> None:
    exact("qk_norm", instead)
    found = make(checkpoint, "qk_norm")
    assert all(point.bit_exact for point in found.cut_points)
    filled = [point for point in found.cut_points if point.filled_by]
    assert {(p.op, p.filled_by, p.local_relative_error) for p in filled} == {
        ("qk_norm", "nki_qk_rmsnorm_kernel", 0.0)
    }
    assert len(filled) == 2 * 2  # layers, graphs
    assert [row.relative_l2_error for row in found.budget] == [0.0] * 4
    assert {row.share for row in found.budget} == {None}


def test_the_cut_is_where_the_first_wrong_kernel_is(
    checkpoint: CheckpointRecord, instead: Callable[..., None]
) -> None:
    reference, calls = CONTRACTS["qk_norm"].reference, [0]

    def second_layer_is_off(*arguments: Any) -> Any:
        calls[0] += 1
        q, k = reference(*arguments)
        return (q * 1.25, k) if calls[0] % 2 == 0 else (q, k)

    instead("qk_norm", second_layer_is_off)
    found = make(checkpoint, "qk_norm")
    for graph in ("context_encoding", "token_generation"):
        made = points(found, graph)
        cut = next(i for i, point in enumerate(made) if not point.bit_exact)
        assert (made[cut].layer, made[cut].op) == (1, "qk_norm")
        assert made[cut].relative_error == pytest.approx(0.25, rel=1e-5)
        assert made[cut].local_relative_error == pytest.approx(0.25, rel=1e-5)
        assert not any(point.bit_exact for point in made[cut + 1 :])
        assert all(point.local_relative_error in (None, 0.0) for point in made[:cut])


def test_an_error_that_is_inherited_is_not_local(
    checkpoint: CheckpointRecord, instead: Callable[..., None]
) -> None:
    exact("rmsnorm", instead, 1.05)
    exact("qk_norm", instead)
    found = make(checkpoint, "rmsnorm", "qk_norm")
    first = next(point for point in found.cut_points if point.op == "rmsnorm")
    assert first.relative_error == pytest.approx(0.05, rel=1e-5)
    later = [point for point in found.cut_points if point.op == "qk_norm" and point.layer == 1]
    for point in later:
        assert not point.bit_exact
        assert point.local_relative_error == 0.0


def test_one_kernel_for_several_ops_is_compared_where_it_ends(
    checkpoint: CheckpointRecord, instead: Callable[..., None]
) -> None:
    for op in ("norm_qkv_proj", "o_proj_add", "experts_decode", "norm_lm_head"):
        exact(op, instead)
    found = make(checkpoint, "norm_qkv_proj", "o_proj_add", "experts_decode", "norm_lm_head")
    assert [point.op for point in points(found, "token_generation")] == [
        "embedding",
        *["qkv_proj", "qk_norm", "rope", "attention_decode", "add", "experts_decode"],
        *["add", "qkv_proj", "qk_norm", "rope", "attention_decode", "add", "experts_decode"],
        "add",
        "lm_head",
    ]
    encoded = [point.op for point in points(found, "context_encoding")]
    assert encoded.count("router") == encoded.count("experts_prefill") == 2
    makers = {point.op: point.filled_by for point in points(found, "token_generation")}
    assert makers["qkv_proj"] == "nki_qkv_projection_kernel"
    assert makers["experts_decode"] == "nki_moe_decode_kernel"
    assert makers["lm_head"] == "nki_lm_head_kernel"
    assert all(point.bit_exact for point in found.cut_points), [
        (p.graph, p.layer, p.op) for p in found.cut_points if not p.bit_exact
    ]


def test_a_kernel_for_the_whole_attention_is_compared_after_it(
    checkpoint: CheckpointRecord, instead: Callable[..., None]
) -> None:
    exact("attention_block_decode", instead)
    made = points(make(checkpoint, "attention_block_decode"), "token_generation")
    half = ["add", "rmsnorm", "router", "experts_decode"]
    # The sum before the second layer's attention is there too: it is the kernel's input.
    assert [point.op for point in made] == [
        *["embedding", "o_proj", *half],
        *["add", "o_proj", *half],
        *["add", "rmsnorm", "lm_head"],
    ]
    limit = 1e-5  # its reference is not the parts' to the bit
    assert all(point.relative_error < limit for point in made)
    makers = {point.op for point in made if point.filled_by}
    assert makers == {"o_proj"}


def test_every_op_has_a_place_or_is_part_of_one_that_has() -> None:
    parts = {part for contract in CONTRACTS.values() for part in contract.parts}
    assert set(CONTRACTS) - parts <= set(VALUES)


def test_a_part_inside_a_reference_marks_the_op_around_it(
    checkpoint: CheckpointRecord, instead: Callable[..., None]
) -> None:
    exact("softmax", instead, 1.05)
    exact("rmsnorm", instead)
    found = make(checkpoint, "softmax", "rmsnorm")
    makers = {(p.op, p.filled_by) for p in found.cut_points if p.filled_by}
    assert makers == {
        ("attention_prefill", "nki_softmax_kernel"),
        ("attention_decode", "nki_softmax_kernel"),
        ("router", "nki_softmax_kernel"),
        ("rmsnorm", "nki_rmsnorm_kernel"),
    }
    attention = next(p for p in found.cut_points if p.op == "attention_prefill")
    assert attention.local_relative_error == pytest.approx(0.05, rel=1e-4)


def test_the_budget_names_the_kernel_that_moves_the_logits(
    checkpoint: CheckpointRecord, instead: Callable[..., None]
) -> None:
    exact("rmsnorm", instead)
    exact("qk_norm", instead, 1.05)
    exact("add_rmsnorm", instead, 1.001)
    found = make(checkpoint, "rmsnorm", "qk_norm", "add_rmsnorm")
    for graph in ("context_encoding", "token_generation"):
        by_op = rows(found, graph)
        assert list(by_op)[-2:] == ["rmsnorm", "all"]
        sizes = [row.relative_l2_error for op, row in by_op.items() if op != "all"]
        assert sizes == sorted(sizes, reverse=True)
        assert by_op["rmsnorm"].relative_l2_error == by_op["rmsnorm"].share == 0
        shares = [row.share for row in by_op.values() if row.share is not None]
        assert sum(shares) == pytest.approx(1)
        squares = {op: row.relative_l2_error**2 for op, row in by_op.items() if op != "all"}
        assert by_op["qk_norm"].share == pytest.approx(squares["qk_norm"] / sum(squares.values()))
        assert by_op["all"].share is None
        assert by_op["all"].relative_l2_error > 0


def test_calls_are_the_graphs_own(
    checkpoint: CheckpointRecord, instead: Callable[..., None]
) -> None:
    exact("qk_norm", instead)
    exact("experts_decode", instead)
    found = make(checkpoint, "qk_norm", "experts_decode")
    encoded, decoded = rows(found, "context_encoding"), rows(found, "token_generation")
    assert (encoded["qk_norm"].calls, decoded["qk_norm"].calls) == (2, 2 * 4)
    assert (encoded["experts_decode"].calls, decoded["experts_decode"].calls) == (0, 2 * 4)
    assert (encoded["all"].calls, decoded["all"].calls) == (2, 16)
    assert (encoded["qk_norm"].tokens, decoded["qk_norm"].tokens) == (3 * 8, 3 * 4)


@pytest.mark.parametrize("factor", [0.0, math.nan])
def test_dead_outputs_are_infinite_errors(
    checkpoint: CheckpointRecord, instead: Callable[..., None], factor: float
) -> None:
    exact("norm_lm_head", instead, factor)
    found = make(checkpoint, "norm_lm_head")
    assert {row.relative_l2_error for row in found.budget} == {math.inf}
    assert {row.share for row in found.budget} == {None}
    head = points(found, "context_encoding")[-1]
    assert not head.bit_exact
    assert head.relative_error == (1.0 if factor == 0 else math.inf)


def test_real_kernels_stay_within_rounding_in_both_data_types(
    checkpoint: CheckpointRecord,
) -> None:
    found = make(checkpoint, "rmsnorm", "softmax", dtypes=("float32", "bfloat16"))
    assert found.dtypes == ["float32", "bfloat16"]
    limits = {"float32": 1e-5, "bfloat16": 1e-2}
    for point in found.cut_points:
        assert (
            point.local_relative_error is None or point.local_relative_error < limits[point.dtype]
        )
    for row in found.budget:
        assert row.relative_l2_error < (1e-5 if row.dtype == "float32" else 0.2)
        assert row.calls > 0
    rounding = found.rounding_relative_l2_error
    assert set(rounding) == {"context_encoding", "token_generation"}
    assert all(1e-4 < value < 0.3 for value in rounding.values())


def test_differences_by_hand() -> None:
    reference = (torch.tensor([3.0, -4.0]), torch.tensor([1, 2]))
    assert difference(reference, reference) == (True, 0.0, 0.0)
    moved = (torch.tensor([3.0, -3.0]), torch.tensor([1, 2]))
    assert difference(moved, reference) == (False, 0.25, pytest.approx(0.2))
    other_expert = (reference[0], torch.tensor([1, 3]))
    assert difference(other_expert, reference) == (False, 0.0, 0.0)
    zeros = (torch.zeros(2),)
    assert difference((torch.ones(2),), zeros) == (False, math.inf, math.inf)
    assert difference((torch.full((2,), math.nan),), (reference[0],))[0] is False
    assert difference((torch.full((2,), math.nan),), (reference[0],))[1:] == (math.inf, math.inf)
    assert difference((torch.tensor([0.0]),), (torch.tensor([-0.0]),)) == (False, 0.0, 0.0)


def test_short_texts_are_cut_to_one_length_or_refused() -> None:
    texts, context = cut_texts(CONFIG, [[1] * 5, [2] * 9])
    assert ([len(ids) for ids in texts], context) == ([5, 5], 3)
    with pytest.raises(EvaluationError, match="a text has 1 tokens; the error map needs 2"):
        cut_texts(CONFIG, [[1]])


def test_the_records_path_is_beside_the_accuracys(
    checkpoint: CheckpointRecord, tmp_path: Path
) -> None:
    found = make(checkpoint)
    found.write(tmp_path / "error_map.json")
    assert ErrorMapRecord.read(tmp_path / "error_map.json") == found
