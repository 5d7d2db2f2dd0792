"""Predicted speed of every kernel at Qwen3-30B-A3B's shapes, beside its roofline.

    python benchmarks/kernels.py [--target trn2] [--json] [--only moe]

The shapes are those of one logical core of four (tensor parallel 4): hidden 2048, 8 query heads
and 1 key head of 128, 128 experts of which 8 are chosen, 192 of an expert's 768 inner columns.
All times are predicted by the timing model (docs/timing.md); none is measured.

A row's bound is what the mathematics needs at least, whatever the kernel does: every byte that
must be read or written once, and the multiply-accumulates that count, at the peaks of the cores
it runs on. Bytes that a kernel moves beyond that, and work on padding, are its own fault: MFU and
MBU count the needed ones only.

`predicted` is a kernel by itself, launch and finish included (7.6 us on trn2); in a compiled
graph, kernels follow each other without them, which is the column `in graph`.

To add a kernel, add rows to CASES.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import simulator.finder  # noqa: E402, F401  (`import nki` works from here on)
from kernels import KERNELS  # noqa: E402
from simulator import dtypes  # noqa: E402
from simulator.specialise import TensorSpec  # noqa: E402
from simulator.targets import TARGETS  # noqa: E402
from simulator.timing import predict  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
HIDDEN, HEADS, KV_HEADS, HEAD, EXPERTS, CHOSEN, INNER = 2048, 8, 1, 128, 128, 8, 192
PREFILL = (128, 640, 2048)
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


def row_cases() -> Iterator[Case]:
    """Kernels that work row by row."""
    rows = 2048
    x, weight = spec(rows, HIDDEN), spec(HIDDEN)
    once = 2 * rows * HIDDEN
    shape = f"{rows}x{HIDDEN}"
    yield Case("nki_rmsnorm_kernel", "prefill", shape, {"x": x, "weight": weight}, 2 * once, lnc=1)
    yield Case("nki_softmax_kernel", "prefill", shape, {"x": x}, 2 * once, lnc=1)
    yield Case("nki_silu_kernel", "prefill", shape, {"x": x}, 2 * once, lnc=1)
    q, k = spec(rows, HEADS, HEAD), spec(rows, KV_HEADS, HEAD)
    yield Case(
        "nki_qk_rmsnorm_kernel",
        "prefill",
        f"{rows}x({HEADS}+{KV_HEADS})x{HEAD}",
        {"q": q, "k": k, "q_weight": spec(HEAD), "k_weight": spec(HEAD)},
        2 * 2 * rows * (HEADS + KV_HEADS) * HEAD,
        lnc=1,
    )


def router_cases() -> Iterator[Case]:
    """The router with its product."""
    for tokens in (1, *PREFILL):
        yield Case(
            "nki_expert_router_kernel",
            "decode" if tokens == 1 else "prefill",
            f"{tokens}x{HIDDEN}x{EXPERTS}",
            {"x": spec(tokens, HIDDEN), "router_weight": spec(HIDDEN, EXPERTS)},
            2 * HIDDEN * (tokens + EXPERTS) + 8 * tokens * CHOSEN,
            tokens * HIDDEN * EXPERTS,
            lnc=1,
        )


def expert_bytes(itemsize: int) -> int:
    """One expert's weights."""
    return 3 * HIDDEN * INNER * itemsize


def mlp_cases() -> Iterator[Case]:
    """One expert, and the sum over experts."""
    for tokens in PREFILL:
        yield Case(
            "nki_fused_expert_mlp_kernel",
            "prefill",
            f"{tokens}x{HIDDEN}x{INNER}",
            {
                "x": spec(tokens, HIDDEN),
                "gate_weight": spec(HIDDEN, INNER),
                "up_weight": spec(HIDDEN, INNER),
                "down_weight": spec(INNER, HIDDEN),
            },
            expert_bytes(2) + 4 * tokens * HIDDEN,
            3 * tokens * HIDDEN * INNER,
        )
        yield Case(
            "nki_expert_aggregation_kernel",
            "prefill",
            f"{tokens}x{CHOSEN}x{HIDDEN}",
            {
                "expert_outputs": spec(tokens, CHOSEN, HIDDEN),
                "weights": spec(tokens, CHOSEN, dtype=FP32),
            },
            2 * tokens * (CHOSEN + 1) * HIDDEN,
            tokens * CHOSEN * HIDDEN,
        )


