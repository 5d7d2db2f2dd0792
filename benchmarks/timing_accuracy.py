"""How far the timing model's predictions are from latencies that others measured and published.

    python benchmarks/timing_accuracy.py [--json] [--only TEXT] [--out DIRECTORY]

Every row of published_latencies.csv that the rules of benchmarks/published/rows.py take is
specialised from our own kernel at the published shapes, played on the row's machine, and printed
as predicted / measured. Measured numbers are their publishers', on the device named in the table;
predicted ones are simulator.timing's. Rows of trn1 and inf2 are specialised with trn2's limits
(there is no checker for that generation) and played on the trn1 machine. Raw numbers and a
scatter plot go to benchmarks/results/timing_accuracy.{json,png}.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # not this folder: benchmarks/simulator.py would hide the simulator
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
from scipy import stats  # type: ignore[import-untyped]  # noqa: E402

import simulator.finder  # noqa: E402, F401  (`import nki` works from here on)
from benchmarks.published import cases, rows  # noqa: E402
from simulator import dtypes  # noqa: E402
from simulator.errors import NkiValidationError  # noqa: E402
from simulator.program import Program  # noqa: E402
from simulator.specialise import TensorSpec, specialise  # noqa: E402
from simulator.targets import TARGETS  # noqa: E402
from simulator.timing import predict  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
ISSUE_CYCLES = 64
"""The least interval between two instructions of an engine (nki_facts.md §2.12, MIN_II)."""
CLOCK_GHZ = {
    "trn1": {"vector": 1.12, "scalar": 1.4, "gpsimd": 1.4},
    "trn2": {"vector": 0.96, "scalar": 1.2, "gpsimd": 1.2},
}
"""Documented engine clocks (nki_facts.md §2.12)."""
FAMILY_MEMBERS = 3
"""Rank correlation is computed for families of at least so many members."""


NOISE = 0.015
"""Repeated measurements of one kernel differ by 1.5 % (median; triton-viz, in issue 4)."""


@dataclass(frozen=True)
class Prediction:
    """One published row beside the model's prediction."""

    row: str
    source: str
    family: str
    kernel: str
    shape: str
    dtype: str
    device: str
    metric: str
    grade: str
    measured_us: float
    predicted_us: float
    ratio: float
    """predicted / measured"""
    instructions: int
    hbm_read_bytes: int
    hbm_write_bytes: int


def least_issue_us(program: Program, target: str) -> float:
    """Below this no device can issue the Program's instructions, whatever each costs."""
    counts = program.instructions_by_engine()
    clocks = CLOCK_GHZ[target]
    return max(
        counts.get(engine, 0) * ISSUE_CYCLES / clock / 1000 for engine, clock in clocks.items()
    )


def play(launch: rows.Launch, known: dict[rows.Launch, Any]) -> tuple[float, float, int, int, int]:
    """Predicted µs, least µs to issue, instructions, HBM bytes read and written of one launch."""
    if launch not in known:
        module, _, name = launch.kernel.partition(":")
        kernel = getattr(importlib.import_module(f"benchmarks.published.{module}"), name)
        dtype = getattr(dtypes, launch.dtype)
        tensors = [TensorSpec(shape, dtype) for shape in launch.tensors]
        bound = kernel.signature.bind(*tensors, **dict(launch.parameters))
        bound.apply_defaults()
        program = specialise(kernel.function, dict(bound.arguments), TARGETS["trn2"])
        read, written = program.hbm_bytes()
        latency = predict(program, launch.target).latency_us
        least = least_issue_us(program, launch.target)
        known[launch] = (latency, least, len(program.instructions), read, written)
    found: tuple[float, float, int, int, int] = known[launch]
    return found


DOES_NOT_FIT = "SBUF cannot hold the kernel as published, so it spilled"
REWRITTEN = "the source has more instructions than the time can issue: the compiler rewrote it"


