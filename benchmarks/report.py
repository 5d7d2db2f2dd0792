"""How long a report of 12 configurations and a run of 10,000 steps take, and its size.

    python benchmarks/report.py --json

Measured wall clock of this machine's CPU, on made-up results (tests/evaluation/samples.py) in a
temporary folder. The last line is JSON with `--json`: `report_12_s`, `report_12_bytes`,
`log_10000_steps_s` (median of `--repeats`), their spread, and the targets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "evaluation")]

import samples  # noqa: E402

from evaluation.report import report  # noqa: E402
from evaluation.results import result_files  # noqa: E402
from evaluation.tracking import initialise, track  # noqa: E402

TARGETS = {"report_12_s": 20.0, "report_12_bytes": 5_000_000, "log_10000_steps_s": 5.0}
STEPS = 10_000
RESULTS = ROOT / "benchmarks" / "results" / "report.json"


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repeat."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return seconds


def measure(repeats: int) -> dict[str, object]:
    """Both figures, in a temporary project."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        results = samples.project(Path(folder))
        names = ["baseline", *(f"configuration-{number}" for number in range(11))]
        for name in names:
            samples.write(results, name)
            samples.error_map(name, ["rmsnorm", "qk_norm"]).write(
                result_files(results, "tiny", name)["error_map"]
            )
            Path(f"config/kernels/{name}.yaml").write_text("description: made up\nops: {}\n")
        config = samples.config(configurations=names)
        page = results / "report.html"
        reports = timed(lambda: report(config, results, results / "summary.json", page), repeats)
        size = page.stat().st_size

        initialise(config, Path("mlflow/ready.json"))
        file = result_files(results, "tiny", names[1])["generate"]
        generation = samples.generation(names[1], ["rmsnorm"])
        logs = []
        for number in range(repeats):
            steps = [5.0 + 1e-3 * ((step * 7919 + number) % 1000) for step in range(STEPS)]
            run = generation.prompts[0].runs[0].model_copy(update={"itl_ms": steps})
            prompt = generation.prompts[0].model_copy(update={"runs": [run]})
            generation.model_copy(update={"prompts": [prompt]}).write(file)
            logs += timed(lambda: track(config, names[1], results, Path("tracked.json")), 1)
        os.chdir(ROOT)
    return {
        "report_12_s": round(median(reports), 2),
        "report_12_s_all": [round(x, 2) for x in reports],
        "report_12_bytes": size,
        "log_10000_steps_s": round(median(logs), 2),
        "log_10000_steps_s_all": [round(x, 2) for x in logs],
        "targets": TARGETS,
    }


def main() -> int:
    """The command line; 0 if every target is reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    found = measure(chosen.repeats)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, target in TARGETS.items():
        print(f"{name}: {found[name]} (measured; at most {target})")
    if chosen.json:
        print(json.dumps(found))
    return int(any(float(str(found[name])) > target for name, target in TARGETS.items()))


if __name__ == "__main__":
    raise SystemExit(main())
