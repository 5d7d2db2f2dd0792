"""Speed of the simulator on this CPU: replay against NumPy and torch eager, and specialisation.

    python benchmarks/simulator.py [--json] [--rounds 9] [--only matmul]

Each case runs the same maths three ways in one process, interleaved round by round: the kernel
replayed on the simulator (specialised already), NumPy, and torch eager. All times are measured
on this CPU and say nothing about a Trainium. Raw numbers go to benchmarks/results/simulator.json.

All three ways have one thread, unless OMP_NUM_THREADS says otherwise: with more, torch's OpenMP
workers go on spinning after a call and slow down whatever is measured next.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when numpy and torch are imported
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import simulator_kernels as kernels_here  # noqa: E402
import torch  # noqa: E402

import simulator.finder  # noqa: E402, F401  (`import nki` works from here on)
from kernels.rmsnorm import nki_rmsnorm_kernel  # noqa: E402
from kernels.softmax import nki_softmax_kernel  # noqa: E402
from simulator.dtypes import bfloat16, float32  # noqa: E402
from simulator.kernel import Kernel  # noqa: E402
from simulator.specialise import TensorSpec, specialise  # noqa: E402
from simulator.targets import TARGETS  # noqa: E402

Array = np.ndarray[Any, Any]
RESULTS = ROOT / "benchmarks" / "results" / "simulator.json"


@dataclass(frozen=True)
class Case:
    """The same maths three ways; each takes the arguments in order."""

    name: str
    kernel: Kernel
    shapes: tuple[tuple[int, ...], ...]
    numpy: Callable[..., Any]
    """On fp32 arrays; gives fp32."""
    torch: Callable[..., Any]
    """On tensors of the case's dtype, in eager mode."""


# --- the maths --------------------------------------------------------------------------------


def numpy_rmsnorm(x: Array, weight: Array) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(1e-6)) * weight


def torch_rmsnorm(x: Any, weight: Any) -> Any:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return wide.to(x.dtype) * weight


def numpy_softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def torch_softmax(x: Any) -> Any:
    return torch.softmax(x, dim=-1)


def numpy_matmul(lhs_t: Array, rhs: Array) -> Array:
    return lhs_t.T @ rhs


def torch_matmul(lhs_t: Any, rhs: Any) -> Any:
    return lhs_t.T @ rhs


def numpy_attention(q_t: Array, k_t: Array, v: Array) -> Array:
    return numpy_softmax(q_t.T @ k_t * np.float32(q_t.shape[0] ** -0.5)) @ v


def torch_attention(q_t: Any, k_t: Any, v: Any) -> Any:
    return torch.softmax(q_t.T @ k_t * q_t.shape[0] ** -0.5, dim=-1) @ v


def numpy_mlp(x_t: Array, gate: Array, up: Array, down: Array) -> Array:
    x = x_t.T
    g = x @ gate
    return (g / (1 + np.exp(-g)) * (x @ up)) @ down


def torch_mlp(x_t: Any, gate: Any, up: Any, down: Any) -> Any:
    x = x_t.T
    return (torch.nn.functional.silu(x @ gate) * (x @ up)) @ down


def numpy_router(logits: Array) -> tuple[Array, Array]:
    chances = numpy_softmax(logits)
    index = np.argsort(-chances, axis=-1, kind="stable")[:, :8]
    top = np.take_along_axis(chances, index, axis=-1)
    return top / top.sum(axis=-1, keepdims=True), index


def torch_router(logits: Any) -> Any:
    top, index = torch.topk(torch.softmax(logits.float(), dim=-1), 8, dim=-1)
    return top / top.sum(-1, keepdim=True), index


