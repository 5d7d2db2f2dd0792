"""Fingerprints: one sha256 over files and values, so that a result says what it was made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: object) -> str:
    """One sha256, in hex, over `parts` in their order.

    A `Path` stands for the content of that file (not its name), a pydantic model for its
    fields; anything else must be a JSON value. Mappings count without regard to order.

    Raises:
        TypeError: a part is none of these, or contains NaN or infinity.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            text = f"file:{file_sha256(part)}"
        elif isinstance(part, BaseModel):
            text = f"json:{_canonical(part.model_dump(mode='json'))}"
        else:
            text = f"json:{_canonical(part)}"
        digest.update(f"{len(text)}:{text}".encode())  # the length keeps parts apart
    return digest.hexdigest()


def _canonical(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise TypeError(f"cannot fingerprint {value!r}: {error}") from None
