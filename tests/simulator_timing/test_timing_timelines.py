"""Timelines computed by hand, on a machine of round numbers."""

from __future__ import annotations

from typing import Any

import nki.isa as nisa
import nki.language as nl
import pytest
from timing_bench import (
    LOAD,
    ROUND,
    SCALAR,
    SCALAR_READY,
    VECTOR,
    VECTOR_READY,
    X,
    buffered,
    filled,
    played,
    product,
    sbuf,
    starts,
)


def test_an_engine_takes_the_next_instruction_after_its_interval() -> None:
    def kernel() -> None:
        for _ in range(3):
            filled()

    timeline = played(kernel)
    assert starts(timeline, "memset") == [0, VECTOR, 2 * VECTOR]
    assert timeline.latency_ns == 2 * VECTOR + VECTOR_READY


def test_a_reader_on_the_same_engine_waits_for_the_result() -> None:
    def kernel() -> None:
        nisa.tensor_copy(dst=sbuf(), src=filled())

    assert starts(played(kernel), "tensor_copy") == [VECTOR_READY]


def test_the_vector_engine_follows_its_own_result_before_others_can_read_it() -> None:
    def kernel() -> None:
        tile = filled()
        nisa.tensor_copy(dst=sbuf(), src=tile)
        nisa.activation(dst=sbuf(), op=nl.copy, data=tile)

    timeline = played(kernel, machine=ROUND.with_changes(vector_chain_cycles=10))
    assert starts(timeline, "tensor_copy") == [VECTOR + 10]
    assert starts(timeline, "activation") == [VECTOR_READY]


def test_two_engines_overlap_until_one_needs_the_other() -> None:
    def kernel() -> None:
        first = filled()
        nisa.activation(dst=sbuf(), op=nl.copy, data=first)
        nisa.tensor_copy(dst=sbuf(), src=first)  # Vector goes on beside the Scalar engine

    timeline = played(kernel)
    assert starts(timeline, "activation") == [VECTOR_READY]
    assert starts(timeline, "tensor_copy") == [VECTOR_READY]
    assert timeline.latency_ns == VECTOR_READY + SCALAR_READY


def test_a_wait_for_another_engine_costs_a_semaphore() -> None:
    def kernel() -> None:
        nisa.activation(dst=sbuf(), op=nl.copy, data=filled())

    machine = ROUND.with_changes(scalar_semaphore_ns=30)
    assert starts(played(kernel, machine=machine), "activation") == [VECTOR_READY + 30]


def test_a_load_is_issue_start_transfer_and_completion() -> None:
    def kernel(x: Any) -> None:
        tile = sbuf()
        nisa.dma_copy(dst=tile, src=x)
        nisa.tensor_copy(dst=sbuf(), src=tile)

    assert starts(played(kernel, X), "tensor_copy") == [LOAD]


def test_loads_are_issued_one_by_one_and_transferred_one_by_one() -> None:
    def kernel(x: Any) -> None:
        for _ in range(3):
            nisa.dma_copy(dst=sbuf(), src=x)

    timeline = played(kernel, X)
    assert starts(timeline, "dma_copy") == [0, 500, 1000]
    # The transfers of 1024 ns take longer than the issues: they queue at the DMA engines.
    assert timeline.latency_ns == 500 + 1000 + 3 * 1024 + 100


def test_software_descriptors_overlap_with_hardware_descriptors() -> None:
    def kernel(x: Any, software: bool = False) -> None:
        nisa.dma_copy(dst=sbuf(), src=x)
        mode = nisa.dge_mode.swdge if software else nisa.dge_mode.hwdge
        nisa.dma_copy(dst=sbuf(), src=x, dge_mode=mode)

    tiny = ROUND.with_changes(dma_bytes_per_ns=1e9)
    hardware = played(kernel, X, machine=tiny)
    both = played(kernel, X, machine=tiny, software=True)
    assert starts(hardware, "dma_copy") == [0, 500]
    assert starts(both, "dma_copy") == [0, 0]
    assert hardware.latency_ns == pytest.approx(500 + 500 + 1000 + 100)
    assert both.latency_ns == pytest.approx(50 + 800 + 700 + 100)


