"""Allocation: shapes, addresses, filled tensors, constants, random tiles, tile sizes, objects."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import ml_dtypes
import nki
import nki.dtype as nt
import nki.isa as nisa
import nki.language as nl
import nki.typing as ntyping
import numpy as np
import pytest
from nki.compiler import CompileConfig
from nki.isa import constants
from nki.isa.constants import oob_mode
from rule_bench import X, assert_fires_alone, loaded, stored, violations
from tile_bench import Array, numbers, same_bits, target

from simulator.targets import TARGETS

SBUF_BYTES = TARGETS["trn2"].sbuf_bytes_per_partition


def outputs_of(body: Callable[[], Any], on: str = "trn2", lnc: int = 1) -> list[Array]:
    """The tensors that body() makes, stored to HBM where they are on chip."""

    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        found = body()
        return tuple(
            stored(tile) if tile.buffer.on_chip else copied(tile)
            for tile in (found if isinstance(found, tuple) else (found,))
        )

    def copied(tensor: Any) -> Any:
        out = nl.ndarray(tensor.shape, dtype=tensor.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=tensor)
        return out

    with target(on):
        return list(kernel[lnc](np.ones((2, 2), np.float32)))


# --- nl.ndarray ---------------------------------------------------------------------------------


def test_ndarray_is_a_function_and_a_type() -> None:
    assert Optional[nl.ndarray] == nl.ndarray | None  # noqa: UP045
    assert list[nl.ndarray]
    assert not isinstance(3, nl.ndarray)

    def kernel(x: Any) -> Any:
        tile = nl.ndarray((4, 5), nl.bfloat16)
        assert isinstance(tile, nl.ndarray)
        assert isinstance(tile, nl.NkiTensor)
        assert (tile.shape, tile.dtype, tile.buffer) == ((4, 5), nl.bfloat16, nl.sbuf)
        assert nl.ndarray([2, 3], dtype=nl.int8, buffer=nl.psum, name="a").buffer is nl.psum
        assert nl.ndarray((7,), dtype=nl.int8, buffer=nl.hbm).buffer is nl.private_hbm
        return stored(loaded(x))

    nki.jit(kernel).specialise(X)


def test_regions_and_their_predicates() -> None:
    regions = [nl.sbuf, nl.psum, nl.hbm, nl.private_hbm, nl.shared_hbm]
    assert [nl.is_sbuf(r) for r in regions] == [True, False, False, False, False]
    assert [nl.is_psum(r) for r in regions] == [False, True, False, False, False]
    assert [nl.is_on_chip(r) for r in regions] == [True, True, False, False, False]
    assert [nl.is_hbm(r) for r in regions] == [False, False, True, True, True]
    assert not nl.is_hbm("hbm")


def test_addresses_place_tensors() -> None:
    x = numbers((32, 6), nl.float32, 0)

    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        low = nl.ndarray((32, 6), dtype=nl.float32, buffer=nl.sbuf, address=(0, 0))
        high = nl.ndarray((32, 6), dtype=nl.float32, buffer=nl.sbuf, address=(32, 0))
        bank = nl.ndarray((32, 6), dtype=nl.float32, buffer=nl.psum, address=(96, 3 * 2048))
        last = nl.ndarray((128, 2), dtype=nl.int8, address=(0, SBUF_BYTES - 2))
        assert (high.start_partition, bank.start_partition) == (32, 96)
        assert last.storage.address == (0, SBUF_BYTES - 2)
        nisa.dma_copy(dst=low, src=x)
        nisa.tensor_scalar(dst=high, data=low, op0=nl.multiply, operand0=2.0)
        nisa.tensor_tensor(dst=bank, data1=high, data2=low, op=nl.add)
        nisa.tensor_copy(dst=low, src=bank)
        return stored(low)

    same_bits(kernel(x), 3 * x)


def placed(shape: tuple[int, ...], address: Any, buffer: Any = nl.sbuf) -> Callable[..., Any]:
    def kernel(x: Any) -> Any:
        nl.ndarray(shape, dtype=nl.float32, buffer=buffer, address=address)
        return stored(loaded(x))

    return kernel


@pytest.mark.parametrize(
    ("kernel", "limit", "value"),
    [
        (placed((4, 4), (0, 2)), "a multiple of 4", "2"),
        (placed((4, 4), (0, 100), nl.psum), "a multiple of 2048", "100"),
        (placed((4, 513), (0, 7 * 2048), nl.psum), "partitions 0 to 127, bytes 0 to 16383", ""),
        (placed((100, 4), (32, 0)), "", "partitions 32 to 131, bytes 0 to 15"),
        (placed((4, 4), (-1, 0)), "", "partitions -1 to 2, bytes 0 to 15"),
        (placed((4, 4), (0, SBUF_BYTES)), "", ""),
        (placed((4, 4), (0, -4)), "", "partitions 0 to 3, bytes -4 to 11"),
        (placed((4, 4), 64), "integers, in SBUF or PSUM", "64 in sbuf"),
        (placed((4, 4), (0.0, 0)), "integers, in SBUF or PSUM", "(0.0, 0) in sbuf"),
        (placed((4, 4), (0, 0), nl.shared_hbm), "", "(0, 0) in shared_hbm"),
    ],
)
def test_addresses_that_cannot_be(kernel: Any, limit: str, value: str) -> None:
    (found,) = violations(kernel)
    assert found.rule == "address"
    assert limit in ("", found.limit)
    assert value in ("", found.value)


def test_overlapping_addresses_are_refused_while_both_live() -> None:
    def kernel(x: Any, shift: int) -> Any:
        a = nl.ndarray(x.shape, dtype=x.dtype, address=(0, 0))
        b = nl.ndarray(x.shape, dtype=x.dtype, address=(0, shift))
        for tile in (a, b):
            nisa.dma_copy(dst=tile, src=x)
        nisa.tensor_tensor(dst=a, data1=a, data2=b, op=nl.add)
        return stored(a)

    nki.jit(kernel).specialise(X, shift=128)
    assert {v.rule for v in violations(kernel, x=X, shift=64)} == {"address-overlap"}


# --- filled tensors -----------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [nl.sbuf, nl.psum, nl.private_hbm, nl.shared_hbm])
def test_filled_tensors(buffer: Any) -> None:
    def body() -> Any:
        made = (
            nl.zeros((40, 3), nl.float32, buffer=buffer),
            nl.ones((40, 3), nl.int32, buffer),
            nl.full((40, 2, 3), 2.5, dtype=nl.bfloat16, buffer=buffer),
        )
        if buffer is nl.psum:
            return tuple(nl.copy(tile) for tile in made)
        return made

    zeros, ones, full = outputs_of(body)
    same_bits(zeros, np.zeros((40, 3), np.float32))
    same_bits(ones, np.ones((40, 3), np.int32))
    same_bits(full, np.full((40, 2, 3), 2.5, ml_dtypes.bfloat16))


def test_large_tensors_in_hbm_are_filled_in_parts() -> None:
    large, flat = outputs_of(
        lambda: (
            nl.full((3, 100, 5000), 7, dtype=nl.uint16, buffer=nl.shared_hbm),
            nl.ones((9001,), nl.float32, buffer=nl.hbm),
        )
    )
    assert large.shape == (3, 100, 5000)
    assert (large == 7).all()
    assert (flat == 1).all()


def test_tensors_like_another() -> None:
    def body() -> Any:
        like = nl.ndarray((3, 4), dtype=nl.int16, buffer=nl.psum)
        empty = nl.empty_like(like)
        assert (empty.shape, empty.dtype, empty.buffer) == ((3, 4), nl.int16, nl.psum)
        zeros = nl.zeros_like(like)
        assert zeros.buffer is nl.psum
        return nl.zeros_like(like, dtype=nl.float32, buffer=nl.sbuf), nl.copy(zeros)

    for found, dtype in zip(outputs_of(body), (np.float32, np.int16), strict=True):
        same_bits(found, np.zeros((3, 4), dtype))


# --- constants ----------------------------------------------------------------------------------


def test_constants_hold_their_data(tmp_path: Path) -> None:
    x = numbers((3, 5), nl.bfloat16, 0)
    np.save(tmp_path / "y.npy", np.arange(6, dtype=np.int8))

    def body() -> Any:
        constant = nl.shared_constant(x[:, ::2])
        assert constant.buffer is nl.shared_hbm
        return constant, nl.shared_constant(str(tmp_path / "y.npy"))

    first, second = outputs_of(body)
    same_bits(first, x[:, ::2])
    same_bits(second, np.arange(6, dtype=np.int8))


def test_a_constant_does_not_follow_the_array() -> None:
    x = np.zeros((2, 2), np.float32)

    @nki.jit
    def kernel(y):  # type: ignore[no-untyped-def]
        tile = loaded(nl.shared_constant(x))
        return stored(tile)

    y = np.ones((1, 1), np.float32)
    kernel(y)
    x[...] = 5
    assert (kernel(y) == 0).all()


@pytest.mark.parametrize("dtype", [nl.uint8, nl.bfloat16, nl.float32, nl.float8_e4m3])
def test_identity_matrices(dtype: Any) -> None:
    def body() -> Any:
        tile = nl.ndarray((7, 7), dtype=dtype)
        return nl.shared_identity_matrix(7, dtype), nl.shared_identity_matrix(n=7, dst=tile)

    for found in outputs_of(body):
        same_bits(found, np.eye(7).astype(dtype.numpy))


def test_identity_matrices_share_one_constant() -> None:
    def kernel(x: Any) -> Any:
        for n in (4, 4, 8):
            nl.shared_identity_matrix(n, dtype=nl.bfloat16)
        nl.shared_identity_matrix(4)
        return stored(loaded(x))

    program = nki.jit(kernel).specialise(X)
    assert len([s for s in program.storages if s.role == "constant"]) == 3


def test_constants_on_two_cores() -> None:
    def body() -> Any:
        table = nl.shared_constant(np.arange(4, dtype=np.float32).reshape(2, 2))
        tile = nl.shared_identity_matrix(2, dtype=nl.float32)
        out = nl.ndarray((2, 2, 2), dtype=nl.float32, buffer=nl.shared_hbm)
        core = nl.program_id(0)
        both = nl.add(nl.load(table), tile)
        nl.store(out[core], both)
        return out

    @nki.jit
    def kernel(x):  # type: ignore[no-untyped-def]
        return body()

    found = kernel[2](np.ones((1, 1), np.float32))
    np.testing.assert_array_equal(found, [[[1, 1], [2, 4]]] * 2)


# --- random tiles -------------------------------------------------------------------------------


def test_random_numbers_are_uniform_below_one_and_follow_the_seed() -> None:
    def body() -> Any:
        seed = nl.full((1, 1), 42, dtype=nl.int32)
        nl.random_seed(seed)
        first = nl.rand((128, 500), dtype=nl.float32)
        second = nl.rand((128, 500), nl.bfloat16)
        nl.random_seed(seed)
        again = nl.rand((128, 500), nl.float32)
        return first, second, again, nl.rand((128, 500), nl.float16, buffer=nl.shared_hbm)

    first, second, again, hbm = outputs_of(body)
    same_bits(again, first)
    for found in (first, second, hbm):
        values = found.astype(np.float64)
        assert values.min() >= 0
        assert values.max() < 1
        assert abs(values.mean() - 0.5) < 0.01
        assert abs(values.var() - 1 / 12) < 0.005
    assert len(np.unique(first)) > 60_000
    assert abs(np.corrcoef(first.ravel(), hbm.astype(np.float32).ravel())[0, 1]) < 0.02


# --- tile sizes, dtypes, objects ----------------------------------------------------------------


def test_tile_sizes() -> None:
    sizes = nl.tile_size
    assert (sizes.pmax, sizes.psum_fmax, sizes.bn_stats_fmax) == (128, 512, 512)
    assert (sizes.gemm_stationary_fmax, sizes.gemm_moving_fmax) == (128, 512)
    assert (sizes.psum_bank_fmax, sizes.psum_bank_fmax_bytes) == (512, 2048)
    assert sizes.psum_min_align % 4 == sizes.sbuf_min_align % 4 == 0
    for name in ("trn2", "trn3"):
        usable = TARGETS[name].sbuf_bytes_per_partition
        with target(name):
            assert sizes.sbuf_fmax_bytes == sizes.total_available_sbuf_size == usable
            assert sizes.sbuf_fmax == usable // 4
            assert sizes.sbuf_size_bytes == 128 * usable


def test_tile_sizes_are_those_of_the_target_compiled_for() -> None:
    seen = []

    def kernel(x: Any) -> Any:
        seen.append(nl.tile_size.total_available_sbuf_size)
        return stored(loaded(x))

    for name in ("trn2", "trn3"):
        nki.jit(kernel).specialise(X, target=TARGETS[name])
    assert seen == [TARGETS[name].sbuf_bytes_per_partition for name in ("trn2", "trn3")]


def test_a_bank_is_kept_for_transposes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nl.tile_size.psum_num_banks == 8
    monkeypatch.setenv("NKI_DMA_TRANSPOSE_AS_PE_TRANSPOSE", "true")
    assert nl.tile_size.psum_num_banks == 7


def test_dtypes_are_names_with_sizes() -> None:
    sizes = {
        1: "bool_ int8 uint8 float8_e4m3 float8_e4m3fn float8_e5m2 float8_e8m0fnu",
        2: "int16 uint16 float16 bfloat16 float4_e2m1fn_x4",
        4: "int32 uint32 float32 tfloat32 float8_e5m2_x4 float8_e4m3fn_x4",
    }
    for size, names in sizes.items():
        for name in names.split():
            dtype = getattr(nl, name)
            assert (str(dtype), dtype.itemsize) == (name, size)
            assert dtype is getattr(nt, name)
    assert nl.bool is nl.bool_
    assert inspect.ismodule(nki.dtype)


def test_the_scale_dtype_came_with_0_5() -> None:
    def kernel(x: Any) -> Any:
        nl.ndarray((4, 4), dtype=nl.float8_e8m0fnu)
        return stored(loaded(x))

    assert nki.jit(kernel).specialise(X).versions[0] == "0.5"


class Size(nl.NKIObject):  # type: ignore[misc]
    rows: int
    columns: int = 4

    def area(self) -> int:
        return self.rows * self.columns


class Checked(Size):
    name: str = "tile"

    def __post_init__(self) -> None:
        assert self.rows > 0


@dataclass
class Point(nl.NKIObject):  # type: ignore[misc]
    x: int
    y: int = 2


def test_objects_take_their_annotated_attributes() -> None:
    assert Size(3).area() == 12
    assert Size(rows=3, columns=5).area() == 15
    assert Checked(1, 2, "a").name == "a"
    assert Checked(rows=2).name == "tile"
    assert Point(1) == Point(1, 2)
    with pytest.raises(AssertionError):
        Checked(0)
    for bad in ({}, {"rows": 1, "depth": 2}):
        with pytest.raises(TypeError):
            Size(**bad)
    for arguments in ((1, 2, 3),):
        with pytest.raises(TypeError):
            Size(*arguments)
    with pytest.raises(TypeError):
        Size(1, rows=2)


def test_modules_that_public_kernels_import() -> None:
    assert constants.oob_mode is oob_mode is nisa.oob_mode
    assert ntyping.tensor[128, 512] is not None
    assert ntyping.mutable_tensor | None is not None
    assert Optional[ntyping.tensor] is not None  # noqa: UP045
    assert CompileConfig(level=2).options == {"level": 2}

    @nki.jit(compile_config=CompileConfig(), mode="trace")
    def kernel(x: ntyping.tensor[4, 4], dtype: nki.dtype = nl.float32) -> nl.ndarray:  # type: ignore[valid-type]
        return stored(loaded(x))

    x = np.ones((4, 4), np.float32)
    same_bits(kernel(x), x)


# --- limits -------------------------------------------------------------------------------------


def constant_of_a_list(x: Any) -> Any:
    nl.shared_constant([1.0, 2.0])
    return stored(loaded(x))


def constant_of_float64(x: Any) -> Any:
    nl.shared_constant(np.ones((2, 2)))
    return stored(loaded(x))


def large_identity(x: Any) -> Any:
    nl.shared_identity_matrix(129)
    return stored(loaded(x))


def fractions_of_integers(x: Any) -> Any:
    nl.full((4, 4), 0.5, dtype=nl.int32)
    return stored(loaded(x))


def other_sized_identity(x: Any) -> Any:
    nl.shared_identity_matrix(8, dst=nl.ndarray((4, 4), dtype=nl.float32))
    return stored(loaded(x))


def like_a_number(x: Any) -> Any:
    nl.zeros_like(3)
    return stored(loaded(x))


RULES: dict[Callable[..., Any], tuple[str, str, str]] = {
    constant_of_a_list: ("constant", "array or path", "'list'"),
    constant_of_float64: ("dtype", "", "float64"),
    large_identity: ("partition-limit", "128", "129"),
    fractions_of_integers: ("memset-value", "int32", "0.5 for int32"),
    other_sized_identity: ("dma-size", "16", "64"),
    like_a_number: ("operand", "NkiTensor", "int"),
}
FIRES = {"address"}


@pytest.mark.parametrize("body", RULES, ids=lambda body: body.__name__)
def test_a_rule_fires_alone_at_the_kernels_line(body: Callable[..., Any]) -> None:
    assert_fires_alone(body, *RULES[body])
