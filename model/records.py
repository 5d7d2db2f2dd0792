"""The files that the model's stages write: one pydantic model per file.

Every file is JSON, carries `schema_version` and the `fingerprint` of its inputs, and is
written whole or not at all (`write_record`). *Measured* values are clock readings on the
device named in `device`; the default device is `simulator`, i.e. this machine's CPU.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from model.fingerprint import fingerprint

Graph = Literal["context_encoding", "token_generation"]
Device = Literal["simulator", "neuron"]


class RecordError(Exception):
    """A result file is missing, truncated, or of another schema."""


class Part(BaseModel):
    """A piece of a record: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Part):
    """A whole result file."""

    schema_version: Literal[1] = 1

    def write(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and validate a record.

        Raises:
            RecordError: the file is missing, is not JSON, or does not fit the schema.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecordError(f"{path}: no such result file") from None
        except (ValidationError, UnicodeDecodeError) as error:
            raise RecordError(
                f"{path}: not a {cls.__name__} of schema version 1: {error}\n"
                "Delete the file and run snakemake again; it rebuilds what is missing."
            ) from None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a JSON value."""
    write_text(path, json.dumps(value, indent=2) + "\n")


# --- download ---------------------------------------------------------------------------


class CheckpointRecord(Record):
    """results/models/MODEL/checkpoint.json: a checkpoint whose every file was verified."""

    model: str
    directory: str
    """Where the verified files are; relative to the project's root where possible."""
    source: str
    files: dict[str, str]
    """File name -> sha256."""
    fingerprint: str


# --- compile ----------------------------------------------------------------------------


class KernelEntry(Part):
    """One op of the configuration and the kernel that fills it."""

    op: str
    kernel: str
    parameters: dict[str, Any]
    sources: dict[str, str]
    """Source file (kernel and its helpers) -> sha256."""


class ProgramEntry(Part):
    """One kernel specialised at one shape of one graph."""

    op: str
    kernel: str
    graph: Graph
    bucket: str
    """batch x tokens, e.g. `1x64`."""
    dtype: str
    arguments: dict[str, str]
    """Argument -> `dtype[shape]`, or the value of a compile-time parameter."""
    fingerprint: str
    calls: int
    """How often one run of the graph calls it."""
    instructions: int
    instructions_by_engine: dict[str, int]
    hbm_read_bytes: int
    hbm_write_bytes: int
    macs: int
    sbuf_bytes_per_partition: int
    psum_bytes_per_partition: int


class GraphEntry(Part):
    """One static graph as `torch.export` wrote it."""

    graph: Graph
    bucket: str
    """batch x tokens, e.g. `1x64`."""
    cache_length: int
    file: str
    """Relative to the manifest."""
    sha256: str
    """Of the file; nothing else is loaded."""
    op_calls: dict[str, int]
    """Op -> how often a run of the graph calls it, by a kernel or not; as `model.op_calls`."""
    kernel_calls: dict[str, int]
    """Kernel -> the same."""


class CompileManifest(Record):
    """results/compiled/MODEL/CONFIGURATION/manifest.json"""

    model: str
    configuration: str
    device: Device
    target: str
    dtype: str
    checkpoint_fingerprint: str
    kernels: list[KernelEntry]
    programs: list[ProgramEntry]
    graphs: list[GraphEntry] = []
    """Those that generation runs; the programs are also specialised at the accuracy stage's
    batch."""
    fingerprint: str
    """Of the kernels' programs, the checkpoint and the environment."""
    compile_seconds_measured: float

    def own_fingerprint(self) -> str:
        """What `fingerprint` must be, from the rest of the manifest (a simulator's)."""
        return fingerprint(
            [kernel.model_dump() for kernel in self.kernels],
            [entry.model_dump() for entry in self.programs],
            [[g.graph, g.bucket, g.cache_length, g.op_calls] for g in self.graphs],
            [self.checkpoint_fingerprint, self.device, self.target, self.dtype],
        )


# --- trace ------------------------------------------------------------------------------


class GraphTrace(Part):
    """One run of one graph at one bucket: what is counted, the same for every target."""

    graph: Graph
    bucket: str
    """batch x tokens, e.g. `1x64`."""
    macs_nki: int
    """Done by kernels' matrix instructions, padding included."""
    macs_total: int
    """`macs_nki` and those of all other ops."""
    macs_needed_nki: int
    """Of ops that kernels fill, those that the mathematics needs."""
    macs_needed_total: int
    nki_instructions: int
    nki_kernel_calls: int
    nki_hbm_bytes: int
    """Read and written by the NKI kernels."""


class OpTrace(Part):
    """One op at one shape in one run of one graph, all its calls together, on one target."""

    op: str
    """An op of `kernels.OPS`, or a collective (`all_reduce`, `all_gather`)."""
    kernel: str
    """The kernel's name, `reference`, or `collective`."""
    nki: bool
    graph: Graph
    bucket: str
    shapes: str
    """The op's arguments, e.g. `x=bfloat16[1,2048]`."""
    calls: int
    macs: int
    """Done: in a kernel those of its matmul instructions, else those of the op's products."""
    macs_needed: int
    """What the op's mathematics needs; padding and masked work are not in it."""
    hbm_bytes: int
    """Moved: in a kernel as its DMAs do, else by the estimate of model/estimate.py."""
    hbm_bytes_needed: int
    """Every argument read once and every result written once."""
    predicted_us: float
    roofline_us: float
    """The least that `macs_needed` and `hbm_bytes_needed` (a collective: its wire) allow."""
    bound_by: Literal["compute", "memory", "link"]
    """What sets `roofline_us`."""
    slowed_by: str
    """What takes most of `predicted_us`."""
    basis: Literal["timing model", "coarse estimate", "formula"]
    """A kernel's Program was played; a reference op was estimated (coarse, see docs/trace.md);
    a collective comes from a formula by size."""


class GraphPrediction(Part):
    """One run of one graph at one bucket on one target; its parts add up."""

    graph: Graph
    bucket: str
    predicted_ms: float
    predicted_nki_ms: float
    predicted_reference_ms: float
    """Coarse, see `OpTrace.basis`."""
    predicted_collective_ms: float
    roofline_ms: float
    """The ops' rooflines, added up."""
    hbm_bytes: int
    """Moved, per rank."""


class TargetPrediction(Part):
    """What is predicted for one target. Nothing here was measured on a device."""

    predicted_ttft_ms: float
    predicted_tpot_ms: float
    graphs: list[GraphPrediction]
    ops: list[OpTrace]


class TraceSummary(Record):
    """results/traces/MODEL/CONFIGURATION/summary.json; counted and predicted, never measured.

    The device's time only: host, tokenizer and sampling are not in it.
    """

    model: str
    configuration: str
    target: str
    """The target of `predicted_ttft_ms` and `predicted_tpot_ms`; `predictions` has all."""
    tp_degree: int
    lnc: int
    """Physical cores of a logical one."""
    dtype: str
    context: int
    """Positions of the KV cache that a decode step attends to, in tokens."""
    prefill_tokens: int
    """The context-encoding bucket of `predicted_ttft_ms`."""
    decode_steps: int
    """Token-generation runs per context-encoding run in `nki_flops_ratio_weighted`."""
    predicted_ttft_ms: float
    """On `target`: context encoding of `prefill_tokens`, head included."""
    predicted_tpot_ms: float
    """On `target`: one decode step at `context`, head included."""
    graphs: list[GraphTrace]
    nki_flops_ratio: float
    """`macs_nki` / `macs_total`, each summed over both graphs: the contest's formula. Context
    encoding counts at its smallest bucket."""
    nki_flops_ratio_weighted: float
    """`macs_needed_nki` / `macs_needed_total` of one run of context encoding, at its smallest
    bucket, and `decode_steps` runs of token generation."""
    predictions: dict[str, TargetPrediction]
    """Target -> predictions; ops filled by a kernel, by references, and collectives."""
    timeline: str
    """Perfetto trace of one whole decode step on `target`, beside this file."""
    fingerprint: str


# --- generate ---------------------------------------------------------------------------


class RunTiming(Part):
    """One measured generation of one prompt, wall clock on `device`."""

    ttft_ms: float
    itl_ms: list[float]
    """Inter-token latencies, one per token after the first."""
    end_to_end_ms: float


class PromptResult(Part):
    """One prompt: its output, and the timings of the measured repeats (warm-up excluded)."""

    name: str
    task: str | None
    length: Literal["short", "medium", "long"]
    prompt_tokens: int
    mode: Literal["greedy", "sampling"]
    seed: int | None
    output_tokens: list[int]
    output_text: str
    expected: str | None
    correct: bool | None
    runs: list[RunTiming]


class LatencySummary(Part):
    """Over all measured runs of all prompts."""

    ttft_ms_p50: float
    ttft_ms_p99: float
    tpot_ms_p50: float
    tpot_ms_p99: float
    end_to_end_ms_p50: float
    end_to_end_ms_p99: float
    output_tokens_per_s: float
    """Output tokens of all runs / their summed end-to-end time."""
    runs: int


class GenerationRecord(Record):
    """results/generated/MODEL/CONFIGURATION/generation.json"""

    model: str
    configuration: str
    device: Device
    dtype: str
    warmup_runs: int
    prompts: list[PromptResult]
    measured: LatencySummary
    kernel_calls: dict[str, dict[Graph, int]]
    """Kernel -> graph -> calls during this stage."""
    fingerprint: str