def predictions(
    table: list[rows.Row], only: str = "", log: Any = None
) -> tuple[list[Prediction], dict[str, str]]:
    """Predict every row that is taken; `only` keeps rows whose id or family contains it.

    Returns:
        The predictions, and row -> reason for rows that turn out, once specialised, not to have
        been run as published: too large for SBUF, or shorter than the documented least interval
        between instructions (64 cycles) allows for the instructions that the source has.
    """
    known: dict[rows.Launch, Any] = {}
    found: list[Prediction] = []
    refused: dict[str, str] = {}
    by_id = {row["id"]: row for row in table}
    for name, case in cases.taken(table).items():
        if only not in name and only not in case.family:
            continue
        row, start = by_id[name], time.perf_counter()
        try:
            played = np.sum([play(launch, known) for launch in case.launches], axis=0)
        except NkiValidationError as error:
            if {violation.rule for violation in error.violations} != {"sbuf-capacity"}:
                raise
            refused[name] = DOES_NOT_FIT
            continue
        measured, predicted = float(row["measured_us"]), float(played[0])
        if played[1] > measured:
            refused[name] = REWRITTEN
            continue
        found.append(
            Prediction(
                row=name,
                source=rows.SOURCES[row["group"]],
                family=case.family,
                kernel=row["kernel"],
                shape=row["shape"],
                dtype=row["dtype"],
                device=row["device"],
                metric=row["metric"],
                grade=row["confidence"],
                measured_us=measured,
                predicted_us=round(predicted, 3),
                ratio=round(predicted / measured, 4),
                instructions=int(played[2]),
                hbm_read_bytes=int(played[3]),
                hbm_write_bytes=int(played[4]),
            )
        )
        if log is not None:
            log(found[-1], time.perf_counter() - start)
    return found, refused


@dataclass(frozen=True)
class Ratio:
    """A variant against its baseline, where only the ratio of two measurements can be trusted."""

    row: str
    baseline: str
    kernel: str
    measured: float
    """variant's latency / baseline's latency"""
    predicted: float


def ratios(table: list[rows.Row], only: str = "") -> list[Ratio]:
    """Predict the suspect rows that are written, as ratios. They count in no figure."""
    known: dict[rows.Launch, Any] = {}
    by_id = {row["id"]: row for row in table}
    found = []
    for name, (variant, baseline_row, baseline) in cases.ratios(table).items():
        if only not in name:
            continue
        measured = float(by_id[name]["measured_us"]) / float(by_id[baseline_row]["measured_us"])
        predicted = play(variant, known)[0] / play(baseline, known)[0]
        kernel = by_id[name]["kernel"].split()[-1]
        found.append(Ratio(name, baseline_row, kernel, round(measured, 4), round(predicted, 4)))
    return found


def rank_correlations(found: list[Prediction], noise: float = NOISE) -> dict[str, float]:
    """Spearman's rank correlation of predicted and measured in each family.

    What cannot be ranked is one member, with the means of its rows: rows that stand for one and
    the same launch, and rows whose measurements differ by no more than `noise`.
    """
    correlations = {}
    for family in sorted({p.family for p in found}):
        same: dict[float, list[Prediction]] = {}
        for p in found:
            if p.family == family:
                same.setdefault(p.predicted_us, []).append(p)
        pairs = sorted(
            (float(np.mean([p.measured_us for p in rows])), predicted)
            for predicted, rows in same.items()
        )
        members: list[list[tuple[float, float]]] = []
        for pair in pairs:
            if members and pair[0] <= members[-1][0][0] * (1 + noise):
                members[-1].append(pair)
            else:
                members.append([pair])
        if len(members) >= FAMILY_MEMBERS:
            measured, predicted = np.array([np.mean(m, axis=0) for m in members]).T
            correlations[family] = float(stats.spearmanr(measured, predicted).statistic)
    return correlations


def summary(found: list[Prediction]) -> dict[str, float]:
    """The figures of the last line."""
    errors = 100 * np.abs([p.ratio - 1 for p in found])
    correlations = rank_correlations(found)
    return {
        "rows": len(found),
        "sources": len({p.source for p in found}),
        "median_abs_error_pct": round(float(np.median(errors)), 2),
        "p90_abs_error_pct": round(float(np.percentile(errors, 90)), 2),
        "min_family_rank_corr": round(min(correlations.values(), default=float("nan")), 3),
        "instruction_median_error_pct": round(instruction_error(), 2),
    }


def instruction_error() -> float:
    """Median |error| over the instruction table, from the model's own calibration, in %."""
    from simulator.timing import calibration

    return float(calibration.instruction_median_error_pct())


