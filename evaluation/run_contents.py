"""What an MLflow run holds: tags, parameters, datasets, the note, and the artifacts' files."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kernels
from evaluation.estimates import Score
from evaluation.latency_metrics import slug
from evaluation.metrics import kernel_calls, worst
from evaluation.numbers import number, ratio, score_source
from evaluation.provenance import cpu_model, evaluation_fingerprint, git_commit
from evaluation.results import ConfigurationResults, result_files
from evaluation.summary import device_of, verdict_of
from model.configuration import Config, kernel_configuration_path
from model.fingerprint import fingerprint

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


def results_fingerprint(config: Config, found: ConfigurationResults, results: Path) -> str:
    """Of the result files' content, timings included: what is measured anew is a new run.

    The baseline's trace is among them: the score's base comes from it.
    """
    files = result_files(results, config.model, found.name)
    files["base of the score"] = result_files(results, config.model, config.latency.baseline)[
        "trace"
    ]
    logged = {stage: path for stage, path in files.items() if stage != "track" and path.exists()}
    evaluation = evaluation_fingerprint(config, results)
    return fingerprint(evaluation, sorted(logged), *logged.values())


def run_tags(
    config: Config, found: ConfigurationResults, results: Path, score: Score | None = None
) -> dict[str, str]:
    """The run's tags: what it is, where from, and the note that MLflow shows first."""
    verdict, _ = verdict_of(found)
    commit = git_commit()
    return {
        "evaluation": evaluation_fingerprint(config, results),
        "kernel_config": found.name,
        "fingerprint": results_fingerprint(config, found, results),
        "model": config.model,
        "device": device_of(config, found),
        "target": config.target,
        "verdict": verdict,
        "git_commit": commit.sha,
        "git_dirty": str(commit.dirty).lower(),
        "mlflow.source.name": "nki-assay",
        "mlflow.source.git.commit": commit.sha,
        "mlflow.note.content": describe(config, found, score),
        # Wall clock compares only on one kind of machine; see evaluation/regression.py.
        "cpu": cpu_model(),
        "writer": writer(),
    }


def writer() -> str:
    """This process, so that another can tell whether the run's writer is still alive."""
    return f"{platform.node()}:{os.getpid()}"


def writer_is_dead(tag: str) -> bool:
    """True if a run's writer was a process of this machine that is no more."""
    host, _, process = tag.rpartition(":")
    if host != platform.node() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def datasets(config: Config) -> list[DatasetInput]:
    """What the configuration was run on: prompts, texts and tasks, by content."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    sources = {
        "generation": config.generate.prompts,
        "logits": config.accuracy.texts,
        "tasks": config.accuracy.tasks,
    }
    found = []
    for context, source in sources.items():
        path = Path(source)
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        names = [file.relative_to(path.parent).as_posix() for file in files]
        dataset = Dataset(
            name=path.stem,
            # MLflow allows 36 characters.
            digest=fingerprint(names, *files)[:16],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(
                {"files": len(files), "bytes": sum(f.stat().st_size for f in files)}
            ),
        )
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return found


def dataset_of(metric: str, inputs: list[DatasetInput]) -> tuple[str, str] | None:
    """Name and digest of the data set that a metric was computed on, None for none.

    Args:
        metric: The metric's name, see evaluation/metrics.py.
        inputs: `datasets`, in its order.
    """
    generation, logits, tasks = (entry.dataset for entry in inputs)
    if metric.startswith("quality/task_"):
        chosen = tasks
    elif metric.startswith(("quality/", "quality_rounding/", "quality_matching/")):
        chosen = generation if metric == "quality/prompts_correct_share" else logits
    elif metric.startswith(("latency_measured", "throughput_measured")):
        chosen = generation
    else:
        return None
    return chosen.name, chosen.digest


def artifact_files(config: Config, found: ConfigurationResults, results: Path) -> dict[str, str]:
    """File -> folder of the run's artifacts: results, programs, traces, configuration."""
    files = result_files(results, config.model, found.name)
    kept = {
        str(path): f"results/{stage}"
        for stage, path in files.items()
        if stage != "track" and path.exists()
    }
    kept[str(kernel_configuration_path(found.name))] = "kernel_configuration"
    folders = {"programs": files["compile"].parent / "programs", "traces": files["trace"].parent}
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
            if path.is_file() and str(path) not in kept and not path.name.startswith("."):
                inside = path.parent.relative_to(folder).as_posix()
                kept[str(path)] = name if inside == "." else f"{name}/{inside}"
    return kept


