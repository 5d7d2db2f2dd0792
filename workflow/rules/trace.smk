rule trace:
    input:
        manifest=rules.compile.output.manifest,
        checkpoint=rules.download.output.record,
        configuration="config/kernels/{configuration}.yaml",
        kernels=lambda wildcards: pipeline.files_of_kernels(wildcards.configuration),
        code=stage_sources("model.trace"),
        environment=ENVIRONMENT,
    output:
        summary="results/traces/{model}/{configuration}/summary.json",
    log:
        "results/logs/trace/{model}/{configuration}.log",
    benchmark:
        "results/benchmarks/trace/{model}/{configuration}.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        settings=pipeline.settings("device", "target", "dtype", "buckets"),
    message:
        "trace {wildcards.configuration}"
    script:
        "../scripts/trace.py"
