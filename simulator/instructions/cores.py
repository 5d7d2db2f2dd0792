"""What the two cores of an LNC2 launch do together, and device_print.

Source: nki_facts.md §2.4, §2.11.
"""

from __future__ import annotations

__all__: list[str] = []