def group_table(found: list[Prediction], key: str) -> list[tuple[str, int, float, float, float]]:
    """(name, rows, median |error| %, 90th percentile %, median ratio) by source or family."""
    table = []
    for name in sorted({getattr(p, key) for p in found}):
        ratios = np.array([p.ratio for p in found if getattr(p, key) == name])
        errors = 100 * np.abs(ratios - 1)
        table.append(
            (
                name,
                len(ratios),
                float(np.median(errors)),
                float(np.percentile(errors, 90)),
                float(np.median(ratios)),
            )
        )
    return table


def plot(found: list[Prediction], path: Path) -> None:
    """Predicted against measured, one colour per source."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 6))
    ends = np.array([min(p.measured_us for p in found) / 2, max(p.measured_us for p in found) * 2])
    axes.fill_between(ends, 0.85 * ends, 1.15 * ends, color="0.9", label="±15 %")
    axes.plot(ends, ends, color="0.5", linewidth=0.8)
    for source in sorted({p.source for p in found}):
        chosen = [p for p in found if p.source == source]
        axes.scatter(
            [p.measured_us for p in chosen],
            [p.predicted_us for p in chosen],
            s=14,
            alpha=0.7,
            label=f"{source} ({len(chosen)})",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="measured latency, µs (published, trn1 and trn2)",
        ylabel="predicted latency, µs (simulator.timing)",
    )
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def show_ratios(found: list[Ratio]) -> None:
    """The suspect rows, apart."""
    print("\nsuspect rows (kda, trn2), as variant / baseline; in no figure below or above")
    for r in found:
        error = 100 * (r.predicted / r.measured - 1)
        print(
            f"  {r.row:8} {r.kernel:24} measured {r.measured:6.3f}  predicted {r.predicted:6.3f}"
            f"  {error:+6.1f} %"
        )


def show(found: list[Prediction], refused: dict[str, str], table: list[rows.Row]) -> None:
    """The tables a person reads."""
    print("\nby source                      rows  median|err|  p90|err|  median ratio")
    for name, count, median, p90, ratio in group_table(found, "source"):
        print(f"  {name:28} {count:4} {median:10.1f} % {p90:7.1f} % {ratio:10.2f}")
    correlations = rank_correlations(found)
    print("\nby family                                   rows  median|err|  ratio  rank corr")
    for name, count, median, _, ratio in group_table(found, "family"):
        rank = f"{correlations[name]:9.3f}" if name in correlations else "        –"
        print(f"  {name:41} {count:4} {median:10.1f} % {ratio:6.2f} {rank}")
    print("\nrows not taken, by the first rule they break")
    reasons = Counter(rows.why_not(row) or "" for row in table)
    missing = cases.not_written(table)
    for reason, count in reasons.most_common():
        if reason:
            print(f"  {count:4}  {reason}")
    for reason in sorted(set(refused.values())):
        names = [name for name, why in refused.items() if why == reason]
        print(f"  {len(names):4}  {reason}: {', '.join(names)}")
    print(f"  {len(missing):4}  taken by the rules, kernel not written here: {', '.join(missing)}")


def log_row(prediction: Prediction, seconds: float) -> None:
    """One line per row as it comes."""
    p = prediction
    target = "trn1" if p.device.startswith(("trn1", "inf2")) else "trn2"
    print(
        f"{p.row:18} {target} {p.kernel[:38]:38} {p.shape[:24]:24} {p.dtype[:5]:5} "
        f"predicted {p.predicted_us:10.1f} measured {p.measured_us:10.1f} µs "
        f"ratio {p.ratio:5.2f}  [{p.instructions} instr, {seconds:.1f} s]",
        flush=True,
    )


def main() -> None:
    """Predict, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--only", default="", help="rows whose id or family contains this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where raw numbers go")
    options = parser.parse_args()
    table = rows.read_rows()
    found, refused = predictions(table, options.only, log_row)
    show(found, refused, table)
    apart = ratios(table, options.only)
    show_ratios(apart)
    figures = summary(found)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "timing_accuracy.json").write_text(
        json.dumps(
            {
                "summary": figures,
                "family_rank_correlation": rank_correlations(found),
                "family_rank_correlation_without_noise": rank_correlations(found, 0.0),
                "not_run_as_published": refused,
                "not_written": cases.not_written(table),
                "predictions": [asdict(p) for p in found],
                "suspect_ratios": [asdict(r) for r in apart],
            },
            indent=1,
        )
        + "\n"
    )
    plot(found, options.out / "timing_accuracy.png")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
