"""Views: every method of a tensor against NumPy on the same memory, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bench import X, loaded, sbuf, stored, violations

from simulator.errors import NkiValidationError
from simulator.patterns import with_scalar
from simulator.specialise import TensorSpec
from simulator.targets import TARGETS
from simulator.tensor import OutsideTensor

Array = np.ndarray[Any, Any]
Step = Callable[[Any], Any]
"""Applied to a tensor of the kernel."""


def hbm(*shape: int, dtype: Any = nl.float32) -> Any:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.shared_hbm)


def read_through(step: Step, x: Array, on_chip: bool) -> Array:
    """What a kernel reads through a view of x."""

    def body(x: Any) -> Any:
        base = loaded(x) if on_chip else x
        view = step(base)
        out = nl.ndarray(view.shape, dtype=view.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=view)
        return out

    return nki.jit(body)(x)  # type: ignore[no-any-return]


def written_through(step: Step, x: Array, values: Array, on_chip: bool) -> Array:
    """x after a kernel wrote values through a view of it."""

    def body(x: Any, values: Any) -> Any:
        base = loaded(x) if on_chip else stored(loaded(x))
        nisa.dma_copy(dst=step(base), src=values)
        return stored(base) if on_chip else base

    return nki.jit(body)(x, values)  # type: ignore[no-any-return]


def chip_shape(array: Array, on_chip: bool) -> Array:
    """NumPy's result as NKI has it: rank at least 2 on chip, 1 in HBM."""
    while array.ndim < (2 if on_chip else 1):
        array = array[..., None]
    return array


def same_without_copy(array: Array, shape: tuple[int, ...]) -> Array | None:
    """array under another shape, None if NumPy would have to copy."""
    view = array.view()
    try:
        view.shape = shape
    except AttributeError:
        return None
    return view


# --- chains of views ------------------------------------------------------------------------


def draw_slice(draw: Any, size: int) -> slice:
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size))
    step = draw(st.sampled_from([1, 1, 2, 3]))
    if draw(st.booleans()):  # count from the end
        start -= size
    return slice(start if draw(st.booleans()) or start else None, stop, step)


def picked(array: Array, key: tuple[Any, ...]) -> Array:
    """array[key] as a view even if it is a single element; `...` may only come last."""
    dropped = [axis for axis, item in enumerate(key) if isinstance(item, int)]
    ranges = [
        slice(i % array.shape[axis], i % array.shape[axis] + 1) if isinstance(i, int) else i
        for axis, i in enumerate(key)
    ]
    return np.squeeze(array[tuple(ranges)], tuple(dropped))


def factors(draw: Any, size: int) -> tuple[int, int]:
    first = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    return first, size // first


