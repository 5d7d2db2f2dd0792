"""One script per rule: reads what Snakemake passes, calls the stage."""
