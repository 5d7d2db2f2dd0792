"""The limits of GpSimd instructions: each is refused alone, at its line; neighbours pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import pytest
from rule_bench import X, assert_fires_alone, loaded, sbuf, stored
from tile_bench import target


def filled(*shape: int, dtype: Any = nl.float32) -> Any:
    tile = sbuf(*shape, dtype=dtype)
    nisa.memset(dst=tile, value=1)
    return tile


def five_entries(x: Any) -> Any:
    tile = loaded(x)
    nisa.iota(tile, [[1, 2]] * 5)
    return stored(tile)


def short_pattern(x: Any) -> Any:
    tile = loaded(x)
    nisa.iota(tile, [[1, 31]])
    return stored(tile)


def float_offset(x: Any) -> Any:
    tile = loaded(x)
    nisa.iota(tile, [[1, 32]], offset=0.5)
    return stored(tile)


def wide_multiplier(x: Any) -> Any:
    tile = loaded(x)
    nisa.iota(tile, [[1, 32]], channel_multiplier=2**31)
    return stored(tile)


def iota_in_psum(x: Any) -> Any:
    tile = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.iota(tile, [[1, 32]])
    return stored(loaded(x))


def false_tile(x: Any) -> Any:
    tile = loaded(x)
    nisa.affine_select(tile, [[1, 32]], 0, tile, tile)
    return stored(tile)


def select_by_sum(x: Any) -> Any:
    tile = loaded(x)
    nisa.affine_select(tile, [[1, 32]], 0, tile, 0.0, cmp_op=nl.add)
    return stored(tile)


def two_sequences(x: Any) -> Any:
    bounds = sbuf(2, 2, 32)
    nisa.sequence_bounds(dst=bounds, segment_ids=loaded(x)[0:2, :])
    return stored(bounds)


def flat_bounds(x: Any) -> Any:
    bounds = sbuf(1, 32)
    nisa.sequence_bounds(dst=bounds, segment_ids=loaded(x)[0:1, :])
    return stored(bounds)


def short_sequence(x: Any) -> Any:
    bounds = sbuf(1, 2, 32)
    nisa.sequence_bounds(dst=bounds, segment_ids=filled(1, 32, dtype=nl.int16))
    return stored(bounds)


def no_room_for_the_count(x: Any) -> Any:
    places = filled(64, 32, dtype=nl.int32)
    nisa.nonzero_with_count(dst=places, src=loaded(x))
    return stored(places)


def unwritten_between(x: Any) -> Any:
    places = sbuf(64, 33, dtype=nl.int32)
    nisa.nonzero_with_count(dst=places, src=loaded(x))
    return stored(places)


def float_padding(x: Any) -> Any:
    places = filled(64, 33, dtype=nl.int32)
    nisa.nonzero_with_count(dst=places, src=loaded(x), padding_val=-1.0)
    return stored(places)


def top(rows: int, columns: int, n: Any, k: int, dtype: Any = nl.bfloat16) -> Any:
    src, values = filled(rows, columns, dtype=dtype), sbuf(rows, k, dtype=nl.bfloat16)
    return {"src": src, "val_dst": values, "idx_dst": sbuf(rows, k, dtype=nl.uint32), "n": n}


def half_a_core(x: Any) -> Any:
    operands = top(24, 4, 32, 8)
    nisa.topk(**operands)
    return stored(operands["val_dst"])


def seven_of_a_snake(x: Any) -> Any:
    operands = top(32, 4, 7, 4)
    nisa.topk(**operands)
    return stored(operands["val_dst"])


def longer_than_the_snake(x: Any) -> Any:
    operands = top(32, 4, 65, 4)
    nisa.topk(**operands)
    return stored(operands["val_dst"])


def more_than_there_are(x: Any) -> Any:
    operands = top(32, 4, 33, 34)
    nisa.topk(**operands)
    return stored(operands["val_dst"])


def top_of_float32(x: Any) -> Any:
    operands = top(32, 4, 33, 8, nl.float32)
    nisa.topk(**operands)
    return stored(operands["val_dst"])


def three_at_a_time(x: Any) -> Any:
    out, index = sbuf(64, 48), filled(64, 1, dtype=nl.uint16)
    nisa.local_gather(dst=out, src_buffer=loaded(x), index=index, num_elem_per_idx=3)
    return stored(out)


def too_many_valid(x: Any) -> Any:
    out, index = sbuf(64, 17), filled(64, 1, dtype=nl.uint16)
    nisa.local_gather(dst=out, src_buffer=loaded(x), index=index, num_valid_indices=17)
    return stored(out)


def too_many_indices(x: Any) -> Any:
    out, index = sbuf(64, 4112), filled(64, 257, dtype=nl.uint16)
    nisa.local_gather(dst=out, src_buffer=loaded(x), index=index)
    return stored(out)


def small_destination(x: Any) -> Any:
    out, index = sbuf(64, 16), filled(64, 1, dtype=nl.uint16)
    nisa.local_gather(dst=out, src_buffer=loaded(x), index=index, num_elem_per_idx=2)
    return stored(out)


def wide_index(x: Any) -> Any:
    out, index = sbuf(64, 16), filled(64, 1, dtype=nl.uint32)
    nisa.local_gather(dst=out, src_buffer=loaded(x), index=index)
    return stored(out)


def casting_gather(x: Any) -> Any:
    out, index = sbuf(64, 16, dtype=nl.bfloat16), filled(64, 1, dtype=nl.uint16)
    nisa.local_gather(dst=out, src_buffer=loaded(x), index=index)
    return stored(out)


def gather_of_24(x: Any) -> Any:
    out, index = sbuf(24, 16), filled(24, 1, dtype=nl.uint16)
    nisa.local_gather(dst=out, src_buffer=filled(24, 8), index=index)
    return stored(out)


def signed_index(x: Any) -> Any:
    out, index = sbuf(64, 2), filled(64, 2, dtype=nl.int32)
    nisa.nc_n_gather(dst=out, data=loaded(x), indices=index)
    return stored(out)


def more_room_than_indices(x: Any) -> Any:
    out, index = sbuf(64, 3), filled(64, 2, dtype=nl.uint32)
    nisa.nc_n_gather(dst=out, data=loaded(x), indices=index)
    return stored(out)


def two_rows(x: Any) -> Any:
    out = sbuf(2, 32)
    nisa.tensor_partition_reduce(out, nl.add, loaded(x))
    return stored(out)


def half_a_row(x: Any) -> Any:
    out = sbuf(1, 16)
    nisa.tensor_partition_reduce(out, nl.add, loaded(x))
    return stored(out)


def smallest_row(x: Any) -> Any:
    out = sbuf(1, 32)
    nisa.tensor_partition_reduce(out, nl.minimum, loaded(x))
    return stored(out)


PAIRS = "1 to 4 pairs [step, number of steps]"
RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    five_entries: ("immediate", PAIRS, str([[1, 2]] * 5)),
    short_pattern: ("immediate", "32 elements, as dst has", "31 elements"),
    float_offset: ("immediate", "int32", "0.5"),
    wide_multiplier: ("immediate", "int32", str(2**31)),
    iota_in_psum: ("buffer", "sbuf", "psum"),
    false_tile: ("immediate", "a number", ""),
    select_by_sum: ("operator", "", "nl.add"),
    two_sequences: ("shape", "1 partition", "2"),
    flat_bounds: ("shape", "64", "32"),
    short_sequence: ("dtype", "float32, int32", "int16"),
    no_room_for_the_count: ("shape", "33", "32"),
    unwritten_between: ("uninitialised-read", "0 unwritten elements", str(60 * 33)),
    float_padding: ("immediate", "int32", "-1.0"),
    half_a_core: ("partition-group", "a multiple of 16", "24"),
    seven_of_a_snake: ("immediate", "8 to 64", "7"),
    longer_than_the_snake: ("immediate", "8 to 64", "65"),
    more_than_there_are: ("free-size", "1 to 33", "34"),
    top_of_float32: ("dtype", "bfloat16", "float32"),
    three_at_a_time: ("immediate", "1, 2, 4, 8, 16 or 32", "3"),
    too_many_valid: ("immediate", "1 to 16", "17"),
    too_many_indices: ("immediate", "1 to 4096", "4112"),
    small_destination: ("shape", "32", "16"),
    wide_index: ("dtype", "uint16", "uint32"),
    casting_gather: ("dtype", "float32", "bfloat16"),
    gather_of_24: ("partition-group", "a multiple of 16", "24"),
    signed_index: ("dtype", "uint32", "int32"),
    more_room_than_indices: ("shape", "2", "3"),
    two_rows: ("shape", "1 partition", "2"),
    half_a_row: ("shape", "32", "16"),
    smallest_row: ("operator", "", "nl.minimum"),
}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])


def widest(x: Any) -> Any:
    out = sbuf(32, 4096)
    nisa.local_gather(dst=out, src_buffer=filled(32, 2), index=filled(32, 256, dtype=nl.uint16))
    tile = filled(64, 2, 2, 4, 2)
    nisa.iota(tile, [[1, 2], [5, 2], [7, 4], [-(2**31), 2]], offset=-(2**31))
    return stored(out), stored(tile)


def test_the_widest_legal_operands_pass() -> None:
    with target("trn2"):
        assert nki.jit(widest).specialise(x=X).versions[0] == "0.3"


def test_topk_is_new_in_0_6() -> None:
    def body(x: Any) -> Any:
        operands = top(32, 4, 64, 64)
        nisa.topk(**operands)
        return stored(operands["val_dst"])

    assert nki.jit(body).specialise(x=X).versions == ("0.6", "0.7")
