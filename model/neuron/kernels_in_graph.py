"""The filled ops of a configuration, as the graph calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class GraphKernels:
    """Op -> kernel, for the ops that a configuration fills; all others stay NxD Inference's own."""

    def __init__(
        self, filled: Mapping[str, Any], enter: Callable[[Any], None] | None = None
    ) -> None:
        """Hold the ops.

        Args:
            filled: op -> callable with the op's signature, whose attribute `kernel` is launched.
            enter: told which graph (`context_encoding`, `token_generation`) runs from now on.
        """
        self.filled = dict(filled)
        self.runs: dict[str, int] = {}
        """Graph -> how often it ran, or was traced, in Python."""
        self._enter = enter

    def __contains__(self, op: str) -> bool:
        return op in self.filled

    def any_of(self, *ops: str) -> bool:
        """Whether one of the ops is filled."""
        return any(op in self.filled for op in ops)

    def __call__(self, op: str, *arguments: Any) -> Any:
        """Run the op's kernel on tensors, which a graph being traced may have wrapped."""
        return self.filled[op](*[plain(argument) for argument in arguments])

    def enter(self, graph: str) -> None:
        """A graph runs from now on."""
        self.runs[graph] = self.runs.get(graph, 0) + 1
        if self._enter is not None:
            self._enter(graph)

    def launch_on(self, cores: int) -> None:
        """Launch every kernel as `kernel[cores](…)` (LNC); once per kernel."""
        for op in self.filled.values():
            if not hasattr(op, "launched") and hasattr(op.kernel, "__getitem__"):
                op.kernel = op.kernel[cores]
            op.launched = True


def plain(value: Any) -> Any:
    """A Parameter's data, and a subclass of Tensor as a Tensor: what a kernel accepts."""
    if not isinstance(value, Tensor):
        return value
    value = value.data
    return value if type(value) is Tensor else value.as_subclass(torch.Tensor)


def transpose_weight(layer: Any) -> None:
    """Keep a parallel linear layer's weight as [in, out], the kernels' layout.

    It is transposed when the checkpoint is sharded, on the host, not in the graph. (NxD
    Inference's own helper caches by the parameter's name, which a second model in the process
    would then be given.)
    """
    stock = layer.weight
    weight = torch.nn.Parameter(stock.detach().T.clone(), requires_grad=False)
    weight.__dict__.update(vars(stock))
    weight.partition_dim = 1 - stock.partition_dim  # type: ignore[attr-defined]
    weight.get_tensor_from_state_dict = _transposed  # type: ignore[attr-defined]
    layer.weight = weight


def _transposed(prefix: str, state: dict[str, Tensor]) -> Tensor:
    return state[prefix + "weight"].t()
