"""Time one configuration in turn with the baseline, once its gates are passed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

# As in generate: one thread, whatever --cores says. Set before torch is imported.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

name = snakemake.wildcards.configuration
with job("latency", snakemake.config, snakemake.log[0], name) as config:
    from evaluation.latency import latency

    latency(
        config,
        name,
        manifest=Path(snakemake.input.manifest),
        baseline_manifest=Path(snakemake.input.baseline_manifest[0]),
        checkpoint=Path(snakemake.input.checkpoint),
        output=Path(snakemake.output.latency),
    )
