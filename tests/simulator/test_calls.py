"""Calling kernels: data in and out, caching, in-place writes, bad arguments, `import nki`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import venv
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
import torch

from simulator.errors import NkiValidationError
from simulator.targets import TARGETS

ROOT = Path(__file__).parents[2]
traced: list[tuple[int, ...]] = []


@nki.jit
def scaled(x, factor=2.0):  # type: ignore[no-untyped-def]
    traced.append(x.shape)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=factor)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def doubled_in_place(x, y):  # type: ignore[no-untyped-def]
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=x, src=tile)
    return x, y


def test_numpy_gives_numpy_and_torch_gives_torch() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert isinstance(scaled(array), np.ndarray)
    np.testing.assert_array_equal(nki.simulate(scaled)(array), 2 * array)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        result = scaled(torch.from_numpy(array).to(dtype), factor=0.5)
        assert result.dtype is dtype
        assert torch.equal(result, torch.from_numpy(array).to(dtype) * 0.5)
    assert scaled(array.astype(ml_dtypes.bfloat16)).dtype == ml_dtypes.bfloat16


def test_a_second_call_at_known_shapes_runs_no_kernel_python() -> None:
    traced.clear()
    x = np.ones((5, 6), np.float32)
    for factor in (3.0, 3.0, 3, 4.0):
        np.testing.assert_array_equal(scaled(x, factor=factor), x * factor)
    scaled(x[:4].copy(), factor=3.0)
    scaled(x.astype(np.float16), factor=3.0)
    scaled.specialise(x, factor=3.0, target=TARGETS["trn3"])
    assert traced == [(5, 6), (5, 6), (5, 6), (4, 6), (5, 6), (5, 6)]


def test_results_do_not_alias_between_calls() -> None:
    x = np.ones((4, 4), np.float32)
    first = scaled(x)
    scaled(x * 7)
    np.testing.assert_array_equal(first, 2 * x)


def test_arguments_that_are_written_are_updated_in_place() -> None:
    y = np.zeros((1, 1), np.float32)
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    strided = whole[:, ::2]
    expected = 2 * strided
    result, other = doubled_in_place(strided, y)
    np.testing.assert_array_equal(strided, expected)
    assert result is strided
    assert other is y
    tensor = torch.ones(3, 4, dtype=torch.bfloat16).t()
    doubled_in_place(tensor, torch.zeros(1, 1))
    assert torch.equal(tensor, torch.full((4, 3), 2.0, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (np.ones((2, 2)), "dtype float64, which NKI does not have"),
        (np.array([[object()]]), "dtype object"),
        (np.ones((0, 2), np.float32), r"shape \(0, 2\)"),
        (np.array(1, np.float32), r"shape \(\)"),
        ([1.0], "is a list.*Pass a tuple"),
        (torch.ones(2, 2, dtype=torch.int64), "dtype int64"),
        (torch.empty(2, 2, device="meta"), "on device meta"),
    ],
)
def test_bad_arguments_are_refused_by_name(argument: Any, message: str) -> None:
    with pytest.raises(NkiValidationError, match=f"(?s)argument `x` {message}|{message}") as caught:
        scaled(argument)
    assert [v.rule for v in caught.value.violations] == ["argument"]


@nki.jit
def nested(pair, options, extra=()):  # type: ignore[no-untyped-def]
    """Arguments in tuples and dictionaries; one of them is written."""
    x, (y, factor) = pair
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile, other = (nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf) for _ in range(2))
    nisa.dma_copy(dst=tile, src=x)
    nisa.dma_copy(dst=other, src=y)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=other, op=nl.add)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=factor)
    nisa.dma_copy(dst=out, src=tile)
    nisa.dma_copy(dst=options["cache"], src=tile)
    return out, options["cache"] if len(extra) else out


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize("eager", [False, True])
def test_arguments_in_tuples_and_dictionaries(eager: bool) -> None:
    kernel = nki.simulate(nested, eager=eager)
    x, y = np.full((2, 3), 1.0, np.float32), np.full((2, 3), 2.0, np.float32)
    for pair in ((x, (y, 3.0)), Pair(x, (y, 3.0))):
        cache = np.zeros((3, 2), np.float32).T
        first, second = kernel(pair, {"cache": cache, "mode": None})
        for result in (first, second, cache):
            np.testing.assert_array_equal(result, np.full((2, 3), 9.0))
    tensors = [torch.from_numpy(array) for array in (x, y)]
    cache = torch.zeros(2, 3)
    first, second = kernel((tensors[0], (tensors[1], 2)), {"cache": cache}, extra=(1, "a"))
    assert second is cache
    assert torch.equal(cache, torch.full((2, 3), 6.0))
    assert torch.equal(first, cache)
    with pytest.raises(NkiValidationError, match=r"argument `options` has keys"):
        kernel((x, (y, 3.0)), {1: x})
    with pytest.raises(NkiValidationError, match=r"argument `pair\.1` is a list"):
        kernel((x, [y, 3.0]), {"cache": x})


@pytest.mark.parametrize(
    "argument",
    [np.array([["a"]]), np.zeros(2, [("a", np.float32)]), np.ones((2, 2), np.complex64),
     np.ones((2, 2), ">f4"), np.ones((2, 2), "M8[s]"), np.ma.masked_array([[1.0, 2.0]], [[0, 1]]),
     np.float64(2) * np.ones((1, 1)), torch.ones(2, 2).to_sparse(),
     torch.ones(2, 2, dtype=torch.complex64), torch.ones(2, 2, dtype=torch.float64),
     torch.ones(2, 2).to(torch.float8_e4m3fnuz), torch.ones(()), torch.ones(0, 3)],
    ids=lambda argument: f"{type(argument).__name__}-{getattr(argument, 'dtype', '')}",
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_more_bad_arguments(argument: Any) -> None:
    with pytest.raises(NkiValidationError) as caught:
        scaled(argument)
    (found,) = caught.value.violations
    assert (found.rule, found.operand) == ("argument", "x")
    assert found.mend


def test_nan_and_infinity_pass_through() -> None:
    x = np.array([[np.nan, np.inf, -np.inf, -0.0, 1e-45]], np.float32)
    np.testing.assert_array_equal(scaled(x, factor=1.0), x)
    assert np.signbit(scaled(x, factor=1.0)[0, 3])
    assert np.isnan(scaled(x, factor=float("nan"))).all()


def test_parameters_are_told_apart() -> None:
    """-0.0 is not 0.0, 1 is not True, and a NaN is the NaN of the last call."""
    traced.clear()
    x = np.ones((7, 2), np.float32)
    for factor in (0.0, -0.0, float("nan"), float("nan"), 0.0, -0.0):
        result = scaled(x, factor=factor)
        np.testing.assert_array_equal(np.signbit(result), np.signbit(factor * x))
    assert len(traced) == 3


class Holder:
    """A parameter that is an object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor


