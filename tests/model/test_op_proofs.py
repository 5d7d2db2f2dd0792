"""Every op that a kernel fills proves itself in the model.

For each op and kernel: the logits are the reference's in fp32 and bf16, its calls are counted in
the graphs where it occurs and in no other, and 5 % on every second number of any of its results
moves the logits of each of these graphs beyond tolerance. Every second number, as 5 % on all of
them may cancel: the norms of queries and keys undo a factor, and so may a router's normalisation.
Results that are no numbers to scale are spoilt as `SPOILT` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from random_model import VOCABULARY
from torch import Tensor

from kernels import KERNELS
from kernels.contracts import CONTRACTS
from model.configuration import Config, KernelConfiguration
from model.op_calls import graphs_of_kernels
from model.records import CheckpointRecord, Graph
from model.runtime import LanguageModel, load

PAIRS = [(op, kernel) for kernel, info in KERNELS.items() for op in info.ops]
FP32_LIMIT = 1e-4
"""Relative L2 error of the logits (issue's tolerance)."""
GRAPHS: tuple[Graph, ...] = ("context_encoding", "token_generation")
Logits = dict[Graph, Tensor]


def only(op: str, kernel: str) -> KernelConfiguration:
    ops = {op: {"kernel": kernel}}
    return KernelConfiguration.model_validate({"description": "one", "ops": ops})


def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in (8, 5)
    ]


def logits_of(model: LanguageModel) -> Logits:
    """Of all positions by context encoding, and of those after the second by decoding."""
    return {
        "context_encoding": torch.cat(list(model.logits(sequences()))),
        "token_generation": torch.cat(list(model.decode_logits(sequences(), prefix=2))),
    }


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class Bench(NamedTuple):
    make: Callable[[KernelConfiguration, str], LanguageModel]
    reference: Callable[[str], Logits]


@pytest.fixture
def bench(record: CheckpointRecord, config: Config) -> Bench:
    def make(kernels: KernelConfiguration, dtype: str) -> LanguageModel:
        return load(record, kernels, dtype=dtype, config=config)

    def reference(dtype: str) -> Logits:
        return _reference(record, config, dtype)

    return Bench(make, reference)


_REFERENCES: dict[str, Logits] = {}


def _reference(record: CheckpointRecord, config: Config, dtype: str) -> Logits:
    if dtype not in _REFERENCES:
        nothing = KernelConfiguration(description="reference")
        _REFERENCES[dtype] = logits_of(load(record, nothing, dtype=dtype, config=config))
    return _REFERENCES[dtype]


@cache
def graphs_of(op: str, kernel: str) -> frozenset[Graph]:
    return frozenset(graphs_of_kernels(only(op, kernel))[kernel])


@pytest.mark.parametrize(("op", "kernel"), PAIRS)
def test_logits_and_calls(bench: Bench, op: str, kernel: str) -> None:
    model = bench.make(only(op, kernel), "float32")
    found = logits_of(model)
    calls = model.kernel_calls()[kernel]
    for graph in GRAPHS:
        assert error(found[graph], bench.reference("float32")[graph]) <= FP32_LIMIT
    ran = {graph for graph, count in calls.items() if count}
    assert ran == graphs_of(op, kernel) != set()


@pytest.mark.parametrize(("op", "kernel"), PAIRS)
def test_bfloat16_is_within_twice_the_references_own_error(
    bench: Bench, op: str, kernel: str
) -> None:
    found = logits_of(bench.make(only(op, kernel), "bfloat16"))
    for graph in GRAPHS:
        exact = bench.reference("float32")[graph]
        own = error(bench.reference("bfloat16")[graph], exact)
        assert 0 < error(found[graph], exact) <= 2 * own


def scaled(result: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    del arguments
    result = result.clone()
    result[..., ::2] *= 1.05
    return result


def scaled_new_row(cache_after: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    """In the cache itself, where the new token is."""
    rows = torch.arange(cache_after.shape[0])
    lengths = arguments[5 if len(arguments) == 6 else 9][:, 0].long()  # of either op
    cache_after[rows, :, lengths, ::2] *= 1.05
    return cache_after


def another_last_expert(chosen: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    """One that was not chosen in place of the last, which counts least."""
    experts = arguments[1].shape[1]
    chosen = chosen.clone()
    for row in chosen:
        row[-1] = next(e for e in range(experts) if e not in row.tolist())
    return chosen


SPOILT: dict[tuple[str, int], Callable[[Tensor, tuple[Any, ...]], Tensor]] = {
    ("attention_decode", 1): scaled_new_row,
    ("attention_decode", 2): scaled_new_row,
    ("attention_block_decode", 1): scaled_new_row,
    ("attention_block_decode", 2): scaled_new_row,
    ("router", 1): another_last_expert,
}
"""Op and result -> how it is spoilt, where it is not every second number by 5 %."""
RESULTS = {"add_rmsnorm": 2, "qk_norm": 2, "rope": 2, "qkv_proj": 3, "norm_qkv_proj": 3,
           "attention_decode": 3, "attention_block_decode": 3, "router": 2}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "kernel", "result"),
    [(op, kernel, i) for op, kernel in PAIRS for i in range(RESULTS.get(op, 1))],
)
def test_5_percent_move_the_logits(bench: Bench, op: str, kernel: str, result: int) -> None:
    model = bench.make(only(op, kernel), "float32")
    filled = model.model.ops.filled[op]
    spoil = SPOILT.get((op, result), scaled)

    def wrong(*arguments: Any, **parameters: Any) -> Any:
        results = CONTRACTS[op].call(*arguments, **parameters)
        if not isinstance(results, tuple):
            return spoil(results, arguments[1:])
        changed = spoil(results[result], arguments[1:])
        return (*results[:result], changed, *results[result + 1 :])

    filled.contract = replace(filled.contract, call=wrong)
    found = logits_of(model)
    for graph in graphs_of(op, kernel):
        moved = error(found[graph], bench.reference("float32")[graph])
        assert moved > 10 * FP32_LIMIT, graph
