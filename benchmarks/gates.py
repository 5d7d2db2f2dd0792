"""Do the bf16 gates tell right kernels from kernels 5 % off? On texts and models they never saw.

    python benchmarks/gates.py [--texts N] [--broken-texts N] [--random N] [--json]

The limits (config/config.yaml, accuracy.tolerances) were set on the first 16 texts of
config/tasks/data/heldout.jsonl, which are `model.training.corpus.texts(1, ...)`. Here are other
texts of the same generator, seeds 2 and up, 16 of each: none is among those, and none was trained
on (corpus.py holds its sentences out by their hash); and random checkpoints on random tokens, seeds
1 and up: `OWN_KL` and `OWN_FLIPS` of evaluation/verdict.py were set on seed 0.

- right: every configuration of config/kernels as it is. A gate that closes is a false alarm.
- broken: each op in turn, 5 % off, in the configuration that fills the most ops beside it, where
  the others' rounding hides it best; `expert_mlp`, which no configuration fills, alone. In all the
  ways of gate_trials.FAULTS on the first texts, in the first way elsewhere. A miss is a trial in
  which no bf16 gate closes: fp32, logit matching and a kernel's own check, which would notice too,
  are not asked.

Each trial is judged on its 16 sequences, and on each four of them, as config/ci.yaml has it. All is
measured on the CPU simulator, with seeds: another run gives the same. The ratios of all trials are
in benchmarks/results/gates.json. The last line of `--json` has the rates.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
os.chdir(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.gate_trials import (  # noqa: E402
    CONFIG,
    FAULTS,
    Fault,
    Judged,
    Subject,
    broken,
    judge,
    random_subject,
    run,
    tiny_subject,
)
from evaluation.verdict import GRAPHS  # noqa: E402
from kernels import OPS  # noqa: E402
from model.configuration import (  # noqa: E402
    KernelConfiguration,
    OpKernel,
    read_config,
    read_kernel_configuration,
)
from model.op_calls import graphs_of_kernels  # noqa: E402
from model.ops import kernel_name  # noqa: E402

RESULTS = ROOT / "benchmarks/results/gates.json"
COLUMNS = ("subject", "configuration", "op", "fault", "graph", "tokens", "error_median_ratio",
           "further_share", "kl_p90_ratio", "kl_per_token", "top1_agreement",
           "gates_closed", "fours_closed", "fours")  # fmt: skip
"""A row for each trial and graph: ratios of its 16 sequences; how many gates of this graph closed;
of how many fours of them some gate of either graph closed."""
ALONE = "expert_mlp alone"
RATIOS = ("error_median_ratio", "further_share", "kl_p90_ratio")
FOUR = 4
Row = dict[str, Any]


def configurations() -> dict[str, KernelConfiguration]:
    """Those of config/kernels, and what they leave out, alone."""
    found = {
        path.stem: read_kernel_configuration(path)
        for path in sorted((ROOT / "config/kernels").glob("*.yaml"))
    }
    alone = {"expert_mlp": OpKernel(kernel="nki_fused_expert_mlp_kernel")}
    found[ALONE] = KernelConfiguration(description="one op", ops=alone)
    return found


def hosts(kernels: dict[str, KernelConfiguration]) -> dict[str, list[str]]:
    """Configuration -> the ops that are broken in it: each in the one that fills the most."""
    found: dict[str, list[str]] = {name: [] for name in kernels}
    for op in OPS:
        filling = [name for name, each in kernels.items() if op in each.ops]
        found[max(filling, key=lambda name: len(kernels[name].ops))].append(op)
    return found


def trials(
    subject: Subject,
    name: str,
    kernels: KernelConfiguration,
    wrong: list[str],
    faults: Sequence[Fault],
) -> Iterator[list[Row]]:
    """The configuration as it is, then with each op of `wrong` off in each way: rows of its two
    graphs.
    """
    model = subject.load(kernels)
    yield _rows(subject, name, None, None, _judge_all(subject, model))
    for op in wrong:
        for fault in faults:
            with broken(model.model.ops.filled[op], fault):
                yield _rows(subject, name, op, fault, _judge_all(subject, model))


def _judge_all(subject: Subject, model: Any) -> list[Judged]:
    """The verdicts on all sequences, then on each four."""
    found = run(model, subject.reference)
    limits = read_config(CONFIG).accuracy.tolerances
    starts = range(0, len(subject.reference.tokens), FOUR)
    parts = [slice(None), *(slice(start, start + FOUR) for start in starts)]
    return [judge(found, subject.reference, limits, part) for part in parts]


def _rows(
    subject: Subject, name: str, op: str | None, fault: Fault | None, judged: list[Judged]
) -> list[Row]:
    whole, *fours = judged
    rows = []
    for graph in GRAPHS:
        (ratios,) = [x for x in whole.rounding if x.graph == graph]
        (logits,) = [
            x
            for x in whole.comparisons
            if (x.graph, x.comparison) == (graph, "bfloat16 vs HF bfloat16")
        ]
        values = (
            subject.name, name, op, fault.name if fault else None, graph, ratios.tokens,
            ratios.error_median_ratio, ratios.further_share, ratios.kl_p90_ratio,
            logits.kl_per_token_mean, logits.top1_agreement,
            sum(gate.name.startswith(graph) for gate in whole.failed),
            sum(bool(each.failed) for each in fours), len(fours),
        )  # fmt: skip
        rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v
                     for k, v in zip(COLUMNS, values, strict=True)})  # fmt: skip
    return rows


def rates(found: list[list[Row]]) -> dict[str, Any]:
    """How often a gate closed, on 16 sequences and on four."""
    closed = sum(any(row["gates_closed"] for row in rows) for rows in found)
    return {
        "trials": len(found),
        "closed": closed,
        "trials_of_4_sequences": sum(rows[0]["fours"] for rows in found),
        "closed_of_4_sequences": sum(rows[0]["fours_closed"] for rows in found),
    }


def ranges(found: list[list[Row]], graphs: set[Any]) -> dict[str, Any]:
    """Least and largest of the three ratios on 16 sequences, per graph that calls the op."""
    return {
        graph: {
            ratio: [min(values), max(values)]
            for ratio in RATIOS
            if (values := [row[ratio] for rows in found for row in rows if row["graph"] == graph])
        }
        for graph in GRAPHS
        if graph in graphs
    }


def summary(found: list[list[Row]], kernels: dict[str, KernelConfiguration]) -> dict[str, Any]:
    """Rates and ranges, of right kernels by configuration and of wrong ones by op."""
    right = [rows for rows in found if rows[0]["op"] is None]
    wrong = [rows for rows in found if rows[0]["op"] is not None]
    by_configuration = {
        name: rates(own) | ranges(own, set(GRAPHS))
        for name in kernels
        if (own := [rows for rows in right if rows[0]["configuration"] == name])
    }
    by_op = {}
    for op in sorted({rows[0]["op"] for rows in wrong}):
        own = [rows for rows in wrong if rows[0]["op"] == op]
        hosts = {rows[0]["configuration"]: kernels[rows[0]["configuration"]] for rows in own}
        graphs = {  # in a configuration each kernel fills one op
            graph
            for each in hosts.values()
            for graph in graphs_of_kernels(each)[kernel_name(each.ops[op].kernel)]
        }
        by_op[op] = rates(own) | {"configurations": sorted(hosts)} | ranges(own, graphs)
    return {"right": rates(right), "right_by_configuration": by_configuration,
            "broken": rates(wrong), "broken_by_op": by_op}  # fmt: skip


def table(title: str, figures: dict[str, Any]) -> Table:
    """One line for each configuration or op."""
    ratios = [f"{g.split('_')[0]}: {r}" for g in GRAPHS for r in ("median", "further", "p90")]
    made = Table(title, "trials", "closed", "of four", *ratios, title="measured, CPU simulator")
    for name, one in figures.items():
        fours = f"{one['closed_of_4_sequences']}/{one['trials_of_4_sequences']}"
        cells = [
            "{:.2f}-{:.2f}".format(*one[graph][ratio]) if graph in one else "-"
            for graph in GRAPHS
            for ratio in RATIOS
        ]
        made.add_row(name, str(one["trials"]), str(one["closed"]), fours, *cells)
    return made


def plan(
    folder: Path, texts: int, broken_texts: int, random: int
) -> Iterator[tuple[Subject, Sequence[Fault], str]]:
    """Subject, in which ways its ops are broken, configuration."""
    subjects = [
        (tiny_subject(folder, 2 + i), FAULTS[: 1 if i else None] if i < broken_texts else ())
        for i in range(texts)
    ]
    subjects += [(random_subject(folder, 1 + i), FAULTS[:1]) for i in range(random)]
    for subject, faults in subjects:
        for name in configurations():
            if faults or name != ALONE:
                yield subject, faults, name


def write(found: list[list[Row]], kernels: dict[str, KernelConfiguration]) -> dict[str, Any]:
    """Keep limits, rates, ranges and every trial; gives the rates and ranges by kind of model."""
    kinds = {
        "tiny": [x for x in found if not x[0]["subject"].startswith("random")],
        "random": [x for x in found if x[0]["subject"].startswith("random")],
    }
    result = {kind: summary(each, kernels) for kind, each in kinds.items() if each}
    limits = read_config(CONFIG).accuracy.tolerances
    rows = [[row[column] for column in COLUMNS] for rows in found for row in rows]
    head = json.dumps({"limits": limits.model_dump(), **result, "columns": COLUMNS}, indent=1)
    lines = ",\n".join(map(json.dumps, rows))
    RESULTS.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n]\n}}\n', encoding="utf-8")
    return result


def main() -> None:
    """Run the trials, keep them, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--texts", type=int, default=5, help="sets of 16 texts for right kernels")
    parser.add_argument("--broken-texts", type=int, default=2, help="of these for broken ones too")
    parser.add_argument("--random", type=int, default=2, help="random checkpoints")
    parser.add_argument("--json", action="store_true", help="a last line for programs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels = configurations()
    found: list[list[Row]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = list(plan(Path(folder), options.texts, options.broken_texts, options.random))
        for subject, faults, name in track(work, "trials", console=Console(stderr=True)):
            wrong = hosts(kernels)[name] if faults else []
            for rows in trials(subject, name, kernels[name], wrong, faults):
                print(*map(json.dumps, rows), sep="\n", file=sys.stderr, flush=True)
                found.append(rows)
    result = write(found, kernels)
    console = Console(width=170)
    for kind, figures in result.items():
        console.print(table(f"{kind}: right kernels", figures["right_by_configuration"]))
        console.print(table(f"{kind}: op 5 % off", figures["broken_by_op"]))
    if options.json:
        print(json.dumps({kind: headline(figures) for kind, figures in result.items()}))


def headline(figures: dict[str, Any]) -> dict[str, float]:
    """False alarms and misses as shares, on 16 sequences and on four."""
    right, wrong = figures["right"], figures["broken"]
    of_four = right["closed_of_4_sequences"] / right["trials_of_4_sequences"]
    shares = {"false_alarms": right["closed"] / right["trials"], "false_alarms_of_4": of_four}
    if wrong["trials"]:
        of_four = wrong["closed_of_4_sequences"] / wrong["trials_of_4_sequences"]
        shares |= {"misses": 1 - wrong["closed"] / wrong["trials"], "misses_of_4": 1 - of_four}
    return {name: round(value, 4) for name, value in shares.items()}


if __name__ == "__main__":
    main()
