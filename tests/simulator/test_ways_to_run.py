"""Vector and GpSimd instructions in every way there is to run them: the results agree."""

from __future__ import annotations

from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from rule_bench import loaded, sbuf, stored
from tile_bench import small_integers

from simulator import schedule

commands = nisa.reduce_cmd


def everything(x: Any, bits: Any) -> Any:
    """One of each instruction on bf16 tiles; x holds small integers, bits ones and zeros."""
    rows, size = x.shape
    tile, predicate, outs = loaded(x), loaded(bits), []

    def new(*shape: int, dtype: Any = nl.bfloat16) -> Any:
        outs.append(sbuf(*shape, dtype=dtype))
        return outs[-1]

    low, top = sbuf(rows, 1), new(rows, 1)
    nisa.iota(low, [[0, 1]], channel_multiplier=1)
    kept = new(rows, size)
    nisa.iota(kept, [[1, size]], offset=-3)
    nisa.tensor_copy_predicated(dst=kept, src=tile, predicate=predicate)
    nisa.tensor_copy_predicated(dst=kept, src=5, predicate=predicate, reverse_pred=True)
    nisa.nc_stream_shuffle(dst=kept, src=tile, shuffle_mask=[*range(1, 16), 0] + [255] * 16)
    nisa.select_reduce(
        dst=new(rows, size), predicate=predicate, on_true=tile, on_false=low, reduce_res=top,
        reduce_cmd=commands.reset_reduce,
    )  # fmt: skip
    nisa.range_select(
        dst=new(rows, size), on_true_tile=tile, comp_op0=nl.greater, comp_op1=nl.greater,
        bound0=low, bound1=low, reduce_res=new(rows, 1, dtype=nl.float32),
    )  # fmt: skip
    nisa.tensor_tensor_scan(
        dst=new(rows, size), data0=predicate, data1=tile, initial=low, op0=nl.multiply, op1=nl.add
    )
    nisa.tensor_scalar_cumulative(dst=new(rows, size), src=tile, op0=nl.add, op1=nl.add, imm0=1.0)
    nisa.tensor_scalar_reduce(
        dst=new(rows, size), data=tile, op0=nl.multiply, operand0=low, reduce_op=nl.add,
        reduce_res=new(rows, 1),
    )  # fmt: skip
    stats, eight, index = new(rows, 6), new(rows, 8), new(rows, 8, dtype=nl.uint32)
    nisa.bn_stats(dst=stats, data=tile)
    nisa.bn_aggr(dst=new(rows, 2), data=stats)
    nisa.max8(dst=eight, src=tile)
    nisa.nc_find_index8(dst=index, data=tile, vals=eight)
    nisa.nc_match_replace8(
        dst=new(rows, size), data=tile, vals=eight, imm=-1.0, dst_idx=new(rows, 8, dtype=nl.uint16)
    )
    nisa.affine_select(new(rows, size), [[1, size]], -1, tile, -2.0, cmp_op=nl.greater_equal)
    nisa.tensor_partition_reduce(new(1, size), nl.add, tile)
    nisa.topk(val_dst=new(rows, 9), idx_dst=new(rows, 9, dtype=nl.uint32), src=tile, n=16 * size)
    nisa.nc_n_gather(dst=new(rows, 8), data=tile, indices=index)
    column = sbuf(rows, 1, dtype=nl.uint16)
    nisa.iota(column, [[0, 1]], channel_multiplier=0, offset=2)
    nisa.local_gather(dst=new(rows, 16), src_buffer=tile, index=column)
    nisa.dropout(dst=new(rows, size), data=tile, prob=1.0)
    return tuple(stored(out) for out in outs)


@pytest.mark.parametrize("way", ["eager", "imprecise", "two threads"])
def test_all_ways_to_run_agree_on_small_integers(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = small_integers((32, 12), nl.bfloat16, 0, 8)
    bits = small_integers((32, 12), nl.uint8, 1, 2)
    planned = nki.jit(everything)(x, bits)
    if way == "imprecise":
        monkeypatch.setenv("NKI_PRECISE_FP", "0")
    if way == "two threads":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        monkeypatch.setattr(schedule, "MINIMUM_COST", 0)
    kernel = nki.simulate(everything, eager=True) if way == "eager" else nki.jit(everything)
    found = kernel(x, bits)
    assert len(found) == len(planned) == 22
    for i, (a, b) in enumerate(zip(found, planned, strict=True)):
        exact = way != "imprecise" or i not in (9, 12)  # means and variances are no integers
        np.testing.assert_allclose(
            a.astype(np.float32), b.astype(np.float32), rtol=0 if exact else 2**-6, err_msg=str(i)
        )
