"""Sample results of an evaluation: what the stages would have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sample_latency import latency

from evaluation.records import (
    AccuracyRecord,
    CutPoint,
    ErrorMapRecord,
    Gate,
    LogitComparison,
    LogitMatch,
    OpCheck,
    OpError,
    RoundingComparison,
    StageError,
    TaskResult,
    TopKError,
)
from evaluation.results import error_folder, result_files
from model.configuration import Config, parse_config
from model.records import (
    CheckpointRecord,
    CompileManifest,
    GenerationRecord,
    Graph,
    GraphPrediction,
    GraphTrace,
    KernelEntry,
    LatencySummary,
    OpTrace,
    ProgramEntry,
    PromptResult,
    RunTiming,
    TargetPrediction,
    TraceSummary,
)

GRAPHS: tuple[Graph, Graph] = ("context_encoding", "token_generation")
KERNELS = {"rmsnorm": "nki_rmsnorm_kernel", "qk_norm": "nki_qk_rmsnorm_kernel"}
OPS_OF = {"baseline": [], "rmsnorm": ["rmsnorm"], "norms": ["rmsnorm", "qk_norm"]}
PREDICTED = {"baseline": 1.25, "rmsnorm": 1.1}
"""Scale of a configuration's predictions; 1 for others. What was measured is SCALES in
sample_latency.py: each configuration has figures of its own."""


def config(**changes: Any) -> Config:
    """A configuration of the evaluation, valid without any file."""
    return parse_config(
        {
            "model": "tiny",
            "models": {"tiny": {"source": "checkpoint"}},
            "configurations": list(OPS_OF),
            "buckets": {"context_encoding": [64], "max_length": 96},
            "generate": {"prompts": "prompts.yaml"},
            "accuracy": {"texts": "texts.jsonl", "tasks": "tasks"},
            **changes,
        }
    )


def project(root: Path) -> Path:
    """Make the inputs that all configurations share in `root`; the results folder."""
    (root / "tasks").mkdir(parents=True)
    (root / "tasks/arithmetic.yaml").write_text("task: arithmetic\n")
    (root / "prompts.yaml").write_text("[]\n")
    (root / "texts.jsonl").write_text("{}\n")
    kernel_configurations = root / "config/kernels"
    kernel_configurations.mkdir(parents=True)
    for name in OPS_OF:
        (kernel_configurations / f"{name}.yaml").write_text(f"description: {name}\nops: {{}}\n")
    results = root / "results"
    CheckpointRecord(
        model="tiny", directory="checkpoint", source="checkpoint", files={}, fingerprint="c" * 64
    ).write(results / "models/tiny/checkpoint.json")
    return results


def manifest(name: str, ops: list[str]) -> CompileManifest:
    return CompileManifest(
        model="tiny",
        configuration=name,
        device="simulator",
        target="trn2",
        dtype="bfloat16",
        checkpoint_fingerprint="c" * 64,
        kernels=[
            KernelEntry(
                op=op,
                kernel=KERNELS.get(op, op),
                parameters={"eps": 1e-6},
                sources={f"kernels/{op}.py": "0" * 64},
            )
            for op in ops
        ],
        programs=[
            ProgramEntry(
                op=op,
                kernel=KERNELS.get(op, op),
                graph=graph,
                bucket="1x64",
                dtype="bfloat16",
                arguments={"x": "bfloat16[64, 128]"},
                fingerprint="1" * 64,
                calls=9,
                instructions=12,
                instructions_by_engine={"vector": 12},
                hbm_read_bytes=16384,
                hbm_write_bytes=16384,
                macs=100,
                sbuf_bytes_per_partition=1024,
                psum_bytes_per_partition=0,
            )
            for op in ops
            for graph in GRAPHS
        ],
        fingerprint="2" * 64,
        compile_seconds_measured=1.5,
    )


def trace(name: str, ops: list[str], slower: float = 1.0) -> TraceSummary:
    """Counts, and predictions for two targets; `slower` scales every prediction."""
    targets = {"trn2": slower, "trn3": 0.7 * slower}
    return TraceSummary(
        model="tiny",
        configuration=name,
        target="trn2",
        tp_degree=4,
        lnc=2,
        dtype="bfloat16",
        context=640,
        prefill_tokens=64,
        decode_steps=16,
        predicted_ttft_ms=8.0 * slower,
        predicted_tpot_ms=4.0 * slower,
        graphs=[
            GraphTrace(
                graph=graph,
                bucket="1x64",
                macs_nki=100 * len(ops),
                macs_total=10_000,
                macs_needed_nki=90 * len(ops),
                macs_needed_total=9_000,
                nki_instructions=12 * len(ops),
                nki_kernel_calls=9 * len(ops),
                nki_hbm_bytes=32768 * len(ops),
            )
            for graph in GRAPHS
        ],
        nki_flops_ratio=0.01 * len(ops),
        nki_flops_ratio_weighted=0.012 * len(ops),
        predictions={target: prediction(ops, scale) for target, scale in targets.items()},
        timeline="decode_step.json.gz",
        fingerprint="3" * 64,
    )


def prediction(ops: list[str], scale: float) -> TargetPrediction:
    """The ops of `OPS_OF`, an experts op that is the reference's, and a collective."""

    def op(name: str, graph: Graph, us: float) -> OpTrace:
        collective = name == "all_reduce"
        kernel = "collective" if collective else KERNELS.get(name) if name in ops else None
        return OpTrace(
            op=name,
            kernel=kernel or "reference",
            nki=name in ops,
            graph=graph,
            bucket="1x64" if graph == "context_encoding" else "1x1",
            shapes="x=bfloat16[1,128]",
            calls=9,
            macs=0 if collective else 1000,
            macs_needed=0 if collective else 900,
            hbm_bytes=4096,
            hbm_bytes_needed=2048,
            predicted_us=us * scale,
            roofline_us=us * scale / 2,
            bound_by="link" if collective else "memory",
            slowed_by="DMA",
            basis="formula" if collective else "timing model" if name in ops else "coarse estimate",
        )

    times = {"rmsnorm": 400.0, "qk_norm": 300.0, "experts_decode": 3000.0, "all_reduce": 300.0}
    return TargetPrediction(
        predicted_ttft_ms=8.0 * scale,
        predicted_tpot_ms=4.0 * scale,
        graphs=[
            GraphPrediction(
                graph=graph,
                bucket="1x64" if graph == "context_encoding" else "1x1",
                predicted_ms=total * scale,
                predicted_nki_ms=0.35 * len(ops) * scale,
                predicted_reference_ms=(total - 0.3 - 0.35 * len(ops)) * scale,
                predicted_collective_ms=0.3 * scale,
                roofline_ms=total / 2 * scale,
                hbm_bytes=10_000,
            )
            for graph, total in zip(GRAPHS, (8.0, 4.0), strict=True)
        ],
        ops=[op(name, graph, us) for graph in GRAPHS for name, us in times.items()],
    )


