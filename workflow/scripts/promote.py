"""Make a configuration the champion."""

from typing import TYPE_CHECKING

from workflow.stage import RESULTS, conversation

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

with conversation("promote", snakemake.config, snakemake.log[0]) as (config, screen):
    from evaluation.champion import promote
    from model.configuration import ConfigurationError

    if config.champion is None:
        raise ConfigurationError("say which configuration to promote: `--config champion=NAME`")
    champion = promote(config, config.champion, RESULTS)
    screen.print(
        f"✓ {champion.configuration} is the champion of {config.model} on {config.device}: "
        f"version {champion.version}, MLflow run {champion.mlflow_run_id}"
    )
