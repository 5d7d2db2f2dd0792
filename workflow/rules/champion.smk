# Neither rule has an output: what they look at is in MLflow's store, which Snakemake does not see.


rule promote:
    input:
        expand(
            [
                *rules.compile.output,
                *rules.trace.output,
                *rules.generate.output,
                *rules.latency.output,
                *rules.accuracy.output,
                *rules.track.output,
            ],
            model=MODEL,
            configuration=pipeline.promoted,
        ),
    log:
        "results/logs/promote.log",
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "promote: {pipeline.config.champion} becomes the champion"
    script:
        "../scripts/promote.py"


rule check_regression:
    input:
        expand(
            [
                *rules.compile.output,
                *rules.trace.output,
                *rules.generate.output,
                *rules.latency.output,
                *rules.accuracy.output,
            ],
            model=MODEL,
            configuration=pipeline.compared,
        ),
        checkpoint=expand(rules.download.output.record, model=MODEL),
    log:
        "results/logs/check_regression.log",
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "check_regression: against the champion"
    script:
        "../scripts/check_regression.py"
