"""Removes the lock that a killed Snakemake left behind.

Snakemake's own lock is a file, which outlives its process after a SIGKILL or a power cut, so
that the next run stops and asks for --unlock. A lock of the kernel's ends with its process: who
holds it knows that no other run is alive, and that a lock file is a dead one's.
"""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import IO

_held: list[IO[str]] = []
"""Kept open, and so locked, for the life of this process."""


def remove_stale_lock(folder: Path = Path(".snakemake")) -> bool:
    """Remove Snakemake's lock in `folder` unless another run is alive; says whether it did."""
    try:
        folder.mkdir(exist_ok=True)
        file = (folder / "alive").open("w")
    except OSError:  # a read-only checkout: nothing can run here, nor be locked
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another run holds it, or the file system has no such locks
        file.close()
        return False
    _held.append(file)
    locks = folder / "locks"
    stale = locks.is_dir() and any(locks.iterdir())
    if stale:
        shutil.rmtree(locks)
    return stale
