"""Data in and out of a kernel: NumPy arrays and CPU torch tensors."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np

from simulator import dtypes
from simulator.errors import refuse
from simulator.program import Program
from simulator.specialise import TensorSpec

Array = np.ndarray[Any, Any]

_TORCH_BITS = {"bfloat16": ("uint16", ml_dtypes.bfloat16),
               "float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn),
               "float8_e5m2": ("uint8", ml_dtypes.float8_e5m2)}  # fmt: skip
"""torch dtypes that NumPy lacks -> same-sized integers, and the NumPy extension dtype."""


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray) or _is_torch(value)


def _to_numpy(name: str, value: Any) -> Array:
    """A contiguous array of the argument's values, sharing memory where it can."""
    if _is_torch(value):
        torch = sys.modules["torch"]
        tensor = value.detach()
        if tensor.device.type != "cpu":
            raise refuse(
                "argument",
                f"argument `{name}` is on device {tensor.device}",
                "The simulator takes CPU tensors: call .cpu() first",
                operand=name,
                limit="cpu",
                value=str(tensor.device),
            )
        tensor = tensor.contiguous()
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind in _TORCH_BITS:
            bits, extension = _TORCH_BITS[kind]
            value = tensor.view(getattr(torch, bits)).numpy().view(extension)
        else:
            value = tensor.numpy()
    shape = tuple(value.shape)
    array = np.ascontiguousarray(value)
    if dtypes.from_numpy(array.dtype) is None:
        raise refuse(
            "argument",
            f"argument `{name}` has dtype {array.dtype}, which NKI does not have",
            f"Convert it to one of: {', '.join(dtypes.DTYPES)}",
            operand=name,
            limit="an nl dtype",
            value=str(array.dtype),
        )
    if not shape or array.size == 0:  # ascontiguousarray would make () into (1,)
        raise refuse(
            "argument",
            f"argument `{name}` has shape {shape}",
            "Tensor arguments need at least one dimension and one element",
            operand=name,
            limit=">= 1 element",
            value=str(shape),
        )
    return array.view(np.uint8) if array.dtype == np.bool_ else array


class Call:
    """The arguments of one call: their specs, their data, and the way back."""

    def __init__(self, bound: dict[str, Any]) -> None:
        """Take the bound arguments, by name in signature order."""
        self.arrays: dict[str, Array] = {}
        """Contiguous arrays of the tensor arguments; nested ones are named `x.0`, `x.key`."""
        self._originals: dict[str, Any] = {}
        self.specs = {name: self._spec(name, value) for name, value in bound.items()}
        """What the kernel is specialised for."""

    def _spec(self, name: str, value: Any) -> Any:
        if _is_tensor(value):
            array = self.arrays[name] = _to_numpy(name, value)
            self._originals[name] = value
            dtype = dtypes.from_numpy(array.dtype)
            assert dtype is not None
            boolean = str(value.dtype).endswith("bool")
            return TensorSpec(array.shape, dtypes.bool_ if boolean else dtype)
        if isinstance(value, tuple):
            items = [self._spec(f"{name}.{i}", item) for i, item in enumerate(value)]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if isinstance(value, dict):
            return {key: self._spec(f"{name}.{key}", item) for key, item in value.items()}
        if isinstance(value, list):
            raise refuse(
                "argument",
                f"argument `{name}` is a list",
                "Pass a tuple: lists are refused as kernel arguments since NKI 0.3",
                operand=name,
                limit="tuple",
                value="list",
            )
        return value

    def finish(self, program: Program, results: list[Array]) -> Any:
        """Write back what the kernel wrote to its arguments, and convert its results."""
        written = program.written_arguments
        for name, array in self.arrays.items():
            if name in written:
                _copy_back(array, self._originals[name])
        use_torch = any(_is_torch(value) for value in self._originals.values())
        converted = tuple(
            self._result(program, position, array, use_torch)
            for position, array in enumerate(results)
        )
        return converted if program.returns_tuple or not converted else converted[0]

    def _result(self, program: Program, position: int, array: Array, use_torch: bool) -> Any:
        tensor = program.results[position]
        if tensor.storage.role == "argument" and tensor.size == tensor.storage.size:
            return self._originals[tensor.storage.name]  # updated in place: the caller's own
        wanted = tensor.dtype.numpy
        array = np.ascontiguousarray(array if array.dtype == wanted else array.astype(wanted))
        if tensor.storage.role == "argument":
            array = array.copy()
        if tensor.dtype is dtypes.bool_:
            array = array.view(np.bool_)
        return _to_torch(array) if use_torch else array


def _copy_back(array: Array, original: Any) -> None:
    """Make writes to an argument visible to the caller if the array is a copy of it."""
    if _is_torch(original):
        original.copy_(_to_torch(array, original.dtype).reshape(original.shape))
    elif not np.shares_memory(array, original):
        original[...] = array.view(original.dtype)


def _to_torch(array: Array, dtype: Any = None) -> Any:
    torch = sys.modules["torch"]
    nl = dtypes.from_numpy(array.dtype)
    if nl is not None and str(nl) in _TORCH_BITS:
        bits = np.dtype(_TORCH_BITS[str(nl)][0])
        return torch.from_numpy(array.view(bits)).view(getattr(torch, str(nl)))
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bool) if dtype is not None and dtype == torch.bool else tensor
