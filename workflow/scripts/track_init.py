"""Make the MLflow store and experiment, before several jobs write to it."""

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

with job("track_init", snakemake.config, snakemake.log[0]) as config:
    from evaluation.tracking import initialise

    initialise(config, Path(snakemake.output.ready))
