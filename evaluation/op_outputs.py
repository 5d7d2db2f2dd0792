"""What every op of the model gives in one run, kept under names that two runs share.

Two configurations call different ops for the same thing: `norm_qkv_proj` gives what `rmsnorm`
and then `qkv_proj` give, `add_rmsnorm` is a sum and a norm. So outputs are kept by place: step,
layer, half of the layer (attention, experts), and the plain op whose value it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels.comparison import relative_error
from kernels.contracts import CONTRACTS
from model.ops import KernelOp, Ops
from model.records import Graph
from model.runtime import LanguageModel

Run = Callable[..., Any]

VALUES: dict[str, tuple[tuple[str, slice], ...]] = {
    "embedding": (("embedding", slice(0, 1)),),
    "rmsnorm": (("rmsnorm", slice(0, 1)),),
    "add_rmsnorm": (("add", slice(1, 2)), ("rmsnorm", slice(0, 1))),
    "add": (("add", slice(0, 1)),),
    "qkv_proj": (("qkv_proj", slice(0, 3)),),
    "norm_qkv_proj": (("qkv_proj", slice(0, 3)),),
    "qk_norm": (("qk_norm", slice(0, 2)),),
    "rope": (("rope", slice(0, 2)),),
    "attention_prefill": (("attention_prefill", slice(0, 1)),),
    "attention_decode": (("attention_decode", slice(0, 1)),),
    "o_proj": (("o_proj", slice(0, 1)),),
    "o_proj_add": (("add", slice(0, 1)),),
    "attention_block_decode": (("o_proj", slice(0, 1)),),
    "router": (("router", slice(0, 2)),),
    "experts_prefill": (("experts_prefill", slice(0, 1)),),
    "experts": (("experts_decode", slice(0, 1)),),
    "experts_decode": (("experts_decode", slice(0, 1)),),
    "lm_head": (("lm_head", slice(0, 1)),),
    "norm_lm_head": (("lm_head", slice(0, 1)),),
}
"""Op of the table -> the values it gives: the plain op's name, and which of the results."""

ATTENTION = ("attention_prefill", "attention_decode")
"""After one of these a layer is in its second half."""

WITH_ATTENTION = ("attention_block_decode",)
"""What these give is in the second half already."""

REFERENCES = {"experts": "experts_prefill"}
"""Called by the model, but no op of its own: the op whose contract it has."""


@dataclass(frozen=True)
class Place:
    """Where in a graph a value is made, in every step the same."""

    layer: int | None
    half: int
    """0 up to the attention, 1 after it."""
    op: str


@dataclass(frozen=True)
class Value:
    """One op's output in one step; only rows that mean something."""

    tensors: tuple[Tensor, ...]
    filled_by: str | None
    """The kernels that made it, comma-separated; None for the reference."""
    local_error: float | None
    """Against the reference on the same inputs, in fp32; None for the reference."""


@dataclass(frozen=True)
class Shape:
    """The static shape of a graph's step, and how much of it is not padding."""

    rows: int
    width: int
    """Tokens of each row."""
    sequences: int
    tokens: int


@dataclass
class Recorder:
    """Keeps the outputs of one graph's ops in a model whose op table it watches."""

    shapes: dict[Graph, Shape]
    graph: Graph = "context_encoding"
    steps: list[dict[Place, Value]] = field(default_factory=list)
    _on: bool = False
    _place: tuple[int | None, int] = (None, 0)
    """Layer and half."""
    _inside: bool = False
    _inner: list[str] = field(default_factory=list)
    """Kernels that the running reference has called."""

    def enter(self, graph: Graph) -> None:
        """A graph begins: another step, if it is the one that is kept."""
        self._on, self._place = graph == self.graph, (None, 0)
        if self._on:
            self.steps.append({})

    def called(self, layer: int | None, op: str, run: Run, arguments: Any) -> Any:
        """Call an op, and keep what it gives."""
        filled = run.name if isinstance(run, KernelOp) else None
        if not self._on or self._inside:
            self._inner += [filled] if filled else []
            return run(*arguments)
        contract = CONTRACTS.get(REFERENCES.get(op, op))
        # A partial is a reference that calls kernels for some of its parts.
        exact = None
        if contract and isinstance(run, KernelOp | functools.partial):
            exact = _exact(arguments, contract.written)
        self._inside, self._inner = True, []
        try:
            result = run(*arguments)
        finally:
            self._inside = False
        makers = [filled] if filled else sorted(set(self._inner))
        error = None
        if makers and contract and exact:
            error = contract.error(result, contract.reference(*exact), arguments)
        self._keep(layer, op, result, makers, error)
        return result

    def _keep(
        self, layer: int | None, op: str, result: Any, makers: Sequence[str], error: float | None
    ) -> None:
        half = self._place[1] if layer == self._place[0] else 0
        half = 1 if op in WITH_ATTENTION else half
        results = result if isinstance(result, tuple) else (result,)
        for name, part in VALUES.get(op, ()):
            # Inside add_rmsnorm's reference a kernel makes the norm, never the sum.
            made = bool(makers) and not (op == "add_rmsnorm" and name == "add" and self._inner)
            self.steps[-1][Place(layer, half, name)] = Value(
                tuple(self._valid(tensor) for tensor in results[part]),
                ", ".join(makers) if made else None,
                error if made else None,
            )
        self._place = (layer, 1 if op in ATTENTION else half)

    def _valid(self, tensor: Tensor) -> Tensor:
        """`[sequences, tokens, ...]` of a tensor whose leading sizes are rows and tokens."""
        shape = self.shapes[self.graph]
        by_token = tensor.detach().reshape(shape.rows, shape.width, -1)
        return by_token[: shape.sequences, : shape.tokens].clone()


