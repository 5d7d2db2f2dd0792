"""Do the latency statistics hold on a real machine? Measured with the tiny model on the simulator.

    python benchmarks/statistics_real.py [--sessions 40] [--configuration baseline] [--json]

A session is the latency stage's own (evaluation.interleave, default settings) with two copies of
one configuration. Their true ratio is 1, whatever the machine does, so that what the stage says of
it can be right or wrong. Then one copy's readings are multiplied by 1.03, and by 1/1.03: the same
machine's noise about a true difference of 3 %. The last line of `--json` is {"ci95_coverage",
"aa_false_faster", "power_3pct"} of end-to-end latency. Every session is in
benchmarks/results/statistics_real.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # beside this script lies a module named as one of Python's

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
from typing import Any  # noqa: E402

from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402

DIFFERENCE = 1.03


def one_session(timed: dict[Any, Any], prompts: list[str], seed: int) -> dict[str, Any]:
    """Run it, and say what the stage would."""
    from evaluation.interleave import interleave
    from evaluation.latency import compare
    from model.configuration import Latency

    settings = Latency(seed=seed)
    load = os.getloadavg()[0]
    session = interleave(timed, prompts, settings)
    found: dict[str, Any] = {
        "seed": seed,
        "rounds": session.rounds,
        "stopped_because": session.stopped_because,
        "load_average": load,
    }
    for comparison in compare(session, settings.smallest_difference, seed):
        ratio = comparison.ratio
        found[comparison.metric] = {
            **ratio.model_dump(),
            "verdict": comparison.verdict,
            "holds_1": ratio.low is not None and ratio.high is not None
            and ratio.low <= 1 <= ratio.high,
        }  # fmt: skip
    for factor, expected in ((DIFFERENCE, "slower"), (1 / DIFFERENCE, "faster")):
        apart = dataclasses.replace(session, runs=[scaled(run, factor) for run in session.runs])
        [first, *_] = compare(apart, settings.smallest_difference, seed)
        found[expected] = first.verdict
    return found


def scaled(run: Any, factor: float) -> Any:
    """The run, as if the configuration took `factor` times as long; the baseline's as it is."""
    if run.side == "baseline":
        return run
    timing = run.timing
    return dataclasses.replace(
        run,
        timing=timing.model_copy(
            update={
                "ttft_ms": timing.ttft_ms * factor,
                "itl_ms": [x * factor for x in timing.itl_ms],
                "end_to_end_ms": timing.end_to_end_ms * factor,
            }
        ),
    )


def models(configuration: str) -> tuple[dict[Any, Any], list[str], str]:
    """Two copies that can be timed, the names of their prompts, and the device."""
    import torch

    from evaluation.interleave import SIDES
    from evaluation.latency import TimedModel, device_name, read_tokens
    from model import runtime
    from model.configuration import (
        kernel_configuration_path,
        read_config,
        read_kernel_configuration,
    )
    from model.download import download

    torch.set_num_threads(1)
    config = read_config(ROOT / "config/config.yaml")
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "checkpoint.json"
        download(config, record)
        kernels = read_kernel_configuration(kernel_configuration_path(configuration))
        copies = {
            side: runtime.load(record, kernels, dtype=config.dtype, config=config, batch_size=1)
            for side in SIDES
        }
    prompts = read_tokens(config, copies["baseline"])
    timed = {side: TimedModel(copies[side], prompts, config.latency.new_tokens) for side in SIDES}
    for side in SIDES:
        for prompt in prompts:  # untimed, as in the stage
            timed[side](prompt)
    return timed, list(prompts), device_name(config)


def main() -> None:
    """Run the sessions, keep them, print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--configuration", default="baseline")
    parser.add_argument("--json", action="store_true", help="a last line for programs")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    timed, prompts, device = models(arguments.configuration)
    progress = track(range(arguments.sessions), console=Console(stderr=True))
    sessions = [one_session(timed, prompts, seed) for seed in progress]
    count = len(sessions)

    def share(condition: Any) -> float:
        return round(sum(map(condition, sessions)) / count, 4)

    shares = {
        f"ci95_coverage_{metric}": share(lambda s, m=metric: s[m]["holds_1"])
        for metric in ("end_to_end_ms", "ttft_ms", "tpot_ms")
    } | {
        f"aa_{verdict.replace(' ', '_')}": share(
            lambda s, v=verdict: s["end_to_end_ms"]["verdict"] == v
        )
        for verdict in ("faster", "slower", "no difference", "not enough data")
    } | {
        "power_3pct_slower": share(lambda s: s["slower"] == "slower"),
        "power_3pct_faster": share(lambda s: s["faster"] == "faster"),
    }  # fmt: skip
    found = {
        "measured_on": device,
        "configuration": arguments.configuration,
        "sessions": count,
        "rounds": sorted(s["rounds"] for s in sessions),
        "shares": shares,
        "raw": sessions,
    }
    Console().print(device, count, "sessions", shares)
    target = ROOT / "benchmarks/results/statistics_real.json"
    known = json.loads(target.read_text()) if target.exists() else {}
    target.write_text(json.dumps(known | {arguments.configuration: found}, indent=1) + "\n")
    if arguments.json:
        power = min(shares["power_3pct_slower"], shares["power_3pct_faster"])
        print(
            json.dumps(
                {
                    "ci95_coverage": shares["ci95_coverage_end_to_end_ms"],
                    "aa_false_faster": shares["aa_faster"],
                    "power_3pct": power,
                }
            )
        )


if __name__ == "__main__":
    main()