def kernel_source_files(found: ConfigurationResults) -> list[Path]:
    """The sources of the configuration's kernels, as far as they are still there."""
    names = {
        name
        for entry in (found.manifest.kernels if found.manifest else [])
        for name in entry.sources
    }
    return [Path(name) for name in sorted(names) if Path(name).is_file()]


def parameters(config: Config, found: ConfigurationResults) -> dict[str, Any]:
    """What the run was made with, for MLflow's parameters.

    Every op has its `op.OP.kernel`, so that runs compare; `reference` is PyTorch.
    """
    generate, accuracy = config.generate, config.accuracy
    values: dict[str, Any] = {
        "model": config.model,
        "device": config.device,
        "target": config.target,
        "dtype": config.dtype,
        "buckets.context_encoding": ",".join(map(str, config.buckets.context_encoding)),
        "buckets.max_length": config.buckets.max_length,
        "generate.prompts": generate.prompts,
        "generate.max_new_tokens": generate.max_new_tokens,
        "generate.warmup_runs": generate.warmup_runs,
        "generate.measured_runs": generate.measured_runs,
        "accuracy.texts": accuracy.texts,
        "accuracy.sequences": accuracy.sequences,
        "accuracy.tasks": accuracy.tasks,
        "accuracy.documents": accuracy.documents,
    }
    for key, value in generate.sampling.model_dump().items():
        values[f"generate.sampling.{key}"] = value
    for op in kernels.OPS:
        values[f"op.{op}.kernel"] = "reference"
    for entry in found.manifest.kernels if found.manifest else []:
        values[f"op.{slug(entry.op)}.kernel"] = entry.kernel
        for key, value in entry.parameters.items():
            values[f"op.{slug(entry.op)}.{slug(key)}"] = value
    return values


def describe(config: Config, found: ConfigurationResults, score: Score | None = None) -> str:
    """What the run found, in two sentences of Markdown."""
    verdict, reasons = verdict_of(found)
    calls = {kernel: count for kernel, count in kernel_calls(found).items() if count}
    ran = ", ".join(f"{kernel} ({count:,} calls)" for kernel, count in calls.items())
    what = f"with {ran}" if ran else "with no NKI kernel"
    if verdict == "fail":
        first = f"**fail**: `{found.name}` {what} is refused: {'; '.join(reasons[:3])}".rstrip(".")
    else:
        first = f"**pass**: `{found.name}` {what} keeps to every tolerance"
        kl = worst(found, "bfloat16", "kl_per_token_mean")
        if kl is not None:
            limit = config.accuracy.tolerances.bfloat16_kl_per_token
            first += f" (KL divergence from HF in bf16 {kl:.2g} nats/token, limit {limit:g})"
    said = [_timed(found, compared=verdict == "pass")]
    if score is not None:
        said.append(f"the contest score is {number(score.total)} ({score_source(score)})")
    if found.trace is not None:
        said.append(f"{found.trace.nki_flops_ratio:.2%} of the MACs run in NKI (counted)")
    return f"{first}. {'; '.join(said)}."


def _timed(found: ConfigurationResults, *, compared: bool) -> str:
    """What the latency stage measured, and beside the baseline if the answers are right."""
    record = found.latency
    if record is None or record.measured is None:
        return "Nothing was timed" if record is None else "The timings are withheld"
    ttft, tpot = (number(record.measured.metrics[x].p50.value) for x in ("ttft_ms", "tpot_ms"))
    text = f"Median TTFT is {ttft} ms and TPOT {tpot} ms"
    pair = record.comparison()
    if compared and pair is not None:
        text += f", end to end {pair.verdict} beside {record.baseline}, {ratio(pair)}"
    caveat = " and says nothing about Trainium" if record.device == "simulator" else ""
    return f"{text}, which is wall clock measured on the {record.device}{caveat}"