def expert_tensors(low: bool) -> dict[str, TensorSpec]:
    """All experts' weights in bf16 or fp8."""
    dtype = FP8 if low else BF16
    tensors = {
        "gate_up": spec(EXPERTS, HIDDEN, 2 * INNER, dtype=dtype),
        "down": spec(EXPERTS, INNER, HIDDEN, dtype=dtype),
    }
    if low:
        tensors["scales"] = spec(EXPERTS, 2 * INNER, dtype=FP32)
    return tensors


def moe_cases() -> Iterator[Case]:
    """The fused MoE kernels, with bf16 and with fp8 weights."""
    for low in (False, True):
        dtype, itemsize = ("bfloat16, fp8 weights", 1) if low else ("bfloat16", 2)
        for tokens in PREFILL:  # every expert is hit, as by 128 tokens and more
            yield Case(
                "nki_moe_prefill_kernel",
                "prefill",
                f"{tokens}x{HIDDEN}, {CHOSEN} of {EXPERTS} experts x{INNER}",
                {
                    "x": spec(tokens, HIDDEN),
                    "weights": spec(tokens, CHOSEN, dtype=FP32),
                    "chosen": spec(tokens, CHOSEN, dtype=INT32),
                    **expert_tensors(low),
                },
                EXPERTS * expert_bytes(itemsize) + 4 * tokens * HIDDEN + 8 * tokens * CHOSEN,
                3 * tokens * CHOSEN * HIDDEN * INNER,
                {},
                dtype,
            )
        for tokens in (1, 4):
            yield Case(
                "nki_moe_decode_kernel",
                "decode",
                f"{tokens}x{HIDDEN}, {CHOSEN} of {EXPERTS} experts x{INNER}",
                {
                    "x": spec(tokens, HIDDEN),
                    "norm_weight": spec(HIDDEN),
                    "router_weight": spec(HIDDEN, EXPERTS),
                    **expert_tensors(low),
                },
                tokens * CHOSEN * expert_bytes(itemsize) + 2 * HIDDEN * (EXPERTS + 1 + 2 * tokens),
                tokens * HIDDEN * (EXPERTS + 3 * CHOSEN * INNER),
                {},
                dtype,
            )


def rotation_cases() -> Iterator[Case]:
    """The fused norm, and RoPE; in decode for 1 and 32 sequences."""
    rows = 2048
    x = spec(rows, HIDDEN)
    yield Case(
        "nki_fused_add_rmsnorm_kernel",
        "prefill",
        f"{rows}x{HIDDEN}",
        {"x": x, "residual": x, "weight": spec(HIDDEN)},
        4 * 2 * rows * HIDDEN,
        lnc=1,
    )
    for batch, tokens in ((1, rows), (1, 1), (32, 1)):
        decode = tokens == 1
        arguments = {
            "q": spec(batch, tokens, HEADS, HEAD),
            "k": spec(batch, tokens, KV_HEADS, HEAD),
            "cos": spec(4096, HEAD),
            "sin": spec(4096, HEAD),
        }
        if decode:
            arguments["offsets"] = spec(batch, 1, dtype=INT32)
        yield Case(
            "nki_rope_kernel",
            "decode" if decode else "prefill",
            f"{batch}x{tokens}x({HEADS}+{KV_HEADS})x{HEAD}",
            arguments,
            4 * batch * tokens * (HEADS + KV_HEADS + 1) * HEAD,
            lnc=1,
        )


def projection(
    kernel: str, tokens: int, size: int, columns: int, low: bool, extra: dict[str, Any]
) -> Case:
    """A projection [tokens, size] x [size, columns]; `extra` has its own arguments."""
    arguments: dict[str, Any] = {
        "x": spec(tokens, size),
        "weight": spec(size, columns, dtype=FP8 if low else BF16),
        **{name: value for name, value in extra.items() if isinstance(value, TensorSpec)},
    }
    if low:
        arguments["scale"] = spec(columns, dtype=FP32)
    others = [prod(value.shape) for value in extra.values() if isinstance(value, TensorSpec)]
    read = 2 * (tokens * size + sum(others))
    written = 0 if extra.get("argmax") else 2 * tokens * columns
    return Case(
        kernel,
        "decode" if tokens <= 4 else "prefill",
        f"{tokens}x{size}x{columns}{', argmax' if extra.get('argmax') else ''}",
        arguments,
        size * columns * (1 if low else 2) + 4 * columns * low + read + written,
        tokens * size * columns,
        {name: value for name, value in extra.items() if not isinstance(value, TensorSpec)},
        "bfloat16, fp8 weights" if low else "bfloat16",
    )


