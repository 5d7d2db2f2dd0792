"""What Qwen3-30B-A3B is predicted to take on one chip, op by op, and how long predicting takes.

    python benchmarks/trace.py [--json] [--target trn2] [--configurations baseline all]

Every configuration is traced from config.json alone, as `snakemake trace_all --config
model=qwen3-30b-a3b` does (tensor parallel 4, LNC 2, bf16, batch 1, context 640), without kept
predictions. The table has one row per op and shape of decode and of prefill at the largest
bucket. Latencies are predicted, for the target; only `trace_s` and `peak_memory_gb` are measured,
on this machine's CPU. docs/trace.md says what the predictions rest on. The figures of the last
run are kept in benchmarks/results/trace.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from model.configuration import parse_config  # noqa: E402
from model.records import OpTrace, TraceSummary  # noqa: E402
from model.trace import trace  # noqa: E402

MODEL = "qwen3-30b-a3b"
RESULTS = ROOT / "benchmarks/results/trace.json"


def traced(name: str, target: str) -> tuple[TraceSummary, float]:
    """The summary of a configuration, and the seconds it took."""
    path = ROOT / "config/config.yaml"
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = parse_config({**value, "model": MODEL, "target": target}, path)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        summary = trace(config, name, Path(folder) / name / "summary.json")
        return summary, time.perf_counter() - started


def shown(summary: TraceSummary) -> list[OpTrace]:
    """The rows of decode, and of prefill at the largest bucket."""
    buckets = {f"1x{summary.prefill_tokens}", "1x1"}
    rows = summary.predictions[summary.target].ops
    return sorted(
        (row for row in rows if row.bucket in buckets), key=lambda r: r.graph, reverse=True
    )


def table(summary: TraceSummary) -> str:
    """The rows for a reader, times in µs."""
    lines = [
        f"{summary.configuration}, predicted for {summary.target}: "
        f"TTFT {summary.predicted_ttft_ms:.2f} ms at {summary.prefill_tokens} tokens, "
        f"TPOT {summary.predicted_tpot_ms:.2f} ms at {summary.context}; "
        f"NKI FLOPs ratio {summary.nki_flops_ratio:.4f}, "
        f"weighted {summary.nki_flops_ratio_weighted:.4f}",
        f"{'graph':18}{'op':23}{'kernel':31}{'calls':>5}{'us each':>10}{'roofline':>10}"
        f"{'ms':>10}  slowed by (basis)",
    ]
    for row in shown(summary):
        lines.append(
            f"{row.graph:18}{row.op:23}{row.kernel:31}{row.calls:>5}"
            f"{row.predicted_us / row.calls:>10.2f}{row.roofline_us / row.calls:>10.2f}"
            f"{row.predicted_us / 1000:>10.3f}  {row.slowed_by} ({row.basis})"
        )
    return "\n".join(lines)


def figures(summary: TraceSummary, seconds: float) -> dict[str, Any]:
    """What is kept of one configuration."""
    return {
        "trace_s": round(seconds, 2),
        "nki_flops_ratio": summary.nki_flops_ratio,
        "nki_flops_ratio_weighted": summary.nki_flops_ratio_weighted,
        **{
            target: {
                "predicted_ttft_ms": round(prediction.predicted_ttft_ms, 3),
                "predicted_tpot_ms": round(prediction.predicted_tpot_ms, 3),
                "graphs": [graph.model_dump() for graph in prediction.graphs],
            }
            for target, prediction in summary.predictions.items()
        },
    }


def main() -> None:
    """Trace, print the tables or one line of JSON, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--target", default="trn2", choices=("trn2", "trn3"))
    parser.add_argument("--configurations", nargs="+", default=["baseline", "all"])
    given = parser.parse_args()
    os.chdir(ROOT)  # config/kernels is found from there
    found: dict[str, Any] = {}
    for name in given.configurations:
        summary, seconds = traced(name, given.target)
        found[name] = figures(summary, seconds)
        if not given.json:
            print(table(summary) + "\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # KiB on Linux
    result = {"model": MODEL, "configurations": found, "peak_memory_gb": round(peak, 2)}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
