"""The op table: each op of the model is looked up here once, when the model is built."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import simulator.finder  # noqa: F401  (`import nki` works from here on)
from kernels import KERNELS, OPS, layer_reference
from kernels.comparison import relative_error
from kernels.contracts import CONTRACTS, NOT_CONFIGURABLE, OpContract
from model.configuration import ConfigurationError, KernelConfiguration, OpKernel
from model.fingerprint import file_sha256
from model.records import Graph, KernelEntry

__all__ = ["KernelOp", "OpCheck", "Ops", "build_ops", "relative_error"]

KERNELS_FOLDER = Path(__file__).parent.parent / "kernels"
GRAPHS: tuple[Graph, ...] = ("context_encoding", "token_generation")


def embedding(weight: Tensor, tokens: Tensor) -> Tensor:
    """Rows of weight [V, H]."""
    return weight[tokens]


def cache_write(cache: Tensor, new: Tensor, start: Tensor | None) -> None:
    """Put new [B, S, K, D] into cache [B, K, L, D], from position 0 or start [B, 1] on."""
    batch, count = new.shape[:2]
    if start is None:
        cache[:, :, :count] = new.transpose(1, 2)
    else:
        positions = start.long() + torch.arange(count)
        cache[torch.arange(batch)[:, None], :, positions] = new


def all_reduce(x: Tensor, ranks: int) -> Tensor:
    """The sum over ranks, for one rank that has no peers: x."""
    del ranks
    return x


def all_gather(x: Tensor, ranks: int) -> Tensor:
    """The ranks' columns side by side, for one rank that has no peers: its own, repeated."""
    return torch.cat([x] * ranks, dim=-1)


STEPS: dict[str, Callable[..., Any]] = {
    "embedding": embedding,
    "add": torch.add,
    "cache_write": cache_write,
    "all_reduce": all_reduce,
    "all_gather": all_gather,
}
"""What the model calls and no kernel fills. Beside these there are `attention_chunk`, and
`experts`, the reference of `experts_prefill` also where token generation has no kernel."""


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

    def __init__(
        self, op: str, source: str, kernel: Callable[..., Any], parameters: dict[str, Any]
    ):
        """An op's kernel.

        Args:
            op: the op.
            source: the kernel as the configuration names it.
            kernel: what is called.
            parameters: the configuration's keyword arguments for it.
        """
        self.op = op
        self.source = source
        self.name = kernel_name(source)
        self.kernel = kernel
        self.parameters = parameters
        self.contract: OpContract = CONTRACTS[op]
        self.graph: Graph = "context_encoding"
        self.calls: dict[Graph, int] = dict.fromkeys(GRAPHS, 0)
        self.check = False
        self.worst: dict[str, Worst] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run the kernel on the op's arguments; with `check`, the reference beside it."""
        before = self._exact(arguments) if self.check else None
        result = self.contract.call(self.kernel, *arguments, **self.parameters)
        self.calls[self.graph] += 1
        if before is not None:
            self._compare(result, before, arguments)
        return result

    def _exact(self, arguments: tuple[Any, ...]) -> list[Any]:
        """The arguments in fp32 or more, apart from those that the kernel is given."""
        exact = []
        for position, value in enumerate(arguments):
            if isinstance(value, Tensor) and value.is_floating_point():
                value = value.to(torch.promote_types(value.dtype, torch.float32))
            if position in self.contract.written and value is arguments[position]:
                value = value.clone()
            exact.append(value)
        return exact

    def _compare(self, result: Any, exact: list[Any], arguments: tuple[Any, ...]) -> None:
        """The reference in fp32 on the same inputs: its own bf16 error is not the kernel's."""
        expected = self.contract.reference(*exact)
        dtype = str(arguments[0].dtype).removeprefix("torch.")
        worst = self.worst.setdefault(dtype, Worst())
        worst.calls[self.graph] += 1
        error = self.contract.error(result, expected, arguments)
        worst.error = max(worst.error, error)


