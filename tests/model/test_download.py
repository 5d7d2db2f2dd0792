import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import local_hub as hubs
import pytest
from local_hub import Hub

import model.download
from model.configuration import Config, read_config
from model.download import DownloadError, download
from model.records import CheckpointRecord

CONFIG_JSON = json.dumps({"architectures": ["Qwen3MoeForCausalLM"]}).encode()
WEIGHTS = b"weights" * 5000
FILES = {"config.json": CONFIG_JSON, "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}
HUB_SOURCE = f"hf://{hubs.REPOSITORY}@{hubs.REVISION}"


def manifest_of(files: dict[str, bytes]) -> str:
    entries = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in files.items()
    }
    return json.dumps({"files": entries, "format": 1})


def config_for(source: object, manifest: object | None) -> Config:
    value = read_config(Path("config/config.yaml")).model_dump()
    entry = {"source": str(source), "manifest": None if manifest is None else str(manifest)}
    return Config.model_validate({**value, "model": "it", "models": {"it": entry}})


class Checkpoint:
    """A directory with a manifest, and the record that its download would write."""

    def __init__(self, root: Path, files: dict[str, bytes] = FILES) -> None:
        self.folder = root / "checkpoint"
        self.output = root / "results" / "models" / "it" / "checkpoint.json"
        self.folder.mkdir()
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        self.manifest = self.folder / "manifest.json"
        self.manifest.write_text(manifest_of(files))

    def download(self) -> CheckpointRecord:
        return download(config_for(self.folder, self.manifest), self.output)

    def refusal(self) -> str:
        """The message of the refusal; there must be no record after it."""
        with pytest.raises(DownloadError) as caught:
            self.download()
        assert not self.output.exists()
        return str(caught.value)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path)


# --- a directory ------------------------------------------------------------------------


def test_a_good_directory_is_recorded_with_every_sha256(checkpoint: Checkpoint) -> None:
    record = checkpoint.download()
    assert record.files == {n: hashlib.sha256(d).hexdigest() for n, d in FILES.items()}
    assert record.directory == str(checkpoint.folder)
    assert CheckpointRecord.read(checkpoint.output) == record


def test_the_projects_own_checkpoint_is_good_and_recorded_by_its_relative_path(
    tmp_path: Path,
) -> None:
    config = read_config(Path("config/config.yaml"))
    record = download(config, tmp_path / "checkpoint.json")
    assert record.directory == "model/checkpoints/tiny-qwen3-moe"


def test_the_fingerprint_follows_the_weights_and_not_the_readme_or_the_place(
    tmp_path: Path,
) -> None:
    def fingerprint(place: str, files: dict[str, bytes]) -> str:
        (tmp_path / place).mkdir()
        return Checkpoint(tmp_path / place, files).download().fingerprint

    first = fingerprint("a", {**FILES, "README.md": b"one"})
    assert fingerprint("b", {**FILES, "README.md": b"two"}) == first
    assert fingerprint("c", {**FILES, "model.safetensors": b"other"}) != first


def test_a_missing_file_is_named(checkpoint: Checkpoint) -> None:
    (checkpoint.folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in checkpoint.refusal()


def test_an_altered_file_is_named_with_both_checksums(checkpoint: Checkpoint) -> None:
    altered = b"Weights" + WEIGHTS[7:]
    (checkpoint.folder / "model.safetensors").write_bytes(altered)
    message = checkpoint.refusal()
    assert "model.safetensors was altered" in message
    assert hashlib.sha256(altered).hexdigest() in message
    assert hashlib.sha256(WEIGHTS).hexdigest() in message


def test_a_truncated_file_is_named_with_both_sizes(checkpoint: Checkpoint) -> None:
    (checkpoint.folder / "model.safetensors").write_bytes(WEIGHTS[:-1])
    message = checkpoint.refusal()
    assert f"model.safetensors has {len(WEIGHTS) - 1} bytes, expected {len(WEIGHTS)}" in message


def test_every_fault_is_named_at_once(checkpoint: Checkpoint) -> None:
    (checkpoint.folder / "tokenizer.json").unlink()
    (checkpoint.folder / "model.safetensors").write_bytes(b"")
    message = checkpoint.refusal()
    assert "tokenizer.json" in message
    assert "model.safetensors" in message


@pytest.mark.parametrize("name", ["more.safetensors", "generation_config.json"])
def test_a_file_that_shapes_the_model_must_be_in_the_manifest(
    checkpoint: Checkpoint, name: str
) -> None:
    (checkpoint.folder / name).write_bytes(b"{}")
    assert f"{name} is not in the manifest" in checkpoint.refusal()


def test_a_note_beside_the_checkpoint_does_no_harm(checkpoint: Checkpoint) -> None:
    (checkpoint.folder / "NOTES.md").write_text("mine")
    assert "NOTES.md" not in checkpoint.download().files


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt"])
def test_pickled_weights_are_refused(checkpoint: Checkpoint, suffix: str) -> None:
    (checkpoint.folder / f"pytorch_model.{suffix}").write_bytes(b"")
    message = checkpoint.refusal()
    assert f"pytorch_model.{suffix}" in message
    assert "safetensors" in message


def test_pickled_weights_in_the_manifest_are_refused(tmp_path: Path) -> None:
    assert "model.bin" in Checkpoint(tmp_path, {**FILES, "model.bin": b""}).refusal()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (b'{"architectures": ["LlamaForCausalLM"]}', "LlamaForCausalLM"),
        (b"{}", "None"),
        (b"[]", "list"),
        (b"{", "not valid JSON"),
    ],
)
def test_only_a_qwen3_moe_is_taken(tmp_path: Path, config: bytes, said: str) -> None:
    message = Checkpoint(tmp_path, {**FILES, "config.json": config}).refusal()
    assert "config.json" in message
    assert said in message


