rule trace:
    # From config.json and the kernels' sources: neither weights nor compiled artefacts are needed,
    # so that a model can be traced on a machine that could not hold it.
    input:
        architecture=pipeline.architecture_files(),
        configuration="config/kernels/{configuration}.yaml",
        kernels=lambda wildcards: pipeline.files_of_kernels(wildcards.configuration),
        code=stage_sources("model.trace"),
        environment=ENVIRONMENT,
    output:
        summary="results/traces/{model}/{configuration}/summary.json",
        timeline="results/traces/{model}/{configuration}/decode_step.json.gz",
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
        settings=pipeline.settings("device", "target", "dtype"),
        layout=pipeline.config.layout().model_dump(mode="json"),
    message:
        "trace {wildcards.configuration}"
    script:
        "../scripts/trace.py"