def projection_cases() -> Iterator[Case]:
    """The projections and the head, with bf16 and with fp8 weights."""
    columns, inputs, vocabulary = (HEADS + 2 * KV_HEADS) * HEAD, HEADS * HEAD, 151936 // 4
    norm = spec(HIDDEN)
    for low in (False, True):
        for tokens in (1, *PREFILL):
            extra: dict[str, Any] = {"kv_width": KV_HEADS * HEAD, "norm_weight": norm}
            yield projection("nki_qkv_projection_kernel", tokens, HIDDEN, columns, low, extra)
            extra = {"residual": spec(tokens, HIDDEN)}
            yield projection("nki_output_projection_kernel", tokens, inputs, HIDDEN, low, extra)
        for chosen in (False, True):
            extra = {"norm_weight": norm, "argmax": chosen}
            yield projection("nki_lm_head_kernel", 1, HIDDEN, vocabulary, low, extra)


def attention_cases() -> Iterator[Case]:
    """Attention; MACs that count are those at or below the diagonal.

    With a bound on scores, which Qwen3's RMS norms of queries and keys give, no maximum is
    taken; the other rows hold for any values.
    """
    for parameters in ({}, {"logit_bound": 30.0}):
        promised = ", bounded" if parameters else ""
        for tokens in PREFILL:
            yield Case(
                "nki_flash_attention_kernel",
                "prefill",
                f"1x{tokens}x({HEADS}+{KV_HEADS})x{HEAD}{promised}",
                {
                    "q": spec(1, tokens, HEADS, HEAD),
                    "k": spec(1, tokens, KV_HEADS, HEAD),
                    "v": spec(1, tokens, KV_HEADS, HEAD),
                },
                4 * tokens * (HEADS + KV_HEADS) * HEAD,
                tokens * (tokens + 1) * HEADS * HEAD,
                parameters,
            )
        for batch, context in ((1, 640), (1, 4096), (8, 4096)):
            cache = spec(batch, KV_HEADS, context, HEAD)
            new = spec(batch, KV_HEADS, HEAD)
            yield Case(
                "nki_decode_attention_kernel",
                "decode",
                f"{batch}x({HEADS}+{KV_HEADS})x{HEAD}, {context} positions{promised}",
                {
                    "q": spec(batch, HEADS, HEAD),
                    "k": new,
                    "v": new,
                    "k_cache": cache,
                    "v_cache": cache,
                    "lengths": spec(batch, 1, dtype=INT32),
                },
                4 * batch * (KV_HEADS * context + HEADS + 2 * KV_HEADS) * HEAD,
                2 * batch * HEADS * context * HEAD,
                parameters,
            )


CASES: tuple[Case, ...] = (
    *row_cases(),
    *rotation_cases(),
    *projection_cases(),
    *attention_cases(),
    *router_cases(),
    *mlp_cases(),
    *moe_cases(),
)


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


def table(rows: list[dict[str, Any]], target: str) -> str:
    """The rows for a reader."""
    lines = [
        f"Predicted for {target} by the timing model; nothing here is measured. Times in us.",
        f"{'kernel':31}{'shape':38}{'dtype':23}{'lnc':>3}{'predicted':>11}{'in graph':>10}"
        f"{'roofline':>10}{'of it':>7}{'in graph':>9}{'MFU':>7}{'MBU':>7}  bound by, slowed by",
    ]
    for r in rows:
        alone, inside = (r["roofline_us"] / r[key] for key in ("predicted_us", "in_graph_us"))
        lines.append(
            f"{r['kernel']:31}{r['shape']:38}{r['dtype']:23}{r['lnc']:>3}"
            f"{r['predicted_us']:>11.1f}{r['in_graph_us']:>10.1f}{r['roofline_us']:>10.1f}"
            f"{alone:>7.0%}{inside:>9.0%}{r['mfu']:>7.1%}{r['mbu']:>7.1%}"
            f"  {r['bound_by']}, {r['slowed_by']}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or with --json only the list; keep the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="trn2", choices=sorted(TARGETS))
    parser.add_argument("--json", action="store_true", help="print the rows as one line of JSON")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    given = parser.parse_args(arguments)
    rows = [row(case, given.target) for case in CASES if given.only in case.kernel]
    if not given.only:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"kernels_{given.target}.json"
        path.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows) if given.json else table(rows, given.target))


if __name__ == "__main__":
    main()
