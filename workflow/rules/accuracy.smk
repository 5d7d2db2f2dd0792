rule reference:
    input:
        checkpoint=rules.download.output.record,
        texts=pipeline.config.accuracy.texts,
        code=stage_sources("evaluation.reference"),
        environment=ENVIRONMENT,
    output:
        logits="results/reference/{model}/logits.safetensors",
    log:
        "results/logs/reference/{model}.log",
    benchmark:
        "results/benchmarks/reference/{model}.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        settings=pipeline.settings(
            "dtype",
            "buckets",
            "accuracy.sequences",
            "accuracy.batch_size",
            "accuracy.logit_matching",
        ),
    message:
        "reference: the HF model's logits"
    script:
        "../scripts/reference.py"


rule accuracy:
    input:
        manifest=rules.compile.output.manifest,
        checkpoint=rules.download.output.record,
        reference=rules.reference.output.logits,
        configuration="config/kernels/{configuration}.yaml",
        kernels=lambda wildcards: pipeline.files_of_kernels(wildcards.configuration),
        texts=pipeline.config.accuracy.texts,
        tasks=pipeline.task_files(),
        code=stage_sources("evaluation.accuracy"),
        environment=ENVIRONMENT,
    output:
        accuracy="results/accuracy/{model}/{configuration}/accuracy.json",
        error_map="results/accuracy/{model}/{configuration}/error_map.json",
    log:
        "results/logs/accuracy/{model}/{configuration}.log",
    benchmark:
        "results/benchmarks/accuracy/{model}/{configuration}.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=3000,
    params:
        settings=pipeline.settings("device", "target", "dtype", "buckets", "accuracy"),
    message:
        "accuracy {wildcards.configuration}"
    script:
        "../scripts/accuracy.py"