def test_short_rows_cost_a_descriptor_each() -> None:
    def kernel(x: Any) -> None:
        nisa.dma_copy(dst=sbuf(32), src=x[:, 0:32])

    # 128 rows of 128 B over 16 engines, 8 each, at 40 + 128 / 16 ns
    machine = ROUND.with_changes(dma_descriptor_ns=40)
    timeline = played(kernel, X, machine=machine)
    assert timeline.latency_ns == pytest.approx(500 + 1000 + 8 * (40 + 8) + 100)


def test_few_partitions_use_few_dma_engines() -> None:
    def kernel(x: Any) -> None:
        nisa.dma_copy(dst=nl.ndarray((8, 512), dtype=nl.float32, buffer=nl.sbuf), src=x[0:8, :])

    assert played(kernel, X).latency_ns == 500 + 1000 + 8 * 128 + 100


def test_vector_and_scalar_wait_for_each_other_at_one_psum_bank() -> None:
    def kernel(same: bool = True) -> None:
        first, second = product(), product()
        ready = sbuf()
        nisa.tensor_copy(dst=ready, src=first, engine=nisa.engine.vector)
        bank = first if same else second
        nisa.tensor_copy(dst=sbuf(), src=bank, engine=nisa.engine.scalar)

    apart = starts(played(kernel, same=False), "tensor_copy")
    together = starts(played(kernel, same=True), "tensor_copy")
    assert sorted(together)[1] - sorted(together)[0] in (VECTOR, SCALAR)
    assert max(apart) - min(apart) < 512


def test_vector_perf_mode_and_gpsimd_share_a_port() -> None:
    def kernel(dtype: Any) -> None:
        source, other = filled(dtype=dtype), filled(dtype=dtype)
        nisa.tensor_copy(dst=sbuf(dtype=dtype), src=source, engine=nisa.engine.vector)
        nisa.tensor_copy(dst=sbuf(dtype=dtype), src=other, engine=nisa.engine.gpsimd)

    free = played(kernel, dtype=nl.float32)
    shared = played(kernel, dtype=nl.bfloat16)
    assert free.played.contended == {}
    assert len(shared.played.contended) == 1
    vector, gpsimd = starts(shared, "tensor_copy")
    assert gpsimd == vector + shared.decoded.costs[2].interval


def test_another_function_loads_another_table() -> None:
    def kernel(second: Any) -> None:
        tile = filled()
        nisa.activation(dst=sbuf(), op=nl.exp, data=tile)
        nisa.activation(dst=sbuf(), op=second, data=tile)

    same = starts(played(kernel, second=nl.exp), "activation")
    other = starts(played(kernel, second=nl.silu), "activation")
    assert same == [1000, 1000 + SCALAR]  # the first load runs while the Vector engine works
    assert other == [1000, 1000 + SCALAR + 1000]


def test_copies_are_in_every_table() -> None:
    def kernel() -> None:
        tile = filled()
        for op in (nl.exp, nl.copy, nl.exp):
            nisa.activation(dst=sbuf(), op=op, data=tile)

    assert len(played(kernel).played.tables) == 1


def test_a_tile_inside_the_loop_is_loaded_ahead() -> None:
    single = played(buffered, X, inside=False)
    double = played(buffered, X, inside=True)
    # Outside: each load waits for the use of the one before. The use ends after 712 ns.
    assert starts(single, "activation") == pytest.approx(
        [LOAD + i * (LOAD + SCALAR_READY) for i in range(8)]
    )
    # Inside: loads follow each other at the rate of the DMA engines, 1024 ns each.
    assert starts(double, "activation") == pytest.approx([LOAD + i * 1024 for i in range(8)])


def test_loads_ahead_stop_when_sbuf_is_full() -> None:
    def kernel(x: Any) -> None:
        big = nl.ndarray((128, 40000), dtype=nl.float32, buffer=nl.sbuf)  # leaves 52 KB
        nisa.memset(dst=big, value=0.0, engine=nisa.engine.gpsimd)
        for _ in range(64):
            tile = sbuf()
            nisa.dma_copy(dst=tile, src=x)
            nisa.activation(dst=sbuf(), op=nl.copy, data=tile)
        nisa.tensor_copy(dst=sbuf(), src=big[:, 0:512])

    slow = ROUND.with_changes(scalar_clock_ghz=0.1)
    timeline = played(kernel, X, machine=slow)
    loads, uses = starts(timeline, "dma_copy"), starts(timeline, "activation")
    assert loads[3] < uses[0]
    assert loads[40] > uses[20]


