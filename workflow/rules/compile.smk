rule compile:
    input:
        checkpoint=rules.download.output.record,
        configuration="config/kernels/{configuration}.yaml",
        kernels=lambda wildcards: pipeline.files_of_kernels(wildcards.configuration),
        code=stage_sources("model.compile"),
        environment=ENVIRONMENT,
    output:
        manifest="results/compiled/{model}/{configuration}/manifest.json",
    log:
        "results/logs/compile/{model}/{configuration}.log",
    benchmark:
        "results/benchmarks/compile/{model}/{configuration}.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        settings=pipeline.settings("device", "target", "dtype", "buckets"),
    message:
        "compile {wildcards.configuration}"
    script:
        "../scripts/compile.py"
