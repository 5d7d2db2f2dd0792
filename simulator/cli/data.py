"""Data for tensor arguments: random or regular, seeded; and files of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simulator.cli.problems import BadInput
from simulator.cli.values import TensorInput
from simulator.dtypes import DType

Array = np.ndarray[Any, Any]
SMALL_INTS = 8
"""Integer tensors are filled with 0 … SMALL_INTS-1 unless told otherwise."""


def make(tensor: TensorInput, random: np.random.Generator) -> Array:
    """The data of a tensor argument.

    Args:
        tensor: shape, dtype, and how to fill it: normal(mean=0, deviation=1),
            uniform(low=0, high=1), ints(low, high) without high, arange, zeros, ones.
            Floats are normal, integers 0 to 7 and booleans 0 or 1 by default.
        random: where the numbers come from.

    Raises:
        BadInput: NumPy has no arrays that stand for the dtype.
    """
    dtype, shape = tensor.spec.dtype, tensor.spec.shape
    if dtype.packed or str(dtype) == "tfloat32":
        raise BadInput(
            f"no data can be made for {tensor.spec}: {dtype} has no NumPy dtype of its own",
            "Check it with the commands check and show, or run it from a kernel that converts",
        )
    if tensor.array is not None:
        return tensor.array
    values = _values(tensor, random)
    if dtype.kind == "bool":
        return np.asarray(values != 0)
    if not dtype.is_float:
        limits = np.iinfo(dtype.numpy)
        values = values.clip(limits.min, limits.max)
    return np.asarray(values.astype(dtype.numpy).reshape(shape))


def _values(tensor: TensorInput, random: np.random.Generator) -> Array:
    dtype, shape, numbers = tensor.spec.dtype, tensor.spec.shape, tensor.numbers
    fill = tensor.fill or ("normal" if dtype.is_float else "ints")
    if fill == "normal":
        mean, deviation = (*numbers, *(0.0, 1.0)[len(numbers) :])
        return random.normal(mean, deviation, shape)
    if fill == "uniform":
        low, high = numbers or (0.0, 1.0)
        return random.uniform(low, high, shape)
    if fill == "ints":
        default = (0, 2 if dtype.kind == "bool" else SMALL_INTS)
        low, high = (0, *numbers)[-2:] if numbers else default
        if int(high) <= int(low):
            raise BadInput(f"ints({low},{high}) leaves no number", "Write ints(LOW,HIGH)")
        return random.integers(int(low), int(high), shape)
    if fill == "arange":
        return np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
    return np.full(shape, float(fill == "ones"))


def widened(array: Array) -> Array:
    """fp32 in place of a float dtype that NumPy or torch lacks; other arrays as they are."""
    if array.dtype.kind == "V" or array.dtype.name.startswith(("bfloat16", "float8")):
        return np.asarray(array.astype(np.float32))
    return array


def as_reference(array: Array, dtype: DType) -> Array:
    """What a reference function gets: floats as fp32, integers as they are."""
    return np.asarray(array.astype(np.float32)) if dtype.is_float else array.copy()


def save(results: dict[str, Array], out: str) -> str:
    """Write results to OUT.npz, or one .npy each into the folder OUT. bf16 and fp8 as fp32.

    Raises:
        BadInput: it cannot be written.
    """
    arrays = {name.replace(" ", "_"): widened(array) for name, array in results.items()}
    path = Path(out)
    try:
        if path.suffix == ".npz":
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **arrays)  # type: ignore[arg-type]
            return str(path)
        path.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror}", "Name another --out") from None
    return str(path)
