rule report:
    input:
        expand(
            [
                *rules.compile.output,
                *rules.trace.output,
                *rules.generate.output,
                *rules.latency.output,
                *rules.accuracy.output,
                *rules.track.output,
            ],
            model=MODEL,
            configuration=CONFIGURATIONS,
        ),
        checkpoint=expand(rules.download.output.record, model=MODEL),
        champion=pipeline.champion_stamp,
        code=stage_sources("evaluation.report"),
        templates=[
            name
            for name in files_under(Path("evaluation"))
            if not name.endswith(".py")
        ],
    output:
        summary="results/summary.json",
        html=report(
            "results/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
        latency_measured=report(
            "results/plots/latency_measured.svg",
            caption="../report/latency_measured.rst",
            category="Latency",
            labels={"figure": "latency", "numbers": "measured"},
        ),
        runs_measured=report(
            "results/plots/runs_measured.svg",
            caption="../report/runs_measured.rst",
            category="Latency",
            labels={"figure": "runs", "numbers": "measured"},
        ),
        quality=report(
            "results/plots/quality.svg",
            caption="../report/quality.rst",
            category="Quality",
            labels={"figure": "quality", "numbers": "computed and compared"},
        ),
        macs_in_nki=report(
            "results/plots/macs_in_nki.svg",
            caption="../report/macs_in_nki.rst",
            category="Model",
            labels={"figure": "macs in nki", "numbers": "counted"},
        ),
        ops_predicted=report(
            "results/plots/ops_predicted.svg",
            caption="../report/ops_predicted.rst",
            category="Model",
            labels={"figure": "ops", "numbers": "predicted"},
        ),
        cut_points=report(
            "results/plots/cut_points.svg",
            caption="../report/cut_points.rst",
            category="Quality",
            labels={"figure": "cut points", "numbers": "computed and compared"},
        ),
        timeline_predicted=report(
            "results/plots/timeline_predicted.svg",
            caption="../report/timeline_predicted.rst",
            category="Model",
            labels={"figure": "timeline", "numbers": "predicted"},
        ),
        # onerror writes the others when this job could not; only this one says it did.
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