def test_fp32_takes_four_passes_and_fp8_double_row_half() -> None:
    def kernel(dtype: Any) -> None:
        product(dtype=dtype)

    def fp8() -> None:
        tile = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
        weights = nl.ndarray((128, 2, 128), dtype=nl.float8_e4m3, buffer=nl.sbuf)
        moving = nl.ndarray((128, 2, 512), dtype=nl.float8_e4m3, buffer=nl.sbuf)
        for operand in (weights, moving):
            nisa.memset(dst=operand, value=0.0, engine=nisa.engine.vector)
        mode = nisa.matmul_perf_mode.double_row
        nisa.nc_matmul(dst=tile, stationary=weights, moving=moving, perf_mode=mode)

    bf16, fp32 = played(kernel, dtype=nl.bfloat16), played(kernel, dtype=nl.float32)
    double = played(fp8)
    assert bf16.busy_us["tensor"] == pytest.approx(0.256)
    assert fp32.busy_us["tensor"] == pytest.approx(4 * 0.256)
    assert double.busy_us["tensor"] == pytest.approx(0.256)
    assert double.macs == 2 * bf16.macs == 2 * 128 * 128 * 512


def test_the_tensor_engine_warms_up_and_cools_down() -> None:
    def kernel(x: Any, pause: bool = False) -> None:
        weights, moving = filled(128, nl.bfloat16), filled(512, nl.bfloat16)
        for _ in range(8):
            tile = sbuf(dtype=nl.bfloat16)
            if pause:
                big = nl.ndarray((128, 8192), dtype=nl.float32, buffer=nl.sbuf)
                nisa.memset(dst=big, value=0.0, engine=nisa.engine.vector)
                nisa.tensor_copy(dst=tile, src=big[:, 0:512], engine=nisa.engine.vector)
                moving = tile
            out = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=out, stationary=weights, moving=moving)

    machine = ROUND.with_changes(tensor_warm_after_ns=1000, tensor_cool_after_ns=1000)
    steady = played(kernel, X, machine=machine)
    assert steady.played.cold == 2  # 512 ns each with the cold clock
    assert played(kernel, X, machine=machine, pause=True).played.cold == 8


def test_accumulating_matmuls_do_not_wait_for_each_other() -> None:
    def kernel() -> None:
        weights, moving = filled(128, nl.bfloat16), filled(512, nl.bfloat16)
        tile = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
        for k in range(4):
            nisa.nc_matmul(dst=tile, stationary=weights, moving=moving, accumulate=k > 0)

    begin = starts(played(kernel), "nc_matmul")
    assert [b - begin[0] for b in begin] == [0, 256, 512, 768]


def test_slices_conflict_only_where_they_overlap() -> None:
    def kernel(part: int = 0) -> None:
        tile = sbuf()
        nisa.memset(dst=tile[:, 0:256], value=0.0, engine=nisa.engine.gpsimd)
        nisa.memset(dst=tile[:, 256:512], value=0.0, engine=nisa.engine.vector)
        source = tile[:, 256 * part : 256 * part + 256]
        nisa.activation(dst=sbuf(256), op=nl.copy, data=source)

    assert starts(played(kernel, part=0), "activation") == [100 + 256]
    assert starts(played(kernel, part=1), "activation") == [100 + 256]
    slow = ROUND.with_changes(gpsimd_fixed_cycles=5000)
    assert starts(played(kernel, machine=slow, part=0), "activation") == [5000 + 256]
    assert starts(played(kernel, machine=slow, part=1), "activation") == [100 + 256]


def test_a_write_waits_for_readers() -> None:
    def kernel() -> None:
        tile = filled()
        nisa.activation(dst=sbuf(), op=nl.copy, data=tile)
        nisa.memset(dst=tile, value=1.0, engine=nisa.engine.vector)

    assert starts(played(kernel), "memset") == [0, VECTOR_READY + SCALAR_READY]
