rule generate:
    input:
        manifest=rules.compile.output.manifest,
        checkpoint=rules.download.output.record,
        configuration="config/kernels/{configuration}.yaml",
        kernels=lambda wildcards: pipeline.files_of_kernels(wildcards.configuration),
        prompts=pipeline.config.generate.prompts,
        code=stage_sources("model.generate"),
        environment=ENVIRONMENT,
    output:
        generation="results/generated/{model}/{configuration}/generation.json",
    log:
        "results/logs/generate/{model}/{configuration}.log",
    benchmark:
        "results/benchmarks/generate/{model}/{configuration}.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    # Every core, so that no other job disturbs the clock.
    threads: lambda wildcards: workflow.cores
    resources:
        mem_mb=2000,
    params:
        settings=pipeline.settings("device", "target", "dtype", "buckets", "generate"),
    message:
        "generate {wildcards.configuration}"
    script:
        "../scripts/generate.py"
