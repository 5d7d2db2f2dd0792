"""Collectives between simulated ranks, against NumPy on all ranks' data at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import nki
import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bench import sbuf, violations

from simulator import ranks as ranks_module
from simulator.collectives import simulate_ranks
from simulator.errors import NkiValidationError
from simulator.specialise import TensorSpec
from simulator.targets import TARGETS

Array = np.ndarray[Any, Any]
DTYPES = [nl.float32, nl.bfloat16, nl.int32, nl.uint8]
dtypes = st.sampled_from(DTYPES)


def hbm(*shape: int, dtype: Any = nl.float32) -> Any:
    return nl.ndarray(shape, dtype=dtype, buffer=nl.shared_hbm)


def own(x: Any) -> Any:
    """A copy that is no argument of the kernel."""
    copy = hbm(*x.shape, dtype=x.dtype)
    nisa.dma_copy(dst=copy, src=x)
    return copy


def tile_of(x: Any) -> Any:
    tile = sbuf(*x.shape, dtype=x.dtype)
    nisa.dma_copy(dst=tile, src=x)
    return tile


def made(x: Any, on_chip: bool) -> Any:
    return tile_of(x) if on_chip else own(x)


def blank(shape: tuple[int, ...], x: Any, on_chip: bool) -> Any:
    return sbuf(*shape, dtype=x.dtype) if on_chip else hbm(*shape, dtype=x.dtype)


def out_of(tensor: Any) -> Any:
    return own(tensor)


def numbers(ranks: int, *shape: int, dtype: Any = nl.float32, seed: int = 0) -> list[Array]:
    """Small integers: exact in every dtype, sums included."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 16, shape).astype(dtype.numpy) for _ in range(ranks)]


def groups_of(world: int, size: int, strided: bool) -> list[list[int]]:
    lists = np.arange(world).reshape(-1, size)
    lists = np.arange(world).reshape(size, -1).T if strided else lists
    return [[int(rank) for rank in ranks] for ranks in lists]


grouping = st.builds(groups_of, st.just(4), st.sampled_from([1, 2, 4]), st.booleans())


def run(body: Callable[..., Any], data: list[Array], **parameters: Any) -> list[Array]:
    arguments = [{"x": x, **parameters} for x in data]
    return simulate_ranks(nki.jit(body), arguments)  # type: ignore[no-any-return]


def members(rank: int, groups: list[list[int]]) -> list[int]:
    return next(ranks for ranks in groups if rank in ranks)


# --- values ---------------------------------------------------------------------------------


def all_reduced(x: Any, groups: Any, op: Any, on_chip: bool) -> Any:
    src, dst = made(x, on_chip), blank(x.shape, x, on_chip)
    ncc.all_reduce(srcs=[src], dsts=[dst], replica_group=ncc.ReplicaGroup(groups), op=op)
    return out_of(dst)


REDUCERS = {nl.add: np.sum, nl.minimum: np.min, nl.maximum: np.max}


@settings(max_examples=20, deadline=None)
@given(grouping, st.sampled_from(list(REDUCERS)), st.booleans(), dtypes, st.integers(1, 5))
def test_all_reduce(groups: Any, op: Any, on_chip: bool, dtype: Any, columns: int) -> None:
    data = numbers(4, 3, columns, dtype=dtype)
    for rank, result in enumerate(
        run(all_reduced, data, groups=tuple(map(tuple, groups)), op=op, on_chip=on_chip)
    ):
        mine = np.stack([data[r].astype(np.float64) for r in members(rank, groups)])
        np.testing.assert_array_equal(
            result.astype(np.float64), REDUCERS[op](mine, axis=0), strict=True
        )


def test_all_reduce_rounds_once() -> None:
    """bf16: 1 + 3 x 2^-9 is rounded after the sum, not at each rank."""
    data = [np.full((1, 4), v, ml_dtypes.bfloat16) for v in (1.0, 2**-9, 2**-9, 2**-8)]
    result = run(all_reduced, data, groups=((0, 1, 2, 3),), op=nl.add, on_chip=False)
    np.testing.assert_array_equal(result[3].astype(np.float32), np.full((1, 4), 1 + 2**-7))


def all_gathered(x: Any, groups: Any, dim: int, on_chip: bool) -> Any:
    shape = list(x.shape)
    shape[dim] *= len(groups[0])
    src, dst = made(x, on_chip), blank(tuple(shape), x, on_chip)
    ncc.all_gather([src], [dst], ncc.ReplicaGroup(groups), dim)
    return out_of(dst)