CASES = (
    Case("rmsnorm 512x2048", nki_rmsnorm_kernel, ((512, 2048), (2048,)),
         numpy_rmsnorm, torch_rmsnorm),
    Case("softmax 512x2048", nki_softmax_kernel, ((512, 2048),), numpy_softmax, torch_softmax),
    Case("matmul 512x2048x512", kernels_here.matmul_kernel, ((2048, 512), (2048, 512)),
         numpy_matmul, torch_matmul),
    Case("flash attention seq 512 d 128", kernels_here.attention_kernel,
         ((128, 512), (128, 512), (512, 128)), numpy_attention, torch_attention),
    Case("expert MLP 2048x768, 128 tokens", kernels_here.expert_mlp_kernel,
         ((2048, 128), (2048, 768), (2048, 768), (768, 2048)), numpy_mlp, torch_mlp),
    Case("router top-8 of 128, 512 tokens", kernels_here.router_kernel, ((512, 128),),
         numpy_router, torch_router),
)  # fmt: skip

DTYPES = {"fp32": (np.float32, torch.float32), "bf16": (ml_dtypes.bfloat16, torch.bfloat16)}


# --- measuring --------------------------------------------------------------------------------


def _ways(case: Case, dtype: str) -> tuple[dict[str, Callable[[], Any]], float]:
    """The three ways to run a case as functions of nothing, and their largest difference."""
    random = np.random.default_rng(0)
    numpy_dtype, torch_dtype = DTYPES[dtype]
    scale = [1.0 if len(shape) == 1 else shape[0] ** -0.25 for shape in case.shapes]
    arrays = [
        (random.standard_normal(shape) * factor).astype(numpy_dtype)
        for shape, factor in zip(case.shapes, scale, strict=True)
    ]
    tensors = [torch.from_numpy(a.astype(np.float32)).to(torch_dtype) for a in arrays]

    def numpy_way() -> Any:
        wide = [a if dtype == "fp32" else a.astype(np.float32) for a in arrays]
        result = case.numpy(*wide)
        if isinstance(result, tuple) or dtype == "fp32":
            return result
        return result.astype(numpy_dtype)

    ways: dict[str, Callable[[], Any]] = {
        "simulator": lambda: case.kernel(*arrays),
        "numpy": numpy_way,
        "torch": lambda: case.torch(*tensors),
    }
    first = [_first(way()) for way in ways.values()]
    largest = max(float(np.abs(value).max()) for value in first)
    difference = max(float(np.abs(value - first[1]).max()) for value in first) / largest
    return ways, difference


def _first(result: Any) -> Array:
    """The (first) result as fp32."""
    result = result[0] if isinstance(result, tuple) else result
    return np.asarray(result.float() if isinstance(result, torch.Tensor) else result, np.float32)


def _measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds per call: the best mean of a short burst, per round, ways interleaved."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    counts = {}
    for name, way in ways.items():
        for _ in range(3):
            way()
        start = time.perf_counter()
        way()
        counts[name] = max(1, int(0.03 / (time.perf_counter() - start)))
    for _ in range(rounds):
        for name, way in ways.items():
            way()
            burst = []
            for _ in range(counts[name]):
                start = time.perf_counter()
                way()
                burst.append(time.perf_counter() - start)
            times[name].append(float(np.median(burst)) * 1e3)
    return times


def run_case(case: Case, dtype: str, rounds: int) -> dict[str, Any]:
    """Measure one case in one dtype."""
    ways, difference = _ways(case, dtype)
    times = _measure(ways, rounds)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = {
        other: [a / b for a, b in zip(times["simulator"], times[other], strict=True)]
        for other in ("torch", "numpy")
    }
    return {
        "case": case.name,
        "dtype": dtype,
        "device": "this CPU, measured",
        "ms": medians,
        "vs_torch": float(np.median(ratios["torch"])),
        "vs_torch_quartiles": np.quantile(ratios["torch"], [0.25, 0.75]).tolist(),
        "vs_numpy": float(np.median(ratios["numpy"])),
        "vs_numpy_quartiles": np.quantile(ratios["numpy"], [0.25, 0.75]).tolist(),
        "relative_difference": difference,
        "raw_ms": times,
    }


