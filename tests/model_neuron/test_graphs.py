"""The graphs that NxD Inference would trace: on tensors without data, kernels told by shape."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import real_source
import torch
from torch import Tensor

from model.checkpoint import read_config
from model.configuration import kernel_configuration_path, read_kernel_configuration
from model.neuron.kernels_in_graph import GraphKernels
from model.op_calls import record_op_calls

pytestmark = pytest.mark.skipif(not real_source.available(), reason=real_source.REASON)

BATCH, LENGTH = 2, 32
CONFIGURATIONS = sorted(path.stem for path in Path("config/kernels").glob("*.yaml"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = dict(os.environ)
    real_source.enable()
    folder = tmp_path_factory.mktemp("checkpoint")
    real_source.random_checkpoint(folder)
    yield folder
    os.environ.clear()
    os.environ.update(before)


def new(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty(shape, dtype=dtype)


def project(x: Tensor, weight: Tensor) -> Tensor:
    return new(x, *x.shape[:-1], weight.shape[1])


def qkv(x: Tensor, weight: Tensor, width: int) -> tuple[Tensor, ...]:
    return tuple(new(x, *x.shape[:-1], w) for w in (weight.shape[1] - 2 * width, width, width))


RESULTS: dict[str, Callable[..., Any]] = {
    "add_rmsnorm": lambda x, residual, *_: (x, residual),
    "qk_norm": lambda q, k, *_: (q, k),
    "rope": lambda q, k, *_: (q, k),
    "qkv_proj": qkv,
    "norm_qkv_proj": lambda x, norm, weight, width, eps: qkv(x, weight, width),
    "attention_decode": lambda q, k, v, keys, values, lengths: (q, keys, values),
    "attention_block_decode": lambda x, *rest: (x, rest[6], rest[7]),
    "o_proj": project,
    "o_proj_add": lambda x, weight, residual: residual,
    "router": lambda x, weight, k, normalise: (
        new(x, x.shape[0], k, dtype=torch.float32),
        new(x, x.shape[0], k, dtype=torch.int32),
    ),
    "expert_aggregate": lambda outputs, weights: new(outputs, outputs.shape[0], outputs.shape[2]),
    "lm_head": project,
    "norm_lm_head": lambda x, norm, weight, eps: project(x, weight),
}
"""Op -> results of its shapes; all others give what looks like their first argument."""


class Told:
    """A filled op that gives results of the right shapes, and counts by graph."""

    kernel = None

    def __init__(self, op: str, calls: Counter[str]) -> None:
        self.op = op
        self.calls = calls

    def __call__(self, *arguments: Any) -> Any:
        self.calls[self.op] += 1
        return RESULTS.get(self.op, lambda x, *_: x)(*arguments)


@torch.inference_mode()
def run_on_meta(model: Any, tokens: int, position: int) -> Tensor:
    """Logits of a run on tensors without data: any use of a value would raise."""
    shape = (BATCH, tokens)
    positions = torch.arange(tokens) + position
    inputs = (
        torch.ones(shape, dtype=torch.int64),
        torch.ones(BATCH, LENGTH, dtype=torch.int64),
        positions.expand(shape),
        torch.arange(BATCH),
        torch.ones(BATCH, 3),
    )
    logits: Tensor = model(*(x.to("meta") for x in inputs))[0]
    return logits


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_graphs_depend_on_no_data_and_call_what_our_own_model_calls(
    name: str, checkpoint: Path
) -> None:
    from model.neuron.modeling import bind

    configuration = read_kernel_configuration(kernel_configuration_path(name))
    calls: Counter[str] = Counter()
    kernels = GraphKernels({op: Told(op, calls) for op in configuration.ops})
    application = real_source.application(bind(kernels), checkpoint, batch=BATCH)
    model = application.context_encoding_model.model.to("meta")
    for graph, tokens, position in (
        ("context_encoding", LENGTH, 0),
        ("token_generation", 1, LENGTH - 1),
    ):
        calls.clear()
        assert run_on_meta(model, tokens, position).shape == (BATCH, 1, 256)
        ours = record_op_calls(
            read_config(checkpoint),
            configuration,
            graph,  # type: ignore[arg-type]
            batch=BATCH,
            bucket=tokens,
            context=LENGTH,
            dtype="float32",
        )
        expected = Counter(call.op for call in ours if call.kernel is not None)
        for op in ("silu", "expert_mlp"):  # called per group of tokens, which are others there
            assert bool(calls.pop(op, 0)) == bool(expected.pop(op, 0)), (graph, op)
        assert calls == expected, graph