@settings(max_examples=20, deadline=None)
@given(grouping, st.sampled_from([(0, False), (0, True), (1, True)]), dtypes, st.integers(1, 4))
def test_all_gather(groups: Any, place: tuple[int, bool], dtype: Any, columns: int) -> None:
    dim, on_chip = place
    data = numbers(4, 2, columns, dtype=dtype)
    for rank, result in enumerate(
        run(all_gathered, data, groups=tuple(map(tuple, groups)), dim=dim, on_chip=on_chip)
    ):
        expected = np.concatenate([data[r] for r in members(rank, groups)], axis=dim)
        np.testing.assert_array_equal(result, expected, strict=True)


def scattered(x: Any, groups: Any, op: Any, on_chip: bool) -> Any:
    rows = x.shape[0] // len(groups[0])
    src, dst = made(x, on_chip), blank((rows, *x.shape[1:]), x, on_chip)
    ncc.reduce_scatter([src], [dst], ncc.ReplicaGroup(groups), collective_dim=0, op=op)
    return out_of(dst)


@settings(max_examples=20, deadline=None)
@given(grouping, st.sampled_from(list(REDUCERS)), st.booleans(), dtypes, st.integers(1, 4))
def test_reduce_scatter(groups: Any, op: Any, on_chip: bool, dtype: Any, columns: int) -> None:
    data = numbers(4, 8, columns, dtype=dtype)
    for rank, result in enumerate(
        run(scattered, data, groups=tuple(map(tuple, groups)), op=op, on_chip=on_chip)
    ):
        mine = members(rank, groups)
        whole = REDUCERS[op](np.stack([data[r].astype(np.float64) for r in mine]), axis=0)
        expected = np.split(whole, len(mine))[mine.index(rank)]
        np.testing.assert_array_equal(result.astype(np.float64), expected, strict=True)


def exchanged(x: Any, groups: Any) -> Any:
    src, dst = own(x), hbm(*x.shape, dtype=x.dtype)
    ncc.all_to_all([src], [dst], ncc.ReplicaGroup(groups), 0)
    return out_of(dst)


@settings(max_examples=10, deadline=None)
@given(grouping, dtypes, st.integers(1, 3))
def test_all_to_all(groups: Any, dtype: Any, columns: int) -> None:
    data = numbers(4, 8, columns, dtype=dtype)
    for rank, result in enumerate(run(exchanged, data, groups=tuple(map(tuple, groups)))):
        mine = members(rank, groups)
        parts = [np.split(data[r], len(mine))[mine.index(rank)] for r in mine]
        np.testing.assert_array_equal(result, np.concatenate(parts), strict=True)


def permuted(x: Any, pairs: Any) -> Any:
    src, dst = own(x), hbm(*x.shape, dtype=x.dtype)
    nisa.dma_copy(dst=dst, src=x)
    ncc.collective_permute([src], [dst], pairs)
    return out_of(dst)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 4))
def test_collective_permute(targets: list[int], count: int) -> None:
    """A rank that is no target keeps what its dst held."""
    pairs = tuple(enumerate(targets))[:count]
    data = numbers(4, 2, 3)
    source = {target: rank for rank, target in pairs}
    for rank, result in enumerate(run(permuted, data, pairs=pairs)):
        np.testing.assert_array_equal(result, data[source.get(rank, rank)])


def ring(x: Any, groups: Any, steps: int, channels: int) -> Any:
    """Send the rows on and on; note whose data is here after each step."""
    group = ncc.ReplicaGroup(groups)
    history = hbm(steps + 1, *x.shape)
    whose = hbm(steps + 1, 1, dtype=nl.int32)
    current = own(x)
    each = x.shape[0] // channels
    for step in range(steps + 1):
        nisa.dma_copy(dst=history[step], src=current)
        register = ncc.collective_permute_implicit_current_processing_rank_id(
            iteration_id=step, replica_group=group, channel_id=0
        )
        nisa.register_store(whose[step, 0:1], register)
        following = hbm(*x.shape)
        parts = [slice(c * each, (c + 1) * each) for c in range(channels)]
        ncc.collective_permute_implicit(
            srcs_by_channel=[[current[part]] for part in parts],
            dsts_by_channel=[[following[part]] for part in parts],
            replica_group=group,
            channel_ids=list(range(channels)),
        )
        current = following
    return history, whose