class WatchedOps(Ops):
    """An op table whose outputs a recorder keeps."""

    def __init__(self, filled: dict[str, KernelOp], recorder: Recorder | None) -> None:
        """Without a recorder a plain table."""
        self.recorder = recorder
        super().__init__(filled, watch=self._watched if recorder else None)

    def enter(self, graph: Graph) -> None:
        """Count, and keep, what follows as calls of `graph`."""
        super().enter(graph)
        if self.recorder:
            self.recorder.enter(graph)

    def _watched(self, op: str, run: Run) -> Run:
        recorder = self.recorder
        assert recorder is not None
        return lambda *arguments: recorder.called(self.layer, op, run, arguments)


@dataclass(frozen=True)
class GraphRun:
    """One graph's run."""

    logits: list[Tensor]
    """Per sequence fp32 `[tokens, vocab]`."""
    steps: list[dict[Place, Value]]
    """Empty unless recorded."""
    calls: dict[str, int]
    """Kernel -> calls in this graph."""


def run_graphs(
    model: LanguageModel,
    filled: dict[str, KernelOp],
    tokens: Sequence[list[int]],
    context: int,
    record: bool,
) -> dict[Graph, GraphRun]:
    """Run the first `context` tokens through context encoding, the others one by one.

    Args:
        model: The model; its op table is replaced.
        filled: The kernels.
        tokens: At most the model's batch size, of one length.
        context: Fewer than that length.
        record: Keep every op's outputs.
    """
    rows, bucket = model.batch_size, next(size for size in model.buckets if size >= context)
    shapes: dict[Graph, Shape] = {
        "context_encoding": Shape(rows, bucket, len(tokens), context),
        "token_generation": Shape(rows, 1, len(tokens), 1),
    }
    recorder = Recorder(shapes) if record else None
    ops = WatchedOps(filled, recorder)
    model.model.ops = ops
    result: dict[Graph, GraphRun] = {}
    runs: dict[Graph, Callable[[], list[Tensor]]] = {
        "context_encoding": lambda: model.logits([ids[:context] for ids in tokens], rows),
        "token_generation": lambda: model.decode_logits(tokens, context),
    }
    for graph, run in runs.items():
        if recorder:
            recorder.graph, recorder.steps = graph, []
        logits = run()
        calls = {kernel: by_graph[graph] for kernel, by_graph in ops.kernel_calls().items()}
        result[graph] = GraphRun(logits, recorder.steps if recorder else [], calls)
    return result


def difference(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[bool, float, float]:
    """Whether tensors are the same to the bit; the worst of max |error| / max |reference|; and
    the L2 norm of all errors over that of the reference. Whole numbers count for the first only.
    """
    exact = all(_same_bits(a, b) for a, b in zip(ours, reference, strict=True))
    pairs = [(a, b) for a, b in zip(ours, reference, strict=True) if b.is_floating_point()]
    worst = max((relative_error(a, b) for a, b in pairs), default=0.0)
    error = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    size = sum(float(b.double().square().sum()) for _, b in pairs)
    l2 = math.sqrt(error / size) if size > 0 else (0.0 if error == 0 else math.inf)
    return exact, worst, l2 if math.isfinite(l2) else math.inf


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """0.0 is not -0.0, and NaN is itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _exact(arguments: Sequence[Any], written: Sequence[int]) -> list[Any]:
    """The arguments in fp32 or more; those that the op writes as they are now."""
    exact = []
    for position, value in enumerate(arguments):
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.to(torch.promote_types(value.dtype, torch.float32))
        exact.append(value.clone() if position in written else value)
    return exact
