rule track_init:
    input:
        code=stage_sources("evaluation.tracking"),
    output:
        ready="mlflow/ready.json",
    log:
        "results/logs/track_init.log",
    benchmark:
        "results/benchmarks/track_init.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        settings=pipeline.settings("tracking"),
        store=store_digest(),
    message:
        "track_init: MLflow's store and experiment"
    script:
        "../scripts/track_init.py"


rule track:
    input:
        rules.compile.output,
        rules.trace.output,
        rules.generate.output,
        rules.latency.output,
        rules.accuracy.output,
        # The base of the contest's score.
        baseline_trace=expand(
            rules.trace.output.summary, model=MODEL, configuration=BASELINE
        ),
        checkpoint=rules.download.output.record,
        ready=rules.track_init.output.ready,
        configuration="config/kernels/{configuration}.yaml",
        code=stage_sources("evaluation.tracking"),
    output:
        run="results/tracked/{model}/{configuration}.json",
    log:
        "results/logs/track/{model}/{configuration}.log",
    benchmark:
        "results/benchmarks/track/{model}/{configuration}.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        settings=pipeline.settings("tracking"),
        store=store_digest(),
    message:
        "track {wildcards.configuration}"
    script:
        "../scripts/track.py"