def test_objects_count_by_what_they_hold() -> None:
    def body(x: Any, holder: Any) -> Any:
        traced.append(x.shape)
        return scaled.function(x, holder.factor)

    kernel, x = nki.jit(body), np.ones((2, 3), np.float32)
    traced.clear()
    holder = Holder(2.0)
    for _ in range(3):
        np.testing.assert_array_equal(kernel(x, holder), 2 * x)
    np.testing.assert_array_equal(kernel(x, Holder(2.0)), 2 * x)
    assert len(traced) == 2  # the body, and what it calls
    holder.factor = 5.0
    np.testing.assert_array_equal(kernel(x, holder), 5 * x)


def test_booleans() -> None:
    def body(x: Any) -> Any:
        tile = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x)
        low = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=low, data=tile, op0=nl.multiply, operand0=2.0)
        nisa.dma_copy(dst=x, src=low)
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=low)
        return out

    for x in (np.array([[True, False]]), torch.tensor([[True, False]])):
        result = nki.jit(body)(x)
        assert result.dtype == x.dtype
        assert result.tolist() == x.tolist() == [[True, False]]


@pytest.mark.parametrize("eager", [False, True])
def test_read_only_memory_may_be_read_and_not_written(eager: bool) -> None:
    kernel, in_place = (nki.simulate(k, eager=eager) for k in (scaled, doubled_in_place))
    y = np.zeros((1, 1), np.float32)
    frozen = np.ones((2, 3), np.float32)
    frozen.flags.writeable = False
    wide = np.broadcast_to(np.ones((1, 3), np.float32), (2, 3))
    watched = torch.ones(2, 3, requires_grad=True)
    expanded = torch.ones(1, 3).expand(2, 3)
    for x in (frozen, wide, watched, expanded):
        assert kernel(x).tolist() == [[2.0] * 3] * 2
        with pytest.raises(NkiValidationError) as caught:
            in_place(x, y if isinstance(x, np.ndarray) else torch.zeros(1, 1))
        (found,) = caught.value.violations
        assert (found.rule, found.operand) == ("argument", "x")
        assert x.tolist() == [[1.0] * 3] * 2
    assert not kernel(watched).requires_grad


