"""Speed of the model on the CPU simulator: decoding, prefill and compilation, measured.

    python benchmarks/model.py [--json] [--configuration all] [--repeats 5]

The tiny model runs its compiled graphs, in bf16, with the kernels of one configuration. Times are
this machine's wall clock and say nothing of Trainium:

- decode_tokens_per_s: 1 / median latency between two tokens, over all repeats;
- prefill128_s: median time to the first token of a prompt of 128 tokens;
- compile_s: compilation in a new process whose cache is empty, imports of torch's exporter
  included, those of torch itself not; compile_cached_s: the same again, from the cache.

Medians stand in the last line of output; every reading is in benchmarks/results/model.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
os.chdir(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULTS = ROOT / "benchmarks" / "results" / "model.json"
PROMPT = 16
TOKENS = 33
"""A run's new tokens: 32 latencies between two."""


def checkpoint_record(folder: Path) -> Path:
    """The default model's record, as the download stage writes it."""
    from model.configuration import read_config
    from model.download import download

    path = folder / "checkpoint.json"
    download(read_config(Path("config/config.yaml")), path)
    return path


def compile_once(configuration: str, folder: Path) -> list[float]:
    """Seconds of a compilation, and of the same from the cache."""
    from model.compile import compile_configuration
    from model.configuration import read_config

    config = read_config(Path("config/config.yaml"))
    checkpoint = checkpoint_record(folder)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        compile_configuration(
            config, configuration, checkpoint, folder / "manifest.json", folder / "cache"
        )
        seconds.append(time.perf_counter() - start)
    return seconds


def generate(configuration: str, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Latencies between tokens, and times to the first of a 128-token prompt, in seconds."""
    from model.configuration import (
        kernel_configuration_path,
        read_config,
        read_kernel_configuration,
    )
    from model.runtime import load

    config = read_config(Path("config/config.yaml"))
    kernels = read_kernel_configuration(kernel_configuration_path(configuration))
    model = load(
        folder / "checkpoint.json",
        kernels,
        dtype=config.dtype,
        config=config,
        compiled=folder / "manifest.json",
    )
    short = [7 + i % 400 for i in range(PROMPT)]
    long = [7 + i * 3 % 400 for i in range(128)]
    decode: list[float] = []
    prefill: list[float] = []
    for repeat in range(repeats + 1):
        (first,) = model.generate([short], TOKENS, [])
        (second,) = model.generate([long], 1, [])
        if repeat:  # the first run specialises the kernels
            decode += [ms / 1e3 for ms in first.itl_ms]
            prefill.append(second.ttft_ms / 1e3)
    return {"decode_s": decode, "prefill128_s": prefill}


def in_new_process(function: Any, *arguments: Any) -> Any:
    """What `function` gives in a process that has imported nothing."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def main() -> None:
    """Measure, keep the readings, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--configuration", default="all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one line of JSON only")
    options = parser.parse_args()
    compiles = []
    for _ in range(max(1, options.repeats // 2)):
        folder = Path(tempfile.mkdtemp(prefix="benchmark-model-"))
        compiles.append(in_new_process(compile_once, options.configuration, folder))
    times = in_new_process(generate, options.configuration, folder, options.repeats)
    times["compile_s"] = [cold for cold, _ in compiles]
    times["compile_cached_s"] = [cached for _, cached in compiles]
    spreads = {name: spread(values) for name, values in times.items()}
    summary = {
        "decode_tokens_per_s": 1 / spreads["decode_s"]["median"],
        "prefill128_s": spreads["prefill128_s"]["median"],
        "compile_s": spreads["compile_s"]["median"],
        "compile_cached_s": spreads["compile_cached_s"]["median"],
    }
    record = {
        "measured_on": f"CPU simulator, {platform.machine()}, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f}",
        "configuration": options.configuration,
        "summary": summary,
        "spread": spreads,
        "readings": times,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if not options.json:
        for name, values in spreads.items():
            low, high = values["lower_quartile"], values["upper_quartile"]
            print(f"{name:18} {values['median']:.4g} s measured ({low:.4g} to {high:.4g})")
    print(json.dumps({name: round(value, 4) for name, value in summary.items()}))


if __name__ == "__main__":
    main()
