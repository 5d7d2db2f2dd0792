"""Write one configuration's results to MLflow."""

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import RESULTS, job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

name = snakemake.wildcards.configuration
with job("track", snakemake.config, snakemake.log[0], name) as config:
    from evaluation.tracking import track

    track(config, name, results=RESULTS, output=Path(snakemake.output.run))
