"""Where a configuration's numbers come from: the error budget and the cut-point map.

Both compare the model with kernels with the same model without any: same weights, data type,
tokens and shapes, so that what differs is the kernels'. The *error budget* switches each
kernel on alone and asks how far the logits move. The *cut-point map* follows one run of the
whole configuration through the layers and asks at each op whether its output is still the
same to the bit, and if not, how far it is off.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from evaluation.inputs import EvaluationError
from evaluation.logits import compare_logits
from evaluation.op_outputs import GraphRun, Place, Value, difference, run_graphs
from evaluation.records import CutPoint, ErrorMapRecord, OpError
from model import runtime
from model.configuration import Config, KernelConfiguration
from model.ops import KernelOp, fill
from model.records import CheckpointRecord, Graph

log = logging.getLogger(__name__)

Runs = dict[Graph, GraphRun]

NO_KERNELS = KernelConfiguration(description="The PyTorch reference.")


def error_map(
    config: Config,
    name: str,
    kernels: KernelConfiguration,
    checkpoint: CheckpointRecord,
    tokens: Sequence[list[int]],
    dtypes: Sequence[str],
    fingerprint: str,
) -> ErrorMapRecord:
    """Measure the error budget and the cut points of a configuration.

    Args:
        config: The evaluation.
        name: The kernel configuration's name.
        kernels: The kernel configuration.
        checkpoint: The checkpoint.
        tokens: The texts of the reference.
        dtypes: Data types to run in.
        fingerprint: Of the inputs, for the record.

    Raises:
        EvaluationError: the texts are too short.
    """
    texts, context = cut_texts(config, tokens)
    budget: list[OpError] = []
    points: list[CutPoint] = []
    plain: dict[str, Runs] = {}
    for dtype in dtypes:
        start = time.perf_counter()
        model = runtime.load(checkpoint, NO_KERNELS, dtype=dtype, config=config)
        reference = plain[dtype] = run_graphs(model, {}, texts, context, record=True)
        whole = run_graphs(model, fill(kernels), texts, context, record=True)
        alone = {op: {op: kernel} for op, kernel in fill(kernels).items()}
        runs = {
            op: run_graphs(model, filled, texts, context, record=False)
            for op, filled in alone.items()
        }
        budget += [
            row
            for graph in reference
            for row in budget_rows(dtype, graph, reference, whole, runs, alone)
        ]
        points += [
            point for graph in reference for point in cut_points(dtype, graph, reference, whole)
        ]
        log.info("error map in %s: %.1f s", dtype, time.perf_counter() - start)
    return ErrorMapRecord(
        model=config.model,
        configuration=name,
        device=config.device,
        dtypes=list(dtypes),
        sequences=len(texts),
        context_tokens=context,
        decoded_tokens=len(texts[0]) - context,
        rounding_relative_l2_error=_rounding(plain),
        budget=budget,
        cut_points=points,
        fingerprint=fingerprint,
    )


def cut_texts(config: Config, tokens: Sequence[list[int]]) -> tuple[list[list[int]], int]:
    """The texts, cut to one length, and how many of their tokens are context.

    Raises:
        EvaluationError: a text has fewer than two tokens.
    """
    settings = config.accuracy.error_map
    texts = tokens[: min(settings.sequences, config.accuracy.batch_size)]
    shortest = min(map(len, texts), default=0)
    if shortest < 2:
        raise EvaluationError(
            f"{config.accuracy.texts}: a text has {shortest} tokens; the error map needs 2: one to "
            "encode and one to decode"
        )
    decoded = min(settings.decoded_tokens, shortest // 2)
    context = min(settings.context_tokens, shortest - decoded)
    return [ids[: context + decoded] for ids in texts], context


def budget_rows(
    dtype: str,
    graph: Graph,
    reference: Runs,
    whole: Runs,
    runs: Mapping[str, Runs],
    alone: Mapping[str, Mapping[str, KernelOp]],
) -> list[OpError]:
    """One graph's error budget: the largest first, then the whole configuration.

    Args:
        dtype: Data type.
        graph: The graph.
        reference: The model without kernels.
        whole: The whole configuration.
        runs: Op -> the model with that op's kernel alone.
        alone: Op -> what was filled.
    """
    expected = reference[graph].logits
    rows = [
        _op_error(dtype, graph, op, alone[op][op].name, run[graph], expected)
        for op, run in runs.items()
    ]
    total = sum(row.relative_l2_error**2 for row in rows)
    if 0 < total < math.inf:
        rows = [row.model_copy(update={"share": row.relative_l2_error**2 / total}) for row in rows]
    rows.sort(key=lambda row: row.relative_l2_error, reverse=True)
    return [*rows, _op_error(dtype, graph, "all", "", whole[graph], expected)] if rows else []


def _op_error(
    dtype: str, graph: Graph, op: str, kernel: str, run: GraphRun, expected: Sequence[Tensor]
) -> OpError:
    found = compare_logits(f"{op} alone", graph, run.logits, expected)
    return OpError(
        op=op,
        kernel=kernel,
        dtype=dtype,
        graph=graph,
        tokens=found.tokens,
        calls=run.calls.get(kernel, 0) if kernel else sum(run.calls.values()),
        relative_l2_error=found.relative_l2_error,
        kl_per_token_mean=found.kl_per_token_mean,
        kl_per_token_median=found.kl_per_token_median,
        top1_agreement=found.top1_agreement,
        max_abs_error=found.max_abs_error,
        share=None,
    )


def cut_points(dtype: str, graph: Graph, reference: Runs, whole: Runs) -> list[CutPoint]:
    """One graph's cut points, in the order of the run without kernels; the worst step of each.

    A value that the configuration never has, since a kernel makes it and what follows from it
    in one, is left out.
    """
    pairs: dict[Place, list[tuple[Value, Value]]] = {}
    for ours, expected in zip(whole[graph].steps, reference[graph].steps, strict=True):
        for place, value in expected.items():
            if place in ours:
                pairs.setdefault(place, []).append((ours[place], value))
    points = []
    for order, (place, values) in enumerate(pairs.items()):
        found = [difference(ours.tensors, expected.tensors) for ours, expected in values]
        local = [ours.local_error for ours, _ in values if ours.local_error is not None]
        points.append(
            CutPoint(
                dtype=dtype,
                graph=graph,
                order=order,
                layer=place.layer,
                op=place.op,
                filled_by=values[0][0].filled_by,
                bit_exact=all(exact for exact, _, _ in found),
                relative_error=max(worst for _, worst, _ in found),
                relative_l2_error=max(l2 for _, _, l2 in found),
                local_relative_error=max(local, default=None),
            )
        )
    return points


def _rounding(plain: Mapping[str, Runs]) -> dict[Graph, float]:
    """The model without kernels: bf16 logits' relative L2 error against fp32's."""
    if not {"float32", "bfloat16"} <= plain.keys():
        return {}
    exact, rounded = plain["float32"], plain["bfloat16"]
    return {
        graph: compare_logits(
            "bfloat16 vs float32", graph, rounded[graph].logits, run.logits
        ).relative_l2_error
        for graph, run in exact.items()
    }
