rule download:
    input:
        files=pipeline.checkpoint_files(),
        code=stage_sources("model.download"),
    output:
        record="results/models/{model}/checkpoint.json",
    log:
        "results/logs/download/{model}.log",
    benchmark:
        "results/benchmarks/download/{model}.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        source=pipeline.config.models[MODEL].model_dump(),
    message:
        "download: verify {wildcards.model}"
    script:
        "../scripts/download.py"