def specialisation_rate(rounds: int) -> dict[str, Any]:
    """Instructions per second of tracing and checking, over the larger kernels."""
    jobs = [
        (nki_rmsnorm_kernel, (TensorSpec((65536, 2048), float32), TensorSpec((2048,), float32))),
        (kernels_here.matmul_kernel,
         (TensorSpec((3072, 2048), bfloat16), TensorSpec((3072, 2048), bfloat16))),
        (kernels_here.attention_kernel,
         (TensorSpec((128, 8192), bfloat16), TensorSpec((128, 8192), bfloat16),
          TensorSpec((8192, 128), bfloat16))),
    ]  # fmt: skip
    rates: dict[str, list[float]] = {}
    for kernel, arguments in jobs:
        bound = dict(zip(kernel.signature.parameters, arguments, strict=False))
        for name, parameter in kernel.signature.parameters.items():
            bound.setdefault(name, parameter.default)
        for _ in range(max(3, rounds // 3)):
            start = time.perf_counter()
            program = specialise(kernel.function, bound, TARGETS["trn2"])
            elapsed = time.perf_counter() - start
            rates.setdefault(kernel.__name__, []).append(len(program.instructions) / elapsed)
    best = [float(np.median(values)) for values in rates.values()]
    return {"rates": rates, "median": float(math.exp(np.mean(np.log(best))))}


def memory_ratio() -> dict[str, float]:
    """Peak memory of a large replay against the HBM tensors it works on, in bytes."""
    rows, width = 16384, 2048
    x, weight = np.ones((rows, width), np.float32), np.ones(width, np.float32)
    tensors = 2 * x.nbytes + weight.nbytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    nki_rmsnorm_kernel(x, weight)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    extra = max(0.0, after - before)
    return {"hbm_tensor_bytes": tensors, "extra_bytes": extra, "limit_bytes": 3 * tensors + 1e8}


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="last line: the figures as JSON")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the raw numbers")
    arguments = parser.parse_args()
    cases = []
    for case in CASES:
        if arguments.only in case.name:
            for dtype in DTYPES:
                cases.append(run_case(case, dtype, arguments.rounds))
                _show(cases[-1])
    specialised = specialisation_rate(arguments.rounds)
    memory = memory_ratio()
    summary = {
        "geomean_vs_torch": _geomean([case["vs_torch"] for case in cases]),
        "geomean_vs_numpy": _geomean([case["vs_numpy"] for case in cases]),
        "worst_vs_torch": max(case["vs_torch"] for case in cases),
        "specialise_instr_per_s": specialised["median"],
        "memory": memory,
        "cases": [{k: v for k, v in case.items() if k != "raw_ms"} for case in cases],
    }
    raw = {**summary, "cases": cases, "specialisation": specialised, "machine": _machine()}
    if not arguments.only:
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(raw, indent=1) + "\n")
    print(
        f"geometric mean: {summary['geomean_vs_torch']:.2f} x torch, "
        f"{summary['geomean_vs_numpy']:.2f} x NumPy; "
        f"worst {summary['worst_vs_torch']:.2f} x torch; "
        f"specialisation {specialised['median']:,.0f} instructions/s (measured on this CPU)"
    )
    if arguments.json:
        print(json.dumps(summary))
    return 0


def _show(case: dict[str, Any]) -> None:
    ms = case["ms"]
    print(
        f"{case['case']:34} {case['dtype']}  simulator {ms['simulator']:8.3f} ms  "
        f"numpy {ms['numpy']:8.3f}  torch {ms['torch']:8.3f}  "
        f"{case['vs_torch']:5.2f} x torch  {case['vs_numpy']:5.2f} x numpy  "
        f"difference {case['relative_difference']:.1e}",
        flush=True,
    )


def _geomean(values: list[float]) -> float:
    return float(math.exp(np.mean(np.log(values))))


def _machine() -> dict[str, Any]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
