"""How fast the timing model plays Programs, and how much memory that takes.

    python benchmarks/timing_speed.py [--json] [--instructions N ...] [--repeats R]
        [--out FILE]

Programs of a matmul kernel and a softmax-like kernel, unrolled to N instructions (default:
250,000, 500,000 and 1,000,000), are played on one core. Reported are instructions per second
(median of the repeats, whole `predict`: costs, dependencies, simulation), by wall clock and by
process time (which a machine shared with others disturbs less), whether the time grows
linearly, and the most bytes per instruction that `predict` holds beyond the Program
(tracemalloc). All are measured on this CPU. With --json the last line is one JSON object; --out
writes the same to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import simulator.finder  # noqa: F401  (`import nki` works from here on)

# isort: split
import nki.isa as nisa
import nki.language as nl

from simulator import dtypes
from simulator.context import CURRENT
from simulator.program import Program
from simulator.targets import TARGETS
from simulator.tensor import MemoryRegion
from simulator.timing import predict

SIZES = (250_000, 500_000, 1_000_000)


def matmul_block(left: Any, right: Any, out: Any) -> None:
    """One output tile of a matmul: K = 1024, loads, 8 matmuls, eviction, store; 19 instructions."""
    product = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
    weights = nl.ndarray((128, 8, 128), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.dma_copy(dst=weights, src=left)
    for k in range(8):
        moving = nl.ndarray((128, 512), dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.dma_copy(dst=moving, src=right[k * 128 : (k + 1) * 128, :])
        nisa.nc_matmul(dst=product, stationary=weights[:, k, :], moving=moving, accumulate=k > 0)
    result = nl.ndarray((128, 512), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result, src=product)
    nisa.dma_copy(dst=out, src=result)


def softmax_block(x: Any, out: Any) -> None:
    """One tile of a softmax: load, maximum, exponential with sum, scale, store; 6 instructions."""
    tile = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    top = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=top, op=nl.maximum, data=tile, axis=1, negate=True)
    total = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
    raised = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(
        dst=raised, op=nl.exp, data=tile, bias=top, reduce_op=nl.add, reduce_res=total
    )
    nisa.reciprocal(dst=total, data=total)
    nisa.tensor_scalar(dst=raised, data=raised, op0=nl.multiply, operand0=total)
    nisa.dma_copy(dst=out, src=raised)


def build(instructions: int) -> Program:
    """A Program of about so many instructions: one matmul block, then two softmax blocks."""
    program = Program("speed", TARGETS["trn2"])

    def argument(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        return program.allocate(shape, dtype, MemoryRegion.shared_hbm, name, "argument")

    left = argument("left", (128, 8, 128), dtypes.bfloat16)
    right = argument("right", (1024, 512), dtypes.bfloat16)
    x = argument("x", (128, 512), dtypes.float32)
    out = argument("out", (128, 512), dtypes.bfloat16)
    y = argument("y", (128, 512), dtypes.float32)
    token = CURRENT.set(program)
    try:
        while len(program.instructions) < instructions:
            matmul_block(left, right, out)
            softmax_block(x, y)
            softmax_block(x, y)
    finally:
        CURRENT.reset(token)
    program.raise_violations()
    return program


def measure(program: Program, repeats: int) -> dict[str, float]:
    """Speed and memory of `predict` on one Program."""
    from simulator.lifetimes import lifetimes

    lifetimes(program)  # found by the Program's own checks, before anything is timed
    count = len(program.instructions)
    wall, cpu = [], []
    for _ in range(repeats):
        before = time.perf_counter(), time.process_time()
        predict(program)
        wall.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    tracemalloc.start()
    timeline = predict(program)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del timeline
    return {
        "instructions": count,
        "instr_per_s": round(count / statistics.median(wall)),
        "instr_per_cpu_s": round(count / statistics.median(cpu)),
        "bytes_per_instr": round(most / count, 1),
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--instructions", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    for size in options.instructions:
        program = build(size)
        rows.append(measure(program, options.repeats))
        print("  ".join(f"{name} {value:,}" for name, value in rows[-1].items()), flush=True)
        del program
    last, first = rows[-1], rows[0]
    growth = first["instr_per_cpu_s"] / last["instr_per_cpu_s"]
    print(f"measured on this CPU, one core; time per instruction grows {growth:.2f} × from "
          f"{first['instructions']:,} to {last['instructions']:,} instructions")  # fmt: skip
    figures = {
        "instr_per_s": last["instr_per_s"],
        "bytes_per_instr": max(row["bytes_per_instr"] for row in rows),
        "instr_per_cpu_s": last["instr_per_cpu_s"],
        "growth": round(growth, 3),
        "rows": rows,
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    if options.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