@pytest.mark.parametrize("groups", [((0, 1, 2, 3),), ((2, 0), (3, 1))])
@pytest.mark.parametrize("channels", [1, 2])
def test_rings(groups: Any, channels: int) -> None:
    data = numbers(4, 2, 3)
    found: Any = run(ring, data, groups=groups, steps=4, channels=channels)
    for rank, (history, whose) in enumerate(found):
        mine = members(rank, groups)
        for step in range(5):
            owner = mine[(mine.index(rank) - step) % len(mine)]
            assert whose[step, 0] == owner
            np.testing.assert_array_equal(history[step], data[owner])


def ring_reduced(x: Any, y: Any, group: Any, op: Any) -> Any:
    dst = hbm(*x.shape)
    ncc.collective_permute_implicit_reduce([[own(x)]], [[own(y)]], [[dst]], group, op)
    return out_of(dst)


@pytest.mark.parametrize("op", list(REDUCERS), ids=lambda op: op.name)
def test_ring_reduce(op: Any) -> None:
    xs, ys = numbers(3, 2, 3), numbers(3, 2, 3, seed=1)
    group = ncc.ReplicaGroup([[0, 1, 2]])
    found = simulate_ranks(
        nki.jit(ring_reduced), [(x, y, group, op) for x, y in zip(xs, ys, strict=True)]
    )
    for rank, result in enumerate(found):
        before = (rank - 1) % 3
        np.testing.assert_array_equal(result, REDUCERS[op](np.stack([xs[before], ys[before]]), 0))


def variable(
    x: Any, metadata: Any, size: int, known: bool, on_chip: bool, has_rdispls: bool
) -> Any:
    """all_to_all_v into a dst full of -1; returns it and the counts."""
    rows, ranks = metadata.shape
    filled = sbuf(1, size)
    nisa.memset(dst=filled, value=-1.0)
    dst = hbm(size)
    nisa.dma_copy(dst=dst, src=filled)
    meta = own(metadata)
    if on_chip:
        meta = sbuf(1, rows, ranks, dtype=nl.uint32)
        nisa.dma_copy(dst=meta, src=metadata)
    ncc.all_to_all_v(
        srcs=[own(x)], dsts=[dst], replica_group=ncc.ReplicaGroup([list(range(ranks))]),
        metadata_tensor=meta, recv_counts_known=known, has_rdispls=has_rdispls,
    )  # fmt: skip
    return out_of(dst), own(meta)


@settings(max_examples=15, deadline=None)
@given(st.data(), st.booleans(), st.booleans(), st.booleans())
def test_all_to_all_v(data: Any, known: bool, on_chip: bool, explicit: bool) -> None:
    ranks, size = 3, 12
    draw = data.draw
    counts = np.array([[draw(st.integers(0, 4)) for _ in range(ranks)] for _ in range(ranks)])
    starts = np.array([[draw(st.integers(0, 6)) for _ in range(ranks)] for _ in range(ranks)])
    into = np.array([draw(st.permutations([0, 4, 8])) for _ in range(ranks)])
    xs = numbers(ranks, 10)
    nine = np.full((1, ranks), 9)
    metadata = [
        np.concatenate([counts[[r]], starts[[r]], nine, *([into[[r]]] * explicit)]).astype(
            np.uint32
        )
        for r in range(ranks)
    ]
    found = simulate_ranks(
        nki.jit(variable),
        [(x, m, size, known, on_chip, explicit) for x, m in zip(xs, metadata, strict=True)],
    )
    for rank, (result, meta) in enumerate(found):
        expected = np.full(size, -1.0, np.float32)
        for sender in range(ranks):
            count, start = counts[sender, rank], starts[sender, rank]
            at = into[rank, sender] if explicit else sender * size // ranks
            expected[at : at + count] = xs[sender][start : start + count]
        np.testing.assert_array_equal(result, expected)
        received = meta.reshape(-1, ranks)[2]
        np.testing.assert_array_equal(received, nine[0] if known else counts[:, rank])


def gather_v(x: Any, metadata: Any, size: int) -> Any:
    me = nl.program_id(0)
    filled = sbuf(1, size)
    nisa.memset(dst=filled, value=-1.0)
    dst, src, meta = hbm(size), hbm(*x.shape), hbm(*metadata.shape, dtype=nl.uint32)
    if me == 0:
        nisa.dma_copy(dst=dst, src=filled)
        nisa.dma_copy(dst=src, src=x)
        nisa.dma_copy(dst=meta, src=metadata)
    for tensor in (dst, src, meta):
        nisa.core_barrier(tensor, (0, 1))
    ncc.all_gather_v([src], [dst], ncc.ReplicaGroup([[0, 1, 2, 3]]), meta)
    out, counts = hbm(size), hbm(*metadata.shape, dtype=nl.uint32)
    if me == 0:
        nisa.dma_copy(dst=out, src=dst)
        nisa.dma_copy(dst=counts, src=meta)
    return out, counts


