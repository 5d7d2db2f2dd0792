"""Reads what the stages left behind for one kernel configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.latency_records import LatencyRecord
from evaluation.records import AccuracyRecord, ErrorMapRecord, StageError, TrackedRun
from model.records import CompileManifest, GenerationRecord, Record, RecordError, TraceSummary

STAGES = (
    "download",
    "compile",
    "trace",
    "generate",
    "latency",
    "reference",
    "accuracy",
    "track_init",
    "track",
)
TRACKING = {"track_init", "track"}
"""The stages whose failure says nothing about the configuration."""

_NEEDS = {
    "compile": {"download", "compile"},
    "trace": {"download", "compile", "trace"},
    "generate": {"download", "compile", "generate"},
    "latency": {"download", "compile", "latency"},
    "accuracy": {"download", "compile", "reference", "accuracy"},
    "error_map": {"download", "compile", "reference", "accuracy"},
    "track": {
        *("download", "compile", "trace", "generate", "latency", "reference", "accuracy"),
        *TRACKING,
    },
}
"""Stage -> the stages that must have succeeded for its file to be of the present inputs."""


@dataclass(frozen=True)
class ConfigurationResults:
    """The result files of one kernel configuration; None where there is none."""

    name: str
    manifest: CompileManifest | None = None
    trace: TraceSummary | None = None
    generation: GenerationRecord | None = None
    latency: LatencyRecord | None = None
    accuracy: AccuracyRecord | None = None
    error_map: ErrorMapRecord | None = None
    tracked: TrackedRun | None = None
    errors: tuple[StageError, ...] = ()
    """What failed, in the stages' order; the report's own failure is not among them."""


def result_files(results: Path, model: str, name: str) -> dict[str, Path]:
    """Stage -> the file it writes for a configuration, whether it exists or not.

    `error_map` is the accuracy stage's second file.
    """
    return {
        "compile": results / "compiled" / model / name / "manifest.json",
        "trace": results / "traces" / model / name / "summary.json",
        "generate": results / "generated" / model / name / "generation.json",
        "latency": results / "latency" / model / name / "latency.json",
        "accuracy": results / "accuracy" / model / name / "accuracy.json",
        "error_map": results / "accuracy" / model / name / "error_map.json",
        "track": results / "tracked" / model / f"{name}.json",
    }


def error_folder(results: Path, model: str, name: str) -> Path:
    """The folder in which a configuration's stages leave their `StageError`."""
    return results / "errors" / model / name


def read_results(results: Path, model: str, name: str) -> ConfigurationResults:
    """Read one configuration's results.

    A stage that failed leaves its error, and perhaps the files of an earlier, successful run:
    its own and those of the stages after it. Those are stale, and are not read.

    Raises:
        RecordError: naming the file that is truncated, of another schema version, or about
            another configuration than its folder says.
    """
    errors = _read_errors(error_folder(results, model, name))
    failed = {error.stage for error in errors}
    files = {
        stage: path
        for stage, path in result_files(results, model, name).items()
        if path.exists() and not failed & _NEEDS[stage]
    }
    found = ConfigurationResults(
        name=name,
        manifest=CompileManifest.read(files["compile"]) if "compile" in files else None,
        trace=TraceSummary.read(files["trace"]) if "trace" in files else None,
        generation=GenerationRecord.read(files["generate"]) if "generate" in files else None,
        latency=LatencyRecord.read(files["latency"]) if "latency" in files else None,
        accuracy=AccuracyRecord.read(files["accuracy"]) if "accuracy" in files else None,
        error_map=ErrorMapRecord.read(files["error_map"]) if "error_map" in files else None,
        tracked=TrackedRun.read(files["track"]) if "track" in files else None,
        errors=errors,
    )
    records: dict[str, Record | None] = {
        "compile": found.manifest,
        "trace": found.trace,
        "generate": found.generation,
        "latency": found.latency,
        "accuracy": found.accuracy,
        "error_map": found.error_map,
        "track": found.tracked,
    }
    for stage, record in records.items():
        written_for = getattr(record, "configuration", name)
        if written_for != name:
            raise RecordError(
                f"{files[stage]}: is about configuration {written_for!r}, not {name!r}. "
                "Delete the file and run snakemake again; it rebuilds what is missing."
            )
    return found


def read_all(results: Path, model: str, names: Sequence[str]) -> list[ConfigurationResults]:
    """Read several configurations; one that cannot be read becomes one with that error."""
    found = []
    for name in names:
        try:
            found.append(read_results(results, model, name))
        except RecordError as error:
            unreadable = StageError(
                configuration=name, stage="results", message=str(error), details=[]
            )
            found.append(ConfigurationResults(name=name, errors=(unreadable,)))
    return found


def _read_errors(folder: Path) -> tuple[StageError, ...]:
    def order(error: StageError) -> int:
        return STAGES.index(error.stage) if error.stage in STAGES else len(STAGES)

    if not folder.is_dir():
        return ()
    errors = [StageError.read(path) for path in folder.glob("*.json")]
    return tuple(sorted((e for e in errors if e.stage != "report"), key=order))
