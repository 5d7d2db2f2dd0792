"""The op table: each op of the model is looked up here once, when the model is built."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import simulator.finder  # noqa: F401  (`import nki` works from here on)
from kernels import KERNELS, OPS
from kernels.contracts import CONTRACTS, OpContract
from model.configuration import ConfigurationError, KernelConfiguration, OpKernel
from model.fingerprint import file_sha256
from model.records import Graph, KernelEntry

GRAPHS: tuple[Graph, ...] = ("context_encoding", "token_generation")


@dataclass(frozen=True)
class OpCheck:
    """A kernel against its op's PyTorch reference, over all its calls so far."""

    op: str
    kernel: str
    dtype: str
    calls: dict[Graph, int]
    max_relative_error: float
    """max |kernel - reference| / max |reference|, the worst call; inf if not finite."""


@dataclass
class Worst:
    """The largest error seen, and how often it was looked for, in one dtype."""

    calls: dict[Graph, int] = field(default_factory=lambda: dict.fromkeys(GRAPHS, 0))
    error: float = 0.0


class KernelOp:
    """An op filled by a kernel: calls it through the op's contract, and counts."""

    def __init__(self, op: str, name: str, kernel: Callable[..., Any], parameters: dict[str, Any]):
        """`parameters` are the configuration's keyword arguments for the kernel."""
        self.op = op
        self.name = name
        self.kernel = kernel
        self.parameters = parameters
        self.contract: OpContract = CONTRACTS[op]
        self.graph: Graph = "context_encoding"
        self.calls: dict[Graph, int] = dict.fromkeys(GRAPHS, 0)
        self.check = False
        self.worst: dict[str, Worst] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run the kernel on the op's arguments; with `check`, the reference beside it."""
        result = self.contract.call(self.kernel, *arguments, **self.parameters)
        self.calls[self.graph] += 1
        if self.check:
            self._compare(result, self.contract.reference(*arguments), arguments[0].dtype)
        return result

    def _compare(self, result: Any, expected: Any, dtype: torch.dtype) -> None:
        worst = self.worst.setdefault(str(dtype).removeprefix("torch."), Worst())
        worst.calls[self.graph] += 1
        results = result if isinstance(result, tuple) else (result,)
        references = expected if isinstance(expected, tuple) else (expected,)
        for actual, wanted in zip(results, references, strict=True):
            worst.error = max(worst.error, relative_error(actual, wanted))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """max |actual - expected| / max |expected|; inf if shapes differ or it is not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    wanted = expected.to(torch.float64)
    error = (actual.to(torch.float64) - wanted).abs().max().item()
    largest = wanted.abs().max().item()
    relative = error / largest if largest > 0 else (0.0 if error == 0 else float("inf"))
    return relative if relative == relative else float("inf")


class Ops:
    """What the model calls: one callable per op, a kernel or the PyTorch reference."""

    rmsnorm: Callable[..., torch.Tensor]
    qk_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    softmax: Callable[..., torch.Tensor]
    silu: Callable[..., torch.Tensor]

    def __init__(self, filled: dict[str, KernelOp], check: bool = False):
        """`filled` maps ops to kernels; all others get their reference."""
        self.filled = filled
        for op in OPS:
            setattr(self, op, filled.get(op, CONTRACTS[op].reference))
        for kernel in filled.values():
            kernel.check = check

    def enter(self, graph: Graph) -> None:
        """Count what follows as calls of `graph`."""
        for kernel in self.filled.values():
            kernel.graph = graph

    def kernel_calls(self) -> dict[str, dict[Graph, int]]:
        """Kernel -> graph -> calls so far."""
        return {kernel.name: dict(kernel.calls) for kernel in self.filled.values()}

    def op_checks(self) -> list[OpCheck]:
        """The errors seen so far, one entry per op and dtype."""
        return [
            OpCheck(op, kernel.name, dtype, dict(worst.calls), worst.error)
            for op, kernel in self.filled.items()
            for dtype, worst in kernel.worst.items()
        ]


def build_ops(configuration: KernelConfiguration, check: bool = False) -> Ops:
    """Fill the op table from a kernel configuration.

    Raises:
        ConfigurationError: a kernel that cannot be loaded, or a parameter it does not have.
    """
    filled = {}
    for op, chosen in configuration.ops.items():
        kernel = load_kernel(chosen.kernel)
        _check_parameters(op, chosen, kernel)
        filled[op] = KernelOp(op, kernel_name(chosen.kernel), kernel, dict(chosen.parameters))
    return Ops(filled, check)


def kernel_name(kernel: str) -> str:
    """The function's name, also of `path/to/file.py:function`."""
    return kernel.rpartition(":")[2]


def load_kernel(kernel: str) -> Callable[..., Any]:
    """Import a kernel by its name in `kernels.KERNELS`, or from `path/to/file.py:function`.

    Raises:
        ConfigurationError: the file or the function is missing, or the file cannot be run.
    """
    module = _module(kernel)
    function = getattr(module, kernel_name(kernel), None)
    if not callable(function):
        raise ConfigurationError(f"{module.__file__} has no kernel {kernel_name(kernel)!r}")
    return function  # type: ignore[no-any-return]


def _module(kernel: str) -> ModuleType:
    path, colon, _ = kernel.rpartition(":")
    try:
        if not colon:
            return importlib.import_module(KERNELS[kernel].module)
        if not Path(path).is_file():
            raise ConfigurationError(f"kernel {kernel!r}: there is no file {path}")
        spec = importlib.util.spec_from_file_location(f"user_kernel_{Path(path).stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ConfigurationError:
        raise
    except Exception as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigurationError(
            f"kernel {kernel!r} cannot be imported: {type(error).__name__}: {error}{where}"
        ) from error
    return module


def _check_parameters(op: str, chosen: OpKernel, kernel: Callable[..., Any]) -> None:
    given = CONTRACTS[op].arguments
    accepted = list(inspect.signature(kernel).parameters)
    free = [name for name in accepted if name not in given]
    for name in chosen.parameters:
        if name not in free:
            raise ConfigurationError(
                f"op {op!r}: kernel {chosen.kernel!r} has no parameter {name!r}; "
                f"parameters: {', '.join(free) or 'none'}"
            )
    missing = [name for name in given if name not in accepted]
    if missing:
        raise ConfigurationError(
            f"op {op!r}: kernel {chosen.kernel!r} does not take {', '.join(missing)}; "
            f"an op's kernel looks like {CONTRACTS[op].signature}"
        )


def kernel_entries(configuration: KernelConfiguration) -> list[KernelEntry]:
    """What fills each op, with the checksums of the sources.

    Raises:
        ConfigurationError: see `load_kernel`.
    """
    return [
        KernelEntry(
            op=op,
            kernel=chosen.kernel,
            parameters=dict(chosen.parameters),
            sources={_display(path): file_sha256(path) for path in _sources(chosen.kernel)},
        )
        for op, chosen in configuration.ops.items()
    ]


def _sources(kernel: str) -> list[Path]:
    """The kernel's file and the files of the project's helpers it uses."""
    todo, seen = [_module(kernel)], set()
    while todo:
        module = todo.pop()
        path = Path(inspect.getfile(module))
        if path in seen:
            continue
        seen.add(path)
        names = {getattr(value, "__module__", None) for value in vars(module).values()}
        todo += [importlib.import_module(n) for n in names if n and n.startswith("kernels.")]
    return sorted(seen)


def _display(path: Path) -> str:
    """Relative to the project's root if it is inside."""
    root = Path(__file__).parent.parent
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