def test_all_gather_v_with_two_cores_per_rank() -> None:
    xs = numbers(4, 6)
    counts, starts = [3, 0, 2, 1], [0, 1, 4, 5]
    metadata = []
    for rank in range(4):
        rows = np.zeros((3, 4), np.uint32)
        rows[0, 0], rows[1, 0] = counts[rank], starts[rank]
        metadata.append(rows)
    found = simulate_ranks(
        nki.jit(gather_v)[2], [(x, m, 12) for x, m in zip(xs, metadata, strict=True)]
    )
    expected = np.full(12, -1.0, np.float32)
    for sender in range(4):
        chunk = xs[sender][starts[sender] : starts[sender] + counts[sender]]
        expected[3 * sender : 3 * sender + counts[sender]] = chunk
    for result, meta in found:
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(meta[2], counts)


def by_rank(x: Any) -> Any:
    """This rank's row of a table, by a register and by a register in a tile."""
    row, again = hbm(1, x.shape[1]), hbm(1, x.shape[1])
    register = ncc.rank_id()
    width = x.shape[1]
    nisa.dma_copy(dst=row, src=x.ap([[width, 1], [1, width]], 0, scalar_offset=register))
    index = sbuf(1, 1, dtype=nl.int32)
    nisa.register_store(index, register)
    nisa.dma_copy(dst=again, src=x.ap([[width, 1], [1, width]], 0, scalar_offset=index))
    return row, again


def test_rank_id_is_a_register() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    for rank, (row, again) in enumerate(simulate_ranks(nki.jit(by_rank), [(table,)] * 4)):
        np.testing.assert_array_equal(row, table[[rank]])
        np.testing.assert_array_equal(again, table[[rank]])
    np.testing.assert_array_equal(nki.jit(by_rank)(table)[0], table[[0]])  # one rank is rank 0


def ring_in_a_loop(x: Any, groups: Any, steps: Any) -> Any:
    """A collective in a dynamic loop, with the iteration's register as ring step."""
    group = ncc.ReplicaGroup(groups)
    total, current, following = sbuf(*x.shape), own(x), hbm(*x.shape)
    whose = hbm(8, 1, dtype=nl.int32)
    nothing = sbuf(8, 1, dtype=nl.int32)
    nisa.memset(dst=nothing, value=-1)
    nisa.dma_copy(dst=whose, src=nothing)
    nisa.memset(dst=total, value=0.0)
    count = nisa.register_alloc(None)
    nisa.register_load(count, steps)
    for i in nl.dynamic_range(count):
        tile = sbuf(*x.shape)
        nisa.dma_copy(dst=tile, src=current)
        nisa.tensor_tensor(dst=total, data1=total, data2=tile, op=nl.add)
        rank = ncc.collective_permute_implicit_current_processing_rank_id(i, group)
        nisa.register_store(whose.ap([[1, 1], [1, 1]], 0, scalar_offset=i), rank)
        ncc.collective_permute_implicit([[current]], [[following]], group)
        nisa.dma_copy(dst=current, src=following)
    return out_of(total), whose


def test_collectives_in_dynamic_loops_and_uneven_trip_counts() -> None:
    xs = numbers(3, 2, 3)
    kernel = nki.jit(ring_in_a_loop)
    three = [(x, ((0, 1, 2),), np.array([[3]], np.int32)) for x in xs]
    for rank, (total, whose) in enumerate(simulate_ranks(kernel, three)):
        np.testing.assert_array_equal(total, sum(xs))
        np.testing.assert_array_equal(whose[:3, 0], [(rank - i) % 3 for i in range(3)])
        assert (whose[3:] == -1).all()
    three[1] = (xs[1], ((0, 1, 2),), np.array([[2]], np.int32))
    assert_partner_missing(lambda: simulate_ranks(kernel, three), "has ended")


# --- ranks that do not come -----------------------------------------------------------------


def assert_partner_missing(call: Callable[[], Any], text: str) -> None:
    """The call ends (in another thread, within seconds) with a collective-partner error."""
    outcome: list[Any] = []

    def attempt() -> None:
        try:
            outcome.append(call())
        except NkiValidationError as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(20)
    assert outcome, "the ranks hang"
    assert isinstance(outcome[0], NkiValidationError)
    (found,) = outcome[0].violations
    assert (found.rule, found.file) == ("collective-partner", __file__)
    assert text in found.message
    assert found.line


