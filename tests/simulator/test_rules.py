"""Each rule fires, at its line, with limit and value; legal neighbours pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from rule_bench import X, assert_fires_alone, loaded, sbuf, stored, violations

from simulator.specialise import TensorSpec
from simulator.targets import TARGETS


def start(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_copy(dst=tile[0:3, :], src=tile[1:4, :])
    return stored(tile)


def partitions(x: Any) -> Any:
    return stored(sbuf(129, 4))


def hbm_operand(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_copy(dst=tile, src=x)
    return stored(tile)


def psum_dma(x: Any) -> Any:
    bank = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.dma_copy(dst=bank, src=x)
    return stored(loaded(x))


def gpsimd_psum(x: Any) -> Any:
    bank = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(dst=bank, src=loaded(x), engine=nisa.engine.gpsimd)
    return stored(loaded(x))


def column_broadcast(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=tile[:, 0:1], op=nl.add)
    return stored(tile)


def row_broadcast(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=tile[0:1, :], op=nl.add)
    return stored(tile)


def low_column(x: Any) -> Any:
    tile, column = loaded(x), sbuf(64, 1, dtype=nl.bfloat16)
    nisa.memset(dst=column, value=1.0)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=column)
    return stored(tile)


def wide_column(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=tile)
    return stored(tile)


def beyond(x: Any) -> Any:
    tile = sbuf(64, 33)
    nisa.dma_copy(dst=tile, src=x[:, 0:33])
    return stored(tile)


def operator(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=nl.exp)
    return stored(tile)


def unwritten(x: Any) -> Any:
    tile = sbuf(64, 32)
    nisa.dma_copy(dst=tile[:, 0:16], src=x[:, 0:16])
    return stored(tile)


def partial_output(x: Any) -> Any:
    out = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out[0:63, :], src=loaded(x)[0:63, :])
    return out


def private_output(x: Any) -> Any:
    out = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.private_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out


def nothing(x: Any) -> None:
    stored(loaded(x))


def number(x: Any) -> int:
    stored(loaded(x))
    return 3


def too_much_sbuf(x: Any) -> Any:
    tile = sbuf(128, 60_000)
    nisa.memset(dst=tile, value=0.0)
    return stored(tile)


def too_much_psum(x: Any) -> Any:
    banks = [nl.ndarray((128, 4), dtype=nl.float32, buffer=nl.psum) for _ in range(9)]
    for bank in banks:
        nisa.memset(dst=bank, value=0.0)
    total = sbuf(128, 4)
    nisa.memset(dst=total, value=0.0)
    for bank in banks:
        nisa.tensor_tensor(dst=total, data1=total, data2=bank, op=nl.add)
    return stored(total)


def dma_sizes(x: Any) -> Any:
    tile = sbuf(64, 16)
    nisa.dma_copy(dst=tile, src=x)
    return stored(tile)


def dma_cast(x: Any) -> Any:
    tile = sbuf(64, 32, dtype=nl.bfloat16)
    nisa.dma_copy(dst=tile, src=x, dge_mode=nisa.dge_mode.hwdge)
    return stored(tile)


def priority(x: Any) -> Any:
    tile = sbuf(64, 32)
    nisa.dma_copy(dst=tile, src=x, priority=1)
    return stored(tile)


def wrong_engine(x: Any) -> Any:
    tile = loaded(x)
    nisa.memset(dst=tile, value=0.0, engine=nisa.engine.tensor)
    return stored(tile)


def float_in_int(x: Any) -> Any:
    tile = sbuf(64, 32, dtype=nl.int32)
    nisa.memset(dst=tile, value=1.5)
    return stored(tile)


def axis_zero(x: Any) -> Any:
    tile, column = loaded(x), sbuf(64, 1)
    nisa.tensor_reduce(dst=column, op=nl.add, data=tile, axis=0)
    return stored(column)


def reduced_shape(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_reduce(dst=tile, op=nl.add, data=tile, axis=1)
    return stored(tile)


def two_psum_inputs(x: Any) -> Any:
    bank = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.memset(dst=bank, value=1.0)
    tile = sbuf(64, 32)
    nisa.tensor_tensor(dst=tile, data1=bank, data2=bank, op=nl.add)
    return stored(tile)


def stale_accumulator(x: Any) -> Any:
    tile, column = loaded(x), sbuf(64, 1)
    nisa.activation(
        dst=tile, op=nl.copy, data=tile, reduce_op=nl.add, reduce_res=column,
        reduce_cmd=nisa.reduce_cmd.reduce,
    )  # fmt: skip
    return stored(column)


def no_reduce_op(x: Any) -> Any:
    tile = loaded(x)
    nisa.activation(dst=tile, op=nl.copy, data=tile, reduce_cmd=nisa.reduce_cmd.reset_reduce)
    return stored(tile)


def load_reduce(x: Any) -> Any:
    tile = loaded(x)
    nisa.activation(dst=tile, op=nl.copy, data=tile, reduce_cmd=nisa.reduce_cmd.load_reduce)
    return stored(tile)


def half_operand(x: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0, op1=nl.add)
    return stored(tile)


def no_tensor(x: Any) -> Any:
    nisa.dma_copy(dst=3, src=x)
    return x


def asserting(x: Any) -> Any:
    assert x.shape[0] == 1, "x must have one row"
    return x


def truth(x: Any) -> Any:
    return stored(loaded(x)) if x else x


def assignment(x: Any) -> Any:
    x[0:1, :] = x[1:2, :]
    return x


def bad_reshape(x: Any) -> Any:
    return stored(loaded(x).reshape((32, 64)))


def bad_view(x: Any) -> Any:
    return stored(x[:, 0:1].view(nl.bfloat16)[:, 0:3])


def odd_view(x: Any) -> Any:
    tile = sbuf(64, 3, dtype=nl.bfloat16)
    return stored(tile.view(nl.float32))


def bad_pattern(x: Any) -> Any:
    return stored(loaded(x).ap(pattern=[[16, 64], [1, 16]], offset=0))


def numpy_dtype(x: Any) -> Any:
    return stored(sbuf(4, 4, dtype=np.float32))


def string_buffer(x: Any) -> Any:
    return nl.ndarray((4, 4), dtype=nl.float32, buffer="sbuf")


def one_dimension(x: Any) -> Any:
    return stored(sbuf(4))


def no_elements(x: Any) -> Any:
    return stored(sbuf(4, 0))


def list_index(x: Any) -> Any:
    return stored(loaded(x)[[0, 1], :])


def second_axis(x: Any) -> Any:
    return x[nl.program_id(1) : 2, :]


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    start: ("partition-start", "start at 0 or 32 or 64 or 96", "1"),
    partitions: ("partition-limit", "128", "129"),
    hbm_operand: ("buffer", "psum, sbuf", "private_hbm"),
    psum_dma: ("buffer", "private_hbm, sbuf, shared_hbm", "psum"),
    gpsimd_psum: ("buffer", "sbuf", "psum"),
    column_broadcast: ("no-broadcast", "32", "1"),
    row_broadcast: ("partition-mismatch", "64", "1"),
    low_column: ("dtype", "float32", "bfloat16"),
    wide_column: ("shape", "(P, 1)", "(64, 32)"),
    beyond: ("out-of-bounds", "32", "[0, 32] step 1"),
    operator: ("operator", "", "nl.exp"),
    unwritten: ("uninitialised-read", "0 unwritten elements", "1024"),
    partial_output: ("output-not-written", "0 unwritten elements", "32"),
    private_output: ("output-buffer", "shared_hbm", "private_hbm"),
    nothing: ("missing-return", "at least one output", "none"),
    number: ("return", "NkiTensor", "int"),
    too_much_sbuf: ("sbuf-capacity", "212984 bytes per partition", "240000 bytes per partition"),
    too_much_psum: ("psum-capacity", "16384 bytes per partition", "18432 bytes per partition"),
    dma_sizes: ("dma-size", "1024", "2048"),
    dma_cast: ("dma-dtype", "bfloat16", "float32"),
    priority: ("gen4-only", "trn3", "trn2"),
    wrong_engine: ("engine", "vector, gpsimd", "tensor"),
    float_in_int: ("memset-value", "int32", "1.5 for int32"),
    axis_zero: ("reduce-axis", "trailing axes of 2 dimensions, not 0", "0"),
    reduced_shape: ("shape", "1", "32"),
    two_psum_inputs: ("psum-inputs", "one of them in SBUF", "both in PSUM"),
    stale_accumulator: ("accumulator-reset", "reset or reset_reduce first", "reduce"),
    no_reduce_op: ("reduce-op", "nl.add", "None"),
    load_reduce: ("reduce-cmd", "idle, reset, reduce, reset_reduce", "load_reduce"),
    half_operand: ("operand", "both or neither", "op1=nl.add, operand1=None"),
    no_tensor: ("operand", "NkiTensor", "int"),
    asserting: ("kernel-assert", "", ""),
    truth: ("tensor-value", "", ""),
    assignment: ("tensor-assignment", "", ""),
    bad_reshape: ("reshape", "64", "32"),
    bad_view: ("out-of-bounds", "2", "[0, 2] step 1"),
    odd_view: ("view", "multiple of 4 bytes", "6 bytes, stride 1"),
    bad_pattern: ("access-pattern", "32", "16"),
    numpy_dtype: ("dtype", "an nl dtype", "<class 'numpy.float32'>"),
    string_buffer: ("buffer", "nl.sbuf, nl.psum, nl.shared_hbm, nl.private_hbm", "'sbuf'"),
    one_dimension: ("rank", "2", "1"),
    no_elements: ("shape", ">= 1", "(4, 0)"),
    list_index: ("index", "int, slice, ..., nl.ds", "list"),
    second_axis: ("program-axis", "0", "1"),
}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])


def test_independent_errors_are_reported_together() -> None:
    def body(x: Any) -> Any:
        tile = loaded(x)
        nisa.tensor_copy(dst=tile[0:3, :], src=tile[1:4, :])
        nisa.tensor_tensor(dst=tile, data1=tile, data2=tile[:, 0:1], op=nl.add)
        nisa.memset(dst=tile, value=0.0, engine=nisa.engine.scalar)
        return stored(tile)

    found = violations(body)
    assert [v.rule for v in found] == ["partition-start", "no-broadcast", "engine"]
    assert [v.line - found[0].line for v in found] == [0, 1, 2]


@pytest.mark.parametrize(
    ("count", "first", "legal"),
    [(128, 0, True), (32, 96, True), (33, 64, True), (33, 32, False), (65, 0, True), (64, 64, True),
     (32, 16, False), (1, 127, False)],
)  # fmt: skip
def test_partition_starts(count: int, first: int, legal: bool) -> None:
    def body(x: Any) -> Any:
        tile = loaded(x)
        nisa.activation(dst=tile[first : first + count, :], op=nl.exp, data=tile[0:count, :])
        return stored(tile)

    if legal:
        nki.jit(body).specialise(TensorSpec((128, 4), nl.float32))
    else:
        assert {v.rule for v in violations(body, x=TensorSpec((128, 4), nl.float32))} == {
            "partition-start"
        }


def test_capacity_counts_lifetimes_not_allocations() -> None:
    def body(x: Any) -> Any:
        out = nl.ndarray((128, 20_000), dtype=nl.float32, buffer=nl.shared_hbm)
        for _ in range(10):  # ten times 80,000 bytes, one at a time
            tile = sbuf(128, 20_000)
            nisa.memset(dst=tile, value=0.0)
            nisa.dma_copy(dst=out, src=tile)
        return out

    nki.jit(body).specialise(x=X)


def test_gen4_features_pass_on_trn3() -> None:
    nki.jit(priority).specialise(x=X, target=TARGETS["trn3"])
