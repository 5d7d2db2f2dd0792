"""The download stage: every file of a checkpoint is verified before anything uses it.

A checkpoint is a local directory with a manifest, or a repository of the Hugging Face hub at a
pinned commit. Only files that hold no code are taken: safetensors, JSON, tokenizer text. The
record is written last, so that its presence means that the files were whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError

from model.configuration import Config
from model.fingerprint import file_sha256, fingerprint
from model.records import CheckpointRecord, Part

ARCHITECTURE = "Qwen3MoeForCausalLM"
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model")
"""What may shape the model's output; anything else (a README, a licence) is no part of it."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""Weights whose loading can run any code."""
MANIFEST = "manifest.json"
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


class DownloadError(Exception):
    """A checkpoint is not what it should be."""

    def __init__(self, where: object, what: str, mend: str) -> None:
        """Say in one message what is wrong, where, and how to mend it."""
        super().__init__(f"{where}: {what}\n{mend}")


@dataclass(frozen=True)
class Expected:
    """What a file must be."""

    digest: str
    """sha256 in hex, or git's blob id (sha1) where the hub knows nothing else."""
    bytes: int
    git: bool = False


class ManifestFile(Part):
    """One file of a manifest."""

    sha256: str
    bytes: int


class Manifest(Part):
    """manifest.json: every file of a checkpoint, by name."""

    files: dict[str, ManifestFile]
    format: Literal[1]


def download(config: Config, output: Path) -> CheckpointRecord:
    """Fetch (if need be) and verify the checkpoint of `config.model`; write its record.

    Args:
        config: the validated configuration; relative paths in it are relative to the working
            directory, the project's root.
        output: the record, `results/models/MODEL/checkpoint.json`. Files from the hub go
            to `files` beside it; an interrupted download goes on from there.

    Raises:
        DownloadError: a file is missing, altered, unknown, unsafe, or cannot be had; no
            record is left then.
    """
    source = config.models[config.model]
    manifest = None if source.manifest is None else _read_manifest(Path(source.manifest))
    try:
        output.unlink(missing_ok=True)
        if source.source.startswith("hf://"):
            folder = output.parent / "files"
            expected = _fetch(source.source, manifest, folder)
        else:
            folder = Path(source.source)
            expected = _local(folder, manifest)
        _check_config(folder)
        files = {name: file_sha256(folder / name) for name in sorted(expected)}
        record = CheckpointRecord(
            model=config.model,
            directory=_relative(folder),
            source=source.source,
            files=files,
            fingerprint=fingerprint({name: files[name] for name in files if _shapes(name)}),
        )
        record.write(output)
    except OSError as error:
        raise DownloadError(
            error.filename or output, str(error), "Check permissions and free disk space."
        ) from error
    return record


# --- what is expected -------------------------------------------------------------------


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)


def _shapes(name: str) -> bool:
    """Whether a file takes part in what the model computes."""
    return name != MANIFEST and _matches(name, MODEL_FILES)


def _read_manifest(path: Path) -> dict[str, Expected]:
    mend = "Set `manifest` of the model to the manifest.json that was made with the checkpoint."
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DownloadError(path, "no such manifest", mend) from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DownloadError(path, f"not a manifest of format 1: {error}", mend) from None
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DownloadError(path, f"{name!r} points out of the checkpoint's folder", mend)
    _refuse_pickles(path, manifest.files)
    if not any(fnmatch(name, "*.safetensors") for name in manifest.files):
        raise DownloadError(path, "names no .safetensors file, so no weights", mend)
    if "config.json" not in manifest.files:
        raise DownloadError(path, "does not name config.json", mend)
    return {name: Expected(file.sha256, file.bytes) for name, file in manifest.files.items()}


def _refuse_pickles(where: object, names: Iterable[str]) -> None:
    pickles = sorted(name for name in names if _matches(name, PICKLES))
    if pickles:
        raise DownloadError(
            where,
            f"pickled weights are refused, loading them can run any code: {', '.join(pickles)}",
            "Convert them to safetensors, and remove them.",
        )


# --- verifying --------------------------------------------------------------------------


def _git_blob(path: Path) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(f"blob {path.stat().st_size}\0".encode())
    digest.update(path.read_bytes())
    return digest.hexdigest()


def _fault(path: Path, expected: Expected) -> str | None:
    """What is wrong with a file, in one line; None if it is as expected."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != expected.bytes:
        return f"{path.name} has {size} bytes, expected {expected.bytes}"
    found = _git_blob(path) if expected.git else file_sha256(path)
    if found != expected.digest:
        kind = "git blob id" if expected.git else "sha256"
        return f"{path.name} was altered: {kind} {found}, expected {expected.digest} ({size} bytes)"
    return None


def _faults(folder: Path, expected: dict[str, Expected]) -> dict[str, str]:
    """File -> what is wrong with it."""
    found = ((name, _fault(folder / name, file)) for name, file in expected.items())
    return {name: fault for name, fault in found if fault is not None}


def _unknown(folder: Path, expected: dict[str, Expected]) -> list[str]:
    """Files of the folder that shape the model and are not expected; hidden ones do not count."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    visible = (name for name in names if not any(part.startswith(".") for part in name.parts))
    return [str(name) for name in visible if _shapes(str(name)) and str(name) not in expected]


