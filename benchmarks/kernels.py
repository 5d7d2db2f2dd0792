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
from math import prod
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.kernel_bench import (  # noqa: E402
    BF16,
    FP8,
    FP32,
    INT32,
    KERNELS,
    Case,
    fused_table,
    load,
    row,
    spec,
    table,
)
from simulator.specialise import TensorSpec  # noqa: E402
from simulator.targets import TARGETS  # noqa: E402

__all__ = ["CASES", "KERNELS", "Case", "load", "row", "spec", "table"]

RESULTS = ROOT / "benchmarks" / "results"
HIDDEN, HEADS, KV_HEADS, HEAD, EXPERTS, CHOSEN, INNER = 2048, 8, 1, 128, 128, 8, 192
PREFILL = (128, 640, 2048)

LAUNCHES = ((1, 2), (128, 2), (640, 2), (2048, 2), (2048, 1))
"""(tokens, physical cores) of kernels that work row by row."""


def phase(tokens: int) -> str:
    """Whose tokens these are."""
    return "decode" if tokens <= 8 else "prefill"


def row_cases() -> Iterator[Case]:
    """Kernels that work row by row, on both cores; the longest prompt on one core as well."""
    weight = spec(HIDDEN)
    for rows, lnc in LAUNCHES:
        x, shape, once = spec(rows, HIDDEN), f"{rows}x{HIDDEN}", 2 * rows * HIDDEN
        for kernel, others, passes in (
            ("nki_rmsnorm_kernel", {"weight": weight}, 2),
            ("nki_fused_add_rmsnorm_kernel", {"residual": x, "weight": weight}, 4),
            ("nki_softmax_kernel", {}, 2),
            ("nki_silu_kernel", {}, 2),
        ):
            yield Case(kernel, phase(rows), shape, {"x": x, **others}, passes * once, lnc=lnc)
        yield Case(
            "nki_qk_rmsnorm_kernel",
            phase(rows),
            f"{rows}x({HEADS}+{KV_HEADS})x{HEAD}",
            {
                "q": spec(rows, HEADS, HEAD),
                "k": spec(rows, KV_HEADS, HEAD),
                "q_weight": spec(HEAD),
                "k_weight": spec(HEAD),
            },
            2 * 2 * rows * (HEADS + KV_HEADS) * HEAD,
            lnc=lnc,
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
        )


def expert_bytes(itemsize: int) -> int:
    """One expert's weights."""
    return 3 * HIDDEN * INNER * itemsize


def mlp_case(tokens: int, low: bool) -> Case:
    """One expert, with bf16 or fp8 weights."""
    dtype = FP8 if low else BF16
    scales = {"gate_scale": spec(INNER, dtype=FP32), "up_scale": spec(INNER, dtype=FP32)}
    return Case(
        "nki_fused_expert_mlp_kernel",
        "prefill",
        f"{tokens}x{HIDDEN}x{INNER}",
        {
            "x": spec(tokens, HIDDEN),
            "gate_weight": spec(HIDDEN, INNER, dtype=dtype),
            "up_weight": spec(HIDDEN, INNER, dtype=dtype),
            "down_weight": spec(INNER, HIDDEN, dtype=dtype),
            **(scales if low else {}),
        },
        expert_bytes(1 if low else 2) + 4 * tokens * HIDDEN,
        3 * tokens * HIDDEN * INNER,
        dtype="bfloat16, fp8 weights" if low else "bfloat16",
    )


def mlp_cases() -> Iterator[Case]:
    """One expert, and the sum over experts."""
    for tokens in PREFILL:
        yield mlp_case(tokens, False)
        yield mlp_case(tokens, True)
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
    """RoPE of prompts; in decode of 1 and 32 sequences."""
    prompts = [(1, tokens, lnc) for tokens, lnc in LAUNCHES if tokens > 1]
    for batch, tokens, lnc in (*prompts, (1, 1, 2), (32, 1, 2)):
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
            lnc=lnc,
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


def block_cases() -> Iterator[Case]:
    """A whole attention block for one new token of each sequence."""
    columns, inputs = (HEADS + 2 * KV_HEADS) * HEAD, HEADS * HEAD
    for batch, context in ((1, 640), (1, 4096), (4, 640), (8, 4096)):
        cache, table = spec(batch, KV_HEADS, context, HEAD), spec(4096, HEAD)
        yield Case(
            "nki_attention_block_decode_kernel",
            "decode",
            f"{batch}x{HIDDEN}, {context} positions",
            {
                "x": spec(batch, HIDDEN),
                "norm_weight": spec(HIDDEN),
                "qkv_weight": spec(HIDDEN, columns),
                "q_norm_weight": spec(HEAD),
                "k_norm_weight": spec(HEAD),
                "cos": table,
                "sin": table,
                "k_cache": cache,
                "v_cache": cache,
                "lengths": spec(batch, 1, dtype=INT32),
                "o_weight": spec(inputs, HIDDEN),
            },
            2 * HIDDEN * (columns + inputs + 2 * batch + 1)
            + 4 * batch * (KV_HEADS * (context + 1) + 1) * HEAD,
            batch * (HIDDEN * (columns + inputs) + 2 * HEADS * context * HEAD),
        )


CASES: tuple[Case, ...] = (
    *row_cases(),
    *rotation_cases(),
    *projection_cases(),
    *attention_cases(),
    *block_cases(),
    *router_cases(),
    *mlp_cases(),
    *moe_cases(),
)


Parts = dict[str, tuple[Case, list[Case]]]
"""What is fused -> (the fused kernel, the kernels of its parts)."""


