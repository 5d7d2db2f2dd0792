"""Specialise the kernels of one configuration at the model's shapes."""

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

name = snakemake.wildcards.configuration
with job("compile", snakemake.config, snakemake.log[0], name) as config:
    from model.compile import compile_configuration

    compile_configuration(
        config,
        name,
        checkpoint=Path(snakemake.input.checkpoint),
        output=Path(snakemake.output.manifest),
    )