def _check_shards(folder: Path, expected: dict[str, Expected]) -> None:
    """Every file that the index of sharded weights names is there."""
    index = "model.safetensors.index.json"
    if index not in expected:
        return
    mend = "Get the checkpoint again."
    weights = _json(folder / index, mend).get("weight_map")
    if not isinstance(weights, dict):
        raise DownloadError(folder / index, "has no weight_map", mend)
    missing = sorted({str(name) for name in weights.values()} - expected.keys())
    if missing:
        raise DownloadError(folder, f"{index} names missing files: {', '.join(missing)}", mend)


def _json(path: Path, mend: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DownloadError(path, f"not valid JSON: {error}", mend) from None
    if not isinstance(value, dict):
        raise DownloadError(path, f"must be a JSON object, found {type(value).__name__}", mend)
    return value


def _check_config(folder: Path) -> None:
    mend = f"Choose a checkpoint whose config.json says architectures: [{ARCHITECTURE!r}]."
    path = folder / "config.json"
    if not path.is_file():
        raise DownloadError(path, "missing", mend)
    found = _json(path, mend).get("architectures")
    if found != [ARCHITECTURE]:
        raise DownloadError(path, f"architectures is {found!r}, not a Qwen3-MoE", mend)


def _relative(folder: Path) -> str:
    try:
        return str(folder.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(folder.resolve())


# --- the two sources --------------------------------------------------------------------


def _local(folder: Path, manifest: dict[str, Expected] | None) -> dict[str, Expected]:
    """Verify a directory against its manifest."""
    if not folder.is_dir():
        raise DownloadError(
            folder, "no such directory", "Mend `source` of the model in the configuration."
        )
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    _refuse_pickles(folder, names)
    if manifest is None:
        raise DownloadError(
            folder,
            "a directory needs a manifest to be verified against",
            "Set `manifest` of the model in the configuration.",
        )
    faults = list(_faults(folder, manifest).values())
    faults += [f"{name} is not in the manifest" for name in _unknown(folder, manifest)]
    if faults:
        raise DownloadError(
            folder,
            "; ".join(faults),
            "Restore the checkpoint, or make a new manifest if the change was meant.",
        )
    _check_shards(folder, manifest)
    return manifest


def _fetch(source: str, manifest: dict[str, Expected] | None, folder: Path) -> dict[str, Expected]:
    """Bring the model files of a pinned hub revision into `folder` and verify them."""
    match = _HUB.fullmatch(source)
    if match is None:
        raise DownloadError(
            source,
            "not a pinned hub source",
            "Write hf://OWNER/NAME@REVISION with the full commit hash, 40 hex digits: "
            "a branch or a tag can change under you.",
        )
    repository, revision = match.groups()
    if manifest is not None:
        expected = {name: file for name, file in manifest.items() if _shapes(name)}
        if not _faults(folder, expected) and not _unknown(folder, expected):
            return expected  # whole already: no network needed
    try:
        if manifest is None:
            expected = _hub_files(source, repository, revision)
        for stale in _unknown(folder, expected):
            (folder / stale).unlink()
        _snapshot(repository, revision, list(expected), folder)
    except (OSError, ValueError) as error:
        raise DownloadError(
            source,
            f"the hub could not give it: {type(error).__name__}: {error}",
            "Check the name and revision, the network and HF_ENDPOINT, and HF_TOKEN if the "
            "repository is private or gated. Run again: a download goes on where it stopped.",
        ) from error
    faults = _faults(folder, expected)
    if faults:
        for name in faults:  # else the hub's client takes them for whole next time
            (folder / name).unlink(missing_ok=True)
        raise DownloadError(
            source,
            "; ".join(faults.values()),
            f"The bad files were removed from {folder}; run again to fetch them anew.",
        )
    _check_shards(folder, expected)
    return expected


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _hub_files(source: str, repository: str, revision: str) -> dict[str, Expected]:
    """The model files at the root of a hub repository, as the hub says they must be."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=_endpoint()).model_info(
        repository, revision=revision, files_metadata=True
    )
    siblings = [file for file in info.siblings or [] if "/" not in file.rfilename]
    expected: dict[str, Expected] = {}
    for file in siblings:
        if not _shapes(file.rfilename):
            continue
        if file.lfs is not None:
            expected[file.rfilename] = Expected(file.lfs.sha256, file.lfs.size)
        elif file.blob_id is not None and file.size is not None:
            expected[file.rfilename] = Expected(file.blob_id, file.size, git=True)
        else:
            raise ValueError(f"the hub gives no checksum for {file.rfilename}")
    if not any(name.endswith(".safetensors") for name in expected):
        _refuse_pickles(source, [file.rfilename for file in siblings])
        raise ValueError("the repository has no .safetensors file at its root")
    return expected


def _snapshot(repository: str, revision: str, names: list[str], folder: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(
        repository,
        revision=revision,
        local_dir=folder,
        allow_patterns=names,
        endpoint=_endpoint(),
    )
