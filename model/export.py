"""The static graphs of a model as files: exported by `torch.export`, without weights.

A graph takes (weights, tokens, lengths, keys, values), writes the caches in place, and gives
fp32 logits. Its kernels are ops of model/custom_ops.py. A file counts only with the digest that
its manifest states, and nothing in it is unpickled but tensors.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from model.checkpoint import LayerWeights, ModelConfig, Weights, empty_weights
from model.custom_ops import GraphError, exportable
from model.fingerprint import file_sha256
from model.ops import KernelOp, Ops
from model.quiet import quiet
from model.qwen3_moe import Cache, Qwen3Moe
from model.records import Graph

CompiledGraph = Callable[[Weights, Tensor, Tensor, list[Tensor], list[Tensor]], Tensor]

torch.export.register_dataclass(LayerWeights, serialized_type_name="nki_assay.LayerWeights")
torch.export.register_dataclass(Weights, serialized_type_name="nki_assay.Weights")


class _Graph(torch.nn.Module):
    """One graph as a function of all that it reads and writes."""

    def __init__(self, config: ModelConfig, ops: Ops, graph: Graph) -> None:
        super().__init__()
        self.config, self.ops, self.graph = config, ops, graph

    def forward(
        self,
        weights: Weights,
        tokens: Tensor,
        lengths: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        model = Qwen3Moe(self.config, weights, self.ops)
        if self.graph == "context_encoding":
            return model.context_encoding(tokens, lengths, Cache(keys, values))
        return model.token_generation(tokens, lengths, Cache(keys, values))


def export_graph(
    config: ModelConfig,
    filled: dict[str, KernelOp],
    graph: Graph,
    *,
    batch: int,
    bucket: int,
    length: int,
    dtype: torch.dtype,
) -> bytes:
    """One static graph, as the bytes of a .pt2 file. No kernel is run.

    Args:
        config: of the model.
        filled: the kernels by op.
        graph: which of the two.
        batch: sequences.
        bucket: tokens of each, 1 in token generation.
        length: of the cache.
        dtype: of weights and cache.
    """
    with FakeTensorMode():
        cache = Cache.empty(config, batch, length, dtype)
        arguments = (
            empty_weights(config, dtype, length),
            torch.zeros(batch, bucket, dtype=torch.int64),
            torch.ones(batch, 1, dtype=torch.int32),
            cache.keys,
            cache.values,
        )
    with torch.no_grad(), _without_warnings():
        program = torch.export.export(
            _Graph(config, exportable(filled), graph), arguments, strict=False
        )
        program._example_inputs = None  # they would be pickled into the file
        file = io.BytesIO()
        torch.export.save(program, file)
    return file.getvalue()


def load_graph(path: Path, sha256: str) -> CompiledGraph:
    """A graph that `export_graph` made, to be run inside `custom_ops.running`.

    Args:
        path: the file.
        sha256: what the manifest says its digest is.

    Raises:
        GraphError: the file is missing or another one.
    """
    if not path.is_file():
        raise GraphError(f"{path}: no such compiled graph; run snakemake, it compiles again")
    if file_sha256(path) != sha256:
        raise GraphError(
            f"{path}: is not the graph that was compiled (its sha256 differs from the "
            "manifest's); delete its folder and run snakemake, it compiles again"
        )
    with _tensors_only(), _without_warnings(), _type_hints_once():
        program = torch.export.load(path)
    module: CompiledGraph = program.module(check_guards=False)  # shapes are the bucket's
    return module


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """torch.load takes no pickle of anything but tensors, also where its caller falls back."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _type_hints_once() -> Iterator[None]:
    """torch's reader resolves the type hints of a class anew for each of a graph's thousands of
    objects, half of the time that a graph takes; they are the same every time.
    """
    resolve = typing.get_type_hints
    known: dict[Any, dict[str, Any]] = {}

    def once(of: Any, *names: Any, **more: Any) -> dict[str, Any]:
        if of not in known:
            known[of] = resolve(of, *names, **more)
        return known[of]

    with mock.patch.object(typing, "get_type_hints", once):
        yield


def _without_warnings() -> contextlib.AbstractContextManager[None]:
    """Without torch.export's warnings that a graph has no example inputs."""
    return quiet("torch._export", logging.ERROR)