class Ops:
    """What the model calls: one callable per op, a kernel or the PyTorch reference."""

    embedding: Callable[..., Tensor]
    add: Callable[..., Tensor]
    cache_write: Callable[..., None]
    all_reduce: Callable[..., Tensor]
    all_gather: Callable[..., Tensor]
    rmsnorm: Callable[..., Tensor]
    add_rmsnorm: Callable[..., tuple[Tensor, Tensor]]
    qk_norm: Callable[..., tuple[Tensor, Tensor]]
    rope: Callable[..., tuple[Tensor, Tensor]]
    qkv_proj: Callable[..., tuple[Tensor, Tensor, Tensor]]
    norm_qkv_proj: Callable[..., tuple[Tensor, Tensor, Tensor]]
    attention_prefill: Callable[..., Tensor]
    attention_chunk: Callable[..., Tensor]
    attention_decode: Callable[..., tuple[Tensor, Tensor, Tensor]]
    attention_block_decode: Callable[..., tuple[Tensor, Tensor, Tensor]]
    o_proj: Callable[..., Tensor]
    o_proj_add: Callable[..., Tensor]
    router: Callable[..., tuple[Tensor, Tensor]]
    experts: Callable[..., Tensor]
    experts_prefill: Callable[..., Tensor]
    experts_decode: Callable[..., Tensor]
    lm_head: Callable[..., Tensor]
    norm_lm_head: Callable[..., Tensor]

    def __init__(
        self,
        filled: dict[str, KernelOp],
        check: bool = False,
        watch: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None = None,
    ):
        """Fill the table.

        Args:
            filled: kernels by op; all other ops get their reference, with its parts from here.
            check: compute the reference beside every kernel.
            watch: called with every op's name and callable, gives what takes its place.
        """
        self.filled = filled
        self.layer: int | None = None
        """The layer that runs, None outside of them."""
        self.inside: str | None = None
        """The op whose reference runs, if `watch` keeps account of it."""
        table: dict[str, Callable[..., Any]] = dict(STEPS)
        changed: set[str] = set()

        def bound(reference: Callable[..., Any], parts: tuple[str, ...]) -> Callable[..., Any]:
            live = {part: table[part] for part in parts if part in changed}
            return functools.partial(reference, **live) if live else reference

        def enter(op: str, implementation: Callable[..., Any]) -> None:
            table[op] = watch(op, implementation) if watch else implementation

        for step, function in STEPS.items():
            enter(step, function)
        for op in OPS:
            contract = CONTRACTS[op]
            if op in filled or any(part in changed for part in contract.parts):
                changed.add(op)
            enter(op, filled.get(op) or bound(contract.reference, contract.parts))
        enter("attention_chunk", bound(layer_reference.chunk_attention, ("softmax",)))
        experts = CONTRACTS["experts_prefill"]
        enter("experts", bound(experts.reference, experts.parts))
        for op, implementation in table.items():
            setattr(self, op, implementation)
        for kernel in filled.values():
            kernel.check = check

    def is_filled(self, op: str) -> bool:
        """Whether a kernel fills it."""
        return op in self.filled

    def enter(self, graph: Graph) -> None:
        """Count what follows as calls of `graph`."""
        for kernel in self.filled.values():
            kernel.graph = graph

    def kernel_calls(self) -> dict[str, dict[Graph, int]]:
        """Kernel -> graph -> calls so far, of all the ops that it fills."""
        calls: dict[str, dict[Graph, int]] = {}
        for kernel in self.filled.values():
            counts = calls.setdefault(kernel.name, dict.fromkeys(GRAPHS, 0))
            for graph in GRAPHS:
                counts[graph] += kernel.calls[graph]
        return calls

    def op_checks(self) -> list[OpCheck]:
        """The errors seen so far, one entry per op and dtype."""
        return [
            OpCheck(op, kernel.name, dtype, dict(worst.calls), worst.error)
            for op, kernel in self.filled.items()
            for dtype, worst in kernel.worst.items()
        ]


def fake(op: str, *arguments: Any) -> Any:
    """Tensors of the shapes and dtypes that the op gives, new and contiguous; written arguments
    are given back.
    """
    written = CONTRACTS[op].written
    key = (op, *(_described(value) for value in arguments))
    if key not in _FAKES:  # layers are alike: a reference is run once for all of them
        results = CONTRACTS[op].reference(*arguments)
        several = isinstance(results, tuple)
        own = results[: len(results) - len(written)] if several else (results,)
        _FAKES[key] = (several, tuple((tuple(x.shape), x.dtype) for x in own))
    several, shapes = _FAKES[key]
    new = tuple(torch.empty(shape, dtype=dtype) for shape, dtype in shapes)
    return (*new, *(arguments[i] for i in written)) if several else new[0]


_FAKES: dict[Any, tuple[bool, tuple[tuple[tuple[int, ...], torch.dtype], ...]]] = {}
"""Op and described arguments -> whether it gives a tuple, and shapes and dtypes of its results."""


def _described(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def build_ops(configuration: KernelConfiguration, check: bool = False) -> Ops:
    """Fill the op table from a kernel configuration.

    Raises:
        ConfigurationError: a kernel that cannot be loaded, or a parameter it does not have.
    """
    return Ops(fill(configuration), check)


def fill(configuration: KernelConfiguration) -> dict[str, KernelOp]:
    """The kernels of a configuration, by op.

    Raises:
        ConfigurationError: see `build_ops`.
    """
    filled = {}
    for op, chosen in configuration.ops.items():
        kernel = load_kernel(chosen.kernel)
        _check_parameters(op, chosen, kernel)
        filled[op] = KernelOp(op, chosen.kernel, kernel, dict(chosen.parameters))
    return filled


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
    free = [name for name in accepted if name not in (*given, *NOT_CONFIGURABLE)]
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
    """The kernel's file and the files of `kernels/` it imports, directly or not."""
    todo, seen = [Path(inspect.getfile(_module(kernel)))], set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        todo += [
            KERNELS_FOLDER / f"{module.removeprefix('kernels.')}.py"
            for module in _imports(path)
            if module.startswith("kernels.")
        ]
        todo = [file for file in todo if file.is_file()]
    return sorted(seen)


def _imports(path: Path) -> Iterator[str]:
    """What a file imports: modules, and names in them, which may be modules."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _display(path: Path) -> str:
    """Relative to the project's root if it is inside."""
    root = Path(__file__).parent.parent
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
