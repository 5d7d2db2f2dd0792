"""The limits of each target that checks need. Timing constants live elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass

PARTITIONS = 128
"""SBUF and PSUM partitions, every generation (nki_facts.md §3.1)."""


@dataclass(frozen=True)
class Target:
    """One generation of NeuronCore."""

    name: str
    generation: int
    sbuf_bytes_per_partition: int
    """Usable by a kernel."""
    psum_banks: int = 8
    psum_bank_bytes: int = 2048
    """Per partition (nki_facts.md §3.1)."""

    @property
    def psum_bytes_per_partition(self) -> int:
        """All banks."""
        return self.psum_banks * self.psum_bank_bytes


TARGETS: dict[str, Target] = {
    # 192 KiB less the same reserve (nki_facts.md §3.1). NKI 0.3 and later do not compile for it;
    # it is here so that kernels which ask for it run.
    "trn1": Target("trn1", 2, 192 * 1024 - 16384 - 8),
    # 224 KiB less 16 KiB and 8 B: the limit nki-library hard-codes (nki_facts.md §3.1).
    "trn2": Target("trn2", 3, 224 * 1024 - 16384 - 8),
    # Unpublished; 256 KiB less the same reserve (nki_facts.md §3.1, A2).
    "trn3": Target("trn3", 4, 256 * 1024 - 16384 - 8),
}

CHECKED = ("trn2", "trn3")
"""The targets that NKI 0.3 to 0.7 compile for."""

_ALIASES = {
    "trn1": "trn1", "inf2": "trn1", "gen2": "trn1", "trn2": "trn2", "gen3": "trn2",
    "trn3": "trn3", "gen4": "trn3",
}  # fmt: skip
VARIABLE = "NEURON_PLATFORM_TARGET_OVERRIDE"


def current_target(default: str | None = None) -> Target:
    """The target named by NEURON_PLATFORM_TARGET_OVERRIDE, else `default`, else trn2.

    AWS's simulator defaults to trn3, where gen4-only features pass that trn2 lacks
    (nki_facts.md §8 trap 9); ours defaults to the stricter one.

    Raises:
        ValueError: the variable names no target we know.
    """
    name = os.environ.get(VARIABLE, "") or default or "trn2"
    if name not in _ALIASES:
        raise ValueError(f"{VARIABLE} is {name!r}; known targets: {', '.join(_ALIASES)}")
    return TARGETS[_ALIASES[name]]
