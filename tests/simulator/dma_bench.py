"""What the tests of DMA rules share: kernels of one dma_transpose or dma_compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki.isa as nisa
import nki.language as nl
from rule_bench import loaded, sbuf, stored

PERMUTATION = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}

hwdge, swdge = nisa.dge_mode.hwdge, nisa.dge_mode.swdge


def transposed(shape: tuple[int, ...], dst: Any = None, dtype: Any = nl.bfloat16, **kw: Any) -> Any:
    src = sbuf(*shape, dtype=dtype)
    nisa.memset(dst=src, value=1.0)
    axes = PERMUTATION.get(len(shape), (1, 0))
    tile = sbuf(*(dst or [shape[axis] for axis in axes]), dtype=kw.pop("dst_dtype", dtype))
    nisa.dma_transpose(dst=tile, src=src, **kw)
    return stored(tile)


def rows(
    x: Any, count: int = 16, index: Any = (16, 1), dtype: Any = nl.uint32, width: int = 64,
    kind: Any = nl.bfloat16, **options: Any,
) -> Any:  # fmt: skip
    table = nl.ndarray((200, width), dtype=kind, buffer=nl.private_hbm)
    values = sbuf(100, 2 * width, dtype=kind)
    nisa.memset(dst=values, value=1.0)
    nisa.dma_copy(dst=table, src=values)
    numbers = sbuf(*index, dtype=dtype)
    nisa.memset(dst=numbers, value=0)
    tile = sbuf(width, count, dtype=kind)
    source = table.ap([[width, count], [1, width]], vector_offset=numbers)
    nisa.dma_transpose(dst=tile, src=source, **options)
    return stored(tile)


def summed(x: Any, srcs: Any = None, **options: Any) -> Any:
    tile = sbuf(64, 32)
    arguments = {"srcs": [x, x] if srcs is None else srcs, "reduce_op": nl.add, **options}
    nisa.dma_compute(dst=tile, **arguments)
    return stored(tile)


def by_number(x: Any, srcs: Callable[[Any, Any], Any], **options: Any) -> Any:
    numbers = sbuf(64, 1, dtype=nl.int32)
    nisa.memset(dst=numbers, value=0)
    tile = loaded(x)
    source = x.ap([[32, 64], [1, 32]], vector_offset=numbers)
    nisa.dma_compute(dst=tile, srcs=srcs(tile, source), reduce_op=nl.add, **options)
    return stored(tile)
