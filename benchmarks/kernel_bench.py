"""What the kernel benchmark times, how, and how it is printed; see kernels.py.

All times are predicted by the timing model (docs/timing.md); none is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import simulator.finder  # noqa: F401  (`import nki` works from here on)
from kernels import KERNELS
from simulator import dtypes
from simulator.specialise import TensorSpec
from simulator.targets import TARGETS
from simulator.timing import predict

BF16, FP32, INT32, FP8 = dtypes.bfloat16, dtypes.float32, dtypes.int32, dtypes.float8_e4m3


@dataclass(frozen=True)
class Case:
    """A kernel at one shape, and what the mathematics needs there at least."""

    kernel: str
    phase: str
    """`prefill` or `decode`."""
    shape: str
    arguments: dict[str, TensorSpec]
    hbm_bytes: float
    """That must be read or written."""
    macs: float = 0.0
    """That count, on the Tensor engine."""
    parameters: dict[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    lnc: int = 2


def spec(*shape: int, dtype: dtypes.DType = BF16) -> TensorSpec:
    """A tensor argument."""
    return TensorSpec(shape, dtype)


def load(name: str) -> Any:
    """A kernel by its name in kernels.KERNELS."""
    return getattr(import_module(KERNELS[name].module), name)


def row(case: Case, target: str) -> dict[str, Any]:
    """What the timing model predicts for a case. Times in us."""
    kernel = load(case.kernel)
    launched = kernel[case.lnc] if case.lnc > 1 else kernel
    program = launched.specialise(**case.arguments, **case.parameters, target=TARGETS[target])
    timeline = predict(program, target)
    machine = timeline.machine
    memory = case.hbm_bytes / (machine.hbm_core_bytes_per_ns * case.lnc) / 1000
    compute = case.macs / (machine.tensor_macs_per_ns * case.lnc) / 1000
    predicted = timeline.latency_us
    outside = (machine.launch_ns + machine.finish_ns) / 1000
    causes = timeline.critical_path_us
    return {
        "kernel": case.kernel,
        "phase": case.phase,
        "shape": case.shape,
        "dtype": case.dtype,
        "lnc": case.lnc,
        "predicted_us": round(predicted, 3),
        "in_graph_us": round(predicted - outside, 3),
        "roofline_us": round(max(memory, compute), 3),
        "mfu": round(compute / predicted, 4),
        "mbu": round(memory / predicted, 4),
        "bound_by": "compute" if compute > memory else "memory",
        "slowed_by": max(causes, key=lambda cause: causes[cause]),
        "hbm_bytes_moved": timeline.hbm_bytes,
        "hbm_bytes_needed": int(case.hbm_bytes),
        "parameters": case.parameters,
    }


def fused_table(rows: list[dict[str, Any]], target: str) -> str:
    """The comparison for a reader."""
    lines = [
        "",
        f"Fused kernels and the sum of their parts, in a graph: predicted for {target}, in us.",
        f"{'kernel':35}{'shape':38}{'fused':>9}{'parts':>9}{'':>7}  fuses",
    ]
    for r in rows:
        own, parts = r["predicted_in_graph_us"], r["predicted_parts_in_graph_us"]
        lines.append(
            f"{r['kernel']:35}{r['shape']:38}{own:>9.1f}{parts:>9.1f}{parts / own:>6.1f}x"
            f"  {r['fuses']}"
        )
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], target: str) -> str:
    """The rows for a reader."""
    lines = [
        f"Predicted for {target} by the timing model; nothing here is measured. Times in us.",
        f"{'kernel':35}{'shape':38}{'dtype':23}{'lnc':>3}{'predicted':>11}{'in graph':>10}"
        f"{'roofline':>10}{'of it':>7}{'in graph':>9}{'MFU':>7}{'MBU':>7}  bound by, slowed by",
    ]
    for r in rows:
        alone, inside = (r["roofline_us"] / r[key] for key in ("predicted_us", "in_graph_us"))
        lines.append(
            f"{r['kernel']:35}{r['shape']:38}{r['dtype']:23}{r['lnc']:>3}"
            f"{r['predicted_us']:>11.1f}{r['in_graph_us']:>10.1f}{r['roofline_us']:>10.1f}"
            f"{alone:>7.0%}{inside:>9.0%}{r['mfu']:>7.1%}{r['mbu']:>7.1%}"
            f"  {r['bound_by']}, {r['slowed_by']}"
        )
    return "\n".join(lines)
