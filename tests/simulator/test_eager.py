"""Eager mode: what replay gives, with values to look at while the kernel is traced."""

from __future__ import annotations

import importlib
import pdb
import pkgutil
from collections.abc import Callable
from typing import Any

import ml_dtypes
import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
import torch
from rule_bench import loaded, sbuf, stored

import kernels
from simulator.errors import NkiLaxWarning, NkiValidationError
from simulator.kernel import Kernel

Array = np.ndarray[Any, Any]
BF16 = ml_dtypes.bfloat16


def random(*shape: int, dtype: Any = np.float32, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng(sum(shape)).normal(size=shape)).astype(dtype)  # type: ignore[no-any-return]


def eager(kernel: Any) -> Any:
    return nki.simulate(kernel, eager=True)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


# --- the project's kernels ------------------------------------------------------------------

INPUTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "nki_rmsnorm_kernel": lambda: (random(200, 96, dtype=BF16), random(96, dtype=BF16)),
    "nki_qk_rmsnorm_kernel": lambda: (
        random(130, 4, 64), random(130, 2, 64), random(64), random(64)
    ),
    "nki_softmax_kernel": lambda: (random(129, 300, scale=9),),
    "nki_silu_kernel": lambda: (random(130, 700, dtype=BF16),),
    "nki_expert_router_kernel": lambda: (random(40, 256, dtype=BF16), random(256, 32, dtype=BF16)),
    "nki_fused_expert_mlp_kernel": lambda: (
        random(64, 256, dtype=BF16), *(random(256, 128, dtype=BF16, scale=0.1) for _ in range(2)),
        random(128, 256, dtype=BF16, scale=0.1),
    ),
    "nki_moe_decode_kernel": lambda: (
        random(2, 256), random(256), random(256, 8), random(8, 256, 256, scale=0.1),
        random(8, 128, 256, scale=0.1), None, 1e-6, 2,
    ),
}  # fmt: skip


def jitted_kernels() -> dict[str, Kernel]:
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__):
        for name, value in vars(importlib.import_module(f"kernels.{module.name}")).items():
            if isinstance(value, Kernel):
                found[name] = value
    return found


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_the_projects_kernels_give_what_replay_gives(name: str) -> None:
    kernel = jitted_kernels()[name]
    arguments = INPUTS[name]()
    for mine, theirs in zip(
        as_tuple(eager(kernel)(*arguments)), as_tuple(kernel(*arguments)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs, strict=True)


def test_every_kernel_of_the_project_is_run() -> None:
    missing = set(jitted_kernels()) - set(INPUTS)
    if missing:
        pytest.skip(f"kernels without inputs in INPUTS: {', '.join(sorted(missing))}")


def test_a_kernel_on_two_cores_gives_what_replay_gives() -> None:
    kernel = jitted_kernels()["nki_moe_decode_kernel"][2]
    arguments = INPUTS["nki_moe_decode_kernel"]()
    np.testing.assert_array_equal(eager(kernel)(*arguments), kernel(*arguments), strict=True)


# --- values on the way ----------------------------------------------------------------------


def test_print_shows_values(capsys: Any) -> None:
    def body(x: Any) -> Any:
        tile = sbuf(2, 2)
        print(tile)
        nisa.dma_copy(dst=tile, src=x)
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0)
        print(f"now {tile[:, 1:2]}")
        register = nisa.register_alloc(7)
        print(register)
        print(tile[:, nl.ds(nisa.register_alloc(0), 1)])
        return stored(tile)

    eager(body)(np.array([[1, 2], [3, 4]], np.float32))
    assert capsys.readouterr().out.splitlines() == [
        "t1: float32[2,2] in sbuf", "[[nan nan]", " [nan nan]]",
        "now t1: float32[2,1] in sbuf", "[[3.]", " [5.]]",
        "r0=7",
        "t1: float32[2,1] in sbuf",
    ]  # fmt: skip
    nki.jit(body)(np.array([[1, 2], [3, 4]], np.float32))
    assert "[[" not in capsys.readouterr().out


