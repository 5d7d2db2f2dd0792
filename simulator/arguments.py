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
from simulator.tensor import NkiTensor, row_major

Array = np.ndarray[Any, Any]

_TORCH_BITS = {"bfloat16": ("uint16", ml_dtypes.bfloat16),
               "float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn),
               "float8_e5m2": ("uint8", ml_dtypes.float8_e5m2),
               "float8_e8m0fnu": ("uint8", ml_dtypes.float8_e8m0fnu)}  # fmt: skip
"""torch dtypes that NumPy lacks -> same-sized integers, and the NumPy extension dtype."""


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray) or _is_torch(value)


def _to_numpy(name: str, value: Any) -> Array:
    """A contiguous array of the argument's values, sharing memory where it can."""
    if _is_torch(value):
        value = _torch_to_numpy(name, value)
    elif isinstance(value, np.ma.MaskedArray):
        raise refuse(
            "argument",
            f"argument `{name}` is a masked array, and NKI has no masks",
            "Pass .filled(value)",
            operand=name,
            limit="a plain array",
            value="MaskedArray",
        )
    shape = tuple(value.shape)
    array = np.ascontiguousarray(value)
    if dtypes.from_numpy(array.dtype) is None:
        raise _no_dtype(name, array.dtype)
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


def _torch_to_numpy(name: str, value: Any) -> Array:
    torch = sys.modules["torch"]
    if value.device.type != "cpu":
        raise refuse(
            "argument",
            f"argument `{name}` is on device {value.device}",
            "The simulator takes CPU tensors: call .cpu() first",
            operand=name,
            limit="cpu",
            value=str(value.device),
        )
    if value.layout is not torch.strided:
        raise refuse(
            "argument",
            f"argument `{name}` has layout {value.layout}",
            "Pass .to_dense()",
            operand=name,
            limit="strided",
            value=str(value.layout),
        )
    tensor = value.detach().contiguous()
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind in _TORCH_BITS:
        bits, extension = _TORCH_BITS[kind]
        return tensor.view(getattr(torch, bits)).numpy().view(extension)  # type: ignore[no-any-return]
    try:
        return tensor.numpy()  # type: ignore[no-any-return]
    except (TypeError, RuntimeError):  # a dtype that NumPy does not have either
        raise _no_dtype(name, tensor.dtype) from None


def _no_dtype(name: str, dtype: Any) -> Exception:
    return refuse(
        "argument",
        f"argument `{name}` has dtype {dtype}, which NKI does not have",
        f"Convert it to one of: {', '.join(dtypes.DTYPES)}",
        operand=name,
        limit="an nl dtype",
        value=str(dtype),
    )


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
            if not all(isinstance(key, str) for key in value):
                raise refuse(
                    "argument",
                    f"argument `{name}` has keys that are no strings",
                    "Dictionaries in kernels have string keys",
                    operand=name,
                    limit="str keys",
                    value=str([key for key in value if not isinstance(key, str)]),
                )
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

    def protect(self) -> None:
        """Copy arrays that may not be written: whether the kernel does shows at its end only."""
        for name, array in self.arrays.items():
            if _why_not_writable(self._originals[name]) or not array.flags.writeable:
                self.arrays[name] = array.copy()

    def check_writable(self, program: Program) -> None:
        """What the kernel writes must be the caller's to be written.

        Raises:
            NkiValidationError: a read-only array, or a tensor that autograd watches.
        """
        for name in program.written_arguments:
            problem = _why_not_writable(self._originals[name])
            if problem:
                raise refuse(
                    "argument",
                    f"the kernel writes to argument `{name}`, which {problem[0]}",
                    problem[1],
                    operand=name,
                    limit="writable memory",
                    value=problem[0],
                )

    def finish(self, program: Program, results: list[Array]) -> Any:
        """Write back what the kernel wrote to its arguments, and convert its results."""
        self.check_writable(program)
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
        if tensor.storage.role == "argument" and _is_whole(tensor):
            return self._originals[tensor.storage.name]  # updated in place: the caller's own
        wanted = tensor.dtype.numpy
        array = np.ascontiguousarray(array if array.dtype == wanted else array.astype(wanted))
        if tensor.storage.role == "argument":
            array = array.copy()
        if tensor.dtype is dtypes.bool_:
            array = array != 0
        return _to_torch(array) if use_torch else array


def _is_whole(tensor: NkiTensor) -> bool:
    """Whether a view is its storage as it was allocated."""
    storage = tensor.storage
    same = tensor.shape == storage.shape and tensor.dtype is storage.dtype
    return same and tensor.strides == row_major(tensor.shape)


def _why_not_writable(original: Any) -> tuple[str, str] | None:
    """What is wrong with an argument that is to be written, and how to mend it."""
    if not _is_torch(original):
        if original.flags.writeable:
            return None
        return "is read-only", "Pass a copy, or an array that may be written"
    if original.requires_grad:
        return "requires grad", "Pass .detach(): autograd knows nothing of kernels"
    pairs = zip(original.stride(), original.shape, strict=True)
    if any(stride == 0 and size > 1 for stride, size in pairs):
        return "is expanded: several elements share memory", "Pass .clone()"
    return None


def _copy_back(array: Array, original: Any) -> None:
    """Make writes to an argument visible to the caller if the array is a copy of it."""
    if _is_torch(original):
        if original.data_ptr() != array.ctypes.data:
            original.copy_(_to_torch(array, original.dtype).reshape(original.shape))
    elif not np.shares_memory(array, original):
        original[...] = array.view(original.dtype)


def _to_torch(array: Array, dtype: Any = None) -> Any:
    torch = sys.modules["torch"]
    nl = dtypes.from_numpy(array.dtype)
    if nl is not None and str(nl) in _TORCH_BITS:
        bits = np.dtype(_TORCH_BITS[str(nl)][0])
        return torch.from_numpy(array.view(bits)).view(getattr(torch, str(nl)))
    if nl is dtypes.float8_e4m3:
        raise refuse(
            "result-dtype",
            "torch has no dtype for float8_e4m3, which the kernel returns",
            "Return tensor.view(nl.uint8), or call the kernel with NumPy arrays",
            limit="a torch dtype",
            value=str(nl),
        )
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bool) if dtype is not None and dtype == torch.bool else tensor