def draw_step(draw: Any, array: Array, least: int) -> tuple[Step, Array | None] | None:
    """A view method with random arguments, and NumPy's equal (None: it must be refused)."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    return KINDS[kind](draw, array, least)  # type: ignore[no-any-return]


def _index(draw: Any, array: Array, least: int) -> Any:
    """Integers, slices and `...`; an integer on the partitions keeps them."""
    key: list[Any] = []
    for size in array.shape:
        if draw(st.booleans()):
            key.append(draw_slice(draw, size))
        else:
            number = draw(st.integers(-size, size - 1))
            key.append(number)
    same = list(key)
    if least and isinstance(key[0], int):
        same[0] = slice(key[0] % array.shape[0], key[0] % array.shape[0] + 1)
    kept = draw(st.integers(1, len(key)))
    if draw(st.booleans()):  # trailing dimensions left out
        return (lambda t: t[tuple(key[:kept])]), picked(array, tuple(same[:kept]))
    if kept < len(key):
        key[kept:], same[kept:] = [Ellipsis], [Ellipsis]
    return (lambda t: t[tuple(key)]), picked(array, tuple(same))


def _ds(draw: Any, array: Array, least: int) -> Any:
    start = draw(st.integers(0, array.shape[0] - 1))
    size = draw(st.integers(1, array.shape[0] - start))
    return (lambda t: t[nl.ds(start, size)]), array[start : start + size]


def _slice(draw: Any, array: Array, least: int) -> Any:
    axis = draw(st.integers(0, array.ndim - 1))
    start = draw(st.integers(0, array.shape[axis] - 1))
    end = draw(st.integers(start + 1, array.shape[axis]))
    step = draw(st.integers(1, 3))
    key = (slice(None),) * axis + (slice(start, end, step),)
    return (lambda t: t.slice(axis, start, end, step)), array[key]


def _select(draw: Any, array: Array, least: int) -> Any:
    axis = draw(st.integers(least, array.ndim - 1))
    at = draw(st.integers(0, array.shape[axis] - 1))
    return (lambda t: t.select(axis, at)), picked(array, (slice(None),) * axis + (at,))


def _permute(draw: Any, array: Array, least: int) -> Any:
    order = [*range(least), *draw(st.permutations(range(least, array.ndim)))]
    return (lambda t: t.permute(tuple(order))), array.transpose(order)


def _expand(draw: Any, array: Array, least: int) -> Any:
    axis = draw(st.integers(least, array.ndim))
    given_axis = axis - array.ndim - 1 if draw(st.booleans()) else axis
    return (lambda t: t.expand_dim(given_axis)), np.expand_dims(array, axis)


def _squeeze(draw: Any, array: Array, least: int) -> Any:
    ones = [axis for axis in range(least, array.ndim) if array.shape[axis] == 1]
    if not ones or array.ndim <= 1 + least:
        return None
    axis = draw(st.sampled_from(ones))
    return (lambda t: t.squeeze_dim(axis)), np.squeeze(array, axis)


def _broadcast(draw: Any, array: Array, least: int) -> Any:
    ones = [axis for axis in range(least, array.ndim) if array.shape[axis] == 1]
    if not ones:
        return None
    axis, size = draw(st.sampled_from(ones)), draw(st.integers(1, 3))
    shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
    return (lambda t: t.broadcast(axis, size)), np.broadcast_to(array, shape)


def _reshape_dim(draw: Any, array: Array, least: int) -> Any:
    axis = draw(st.integers(least, array.ndim - 1))
    sizes = factors(draw, array.shape[axis])
    shape = (*array.shape[:axis], *sizes, *array.shape[axis + 1 :])
    asked = draw(st.sampled_from([sizes, (-1, sizes[1]), (sizes[0], -1)]))
    return (lambda t: t.reshape_dim(axis, asked)), same_without_copy(array, shape)


def _flatten_dims(draw: Any, array: Array, least: int) -> Any:
    first = draw(st.integers(least, array.ndim - 1))
    last = draw(st.integers(first, array.ndim - 1))
    shape = (
        *array.shape[:first],
        math.prod(array.shape[first : last + 1]),
        *array.shape[last + 1 :],
    )
    return (lambda t: t.flatten_dims(first, last)), same_without_copy(array, shape)


def _reshape(draw: Any, array: Array, least: int) -> Any:
    fixed = array.shape[:least]
    left = math.prod(array.shape[least:])
    sizes: list[int] = []
    for _ in range(draw(st.integers(0, 3))):
        size, left = factors(draw, left)
        sizes.append(size)
    shape = (*fixed, *sizes, left)
    asked = list(shape)
    if draw(st.booleans()):
        asked[draw(st.integers(least, len(shape) - 1))] = -1
    spread = draw(st.booleans())
    return (
        lambda t: t.reshape(*asked) if spread else t.reshape(tuple(asked)),
        same_without_copy(array, shape),
    )


def _rearrange(draw: Any, array: Array, least: int) -> Any:
    """Split one free dimension, permute all, merge two if NumPy can."""
    names = [f"d{axis}" for axis in range(array.ndim)]
    split = draw(st.integers(least, array.ndim - 1))
    sizes = factors(draw, array.shape[split])
    source: list[Any] = list(names)
    source[split] = ("a", "b")
    flat = [*names[:split], "a", "b", *names[split + 1 :]]
    shape = (*array.shape[:split], *sizes, *array.shape[split + 1 :])
    wide = same_without_copy(array, shape)
    assert wide is not None
    order = [*flat[:least], *draw(st.permutations(flat[least:]))]
    moved = wide.transpose([flat.index(name) for name in order])
    target: list[Any] = list(order)
    at = draw(st.integers(least, len(order) - 1))
    result: Array | None = moved
    if at + 1 < len(order):
        target[at : at + 2] = [tuple(order[at : at + 2])]
        merged = (*moved.shape[:at], moved.shape[at] * moved.shape[at + 1], *moved.shape[at + 2 :])
        result = same_without_copy(moved, merged)
    known = draw(
        st.sampled_from([{"a": sizes[0]}, {"b": sizes[1]}, {"a": sizes[0], "b": sizes[1]}])
    )
    if draw(st.booleans()):  # the other spelling
        text = [" ".join(n if isinstance(n, str) else f"({' '.join(n)})" for n in p)
                for p in (source, target)]  # fmt: skip
        return (lambda t: t.rearrange(text[0], text[1], known)), result
    return (lambda t: t.rearrange(tuple(source), tuple(target), known)), result


KINDS: dict[str, Any] = {
    "index": _index, "ds": _ds, "slice": _slice, "select": _select, "permute": _permute,
    "expand_dim": _expand, "squeeze_dim": _squeeze, "broadcast": _broadcast,
    "reshape_dim": _reshape_dim, "flatten_dims": _flatten_dims, "reshape": _reshape,
    "rearrange": _rearrange,
}  # fmt: skip


def draw_chain(draw: Any, array: Array, on_chip: bool) -> tuple[Step, Array, bool]:
    """A chain of up to four views; NumPy's; and whether the last must be refused."""
    least = 1 if on_chip else 0
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 4))):
        drawn = draw_step(draw, array, least)
        if drawn is None or (drawn[1] is not None and drawn[1].ndim > 5):
            continue
        step, following = drawn
        steps.append(step)
        if following is None:
            return _chain(steps), array, True
        array = chip_shape(following, on_chip)
    return _chain(steps), array, False


def _chain(steps: list[Step]) -> Step:
    def apply(tensor: Any) -> Any:
        for step in steps:
            tensor = step(tensor)
        return tensor

    return apply


def numbered(draw: Any) -> Array:
    shape = draw(st.sampled_from([(4, 6), (3, 2, 4), (2, 3, 2, 2), (8, 12), (1, 5)]))
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


