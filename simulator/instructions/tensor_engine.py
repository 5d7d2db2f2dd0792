"""The Tensor engine: matrix multiplication and transposes. Source: nki_facts.md §2.4, §2.5."""

from __future__ import annotations

__all__: list[str] = []
