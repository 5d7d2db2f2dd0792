"""Vector instructions beyond element by element: scans, selections, statistics, top 8.

Source: nki_facts.md §2.6.
"""

from __future__ import annotations

__all__: list[str] = []