def kernel_calls(ops: list[str]) -> dict[str, dict[Graph, int]]:
    return {KERNELS.get(op, op): {"context_encoding": 9, "token_generation": 135} for op in ops}


def generation(name: str, ops: list[str], slower: float = 1.0) -> GenerationRecord:
    """Three prompts of three runs each; `slower` scales every latency."""

    def run(ttft: float, itl: float, jitter: float) -> RunTiming:
        step = itl * slower * jitter
        first = ttft * slower * jitter
        return RunTiming(
            ttft_ms=first, itl_ms=[step, step * 1.1, step], end_to_end_ms=first + 3.1 * step
        )

    prompts = [
        PromptResult(
            name=length,
            task="arithmetic",
            length=length,
            prompt_tokens=tokens,
            mode="greedy",
            seed=None,
            output_tokens=[1, 2, 3, 4],
            output_text="four",
            expected="four",
            correct=True,
            runs=[run(ttft, 5.0, jitter) for jitter in (0.97, 1.0, 1.04)],
        )
        for length, tokens, ttft in (("short", 12, 20.0), ("medium", 30, 31.0), ("long", 60, 42.0))
    ]
    return GenerationRecord(
        model="tiny",
        configuration=name,
        device="simulator",
        dtype="bfloat16",
        warmup_runs=1,
        prompts=prompts,
        measured=LatencySummary(
            ttft_ms_p50=31.0 * slower,
            ttft_ms_p99=44.0 * slower,
            tpot_ms_p50=5.17 * slower,
            tpot_ms_p99=5.4 * slower,
            end_to_end_ms_p50=46.5 * slower,
            end_to_end_ms_p99=60.0 * slower,
            output_tokens_per_s=86.4 / slower,
            runs=9,
        ),
        kernel_calls=kernel_calls(ops),
        fingerprint="4" * 64,
    )


