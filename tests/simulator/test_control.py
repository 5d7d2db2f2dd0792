"""Registers and dynamic loops in all spellings, against plain Python on the same data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bench import X, assert_fires_alone, loaded, sbuf, stored, violations

from simulator.errors import NkiValidationError
from simulator.specialise import TensorSpec

Array = np.ndarray[Any, Any]
EAGER = pytest.mark.parametrize("eager", [False, True], ids=["replay", "eager"])


def hbm(*shape: int, dtype: Any = nl.float32) -> Any:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.shared_hbm)


def simulated(body: Callable[..., Any], eager: bool) -> Any:
    return nki.simulate(nki.jit(body), eager=eager)


def register_of(numbers: Any, at: int = 0) -> Any:
    """A register with element `at` of an HBM tensor (n, 1)."""
    register = nisa.register_alloc()
    nisa.register_load(register, numbers[at : at + 1, :])
    return register


def zeros(*shape: int, dtype: Any = nl.float32) -> Any:
    tile = sbuf(*shape, dtype=dtype)
    nisa.memset(dst=tile, value=0)
    return tile


def plus(tile: Any, value: Any) -> None:
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=value)


# --- registers ------------------------------------------------------------------------------

INTEGERS = [nl.int8, nl.uint8, nl.int16, nl.uint16, nl.int32, nl.uint32]


def moved(x: Any, constant: int) -> Any:
    """A number through registers: loaded, moved, stored; and a constant."""
    first, second, third = (nisa.register_alloc(None) for _ in range(3))
    tile = loaded(x)
    nisa.register_load(dst=first, src=tile)
    nisa.register_move(second, first)
    nisa.register_move(first, constant)
    nisa.register_load(third, x)
    out, again, number = (
        hbm(1, 1, dtype=x.dtype),
        sbuf(1, 1, dtype=x.dtype),
        sbuf(1, 1, dtype=nl.int32),
    )
    nisa.register_store(dst=out, src=second)
    nisa.register_store(again, third)
    nisa.register_store(number, first)
    return out, stored(again), stored(number), stored(number_of(nisa.register_alloc(constant)))


def number_of(register: Any) -> Any:
    tile = sbuf(1, 1, dtype=nl.int32)
    nisa.register_store(tile, register)
    return tile


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(INTEGERS), st.integers(-(2**31), 2**31 - 1), st.booleans())
def test_registers_hold_32_bit_integers(data: Any, dtype: Any, constant: int, eager: bool) -> None:
    info = np.iinfo(dtype.numpy)
    value = data.draw(st.integers(int(info.min), int(info.max)))
    x = np.array([[value]], dtype.numpy)
    found = simulated(moved, eager)(x, constant)
    for result, expected in zip(found, (value, value, constant, constant), strict=True):
        assert int(result[0, 0]) == expected


def test_a_store_keeps_the_low_bits() -> None:
    def body(x: Any) -> Any:
        out = hbm(1, 1, dtype=nl.uint8)
        nisa.register_store(out, register_of(x))
        return out

    for value in (-1, 256, 300, 2**31 - 1):
        found = nki.jit(body)(np.array([[value]], np.int32))
        assert int(found[0, 0]) == value & 0xFF


def test_a_register_may_start_with_a_tensor_or_a_register() -> None:
    def body(x: Any) -> Any:
        tile = loaded(x)
        first = nisa.register_alloc(tile[0, 1])
        return stored(number_of(nisa.register_alloc(first)))

    assert nki.jit(body)(np.array([[5, 6]], np.int32))[0, 0] == 6


def test_a_register_as_operand() -> None:
    def body(x: Any, n: Any) -> Any:
        tile = loaded(x)
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=register_of(n))
        return stored(tile)

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(nki.jit(body)(x, np.array([[-3]], np.int32)), -3 * x)


# --- counted loops --------------------------------------------------------------------------


def counted(spelling: str) -> Callable[..., Any]:
    """For each i: note it at its place in a row, and add it up."""

    def body(bounds: Any, step: int, constant: bool, start: int, stop: int) -> Any:
        first = start if constant else register_of(bounds, 0)
        last = stop if constant else register_of(bounds, 1)
        total, row = zeros(1, 1, dtype=nl.int32), zeros(1, 16)
        count = zeros(1, 1)

        def work(i: Any) -> None:
            plus(row[:, nl.ds(i, 1)], 1.0)
            plus(count, 1.0)
            tile = sbuf(1, 1, dtype=nl.int32)
            nisa.register_store(tile, i)
            nisa.tensor_tensor(dst=total, data1=total, data2=tile, op=nl.add)

        if spelling == "fori_loop":
            nl.fori_loop(first, last, work, step)
        elif spelling == "one bound":
            for i in nl.dynamic_range(last):
                work(i)
        else:
            for i in nl.dynamic_range(first, last, step):
                work(i)
        return stored(row), stored(total), stored(count)

    return body


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["fori_loop", "dynamic_range", "one bound"]), st.integers(0, 15),
    st.integers(0, 16), st.integers(1, 5), st.booleans(), st.booleans(),
)  # fmt: skip
def test_counted_loops(
    spelling: str, start: int, stop: int, step: int, constant: bool, eager: bool
) -> None:
    bounds = np.array([[start], [stop]], np.int32)
    kernel = simulated(counted(spelling), eager)
    row, total, count = kernel(bounds, step, constant, start, stop)
    numbers = range(stop) if spelling == "one bound" else range(start, stop, step)
    expected = np.zeros((1, 16), np.float32)
    expected[0, list(numbers)] = 1
    np.testing.assert_array_equal(row, expected)
    assert (total[0, 0], count[0, 0]) == (sum(numbers), len(numbers))


@EAGER
def test_a_plan_follows_bounds_from_call_to_call(eager: bool) -> None:
    kernel = simulated(counted("dynamic_range"), eager)
    for start, stop in ((0, 3), (2, 2), (5, 1), (1, 9), (-3, 0)):
        bounds = np.array([[start], [stop]], np.int32)
        if start < 0:  # a negative address
            with pytest.raises(NkiValidationError, match="dynamic-out-of-bounds"):
                kernel(bounds, 2, False, 0, 0)
            continue
        row, total, _ = kernel(bounds, 2, False, 0, 0)
        assert total[0, 0] == sum(range(start, stop, 2))
        assert row.sum() == len(range(start, stop, 2))


def nested(limits: Any, outer: str, inner: str) -> Any:
    """total[i, j] = 10 i + j for j below limits[i]; the inner bound is loaded in the outer body."""
    total = hbm(4, 8, dtype=nl.int32)
    nisa.dma_copy(dst=total, src=zeros(4, 8, dtype=nl.int32))
    number = zeros(1, 1, dtype=nl.int32)

    def outer_body(i: Any) -> None:
        bound = nisa.register_alloc(None)
        nisa.register_load(bound, limits.ap([[1, 1], [1, 1]], 0, scalar_offset=i))
        row = sbuf(1, 8, dtype=nl.int32)
        nisa.memset(dst=row, value=0)
        tens, ones = sbuf(1, 1, dtype=nl.int32), sbuf(1, 1, dtype=nl.int32)
        nisa.register_store(tens, i)
        nisa.tensor_scalar(dst=tens, data=tens, op0=nl.multiply, operand0=10)

        def inner_body(j: Any) -> None:
            nisa.register_store(ones, j)
            nisa.tensor_tensor(dst=number, data1=tens, data2=ones, op=nl.add)
            nisa.tensor_copy(dst=row[:, nl.ds(j, 1)], src=number)

        loop_over(inner, 0, bound, inner_body)
        nisa.dma_copy(dst=total.select(0, i), src=row)

    loop_over(outer, 0, 4, outer_body)
    return total


def loop_over(spelling: str, start: Any, stop: Any, body: Callable[[Any], None]) -> None:
    if spelling == "fori":
        nl.fori_loop(start, stop, body)
    else:
        for i in nl.dynamic_range(start, stop):
            body(i)


@EAGER
@pytest.mark.parametrize(
    ("outer", "inner"), [("fori", "fori"), ("range", "range"), ("range", "fori")]
)
def test_nested_loops(outer: str, inner: str, eager: bool) -> None:
    for limits in ([3, 0, 8, 1], [0, 0, 0, 0]):
        expected = np.zeros((4, 8), np.int32)
        for i, limit in enumerate(limits):
            expected[i, :limit] = 10 * i + np.arange(limit)
        found = simulated(nested, eager)(np.array(limits, np.int32)[:, None], outer, inner)
        np.testing.assert_array_equal(found, expected)


# --- while ----------------------------------------------------------------------------------


def collatz(spelling: str) -> Callable[..., Any]:
    """Halve while positive: count the steps; a loop that data ends."""

    def body(x: Any) -> Any:
        number, steps = loaded(x), zeros(1, 1)
        half = sbuf(1, 1)

        def work() -> None:
            plus(steps, 1.0)
            nisa.tensor_scalar(dst=half, data=number, op0=nl.multiply, operand0=0.5)
            nisa.tensor_scalar(dst=half, data=half, op0=nl.subtract, operand0=0.25)
            nisa.tensor_copy(dst=number, src=half)  # rounds to the even neighbour: floor

        register = nisa.register_alloc()
        nisa.register_load(register, number)
        if spelling == "while":
            while register:
                work()
                nisa.register_load(register, number)
        elif spelling == "same register":

            def same(r: Any) -> Any:
                work()
                nisa.register_load(r, number)
                return r

            nl.while_loop(register, same)
        else:
            other = nisa.register_alloc(1)

            def next_one(r: Any) -> Any:
                work()
                nisa.register_load(other, number)
                return other

            nl.while_loop(register, next_one)
        return stored(steps), stored(number)

    return body


@EAGER
@pytest.mark.parametrize("spelling", ["while", "same register", "other register"])
def test_while_loops(spelling: str, eager: bool) -> None:
    kernel = simulated(collatz(spelling), eager)
    for value in (0, 1, 2, 7, 1000):
        steps, number = kernel(np.array([[value]], np.int32))
        assert (steps[0, 0], number[0, 0]) == (value.bit_length(), 0)


@EAGER
def test_two_whiles_on_one_register_and_one_inside_a_loop(eager: bool) -> None:
    def body(x: Any) -> Any:
        total, left = zeros(1, 1), sbuf(1, 1, dtype=nl.int32)
        register = nisa.register_alloc()
        for i in nl.dynamic_range(2):
            nisa.dma_copy(dst=left, src=x.select(0, i).reshape((1, 1)))
            nisa.register_load(register, left)
            while register:
                plus(total, 1.0)
                plus(left, -1)
                nisa.register_load(register, left)
        nisa.memset(dst=left, value=2)
        nisa.register_load(register, left)
        while register:
            plus(total, 100.0)
            plus(left, -1)
            nisa.register_load(register, left)
        return stored(total)

    assert simulated(body, eager)(np.array([[3], [4]], np.int32))[0, 0] == 207


@EAGER
def test_a_while_with_a_long_body_is_known_from_its_code(eager: bool) -> None:
    """The jump back needs more than one byte of argument; there is no source to look at."""
    lines = "\n".join("        plus(total, 1.0)" for _ in range(90))
    source = (
        "def body(x):\n    total, left = zeros(1, 1), loaded(x)\n"
        "    register = nisa.register_alloc(left)\n    while register:\n"
        f"{lines}\n        plus(left, -1)\n        nisa.register_load(register, left)\n"
        "    return stored(total)\n"
    )
    space = {"zeros": zeros, "loaded": loaded, "stored": stored, "plus": plus, "nisa": nisa}
    exec(source, space)
    body: Any = space["body"]
    kernel = nki.simulate(nki.jit(body), eager=eager)
    assert kernel(np.array([[2]], np.int32))[0, 0] == 180


# --- loops and memory -----------------------------------------------------------------------


@EAGER
def test_tiles_from_outside_keep_their_memory_while_a_loop_runs(eager: bool) -> None:
    """`kept` is read early in the body only; big tiles come after it, in every iteration."""

    def body(x: Any, n: Any) -> Any:
        kept, total = loaded(x), zeros(8, 16)
        for _ in nl.dynamic_range(register_of(n)):
            nisa.tensor_tensor(dst=total, data1=total, data2=kept, op=nl.add)
            for value in range(4):
                tile = sbuf(8, 16)
                nisa.memset(dst=tile, value=float(value))
                nisa.tensor_tensor(dst=total, data1=total, data2=tile, op=nl.add)
        return stored(total)

    x = np.random.default_rng(0).integers(0, 9, (8, 16)).astype(np.float32)
    kernel = simulated(body, eager)
    for trips in (0, 1, 5):
        found = kernel(x, np.array([[trips]], np.int32))
        np.testing.assert_array_equal(found, trips * (x + 6))


@EAGER
def test_values_are_carried_from_iteration_to_iteration(eager: bool) -> None:
    """Fibonacci by two tiles from outside, one of them read before it is written in the body."""

    def body(n: Any) -> Any:
        a, b = zeros(1, 1), zeros(1, 1)
        plus(b, 1.0)
        for _ in nl.dynamic_range(register_of(n)):
            following = sbuf(1, 1)
            nisa.tensor_tensor(dst=following, data1=a, data2=b, op=nl.add)
            nisa.tensor_copy(dst=a, src=b)
            nisa.tensor_copy(dst=b, src=following)
        return stored(a)

    kernel = simulated(body, eager)
    assert [kernel(np.array([[n]], np.int32))[0, 0] for n in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]


@EAGER
@pytest.mark.filterwarnings("ignore::simulator.errors.NkiLaxWarning")
def test_what_a_loop_may_not_write_is_nan_until_it_does(eager: bool) -> None:
    """Also from call to call: nothing of an earlier run shows."""

    def body(x: Any, n: Any) -> Any:
        out, tile, number = hbm(4, 3), sbuf(4, 3), sbuf(4, 1, dtype=nl.int32)
        for i in nl.dynamic_range(register_of(n)):
            nisa.dma_copy(dst=out.select(0, i), src=x.select(0, i))
            nisa.dma_copy(dst=tile, src=x)
            nisa.register_store(number[0, 0:1], i)
        return out, stored(tile), stored(number[0:1])

    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    kernel = simulated(body, eager)
    for trips in (4, 2, 0, 1):
        out, tile, number = kernel(x, np.array([[trips]], np.int32))
        np.testing.assert_array_equal(out[:trips], x[:trips])
        assert np.isnan(out[trips:]).all()
        if trips:
            np.testing.assert_array_equal(tile, x)
        else:
            assert np.isnan(tile).all()
        assert number[0, 0] == (trips - 1 if trips else 4)


def test_capacity_of_a_loop_body() -> None:
    """A tile from outside that the body touches lives through all of it."""

    def body(x: Any, fits: bool) -> Any:
        outside = sbuf(128, 25_000)  # 100,000 of 212,984 bytes
        nisa.memset(dst=outside, value=0.0)
        out = hbm(128, 4)
        for _ in nl.dynamic_range(2):
            if fits:
                nisa.dma_copy(dst=out, src=x[0:128, 0:4])
            else:
                nisa.dma_copy(dst=out, src=outside[:, 0:4])
            inside = sbuf(128, 30_000)
            nisa.memset(dst=inside, value=0.0)
            nisa.dma_copy(dst=out, src=inside[:, 0:4])
        if fits:
            nisa.dma_copy(dst=out, src=x[0:128, 0:4])
        return out

    spec = TensorSpec((128, 4), nl.float32)
    nki.jit(body).specialise(spec, True)
    assert [v.rule for v in violations(body, x=spec, fits=False)] == ["sbuf-capacity"]


# --- versions -------------------------------------------------------------------------------


def test_versions_of_the_spellings() -> None:
    counts = TensorSpec((2, 1), nl.int32)

    def versions(body: Callable[..., Any], *rest: Any) -> tuple[str, ...]:
        return nki.jit(body).specialise(counts, *rest).versions

    constants = (1, True, 0, 2)
    assert versions(counted("fori_loop"), *constants)[0] == "0.6"
    spec = TensorSpec((1, 1), nl.int32)
    assert nki.jit(collatz("while")).specialise(spec).versions[-1] == "0.6"
    assert nki.jit(collatz("same register")).specialise(spec).versions == ("0.6", "0.7")
    assert nki.jit(nested).specialise(TensorSpec((4, 1), nl.int32), "range", "range").versions == (
        "0.6",
    )


# --- refusals -------------------------------------------------------------------------------


def breaking(x: Any) -> Any:
    for _ in nl.dynamic_range(3):
        break
    return stored(loaded(x))


def returning(x: Any) -> Any:
    out = stored(loaded(x))
    for _ in nl.dynamic_range(3):
        return out
    return out


def breaking_while(x: Any) -> Any:
    out = stored(loaded(x))
    register = nisa.register_alloc(1)
    while register:
        nisa.register_move(register, 0)
        if x.shape[0] == 64:
            break
    return out


def breaking_then_again(x: Any) -> Any:
    out = stored(loaded(x))
    register = nisa.register_alloc(1)
    while register:
        if x.shape[0] == 64:
            break
        nisa.register_move(register, 0)
    while register:
        nisa.register_move(register, 0)
    return out


def in_no_reorder(x: Any) -> Any:
    with nl.no_reorder():
        for _ in nl.dynamic_range(3):
            pass
    return stored(loaded(x))


def fori_in_no_reorder(x: Any) -> Any:
    with nl.no_reorder():
        nl.fori_loop(0, 3, lambda i: None)
    return stored(loaded(x))


def writes_the_variable(x: Any) -> Any:
    out = stored(loaded(x))
    for i in nl.dynamic_range(3):
        nisa.register_move(i, 0)
    return out


def loads_the_variable(x: Any) -> Any:
    out = stored(loaded(x))
    number = zeros(1, 1, dtype=nl.int32)
    nl.fori_loop(0, 3, lambda i: nisa.register_load(i, number) and None)
    return out


def tile_outside(x: Any) -> Any:
    tile = loaded(x)
    for _ in nl.dynamic_range(3):
        tile = loaded(x)
    return stored(tile)


def variable_outside(x: Any) -> Any:
    out, number = stored(loaded(x)), sbuf(1, 1, dtype=nl.int32)
    i = None
    for i in nl.dynamic_range(3):  # noqa: B007
        pass
    nisa.register_store(number, i)
    return out


def result_inside(x: Any) -> Any:
    out = None
    for _ in nl.dynamic_range(3):
        out = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=x)
    return out


def sibling_loop(x: Any) -> Any:
    out, tile = hbm(64, 32), None
    for _ in nl.dynamic_range(3):
        tile = loaded(x)
    for _ in nl.dynamic_range(3):
        nisa.dma_copy(dst=out, src=tile)
    return out


def step_zero(x: Any) -> Any:
    for _ in nl.dynamic_range(0, 3, 0):
        pass
    return stored(loaded(x))


def step_register(x: Any) -> Any:
    for _ in nl.dynamic_range(0, 3, nisa.register_alloc(1)):
        pass
    return stored(loaded(x))


def bound_tile(x: Any) -> Any:
    nl.fori_loop(0, zeros(1, 1, dtype=nl.int32), lambda i: None)
    return stored(loaded(x))


def body_returns(x: Any) -> Any:
    nl.fori_loop(0, 3, lambda i: i)
    return stored(loaded(x))


def while_returns_nothing(x: Any) -> Any:
    nl.while_loop(nisa.register_alloc(0), lambda r: None)
    return stored(loaded(x))


def while_of_an_int(x: Any) -> Any:
    nl.while_loop(3, lambda r: r)
    return stored(loaded(x))


def truth(x: Any) -> Any:
    register = nisa.register_alloc(1)
    if register:
        return stored(loaded(x))
    return x


def while_not(x: Any) -> Any:
    register = nisa.register_alloc(0)
    out = stored(loaded(x))
    while not register:
        nisa.register_move(register, 1)
    return out


def while_and(x: Any) -> Any:
    register, other = nisa.register_alloc(0), nisa.register_alloc(0)
    out = stored(loaded(x))
    while register and other:
        nisa.register_move(register, 0)
    return out


def as_integer(x: Any) -> Any:
    return x[0 : int(nisa.register_alloc(3)), :]


def in_range(x: Any) -> Any:
    for _ in range(nisa.register_alloc(3)):
        pass
    return stored(loaded(x))


def compared(x: Any) -> Any:
    return x if nisa.register_alloc(3) == 3 else stored(loaded(x))


def never_set(x: Any) -> Any:
    number = sbuf(1, 1, dtype=nl.int32)
    nisa.register_store(number, nisa.register_alloc())
    return stored(number)


def never_set_bound(x: Any) -> Any:
    out = stored(loaded(x))
    for _ in nl.dynamic_range(nisa.register_alloc(None)):
        pass
    return out


def never_set_address(x: Any) -> Any:
    out = hbm(1, 32)
    nisa.dma_copy(dst=out, src=x[nl.ds(nisa.register_alloc(), 1)])
    return out


def from_a_float(x: Any) -> Any:
    nisa.register_load(nisa.register_alloc(), loaded(x)[0:1, 0:1])
    return stored(loaded(x))


def from_many(x: Any) -> Any:
    nisa.register_load(nisa.register_alloc(), zeros(1, 2, dtype=nl.int32))
    return stored(loaded(x))


def from_psum(x: Any) -> Any:
    bank = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.psum)
    nisa.tensor_copy(dst=bank, src=zeros(1, 1, dtype=nl.int32))
    nisa.register_load(nisa.register_alloc(), bank)
    return stored(loaded(x))


def moved_float(x: Any) -> Any:
    nisa.register_move(nisa.register_alloc(), 1.5)
    return stored(loaded(x))


def moved_into_tile(x: Any) -> Any:
    nisa.register_move(loaded(x), 1)
    return stored(loaded(x))


def alloc_float(x: Any) -> Any:
    nisa.register_alloc(1.5)
    return stored(loaded(x))


def too_many(x: Any) -> Any:
    registers = [nisa.register_alloc(n) for n in range(65)]
    number = sbuf(1, 1, dtype=nl.int32)
    for register in registers:
        nisa.register_store(number, register)
    return stored(number)


def too_many_round_a_loop(x: Any) -> Any:
    """Each is read once in the body, but again in the next iteration."""
    registers = [nisa.register_alloc(n) for n in range(64)]
    number = sbuf(1, 1, dtype=nl.int32)
    for _ in nl.dynamic_range(2):
        for register in registers:
            nisa.register_store(number, register)
    return stored(number)


def read_before_the_loop_writes(x: Any) -> Any:
    tile, out = sbuf(64, 32), hbm(64, 32)
    for _ in nl.dynamic_range(3):
        nisa.dma_copy(dst=out, src=tile)
        nisa.dma_copy(dst=tile, src=x)
    return out


def depends_across_loops(x: Any) -> Any:
    out = stored(loaded(x))
    tile = zeros(1, 1)
    before = nisa.memset(dst=tile, value=0.0)
    for _ in nl.dynamic_range(3):
        nisa.memset(dst=tile, value=1.0).depends_on(before)
    return out


def depends_on_a_tile(x: Any) -> Any:
    tile = zeros(1, 1)
    nisa.memset(dst=tile, value=0.0).depends_on(tile)
    return stored(loaded(x))


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    breaking: ("loop-break", "", ""),
    returning: ("loop-break", "", ""),
    breaking_while: ("loop-break", "", ""),
    breaking_then_again: ("loop-break", "", ""),
    in_no_reorder: ("loop-in-no-reorder", "", ""),
    fori_in_no_reorder: ("loop-in-no-reorder", "", ""),
    writes_the_variable: ("register-frozen", "read only", "r0"),
    loads_the_variable: ("register-frozen", "read only", "r0"),
    tile_outside: ("loop-scope", "inside the loop", "outside"),
    variable_outside: ("loop-scope", "inside the loop", "outside"),
    result_inside: ("loop-scope", "inside the loop", "outside"),
    sibling_loop: ("loop-scope", "inside the loop", "outside"),
    step_zero: ("loop-bound", ">= 1", "0"),
    step_register: ("loop-bound", "int", "r0"),
    bound_tile: ("loop-bound", "int or register", ""),
    body_returns: ("loop-body", "None", "VirtualRegister"),
    while_returns_nothing: ("loop-body", "register", "NoneType"),
    while_of_an_int: ("loop-body", "register", "int"),
    truth: ("register-value", "", ""),
    while_not: ("register-value", "", ""),
    while_and: ("register-value", "", ""),
    as_integer: ("register-value", "", ""),
    in_range: ("register-value", "", ""),
    compared: ("register-value", "", ""),
    never_set: ("uninitialised-read", "a value", "none"),
    never_set_bound: ("uninitialised-read", "a value", "none"),
    never_set_address: ("uninitialised-read", "a value", "none"),
    from_a_float: ("dtype", "", "float32"),
    from_many: ("operand", "a tensor of one element", ""),
    from_psum: ("buffer", "private_hbm, sbuf, shared_hbm", "psum"),
    moved_float: ("operand", "a register", "1.5"),
    moved_into_tile: ("operand", "a register", ""),
    alloc_float: ("operand", "int", "1.5"),
    too_many: ("register-limit", "64", "65"),
    too_many_round_a_loop: ("register-limit", "64", "65"),
    depends_across_loops: ("depends-on", "the same loop body", ""),
    depends_on_a_tile: ("depends-on", "NkiInstruction", "NkiTensor"),
    read_before_the_loop_writes: ("uninitialised-read", "0 unwritten elements", "2048"),
}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])


@pytest.mark.parametrize(
    "body",
    [breaking, returning, breaking_while, in_no_reorder, writes_the_variable, tile_outside,
     variable_outside, sibling_loop, step_zero, body_returns, truth, while_not, never_set,
     from_a_float],
    ids=lambda body: body.__name__,
)  # fmt: skip
def test_a_rule_fires_in_eager_mode_too(body: Callable[..., Any]) -> None:
    rule = RULES[body][0]
    with pytest.raises(NkiValidationError) as caught:
        nki.simulate(body, eager=True)(np.ones(X.shape, np.float32))
    assert rule in {violation.rule for violation in caught.value.violations}


def test_registers_have_no_arithmetic() -> None:
    def body(x: Any) -> Any:
        register = nisa.register_alloc(3)
        for operation in (
            lambda: register + 1, lambda: 1 - register, lambda: register * register,
            lambda: register < 3, lambda: register % 2,
        ):  # fmt: skip
            with pytest.raises(TypeError, match="unsupported operand"):
                operation()
        assert register == register
        assert register != nisa.register_alloc(3)
        assert register != None  # noqa: E711
        return stored(loaded(x))

    nki.jit(body).specialise(X)


def test_many_registers_one_after_the_other_pass() -> None:
    def body(x: Any) -> Any:
        number = sbuf(1, 1, dtype=nl.int32)
        for n in range(200):
            nisa.register_store(number, nisa.register_alloc(n))
        return stored(number)

    assert nki.jit(body)(np.ones((1, 1), np.float32))[0, 0] == 199


def test_edges_inside_a_loop_body_pass() -> None:
    def body(x: Any) -> Any:
        tile = loaded(x)
        for _ in nl.dynamic_range(2):
            first = nisa.tensor_copy(dst=tile[:, 0:1], src=tile[:, 1:2])
            second = nisa.tensor_copy(dst=tile[:, 1:2], src=tile[:, 0:1])
            second.depends_on(first)
        return stored(tile)

    program = nki.jit(body).specialise(X)
    assert program.versions[0] == "0.6"
    assert sum(len(instruction.after) for instruction in program.instructions) == 1


def test_plain_loops_inside_no_reorder_pass() -> None:
    def body(x: Any) -> Any:
        tile = loaded(x)
        for _ in nl.dynamic_range(2):
            with nl.no_reorder():
                for _ in nl.affine_range(3):
                    plus(tile, 1.0)
        return stored(tile)

    x = np.zeros((2, 2), np.float32)
    np.testing.assert_array_equal(nki.jit(body)(x), x + 6)


# --- a wrong implementation is noticed ------------------------------------------------------


def test_a_loop_that_runs_once_is_noticed(monkeypatch: Any) -> None:
    from simulator.execute import Plan

    original = Plan._bounds

    def once(self: Plan, begin: Any) -> Any:
        bounds = original(self, begin)
        return lambda views: bounds(views)[:1]

    monkeypatch.setattr(Plan, "_bounds", once)
    with pytest.raises(AssertionError):
        test_nested_loops("range", "range", False)


COVERED = {
    "register_move": test_registers_hold_32_bit_integers,
    "register_load": test_registers_hold_32_bit_integers,
    "register_store": test_registers_hold_32_bit_integers,
    "loop": test_counted_loops,
    "end_loop": test_counted_loops,
    "while_begin": test_while_loops,
    "end_while": test_while_loops,
}
