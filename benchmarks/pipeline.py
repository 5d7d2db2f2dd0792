"""What the default evaluation costs: wall clock and CPU time of each stage, on one core.

    python benchmarks/pipeline.py [--json]

Clones this checkout's HEAD into a temporary folder, with this environment, and runs
`snakemake --cores 1 evaluate_all` there from nothing. Times are measured on this machine: the wall
clock is only worth something if the machine does nothing else, CPU time much less so. A job's
CPU time is what its log says at the end; the run's also has Snakemake itself.
The last line of `--json` is {"wall_s", "cpu_s", "peak_mb"}; raw numbers go to
benchmarks/results/pipeline.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
CPU = re.compile(r"job: (?P<cpu>[0-9.]+) s of CPU time")


def evaluate(folder: Path) -> dict[str, Any]:
    """Clone, run, and read what the run says of itself."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "evaluate_all"]
    environment = os.environ | {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=clone, env=environment, check=True, stdout=sys.stderr)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    jobs = [job(clone, file) for file in sorted((clone / "results/benchmarks").rglob("*.tsv"))]
    return {
        "wall_s": wall,
        "cpu_s": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        "peak_mb": max(each["peak_mb"] for each in jobs),
        "load_average": os.getloadavg(),
        "jobs": jobs,
    }


def job(clone: Path, file: Path) -> dict[str, Any]:
    """One job: Snakemake's benchmark file, and the CPU time at the end of its log."""
    name = file.relative_to(clone / "results/benchmarks").with_suffix("")
    row = next(csv.DictReader(file.open(encoding="utf-8"), delimiter="\t"))
    log = (clone / "results/logs" / name).with_suffix(".log").read_text(encoding="utf-8")
    said = CPU.findall(log)
    return {
        "stage": name.parts[0],
        "configuration": name.parts[-1] if len(name.parts) > 2 else None,
        "wall_s": float(row["s"]),
        "cpu_s": float(said[-1]) if said else None,
        "peak_mb": float(row["max_rss"]),
    }


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a last line for programs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-pipeline-") as folder:
        found = evaluate(Path(folder))
    table = Table("job", "wall, s", "CPU, s", "peak, MB", title="measured on this machine")
    for each in found["jobs"]:
        name = " ".join(filter(None, (each["stage"], each["configuration"])))
        cpu = "" if each["cpu_s"] is None else f"{each['cpu_s']:.1f}"
        table.add_row(name, f"{each['wall_s']:.1f}", cpu, f"{each['peak_mb']:.0f}")
    table.add_row("run", f"{found['wall_s']:.1f}", f"{found['cpu_s']:.1f}", "")
    Console().print(table)
    file = ROOT / "benchmarks/results/pipeline.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps({name: round(found[name], 1) for name in ("wall_s", "cpu_s", "peak_mb")}))


if __name__ == "__main__":
    main()
