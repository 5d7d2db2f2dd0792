"""Trace: count what a configuration's graphs do, in NKI and outside. Nothing is timed here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.checkpoint import read_config, read_weights
from model.compile import graph_runs
from model.configuration import Config, KernelConfiguration
from model.fingerprint import fingerprint
from model.ops import build_ops
from model.qwen3_moe import Qwen3Moe
from model.records import CheckpointRecord, CompileManifest, Graph, GraphTrace, TraceSummary
from model.runtime import checkpoint_directory


@torch.inference_mode()
def count_macs(run: Callable[[], None]) -> int:
    """Multiply-accumulates of all matrix products in `run` (two FLOPs each)."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def trace(
    config: Config, name: str, manifest: Path, checkpoint: Path, output: Path
) -> TraceSummary:
    """Count MACs, instructions and HBM bytes of both graphs at every bucket, batch 1.

    All MACs are those of the reference model at the bucket's padded size; MACs in NKI are
    those of the kernels' matrix instructions, times their calls.
    """
    compiled = CompileManifest.read(manifest)
    record = CheckpointRecord.read(checkpoint)
    directory = checkpoint_directory(record)
    architecture = read_config(directory)
    length = config.buckets.max_length
    weights = read_weights(directory, architecture, getattr(torch, config.dtype), length)
    ops = build_ops(KernelConfiguration(description="reference"))
    model = Qwen3Moe(architecture, weights, ops)
    graphs = [
        _graph(compiled, graph, bucket, count_macs(run))
        for graph, bucket, run in graph_runs(model, config, 1)
    ]
    inside = sum(graph.macs_nki for graph in graphs)
    total = sum(graph.macs_total for graph in graphs)
    summary = TraceSummary(
        model=config.model,
        configuration=name,
        target=compiled.target,
        graphs=graphs,
        nki_flops_ratio=inside / total,
        fingerprint=fingerprint(compiled.fingerprint, [g.model_dump() for g in graphs]),
    )
    summary.write(output)
    return summary


def _graph(compiled: CompileManifest, graph: Graph, bucket: str, macs: int) -> GraphTrace:
    programs = [p for p in compiled.programs if p.graph == graph and p.bucket == bucket]
    return GraphTrace(
        graph=graph,
        bucket=bucket,
        macs_nki=sum(p.macs * p.calls for p in programs),
        macs_total=macs,
        nki_instructions=sum(p.instructions * p.calls for p in programs),
        nki_kernel_calls=sum(p.calls for p in programs),
        nki_hbm_bytes=sum((p.hbm_read_bytes + p.hbm_write_bytes) * p.calls for p in programs),
    )