def test_a_rank_alone_runs_in_a_group_of_itself_only() -> None:
    x = numbers(1, 4, 3)[0]
    kernel = nki.jit(all_reduced)
    np.testing.assert_array_equal(kernel(x, ((0,),), nl.add, False), x)
    np.testing.assert_array_equal(kernel(x, ((0,),), nl.add, True), x)
    assert_partner_missing(lambda: kernel(x, ((0, 1),), nl.add, False), "runs alone")
    assert_partner_missing(lambda: kernel(x, ((1, 2),), nl.add, False), "in no rank list")
    np.testing.assert_array_equal(nki.simulate(kernel, eager=True)(x, ((0,),), nl.add, False), x)


def test_a_group_with_ranks_that_do_not_exist() -> None:
    data = numbers(2, 2, 3)
    assert_partner_missing(
        lambda: run(all_reduced, data, groups=((0, 1, 2),), op=nl.add, on_chip=False),
        "does not exist",
    )


def crossed(x: Any, lists: Any) -> Any:
    """Each rank goes round its list, in opposite directions on the two of them."""
    register = ncc.rank_id()
    src, dst = own(x), hbm(*x.shape)
    for _ in nl.dynamic_range(register):  # rank 0 skips it
        ncc.all_reduce([src], [dst], ncc.ReplicaGroup(lists), nl.add)
    ncc.all_gather([src], [hbm(2 * x.shape[0], *x.shape[1:])], ncc.ReplicaGroup(lists), 0)
    return out_of(src)


def test_ranks_at_different_collectives_are_told() -> None:
    data = numbers(2, 2, 3)
    assert_partner_missing(lambda: run(crossed, data, lists=((0, 1),)), "another rank at")


def waiting_in_a_ring(x: Any) -> Any:
    """Rank 0 waits for 1, 1 for 2 and 2 for 0: nobody can go on."""
    src, dst = own(x), hbm(*x.shape)
    rank = ncc.rank_id()
    for _ in nl.dynamic_range(rank):
        for _ in nl.dynamic_range(1):
            ncc.collective_permute([src], [dst], [(1, 2)])
        ncc.collective_permute([src], [dst], [(0, 2)])
    ncc.collective_permute([src], [dst], [(0, 1)])
    return out_of(src)


def test_a_deadlock_is_an_error() -> None:
    assert_partner_missing(lambda: run(waiting_in_a_ring, numbers(3, 2, 3)), "waits")


def test_an_error_on_one_rank_is_the_one_that_is_raised() -> None:
    """Rank 1's index is out of bounds; the others wait for it."""

    def body(x: Any, index: Any) -> Any:
        tile, row = sbuf(1, 1, dtype=nl.int32), hbm(1, 3)
        nisa.dma_copy(dst=tile, src=index)
        nisa.dma_copy(dst=row, src=x.ap([[3, 1], [1, 3]], 0, scalar_offset=tile))
        dst = hbm(1, 3)
        ncc.all_reduce([row], [dst], ncc.ReplicaGroup([[0, 1, 2]]), nl.add)
        return out_of(dst)

    x = numbers(1, 2, 3)[0]
    indices = [np.array([[i]], np.int32) for i in (0, 7, 1)]
    with pytest.raises(NkiValidationError) as caught:
        simulate_ranks(nki.jit(body), [(x, index) for index in indices])
    assert [v.rule for v in caught.value.violations] == ["dynamic-out-of-bounds"]


def test_the_ranks_must_agree_on_shapes() -> None:
    kernel = nki.jit(all_reduced)
    group = ((0, 1),)
    a, b = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)
    for bad in ([(a, group, nl.add, False), (b, group, nl.add, False)], [3]):
        with pytest.raises(NkiValidationError, match="collective-arguments"):
            simulate_ranks(kernel, bad)
    assert simulate_ranks(kernel, []) == []


def test_torch_ranks_and_arguments_updated_in_place() -> None:
    def body(x: Any) -> Any:
        src, dst = own(x), hbm(*x.shape, dtype=x.dtype)
        ncc.all_reduce([src], [dst], ncc.ReplicaGroup([[0, 1]]), nl.add)
        nisa.dma_copy(dst=x, src=dst)
        return x

    tensors = [torch.full((2, 3), float(v), dtype=torch.bfloat16) for v in (1, 2)]
    found = simulate_ranks(nki.jit(body), [(t,) for t in tensors])
    for result, tensor in zip(found, tensors, strict=True):
        assert result is tensor
        assert torch.equal(tensor, torch.full((2, 3), 3.0, dtype=torch.bfloat16))