def parts_of_fused(tokens: int) -> Parts:
    """What fused kernels are compared with, at this many tokens.

    A residual sum and a gate's product have no kernel of their own: an elementwise kernel, SiLU,
    stands in, which reads one operand less. A product is what the output projection does.
    """
    every = {(c.kernel, c.shape): c for c in CASES if c.lnc == 2 and "fp8" not in c.dtype}
    rows, columns, inputs = f"{tokens}x{HIDDEN}", (HEADS + 2 * KV_HEADS) * HEAD, HEADS * HEAD
    norm, elementwise = every["nki_rmsnorm_kernel", rows], every["nki_silu_kernel", rows]
    router = every["nki_expert_router_kernel", f"{rows}x{EXPERTS}"]
    qkv = projection(
        "nki_qkv_projection_kernel", tokens, HIDDEN, columns, False, {"kv_width": HEAD}
    )
    found: Parts = {
        "norm, residual": (every["nki_fused_add_rmsnorm_kernel", rows], [norm, elementwise]),
        "norms of q and k": (
            every["nki_qk_rmsnorm_kernel", f"{tokens}x({HEADS}+{KV_HEADS})x{HEAD}"],
            [
                part("nki_rmsnorm_kernel", x=spec(tokens * heads, HEAD), weight=spec(HEAD))
                for heads in (HEADS, KV_HEADS)
            ],
        ),
        "norm, qkv": (every["nki_qkv_projection_kernel", f"{rows}x{columns}"], [norm, qkv]),
        "o, residual": (
            every["nki_output_projection_kernel", f"{tokens}x{inputs}x{HIDDEN}"],
            [product(tokens, inputs, HIDDEN), elementwise],
        ),
        "product, softmax and top k": (
            router,
            [
                product(tokens, HIDDEN, EXPERTS),
                part("nki_expert_router_kernel", x=spec(tokens, EXPERTS)),
            ],
        ),
    }
    if tokens == 1:
        total = part(
            "nki_expert_aggregation_kernel",
            expert_outputs=spec(1, CHOSEN, HIDDEN),
            weights=spec(1, CHOSEN, dtype=FP32),
        )
        found["norm, router, experts, sum"] = (
            every["nki_moe_decode_kernel", f"{rows}, {CHOSEN} of {EXPERTS} experts x{INNER}"],
            [norm, router, *[mlp_case(1, False)] * CHOSEN, total],
        )
        for context in (640, 4096):
            found[f"norm, qkv, norms, rope, attention, o at {context}"] = (
                every["nki_attention_block_decode_kernel", f"{rows}, {context} positions"],
                [
                    found["norm, qkv"][0],
                    found["norms of q and k"][0],
                    every["nki_rope_kernel", f"1x1x({HEADS}+{KV_HEADS})x{HEAD}"],
                    every[
                        "nki_decode_attention_kernel",
                        f"1x({HEADS}+{KV_HEADS})x{HEAD}, {context} positions",
                    ],
                    found["o, residual"][0],
                ],
            )
        return found
    up, down = product(tokens, HIDDEN, INNER), product(tokens, INNER, HIDDEN)
    gate = part("nki_silu_kernel", x=spec(tokens, INNER))
    found["three products, silu, gate"] = (
        every["nki_fused_expert_mlp_kernel", f"{rows}x{INNER}"], [up, up, gate, gate, down]
    )  # fmt: skip
    scores = part("nki_softmax_kernel", x=spec(HEADS * tokens, tokens))
    products = [product(tokens, HEAD, tokens), product(tokens, tokens, HEAD)]
    found["scores, softmax, values"] = (
        every["nki_flash_attention_kernel", f"1x{tokens}x({HEADS}+{KV_HEADS})x{HEAD}"],
        [scores, *products * HEADS],
    )
    found["experts, sum"] = (
        every["nki_moe_prefill_kernel", f"{rows}, {CHOSEN} of {EXPERTS} experts x{INNER}"],
        [mlp_case(tokens * CHOSEN // EXPERTS, False)] * EXPERTS
        + [every["nki_expert_aggregation_kernel", f"{tokens}x{CHOSEN}x{HIDDEN}"]],
    )
    return found


def part(kernel: str, **arguments: TensorSpec) -> Case:
    """A kernel timed only to be added up."""
    return Case(kernel, "", "", arguments, 1)


def product(tokens: int, size: int, columns: int) -> Case:
    """[tokens, size] x [size, columns]."""
    return projection("nki_output_projection_kernel", tokens, size, columns, False, {})


def fused_rows(target: str) -> list[dict[str, Any]]:
    """Each fused kernel beside the sum of its parts, in a graph (without launches). Times in us."""
    rows = []
    timed: dict[str, float] = {}
    for tokens in (1, *PREFILL):
        for name, (fused, parts) in parts_of_fused(tokens).items():
            total = 0.0
            for case in parts:
                key = repr((case.kernel, case.arguments, case.parameters))
                if key not in timed:
                    timed[key] = row(case, target)["in_graph_us"]
                total += timed[key]
            own = row(fused, target)["in_graph_us"]
            rows.append(
                {
                    "kernel": fused.kernel,
                    "shape": fused.shape,
                    "fuses": name,
                    "predicted_in_graph_us": own,
                    "predicted_parts_in_graph_us": round(total, 3),
                }
            )
    return rows


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
        fused = fused_rows(given.target)
        path = RESULTS / f"kernels_fused_{given.target}.json"
        path.write_text(json.dumps(fused, indent=1) + "\n")
    if given.json:
        print(json.dumps(rows))
        return
    print(table(rows, given.target))
    if not given.only:
        print(fused_table(fused, given.target))


if __name__ == "__main__":
    main()