@pytest.mark.parametrize("order", ["C", "F", "strided", "reversed"])
def test_memory_layouts(order: str) -> None:
    whole = np.arange(48, dtype=np.float32).reshape(4, 12)
    x = {
        "C": whole, "F": np.asfortranarray(whole), "strided": whole[:, ::3],
        "reversed": whole[::-1, ::-1],
    }[order]  # fmt: skip
    expected = 2 * x
    np.testing.assert_array_equal(scaled(x), expected)
    doubled_in_place(x, np.zeros((1, 1), np.float32))
    np.testing.assert_array_equal(x, expected)


def test_a_view_of_an_argument_is_returned_as_the_view() -> None:
    def body(x: Any) -> Any:
        tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x)
        nisa.dma_copy(dst=x, src=tile)
        return x, x.reshape((6,)), x[0:1], x.permute((1, 0)), x.view(nl.int32)

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    whole, flat, row, turned, bits = nki.jit(body)(x)
    assert whole is x
    for found, expected in ((flat, x.reshape(6)), (row, x[0:1]), (turned, x.T)):
        np.testing.assert_array_equal(found, expected, strict=True)
        assert not np.shares_memory(found, x)
    np.testing.assert_array_equal(bits, x.view(np.int32), strict=True)


def test_results_in_dtypes_that_torch_does_not_have() -> None:
    def body(x: Any, dtype: Any) -> Any:
        tile = nl.ndarray(x.shape, dtype=dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x)
        out = nl.ndarray(x.shape, dtype=dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=tile)
        return out

    kernel, x = nki.jit(body), np.ones((2, 2), np.float32)
    for dtype in (nl.float8_e4m3, nl.float8_e5m2, nl.bfloat16, nl.uint16, nl.int8):
        assert kernel(x, dtype).dtype == dtype.numpy
    assert kernel(torch.ones(2, 2), nl.float8_e5m2).dtype is torch.float8_e5m2
    assert kernel(torch.ones(2, 2), nl.uint16).dtype is torch.uint16
    with pytest.raises(NkiValidationError, match=r"\[result-dtype\]"):
        kernel(torch.ones(2, 2), nl.float8_e4m3)


def test_low_precision_without_rounding(monkeypatch: Any) -> None:
    """NKI_PRECISE_FP=0: 1 + 2^-9 survives a bf16 tile; bits cannot be taken apart."""

    def body(x: Any) -> Any:
        tile = nl.ndarray(x.shape, dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x)
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.subtract, operand0=1.0)
        out = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=tile)
        return out

    def bits(x: Any) -> Any:
        out = nl.ndarray(x.shape, dtype=nl.uint16, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=x.view(nl.uint16))
        return out

    kernel, x = nki.jit(body), np.full((2, 2), 1 + 2.0**-9, np.float32)
    low = np.ones((2, 2), ml_dtypes.bfloat16)
    assert (kernel(x) == 0).all()
    assert (nki.jit(bits)(low) == 0x3F80).all()
    for eager in (False, True):
        monkeypatch.setenv("NKI_PRECISE_FP", "0")
        assert (nki.simulate(kernel, eager=eager)(x) == 2.0**-9).all()
        with pytest.raises(NkiValidationError, match=r"\[precise-fp\]"):
            nki.simulate(nki.jit(bits), eager=eager)(low)
        doubled = low.copy()
        nki.simulate(doubled_in_place, eager=eager)(doubled, low)
        assert (doubled == 2).all()
        monkeypatch.setenv("NKI_PRECISE_FP", "1")
        assert (kernel(x) == 0).all()