def test_sbuf_collectives_of_two_cores_per_rank() -> None:
    """Each core of a rank reduces its own half with the same core of the other rank."""

    def body(x: Any) -> Any:
        me = nl.program_id(0)
        out = hbm(2, *x.shape[1:])
        tile, total = tile_of(x[me : me + 1, :]), sbuf(1, x.shape[1])
        ncc.all_reduce([tile], [total], ncc.ReplicaGroup([[0, 1]]), nl.add)
        nisa.dma_copy(dst=out[me : me + 1, :], src=total)
        return out

    xs = numbers(2, 2, 3)
    for result in simulate_ranks(nki.jit(body)[2], [(x,) for x in xs]):
        np.testing.assert_array_equal(result, xs[0] + xs[1])


def test_a_hbm_collective_of_two_cores_needs_both() -> None:
    def body(x: Any) -> Any:
        me = nl.program_id(0)
        src, dst, out = hbm(2, 3), hbm(2, 3), hbm(2, 3)
        nisa.dma_copy(dst=src[me : me + 1, :], src=x[me : me + 1, :])
        ncc.all_reduce([src], [dst], ncc.ReplicaGroup([[0, 1]]), nl.add)  # waits for both cores
        nisa.dma_copy(dst=out[me : me + 1, :], src=dst[1 - me : 2 - me, :])
        return out

    xs = numbers(2, 2, 3)
    assert not [w for w in nki.jit(body)[2].specialise(xs[0]).warnings if w.rule.startswith("lnc")]
    for result in simulate_ranks(nki.jit(body)[2], [(x,) for x in xs]):
        np.testing.assert_array_equal(result, (xs[0] + xs[1])[::-1])

    def lonely(x: Any) -> Any:
        src, dst = hbm(2, 3), hbm(2, 3)
        if nl.program_id(0) == 0:
            nisa.dma_copy(dst=src, src=x)
            ncc.all_reduce([src], [dst], ncc.ReplicaGroup([[0]]), nl.add)
        return dst

    with pytest.raises(NkiValidationError, match="lnc-partner"):
        nki.jit(lonely)[2](xs[0])


# --- refusals -------------------------------------------------------------------------------

X = TensorSpec((4, 8), nl.float32)
PAIR = ncc.ReplicaGroup([[0, 1]])


def calling(name: str, dst_shape: tuple[int, ...], **changes: Any) -> Callable[..., Any]:
    """A kernel with one collective whose operands are changed."""

    def body(x: Any) -> Any:
        on_chip = changes.get("on_chip", False)
        src = made(x, on_chip)
        dst = blank(dst_shape, x, changes.get("dst_on_chip", on_chip))
        operands: dict[str, Any] = {"srcs": [src], "dsts": [dst], "replica_group": PAIR}
        operands |= {"op": nl.add} if "reduce" in name else {}
        operands |= {"collective_dim": 0} if name in DIMS else {}
        for key, value in changes.items():
            if not key.endswith("on_chip"):
                operands[key] = value(src, dst) if callable(value) and key in LATER else value
        getattr(ncc, name)(**operands)
        return out_of(src)

    return body


DIMS = ("all_gather", "reduce_scatter", "all_to_all")
LATER = ("srcs", "dsts")
A, B = (4, 8), (8, 8)


