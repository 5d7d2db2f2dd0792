"""Write the summary and the HTML report."""

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import RESULTS, job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

with job("report", snakemake.config, snakemake.log[0]) as config:
    from evaluation.report import report

    report(
        config,
        results=RESULTS,
        summary=Path(snakemake.output.summary),
        html=Path(snakemake.output.html),
    )