def accuracy(name: str, ops: list[str], kl: float = 1.2e-5, passed: bool = True) -> AccuracyRecord:
    def logits(comparison: str, graph: Graph, scale: float) -> LogitComparison:
        return LogitComparison(
            comparison=comparison,
            graph=graph,
            tokens=512,
            kl_per_token_mean=kl * scale,
            kl_per_token_median=kl * scale * 0.2,
            kl_per_token_p90=kl * scale * 2,
            kl_per_token_max=kl * scale * 20,
            top1_agreement=0.992,
            max_abs_error=0.11 * scale,
            relative_l2_error=3.1e-3 * scale,
            first_diverging_token=17,
            finite=True,
        )

    return AccuracyRecord(
        model="tiny",
        configuration=name,
        device="simulator",
        logits=[
            logits(comparison, graph, scale)
            for comparison, scale in (
                ("bfloat16 vs HF bfloat16", 1.0),
                ("float32 vs HF float32", 1e-3),
                ("bfloat16 vs HF float32", 1.1),
                ("HF bfloat16 vs HF float32", 1.0),
            )
            for graph in GRAPHS
        ],
        rounding=[
            RoundingComparison(
                graph=graph,
                tokens=512,
                kl_median_ratio=1.02,
                kl_p90_ratio=0.97,
                error_median_ratio=1.01,
                further_share=0.51,
                top1_agreement_difference=-0.002,
            )
            for graph in GRAPHS
        ],
        matches=[match("float32", True), match("bfloat16", False)],
        ops=[
            OpCheck(
                op=op,
                kernel=KERNELS.get(op, op),
                dtype="bfloat16",
                calls={"context_encoding": 9, "token_generation": 135},
                max_relative_error=3.9e-3,
                tolerance=1e-2,
                passed=True,
            )
            for op in ops
        ],
        tasks=[
            TaskResult(
                task="nano_arithmetic",
                documents=50,
                metrics={"acc": 0.84, "acc_stderr": 0.05},
                chance=0.25,
            ),
            TaskResult(
                task="nano_text", documents=50, metrics={"word_perplexity": 4.2}, chance=None
            ),
        ],
        gates=[Gate(name="bfloat16 KL per token", value=kl, limit="<= 0.0003", passed=passed)],
        verdict="pass" if passed else "fail",
        reasons=[] if passed else [f"bfloat16 KL per token is {kl:g}, the limit is 0.0003"],
        kernel_calls=kernel_calls(ops),
        fingerprint="5" * 64,
    )


def match(dtype: str, passed: bool) -> LogitMatch:
    """Logit matching of a data type: within tolerance, or with one divergence that is not."""
    return LogitMatch(
        comparison=f"{dtype} vs HF {dtype}",
        sequences=4,
        tokens=64,
        top_k=[
            TopKError(
                k=k,
                relative_error=1e-6 if passed else 0.02,
                absolute_tolerance=1e-5,
                relative_tolerance=tolerance,
                sequence=2,
                token=11,
                passed=passed or tolerance > 0.02,
            )
            for k, tolerance in ((5, 0.01), (50, 0.02), (None, 0.05))
        ],
        divergences=0 if passed else 1,
        first_divergence=None if passed else 9,
        max_divergence_difference=0.0 if passed else 0.03,
        divergence_tolerance=0.001,
        restarts=0 if passed else 1,
        max_abs_shift=1e-6 if passed else 0.01,
        finite=True,
        passed=passed,
    )