@pytest.mark.parametrize(
    ("body", "rule", "limit", "value"),
    [
        (calling("all_reduce", B), "collective-shape", "(4, 8)", "(8, 8)"),
        (calling("all_gather", A), "collective-shape", "(8, 8)", "(4, 8)"),
        (calling("reduce_scatter", A), "collective-shape", "(2, 8)", "(4, 8)"),
        (calling("all_to_all", B), "collective-shape", "(4, 8)", "(8, 8)"),
        (calling("reduce_scatter", A, replica_group=ncc.ReplicaGroup([[0, 1, 2]])),
         "collective-shape", "a multiple of the ranks", "4"),
        (calling("all_gather", B, collective_dim=1), "collective-dim", "0", "1"),
        (calling("all_gather", B, collective_dim=2, on_chip=True), "collective-dim", "0 or 1", "2"),
        (calling("reduce_scatter", (2, 8), collective_dim=1, on_chip=True), "collective-dim", "0",
         "1"),
        (calling("all_to_all", A, on_chip=True), "collective-buffer", "HBM", "sbuf"),
        (calling("all_reduce", A, dst_on_chip=True), "collective-buffer",
         "all in HBM or all in SBUF", "both"),
        (calling("all_reduce", A, on_chip=True, srcs=lambda s, d: [s, s],
                 dsts=lambda s, d: [d, d]), "collective-buffer", "1 tensor", "2 tensors"),
        (calling("all_reduce", A, srcs=lambda s, d: [s, s]), "collective-tensors", "2 tensors",
         "1 tensors"),
        (calling("all_reduce", A, srcs=lambda s, d: s), "operand", "list", "NkiTensor"),
        (calling("all_reduce", A, srcs=[]), "collective-tensors", "0 tensors", "1 tensors"),
        (calling("all_reduce", A, srcs=[3]), "operand", "NkiTensor", "int"),
        (calling("all_reduce", A, dsts=lambda s, d: [s.view(nl.int32)]), "collective-dtype",
         "float32", "int32"),
        (calling("all_reduce", A, op=nl.multiply), "operator", "", "nl.multiply"),
        (calling("all_reduce", A, replica_group=[[0, 1]]), "replica-group", "", "[[0, 1]]"),
        (calling("all_reduce", A, replica_group=ncc.ReplicaGroup([[0, 1], [1, 2]])),
         "replica-group", "", "[[0, 1], [1, 2]]"),
        (calling("all_reduce", A, replica_group=ncc.ReplicaGroup([[0, 1], [2]])),
         "replica-group", "", "[[0, 1], [2]]"),
        (calling("all_reduce", A, replica_group=ncc.ReplicaGroup([[0, -1]])),
         "replica-group", "", "[[0, -1]]"),
        (calling("all_reduce", A, replica_group=ncc.ReplicaGroup([])), "replica-group", "", "[]"),
        (calling("all_reduce", A, priority=1), "gen4-only", "trn3", "trn2"),
    ],
)  # fmt: skip
def test_refusals(body: Callable[..., Any], rule: str, limit: str, value: str) -> None:
    found = violations(body, x=X)
    assert {v.rule for v in found} == {rule}
    assert limit in ("", found[0].limit)
    assert value in ("", found[0].value)
    assert found[0].mend
    assert found[0].line


def test_refusals_of_permutes_and_rings() -> None:
    def permute(pairs: Any) -> Callable[..., Any]:
        def body(x: Any) -> Any:
            src = own(x)
            ncc.collective_permute([src], [hbm(*x.shape)], pairs)
            return out_of(src)

        return body

    for pairs in ([(0, 1), (0, 2)], [(0, 1), (2, 1)], [(0,)], 3, [(0, "1")]):
        assert {v.rule for v in violations(permute(pairs), x=X)} == {"replica-group"}

    def step(**changes: Any) -> Callable[..., Any]:
        def body(x: Any) -> Any:
            src, dst = own(x), hbm(*x.shape)
            operands: dict[str, Any] = {
                "srcs_by_channel": [[src]], "dsts_by_channel": [[dst]], "replica_group": PAIR
            }  # fmt: skip
            ncc.collective_permute_implicit(**operands | changes)
            return out_of(src)

        return body

    for changes in ({"channel_ids": [1]}, {"channel_ids": [0, 1]}, {"channel_ids": 0}):
        assert {v.rule for v in violations(step(**changes), x=X)} == {"collective-channel"}

    def two_in_a_channel(x: Any) -> Any:
        src = own(x)
        ncc.collective_permute_implicit([[src, src]], [[src]], PAIR)
        return out_of(src)

    assert {v.rule for v in violations(two_in_a_channel, x=X)} == {"collective-tensors"}

    def ring_step(iteration: Any, channel: Any) -> Callable[..., Any]:
        def body(x: Any) -> Any:
            ncc.collective_permute_implicit_current_processing_rank_id(iteration, PAIR, channel)
            return out_of(x)

        return body

    assert {v.rule for v in violations(ring_step("0", 0), x=X)} == {"operand"}
    assert {v.rule for v in violations(ring_step(0, 4), x=X)} == {"collective-channel"}


