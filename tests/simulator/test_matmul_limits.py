"""The Tensor engine's rules fire alone, at their line; legal neighbours pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import pytest
from matmul_bench import added_to, filled, matmul, output, psum
from rule_bench import X, assert_fires_alone, sbuf, stored, violations

from simulator import dtypes
from simulator.errors import NkiValidationError
from simulator.psum import PsumState
from simulator.targets import TARGETS

double_row = nisa.matmul_perf_mode.double_row


# --- operands ---------------------------------------------------------------------------------


def contraction(x: Any) -> Any:
    return matmul(moving=(64, 256))


def wide_stationary(x: Any) -> Any:
    left, right, tile = filled(128, 129), filled(128, 256), psum(128, 256)
    nisa.nc_matmul(dst=tile[0:128, :], stationary=left[:, 0:128], moving=right)
    nisa.nc_matmul(dst=tile, stationary=left.reshape((128, 129)), moving=right)
    return output(tile)


def wide_moving(x: Any) -> Any:
    left, right, tile = filled(128, 64), filled(128, 513), psum(64, 512)
    nisa.nc_matmul(dst=tile.ap([[512, 64], [1, 512]]), stationary=left, moving=right[:, 0:512])
    nisa.nc_matmul(dst=tile.ap([[512, 64], [0, 513]]), stationary=left, moving=right)
    return output(tile)


def small_dst(x: Any) -> Any:
    return matmul(dst=(64, 255))


def integers(x: Any) -> Any:
    return matmul(dtype=nl.int8)


def mixed_width(x: Any) -> Any:
    return matmul(dtype=nl.float32, moving_dtype=nl.bfloat16)


def low_sum(x: Any) -> Any:
    return matmul(dst_dtype=nl.bfloat16)


def ocp_fp8(x: Any) -> Any:
    return matmul(dtype=nl.bfloat16, moving_dtype=nl.float8_e4m3fn)


def psum_operand(x: Any) -> Any:
    tile = psum(64, 256)
    nisa.nc_matmul(dst=tile, stationary=filled(128, 64), moving=filled(128, 256))
    again = psum(64, 64)
    nisa.nc_matmul(dst=again, stationary=tile[:, 0:64], moving=filled(64, 64, dtype=nl.float32))
    return output(again)


def sbuf_sum(x: Any) -> Any:
    tile = sbuf(64, 256)
    nisa.nc_matmul(dst=tile, stationary=filled(128, 64), moving=filled(128, 256))
    return stored(tile)


def two_banks(x: Any) -> Any:
    tile = psum(64, 1024)
    left, right = filled(128, 64), filled(128, 512)
    nisa.nc_matmul(dst=tile[:, 512:1024], stationary=left, moving=right)
    nisa.nc_matmul(dst=tile[:, 256:768], stationary=left, moving=right)
    return output(tile)


# --- accumulation -----------------------------------------------------------------------------


def added_first(x: Any) -> Any:
    return matmul(accumulate=True)


def added_to_memset(x: Any) -> Any:
    return added_to(lambda tile: nisa.memset(dst=tile, value=0.0))


def added_to_copy(x: Any) -> Any:
    bias = filled(64, 256, dtype=nl.float32)
    return added_to(lambda tile: nisa.tensor_copy(dst=tile, src=bias))


def added_beyond(x: Any) -> Any:
    def first(tile: Any) -> None:
        nisa.nc_matmul(dst=tile[:, 0:255], stationary=filled(128, 64), moving=filled(128, 255))

    return added_to(first)


def added_to_transpose(x: Any) -> Any:
    data = filled(128, 64, dtype=nl.float32)
    tile = psum(64, 128)
    nisa.nc_transpose(dst=tile, data=data)
    left, right = filled(128, 64), filled(128, 128)
    nisa.nc_matmul(dst=tile, stationary=left, moving=right, accumulate=True)
    return output(tile)


def odd_accumulate(x: Any) -> Any:
    return matmul(accumulate=3)


# --- modes ------------------------------------------------------------------------------------


def wide_double_row(x: Any) -> Any:
    return matmul((64, 256), (128, 2, 64), (128, 2, 256), nl.bfloat16, nl.float8_e4m3,
                  perf_mode=double_row)  # fmt: skip


def unknown_mode(x: Any) -> Any:
    return matmul(perf_mode="double_column")


def flat_double_row(x: Any) -> Any:
    return matmul((32, 256), (128, 2, 32), (128, 512), nl.float8_e4m3, perf_mode=double_row)


def tiled_double_row(x: Any) -> Any:
    return matmul((32, 256), (128, 2, 32), (128, 2, 256), nl.float8_e4m3, perf_mode=double_row,
                  tile_position=(0, 0), tile_size=(128, 64))  # fmt: skip


def identity_of_other_size(x: Any) -> Any:
    return matmul((64, 127), (128, 64), (128, 127), dst_dtype=nl.bfloat16, is_transpose=True)


def transpose_into_fp32(x: Any) -> Any:
    return matmul((64, 128), (128, 64), (128, 128), is_transpose=True)


def transpose_added(x: Any) -> Any:
    return matmul((64, 128), (128, 64), (128, 128), dst_dtype=nl.bfloat16, is_transpose=True,
                  accumulate=True)  # fmt: skip


def transpose_of_fp8(x: Any) -> Any:
    return matmul((64, 128), (128, 64), (128, 128), nl.float8_e5m2, dst_dtype=nl.float8_e5m2,
                  is_transpose=True)  # fmt: skip


def half_a_tile(x: Any) -> Any:
    return matmul(tile_size=(128, 64))


def odd_tile(x: Any) -> Any:
    return matmul(tile_position=(0, 0), tile_size=(128, 96))


def misplaced_tile(x: Any) -> Any:
    return matmul(tile_position=(32, 0), tile_size=(64, 64))


def deep_tile(x: Any) -> Any:
    return matmul(tile_position=(0, 0), tile_size=(64, 64))


def operands_elsewhere(x: Any) -> Any:
    left, right, tile = filled(128, 32), filled(128, 256), psum(32, 256)
    nisa.nc_matmul(
        dst=tile, stationary=left[64:128, :], moving=right[0:64, :], tile_position=(64, 0),
        tile_size=(64, 128),
    )  # fmt: skip
    return output(tile)


def sum_elsewhere(x: Any) -> Any:
    tile = psum(64, 256)
    nisa.nc_matmul(
        dst=tile[0:32, :], stationary=filled(128, 32), moving=filled(128, 256),
        tile_position=(0, 32), tile_size=(128, 32),
    )  # fmt: skip
    return output(tile[0:32, :])


# --- nc_transpose -----------------------------------------------------------------------------


def cast_by_transpose(x: Any) -> Any:
    tile = psum(32, 64)
    nisa.nc_transpose(dst=tile, data=filled(64, 32))
    return output(tile)


def large_transpose(x: Any) -> Any:
    tile = psum(128, 128)
    data = filled(128, 129, dtype=nl.float32)
    nisa.nc_transpose(dst=tile.ap([[128, 128], [1, 128]]), data=data[:, 0:128])
    nisa.nc_transpose(dst=tile[0:33, 0:32], data=filled(32, 33, dtype=nl.float32))
    nisa.nc_transpose(
        dst=tile[0:33, 0:32], data=filled(32, 33, dtype=nl.float32), engine=nisa.engine.vector
    )
    return output(tile)


def transposed_shape(x: Any) -> Any:
    tile = psum(32, 32)
    nisa.nc_transpose(dst=tile, data=filled(32, 16, dtype=nl.float32))
    return output(tile)


def transposed_into_sbuf(x: Any) -> Any:
    tile = sbuf(32, 64)
    nisa.nc_transpose(dst=tile, data=filled(64, 32, dtype=nl.float32), engine=nisa.engine.tensor)
    return stored(tile)


def transposed_by_gpsimd(x: Any) -> Any:
    tile = sbuf(32, 32)
    nisa.nc_transpose(dst=tile, data=filled(32, 32, dtype=nl.float32), engine=nisa.engine.gpsimd)
    return stored(tile)


def transposed_bytes(x: Any) -> Any:
    tile = psum(64, 32, dtype=nl.float8_e4m3)
    nisa.nc_transpose(dst=tile, data=filled(32, 64, dtype=nl.float8_e4m3))
    return output(tile)


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    contraction: ("matmul-shape", "128", "64"),
    wide_moving: ("matmul-limit", "512", "513"),
    small_dst: ("matmul-shape", "(64, 256)", "(64, 255)"),
    mixed_width: ("matmul-dtype", "float32 or tfloat32", "bfloat16"),
    low_sum: ("matmul-dtype", "float32", "bfloat16"),
    ocp_fp8: ("gen4-only", "trn3", "trn2"),
    psum_operand: ("buffer", "sbuf", "psum"),
    sbuf_sum: ("buffer", "psum", "sbuf"),
    two_banks: ("psum-bank", "one bank of 2048 bytes", "bytes 1024 to 3071"),
    added_first: ("psum-accumulate", "locations started by a matmul", "never written"),
    added_to_memset: ("psum-accumulate", "", "written by another instruction"),
    added_to_copy: ("psum-accumulate", "", "written by another instruction"),
    added_beyond: ("psum-accumulate", "", "never written"),
    added_to_transpose: ("psum-accumulate", "", "written by another instruction"),
    odd_accumulate: ("operand", "None, True or False", "3"),
    wide_double_row: ("matmul-mode", "", "bfloat16"),
    unknown_mode: ("enum", "none, double_row", "'double_column'"),
    flat_double_row: ("matmul-mode", "(K, 2, free)", "(128, 512)"),
    tiled_double_row: ("matmul-mode", "none", "double_row"),
    identity_of_other_size: ("matmul-mode", "(128, 128)", "(128, 127)"),
    transpose_into_fp32: ("matmul-dtype", "bfloat16", "float32"),
    transpose_added: ("psum-accumulate", "False", "True"),
    transpose_of_fp8: ("transpose-fp8", "", "steps [1] from byte 0"),
    half_a_tile: ("matmul-tiling", "two integers, for both or neither", "()"),
    odd_tile: ("matmul-tiling", "32, 64 or 128 rows and columns", "(128, 96)"),
    misplaced_tile: ("matmul-tiling", "multiples of 64 and 64 below 128", "(32, 0)"),
    deep_tile: ("matmul-tiling", "at most 64 by 64", "(128, 64)"),
    operands_elsewhere: ("matmul-tiling", "starts at partition 64", "0"),
    sum_elsewhere: ("matmul-tiling", "starts at partition 32", "0"),
    cast_by_transpose: ("transpose-dtype", "bfloat16", "float32"),
    large_transpose: ("transpose-size", "[32,32]", "[32,33]"),
    transposed_shape: ("transpose-shape", "(16, 32)", "(32, 32)"),
    transposed_into_sbuf: ("buffer", "psum", "sbuf"),
    transposed_by_gpsimd: ("engine", "tensor, vector", "gpsimd"),
    transposed_bytes: ("transpose-fp8", "", "steps [1] from byte 0"),
}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])


def test_stationary_columns_and_integers() -> None:
    """Two limits that cannot be broken without another: PSUM has 128 partitions; int8 sums."""
    assert ("matmul-limit", "stationary") in {
        (v.rule, v.operand) for v in violations(wide_stationary)
    }
    assert [(v.rule, v.operand) for v in violations(integers)] == [
        ("dtype", "stationary"), ("dtype", "moving"),
    ]  # fmt: skip


# --- gen4 -------------------------------------------------------------------------------------


def mixed_fp8(x: Any) -> Any:
    return matmul(dtype=nl.float8_e4m3, moving_dtype=nl.float8_e4m3fn)


def very_wide(x: Any) -> Any:
    left, right = filled(128, 64), filled(128, 4097)
    tile = psum(64, 4096)
    nisa.nc_matmul(dst=tile, stationary=left, moving=right[:, 0:4096])
    nisa.nc_matmul(dst=tile.ap([[4096, 64], [0, 4097]]), stationary=left, moving=right)
    return output(tile)


def half_sum(x: Any) -> Any:
    return matmul(dst_dtype=nl.float16)


def indirect_tile(x: Any) -> Any:
    left, index = filled(64, 64), filled(32, 1, dtype=nl.uint16)
    tile = psum(32, 256)
    nisa.nc_matmul(
        dst=tile, stationary=left.indirect(index, num_elem=32), moving=filled(64, 256),
        tile_position=(0, 64), tile_size=(64, 64),
    )  # fmt: skip
    return output(tile)


def indirect_identity(x: Any) -> Any:
    eye, index = filled(32, 32), filled(32, 1, dtype=nl.uint16)
    tile = psum(16, 32, dtype=nl.bfloat16)
    nisa.nc_matmul(
        dst=tile, stationary=filled(32, 16), moving=eye.indirect(index, num_elem=32),
        is_transpose=True,
    )  # fmt: skip
    return output(tile)


GEN4: dict[Callable[..., Any], tuple[str, str, str]] = {
    mixed_fp8: ("matmul-dtype", "float8_e4m3", "float8_e4m3fn"),
    very_wide: ("matmul-limit", "4096", "4097"),
    half_sum: ("matmul-dtype", "float32 or bfloat16", "float16"),
    indirect_identity: ("matmul-mode", "no .indirect", ".indirect"),
}


@pytest.mark.parametrize("body", GEN4, ids=lambda body: body.__name__)
def test_a_gen4_rule_fires_alone(body: Callable[..., Any]) -> None:
    (found,) = violations(body, target="trn3")
    assert (found.rule, found.limit, found.value) == GEN4[body]


def test_indirect_views_go_without_tiling() -> None:
    found = {(v.rule, v.limit) for v in violations(indirect_tile, target="trn3")}
    assert ("matmul-tiling", "(0, 0) with .indirect") in found


def eight_banks(x: Any) -> Any:
    return matmul((64, 8192), (128, 64), (128, 8192), dst_dtype=nl.bfloat16)


def sum_of_bias(x: Any) -> Any:
    return added_to_copy(x)


@pytest.mark.parametrize("body", [low_sum, ocp_fp8, two_banks, eight_banks, sum_of_bias])
def test_what_trn3_can_do(body: Callable[..., Any]) -> None:
    if body is two_banks:
        body = eight_banks
    nki.jit(body).specialise(x=X, target=TARGETS["trn3"])
    assert violations(body, target="trn2")


# --- legal neighbours -------------------------------------------------------------------------


def legal_matmuls(x: Any) -> Any:
    matmul()
    matmul((128, 512), (128, 128), (128, 512))
    matmul((1, 1), (1, 1), (1, 1))
    matmul(dtype=nl.float32)
    matmul(dtype=nl.float32, moving_dtype=dtypes.tfloat32)
    matmul(dtype=nl.float8_e4m3, moving_dtype=nl.bfloat16)
    matmul((64, 256), (128, 2, 64), (128, 2, 256), nl.float8_e4m3, nl.float8_e5m2,
           perf_mode=double_row)  # fmt: skip
    matmul((64, 256), (128, 2, 32), (128, 2, 2, 64))
    matmul((64, 128), (128, 64), (128, 128), dst_dtype=nl.bfloat16, is_transpose=True)
    matmul(tile_position=(0, 0), tile_size=(128, 64))
    left, right = filled(128, 32), filled(128, 256)
    tile = psum(128, 1024)
    nisa.nc_matmul(
        dst=tile[96:128, 512:768], stationary=left[32:64, :], moving=right[32:64, :],
        tile_position=(32, 96), tile_size=(32, 32),
    )  # fmt: skip
    return output(tile[96:128, 512:768])


def legal_sums(x: Any) -> Any:
    tile = psum(64, 256)
    left, right = filled(128, 64), filled(128, 256)
    for k in range(3):
        nisa.nc_matmul(dst=tile, stationary=left, moving=right, accumulate=k > 0)
    first = output(tile)
    nisa.nc_matmul(dst=tile[:, 0:100], stationary=left, moving=right[:, 0:100], accumulate=True)
    nisa.nc_matmul(dst=tile, stationary=left, moving=right, accumulate=False)
    nisa.nc_matmul(dst=tile, stationary=left, moving=right)
    return first, output(tile)


def legal_transposes(x: Any) -> Any:
    for dtype in (nl.float32, nl.bfloat16, nl.int32, nl.int16):
        tile = psum(128, 128, dtype=dtype)
        nisa.nc_transpose(dst=tile, data=filled(128, 2, 64, dtype=dtype))
        small = psum(32, 32, dtype=dtype)
        nisa.nc_transpose(dst=small, data=tile[0:32, 0:32])
    block = sbuf(32, 32, dtype=nl.float8_e4m3)
    nisa.nc_transpose(dst=block, data=filled(32, 32, dtype=nl.float8_e4m3))
    return stored(block)


@pytest.mark.parametrize("body", [legal_matmuls, legal_sums, legal_transposes])
def test_legal_neighbours_pass_without_a_warning(body: Callable[..., Any]) -> None:
    assert nki.jit(body).specialise(x=X).warnings == []


def test_hardware_tiles_start_where_their_rows_are() -> None:
    with pytest.raises(AssertionError):
        test_legal_neighbours_pass_without_a_warning(operands_elsewhere)


# --- warnings ---------------------------------------------------------------------------------


def over_iterations(x: Any) -> Any:
    tile = psum(64, 256)
    left, right = filled(128, 64), filled(128, 256)
    results = []
    for _ in range(2):
        nisa.nc_matmul(dst=tile, stationary=left, moving=right)
        results.append(output(tile))
    return tuple(results)


def after_memset(x: Any) -> Any:
    tile = psum(64, 256)
    nisa.memset(dst=tile, value=0.0)
    nisa.nc_matmul(dst=tile, stationary=filled(128, 64), moving=filled(128, 256))
    return output(tile)


def transpose_onto_a_sum(x: Any) -> Any:
    tile = psum(64, 64)
    data = filled(64, 64, dtype=nl.float32)
    nisa.nc_matmul(dst=tile, stationary=data, moving=data)
    nisa.nc_matmul(dst=tile, stationary=data, moving=data, is_transpose=True)
    return output(tile)


def outside_the_loop(x: Any) -> Any:
    tile = psum(64, 256)
    left, right = filled(128, 64), filled(128, 256)
    for _ in nl.dynamic_range(3):
        nisa.nc_matmul(dst=tile, stationary=left, moving=right)
    return output(tile)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (over_iterations, "was read already"),
        (after_memset, "overwrites what another instruction wrote"),
        (transpose_onto_a_sum, "it is overwritten here"),
        (outside_the_loop, "decided once for all iterations"),
    ],
)
def test_reused_tiles_are_warned_about(body: Callable[..., Any], says: str) -> None:
    (found,) = nki.jit(body).specialise(x=X).warnings
    assert found.rule == "psum-reuse"
    assert says in found.message
    assert found.file == __file__
    assert found.instruction == "nc_matmul"


def test_a_forgotten_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PsumState, "note", lambda self, instruction: None)
    with pytest.raises(ValueError, match="not enough values"):
        test_reused_tiles_are_warned_about(over_iterations, "was read already")
    with pytest.raises(AssertionError) as caught:
        test_a_rule_fires_alone_at_the_kernels_line(added_to_memset)
    assert not isinstance(caught.value, NkiValidationError)


FIRES = {"psum-reuse", *(rule for rule, _, _ in GEN4.values()), "matmul-limit", "matmul-tiling"}
