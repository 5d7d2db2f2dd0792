"""The filled ops of a configuration, as the graph calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor


class GraphOp:
    """An op filled by a kernel, without the op table: what a contest submission has."""

    def __init__(
        self, call: Callable[..., Any], kernel: Callable[..., Any], parameters: dict[str, Any]
    ) -> None:
        """`call(kernel, *the op's arguments, **parameters)`, as kernels.contracts has it."""
        self.call = call
        self.kernel = kernel
        self.parameters = parameters

    def __call__(self, *arguments: Any) -> Any:
        """Run the kernel on the op's arguments."""
        return self.call(self.kernel, *arguments, **self.parameters)


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
        """Launch kernels that share work between cores as `kernel[cores](…)` (LNC), once.

        All others run on one core: on two, both would write all of the result.
        """
        for op in self.filled.values():
            if not hasattr(op, "launched") and hasattr(op.kernel, "__getitem__"):
                op.kernel = op.kernel[cores] if shares_work(op.kernel) else op.kernel
            op.launched = True


CORE_CALLS = {"program_id", "num_programs"}
"""What a kernel asks of `nki.language` to know its core."""


def shares_work(kernel: Any) -> bool:
    """Whether a kernel, or a function that it calls, asks which core it runs on.

    True if its Python function cannot be found.
    """
    function = inspect.unwrap(kernel)
    function = function if isinstance(function, FunctionType) else getattr(kernel, "func", None)
    if not isinstance(function, FunctionType):
        return True
    todo: list[FunctionType] = [function]
    seen: set[FunctionType] = set()
    while todo:
        function = todo.pop()
        seen.add(function)
        names = function.__code__.co_names
        if CORE_CALLS.intersection(names):
            return True
        values = [function.__globals__[name] for name in names if name in function.__globals__]
        called = [inspect.unwrap(value) for value in values if callable(value)]
        todo += [f for f in called if isinstance(f, FunctionType) and f not in seen]
    return False


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
