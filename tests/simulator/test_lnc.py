"""Two cores (LNC2): exchange, barriers, races, divergence; device_print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bench import X, loaded, sbuf, stored

from simulator.errors import NkiLaxWarning, NkiValidationError, Violation
from simulator.execute import Plan
from simulator.specialise import TensorSpec

Array = np.ndarray[Any, Any]


def on_two(body: Callable[..., Any], **arguments: Any) -> list[Violation]:
    """What specialising on two cores reports."""
    with pytest.raises(NkiValidationError) as caught:
        nki.jit(body)[2].specialise(**(arguments or {"x": X}))
    return caught.value.violations


def line_of(body: Callable[..., Any], text: str) -> int:
    """The line of a body that holds `text`."""
    lines = Path(body.__code__.co_filename).read_text().splitlines()
    first = body.__code__.co_firstlineno
    return next(n for n in range(first, len(lines)) if text in lines[n - 1])


def shared(*shape: int, dtype: Any = nl.float32) -> Any:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.shared_hbm)


# --- sendrecv -------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 6),
    st.sampled_from([nl.float32, nl.bfloat16, nl.uint8, nl.int32]),
    st.sampled_from([nisa.dma_engine.dma, nisa.dma_engine.gpsimd_dma]),
    st.integers(0, 2),
    st.integers(1, 2),
)
def test_sendrecv_exchanges_tiles(
    rows: int, columns: int, dtype: Any, mover: Any, offset: int, step: int
) -> None:
    """Each core ends up with what the other loaded; offset and strided views included."""
    wide = offset + step * columns

    def body(x: Any) -> Any:
        me = nl.program_id(0)
        mine, theirs = sbuf(rows, wide, dtype=dtype), sbuf(rows, columns, dtype=dtype)
        nisa.dma_copy(dst=mine, src=x[me])
        nisa.sendrecv(
            src=mine[:, offset : offset + step * (columns - 1) + 1 : step],
            dst=theirs, send_to_rank=1 - me, recv_from_rank=1 - me, pipe_id=0, dma_engine=mover,
        )  # fmt: skip
        out = shared(2, rows, columns, dtype=dtype)
        nisa.dma_copy(dst=out[me], src=theirs)
        return out

    x = np.random.default_rng(0).integers(0, 100, (2, rows, wide)).astype(dtype.numpy)
    expected = x[::-1, :, offset::step][:, :, :columns]
    np.testing.assert_array_equal(nki.jit(body)[2](x), expected)


def self_send(x: Any) -> Any:
    me = nl.program_id(0)
    mine, copy = sbuf(4, 3), sbuf(4, 3)
    nisa.dma_copy(dst=mine, src=x[me])
    nisa.sendrecv(src=mine, dst=copy, send_to_rank=me, recv_from_rank=me, pipe_id=0)
    out = shared(2, 4, 3)
    nisa.dma_copy(dst=out[me], src=copy)
    return out


def test_a_core_may_send_to_itself() -> None:
    x = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(nki.jit(self_send)[2](x), x)


def two_steps(x: Any) -> Any:
    """Swap twice through the same tiles: what comes back is what was sent."""
    me = nl.program_id(0)
    a, b, c = sbuf(4, 3), sbuf(4, 3), sbuf(4, 3)
    nisa.dma_copy(dst=a, src=x[me])
    for src, dst in ((a, b), (b, c)):
        nisa.sendrecv(src=src, dst=dst, send_to_rank=1 - me, recv_from_rank=1 - me, pipe_id=0)
    nisa.tensor_tensor(dst=c, data1=c, data2=b, op=nl.subtract)
    out = shared(2, 4, 3)
    nisa.dma_copy(dst=out[me], src=c)
    return out


def test_exchanges_keep_their_order() -> None:
    x = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(nki.jit(two_steps)[2](x), x - x[::-1])


# --- barriers -------------------------------------------------------------------------------


def halves(x: Any) -> Any:
    """Each core writes its interleaved rows, then both read all of them."""
    me = nl.program_id(0)
    between = shared(8, 4)
    tile = sbuf(4, 4)
    nisa.dma_copy(dst=tile, src=x[me : 7 + me : 2, :])
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=between[me : 7 + me : 2, :], src=tile)
    nisa.core_barrier(between, (0, 1))
    whole = sbuf(8, 4)
    nisa.dma_copy(dst=whole, src=between)
    out = shared(2, 8, 4)
    nisa.dma_copy(dst=out[me], src=whole)
    return out


def test_after_a_barrier_each_core_sees_the_others_strided_half() -> None:
    x = np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32)
    result = nki.jit(halves)[2](x)
    np.testing.assert_array_equal(result, np.stack([2 * x, 2 * x]))
    assert not nki.jit(halves)[2].specialise(x).warnings


def test_barriers_in_loops_and_programs_of_one_and_two_cores() -> None:
    def body(x: Any) -> Any:
        me, cores_there = nl.program_id(0), nl.num_programs(0)
        out = shared(cores_there, 4, 3)
        between = shared(cores_there, 4, 3)
        acc, tile = sbuf(4, 3), sbuf(4, 3)
        nisa.memset(dst=acc, value=0.0)
        for i in range(3):
            nisa.tensor_scalar(dst=tile, data=loaded(x), op0=nl.add, operand0=float(i + 10 * me))
            nisa.dma_copy(dst=between[me], src=tile)
            nisa.core_barrier(data=between, cores=[0, 1] if cores_there == 2 else (0,))
            nisa.dma_copy(dst=tile, src=between[cores_there - 1 - me])
            nisa.core_barrier(data=between, cores=tuple(range(cores_there)))
            nisa.tensor_tensor(dst=acc, data1=acc, data2=tile, op=nl.add)
        nisa.dma_copy(dst=out[me], src=acc)
        return out

    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(nki.jit(body)(x), [3 * x + 3])
    np.testing.assert_array_equal(nki.jit(body)[1](x), [3 * x + 3])
    np.testing.assert_array_equal(nki.jit(body)[2](x), [3 * x + 33, 3 * x + 3])


@pytest.mark.parametrize(
    ("launch", "expected"), [(None, (0, 1, 0)), (1, (1, 1, 0)), (2, (1, 2, 1))]
)
def test_program_ids(launch: int | None, expected: tuple[int, int, int]) -> None:
    seen: list[tuple[int, int, int]] = []

    def body(x: Any) -> Any:
        seen.append((nl.program_ndim(), nl.num_programs(axes=0), nl.program_id(axis=0)))
        out = shared(2, 4)
        nisa.dma_copy(dst=out[nl.program_id(0)], src=x[0])
        nisa.dma_copy(dst=out[1], src=x[0]) if nl.num_programs() == 1 else None
        return out

    kernel = nki.jit(body)
    (kernel if launch is None else kernel[launch])(np.ones((1, 4), np.float32))
    assert seen[-1] == expected
    assert len(seen) == (launch or 1)


def test_an_argument_is_shared_and_private_hbm_is_not() -> None:
    def body(x: Any) -> Any:
        me = nl.program_id(0)
        mine = nl.ndarray((2, 4), dtype=nl.float32, buffer=nl.private_hbm)
        nisa.dma_copy(dst=mine, src=x[2 * me : 2 * me + 2, :])
        nisa.dma_copy(dst=x[2 - 2 * me : 4 - 2 * me, :], src=mine)
        return x

    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    (race,) = on_two(body, x=x)
    assert race.rule == "lnc-race"


# --- races ----------------------------------------------------------------------------------


def both_write(x: Any) -> Any:
    return stored(loaded(x))


def read_without_barrier(x: Any) -> Any:
    me = nl.program_id(0)
    between, out = shared(2, 4), shared(2, 4)
    nisa.dma_copy(dst=between[me : me + 1, :], src=x[me : me + 1, 0:4])
    nisa.dma_copy(dst=out[me : me + 1, :], src=between[1 - me : 2 - me, :])
    return out


def one_byte(x: Any) -> Any:
    me = nl.program_id(0)
    out = shared(64, 32)
    tile = loaded(x)
    nisa.dma_copy(dst=out[32 * me : 32 + 32 * me, :], src=tile[32 * me : 32 + 32 * me, :])
    if me == 1:
        nisa.dma_copy(dst=out[31:32, 31:32], src=tile[0:1, 0:1])
    return out


def round_the_loop(x: Any) -> Any:
    """The next round writes what the other core may still be reading."""
    me = nl.program_id(0)
    between, out = shared(2, 4), shared(2, 4)
    tile = sbuf(1, 4)
    for _ in nl.dynamic_range(4):
        nisa.dma_copy(dst=between[me : me + 1, :], src=x[me : me + 1, 0:4])
        nisa.core_barrier(between, (0, 1))
        nisa.dma_copy(dst=tile, src=between[1 - me : 2 - me, :])
    nisa.dma_copy(dst=out[me : me + 1, :], src=tile)
    return out


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (both_write, ""),
        (one_byte, "out[31:32"),
        (round_the_loop, "between[1 - me"),
    ],
)
def test_races_are_found(body: Callable[..., Any], text: str) -> None:
    found = on_two(body)
    assert {violation.rule for violation in found} == {"lnc-race"}
    assert len(found) == 1
    if text:
        other = line_of(body, text)
        assert found[0].line == other or f"line {other}" in found[0].message


def test_a_read_of_what_the_other_core_writes_is_a_race() -> None:
    assert "lnc-race" in {v.rule for v in on_two(read_without_barrier)}


def test_between_meetings_the_cores_take_turns() -> None:
    """Both clear the whole output at once and then write their halves, as public kernels do."""

    @nki.jit
    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        zeros = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
        nisa.memset(dst=zeros, value=0.0)
        nisa.dma_copy(dst=out, src=zeros)
        half = x.shape[0] // 2
        first = nl.program_id(0) * half
        nisa.dma_copy(dst=out[first : first + half, :], src=x[first : first + half, :])
        return out

    x = np.arange(8 * 4, dtype=np.float32).reshape(8, 4)
    with pytest.warns(NkiLaxWarning, match="lnc-race"):
        np.testing.assert_array_equal(kernel[2](x), x)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_races_are_exactly_shared_bytes(data: Any) -> None:
    """Two cores write random strided views: a race if and only if they share an element."""
    size = 26

    def view() -> tuple[int, int, int, int, int]:
        rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
        column_step, row_step = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
        last = (rows - 1) * row_step + (columns - 1) * column_step
        return rows, columns, row_step, column_step, data.draw(st.integers(0, size - 1 - last))

    views = [view(), view()]

    def body(x: Any) -> Any:
        rows, columns, row_step, column_step, offset = views[nl.program_id(0)]
        out = shared(size)
        if nl.program_id(0) == 0:  # the other elements, so that the output is whole
            nisa.dma_copy(dst=out, src=x)
        nisa.core_barrier(out, (0, 1))
        pattern = [[row_step, rows], [column_step, columns]]
        nisa.dma_copy(dst=out.ap(pattern, 0 + offset), src=x.ap(pattern, 0))
        return out

    touched = [{o + i * r + j * c for i in range(n) for j in range(m)} for n, m, r, c, o in views]
    x = np.arange(size, dtype=np.float32)
    if touched[0] & touched[1]:
        assert {v.rule for v in on_two(body, x=x)} == {"lnc-race"}
    else:
        assert not nki.jit(body)[2].specialise(x).warnings


def test_a_barrier_that_names_another_tensor_is_a_warning() -> None:
    def body(x: Any) -> Any:
        me = nl.program_id(0)
        between, other, out = shared(2, 4), shared(2, 4), shared(2, 4)
        nisa.dma_copy(dst=between[me], src=x[me])
        nisa.core_barrier(other, (0, 1))
        nisa.dma_copy(dst=out[me], src=between[1 - me])
        return out

    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(nki.jit(body)[2](x), x[::-1])
    (warning,) = nki.jit(body)[2].specialise(x).warnings
    assert warning.rule == "lnc-barrier-data"


def test_a_barrier_on_an_sbuf_tile_is_a_warning() -> None:
    def body(x: Any) -> Any:
        tile = loaded(x)
        nisa.core_barrier(tile, (0, 1))
        out = shared(2, 64, 32)
        nisa.dma_copy(dst=out[nl.program_id(0)], src=tile)
        return out

    assert [w.rule for w in nki.jit(body)[2].specialise(X).warnings] == ["barrier-buffer"] * 2


# --- divergence -----------------------------------------------------------------------------


def lonely_barrier(x: Any) -> Any:
    if nl.program_id(0) == 0:
        nisa.core_barrier(x, (0, 1))
    return stored_half(x)


def stored_half(x: Any) -> Any:
    me = nl.program_id(0)
    out = shared(64, 32)
    nisa.dma_copy(dst=out[32 * me : 32 * me + 32, :], src=x[32 * me : 32 * me + 32, :])
    return out


def lonely_sendrecv(x: Any) -> Any:
    tile, other = loaded(x), sbuf(64, 32)
    if nl.program_id(0) == 1:
        nisa.sendrecv(src=tile, dst=other, send_to_rank=0, recv_from_rank=0, pipe_id=0)
    return stored_half(x)


def barrier_against_sendrecv(x: Any) -> Any:
    tile, other = loaded(x), sbuf(64, 32)
    if nl.program_id(0) == 1:
        nisa.sendrecv(src=tile, dst=other, send_to_rank=0, recv_from_rank=0, pipe_id=0)
    else:
        nisa.core_barrier(x, (0, 1))
    return stored_half(x)


def exchanging(x: Any, **changes: Any) -> Any:
    """A sendrecv that one core gets wrong."""
    me = nl.program_id(0)
    tile, other = loaded(x), sbuf(64, 32)
    operands: dict[str, Any] = {
        "src": tile, "dst": other, "send_to_rank": 1 - me, "recv_from_rank": 1 - me, "pipe_id": 0
    }  # fmt: skip
    operands |= changes if me == 1 else {}
    nisa.sendrecv(**operands)
    return stored_half(x)


def other_pipe(x: Any) -> Any:
    return exchanging(x, pipe_id=1)


def other_direction(x: Any) -> Any:
    return exchanging(x, send_to_rank=1)


def other_shape(x: Any) -> Any:
    return exchanging(x, src=loaded(x)[:, 0:16], dst=sbuf(64, 16))


def other_dtype(x: Any) -> Any:
    low, into = sbuf(64, 32, dtype=nl.bfloat16), sbuf(64, 32, dtype=nl.bfloat16)
    nisa.tensor_copy(dst=low, src=loaded(x))
    return exchanging(x, src=low, dst=into)


def barrier_in_one_loop(x: Any) -> Any:
    for _ in nl.dynamic_range(2):
        if nl.program_id(0) == 0:
            nisa.core_barrier(x, (0, 1))
    if nl.program_id(0) == 1:
        nisa.core_barrier(x, (0, 1))
    return stored_half(x)


def other_allocation(x: Any) -> Any:
    shared(4, 4 + nl.program_id(0))
    return stored_half(x)


def other_results(x: Any) -> Any:
    a, b = shared(1, 32), shared(1, 32)
    me = nl.program_id(0)
    nisa.dma_copy(dst=(a, b)[me], src=x[0:1, :])
    return (a, b)[me]


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (lonely_barrier, "lnc-partner"),
        (lonely_sendrecv, "lnc-partner"),
        (barrier_against_sendrecv, "lnc-partner"),
        (other_pipe, "lnc-partner"),
        (other_direction, "lnc-partner"),
        (other_shape, "lnc-partner"),
        (other_dtype, "lnc-partner"),
        (barrier_in_one_loop, "lnc-partner"),
        (other_allocation, "lnc-divergence"),
        (other_results, "lnc-divergence"),
    ],
)
def test_divergence_is_an_error_and_never_a_deadlock(body: Callable[..., Any], rule: str) -> None:
    (found,) = on_two(body)
    assert found.rule == rule
    assert found.line


def trip_counts(x: Any, counts: Any) -> Any:
    me = nl.program_id(0)
    trips = sbuf(1, 1, dtype=nl.int32)
    nisa.dma_copy(dst=trips, src=counts[me : me + 1, :])
    reg = nisa.register_alloc(None)
    nisa.register_load(reg, trips)
    out, tile = shared(2, 4), sbuf(1, 4)
    nisa.memset(dst=tile, value=0.0)
    for _ in nl.dynamic_range(reg):
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0)
        nisa.core_barrier(x, (0, 1))
    nisa.dma_copy(dst=out[me : me + 1, :], src=tile)
    return out


def while_flags(x: Any, counts: Any) -> Any:
    me = nl.program_id(0)
    left = sbuf(1, 1, dtype=nl.int32)
    nisa.dma_copy(dst=left, src=counts[me : me + 1, :])
    reg = nisa.register_alloc(left)
    out, tile = shared(2, 4), sbuf(1, 4)
    nisa.memset(dst=tile, value=0.0)
    while reg:
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0)
        nisa.core_barrier(x, (0, 1))
        nisa.tensor_scalar(dst=left, data=left, op0=nl.subtract, operand0=1.0)
        nisa.register_load(reg, left)
    nisa.dma_copy(dst=out[me : me + 1, :], src=tile)
    return out


@pytest.mark.parametrize("body", [trip_counts, while_flags])
def test_loops_with_barriers_need_the_same_trips(body: Callable[..., Any]) -> None:
    x = np.ones((1, 4), np.float32)
    kernel = nki.jit(body)[2]
    for trips in (0, 1, 5):
        counts = np.full((2, 1), trips, np.int32)
        np.testing.assert_array_equal(kernel(x, counts), np.full((2, 4), trips))
    with pytest.raises(NkiValidationError) as caught:
        kernel(x, np.array([[2], [3]], np.int32))
    (found,) = caught.value.violations
    assert (found.rule, found.line > 0) == ("lnc-divergence", True)
    np.testing.assert_array_equal(kernel(x, np.full((2, 1), 2, np.int32)), np.full((2, 4), 2))


def test_loops_without_meetings_may_differ() -> None:
    def body(x: Any) -> Any:
        me = nl.program_id(0)
        out, tile = shared(2, 4), sbuf(1, 4)
        nisa.memset(dst=tile, value=0.0)
        for _ in nl.dynamic_range(3 + me):
            nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0)
        nisa.dma_copy(dst=out[me : me + 1, :], src=tile)
        return out

    np.testing.assert_array_equal(
        nki.jit(body)[2](np.ones((1, 1), np.float32)), [[3.0] * 4, [4.0] * 4]
    )


# --- refusals of one instruction ------------------------------------------------------------


def one_core_sendrecv(x: Any) -> Any:
    tile, other = loaded(x), sbuf(64, 32)
    nisa.sendrecv(src=tile, dst=other, send_to_rank=0, recv_from_rank=0, pipe_id=0)
    return stored(tile)


def one_core_barrier(x: Any) -> Any:
    nisa.core_barrier(x, (0, 1))
    return stored(loaded(x))


def print_number(x: Any) -> Any:
    nl.device_print("x", 3.0)
    return stored(loaded(x))


def print_prefix(x: Any) -> Any:
    nl.device_print(1, x)
    return stored(loaded(x))


def print_psum(x: Any) -> Any:
    bank = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(dst=bank, src=loaded(x))
    nl.device_print("bank", bank)
    return stored(loaded(x))


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    one_core_sendrecv: ("lnc-launch", "2 cores", "1 core"),
    one_core_barrier: ("lnc-launch", "2 cores", "1 core"),
    print_number: ("operand", "NkiTensor", "float"),
    print_prefix: ("operand", "str", "int"),
    print_psum: ("buffer", "private_hbm, sbuf, shared_hbm", "psum"),
}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_on_one_core(body: Callable[..., Any]) -> None:
    from rule_bench import assert_fires_alone

    assert_fires_alone(body, *RULES[body])


def sending(**changes: Any) -> Callable[..., Any]:
    """A kernel whose sendrecv has these operands, on both cores."""

    def body(x: Any) -> Any:
        me = nl.program_id(0)
        tile, other = loaded(x), sbuf(*x.shape, dtype=changes.get("dtype", x.dtype))
        operands: dict[str, Any] = {
            "src": tile, "dst": tile if changes.get("in_place") else other,
            "send_to_rank": 1 - me, "recv_from_rank": 1 - me, "pipe_id": 0,
        }  # fmt: skip
        operands |= {k: v for k, v in changes.items() if k not in ("dtype", "in_place")}
        nisa.sendrecv(**operands)
        return stored_half(x) if x.shape == (64, 32) else x

    return body


GPSIMD = nisa.dma_engine.gpsimd_dma


@pytest.mark.parametrize(
    ("changes", "x", "rule", "limit", "value"),
    [
        ({"send_to_rank": 2}, X, "sendrecv-rank", "0 or 1", "2"),
        ({"recv_from_rank": True}, X, "sendrecv-rank", "0 or 1", "True"),
        ({"pipe_id": "a"}, X, "sendrecv-pipe", "an integer >= 0", "'a'"),
        ({"pipe_id": -1}, X, "sendrecv-pipe", "an integer >= 0", "-1"),
        ({"dtype": nl.int32}, X, "sendrecv-dtype", "float32", "int32"),
        ({"in_place": True}, X, "sendrecv-overlap", "", ""),
        ({"dma_engine": 2}, X, "enum", "dma, gpsimd_dma", "2"),
        ({"dma_engine": GPSIMD}, TensorSpec((4, 257), nl.float32), "sendrecv-size",
         "1024 bytes per partition", "1028 bytes per partition"),
        ({"dma_engine": GPSIMD}, TensorSpec((4, 257), nl.bfloat16), "sendrecv-size",
         "512 bytes per partition", "514 bytes per partition"),
        ({"dma_engine": GPSIMD}, TensorSpec((4, 257), nl.uint8), "sendrecv-size",
         "256 bytes per partition", "257 bytes per partition"),
    ],
)  # fmt: skip
def test_sendrecv_limits(changes: Any, x: Any, rule: str, limit: str, value: str) -> None:
    found = {v.rule: v for v in on_two(sending(**changes), x=x)}
    assert set(found) - {"missing-return"} == {rule}
    assert limit in ("", found[rule].limit)
    assert value in ("", found[rule].value)


def test_sendrecv_into_another_part_of_its_tile_passes() -> None:
    def body(x: Any) -> Any:
        me = nl.program_id(0)
        tile = sbuf(4, 8)
        nisa.dma_copy(dst=tile[:, 0:4], src=x[me])
        nisa.sendrecv(src=tile[:, 0:4], dst=tile[:, 4:8], send_to_rank=1 - me,
                      recv_from_rank=1 - me, pipe_id=0)  # fmt: skip
        out = shared(2, 4, 8)
        nisa.dma_copy(dst=out[me], src=tile)
        return out

    x = np.random.default_rng(3).normal(size=(2, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(nki.jit(body)[2](x), np.concatenate([x, x[::-1]], axis=2))


@pytest.mark.parametrize("named", [(0,), (1, 0), 2])
def test_barrier_cores(named: Any) -> None:
    def body(x: Any) -> Any:
        nisa.core_barrier(x, named)
        return stored_half(x)

    assert {v.rule for v in on_two(body)} == {"barrier-cores"}


def test_a_barrier_needs_a_tensor() -> None:
    def body(x: Any) -> Any:
        nisa.core_barrier(3, (0, 1))
        return stored_half(x)

    assert {(v.rule, v.operand) for v in on_two(body)} == {("operand", "data")}


# --- memory of two cores --------------------------------------------------------------------


def test_each_core_has_its_own_sbuf() -> None:
    def body(x: Any) -> Any:
        me = nl.program_id(0)
        tile = sbuf(128, 40_000)  # 160,000 bytes of 212,984
        nisa.memset(dst=tile, value=float(me))
        nisa.core_barrier(x, (0, 1))
        out = shared(2, 128, 4)
        nisa.dma_copy(dst=out[me], src=tile[:, 0:4])
        return out

    result = nki.jit(body)[2](np.ones((1, 1), np.float32))
    assert (result[0] == 0).all()
    assert (result[1] == 1).all()


def test_tiles_of_a_loop_body_are_counted_once_on_each_core() -> None:
    """Four tiles of 80,000 bytes in a body with a barrier, one alive at a time."""

    def body(x: Any) -> Any:
        me = nl.program_id(0)
        out = shared(2, 128, 4)
        for _ in nl.dynamic_range(2):
            for _ in range(4):
                tile = sbuf(128, 20_000)
                nisa.memset(dst=tile, value=float(me))
                nisa.dma_copy(dst=out[me], src=tile[:, 0:4])
            nisa.core_barrier(x, (0, 1))
        return out

    nki.jit(body)[2].specialise(TensorSpec((1, 1), nl.float32))


# --- device_print ---------------------------------------------------------------------------


def printing(x: Any) -> Any:
    tile = loaded(x)
    nl.device_print("before", tile[:, 0:2])
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nl.device_print("after", tile[:, 0:2])
    out = stored(tile)
    nl.device_print(print_prefix="out", tensor=out)
    return out


@pytest.mark.parametrize("eager", [False, True])
def test_device_print_shows_values_as_they_are_then(capsys: Any, eager: bool) -> None:
    x = np.array([[1.5, 2.5, 3.5]], np.float32).astype(ml_dtypes.bfloat16)
    kernel = nki.simulate(nki.jit(printing), eager=eager)
    kernel(x)
    expected = "before [[1.5 2.5]]\nafter [[3 5]]\nout [[3 5 7]]\n"
    assert capsys.readouterr().out == expected
    kernel(x)
    assert capsys.readouterr().out == expected


# --- a wrong implementation is noticed ------------------------------------------------------


def test_an_exchange_that_does_nothing_is_noticed(monkeypatch: Any) -> None:
    original = Plan.lower

    def lower(self: Plan, instruction: Any) -> Any:
        run = original(self, instruction)
        return (lambda views: None) if instruction.spec.name == "sendrecv" else run

    monkeypatch.setattr(Plan, "lower", lower)
    with pytest.raises(AssertionError):
        test_exchanges_keep_their_order()


COVERED = {
    "sendrecv": test_sendrecv_exchanges_tiles,
    "core_barrier": test_after_a_barrier_each_core_sees_the_others_strided_half,
    "device_print": test_device_print_shows_values_as_they_are_then,
}
FIRES = {
    "lnc-race", "lnc-partner", "lnc-divergence", "lnc-barrier-data", "barrier-buffer",
    "barrier-cores", "sendrecv-rank", "sendrecv-pipe", "sendrecv-dtype", "sendrecv-overlap",
    "sendrecv-size",
}  # fmt: skip
