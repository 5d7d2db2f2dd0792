"""`nki.typing`: annotations of kernel arguments. They have no effect."""

from __future__ import annotations

from typing import Any


class _Tensor:
    def __getitem__(self, shape: Any) -> _Tensor:
        return self

    def __or__(self, other: Any) -> _Tensor:
        return self

    __ror__ = __or__

    def __call__(self) -> None:
        """So that Optional[tensor] takes it for a type."""
        raise TypeError("nki.typing.tensor is an annotation")


tensor = _Tensor()
"""`tensor` or `tensor[shape]`: a tensor argument."""
mutable_tensor = _Tensor()
"""The same; the kernel writes it."""
