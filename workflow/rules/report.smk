rule report:
    input:
        expand(
            [
                *rules.compile.output,
                *rules.trace.output,
                *rules.generate.output,
                *rules.accuracy.output,
                *rules.track.output,
            ],
            model=MODEL,
            configuration=CONFIGURATIONS,
        ),
        checkpoint=expand(rules.download.output.record, model=MODEL),
        code=stage_sources("evaluation.report"),
        templates=[
            name
            for name in files_under(Path("evaluation"))
            if not name.endswith(".py")
        ],
    output:
        summary="results/summary.json",
        html="results/report.html",
        # onerror writes the other two when this job could not; only this one says it did.
        complete=touch("results/report.complete"),
    log:
        "results/logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    conda:
        "../../envs/cpu/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        settings=pipeline.settings("model", "configurations"),
    message:
        "report: results/report.html"
    script:
        "../scripts/report.py"