def test_a_debugger_sees_values(monkeypatch: Any) -> None:
    seen: list[Any] = []

    def stop(*args: Any, **kwargs: Any) -> None:
        frame = __import__("sys")._getframe(1)
        seen.append(str(frame.f_locals["tile"]))

    monkeypatch.setattr(pdb, "set_trace", stop)
    monkeypatch.setenv("PYTHONBREAKPOINT", "pdb.set_trace")

    def body(x: Any) -> Any:
        tile = loaded(x)
        breakpoint()
        return stored(tile)

    eager(body)(np.array([[1, 2]], np.float32))
    assert "[[1. 2.]]" in seen[0]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(nl.float32, np.nan), (nl.bfloat16, np.nan), (nl.float8_e4m3, np.nan), (nl.int32, 4),
     (nl.uint8, 4)],
)  # fmt: skip
def test_memory_nobody_wrote_to(dtype: Any, expected: Any) -> None:
    seen: list[Array] = []

    def body(x: Any) -> Any:
        for buffer in (nl.sbuf, nl.psum, nl.shared_hbm, nl.private_hbm):
            tensor = nl.ndarray((2, 3), dtype=dtype, buffer=buffer)
            from simulator.tensor import eager_values

            seen.append(eager_values(tensor))
        return stored(loaded(x))

    eager(body)(np.ones((1, 1), np.float32))
    assert len(seen) == 4
    for values in seen:
        np.testing.assert_array_equal(values.astype(np.float64), np.full((2, 3), expected))


def test_an_unset_register_shows_a_4() -> None:
    def body(x: Any) -> Any:
        assert nisa.register_alloc().value == 4
        return stored(loaded(x))

    eager(body)(np.ones((1, 1), np.float32))


# --- errors ---------------------------------------------------------------------------------


def test_a_violation_is_raised_at_its_instruction() -> None:
    after: list[int] = []

    def body(x: Any) -> Any:
        tile = loaded(x)
        nisa.tensor_copy(dst=tile[1:2, :], src=tile[0:1, :])
        after.append(1)
        return stored(tile)

    with pytest.raises(NkiValidationError) as caught:
        eager(body)(np.ones((4, 4), np.float32))
    assert not after
    (found,) = caught.value.violations
    assert (found.rule, found.line) == ("partition-start", body.__code__.co_firstlineno + 2)
    frames = [entry.frame.code.name for entry in caught.traceback]
    assert "body" in [str(name) for name in frames] or frames


def test_what_shows_only_in_the_whole_is_told_at_the_end() -> None:
    def body(x: Any) -> Any:
        tile = sbuf(4, 4)
        nisa.dma_copy(dst=tile[:, 0:2], src=x[:, 0:2])
        return stored(tile)

    with pytest.warns(NkiLaxWarning, match="uninitialised-read"):
        result = eager(body)(np.ones((4, 4), np.float32))
    np.testing.assert_array_equal(result, [[1.0, 1.0, np.nan, np.nan]] * 4)
    with pytest.warns(NkiLaxWarning, match="uninitialised-read"):
        np.testing.assert_array_equal(nki.jit(body)(np.ones((4, 4), np.float32)), result)


def test_a_failed_run_leaves_nothing_behind() -> None:
    def body(x: Any, good: bool) -> Any:
        assert good, "as asked"
        return stored(loaded(x))

    x = np.ones((2, 2), np.float32)
    with pytest.raises(NkiValidationError, match="as asked"):
        eager(body)(x, False)
    np.testing.assert_array_equal(eager(body)(x, True), x)
    with pytest.raises(NkiValidationError, match="outside-kernel"):
        nl.ndarray((2, 2), dtype=nl.float32)


# --- data in and out ------------------------------------------------------------------------


def doubled(x: Any, y: Any) -> Any:
    tile = loaded(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=x, src=tile)
    return x, stored(loaded(y))


