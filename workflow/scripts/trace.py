"""Count what one configuration's graphs do, and predict how long they take."""

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import job

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

name = snakemake.wildcards.configuration
with job("trace", snakemake.config, snakemake.log[0], name) as config:
    from model.trace import trace

    trace(config, name, output=Path(snakemake.output.summary))
