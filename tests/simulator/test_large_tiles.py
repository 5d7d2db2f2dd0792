"""Instructions that are replayed another way on large tiles give the same bits as on small ones."""

from __future__ import annotations

from typing import Any

import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from tile_bench import FLOATS, NUMPY, Array, run, same_bits, small_integers

from simulator import numerics
from simulator.instructions.elementwise import _MANY

ROWS, COLUMNS = 128, 40
F32 = np.float32


def special(rows: int) -> Array:
    """A column with what a product by 0 or 1 must not lose: signs, infinity, NaN."""
    values = np.linspace(-3, 3, rows, dtype=F32)[:, None]
    values[:5, 0] = [np.inf, -np.inf, np.nan, -0.0, 0.0]
    return values


@pytest.mark.parametrize("dtype", [*FLOATS, nl.int32], ids=str)
@pytest.mark.parametrize("reverse1", [False, True], ids=["", "reversed"])
@pytest.mark.parametrize("op1", ["multiply", "subtract", "maximum"])
def test_a_comparison_then_an_operator_on_a_column(dtype: Any, reverse1: bool, op1: str) -> None:
    x = small_integers((ROWS, COLUMNS), nl.float32, 1)
    x[:, 7] = np.nan
    y = small_integers((ROWS, 1), nl.float32, 2)
    z = special(ROWS)
    assert x.size >= _MANY

    def body(x: Any, y: Any, z: Any, out: Any) -> None:
        nisa.tensor_scalar(
            dst=out, data=x, op0=nl.equal, operand0=y, op1=getattr(nl, op1), operand1=z,
            reverse1=reverse1,
        )  # fmt: skip

    held = (x == y).astype(F32)
    a, b = (z, held) if reverse1 else (held, z)
    with np.errstate(invalid="ignore"):
        exact = getattr(np, op1)(a, b)
        if dtype is nl.int32:
            whole = np.clip(np.nan_to_num(np.rint(np.float64(exact))), -(2.0**31), 2.0**31 - 1)
            expected = np.broadcast_to(whole, x.shape).astype(np.int64).astype(np.int32)
        else:
            expected = np.broadcast_to(exact, x.shape).astype(NUMPY[dtype])
    (found,) = run(body, [x, y, z], [((ROWS, COLUMNS), dtype)])
    same_bits(found, expected)
    assert len(np.unique(found[10])) == 2 or op1 == "maximum"


def test_in_place_with_a_number_and_reversed_operands() -> None:
    x = small_integers((ROWS, COLUMNS), nl.float32, 3)

    def body(x: Any, out: Any) -> None:
        nisa.tensor_copy(dst=out, src=x)
        nisa.tensor_scalar(
            dst=out, data=out, op0=nl.greater, operand0=2.0, reverse0=True, op1=nl.multiply,
            operand1=-3.0,
        )  # fmt: skip

    (found,) = run(body, [x], [((ROWS, COLUMNS), nl.float32)])
    same_bits(found, (x < 2).astype(F32) * F32(-3))


def test_the_column_may_be_a_part_of_what_is_written() -> None:
    x = small_integers((ROWS, COLUMNS), nl.float32, 4)
    x[:, 0] = np.arange(ROWS)

    def body(x: Any, out: Any) -> None:
        nisa.tensor_copy(dst=out, src=x)
        nisa.tensor_scalar(
            dst=out, data=out, op0=nl.not_equal, operand0=1.0, op1=nl.add, operand1=out[:, 0:1]
        )

    (found,) = run(body, [x], [((ROWS, COLUMNS), nl.float32)])
    same_bits(found, (x != 1).astype(F32) + x[:, 0:1])


def test_every_float16_is_read_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(128, 512)
    values = bits.view(np.float16)
    expected = values.astype(F32)
    assert numerics.as_float32(values).tobytes() == expected.tobytes()
    assert numerics.as_float32(values[:, ::3]).tobytes() == expected[:, ::3].tobytes()
    out = np.empty((128, 171), F32)
    numerics.copy_float32(out, values[:, 1::3])
    assert out.tobytes() == expected[:, 1::3][:, :171].tobytes()


@pytest.mark.parametrize("alike", [True, False], ids=["one list", "a list for each core"])
def test_cores_with_the_same_list_gather_at_once(alike: bool) -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=(ROWS, 60)).astype(F32)
    lists = random.integers(0, 59, (16, 3)).astype(np.uint16)
    index = np.tile(lists, (8, 1)) if alike else random.integers(0, 59, (ROWS, 3)).astype(np.uint16)

    def body(x: Any, index: Any, out: Any) -> None:
        nisa.local_gather(dst=out, src_buffer=x, index=index, num_elem_per_idx=2)

    expected = np.empty((ROWS, 96), F32)
    for row in range(ROWS):
        first = row // 16 * 16
        for k in range(48):
            start = index[first + k % 16, k // 16]
            expected[row, 2 * k : 2 * k + 2] = x[row, start : start + 2]
    (found,) = run(body, [x, index], [((ROWS, 96), nl.float32)])
    same_bits(found, expected)
