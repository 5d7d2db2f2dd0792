"""Stand-ins for the closed packages that the public NxD Inference source imports.

Every name of `torch_xla`, `torch_neuronx`, `neuronxcc`, `nkilib` and `libneuronxla` is an empty
class, and every call of one gives its single argument back (so decorators change nothing), but
for the few that NxD Inference's CPU mode really uses. That mode (`to_cpu()`) computes in PyTorch;
no stand-in computes a number.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

CLOSED = ("torch_xla", "torch_neuronx", "neuronxcc", "nkilib", "libneuronxla", "boto3", "botocore")


class _Anything(type):
    """A class any attribute of which is another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else cls

    def __getitem__(cls, _: Any) -> Any:
        return cls


def _anything(name: str) -> Any:
    return _Anything(name, (), {})


class _Module(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = VALUES.get(f"{self.__name__}.{name}")
        if value is None:
            value = _anything(name)
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in CLOSED:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []  # type: ignore[attr-defined]


def _platform(*_: Any, **__: Any) -> str:
    return "trn2"


def _marker(_function: Any) -> Any:
    """`xla_hlo_call`: the only such calls are layer markers, which are the identity."""
    return staticmethod(lambda *args: args[0] if len(args) == 1 else args)


VALUES: dict[str, Any] = {
    "torch_neuronx.utils.get_platform_target": _platform,
    "torch_neuronx.utils.utils.get_platform_target": _platform,
    "torch_neuronx.xla_impl.base.xla_hlo_call": _marker,
    "torch_neuronx.xla_impl.ops.xla_hlo_call": _marker,
}


def install(*sources: str) -> None:
    """Put the stand-ins, and the NxD source folders, in reach of `import`."""
    import torch

    setattr(torch.classes, "neuron", _anything("neuron"))  # noqa: B010  (torch's own lookup fails)
    for source in sources:
        if source not in sys.path:
            sys.path.insert(0, source)
    if not any(type(finder).__name__ == "_Finder" for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