@settings(max_examples=250, deadline=None)
@given(st.data(), st.booleans())
def test_chains_of_views_read_what_numpy_reads(data: Any, on_chip: bool) -> None:
    x = numbered(data.draw)
    step, expected, refused = draw_chain(data.draw, x, on_chip)
    if refused:
        with pytest.raises(NkiValidationError) as caught:
            read_through(step, x, on_chip)
        assert {v.rule for v in caught.value.violations} <= {"reshape", "view"}
    else:
        np.testing.assert_array_equal(read_through(step, x, on_chip), expected, strict=True)


@settings(max_examples=120, deadline=None)
@given(st.data(), st.booleans())
def test_chains_of_views_write_where_numpy_writes(data: Any, on_chip: bool) -> None:
    x = numbered(data.draw)
    target = x.copy()
    step, view, refused = draw_chain(data.draw, target, on_chip)
    if refused or not view.flags.writeable:
        return  # broadcast: several values for one place
    values = -1 - np.arange(view.size, dtype=np.float32).reshape(view.shape)
    view[...] = values
    np.testing.assert_array_equal(written_through(step, x, values, on_chip), target)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.booleans())
def test_attributes_of_views(data: Any, on_chip: bool) -> None:
    """Strides, offset, pattern, size, contiguity as NumPy has them."""
    x = numbered(data.draw)
    step, expected, refused = draw_chain(data.draw, x, on_chip)
    if refused:
        return
    seen: list[Any] = []

    def body(x: Any) -> Any:
        seen.append(step(loaded(x) if on_chip else x))
        return stored(loaded(x))

    nki.jit(body).specialise(TensorSpec(x.shape, nl.float32))
    (view,) = seen
    assert (view.shape, view.ndim, view.size) == (expected.shape, expected.ndim, expected.size)
    assert view.get_pattern() == [[s, n] for s, n in zip(view.strides, view.shape, strict=True)]
    assert not view.is_indirect()
    places = np.lib.stride_tricks.as_strided(
        np.arange(x.size)[view.offset :], view.shape, tuple(8 * s for s in view.strides)
    )
    np.testing.assert_array_equal(places, expected)
    free = expected[0] if on_chip else expected
    assert view.is_contiguous() == bool(free.flags.c_contiguous)


# --- view(dtype) ----------------------------------------------------------------------------

WIDTHS = [nl.float32, nl.bfloat16, nl.uint8, nl.int32, nl.uint16, nl.float8_e4m3]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(WIDTHS), st.sampled_from(WIDTHS), st.booleans())
def test_view_as_another_dtype(data: Any, old: Any, new: Any, on_chip: bool) -> None:
    x = np.random.default_rng(0).integers(0, 255, (4, 3, 24)).astype(np.uint8)
    x = x.view(old.numpy)
    start = data.draw(st.integers(0, x.shape[2] - 1))
    stop = data.draw(st.integers(start + 1, x.shape[2]))
    piece = x[1:3, ::2, start:stop]
    size, byte = (stop - start) * old.itemsize, start * old.itemsize
    name = data.draw(st.sampled_from(["view", "reinterpret_cast"]))

    def step(t: Any) -> Any:
        return getattr(t[1:3, ::2, start:stop], name)(new)

    if size % new.itemsize or byte % new.itemsize:
        with pytest.raises(NkiValidationError, match=r"\[view\]"):
            read_through(step, x, on_chip)
        return
    expected = np.ascontiguousarray(piece).view(new.numpy)
    found = read_through(step, x, on_chip)
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))
    assert found.dtype == expected.dtype


def test_a_dimension_of_one_does_not_hinder_a_view() -> None:
    x = np.arange(8, dtype=np.float32).reshape(4, 2).astype(nl.bfloat16.numpy)
    found = read_through(lambda t: t.expand_dim(1).view(nl.float32), x, True)
    np.testing.assert_array_equal(found.view(np.uint16).reshape(4, 2), x.view(np.uint16))
    strided = read_through(lambda t: t[:, 0:1].expand_dim(2).flatten_dims(1, 2), x, True)
    np.testing.assert_array_equal(strided, x[:, 0:1])


# --- access patterns ------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(st.data(), st.booleans())
def test_access_patterns(data: Any, on_chip: bool) -> None:
    """Any pattern inside the storage reads what as_strided reads; any other is refused."""
    draw = data.draw
    x = np.arange(96, dtype=np.float32).reshape(4, 24)
    counts = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(2, 4)))]
    steps = [draw(st.integers(0, 9)) for _ in counts]
    start = draw(st.integers(0, 80))
    if on_chip:
        steps[0] = 24
    offset = draw(st.sampled_from([start, None]))
    first = 30 if offset is None else offset  # the view's own
    reach = [first + sum(s * (n - 1) for s, n in zip(steps, counts, strict=True))]
    inside = reach[0] < 96
    if on_chip:
        free = first % 24 + sum(s * (n - 1) for s, n in zip(steps[1:], counts[1:], strict=True))
        inside = inside and free < 24
    pattern = draw(st.sampled_from([list, tuple]))(
        [list(pair) for pair in zip(steps, counts, strict=True)]
    )

    def step(t: Any) -> Any:
        return t[1:2, 6:8].ap(pattern, offset)

    if not inside:
        with pytest.raises(NkiValidationError, match=r"\[out-of-bounds\]"):
            read_through(step, x, on_chip)
        return
    expected = np.lib.stride_tricks.as_strided(
        x.reshape(-1)[first:], counts, [4 * s for s in steps]
    )
    np.testing.assert_array_equal(read_through(step, x, on_chip), expected)