def test_a_shard_that_the_index_names_and_the_manifest_does_not_is_missing(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
    files = {**FILES, "model.safetensors.index.json": index.encode()}
    assert "model-2.safetensors" in Checkpoint(tmp_path, files).refusal()


def break_manifest(checkpoint: Checkpoint, text: str) -> str:
    checkpoint.manifest.write_text(text)
    return checkpoint.refusal()


def test_a_wrong_manifest_is_named(checkpoint: Checkpoint) -> None:
    assert "manifest.json" in break_manifest(checkpoint, "{")
    assert "format" in break_manifest(checkpoint, '{"files": {}, "format": 2}')
    assert "no weights" in break_manifest(checkpoint, manifest_of({"config.json": b""}))
    outside = manifest_of({**FILES, "../secret.json": b""})
    assert "points out of" in break_manifest(checkpoint, outside)
    checkpoint.manifest.unlink()
    assert "no such manifest" in checkpoint.refusal()


def test_a_directory_needs_a_manifest_and_must_exist(checkpoint: Checkpoint) -> None:
    with pytest.raises(DownloadError, match="needs a manifest"):
        download(config_for(checkpoint.folder, None), checkpoint.output)
    with pytest.raises(DownloadError, match="no such directory"):
        download(config_for("nowhere", checkpoint.manifest), checkpoint.output)


def test_a_failed_run_leaves_no_older_record(checkpoint: Checkpoint) -> None:
    checkpoint.download()
    (checkpoint.folder / "tokenizer.json").unlink()
    checkpoint.refusal()


def test_an_interrupted_run_leaves_no_record(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(model.download, "file_sha256", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.download()
    assert not checkpoint.output.exists()
    assert not list(checkpoint.output.parent.glob("**/*"))


# --- the hub ----------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    files = {**FILES, "README.md": b"read", "pytorch_model.bin": b"pickle", "onnx/x.json": b"{}"}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hubs.serve(files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


Fetch = Callable[..., CheckpointRecord]


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    def run(source: str = HUB_SOURCE, manifest: Any = None) -> CheckpointRecord:
        return download(config_for(source, manifest), tmp_path / "checkpoint.json")

    return run


def test_the_hubs_model_files_and_no_others_are_fetched(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    record = fetch()
    assert record.files == {n: hashlib.sha256(d).hexdigest() for n, d in FILES.items()}
    assert hub.fetched() == set(FILES)
    assert (tmp_path / "files" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_transfer_that_stops_goes_on_where_it_stopped(
    hub: Hub, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.hang_up_once = {"model.safetensors"}
    with pytest.raises(DownloadError, match="goes on where it stopped"):
        fetch()
    assert not (tmp_path / "checkpoint.json").exists()
    fetch()
    ranges = [ranged for _, path, ranged in hub.requests if path.endswith("model.safetensors")]
    assert f"bytes={len(WEIGHTS) // 2}-" in ranges


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_other_bytes_than_the_hub_announced_are_refused_and_fetched_anew(
    hub: Hub, fetch: Fetch, tmp_path: Path, name: str
) -> None:
    hub.served = {name: FILES[name].swapcase()[::-1]}
    with pytest.raises(DownloadError, match=f"{name} was altered"):
        fetch()
    assert not (tmp_path / "checkpoint.json").exists()
    hub.served = {}
    assert fetch().files[name] == hashlib.sha256(FILES[name]).hexdigest()


def test_a_manifest_overrules_the_hub(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    manifest = tmp_path / "wanted.json"
    manifest.write_text(manifest_of({**FILES, "model.safetensors": WEIGHTS[::-1]}))
    with pytest.raises(DownloadError, match=r"model\.safetensors was altered"):
        fetch(manifest=manifest)


def test_with_a_manifest_whole_files_need_no_network(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    manifest = tmp_path / "wanted.json"
    manifest.write_text(manifest_of(FILES))
    fetch(manifest=manifest)
    hub.requests.clear()
    fetch(manifest=manifest)
    assert hub.requests == []


def test_files_of_another_revision_are_cleared_away(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "old.safetensors").write_bytes(b"old")
    fetch()
    assert not (tmp_path / "files" / "old.safetensors").exists()


def test_the_token_of_the_environment_is_sent(
    hub: Hub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    fetch()
    assert hub.tokens == {"Bearer hf_made_up"}


def test_a_hub_repository_without_safetensors_is_refused(hub: Hub, fetch: Fetch) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(DownloadError, match=r"pickled weights are refused.*pytorch_model\.bin"):
        fetch()


def test_an_unknown_repository_is_named_with_what_to_check(hub: Hub, fetch: Fetch) -> None:
    with pytest.raises(DownloadError, match=r"no/where@.*hub could not give it[\s\S]*HF_TOKEN"):
        fetch(f"hf://no/where@{hubs.REVISION}")


@pytest.mark.parametrize(
    "source", ["hf://someone/tiny", "hf://someone/tiny@main", "hf://tiny@" + hubs.REVISION]
)
def test_a_hub_source_must_be_pinned(fetch: Fetch, source: str) -> None:
    with pytest.raises(DownloadError, match="full commit hash"):
        fetch(source)
