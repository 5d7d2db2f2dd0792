"""Compare one configuration's logits with the reference, and run the lm-eval tasks."""

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import RESULTS, job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

name = snakemake.wildcards.configuration
with job("accuracy", snakemake.config, snakemake.log[0], name) as config:
    from evaluation.accuracy import accuracy

    accuracy(
        config,
        name,
        manifest=Path(snakemake.input.manifest),
        checkpoint=Path(snakemake.input.checkpoint),
        reference=Path(snakemake.input.reference),
        output=Path(snakemake.output.accuracy),
        error_map=Path(snakemake.output.error_map),
        cache=RESULTS / "cache" / "lm_eval",
    )
