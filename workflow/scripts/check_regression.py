"""Compare a configuration with the champion; exit non-zero if it is worse."""

from typing import TYPE_CHECKING

from workflow.stage import RESULTS, conversation

if TYPE_CHECKING:  # Snakemake defines it
    from snakemake.script import snakemake

with conversation("check_regression", snakemake.config, snakemake.log[0]) as (config, screen):
    from evaluation.regression import check
    from evaluation.terminal import print_regression

    record = check(config, RESULTS)
    print_regression(record, screen)
    if record.verdict == "fail":
        raise SystemExit(1)
