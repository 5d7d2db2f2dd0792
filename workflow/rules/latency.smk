BASELINE = pipeline.config.latency.baseline


rule latency:
    input:
        manifest=rules.compile.output.manifest,
        baseline_manifest=expand(
            rules.compile.output.manifest, model=MODEL, configuration=BASELINE
        ),
        checkpoint=rules.download.output.record,
        configuration="config/kernels/{configuration}.yaml",
        kernels=lambda wildcards: pipeline.files_of_kernels(wildcards.configuration),
        baseline=f"config/kernels/{BASELINE}.yaml",
        baseline_kernels=pipeline.files_of_kernels(BASELINE),
        prompts=pipeline.config.generate.prompts,
        code=stage_sources("evaluation.latency"),
        environment=ENVIRONMENT,
    output:
        latency="results/latency/{model}/{configuration}/latency.json",
    log:
        "results/logs/latency/{model}/{configuration}.log",
    benchmark:
        "results/benchmarks/latency/{model}/{configuration}.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    # Every core, so that no other job disturbs the clock.
    threads: lambda wildcards: workflow.cores
    resources:
        mem_mb=3000,
    params:
        settings=pipeline.settings("device", "target", "dtype", "buckets", "latency"),
    message:
        "latency {wildcards.configuration}"
    script:
        "../scripts/latency.py"
