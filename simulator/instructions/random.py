"""Random numbers: rng, rand2, dropout and the engines' seeds. Source: nki_facts.md §2.6."""

from __future__ import annotations

__all__: list[str] = []
