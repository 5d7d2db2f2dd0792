"""GpSimd: index patterns, gathers, reductions over partitions.

Source: nki_facts.md §2.4, §2.6, §2.8.
"""

from __future__ import annotations

__all__: list[str] = []
