"""Random numbers: what is documented of them, whatever the bits are."""

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
from tile_bench import NUMPY, Array, numbers, run, same_bits, seeds

from simulator.instructions import random
from simulator.targets import TARGETS

INTEGERS = [nl.int8, nl.uint8, nl.int16, nl.uint16, nl.int32, nl.uint32]
engines = [nisa.engine.vector, nisa.engine.gpsimd]


def seeded(seed: Any, *outs: Any, engine: Any = nisa.engine.vector) -> None:
    nisa.set_rng_seed(seed)
    for out in outs:
        nisa.rng(dst=out, engine=engine)


def test_rng_gives_all_bits_evenly_and_every_lane_its_own() -> None:
    def body(first: Any, second: Any, other: Any) -> None:
        nisa.rng(dst=first)
        nisa.rng(dst=second)
        nisa.rng(dst=other, engine=nisa.engine.gpsimd)

    found = run(body, [], [((128, 300), nl.uint32)] * 3)
    everything = np.stack(found)
    assert len(np.unique(everything)) > everything.size - 10  # a few of 2**32 may coincide
    for bit in range(32):
        share = ((everything >> bit) & 1).mean()
        assert abs(share - 0.5) < 0.01
    rows = everything.reshape(-1, 300).astype(np.float64)
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 0.35


@pytest.mark.parametrize("dtype", INTEGERS)
def test_rng_truncates_to_the_least_significant_bits(dtype: Any) -> None:
    seed = np.array([[77]], np.uint32)
    (whole,) = run(lambda seed, out: seeded(seed, out), [seed], [((5, 9), nl.uint32)])
    (found,) = run(lambda seed, out: seeded(seed, out), [seed], [((5, 9), dtype)])
    same_bits(found, whole.astype(NUMPY[dtype]))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([nl.uint32, nl.int32, nl.float32]))
def test_a_seed_decides_the_sequence(seed: int, kind: Any) -> None:
    bits = np.array([[seed]], np.uint32).view(NUMPY[kind])
    other = np.array([[seed ^ 1]], np.uint32).view(NUMPY[kind])

    def body(seed: Any, other: Any, first: Any, second: Any, again: Any, changed: Any) -> None:
        seeded(seed, first, second)
        seeded(other, changed)
        seeded(seed, again)

    outs = [((7, 11), nl.uint32)] * 4
    first, second, again, changed = run(body, [bits, other], outs)
    np.testing.assert_array_equal(first, again)
    assert (first != second).mean() > 0.99
    assert (first != changed).mean() > 0.99


def test_a_seed_of_the_vector_engine_leaves_gpsimd_alone() -> None:
    seed = np.array([[1]], np.uint32)
    (plain,) = run(
        lambda out: nisa.rng(dst=out, engine=nisa.engine.gpsimd), [], [((4, 8), nl.uint32)]
    )
    (after,) = run(
        lambda seed, out: seeded(seed, out, engine=nisa.engine.gpsimd),
        [seed], [((4, 8), nl.uint32)],
    )  # fmt: skip
    np.testing.assert_array_equal(plain, after)


def test_a_plan_begins_alike_and_goes_on_from_call_to_call() -> None:
    def make() -> Any:
        @nki.jit
        def kernel(x):  # type: ignore[no-untyped-def]
            tile = sbuf(4, 8, dtype=nl.uint32)
            nisa.rng(dst=tile)
            return stored(tile)

        return kernel

    x = np.zeros((1, 1), np.float32)
    one, other = make(), make()
    first, second = one(x).copy(), one(x).copy()
    np.testing.assert_array_equal(first, other(x))
    assert (first != second).all()
    np.testing.assert_array_equal(second, other(x))


def test_threads_draw_from_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(x: Any) -> Any:
        found = []
        for _ in range(8):
            tile, more = sbuf(128, 512, dtype=nl.uint32), sbuf(128, 512, dtype=nl.uint32)
            nisa.rng(dst=tile)
            for _ in range(8):  # work enough for a second thread
                nisa.tensor_copy(dst=more, src=tile)
            found.append(stored(more))
        return tuple(found)

    x = np.zeros((1, 1), np.float32)
    results = []
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(nki.jit(kernel)(x))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(("engine", "words"), [("gpsimd", 6), ("vector", 24)])
def test_a_state_is_saved_and_restored(engine: str, words: int) -> None:
    where = nisa.engine[engine]

    def body(seeds: Any, state: Any, first: Any, again: Any, restart: Any, same: Any) -> None:
        nisa.rand_set_state(seeds, engine=where)
        nisa.rng(dst=restart, engine=where)
        nisa.rand_get_state(state, engine=where)
        nisa.rng(dst=first, engine=where)
        nisa.rand_set_state(state, engine=where)
        nisa.rng(dst=again, engine=where)
        nisa.rand_set_state(seeds, engine=where)
        nisa.rng(dst=same, engine=where)

    start = np.random.default_rng(1).integers(0, 2**32, (9, words), dtype=np.uint32)
    tile = ((9, 5), nl.uint32)
    outs = [((9, words), nl.uint32), tile, tile, tile, tile]
    state, first, again, restart, same = run(body, [start], outs, on="trn3")
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(restart, same)
    assert (first != restart).all()
    assert (state != start).any(axis=1).all()


