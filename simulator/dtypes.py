"""The dtypes of `nki.language`: names, sizes, NumPy representation.

Source: nki_facts.md §2.1. A dtype is a `str`, as in the SDK.
"""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np

from simulator.errors import refuse

Kind = Literal["float", "int", "uint", "bool"]


class DType(str):
    """A dtype by name, with its size and its NumPy dtype."""

    __slots__ = ("element", "itemsize", "kind", "numpy")
    itemsize: int
    kind: Kind
    numpy: np.dtype[Any]
    element: np.dtype[Any] | None
    """Of the packed dtypes: what each of the 4 elements in a container is."""

    def __new__(cls, name: str, kind: Kind, numpy_type: Any, element: Any = None) -> DType:
        """Make the dtype `name`, represented by `numpy_type`."""
        self = super().__new__(cls, name)
        self.kind = kind
        self.numpy = np.dtype(numpy_type)
        self.itemsize = self.numpy.itemsize
        self.element = None if element is None else np.dtype(element)
        return self

    def __reduce__(self) -> str:
        """Copies, deep ones too, and pickles are the dtype itself, by its name here."""
        return str(self)

    @property
    def packed(self) -> bool:
        """Whether a container holds 4 elements."""
        return self.element is not None

    def __repr__(self) -> str:
        return f"nl.{self!s}"

    @property
    def is_float(self) -> bool:
        """Whether engines read it as a floating-point number."""
        return self.kind == "float"


bool_ = DType("bool_", "bool", np.uint8)
int8 = DType("int8", "int", np.int8)
int16 = DType("int16", "int", np.int16)
int32 = DType("int32", "int", np.int32)
uint8 = DType("uint8", "uint", np.uint8)
uint16 = DType("uint16", "uint", np.uint16)
uint32 = DType("uint32", "uint", np.uint32)
float16 = DType("float16", "float", np.float16)
float32 = DType("float32", "float", np.float32)
bfloat16 = DType("bfloat16", "float", ml_dtypes.bfloat16)
float8_e4m3 = DType("float8_e4m3", "float", ml_dtypes.float8_e4m3)
float8_e4m3fn = DType("float8_e4m3fn", "float", ml_dtypes.float8_e4m3fn)
float8_e5m2 = DType("float8_e5m2", "float", ml_dtypes.float8_e5m2)
float8_e8m0fnu = DType("float8_e8m0fnu", "float", ml_dtypes.float8_e8m0fnu)
# A dtype of its own although NumPy holds it as float32: writes round to 10 bits of mantissa.
tfloat32 = DType("tfloat32", "float", np.float32)
float8_e4m3fn_x4 = DType("float8_e4m3fn_x4", "uint", np.uint32, ml_dtypes.float8_e4m3fn)
float8_e5m2_x4 = DType("float8_e5m2_x4", "uint", np.uint32, ml_dtypes.float8_e5m2)
float4_e2m1fn_x4 = DType("float4_e2m1fn_x4", "uint", np.uint16, ml_dtypes.float4_e2m1fn)

DTYPES: dict[str, DType] = {
    str(d): d
    for d in (
        bool_, int8, int16, int32, uint8, uint16, uint32, float16, float32, bfloat16,
        float8_e4m3, float8_e4m3fn, float8_e5m2, float8_e8m0fnu, tfloat32,
        float8_e4m3fn_x4, float8_e5m2_x4, float4_e2m1fn_x4,
    )
}  # fmt: skip

_BY_NUMPY: dict[np.dtype[Any], DType] = {
    **{d.numpy: d for d in DTYPES.values() if d not in (bool_, tfloat32) and not d.packed},
    np.dtype(np.bool_): bool_,
}


def as_dtype(dtype: Any) -> DType:
    """The `nl` dtype meant by an argument `dtype=`.

    Raises:
        NkiValidationError: it is a NumPy or torch dtype (the compiler's parser refuses
            those: nki_facts.md §6.3) or nothing known.
    """
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise refuse(
        "dtype",
        f"{dtype!r} is not a dtype of nki.language",
        f"Use nl.NAME, one of: {', '.join(DTYPES)}",
        limit="an nl dtype",
        value=repr(dtype),
    )


def from_numpy(dtype: np.dtype[Any]) -> DType | None:
    """The `nl` dtype of a NumPy array, None if NKI has none (float64, int64, object …)."""
    return _BY_NUMPY.get(dtype)