def test_refusals_of_variable_lengths() -> None:
    def body_of(name: str, shape: tuple[int, ...], **changes: Any) -> Callable[..., Any]:
        def body(x: Any, m: Any) -> Any:
            src, dst = own(x), hbm(*x.shape)
            group = changes.get("group", PAIR)
            meta = nl.ndarray(shape, dtype=m.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(dst=meta, src=m.ap([[0, meta.size], [1, 1]], 0))
            getattr(ncc, name)([src], [dst], group, meta, True, changes.get("displaced", False))
            return out_of(src)

        return body

    meta = TensorSpec((1, 1), nl.uint32)
    wrong = TensorSpec((1, 1), nl.int32)
    found = violations(body_of("all_to_all_v", (4, 2)), x=X, m=meta)
    assert [(v.rule, v.limit, v.value) for v in found] == [("collective-shape", "(3, 2)", "(4, 2)")]
    found = violations(body_of("all_to_all_v", (3, 2)), x=X, m=wrong)
    assert [(v.rule, v.value) for v in found] == [("collective-dtype", "int32")]
    found = violations(body_of("all_gather_v", (4, 2), displaced=True), x=X, m=meta)
    assert [v.rule for v in found] == ["collective-limit"] * 3


def test_a_chunk_that_does_not_fit_is_an_error_at_run_time() -> None:
    meta = [np.array([[1, 1], [0, 0], [0, 0]], np.uint32) for _ in range(2)]
    xs = numbers(2, 10)
    for row, column, value in ((0, 1, 7), (1, 1, 10)):
        bad = meta[0].copy()
        bad[row, column] = value
        with pytest.raises(NkiValidationError) as caught:
            simulate_ranks(
                nki.jit(variable),
                [(x, m, 12, True, False, False) for x, m in zip(xs, (bad, meta[1]), strict=True)],
            )
        assert caught.value.violations[0].rule == "dynamic-out-of-bounds"


def test_versions_and_targets() -> None:
    def body(x: Any, priority: Any, name: Any) -> Any:
        src, dst = own(x), hbm(*x.shape)
        ncc.all_reduce([src], [dst], PAIR, nl.add, priority, name)
        return out_of(dst)

    kernel = nki.jit(body)
    trn3 = TARGETS["trn3"]
    assert kernel.specialise(X, None, None).versions[0] == "0.3"
    assert kernel.specialise(X, None, "sum").versions[0] == "0.5"
    assert kernel.specialise(X, 2, None, target=trn3).versions[0] == "0.4"
    with pytest.raises(NkiValidationError, match="collective-priority"):
        kernel.specialise(X, 4, None, target=trn3)
    program = nki.jit(gather_v)[2].specialise(
        TensorSpec((6,), nl.float32), TensorSpec((3, 4), nl.uint32), 12
    )
    assert program.versions[0] == "0.6"


def test_arguments_in_a_collective_are_a_warning() -> None:
    def body(x: Any) -> Any:
        dst = hbm(*x.shape)
        ncc.all_reduce([x], [dst], ncc.ReplicaGroup([[0]]), nl.add)
        return out_of(dst)

    (warning,) = nki.jit(body).specialise(X).warnings
    assert (warning.rule, warning.value) == ("collective-argument", "x")


def test_groups_by_operation() -> None:
    make, op = ncc.ReplicaGroup.from_partition_op, ncc.rg_partition_op
    assert make(8, op.bitwise_and, 0).groups == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert make(8, op.div, 4).groups == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert make(8, op.mod, 4).groups == [[0, 4], [1, 5], [2, 6], [3, 7]]


# --- a wrong implementation is noticed ------------------------------------------------------


@pytest.mark.parametrize("wrong", ["own data only", "reversed"])
def test_wrong_exchanges_are_noticed(monkeypatch: Any, wrong: str) -> None:
    original = ranks_module.Ranks.exchange

    def exchange(self: Any, group: Any, instruction: Any, values: Any) -> Any:
        found = original(self, group, instruction, values)
        return found[::-1] if wrong == "reversed" else [values] * len(group)

    monkeypatch.setattr(ranks_module.Ranks, "exchange", exchange)
    with pytest.raises(AssertionError):
        test_rings(((0, 1, 2, 3),), 1)
    data = numbers(4, 2, 3)
    found = run(all_gathered, data, groups=((0, 1, 2, 3),), dim=0, on_chip=False)
    assert not np.array_equal(found[1], np.concatenate(data))


COVERED = {
    "all_reduce": test_all_reduce,
    "all_gather": test_all_gather,
    "reduce_scatter": test_reduce_scatter,
    "all_to_all": test_all_to_all,
    "all_to_all_v": test_all_to_all_v,
    "all_gather_v": test_all_gather_v_with_two_cores_per_rank,
    "collective_permute": test_collective_permute,
    "collective_permute_implicit": test_rings,
    "collective_permute_implicit_reduce": test_ring_reduce,
    "collective_permute_implicit_current_processing_rank_id": test_rings,
    "rank_id": test_rank_id_is_a_register,
}
FIRES = {
    "collective-partner", "collective-arguments", "collective-shape", "collective-dim",
    "collective-buffer", "collective-tensors", "collective-dtype", "collective-channel",
    "collective-limit", "collective-priority", "collective-argument", "replica-group",
}  # fmt: skip