def test_patterns_count_in_the_new_dtype() -> None:
    x = np.arange(12, dtype=np.int32).reshape(3, 4)
    found = read_through(
        lambda t: t.ap(pattern=[[8, 3], [2, 3]], offset=2, dtype=nl.uint16), x, True
    )
    np.testing.assert_array_equal(found, x.view(np.uint16)[:, 2:8:2])
    inherited = read_through(lambda t: t[:, 1:3].ap([[8, 3], [1, 2]], dtype=nl.uint16), x, True)
    np.testing.assert_array_equal(inherited, x.view(np.uint16)[:, 2:4])


def test_a_pattern_of_a_pattern_replaces_it() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    found = read_through(
        lambda t: t.ap([[6, 4], [2, 3]], 0).ap(pattern=[[6, 4], [1, 2]], offset=1), x, True
    )
    np.testing.assert_array_equal(found, x[:, 1:3])


def test_a_pattern_broadcasts_a_row_over_partitions() -> None:
    x = np.arange(6, dtype=np.float32).reshape(1, 6)

    def body(x: Any) -> Any:
        tile = sbuf(4, 6)
        nisa.dma_copy(dst=tile, src=x.ap(pattern=[[0, 4], [1, 6]], offset=0))
        return stored(tile)

    np.testing.assert_array_equal(nki.jit(body)(x), np.repeat(x, 4, 0))


# --- dynamic addresses ----------------------------------------------------------------------


def index_tile(numbers: Any) -> Any:
    tile = sbuf(*numbers.shape, dtype=numbers.dtype)
    nisa.dma_copy(dst=tile, src=numbers)
    return tile


def through_index(step: Callable[[Any, Any], Any], x: Array, index: Array, on_chip: bool) -> Array:
    """What a kernel reads through a view whose index (a tile and a register) is data."""

    def body(x: Any, index: Any) -> Any:
        base = loaded(x) if on_chip else x
        tile = index_tile(index)
        register = nisa.register_alloc(None)
        nisa.register_load(register, tile)
        outs = []
        for by in (tile, register):
            view = step(base, by)
            if view is None:
                continue
            assert view.is_indirect()
            out = nl.ndarray(view.shape, dtype=view.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(dst=out, src=view)
            outs.append(out)
        return tuple(outs)

    first, *rest = nki.jit(body)(x, index)
    for other in rest:
        np.testing.assert_array_equal(other, first)
    return first  # type: ignore[no-any-return]


def register_only(by: Any) -> bool:
    return not hasattr(by, "shape")


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans())
def test_select_by_data(data: Any, on_chip: bool) -> None:
    """Of a strided and permuted view; other dimensions may be sliced before and after."""
    x = np.arange(3 * 6 * 5, dtype=np.float32).reshape(3, 6, 5)
    axis = data.draw(st.integers(1 if on_chip else 0, 2))
    base = x[0:3, 1:6:2, :].transpose(0, 2, 1)
    at = data.draw(st.integers(0, base.shape[axis] - 1))

    def step(t: Any, by: Any) -> Any:
        view = t[0:3, 1:6:2, :].permute((0, 2, 1)).select(axis, by)
        return view[1:2]

    expected = chip_shape(np.take(base, at, axis)[1:2], on_chip)
    found = through_index(step, x, np.array([[at]], np.int32), on_chip)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.booleans())
def test_ds_by_a_register(data: Any, on_chip: bool) -> None:
    x = np.arange(3 * 8, dtype=np.float32).reshape(3, 8)
    size = data.draw(st.integers(1, 4))
    at = data.draw(st.integers(0, 4 - size))

    def step(t: Any, by: Any) -> Any:
        return t[0:2, 0:8:2][:, nl.ds(by, size)] if register_only(by) else None

    found = through_index(step, x, np.array([[at]], np.int32), on_chip)
    np.testing.assert_array_equal(found, x[0:2, 0:8:2][:, at : at + size])


def test_index_by_a_register_drops_the_dimension() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

    def step(t: Any, by: Any) -> Any:
        return t[:, by] if register_only(by) else None

    for on_chip in (False, True):
        found = through_index(step, x, np.array([[2]], np.int32), on_chip)
        np.testing.assert_array_equal(found, x[:, 2])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans())
