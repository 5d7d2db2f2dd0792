"""What AWS's simulator or older compilers take: a call runs it with a warning, a check refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from rule_bench import X, loaded, sbuf, stored, violations

import simulator.check
from simulator.errors import NkiLaxWarning, NkiValidationError
from simulator.specialise import TensorSpec

DATA = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)


def copy_with_dtype(x: Any) -> Any:
    tile = sbuf(64, 32, dtype=nl.bfloat16)
    nisa.tensor_copy(dst=tile, src=loaded(x), dtype=nl.bfloat16)
    return stored(tile)


def number_as_mode(x: Any) -> Any:
    tile = sbuf(64, 32)
    nisa.dma_copy(dst=tile, src=x, dge_mode=3)
    return stored(tile)


def name_as_engine(x: Any) -> Any:
    tile = sbuf(64, 32)
    nisa.tensor_copy(dst=tile, src=loaded(x), engine="vector")
    return stored(tile)


def private_output(x: Any) -> Any:
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.hbm)
    nisa.dma_copy(dst=out, src=loaded(x))
    return out


def assigned(x: Any) -> Any:
    tile = sbuf(64, 32)
    tile[...] = loaded(x)
    return stored(tile)


def placed_over_another(x: Any) -> Any:
    first = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.sbuf, address=(0, 0))
    second = nl.ndarray((64, 32), dtype=nl.float32, buffer=nl.sbuf, address=(0, 64))
    nisa.dma_copy(dst=first, src=x)
    nisa.tensor_copy(dst=second, src=first)
    nisa.tensor_tensor(dst=second, data1=second, data2=first, op=nl.maximum)
    return stored(second)


def unwritten_rows(x: Any) -> Any:
    tile = sbuf(128, 32)
    nisa.dma_copy(dst=tile[0:64, :], src=x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=1.0)
    return stored(tile[0:64, :])


def too_much(x: Any) -> Any:
    wide = sbuf(64, 60_000)
    nisa.memset(dst=wide, value=0.0)
    tile = loaded(x)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=wide[:, 0:32], op=nl.add)
    return stored(tile)


def added_to_zeros(x: Any) -> Any:
    total = nl.ndarray((32, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.memset(dst=total, value=0.0)
    tile = loaded(x)
    nisa.nc_matmul(dst=total, stationary=tile, moving=tile, accumulate=True)
    result = sbuf(32, 32)
    nisa.tensor_copy(dst=result, src=total)
    return stored(result)


def divided(x: Any) -> Any:
    tile = loaded(x)
    return stored(nl.divide(tile, nl.add(tile, 1.0)))


def column_repeated(x: Any) -> Any:
    tile = loaded(x)
    return stored(nl.subtract(tile, tile[:, 0:1]))


def row_repeated(x: Any) -> Any:
    tile = loaded(x)
    return stored(nl.add(tile[0:1, :], tile))


CASES: dict[Callable[..., Any], tuple[str, Any]] = {
    copy_with_dtype: ("legacy-dtype", DATA),
    number_as_mode: ("enum", DATA),
    name_as_engine: ("enum", DATA),
    private_output: ("output-buffer", DATA),
    assigned: ("tensor-assignment", DATA),
    placed_over_another: ("address-overlap", DATA),
    unwritten_rows: ("uninitialised-read", DATA),
    too_much: ("sbuf-capacity", DATA),
    added_to_zeros: ("psum-accumulate", DATA.T @ DATA),
    divided: ("operator", DATA / (DATA + 1)),
    column_repeated: ("no-broadcast", DATA - DATA[:, 0:1]),
    row_repeated: ("no-broadcast", DATA + DATA[0:1]),
}


@pytest.mark.parametrize("body", CASES, ids=lambda body: body.__name__)
def test_a_call_runs_with_a_warning_and_a_check_refuses(body: Callable[..., Any]) -> None:
    rule, expected = CASES[body]
    kernel = nki.jit(body)
    with pytest.warns(NkiLaxWarning, match=rule):
        found = kernel(DATA)
    exact = np.array_equal(found.astype(np.float32), expected)
    assert exact or np.allclose(found.astype(np.float32), expected, rtol=2**-8)
    refused = {v.rule for v in violations(body)}
    assert refused == {rule}


def test_it_is_said_again_where_it_was_checked_before() -> None:
    for _ in range(2):
        assert {v.rule for v in violations(divided)} == {"operator"}


def test_unwritten_elements_are_nan() -> None:
    def body(x: Any) -> Any:
        tile = sbuf(64, 33)
        nisa.dma_copy(dst=tile[:, 0:32], src=x)
        total = sbuf(64, 1)
        nisa.tensor_reduce(dst=total, op=nl.add, data=tile, axis=1)
        return stored(total)

    with pytest.warns(NkiLaxWarning, match="uninitialised-read"):
        assert np.isnan(nki.jit(body)(DATA)).all()


def test_a_platform_target_decides_where_the_environment_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def body(x: Any) -> Any:
        tile = loaded(x)
        nisa.exponential(dst=tile, src=tile)  # gen4
        return stored(tile)

    monkeypatch.delenv("NEURON_PLATFORM_TARGET_OVERRIDE", raising=False)
    kernel = nki.jit(platform_target="trn3")(body)
    with pytest.warns(NkiLaxWarning, match="platform-target"):
        np.testing.assert_allclose(kernel(-DATA[:, 0:4]), np.exp(-DATA[:, 0:4]), rtol=1e-5)
    with pytest.raises(NkiValidationError, match="platform-target"):
        kernel.specialise(X)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    with pytest.raises(NkiValidationError, match="gen4-only"):
        kernel(DATA)


def test_instruction_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(x: Any) -> Any:
        tile = loaded(x)
        for _ in range(10):
            nisa.tensor_copy(dst=tile, src=tile)
        return stored(tile)

    assert nki.jit(body).specialise(X).instructions_by_engine()["vector"] == 10
    monkeypatch.setattr(simulator.check, "INSTRUCTION_LIMIT", 9)
    (found,) = violations(body)
    assert (found.rule, found.limit, found.value) == ("instruction-limit", "9", "12")


def test_features_that_no_version_has_together() -> None:
    def body(x: Any) -> Any:
        tile = loaded(x)
        for _ in nl.dynamic_range(3):  # until 0.6
            nisa.tensor_copy(dst=tile, src=tile)
        first = nl.fori_loop  # from 0.6 on: both in one version
        first(0, 2, lambda i: nisa.tensor_copy(dst=tile, src=tile) and None)
        return stored(tile)

    program = nki.jit(body).specialise(X)
    assert program.versions == ("0.6",)


def test_no_version_is_a_violation() -> None:
    def body(x: Any) -> Any:
        tile = loaded(x).reshape(new_shape=(64, 4, 8))  # 0.4 only
        flat = tile.flatten_dims(1, 2)  # from 0.5 on
        return stored(flat)

    (found,) = violations(body, x=TensorSpec((64, 32), nl.float32))
    assert (found.rule, found.value) == ("version", "none")


FIRES = {
    *(rule for rule, _ in CASES.values()), "platform-target", "instruction-limit", "version",
}  # fmt: skip
