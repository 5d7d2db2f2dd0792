"""Verify the checkpoint's files."""

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

with job("download", snakemake.config, snakemake.log[0]) as config:
    from model.download import download

    download(config, Path(snakemake.output.record))