def test_a_state_that_was_set_can_be_read_back() -> None:
    start = np.random.default_rng(2).integers(0, 2**32, (9, 6), dtype=np.uint32)

    def body(seeds: Any, state: Any) -> None:
        nisa.rand_set_state(seeds)
        nisa.rand_get_state(state)

    same_bits(run(body, [start], [((9, 6), nl.uint32)])[0], start)


# --- rand2, dropout -----------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.booleans(), seeds)
def test_rand2_is_uniform_in_its_range(column: bool, seed: int) -> None:
    low = numbers((64, 1), nl.float32, seed)
    high = low + np.abs(numbers((64, 1), nl.float32, seed + 1))

    def body(low: Any, high: Any, out: Any) -> None:
        nisa.rand2(dst=out, min=low if column else -1.0, max=high if column else 3.0)

    (found,) = run(body, [low, high], [((64, 400), nl.float32)], on="trn3")
    if not column:
        low, high = np.full((64, 1), -1.0), np.full((64, 1), 3.0)
    place = (found.astype(np.float64) - low) / (high - low)
    assert (place >= -1e-6).all()
    assert (found <= high).all()
    shares = np.histogram(place, 10, (0, 1))[0] / place.size
    assert np.abs(shares - 0.1).max() < 0.01


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(list(NUMPY)), seeds, st.booleans())
def test_dropout_drops_a_share_and_keeps_bits(dtype: Any, seed: int, in_place: bool) -> None:
    bits = np.random.default_rng(seed).integers(1, 100, (128, 200))
    x = bits.astype(NUMPY[dtype])
    share = np.array([[0.0], [0.25], [0.5], [1.0]] * 32, np.float32)

    def body(x: Any, share: Any, out: Any, none: Any, all_: Any) -> None:
        nisa.dropout(dst=none, data=x, prob=0.0)
        nisa.dropout(dst=all_, data=x, prob=1)
        nisa.dropout(dst=x if in_place else out, data=x, prob=share)
        if in_place:
            nisa.tensor_copy(dst=out, src=x)

    found, none, everything = run(body, [x, share], [(x.shape, dtype)] * 3)
    same_bits(none, x)
    assert not everything.any()
    kept = found != 0
    same_bits(found[kept], x[kept])  # not rescaled
    for row, probability in enumerate((0.0, 0.25, 0.5, 1.0)):
        dropped = 1 - kept[row::4].mean()
        assert abs(dropped - probability) <= (0.02 if 0 < probability < 1 else 0)


COVERED = {
    "rng": test_rng_truncates_to_the_least_significant_bits,
    "set_rng_seed": test_a_seed_decides_the_sequence,
    "rand_set_state": test_a_state_is_saved_and_restored,
    "rand_get_state": test_a_state_is_saved_and_restored,
    "rand2": test_rand2_is_uniform_in_its_range,
    "dropout": test_dropout_drops_a_share_and_keeps_bits,
}


# --- the tests would notice ---------------------------------------------------------------


def same_bits_for_all(self: Any, lanes: slice, count: int) -> Array:
    return np.repeat(RIGHT_DRAW(self, slice(0, 1), count), lanes.stop - lanes.start, axis=0)


RIGHT_DRAW = random.Generator.draw
MUTANTS: dict[str, tuple[Any, str, Any, Callable[[], None]]] = {
    "one stream for all lanes": (
        random.Generator, "draw", same_bits_for_all,
        test_rng_gives_all_bits_evenly_and_every_lane_its_own),
    "bits that do not change": (
        random.Generator, "draw",
        lambda self, lanes, count: np.zeros((lanes.stop - lanes.start, count), np.uint32),
        test_rng_gives_all_bits_evenly_and_every_lane_its_own),
    "a seed that is ignored": (
        random.Generator, "seed", lambda self, seed: None,
        lambda: test_a_seed_decides_the_sequence.hypothesis.inner_test(5, nl.uint32)),
    "half the range": (
        random, "_uniform", lambda bits: (bits >> np.uint32(9)) * np.float32(2**-24),
        lambda: test_rand2_is_uniform_in_its_range.hypothesis.inner_test(False, 1)),
    "dropout of the others": (
        random, "_uniform", lambda bits: 1 - (bits >> np.uint32(8)) * np.float32(2**-25),
        lambda: test_dropout_drops_a_share_and_keeps_bits.hypothesis.inner_test(
            nl.float32, 1, False)),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_implementation_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong, test = MUTANTS[mutant]
    test()
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError), np.errstate(invalid="ignore"):
        test()


