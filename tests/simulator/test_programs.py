"""Specialise-then-replay equals a plain sequential interpretation, on random kernels."""

from __future__ import annotations

import os
import random
from typing import Any

import nki
import numpy as np
import pytest
from program_bench import PHYSICAL, Maker, NkiMachine, NumpyMachine

from simulator import arena, forward, schedule
from simulator.execute import Plan

Array = np.ndarray[Any, Any]
COUNT = int(os.environ.get("RANDOM_PROGRAMS", "40"))
"""Random kernels; a long run takes more of them."""


def shapes_of(seed: int) -> list[tuple[int, int, str]]:
    """Three arguments; the first may be written."""
    generator = random.Random(seed)
    return [
        (generator.choice([128, 130, 200]), generator.choice([7, 24, 50]), dtype)
        for dtype in generator.sample(["float32", "bfloat16", "float16", "int8", "uint8"], 3)
    ]


def data_of(shapes: list[tuple[int, int, str]], seed: int) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [
        generator.integers(0 if dtype == "uint8" else -9, 9, (rows, columns)).astype(
            PHYSICAL[dtype]
        )
        if dtype.endswith("int8")
        else generator.normal(size=(rows, columns)).astype(PHYSICAL[dtype])
        for rows, columns, dtype in shapes
    ]


def kernel_of(seed: int, length: int, updates: bool) -> Any:
    shapes = shapes_of(seed)

    def body(x: Any, y: Any, z: Any) -> Any:
        machine = NkiMachine([x, y, z])
        Maker(seed, machine, shapes).make(length, updates)
        return tuple(machine.results)

    return nki.jit(body)


def expected_of(
    seed: int, length: int, updates: bool, data: list[Array], cores: int, precise: bool = True
) -> tuple[list[Array], Array]:
    machine = NumpyMachine(data, cores, precise)
    with np.errstate(all="ignore"):
        Maker(seed, machine, shapes_of(seed)).make(length, updates)
    return machine.results, machine.arguments[0][0]


def assert_same(found: Any, expected: list[Array]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs)


def same(mine: Array, theirs: Array) -> None:
    """Equal dtypes and values; a NaN equals a NaN, in every dtype."""
    assert mine.dtype == theirs.dtype
    np.testing.assert_array_equal(mine.astype(np.float64), theirs.astype(np.float64), strict=True)


def check(seed: int, cores: int, eager: bool = False) -> None:
    """Two calls with different data, so that nothing of the first may show in the second."""
    length, updates = random.Random(seed).randint(5, 60), seed % 3 == 0 and cores == 1
    kernel = kernel_of(seed, length, updates)
    kernel = nki.simulate(kernel[cores] if cores == 2 else kernel, eager=eager)
    for call in range(1 if eager else 2):
        data = data_of(shapes_of(seed), 100 * seed + call)
        expected, first = expected_of(seed, length, updates, data, cores)
        arguments = [array.copy() for array in data]
        assert_same(kernel(*arguments), expected)
        same(arguments[0], first)
        for array, given in zip(arguments[1:], data[1:], strict=True):
            same(array, given)


@pytest.mark.parametrize("seed", range(COUNT))
def test_replay(seed: int) -> None:
    check(seed, 1)


@pytest.mark.parametrize("seed", range(COUNT // 2))
def test_replay_on_two_cores(seed: int) -> None:
    check(1000 + seed, 2)


@pytest.mark.parametrize("seed", range(COUNT // 2))
def test_replay_with_threads(seed: int, monkeypatch: Any) -> None:
    """Every Program is cut into lanes, however small it is."""
    monkeypatch.setattr(schedule, "MINIMUM_COST", 0)
    monkeypatch.setattr(schedule, "MERGE_COST", 1)
    monkeypatch.setattr("simulator.execute.workers", lambda: 3)
    check(2000 + seed, 1 + seed % 2)


@pytest.mark.parametrize("seed", range(COUNT // 4))
def test_eager(seed: int) -> None:
    check(3000 + seed, 1 + seed % 2, eager=True)


@pytest.mark.parametrize("seed", range(COUNT // 4))
def test_replay_without_rounding(seed: int, monkeypatch: Any) -> None:
    """NKI_PRECISE_FP=0: low precision is fp32 on the way, and rounded in results only."""
    monkeypatch.setenv("NKI_PRECISE_FP", "0")
    cores, updates, shapes = 1 + seed % 2, seed % 4 == 2, shapes_of(seed)
    kernel = kernel_of(seed, 40, updates)
    kernel = nki.simulate(kernel[2] if cores == 2 else kernel, eager=seed % 8 > 5)
    data = data_of(shapes, seed)
    expected, first = expected_of(seed, 40, updates, data, cores, precise=False)
    arguments = [array.copy() for array in data]
    with np.errstate(all="ignore"):
        found = kernel(*arguments)
        for mine, theirs in zip(found, expected, strict=True):
            same(mine, theirs.astype(mine.dtype))
        same(arguments[0], first.astype(data[0].dtype))


# --- the kernels are worth something --------------------------------------------------------


def test_the_kernels_exercise_what_they_should(monkeypatch: Any) -> None:
    """Over the seeds: all instructions, loops, memory used again, copies left out, lanes."""
    monkeypatch.setattr(schedule, "MINIMUM_COST", 0)
    monkeypatch.setattr(schedule, "MERGE_COST", 1)
    monkeypatch.setattr("simulator.execute.workers", lambda: 3)
    names: set[str] = set()
    reused = left_out = parallel = 0
    for seed in range(COUNT):
        shapes = shapes_of(seed)
        kernel = kernel_of(seed, random.Random(seed).randint(5, 60), False)
        program = kernel.specialise(*data_of(shapes, seed))
        names |= {instruction.spec.name for instruction in program.instructions}
        plan = Plan(program)
        total = sum(plan.bytes_of(s) for s in program.storages if s.role == "temporary")
        _, size = arena.pack(program, plan.bytes_of, plan._forwarding, plan._schedule)
        reused += size < total / 2
        parallel += any(len(segment.lanes) > 1 for segment in plan._schedule)
        left_out += bool(forward.forward(program).skipped)
    assert names >= {
        "dma_copy", "tensor_copy", "memset", "tensor_tensor", "tensor_scalar", "activation",
        "tensor_reduce", "nc_matmul", "loop", "register_move",
    }  # fmt: skip
    assert min(reused, left_out, parallel) > COUNT // 8


@pytest.mark.parametrize("wrong", ["lifetimes", "one step", "tensor_scalar"])
def test_a_wrong_replay_is_noticed(wrong: str, monkeypatch: Any) -> None:
    if wrong == "lifetimes":  # every tile dies a little too early
        original = arena.lifetimes
        monkeypatch.setattr(
            arena, "lifetimes",
            lambda program: [
                type(life)(life.storage, life.first, max(life.first, life.last - 3))
                for life in original(program)
            ],
        )  # fmt: skip
    else:
        lower = Plan.lower
        left = [7]

        def skipping(self: Plan, instruction: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 if wrong == "one step" else instruction.spec.name == "tensor_scalar":
                return lambda views: None
            return lower(self, instruction)

        monkeypatch.setattr(Plan, "lower", skipping)
    noticed = 0
    for seed in range(12):
        left = [7]
        try:
            check(seed, 1)
        except AssertionError:
            noticed += 1
    assert noticed >= 3
