"""Generate from the prompts with one configuration, and time it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

# The rule holds every core so that nothing else runs beside the clock. The work itself keeps
# to one thread, so that readings compare whatever --cores says. Set before torch is imported.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

name = snakemake.wildcards.configuration
with job("generate", snakemake.config, snakemake.log[0], name) as config:
    from model.generate import generate

    generate(
        config,
        name,
        manifest=Path(snakemake.input.manifest),
        checkpoint=Path(snakemake.input.checkpoint),
        output=Path(snakemake.output.generation),
    )