def test_patterns_with_a_scalar_offset(data: Any, on_chip: bool) -> None:
    """The address moves by the value times the elements behind indirect_dim of the base."""
    x = np.arange(4 * 3 * 8, dtype=np.float32).reshape(4, 3, 8)
    dim = data.draw(st.integers(1 if on_chip else 0, 2))
    value = data.draw(st.integers(0, 2))
    offset = data.draw(st.integers(0, 3))
    lead = 24 if on_chip else data.draw(st.sampled_from([0, 1, 24]))
    pattern = [[lead, 2], [2, 2]]
    unit = math.prod(x.shape[dim + 1 :])
    asked = dim - 3 if data.draw(st.booleans()) else dim  # counted from the end
    found = through_index(
        lambda t, by: t.ap(pattern, offset, scalar_offset=by, indirect_dim=asked),
        x, np.array([[value]], np.int32), on_chip,
    )  # fmt: skip
    start = offset + value * unit
    expected = np.lib.stride_tricks.as_strided(x.reshape(-1)[start:], (2, 2), (4 * lead, 8))
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([np.int32, np.uint32]), st.booleans())
def test_rows_by_number(data: Any, kind: Any, method: bool) -> None:
    """Gathered rows of a sliced tensor; the free dimensions may be viewed on."""
    x = np.arange(6 * 8, dtype=np.float32).reshape(6, 8)
    rows = np.array([[data.draw(st.integers(0, 3))] for _ in range(5)], kind)

    def step(t: Any, by: Any) -> Any:
        if register_only(by):
            return None
        part = t[1:5]
        if method:
            return part.vector_select(0, by).reshape_dim(1, (2, 4))[:, :, 1:3]
        return part.ap([[8, 5], [4, 2], [1, 2]], 8 + 1, vector_offset=by)

    def body(x: Any, rows: Any) -> Any:
        view = step(x, index_tile(rows))
        out = hbm(*view.shape)
        nisa.dma_copy(dst=out, src=view)
        return out

    expected = x[1:5][rows[:, 0]].reshape(5, 2, 4)[:, :, 1:3]
    np.testing.assert_array_equal(nki.jit(body)(x, rows), expected)


def gathered(x: Any, rows: Any, mode: Any) -> Any:
    tile = sbuf(rows.shape[0], x.shape[1])
    nisa.memset(dst=tile, value=-1.0)
    nisa.dma_copy(dst=tile, src=x.vector_select(0, index_tile(rows)), oob_mode=mode)
    return stored(tile)


def scattered(x: Any, rows: Any, mode: Any) -> Any:
    out = hbm(3, x.shape[1])
    filled = sbuf(3, x.shape[1])
    nisa.memset(dst=filled, value=-1.0)
    nisa.dma_copy(dst=out, src=filled)
    pattern = [[x.shape[1], rows.shape[0]], [1, x.shape[1]]]
    target = out.ap(pattern, 0, vector_offset=index_tile(rows))
    nisa.dma_copy(dst=target, src=loaded(x), oob_mode=mode)
    return out


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-2, 5), min_size=4, max_size=4))
def test_rows_out_of_bounds_are_skipped_or_an_error(numbers: list[int]) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = np.array(numbers, np.int32)[:, None]
    skip, error = nisa.oob_mode.skip, nisa.oob_mode.error
    for kernel, size in ((gathered, 4), (scattered, 3)):
        valid = (rows[:, 0] >= 0) & (rows[:, 0] < size)
        if kernel is gathered:
            expected = np.where(valid[:, None], x[rows[:, 0] % 4], -1)
        else:
            expected = np.full((3, 3), -1.0, np.float32)
            for row, number in enumerate(numbers):
                if 0 <= number < 3:
                    expected[number] = x[row]
        np.testing.assert_array_equal(nki.jit(kernel)(x, rows, skip), expected)
        if valid.all():
            np.testing.assert_array_equal(nki.jit(kernel)(x, rows, error), expected)
        else:
            assert_out_of_bounds(lambda k=kernel: nki.jit(k)(x, rows, error))


def assert_out_of_bounds(call: Callable[[], Any]) -> None:
    with pytest.raises(NkiValidationError) as caught:
        call()
    (found,) = caught.value.violations
    assert found.rule == "dynamic-out-of-bounds"
    assert found.file == __file__
    assert found.line


@pytest.mark.parametrize("value", [-1, 3, 100, 2**31 - 1])
@pytest.mark.parametrize("eager", [False, True])
def test_a_wrong_index_is_found_when_it_is_used(value: int, eager: bool) -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    index = np.array([[value]], np.int32)
    steps: list[Callable[[Any, Any], Any]] = [
        lambda t, by: t.select(1, by),
        lambda t, by: t.ap([[12, 2], [1, 4]], 4, scalar_offset=by, indirect_dim=1),
        lambda t, by: t[:, nl.ds(by, 2), :] if register_only(by) else t.select(1, by),
    ]
    for step in steps:
        for on_chip in (True, False):

            def body(x: Any, index: Any) -> Any:
                base = loaded(x) if on_chip else x  # noqa: B023
                register = nisa.register_alloc(index_tile(index))
                view = step(base, register)  # noqa: B023
                out = hbm(*view.shape)
                nisa.dma_copy(dst=out, src=view)
                return out

            kernel = nki.simulate(nki.jit(body), eager=eager)
            np.testing.assert_array_equal(  # the same kernel takes the last good index
                kernel(x, np.array([[1]], np.int32)).shape[0], 2
            )
            assert_out_of_bounds(lambda k=kernel: k(x, index))


