"""Do the latency statistics say what is true? Checked on machines whose truth is known.

    python benchmarks/statistics.py [--trials N] [--seed N] [--json]

Every trial is a whole session of the production functions (evaluation.interleave, .statistics,
.latency.compare and .latency_summary) with the default settings, on a synthetic machine
(synthetic_latency.py). The last line of `--json` is {"ci95_coverage", "aa_false_faster",
"power_3pct"}:

- ci95_coverage: share of the 95 % intervals that hold the truth, over the counted machines and
  every kind of interval that the stage gives: of ratios (end-to-end latency, TTFT, TPOT), and of
  one side's means and percentiles (those and ITL). Each kind on each machine weighs the same,
  whatever its number; the table has each apart.
- aa_false_faster: share of sessions of equal sides with the verdict `faster`; worst machine.
- power_3pct: share of true differences of 3 %, either way, that are found; worst machine.

In the table but not counted: a machine that drifts as slowly as a session is long. Its long-run
mean cannot be known from one session (docs/evaluation.md); ratios can.
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

    from benchmarks.statistics_trials import KINDS, Figures, study

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="sessions per machine and kind")
    parser.add_argument("--seed", type=int, default=20_261_126, help="of the first session")
    parser.add_argument("--json", action="store_true", help="a last line for programs")
    arguments = parser.parse_args()
    figures: list[Figures] = study(arguments.trials, arguments.seed, Console(stderr=True))
    table = Table("machine (synthetic)", *Figures.COLUMNS)
    for each in figures:
        table.add_row(each.machine, *each.cells())
    Console(width=190).print(table)
    counted = [each for each in figures if each.counted]
    shares = [
        sum(hits) / len(hits) for each in counted for kind in KINDS if (hits := each.coverage[kind])
    ]
    result = {
        "ci95_coverage": round(sum(shares) / len(shares), 4),
        "aa_false_faster": max(each.false_faster for each in counted),
        "power_3pct": min(each.power for each in counted),
    }
    (ROOT / "benchmarks/results/statistics.json").write_text(
        json.dumps(
            {**result, "seed": arguments.seed, "machines": [each.as_dict() for each in figures]},
            indent=2,
        )
        + "\n"
    )
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
