"""What public kernels do that few kernels of ours do: each runs, and gives the right values."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from enum import Enum
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from rule_bench import X, loaded, sbuf, stored

from simulator.errors import NkiLaxWarning, NkiValidationError

FIRES = ("object-field",)
DATA = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)


def lax(body: Callable[..., Any], rule: str) -> Any:
    """What a call gives, which warns; a check refuses the same with `rule`."""
    with pytest.raises(NkiValidationError) as caught:
        nki.jit(body).specialise(X)
    assert {violation.rule for violation in caught.value.violations} == {rule}
    with pytest.warns(NkiLaxWarning, match=rule):
        return nki.simulate(body)(DATA)


# --- objects ------------------------------------------------------------------------------------


def test_copies_of_what_is_one_object() -> None:
    for value in (nl.bfloat16, nl.float8_e4m3fn_x4, nl.add, nisa.engine.vector):
        assert copy.deepcopy([value])[0] is copy.copy(value) is value
    assert pickle.loads(pickle.dumps(nl.bfloat16)) is nl.bfloat16

    def kernel(x: Any) -> Any:
        held = {"tile": loaded(x), "op": nl.add}
        again = copy.deepcopy(held)
        nisa.tensor_scalar(dst=again["tile"], data=held["tile"], op0=again["op"], operand0=1.0)
        return stored(held["tile"])

    np.testing.assert_array_equal(nki.simulate(kernel)(DATA), DATA + 1)


@dataclass
class Sizes(nl.NKIObject):  # type: ignore[misc]
    rows: int
    columns: int
    steps: list[int] = field(default_factory=list)
    known: int = field(default=7, init=False)
    scale: float = field(default=2.0, kw_only=True)


@dataclass
class Section(nl.NKIObject):  # type: ignore[misc]
    number = None
    start = 3


@dataclass(frozen=True)
class Derived(nl.NKIObject):  # type: ignore[misc]
    rows: int
    factor: InitVar[int] = 2
    total: int = field(default=0, init=False)

    def __post_init__(self, factor: int) -> None:
        object.__setattr__(self, "total", self.rows * factor)


class Own(nl.NKIObject):  # type: ignore[misc]
    rows: int

    def __init__(self, rows: int) -> None:
        self.rows = rows + 1


class Inherited(Own):
    depth: int = 2


class Mode(nl.NKIObject, Enum):  # type: ignore[misc]
    fast = 0
    slow = 1


def test_dataclasses_are_made_as_in_python() -> None:
    one, other = Sizes(1, 2), Sizes(columns=2, rows=1, scale=3.0)
    assert (one.steps, one.known, one.scale, other.scale) == ([], 7, 2.0, 3.0)
    assert one.steps is not other.steps
    assert one == Sizes(1, 2) != other
    assert repr(Section()) == "Section()"
    assert (Derived(3).total, Derived(3, 5).total) == (6, 15)
    assert (Own(1).rows, Inherited(1).rows) == (2, 2)
    assert Mode(1) is Mode.slow
    bad: list[tuple[Any, Any]] = [((1, 2, [], 4), {}), ((1,), {"rows": 1}), ((1,), {"depth": 1})]
    for arguments, names in bad:
        with pytest.raises(TypeError):
            Sizes(*arguments, **names)


def with_an_argument_missing(x: Any) -> Any:
    sizes = Sizes(rows=64)
    assert sizes.columns is None
    return stored(loaded(x)[: sizes.rows])


def with_an_attribute_without_annotation(x: Any) -> Any:
    section: Any = Section(number=1)
    assert (section.number, section.start) == (1, 3)
    return stored(loaded(x))


@pytest.mark.parametrize("body", [with_an_argument_missing, with_an_attribute_without_annotation])
def test_dataclasses_as_older_compilers_make_them(body: Callable[..., Any]) -> None:
    np.testing.assert_array_equal(lax(body, "object-field"), DATA)


def test_a_tensor_is_true() -> None:
    def kernel(x: Any) -> Any:
        tile = loaded(x)
        if x and not None:
            nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
        return stored(tile)

    np.testing.assert_array_equal(lax(kernel, "tensor-value"), DATA * 2)
    assert nl.float32


# --- views --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_core_without_work_slices_nothing(rows: int) -> None:
    """Three rows on two cores: one, and two; one row: none, and one."""

    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        core = nl.program_id(0)
        each = x.shape[0] // nl.num_programs(0)
        count = each if core + 1 < nl.num_programs(0) else x.shape[0] - core * each
        mine, theirs = x[nl.ds(core * each, count)], out[core * each : core * each + count]
        assert mine.shape == (count, 32)
        for row in range(count):
            tile = sbuf(1, 32)
            nisa.dma_copy(dst=tile, src=mine[row : row + 1])
            nisa.dma_copy(dst=theirs[row : row + 1], src=tile)
        return out

    data = DATA[:rows]
    for cores in (1, 2):
        np.testing.assert_array_equal(nki.jit(kernel)[cores](data), data)


def test_no_instruction_takes_a_view_without_elements() -> None:
    def whole(x: Any) -> Any:
        tile = loaded(x)
        nisa.tensor_copy(dst=tile[:, 4:4], src=tile[:, 8:8])
        return stored(tile)

    def part(x: Any) -> Any:
        tile = loaded(x)
        nisa.tensor_copy(dst=tile[:, 4:4][0:32], src=tile[0:32, 8:8])
        return stored(tile)

    for body in (whole, part):
        with pytest.raises(NkiValidationError, match=r"index range \[4, 3\]"):
            nki.simulate(body)(DATA)


def test_a_pattern_that_leaves_its_partition_is_wrong_only_where_it_is_used() -> None:
    """As in a loop whose last round is a partial one."""

    def kernel(x: Any, used: int) -> Any:
        tile, out = loaded(x), sbuf(64, 48)
        nisa.memset(dst=out, value=0.0)
        for column in range(0, 32, 8):
            part = tile.ap([[32, 64], [1, 12]], offset=column)
            if column < used:
                nisa.tensor_copy(dst=out[:, column : column + 12], src=part)
        return stored(out[:, :28])

    np.testing.assert_array_equal(nki.simulate(kernel)(DATA, 24), DATA[:, :28])
    with pytest.raises(NkiValidationError, match="Out-of-bound access pattern"):
        nki.simulate(kernel)(DATA, 32)


def test_a_transpose_by_descriptors_written_beforehand() -> None:
    def kernel(x: Any) -> Any:
        tile = sbuf(32, 64)
        nisa.dma_transpose(dst=tile, src=x, dge_mode=nisa.dge_mode.none)
        return stored(tile)

    nki.jit(kernel).specialise(X)
    np.testing.assert_array_equal(nki.simulate(kernel)(DATA), DATA.T)


def test_a_pattern_may_take_a_slice_for_a_tensor() -> None:
    """Partition step and offset as if the slice were all there is."""

    def kernel(x: Any) -> Any:
        tile = loaded(x)
        column = tile[32:64, 5:6]
        pair = tile[0:32, 8:10]
        repeated = sbuf(32, 4)
        nisa.tensor_copy(dst=repeated, src=column.ap([[1, 32], [0, 4]], offset=0))
        swapped = sbuf(32, 2)
        nisa.tensor_copy(dst=swapped[:, 0:1], src=pair.ap([[2, 32], [1, 1]], offset=1))
        nisa.tensor_copy(dst=swapped[:, 1:2], src=pair.ap([[2, 32], [1, 1]]))
        return stored(repeated), stored(swapped)

    repeated, swapped = lax(kernel, "access-pattern")
    np.testing.assert_array_equal(repeated, np.repeat(DATA[32:64, 5:6], 4, axis=1))
    np.testing.assert_array_equal(swapped, DATA[0:32, [9, 8]])


@pytest.mark.parametrize("dtype", [nl.float32, nl.bfloat16])
@pytest.mark.parametrize("eager", [False, True])
def test_results_that_nobody_needs_go_to_one_column(dtype: Any, eager: bool) -> None:
    """A destination that repeats one element does not disturb the sum."""

    def kernel(x: Any) -> Any:
        tile, sums = loaded(x), sbuf(64, 4)
        dropped = sbuf(64, 1, dtype=dtype)
        nothing = dropped.ap([[1, 64], [0, 32]])
        rest: dict[str, Any] = {"op": nl.square, "data": tile, "reduce_op": nl.add}
        nisa.activation_reduce(dst=nothing, reduce_res=sums[:, 0:1], **rest)
        nisa.activation_reduce(dst=tile.ap([[32, 64], [0, 32]]), reduce_res=sums[:, 1:2], **rest)
        nisa.tensor_scalar_reduce(
            dst=nothing, data=tile, op0=nl.add, operand0=1.0, reduce_op=nl.add,
            reduce_res=sums[:, 2:3],
        )  # fmt: skip
        nisa.tensor_tensor_scan(
            dst=nothing, data0=tile, data1=tile, initial=0.0, op0=nl.add, op1=nl.maximum
        )
        nisa.tensor_copy(dst=sums[:, 3:4], src=dropped)
        return stored(sums)

    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    sums = nki.simulate(kernel, eager=eager)(x)
    squares = (x**2).sum(1)
    after = x.copy()
    after[:, 0] = x[:, 31] ** 2
    scan = np.zeros(64, np.float32)
    for column in after.T:
        scan = np.maximum(scan + column, column)
    last = scan.astype(nl.bfloat16.numpy).astype(np.float32) if dtype is nl.bfloat16 else scan
    for found, wanted in zip(sums.T, (squares, squares, after.sum(1) + 32, last), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


# --- two cores ----------------------------------------------------------------------------------


def both_write_and_read(x: Any) -> Any:
    scratch = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=scratch, src=loaded(x))
    return stored(loaded(scratch))


def both_copy_onto_itself(x: Any) -> Any:
    out = stored(loaded(x))
    nisa.dma_copy(dst=out, src=out)
    return out


@pytest.mark.parametrize("body", [both_write_and_read, both_copy_onto_itself])
def test_cores_that_do_the_same_are_no_race(body: Callable[..., Any]) -> None:
    with pytest.raises(NkiValidationError, match="lnc-race"):
        nki.jit(body)[2].specialise(X)
    with pytest.warns(NkiLaxWarning, match="lnc-race"):
        np.testing.assert_array_equal(nki.jit(body)[2](DATA), DATA)


def test_a_core_that_wrote_only_a_part_races() -> None:
    def kernel(x: Any) -> Any:
        scratch = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        tile = loaded(x)
        core = nl.program_id(0)
        nisa.dma_copy(dst=scratch[core * 32 : core * 32 + 32], src=tile[0:32])
        return stored(loaded(scratch))

    with pytest.raises(NkiValidationError, match="lnc-race"):
        nki.jit(kernel)[2](DATA)
