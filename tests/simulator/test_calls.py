"""Calling kernels: data in and out, caching, in-place writes, bad arguments, `import nki`."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

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


def test_wrong_argument_counts_show_the_signature() -> None:
    with pytest.raises(TypeError, match=r"scaled\(x, factor=2\.0\): missing a required argument"):
        scaled()


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


FIRES = {"argument", "outside-kernel", "launch"}
