"""Where promotion leaves its mark on this machine; apart, since the workflow reads it often."""

from __future__ import annotations

from pathlib import Path

from model.configuration import Config


def stamp_path(config: Config) -> Path:
    """The file that `promote` writes, so that Snakemake notices a new champion."""
    return Path("mlflow") / f"champion-{config.model}-{config.device}.json"