def test_an_access_that_leaves_its_partition_is_out_of_bounds() -> None:
    """In HBM the next elements are the next row; on chip they are another tensor's."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    index = np.array([[2]], np.int32)

    def step(t: Any, by: Any) -> Any:
        return t.ap([[4, 2], [1, 3]], 0, scalar_offset=by, indirect_dim=1)

    np.testing.assert_array_equal(through_index(step, x, index, False)[0], [2, 3, 4])
    assert_out_of_bounds(lambda: through_index(step, x, index, True))


@pytest.mark.parametrize("eager", [False, True])
def test_a_copy_with_a_wrong_scalar_index_may_be_skipped(eager: bool) -> None:
    def body(x: Any, index: Any) -> Any:
        tile = sbuf(1, 4)
        nisa.memset(dst=tile, value=-1.0)
        by = index_tile(index)
        nisa.dma_copy(dst=tile, src=x.select(0, by).expand_dim(0), oob_mode=nisa.oob_mode.skip)
        return stored(tile)

    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    kernel = nki.simulate(nki.jit(body), eager=eager)
    for value, expected in ((1, x[[1]]), (2, [[-1.0] * 4]), (-1, [[-1.0] * 4])):
        np.testing.assert_array_equal(kernel(x, np.array([[value]], np.int32)), expected)


# --- indirect (gen4) ------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([16, 32]), st.booleans())
def test_indirect_elements(data: Any, partitions: int, write: bool) -> None:
    """Element i of a partition is free element index[g + i % 16, i // 16] of its group g."""
    free, columns = 10, 2
    index = np.array(
        [[data.draw(st.integers(0, 7)) for _ in range(columns)] for _ in range(partitions)],
        np.uint16,
    )
    count = data.draw(st.integers(1, 32)) if not write else 8
    if write:  # each element once
        index[:] = 0
        for group in range(0, partitions, 16):
            index[group : group + 8, 0] = data.draw(st.permutations(range(8)))
    x = np.random.default_rng(0).normal(size=(partitions, free)).astype(np.float32)

    def body(x: Any, index: Any) -> Any:
        tile, by = loaded(x), index_tile(index)
        part = tile[:, 1:9]  # eight elements from the second on
        if write:
            source = sbuf(partitions, count)
            nisa.tensor_copy(dst=source, src=tile[:, 0:count])
            nisa.tensor_copy(dst=part.indirect(by, count), src=source)
            return stored(tile)
        out = sbuf(partitions, count)
        nisa.tensor_copy(dst=out, src=part.indirect(by, num_elem=count))
        return stored(out)

    kernel = nki.jit(body)
    kernel.specialise(x, index, target=TARGETS["trn3"])
    expected = x.copy() if write else np.empty((partitions, count), np.float32)
    for p in range(partitions):
        for i in range(count):
            at = 1 + int(index[p // 16 * 16 + i % 16, i // 16])
            if write:
                expected[p, at] = x[p, i]
            else:
                expected[p, i] = x[p, at]
    with on_trn3():
        np.testing.assert_array_equal(kernel(x, index), expected)


class on_trn3:
    """Run on trn3 inside a `with`."""

    def __enter__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn3")

    def __exit__(self, *error: Any) -> None:
        self.patch.undo()


def test_an_indirect_element_out_of_bounds() -> None:
    def body(x: Any, index: Any) -> Any:
        out = sbuf(16, 16)
        nisa.tensor_copy(dst=out, src=loaded(x)[:, 0:4].indirect(index_tile(index)))
        return stored(out)

    x, index = np.ones((16, 8), np.float32), np.full((16, 1), 3, np.uint16)
    with on_trn3():
        assert (nki.jit(body)(x, index) == 1).all()
        index[3] = 4  # inside the tile, outside the view
        assert_out_of_bounds(lambda: nki.jit(body)(x, index))


# --- refusals -------------------------------------------------------------------------------


def viewing(step: Step, on_chip: bool = True) -> Callable[..., Any]:
    """A kernel that takes a view of x, or of a tile of it, and uses it if it is one at all."""

    def body(x: Any) -> Any:
        view = step(loaded(x) if on_chip else x)
        assert view is not None
        if isinstance(view, OutsideTensor):  # made, but no instruction takes it
            nisa.tensor_copy(dst=view, src=view)
        return stored(loaded(x))

    return body


def number(t: Any) -> Any:
    tile = sbuf(1, 1, dtype=nl.int32)
    nisa.memset(dst=tile, value=0)
    return tile


def numbers(t: Any, count: int = 64, dtype: Any = nl.int32) -> Any:
    tile = sbuf(count, 1, dtype=dtype)
    nisa.memset(dst=tile, value=0)
    return tile


REFUSED: list[tuple[Step, bool, str, str]] = [
    # the partitions stay
    (lambda t: t.reshape((32, 64)), True, "reshape", "64"),
    (lambda t: t.permute((1, 0)), True, "view", "0 first"),
    (lambda t: t[0:1].broadcast(0, 4), True, "view", "dimension 1 or later"),
    (lambda t: t[0:1].squeeze_dim(0), True, "view", "dimension 1 or later"),
    (lambda t: t.expand_dim(0), True, "view", "1 to 2"),
    (lambda t: t.reshape_dim(0, (2, 32)), True, "reshape", ""),
    (lambda t: t.flatten_dims(0, 1), True, "view", ""),
    (lambda t: t.rearrange("p f", "f p"), True, "view", "0 first"),
    (lambda t: t.rearrange(("p", "f"), (("p", "f"),)), True, "view", ""),
    # sizes and dimensions
    (lambda t: t.reshape((64, 31)), True, "reshape", "2048 elements"),
    (lambda t: t.reshape((64, -1, -1)), True, "reshape", "2048 elements"),
    (lambda t: t.reshape((64, 7, -1)), False, "reshape", "2048 elements"),
    (lambda t: t.reshape((64, 32.0)), True, "reshape", "2048 elements"),
    (lambda t: t.reshape_dim(1, (5, 7)), True, "reshape", "32"),
    (lambda t: t.reshape_dim(1, (5, -1)), True, "reshape", "32"),
    (lambda t: t.broadcast(1, 4), True, "view", "1"),
    (lambda t: t[:, 0:1].broadcast(1, 0), True, "view", "1"),
    (lambda t: t.squeeze_dim(1), True, "view", "1"),
    (lambda t: t.squeeze_dim(2), True, "view", "0 to 1"),
    (lambda t: t.expand_dim(4), True, "view", "1 to 2"),
    (lambda t: t.expand_dim("1"), True, "view", "1 to 2"),
    (lambda t: t.permute((0, 0)), True, "view", "(0, 1)"),
    (lambda t: t.permute((0, "f")), True, "view", "(0, 1)"),
    (lambda t: t.flatten_dims(1, 0), False, "view", ""),
    (lambda t: t[:, 0:16].flatten_dims(0, 1), False, "view", "stride 16 of dimension 0"),
    (lambda t: t[:, 1:].reshape((-1,)), False, "reshape", "contiguous"),
    (lambda t: t.rearrange("p f", "p f q"), True, "view", "2 dimensions"),
    (lambda t: t.rearrange("p p", "p p"), True, "view", "2 dimensions"),
    (lambda t: t.rearrange("p f", "p f", {"g": 2}), True, "view", "2 dimensions"),
    (lambda t: t.rearrange("p f", "p f", {"f": 31}), True, "reshape", "32"),
    (lambda t: t.rearrange("p (a b)", "p a b", {"a": 5}), True, "reshape", "32"),
    (lambda t: t[:, 0:3].view(nl.int32).view(nl.bool_)[:, 0:12].slice(1, 0, 13), True,
     "out-of-bounds", "12"),
    # indices
    (lambda t: t[64], True, "out-of-bounds", "64"),
    (lambda t: t[-65], True, "out-of-bounds", "64"),
    (lambda t: t[:, 0:33], True, "out-of-bounds", "32"),
    (lambda t: t[:, 5:5], True, "out-of-bounds", "32"),
    (lambda t: t[:, ::-1], True, "out-of-bounds", "32"),
    (lambda t: t[:, nl.ds(30, 3)], True, "out-of-bounds", "32"),
    (lambda t: t[:, :, 0], True, "index", "2"),
    (lambda t: t[..., ...], True, "index", "2"),
    (lambda t: t[None], True, "index", "int, slice, ..., nl.ds"),
    (lambda t: t[True], True, "index", "int, slice, ..., nl.ds"),
    (lambda t: t[1.0], True, "index", "int, slice, ..., nl.ds"),
    (lambda t: t[:, (0, 1)], True, "index", "int, slice, ..., nl.ds"),
    (lambda t: t[:, nl.ds(0, 1.5)], True, "index", "int, slice, ..., nl.ds"),
    (lambda t: t[:, 0.0:2], True, "index", "int, slice, ..., nl.ds"),
    (lambda t: t.slice(1, -3, 32), True, "out-of-bounds", "0 to 32"),
    (lambda t: t.slice(1, 0, 33), True, "out-of-bounds", "32"),
    (lambda t: t.select(1, 32), True, "out-of-bounds", "32"),
    (lambda t: t.select(2, 0), True, "view", "0 to 1"),
    # patterns
    (lambda t: t.ap([[64, 32], [1, 32]], 0), True, "access-pattern", "32"),
    (lambda t: t.ap([[32, 64], [1, 0]], 0), True, "access-pattern", ">= 1"),
    (lambda t: t.ap([[32, 64, 1]], 0), True, "access-pattern", ">= 1"),
    (lambda t: t.ap([], 0), True, "access-pattern", ">= 1"),
    (lambda t: t.ap([[32, 64], [1, 32]], "0"), True, "access-pattern", ">= 1"),
    (lambda t: t.ap([[32, 64], [1, 33]], 0), True, "out-of-bounds",
     "elements 0 to 31 of a partition"),
    (lambda t: t.ap([[32, 65], [1, 32]], 0), True, "out-of-bounds", "elements 0 to 2047"),
    (lambda t: t.ap([[32, 64], [1, 32]], 1), False, "out-of-bounds", "elements 0 to 2047"),
    (lambda t: t.ap([[32, 4], [-1, 3]], 1), False, "out-of-bounds", "elements 0 to 2047"),
    (lambda t: t.ap([[32, 2]] + [[1, 1]] * 5, 0), True, "access-pattern",
     "partitions and 4 free dimensions"),
    (lambda t: t.ap([[32, 64], [1, 1]], 0, scalar_offset=number(t), indirect_dim=2), True, "view",
     "0 to 1"),
    (lambda t: t.ap([[16, 2], [1, 1]], dtype="double"), False, "dtype", ""),
    (lambda t: t[:, 1:2].view(nl.bfloat16)[:, 1:2].ap([[16, 2], [1, 1]], dtype=nl.float32), False,
     "access-pattern", ">= 1"),
    # dynamic addresses
    (lambda t: t.ap([[32, 64], [1, 1]], 0, scalar_offset=number(t), vector_offset=numbers(t)),
     False, "access-pattern", "1"),
    (lambda t: t.ap([[32, 64], [1, 1]], 0, scalar_offset=1.5), False, "dynamic-offset",
     "register or tile"),
    (lambda t: t.ap([[32, 64], [1, 1]], 0, scalar_offset=numbers(t)), False, "dynamic-offset",
     "(1, 1)"),
    (lambda t: t.ap([[32, 64], [1, 1]], 0, vector_offset=numbers(t, 32)), False, "dynamic-offset",
     "64"),
    (lambda t: t.ap([[32, 64], [1, 1]], 0, vector_offset=numbers(t), indirect_dim=1), False,
     "dynamic-offset", "0"),
    (lambda t: t.ap([[32, 64], [1, 1]], 0, vector_offset=numbers(t)), True, "dynamic-offset",
     "HBM"),
    (lambda t: t.vector_select(1, numbers(t)), False, "dynamic-offset", "0"),
    (lambda t: t.vector_select(0, numbers(t, dtype=nl.int16)), False, "dynamic-offset",
     "int32 or uint32"),
    (lambda t: t.vector_select(0, numbers(t, dtype=nl.float32)), False, "dynamic-offset",
     "int32 or uint32"),
    (lambda t: t.vector_select(0, t), False, "dynamic-offset", "sbuf"),
    (lambda t: t.select(0, number(t)), True, "dynamic-offset", "a free dimension"),
    (lambda t: t[nl.ds(nisa.register_alloc(0), 2)], True, "dynamic-offset", "a free dimension"),
    (lambda t: t.ap([[32, 1], [1, 1]], 0, scalar_offset=number(t)), True, "dynamic-offset",
     "a free dimension"),
    (lambda t: t.select(1, number(t)).select(0, number(t)), False, "dynamic-offset",
     "1 dynamic index"),
    (lambda t: t[nisa.register_alloc(0), nisa.register_alloc(0)], False, "dynamic-offset",
     "1 dynamic index"),
    (lambda t: t.vector_select(0, numbers(t)).vector_select(0, numbers(t)), False,
     "dynamic-offset", "1 dynamic index"),
    (lambda t: t.select(0, number(t)).view(nl.int32), False, "view", "a static view"),
    (lambda t: t.vector_select(0, numbers(t))[0:32], False, "dynamic-offset", "all rows"),
    (lambda t: t.vector_select(0, numbers(t))[0], False, "dynamic-offset", "all rows"),
    (lambda t: t.vector_select(0, numbers(t)).permute((1, 0)), False, "view", "0 first"),
    (lambda t: t.vector_select(0, numbers(t)).expand_dim(0), False, "view", "1 to 2"),
    (lambda t: t.vector_select(0, numbers(t)).reshape((-1,)), False, "reshape", "64"),
    (lambda t: t[nisa.register_alloc(0) :], False, "index", "int, slice, ..., nl.ds"),
    (lambda t: t[0 : nisa.register_alloc(2)], False, "index", "int, slice, ..., nl.ds"),
    (lambda t: t[nl.ds(nisa.register_alloc(0), 65)], False, "out-of-bounds", "64"),
    (lambda t: t.indirect(numbers(t)), True, "gen4-only", "trn3"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refusals(case: int) -> None:
    step, on_chip, rule, limit = REFUSED[case]
    found = violations(viewing(step, on_chip), x=X)
    assert [v.rule for v in found] == [rule]
    assert limit in ("", found[0].limit)
    assert found[0].mend
    assert found[0].file == __file__


def test_refusals_of_indirect_on_trn3() -> None:
    cases: list[tuple[Step, bool]] = [
        (lambda t: t.indirect(numbers(t)), False),
        (lambda t: t.indirect(numbers(t)[16:32]), True),
        (lambda t: t.indirect(numbers(t, dtype=nl.float32)), True),
        (lambda t: t.indirect(3), True),
    ]
    for step, on_chip in cases:
        found = violations(viewing(step, on_chip), "trn3", x=X)
        assert [v.rule for v in found] == ["dynamic-offset"]


def rows_in_device_print(x: Any) -> Any:
    nl.device_print("rows", x.vector_select(0, numbers(x)))
    return stored(loaded(x))


def rows_in_register_load(x: Any) -> Any:
    register = nisa.register_alloc(0)
    ids = nl.ndarray((64, 1), dtype=nl.int32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=ids, src=numbers(x))
    nisa.register_load(register, ids.vector_select(0, numbers(x, 1)))
    return stored(loaded(x))


@pytest.mark.parametrize("body", [rows_in_device_print, rows_in_register_load])
def test_rows_by_number_are_for_dma_only(body: Callable[..., Any]) -> None:
    (found,) = violations(body, x=X)
    assert (found.rule, found.limit) == ("dynamic-offset", "dma_copy, dma_compute, dma_transpose")


# --- a wrong implementation is noticed ------------------------------------------------------


def test_a_wrong_step_of_a_dynamic_index_is_noticed(monkeypatch: Any) -> None:
    def wrong(tensor: Any, axis: int, index: Any, step: int, limit: int | None) -> Any:
        return with_scalar(tensor, axis, index, step + 1, limit)

    monkeypatch.setattr("simulator.patterns.with_scalar", wrong)
    with pytest.raises(AssertionError):
        test_index_by_a_register_drops_the_dimension()


FIRES = {
    "view", "reshape", "access-pattern", "dynamic-offset", "dynamic-out-of-bounds",
    "out-of-bounds", "index",
}  # fmt: skip
