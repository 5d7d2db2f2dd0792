"""Every op that a kernel fills as an op of torch's library, so that a graph can be exported.

`torch.ops.nki_assay.rmsnorm(x, weight, eps, kernel="nki_rmsnorm_kernel")` calls the kernel that
fills `rmsnorm` in the op table that is running (`running`), and must be the one that the graph
names. Without data it gives tensors of the reference's shapes. Caches are written in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from kernels import OPS
from kernels.contracts import CONTRACTS
from model.ops import KernelOp, Ops, fake

NAMESPACE = "nki_assay"
_RUNNING: ContextVar[Ops] = ContextVar("running")
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


class GraphError(Exception):
    """A graph is run with kernels that it was not compiled for."""


@contextlib.contextmanager
def running(ops: Ops) -> Iterator[None]:
    """Graphs that are run inside call the kernels of `ops`."""
    token = _RUNNING.set(ops)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def exportable(filled: dict[str, KernelOp]) -> Ops:
    """An op table whose kernels are called through torch's library."""

    def through_library(op: str, run: Callable[..., Any]) -> Callable[..., Any]:
        if not isinstance(run, KernelOp):
            return run
        library_op = getattr(getattr(torch.ops, NAMESPACE), op)
        name, written = run.name, run.contract.written

        def call(*arguments: Any) -> Any:
            results = library_op(*arguments, kernel=name)
            return (results, *(arguments[i] for i in written)) if written else results

        return call

    return Ops(filled, watch=through_library)


def _define(op: str) -> None:
    arguments, _, results = CONTRACTS[op].schema.rpartition(" -> ")
    schema = f"{op}{arguments[:-1]}, *, str kernel) -> {results}"
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    written = len(CONTRACTS[op].written)

    def own(results: Any) -> Any:
        """The results that are not arguments: a library's op gives none of these back."""
        return results[0] if written else results

    def call(*arguments: Any, kernel: str) -> Any:
        filled = _RUNNING.get().filled.get(op)
        if filled is None or filled.name != kernel:
            raise GraphError(
                f"the graph fills {op} with {kernel}, the configuration with "
                f"{filled.name if filled else 'nothing'}; compile it again"
            )
        return own(filled(*arguments))

    def without_data(*arguments: Any, kernel: str) -> Any:
        del kernel
        return own(fake(op, *arguments))

    _LIBRARY.impl(op, call, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{op}", without_data, lib=_LIBRARY)


for _op in OPS:
    _define(_op)
