"""What the tests of rules share: tiles, loads, stores, and what specialising reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import pytest

from simulator.errors import NkiValidationError, Violation
from simulator.specialise import TensorSpec
from simulator.targets import TARGETS

X = TensorSpec((64, 32), nl.float32)


def sbuf(*shape: int, dtype: Any = nl.float32) -> Any:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def loaded(x: Any) -> Any:
    tile = sbuf(*x.shape, dtype=x.dtype)
    nisa.dma_copy(dst=tile, src=x)
    return tile


def stored(tile: Any) -> Any:
    out = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile)
    return out


def violations(body: Callable[..., Any], target: str = "trn2", **arguments: Any) -> list[Violation]:
    """What specialising a kernel (x) with this body reports."""
    with pytest.raises(NkiValidationError) as caught:
        nki.jit(body).specialise(**(arguments or {"x": X}), target=TARGETS[target])
    return caught.value.violations


def assert_fires_alone(body: Callable[..., Any], rule: str, limit: str, value: str) -> None:
    """Specialising `body` reports this one violation, at a line of the body or of a bench's helper.

    An empty limit or value is not compared.
    """
    (found,) = violations(body)
    assert found.rule == rule
    assert limit in ("", found.limit)
    assert value in ("", found.value)
    assert found.mend
    if Path(found.file).stem.endswith("_bench"):
        return
    assert found.file == body.__code__.co_filename
    lines = Path(found.file).read_text().splitlines()
    first = body.__code__.co_firstlineno
    last = next((n for n in range(first + 1, len(lines)) if lines[n - 1] == ""), len(lines))
    assert first <= found.line <= last
