"""Compute the HF model's logits, once for all configurations."""

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

with job("reference", snakemake.config, snakemake.log[0]) as config:
    from evaluation.reference import reference

    reference(
        config,
        checkpoint=Path(snakemake.input.checkpoint),
        output=Path(snakemake.output.logits),
    )
