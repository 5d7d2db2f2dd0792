"""Do the latency statistics say what is true? Checked on machines whose truth is known.

    python benchmarks/statistics.py [--trials N] [--json]

Every trial is a whole session of the production functions (evaluation.interleave, .statistics
and .latency.compare) with the default settings, on a synthetic machine (synthetic_latency.py).
The last line of `--json` is {"ci95_coverage", "aa_false_faster", "power_3pct"}:

- ci95_coverage: share of the 95 % intervals of ratios, on which verdicts rest, that hold the truth:
  over the machines, and end-to-end latency, TTFT and TPOT. The table has each apart, and beside
  them the intervals of one side's mean and median, which one session of a drifting machine cannot
  know as well (docs/evaluation.md).
- aa_false_faster: share of sessions of equal sides whose verdict is `faster`.
- power_3pct: share of sessions with a true difference of 3 %, either way, that is found.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "statistics":
    # A script of this folder, or what it imports, wants the standard library's module of this
    # name, and Python looks beside the script first.
    import importlib.machinery
    import importlib.util
    import sysconfig

    spec = importlib.machinery.PathFinder.find_spec("statistics", [sysconfig.get_path("stdlib")])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["statistics"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["statistics"])

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the trials and print the table."""
    import argparse
    import json

    from rich.console import Console
    from rich.table import Table

    from benchmarks.statistics_trials import Figures, study
    from evaluation.estimates import COMPARED

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=70, help="sessions per machine and kind")
    parser.add_argument("--json", action="store_true", help="a last line for programs")
    arguments = parser.parse_args()
    figures: list[Figures] = study(arguments.trials, Console(stderr=True))
    table = Table("machine (synthetic)", *Figures.COLUMNS)
    for each in figures:
        table.add_row(each.machine, *each.cells())
    Console(width=150).print(table)
    counted = [each for each in figures if each.counted]
    hits = [hit for each in counted for kind in COMPARED for hit in each.coverage[kind]]
    result = {
        "ci95_coverage": round(sum(hits) / len(hits), 4),
        "aa_false_faster": max(each.false_faster for each in counted),
        "power_3pct": min(each.power for each in counted),
    }
    (ROOT / "benchmarks/results/statistics.json").write_text(
        json.dumps({**result, "machines": [each.as_dict() for each in figures]}, indent=2) + "\n"
    )
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
