"""`nki.jit` and `nki.simulate`: a kernel as something to call with NumPy or torch data."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from simulator import dtypes
from simulator.errors import refuse
from simulator.execute import Plan
from simulator.program import Program
from simulator.specialise import TensorSpec, specialise
from simulator.targets import Target, current_target

Array = np.ndarray[Any, Any]


class Kernel:
    """An NKI kernel. Calling it specialises it for the arguments, once, and replays it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.signature = inspect.signature(function)
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def __getitem__(self, lnc: Any) -> Kernel:
        cores = lnc[0] if isinstance(lnc, tuple) and len(lnc) == 1 else lnc
        if cores != 1:
            raise refuse(
                "unsupported",
                "only launches on one core are simulated yet",
                "Call the kernel without a grid, or with kernel[1]",
                limit="1",
                value=repr(lnc),
            )
        return self

    def __repr__(self) -> str:
        return f"<nki kernel {self.function.__module__}.{self.function.__qualname__}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on NumPy arrays (NumPy results) or CPU torch tensors (torch results)."""
        bound = self._bind(args, kwargs)
        arrays = {n: _to_numpy(n, v) for n, v in bound.items() if _is_tensor(v)}
        plan = self._plan({n: _spec(n, arrays, v) for n, v in bound.items()})
        results = plan.run(arrays)
        for name, value in bound.items():
            if name in arrays:
                _copy_back(plan.program, name, arrays[name], value)
        use_torch = any(_is_torch(value) for value in bound.values())
        converted = tuple(
            _result(plan.program, position, array, bound, use_torch)
            for position, array in enumerate(results)
        )
        return converted if plan.program.returns_tuple or not converted else converted[0]

    def specialise(self, *args: Any, target: Target | None = None, **kwargs: Any) -> Program:
        """The Program for arguments given as TensorSpec, arrays, tensors or plain values.

        Raises:
            NkiValidationError: what the checks found.
        """
        bound = self._bind(args, kwargs)
        arrays = {n: _to_numpy(n, v) for n, v in bound.items() if _is_tensor(v)}
        return self._plan({n: _spec(n, arrays, v) for n, v in bound.items()}, target).program

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.function.__name__}{self.signature}: {error}") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def _plan(self, arguments: dict[str, Any], target: Target | None = None) -> Plan:
        target = target or current_target()
        key = (target.name, *((n, type(v), v) for n, v in arguments.items()))
        try:
            plan = self._plans.get(key)
        except TypeError:  # unhashable: not cached
            return Plan(specialise(self.function, arguments, target))
        if plan is None:
            plan = self._plans[key] = Plan(specialise(self.function, arguments, target))
        return plan


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorate a kernel's entry function.

    Options of the SDK that only concern its compiler are accepted and have no effect.

    Raises:
        TypeError: `platform_target=`, which the SDK refuses since 0.3.
    """
    if "platform_target" in options:
        raise TypeError(
            "nki.jit has no platform_target; set NEURON_PLATFORM_TARGET_OVERRIDE=trn2 or trn3"
        )
    if function is None:
        return jit
    return function if isinstance(function, Kernel) else Kernel(function)


def simulate(kernel: Kernel | Callable[..., Any]) -> Kernel:
    """A kernel (or plain function) to call on data, as `nki.simulate(kernel)(…)`."""
    return kernel if isinstance(kernel, Kernel) else Kernel(kernel)


# --- data in and out ------------------------------------------------------------------------

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


def _spec(name: str, arrays: dict[str, Array], value: Any) -> Any:
    if name in arrays:
        dtype = dtypes.from_numpy(arrays[name].dtype)
        assert dtype is not None
        boolean = str(getattr(value, "dtype", "")).endswith("bool")
        return TensorSpec(arrays[name].shape, dtypes.bool_ if boolean else dtype)
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


def _copy_back(program: Program, name: str, array: Array, original: Any) -> None:
    """Make writes to an argument visible to the caller if the array is a copy of it."""
    storage = program.arguments[name].storage
    if not any(t.storage is storage for i in program.instructions for _, t in i.writes()):
        return
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


def _result(
    program: Program, position: int, array: Array, bound: dict[str, Any], use_torch: bool
) -> Any:
    tensor = program.results[position]
    if tensor.storage.role == "argument":  # updated in place: give the caller's own back
        original = bound[tensor.storage.name]
        return original if tensor.size == tensor.storage.size else array.copy()
    if tensor.storage.dtype is dtypes.bool_:
        array = array.view(np.bool_)
    return _to_torch(np.ascontiguousarray(array)) if use_torch else array
