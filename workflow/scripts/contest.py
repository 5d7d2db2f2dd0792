"""Write one configuration's contest submission."""

from pathlib import Path
from typing import TYPE_CHECKING

from workflow.stage import conversation

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

name = snakemake.wildcards.configuration
with conversation("contest", snakemake.config, snakemake.log[0]) as (_, terminal):
    from model.neuron.bundle import write_submission

    write_submission(name, Path(snakemake.output.submission))
    terminal.print(f"contest submission: {snakemake.output.submission}")
