# The contest's one-file submission, for each configuration: snakemake contest_submission
rule contest:
    input:
        configuration="config/kernels/{configuration}.yaml",
        kernels=lambda wildcards: pipeline.files_of_kernels(wildcards.configuration),
        adapter=files_under(Path("model/neuron")),
        code=stage_sources("model.neuron.bundle"),
    output:
        submission="results/contest/{configuration}/qwen_with_nki.py",
    log:
        "results/logs/contest/{configuration}.log",
    benchmark:
        "results/benchmarks/contest/{configuration}.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "contest submission {wildcards.configuration}"
    script:
        "../scripts/contest.py"
