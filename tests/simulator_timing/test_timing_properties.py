"""What must hold for every Program: determinism, monotonicity, accounts that add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timing_bench import ROUND, X, buffered, filled, played, product, program, sbuf

from benchmarks import kernels as library
from kernels.expert_aggregation import nki_expert_aggregation_kernel
from kernels.expert_mlp import nki_fused_expert_mlp_kernel
from kernels.moe_decode import nki_moe_decode_kernel
from kernels.moe_prefill import nki_moe_prefill_kernel
from kernels.qk_rmsnorm import nki_qk_rmsnorm_kernel
from kernels.rmsnorm import nki_rmsnorm_kernel
from kernels.router import nki_expert_router_kernel
from kernels.silu import nki_silu_kernel
from kernels.softmax import nki_softmax_kernel
from simulator import dtypes
from simulator.program import Program
from simulator.specialise import TensorSpec
from simulator.timing import Timeline, load_machine, predict

bf16, fp32 = dtypes.bfloat16, dtypes.float32

KERNELS: dict[str, Callable[[], Program]] = {
    "rmsnorm": lambda: nki_rmsnorm_kernel.specialise(
        TensorSpec((300, 2048), bf16), TensorSpec((2048,), bf16)
    ),
    "qk_norm": lambda: nki_qk_rmsnorm_kernel.specialise(
        TensorSpec((256, 8, 128), bf16),
        TensorSpec((256, 1, 128), bf16),
        TensorSpec((128,), bf16),
        TensorSpec((128,), bf16),
    ),
    "softmax": lambda: nki_softmax_kernel.specialise(TensorSpec((256, 1024), fp32)),
    "silu": lambda: nki_silu_kernel.specialise(TensorSpec((512, 768), bf16)),
    "router": lambda: nki_expert_router_kernel.specialise(
        TensorSpec((40, 256), bf16), TensorSpec((256, 32), bf16)
    ),
    "expert_mlp": lambda: nki_fused_expert_mlp_kernel.specialise(
        TensorSpec((64, 256), bf16),
        TensorSpec((256, 128), bf16),
        TensorSpec((256, 128), bf16),
        TensorSpec((128, 256), bf16),
    ),
    "aggregation": lambda: nki_expert_aggregation_kernel.specialise(
        TensorSpec((32, 8, 512), bf16), TensorSpec((32, 8), fp32)
    ),
    "moe_decode": lambda: nki_moe_decode_kernel.specialise(*MOE),
    "moe_decode on two cores": lambda: nki_moe_decode_kernel[2].specialise(*MOE),
    "moe_prefill": lambda: nki_moe_prefill_kernel.specialise(
        TensorSpec((64, 256), bf16),
        TensorSpec((64, 2), fp32),
        TensorSpec((64, 2), dtypes.int32),
        *MOE[3:],
    ),
}
LISTED = {case.kernel: case for case in reversed(library.CASES)}
"""Of each kernel in the benchmark's list, its first case."""
MOE = (
    TensorSpec((2, 256), bf16), TensorSpec((256,), bf16), TensorSpec((256, 8), bf16),
    TensorSpec((8, 256, 256), bf16), TensorSpec((8, 128, 256), bf16),
)  # fmt: skip


def tiles(
    x: Any, steps: tuple[str, ...] = (), columns: int = 256, repeats: int = 1, chained: bool = True
) -> None:
    """A loop of steps on tiles; each works on the result of the one before if `chained`."""
    for _ in range(repeats):
        start = sbuf(columns)
        nisa.dma_copy(dst=start, src=x[:, 0:columns])
        tile = start
        for step in steps:
            source = tile if chained else start
            tile = sbuf(columns)
            if step == "vector":
                nisa.tensor_copy(dst=tile, src=source, engine=nisa.engine.vector)
            elif step == "scalar":
                nisa.activation(dst=tile, op=nl.exp, data=source)
            elif step == "gpsimd":
                nisa.tensor_copy(dst=tile, src=source, engine=nisa.engine.gpsimd)
            else:
                nisa.dma_copy(dst=tile, src=source)


STEPS = st.lists(st.sampled_from(("vector", "scalar", "gpsimd", "dma")), max_size=6).map(tuple)