def test_one_kernel_in_many_threads() -> None:
    """New shapes and known ones at once; every caller gets its own result."""
    wrong: list[str] = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(20):
            x = generator.normal(size=(int(generator.integers(1, 6)), 9)).astype(np.float32)
            factor = float(generator.integers(1, 4))
            y = x.copy()
            if not np.array_equal(scaled(x, factor=factor), factor * x):
                wrong.append("scaled")
            doubled_in_place(y, y[:1].copy())
            if not np.array_equal(y, 2 * x):
                wrong.append("in place")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_call_that_fails_leaves_the_kernel_usable() -> None:
    def body(x: Any, index: Any) -> Any:
        tile = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=index)
        out = nl.ndarray((3,), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=x.select(0, tile))
        return out

    kernel, x = nki.jit(body), np.arange(6, dtype=np.float32).reshape(2, 3)
    for index in (0, 7, 1, -1, 0):
        number = np.array([[index]], np.int32)
        if index in (0, 1):
            np.testing.assert_array_equal(kernel(x, number), x[index])
        else:
            with pytest.raises(NkiValidationError, match="dynamic-out-of-bounds"):
                kernel(x, number)


@pytest.mark.parametrize("thing", [3, None, "kernel", np.ones(3)])
def test_what_is_no_kernel_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="not a"):
        nki.simulate(thing)
    if thing is not None:  # jit() without a function is a decorator
        with pytest.raises(TypeError, match="not a"):
            nki.jit(thing)


def test_wrong_argument_counts_show_the_signature() -> None:
    with pytest.raises(TypeError, match=r"scaled\(x, factor=2\.0\): missing a required argument"):
        scaled()
    with pytest.raises(TypeError, match=r"too many positional arguments"):
        scaled(1, 2, 3)
    with pytest.raises(TypeError, match=r"scaled.*unexpected keyword argument 'scale'"):
        scaled(np.ones((1, 1), np.float32), scale=3)


def test_grids_platform_targets_and_calls_outside_a_kernel_are_refused() -> None:
    np.testing.assert_array_equal(scaled[1](np.ones((2, 4), np.float32)), np.full((2, 4), 2.0))
    for cores in (0, 3, True, "2", (1, 1)):
        with pytest.raises(NkiValidationError, match=r"1 or 2"):
            scaled[cores]
    with pytest.raises(NkiValidationError, match="outside-kernel"):
        nl.ndarray((2, 2), dtype=nl.float32)


def test_the_program_is_counted_and_fingerprinted() -> None:
    x = np.ones((3, 8), ml_dtypes.bfloat16)
    program = scaled.specialise(x)
    assert program.hbm_bytes() == (48, 48)
    assert program.instructions_by_engine() == {"dma": 2, "vector": 1}
    assert program.fingerprint() == scaled.specialise(x).fingerprint()
    assert program.fingerprint() != scaled.specialise(x, factor=3.0).fingerprint()
    assert program.fingerprint() != scaled.specialise(x.astype(np.float32)).fingerprint()
    assert "vector.tensor_scalar(" in str(program)
    assert "# test_calls.py:" in str(program)


def run(code: str, *paths: Path, python: str = sys.executable, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **variables}
    done = subprocess.run(
        [python, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout.strip()


WHERE = "import simulator.finder, nki; print(nki.__file__)"
OURS = str(ROOT / "simulator/nki_api/nki/__init__.py")


def test_import_nki_prefers_the_real_sdk(tmp_path: Path) -> None:
    real = tmp_path / "real/nki"
    real.mkdir(parents=True)
    (real / "__init__.py").touch()
    assert run(WHERE, ROOT, real.parent) == OURS  # an empty placeholder
    (real / "language.py").touch()
    assert run(WHERE, ROOT, real.parent) == str(real / "__init__.py")
    assert run(WHERE, ROOT, real.parent, NKI_SIMULATOR="1") == OURS
    assert run(WHERE, ROOT, real.parent, NKI_SIMULATOR="0") == str(real / "__init__.py")


def test_enable_makes_import_nki_work_in_an_environment(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv/bin/python")
    where = "import importlib.util; print(importlib.util.find_spec('nki').origin)"
    enable = [python, "-m", "simulator", "enable", str(ROOT)]
    subprocess.run(enable, cwd=ROOT, check=True, capture_output=True)
    assert run(where, python=python) == OURS
    subprocess.run(enable, cwd=ROOT, check=True, capture_output=True)  # again, at no harm
    assert run(where, python=python) == OURS


FIRES = {"argument", "outside-kernel", "launch", "result-dtype", "precise-fp"}