# --- limits -------------------------------------------------------------------------------


def filled(*shape: int, dtype: Any = nl.float32) -> Any:
    tile = sbuf(*shape, dtype=dtype)
    nisa.memset(dst=tile, value=1)
    return tile


def random_floats(x: Any) -> Any:
    tile = loaded(x)
    nisa.rng(dst=tile)
    return stored(tile)


def random_in_psum(x: Any) -> Any:
    bank = nl.ndarray((64, 32), dtype=nl.uint32, buffer=nl.psum)
    nisa.rng(dst=bank, engine=nisa.engine.gpsimd)
    return stored(loaded(x))


def random_on_scalar(x: Any) -> Any:
    tile = sbuf(64, 32, dtype=nl.uint32)
    nisa.rng(dst=tile, engine=nisa.engine.scalar)
    return stored(tile)


def rand2_on_trn2(x: Any) -> Any:
    tile = loaded(x)
    nisa.rand2(dst=tile, min=0.0, max=1.0)
    return stored(tile)


def drop_more_than_all(x: Any) -> Any:
    tile = loaded(x)
    nisa.dropout(dst=tile, data=tile, prob=1.5)
    return stored(tile)


def casting_dropout(x: Any) -> Any:
    low = sbuf(64, 32, dtype=nl.bfloat16)
    nisa.dropout(dst=low, data=loaded(x), prob=0.5)
    return stored(low)


def integer_probability(x: Any) -> Any:
    tile = loaded(x)
    nisa.dropout(dst=tile, data=tile, prob=filled(64, 1, dtype=nl.int32))
    return stored(tile)


def low_probability_of_integers(x: Any) -> Any:
    tile = filled(64, 32, dtype=nl.int32)
    nisa.dropout(dst=tile, data=tile, prob=filled(64, 1, dtype=nl.bfloat16))
    return stored(tile)


def two_seeds(x: Any) -> Any:
    nisa.set_rng_seed(filled(1, 2, dtype=nl.int32))
    return stored(loaded(x))


def short_seed(x: Any) -> Any:
    nisa.set_rng_seed(filled(1, 1, dtype=nl.int16))
    return stored(loaded(x))


def five_words(x: Any) -> Any:
    nisa.rand_set_state(filled(64, 5, dtype=nl.uint32))
    return stored(loaded(x))


def signed_words(x: Any) -> Any:
    nisa.rand_set_state(filled(64, 6, dtype=nl.int32))
    return stored(loaded(x))


def vector_state(x: Any) -> Any:
    state = sbuf(64, 24, dtype=nl.uint32)
    nisa.rand_get_state(state, engine=nisa.engine.vector)
    return stored(state)


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    random_floats: ("dtype", "int16, int32, int8, uint16, uint32, uint8", "float32"),
    random_in_psum: ("buffer", "sbuf", "psum"),
    random_on_scalar: ("engine", "vector, gpsimd", "scalar"),
    rand2_on_trn2: ("gen4-only", "generation 4", "trn2"),
    drop_more_than_all: ("immediate", "0 to 1", "1.5"),
    casting_dropout: ("dtype", "float32", "bfloat16"),
    integer_probability: ("dtype", "", "int32"),
    low_probability_of_integers: ("dtype", "float32", "bfloat16"),
    two_seeds: ("shape", "(1, 1)", "(1, 2)"),
    short_seed: ("dtype", "float32, int32, uint32", "int16"),
    five_words: ("shape", "6", "5"),
    signed_words: ("dtype", "uint32", "int32"),
    vector_state: ("gen4-only", "trn3", "trn2"),
}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])


def empty_range(x: Any) -> Any:
    tile = loaded(x)
    nisa.rand2(dst=tile, min=1.0, max=1.0)
    return stored(tile)


def test_rand2_needs_a_range() -> None:
    (found,) = violations(empty_range, target="trn3")
    assert (found.rule, found.limit, found.value) == ("immediate", "above min=1.0", "1.0")


def test_gen4_features_pass_on_trn3() -> None:
    for body in (rand2_on_trn2, vector_state):
        nki.jit(body).specialise(x=X, target=TARGETS["trn3"])
