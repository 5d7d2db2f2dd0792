"""Sees whether the kernels of a model on the simulator are really what computes their ops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from model.ops import GRAPHS, KernelOp
from model.records import Graph
from simulator.kernel import Kernel

DISTURBED = 1.25
"""What every other figure of a disturbed kernel's first result is multiplied by: every other,
since many an op is followed by a normalisation, which would undo a common factor; a quarter,
since bf16 rounds a few per mille away."""


@dataclass
class Seen:
    """What a filled op did while it was watched."""

    calls: dict[Graph, int] = field(default_factory=lambda: dict.fromkeys(GRAPHS, 0))
    """Of the kernel itself, not of the op that is meant to call it."""
    reference_calls: int = 0
    """Of the op's PyTorch reference, in place of the kernel or beside it."""
    programs: dict[Graph, set[str]] = field(default_factory=lambda: {g: set() for g in GRAPHS})
    """Fingerprints of the Programs that ran."""


@contextmanager
def watched(filled: dict[str, KernelOp]) -> Iterator[dict[str, Seen]]:
    """Watch every filled op; op -> what was seen, growing while the model runs."""
    seen = {op: Seen() for op in filled}
    before = {op: (kernel.kernel, kernel.contract) for op, kernel in filled.items()}
    for op, kernel in filled.items():
        kernel.kernel = _counted(kernel, seen[op])
        kernel.contract = dataclasses.replace(
            kernel.contract, reference=_noted(kernel.contract.reference, seen[op])
        )
    try:
        yield seen
    finally:
        for op, kernel in filled.items():
            kernel.kernel, kernel.contract = before[op]


@contextmanager
def disturbed(kernel: KernelOp, graph: Graph) -> Iterator[None]:
    """Let a kernel give something else in one graph: the model must notice."""
    original = kernel.kernel

    def run(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if kernel.graph != graph:
            return result
        first = (result[0] if isinstance(result, tuple) else result).clone()
        first[..., ::2] *= DISTURBED
        return (first, *result[1:]) if isinstance(result, tuple) else first

    kernel.kernel = run
    try:
        yield
    finally:
        kernel.kernel = original


def is_nki(kernel: Callable[..., Any]) -> bool:
    """Whether it is an NKI kernel, and no more: a Python function of the same name computes
    something too, and so may an object made from a kernel, which `isinstance` would let pass.
    """
    return type(kernel) is Kernel


def _counted(filled: KernelOp, seen: Seen) -> Callable[..., Any]:
    original = filled.kernel
    known: dict[int, str] = {}

    def run(*args: Any, **kwargs: Any) -> Any:
        if isinstance(original, Kernel):
            program = original.specialise(*args, **kwargs)
            known[id(program)] = known.get(id(program)) or program.fingerprint()
            seen.programs[filled.graph].add(known[id(program)])
        result = original(*args, **kwargs)
        seen.calls[filled.graph] += 1
        return result

    return run


def _noted(reference: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        seen.reference_calls += 1
        return reference(*args, **kwargs)

    return run
