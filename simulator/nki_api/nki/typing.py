"""`nki.typing`: annotations of kernel arguments. They have no effect."""

from __future__ import annotations

from typing import Any


class _Tensor:
    def __getitem__(self, shape: Any) -> _Tensor:
        return self


tensor = _Tensor()
"""`tensor[shape]`: a tensor argument."""