@pytest.mark.parametrize("precise", ["1", "0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arguments_are_updated_in_place(monkeypatch: Any, precise: str, dtype: Any) -> None:
    monkeypatch.setenv("NKI_PRECISE_FP", precise)
    x, y = torch.ones(4, 3, dtype=dtype).t(), torch.full((2, 2), 3.0, dtype=dtype)
    first, second = eager(doubled)(x, y)
    assert first is x
    assert torch.equal(x, torch.full((3, 4), 2.0, dtype=dtype))
    assert torch.equal(second, y)
    array = np.ones((2, 6), np.float32)[:, ::2]
    eager(doubled)(array, array.copy())
    np.testing.assert_array_equal(array, np.full((2, 3), 2.0))


def test_jitted_and_plain_functions_and_grids() -> None:
    x = np.ones((2, 2), np.float32)
    for kernel in (doubled, nki.jit(doubled), nki.jit(doubled)[1]):
        np.testing.assert_array_equal(eager(kernel)(x.copy(), x)[1], x)
    launched = nki.simulate(nki.jit(doubled), eager=True)[1]
    np.testing.assert_array_equal(launched(x.copy(), x)[1], x)


# --- two cores ------------------------------------------------------------------------------


def exchange(x: Any) -> Any:
    """Rows swapped through sendrecv, doubled, then through shared HBM with barriers."""
    me = nl.program_id(0)
    first = nl.ndarray((2, 4), dtype=nl.float32, buffer=nl.shared_hbm)
    mine, theirs = sbuf(1, 4), sbuf(1, 4)
    nisa.dma_copy(dst=mine, src=x[me : me + 1, :])
    nisa.sendrecv(src=mine, dst=theirs, send_to_rank=1 - me, recv_from_rank=1 - me, pipe_id=0)
    nisa.tensor_scalar(dst=theirs, data=theirs, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=first[me : me + 1, :], src=theirs)
    nisa.core_barrier(first, (0, 1))
    out = nl.ndarray((2, 4), dtype=nl.float32, buffer=nl.shared_hbm)
    for i in nl.dynamic_range(2):
        nisa.dma_copy(dst=mine, src=first[1 - me : 2 - me, :])
        nisa.core_barrier(first, (0, 1))
        nisa.tensor_scalar(dst=mine, data=mine, op0=nl.add, operand0=i)
    nisa.dma_copy(dst=out[me : me + 1, :], src=mine)
    return out


def test_two_cores_take_turns() -> None:
    x = random(2, 4)
    kernel = nki.jit(exchange)
    expected = 2 * x + 1
    for _ in range(3):
        np.testing.assert_array_equal(eager(kernel[2])(x), expected)
    np.testing.assert_array_equal(kernel[2](x), expected)
    np.testing.assert_array_equal(nki.simulate(kernel, eager=True)[2](x), expected)


def test_two_cores_print_in_turn(capsys: Any) -> None:
    def body(x: Any) -> Any:
        me = nl.program_id(0)
        out = nl.ndarray((2, 1), dtype=nl.float32, buffer=nl.shared_hbm)
        print(me, "before")
        nisa.core_barrier(out, (0, 1))
        print(me, "between")
        nisa.core_barrier(out, (0, 1))
        print(me, "after")
        nisa.dma_copy(dst=out[me : me + 1, :], src=x)
        return out

    for _ in range(3):
        eager(nki.jit(body)[2])(np.ones((1, 1), np.float32))
        expected = [f"{core} {when}" for when in ("before", "between", "after") for core in (0, 1)]
        assert capsys.readouterr().out.splitlines() == expected


def lonely(core: int) -> Callable[..., Any]:
    def body(x: Any) -> Any:
        me = nl.program_id(0)
        out = nl.ndarray((2, 1), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.core_barrier(out, (0, 1))
        nisa.dma_copy(dst=out[me : me + 1, :], src=x)
        if me == core:
            nisa.core_barrier(out, (0, 1))
        return out

    return body


def other_meeting(x: Any) -> Any:
    tile, into = loaded(x), sbuf(1, 1)
    if nl.program_id(0):
        nisa.sendrecv(src=tile, dst=into, send_to_rank=0, recv_from_rank=0, pipe_id=0)
    else:
        nisa.core_barrier(x, (0, 1))
    return x


def failing_on_one(x: Any) -> Any:
    assert nl.program_id(0) == 0, "core 1 gives up"
    nisa.core_barrier(x, (0, 1))
    return stored(loaded(x))


def uneven_loops(x: Any) -> Any:
    for _ in nl.dynamic_range(2 + nl.program_id(0)):
        nisa.core_barrier(x, (0, 1))
    return stored(loaded(x))


@pytest.mark.parametrize(
    ("body", "rule"),
    [(lonely(0), "lnc-partner"), (lonely(1), "lnc-partner"), (other_meeting, "lnc-partner"),
     (failing_on_one, "kernel-assert"), (uneven_loops, "lnc-partner")],
)  # fmt: skip
def test_errors_on_two_cores(body: Callable[..., Any], rule: str) -> None:
    with pytest.raises(NkiValidationError) as caught:
        eager(nki.jit(body)[2])(np.ones((1, 1), np.float32))
    assert [v.rule for v in caught.value.violations] == [rule]


def test_races_are_seen_between_barriers_only() -> None:
    """Each core reads what the other wrote before the barrier, and core 0 is always first."""

    def body(x: Any, separate: bool) -> Any:
        me = nl.program_id(0)
        between = nl.ndarray((2, 1), dtype=nl.float32, buffer=nl.shared_hbm)
        out = nl.ndarray((2, 1), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=between[me : me + 1, :], src=x)
        nisa.core_barrier(between, (0, 1))
        nisa.dma_copy(dst=out[me : me + 1, :], src=between[1 - me : 2 - me, :])
        if separate:
            nisa.core_barrier(between, (0, 1))
        nisa.dma_copy(dst=between[me : me + 1, :], src=x)
        return out

    x = np.ones((1, 1), np.float32)
    for run in (nki.jit(body)[2], eager(nki.jit(body)[2])):
        np.testing.assert_array_equal(run(x, True), [[1.0], [1.0]])
        with pytest.raises(NkiValidationError) as caught:
            run(x, False)
        assert {v.rule for v in caught.value.violations} == {"lnc-race"}
