"""Kernels forget what they made for a test's shapes: buffers of full size are gigabytes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import pytest

from kernels import KERNELS
from simulator.kernel import Kernel


@pytest.fixture(autouse=True)
def no_plans_are_kept() -> Iterator[None]:
    yield
    for name, info in KERNELS.items():
        kernel = getattr(import_module(info.module), name)
        if isinstance(kernel, Kernel):  # and not the real SDK's
            for launch in (kernel, *kernel._launches.values()):
                launch._plans.clear()