def error_map(name: str, ops: list[str]) -> ErrorMapRecord:
    """Two layers of two sites each; `ops` are filled, the first of them moves most."""
    dtypes = ["float32", "bfloat16"]
    sites = [(0, "rmsnorm"), (0, "qk_norm"), (1, "rmsnorm"), (1, "qk_norm"), (None, "lm_head")]
    scales = {"float32": 1e-6, "bfloat16": 4e-3}

    def error(op: str, kernel: str, dtype: str, graph: Graph, share: float | None) -> OpError:
        size = scales[dtype] * (1.0 if share is None else share)
        return OpError(
            op=op,
            kernel=kernel,
            dtype=dtype,
            graph=graph,
            tokens=48,
            calls=9 if kernel else 0,
            relative_l2_error=size,
            kl_per_token_mean=size**2,
            kl_per_token_median=size**2 / 2,
            top1_agreement=1.0,
            max_abs_error=size * 10,
            share=share,
        )

    def point(dtype: str, graph: Graph, order: int, layer: int | None, op: str) -> CutPoint:
        return CutPoint(
            dtype=dtype,
            graph=graph,
            order=order,
            layer=layer,
            op=op,
            filled_by=KERNELS.get(op) if op in ops else None,
            bit_exact=not ops,
            relative_error=scales[dtype] * (order + 1) if ops else 0.0,
            relative_l2_error=scales[dtype] * (order + 1) / 3 if ops else 0.0,
            local_relative_error=scales[dtype] if op in ops else None,
        )

    shares = [0.75, 0.25][: len(ops)] if len(ops) > 1 else [1.0] * len(ops)
    return ErrorMapRecord(
        model="tiny",
        configuration=name,
        device="simulator",
        dtypes=dtypes,
        sequences=2,
        context_tokens=20,
        decoded_tokens=4,
        rounding_relative_l2_error={"context_encoding": 4e-3, "token_generation": 5e-3},
        budget=[
            row
            for dtype in dtypes
            for graph in GRAPHS
            for row in (
                *(
                    error(op, KERNELS[op], dtype, graph, share)
                    for op, share in zip(ops, shares, strict=False)
                ),
                *([error("all", "", dtype, graph, None)] if ops else []),
            )
        ],
        cut_points=[
            point(dtype, graph, order, layer, op)
            for dtype in dtypes
            for graph in GRAPHS
            for order, (layer, op) in enumerate(sites)
        ],
        fingerprint="6" * 64,
    )


def write(results: Path, name: str, *, slower: float = 1.0, **accuracy_changes: Any) -> None:
    """Write the result files of a configuration that went through every stage but track."""
    ops = list(OPS_OF.get(name, ["rmsnorm"]))
    files = result_files(results, "tiny", name)
    manifest(name, ops).write(files["compile"])
    trace(name, ops, PREDICTED.get(name, 1.0)).write(files["trace"])
    generation(name, ops, slower).write(files["generate"])
    latency(name).write(files["latency"])
    accuracy(name, ops, **accuracy_changes).write(files["accuracy"])
    error_map(name, ops).write(files["error_map"])
    programs = files["compile"].parent / "programs"
    programs.mkdir()
    for op in ops:
        (programs / f"{op}.txt").write_text("vector.tensor_tensor ...\n")


def write_kernel_error(results: Path, name: str, **changes: Any) -> StageError:
    """Write the error of a configuration whose kernel failed its checks in compile."""
    detail = {
        "rule": "sbuf-capacity",
        "message": "the tile does not fit",
        "mend": "Split the free dimension.",
        "file": "kernels/rmsnorm.py",
        "line": 42,
        "instruction": "nl.ndarray",
        "operand": "x_tile",
        "limit": "192 KiB",
        "value": "256 KiB",
        **changes,
    }
    error = StageError(
        configuration=name, stage="compile", message="1 rule is broken", details=[detail]
    )
    error.write(error_folder(results, "tiny", name) / "compile.json")
    return error