@pytest.mark.parametrize("target", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_a_timeline_whose_accounts_add_up(name: str, target: str) -> None:
    timeline = predict(KERNELS[name](), target)
    assert sum(timeline.critical_path_us.values()) == pytest.approx(timeline.latency_us)
    assert timeline.latency_us >= timeline.roofline.bound_us
    assert max(timeline.utilisation.values()) <= 1
    assert 0 < timeline.mbu <= 1
    read, written = timeline.program.hbm_bytes()
    assert timeline.hbm_bytes == read + written
    assert sum(line.count for line in timeline.lines) == len(timeline)


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_kernel_is_played_at_the_models_shapes(name: str) -> None:
    case = LISTED[name]
    kernel = library.load(name)
    launched = kernel[2] if case.lnc == 2 else kernel
    timeline = predict(launched.specialise(**case.arguments, **case.parameters))
    assert sum(timeline.critical_path_us.values()) == pytest.approx(timeline.latency_us)
    assert timeline.latency_us >= timeline.roofline.bound_us


def test_every_kernel_that_the_library_names_is_listed() -> None:
    assert {*library.KERNELS} <= set(LISTED)


def test_the_same_program_gives_the_same_timeline() -> None:
    built = KERNELS["rmsnorm"]()
    first, second = predict(built), predict(built)
    again = predict(KERNELS["rmsnorm"]())
    assert first.starts.tolist() == second.starts.tolist() == again.starts.tolist()
    assert first.played.end == again.played.end


@given(steps=STEPS, repeats=st.integers(1, 6), columns=st.sampled_from((64, 256, 512)))
@settings(max_examples=30, deadline=None)
def test_more_iterations_are_never_faster(
    steps: tuple[str, ...], repeats: int, columns: int
) -> None:
    few = played(tiles, X, steps=steps, repeats=repeats, columns=columns)
    more = played(tiles, X, steps=steps, repeats=repeats + 1, columns=columns)
    assert more.latency_ns >= few.latency_ns


@given(steps=STEPS, repeats=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_wider_tiles_are_never_faster(steps: tuple[str, ...], repeats: int) -> None:
    few = played(tiles, X, steps=steps, repeats=repeats, columns=128)
    more = played(tiles, X, steps=steps, repeats=repeats, columns=512)
    assert more.latency_ns >= few.latency_ns


@given(steps=STEPS)
@settings(max_examples=30, deadline=None)
def test_removing_dependencies_is_never_slower(steps: tuple[str, ...]) -> None:
    chained = played(tiles, X, steps=steps, chained=True)
    free = played(tiles, X, steps=steps, chained=False)
    assert free.latency_ns <= chained.latency_ns


@given(steps=STEPS, repeats=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_twice_the_bandwidth_never_hurts(steps: tuple[str, ...], repeats: int) -> None:
    built = program(tiles, X, steps=steps, repeats=repeats)
    machine = load_machine("trn2")
    twice = machine.with_changes(
        dma_bytes_per_ns=2 * machine.dma_bytes_per_ns,
        dma_core_bytes_per_ns=2 * machine.dma_core_bytes_per_ns,
        hbm_core_bytes_per_ns=2 * machine.hbm_core_bytes_per_ns,
        hbm_stack_bytes_per_ns=2 * machine.hbm_stack_bytes_per_ns,
    )
    assert predict(built, twice).latency_ns <= predict(built, machine).latency_ns


@given(steps=STEPS, repeats=st.integers(1, 4), columns=st.sampled_from((64, 512)))
@settings(max_examples=30, deadline=None)
def test_no_instruction_starts_before_what_it_waits_for(
    steps: tuple[str, ...], repeats: int, columns: int
) -> None:
    timeline = played(tiles, X, steps=steps, repeats=repeats, columns=columns)
    last: dict[int, float] = {}
    for index, waits in enumerate(timeline.decoded.depends):
        begin = timeline.played.start[index]
        assert all(timeline.played.end[j] <= begin for j in waits or ())
        queue = timeline.decoded.queues[index]
        assert last.get(queue, 0.0) <= begin
        last[queue] = timeline.played.release[index]
    assert sum(timeline.critical_path_us.values()) == pytest.approx(timeline.latency_us)


def test_double_buffering_is_faster() -> None:
    assert (
        played(buffered, X, inside=True).latency_ns
        < 0.5 * played(buffered, X, inside=False).latency_ns
    )


def test_trn3_is_faster_than_trn2() -> None:
    built = KERNELS["softmax"]()
    assert predict(built, "trn3").latency_us < predict(built, "trn2").latency_us


# --- two cores ------------------------------------------------------------------------------


def halves(x: Any) -> Any:
    """Each core copies its half of the rows."""
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    rows = x.shape[0] // nl.num_programs()
    first = nl.program_id(0) * rows
    for start in range(0, rows, 128):
        tile = nl.ndarray((128, x.shape[1]), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[first + start : first + start + 128, :])
        nisa.dma_copy(dst=out[first + start : first + start + 128, :], src=tile)
    return out


def on_cores(lnc: int) -> Timeline:
    """The copy on one core or two."""
    kernel = nki.jit(halves)
    launched = kernel[2] if lnc == 2 else kernel
    return predict(launched.specialise(TensorSpec((4096, 2048), fp32)))


def test_two_cores_share_the_work_and_the_hbm_stack() -> None:
    one, two = on_cores(1), on_cores(2)
    assert 0.45 * one.latency_us < two.latency_us < 0.65 * one.latency_us
    assert two.lanes == tuple(f"{core}.{lane}" for core in (0, 1) for lane in one.lanes)
    narrow = load_machine("trn2").with_changes(hbm_stack_bytes_per_ns=362)
    assert predict(two.program, narrow).latency_us > 0.9 * one.latency_us


@pytest.mark.parametrize("by_row", [False, True])
def test_a_dma_waits_for_the_index_it_is_addressed_by(by_row: bool) -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray((128, 64), dtype=x.dtype, buffer=nl.shared_hbm)
        index = nl.ndarray((128, 1), dtype=nl.int32, buffer=nl.sbuf)
        tile = nl.ndarray((128, 64), dtype=x.dtype, buffer=nl.sbuf)
        nisa.iota(dst=index, pattern=[[0, 1]], offset=0, channel_multiplier=0)
        for _ in range(30):
            nisa.iota(dst=index, pattern=[[0, 1]], offset=0, channel_multiplier=0)
        if by_row:
            source = x.ap(pattern=[[64, 128], [1, 64]], offset=0, vector_offset=index)
        else:
            source = x.ap(pattern=[[64, 128], [1, 64]], offset=0, scalar_offset=index[0:1, :])
        nisa.dma_copy(dst=tile, src=source)
        nisa.dma_copy(dst=out, src=tile)
        return out

    timeline = predict(nki.jit(kernel).specialise(TensorSpec((1024, 64), fp32)))
    made = timeline.played.end[30]
    assert timeline.played.start[31] >= made > 30 * 100


def test_a_core_does_not_wait_for_what_the_other_has_queued() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray((2, *x.shape), dtype=x.dtype, buffer=nl.shared_hbm)
        for _ in range(30 if nl.program_id(0) == 0 else 1):
            tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=x)
        nisa.dma_copy(dst=out[nl.program_id(0)], src=tile)
        return out

    timeline = predict(nki.jit(kernel)[2].specialise(TensorSpec((128, 2048), fp32)))
    ends: list[list[float]] = [[], []]
    for index, instruction in enumerate(timeline.program.instructions):
        if index in timeline.played.flow:
            ends[instruction.core].append(timeline.played.end[index])
    assert 3 * max(ends[1]) < max(ends[0])


def test_a_barrier_makes_the_early_core_wait() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        slow = nl.program_id(0) == 0
        tile = nl.ndarray((128, 512), dtype=x.dtype, buffer=nl.sbuf)
        for _ in range(20 if slow else 1):
            nisa.memset(dst=tile, value=0.0, engine=nisa.engine.gpsimd)
        half = out[0:64, :] if slow else out[64:128, :]
        nisa.dma_copy(dst=half, src=tile[0:64, :])
        nisa.core_barrier(data=out, cores=(0, 1))
        nisa.memset(dst=tile, value=1.0, engine=nisa.engine.gpsimd)
        nisa.dma_copy(dst=half, src=tile[0:64, :])
        return out

    timeline = predict(nki.jit(kernel)[2].specialise(X))
    meets = timeline.decoded.meets
    assert len(meets) == 2
    begins = {timeline.played.start[i] for i in meets}
    assert len(begins) == 1
    assert begins.pop() > 20 * 400


def test_a_matmul_kernel_counts_its_macs() -> None:
    def kernel() -> None:
        product()
        product()

    timeline = played(kernel, machine=ROUND)
    assert timeline.macs == 2 * 128 * 128 * 512
    assert timeline.roofline.compute_us == pytest.approx(2 * 512 / 2 / 1000)
    assert timeline.mfu == pytest.approx(timeline.roofline.compute_us / timeline.latency_us)


def test_vector_time_is_what_the_instructions_take() -> None:
    def kernel() -> None:
        filled()
        filled()

    assert played(kernel).busy_us["vector"] == pytest.approx(2 * 0.562)
