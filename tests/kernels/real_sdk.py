"""Every kernel test through AWS's own SDK: `pytest tests/kernels --sdk=simulator` or `=device`.

The tests stay as they are. Each kernel of the library is replaced, in its module, by a `Launcher`,
before a test module imports it; so all calls of all tests pass here. Without the option nothing is
replaced, and kernels run in this repository's simulator.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODES = ("simulator", "device")


class NoSdkError(Exception):
    """The real SDK cannot be used here."""


class Launcher:
    """A kernel that the real SDK runs: `launcher(…)`, or `launcher[2](…)` on two cores."""

    def __init__(self, kernel: Any, mode: str, nki: Any) -> None:
        self.kernel, self.mode, self.nki = kernel, mode, nki
        self.__name__ = getattr(kernel, "__name__", "kernel")

    def __getitem__(self, cores: int) -> Launcher:
        return Launcher(self.kernel[cores], self.mode, self.nki)

    def __call__(self, *arguments: Any, **parameters: Any) -> Any:
        if self.mode == "simulator":
            return self.nki.simulate(self.kernel)(*arguments, **parameters)
        return on_device(self.kernel, arguments, parameters)

    def specialise(self, *_: Any, **__: Any) -> Any:
        """Programs are this repository's simulator's alone."""
        pytest.skip("asks for a Program, which only this repository's simulator makes")


def on_device(kernel: Any, arguments: Any, parameters: Mapping[str, Any]) -> Any:
    """Run a kernel on the XLA device, with CPU tensors in and out."""
    import torch
    import torch_xla

    device = torch_xla.device()

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    results = kernel(*map(moved, arguments), **{k: moved(v) for k, v in parameters.items()})
    torch_xla.sync()
    if isinstance(results, tuple):
        return tuple(result.cpu() for result in results)
    return results.cpu()


def real_nki(mode: str) -> ModuleType:
    """AWS's `nki`.

    Raises:
        NoSdkError: what `import nki` gives is not the real SDK, or lacks what the mode needs.
    """
    import simulator.finder

    asked = f"--sdk={mode}"
    try:
        nki = importlib.import_module("nki")
        importlib.import_module("nki.language")
    except ImportError as error:
        raise NoSdkError(f"{asked}: `import nki` fails ({error})") from error
    if Path(nki.__file__ or "").is_relative_to(simulator.finder.API):
        raise NoSdkError(
            f"{asked}: the AWS Neuron SDK is not installed here, or NKI_SIMULATOR asks for this "
            "repository's simulator: `import nki` gives that one. Install the SDK's `nki` (0.3 or "
            "later) and unset NKI_SIMULATOR, or leave --sdk out"
        )
    if mode == "simulator" and not hasattr(nki, "simulate"):
        raise NoSdkError(f"{asked}: this nki has no `simulate`; 0.3 and later have it")
    if mode == "device" and importlib.util.find_spec("torch_xla") is None:
        raise NoSdkError(f"{asked}: torch_xla, which reaches the device, is not installed")
    return nki


def replace_kernels(mode: str, nki: Any) -> None:
    """Put a `Launcher` in the place of each kernel of the library."""
    from kernels import KERNELS

    for name, info in KERNELS.items():
        module = importlib.import_module(info.module)
        setattr(module, name, Launcher(getattr(module, name), mode, nki))
