"""The configuration as the rules see it, and the inputs it declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from stubbed_checkout import Checkout

from model.configuration import ConfigurationError
from workflow import sources
from workflow.pipeline import Pipeline, read_pipeline, store_digest, typed
from workflow.sources import stage_sources


@pytest.fixture(autouse=True)
def checkout(fresh: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """A checkout of this test's own, as the working directory."""
    copied = fresh.copy(tmp_path / "checkout")
    monkeypatch.chdir(copied.root)
    forget()
    return copied


def forget() -> None:
    """Empty the caches, which are for the life of one process."""
    for function in (sources._simulator, sources._find, sources._imports):
        function.cache_clear()


def read(**changes: Any) -> Pipeline:
    value = yaml.safe_load(Path("config/config.yaml").read_text())
    return read_pipeline({**value, **changes}, "config/config.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"configurations": ["rmsnrm"]}, ["'rmsnrm'", "did you mean 'rmsnorm'", "baseline"]),
        ({"configurations": "rmsnorm"}, ["configurations", "list", "'rmsnorm'"]),
        ({"configurations": ["../x"]}, ["configurations.0", "'../x'"]),
        ({"model": "other"}, ["model", "'other'", "tiny-qwen3-moe"]),
        ({"bukets": 3}, ["bukets", "unknown key", "did you mean 'buckets'"]),
        ({"accuracy": {"documents": "many"}}, ["accuracy.documents", "integer", "'many'"]),
    ],
)
def test_a_wrong_configuration(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("generate", "prompts", "generate.prompts: nowhere: no such file"),
        ("accuracy", "texts", "accuracy.texts: nowhere: no such file"),
        ("accuracy", "tasks", "accuracy.tasks: nowhere: no such folder"),
    ],
)
def test_a_missing_file_of_the_configuration(section: str, key: str, words: str) -> None:
    value = yaml.safe_load(Path("config/config.yaml").read_text())
    with pytest.raises(ConfigurationError, match=words):
        read(**{section: {**value[section], key: "nowhere"}})


@pytest.mark.parametrize(
    ("ops", "words"),
    [
        ("{silu: {kernel: nki_silo_kernel}}", ["ops.silu.kernel", "did you mean 'nki_silu"]),
        ("{sillu: {kernel: nki_silu_kernel}}", ["unknown op 'sillu'", "rmsnorm, qk_norm"]),
        ("{softmax: {kernel: nki_silu_kernel}}", ["'softmax' cannot be filled by"]),
        ("{silu: {kernel: nki_silu_kernel, tile: 1}}", ["ops.silu.tile", "kernel, parameters"]),
        ("{silu: {kernel: a/b.py:f}}", ["ops.silu.kernel", "a/b.py", "no such file"]),
        ("{silu: {kernel: 'kernels/silu.py:f'}}", ["no function 'f'", "nki_silu_kernel"]),
        ("[silu]", ["ops", "dictionary", "['silu']"]),
    ],
)
def test_a_wrong_kernel_configuration(checkout: Checkout, ops: str, words: list[str]) -> None:
    checkout.write("config/kernels/all.yaml", f"description: Wrong.\nops: {ops}\n")
    with pytest.raises(ConfigurationError) as caught:
        read()
    for word in ["config/kernels/all.yaml", *words]:
        assert word in str(caught.value)


def test_a_kernels_sources_are_what_it_imports() -> None:
    files = read().files_of_kernels("norms")
    assert {"kernels/rmsnorm.py", "kernels/qk_rmsnorm.py", "kernels/tiling.py"} <= set(files)
    assert "kernels/silu.py" not in files
    assert "simulator/targets.py" in files  # by `import nki`
    assert read().files_of_kernels("baseline") == []
    assert "kernels/rmsnorm.py" in read().files_of_kernels("rmsnorm")  # not chosen, but there


def test_a_kernel_that_is_not_python_is_left_to_its_compile_job(checkout: Checkout) -> None:
    checkout.append("kernels/silu.py", "def broken(:\n")
    assert "kernels/silu.py" in read().files_of_kernels("all")


def test_a_stages_code_is_what_it_imports_but_no_kernel(checkout: Checkout) -> None:
    files = stage_sources("model.compile")
    assert {"model/compile.py", "model/ops.py", "kernels/reference.py"} <= set(files)
    assert "model/generate.py" not in files
    checkout.append("model/ops.py", "\nfrom kernels import silu\n")
    forget()
    assert "kernels/silu.py" not in stage_sources("model.compile")


def test_relative_imports_and_imports_in_functions_count(checkout: Checkout) -> None:
    checkout.write("model/helper.py", "")
    checkout.append("model/trace.py", "\ndef later():\n    from . import helper\n")
    assert "model/helper.py" in stage_sources("model.trace")


def test_checkpoint_files_of_a_folder_and_of_a_hub() -> None:
    folder = "model/checkpoints/tiny-qwen3-moe"
    files = read().checkpoint_files()
    assert files == [f"{folder}/manifest.json", f"{folder}/model.safetensors"]
    revision = "0" * 40
    hub = {"m": {"source": f"hf://owner/name@{revision}"}}
    assert read(model="m", models=hub).checkpoint_files() == []
    nowhere = {"m": {"source": "nowhere", "manifest": "nowhere/manifest.json"}}
    assert read(model="m", models=nowhere).checkpoint_files() == []


def test_settings_have_their_defaults_filled_in() -> None:
    value = yaml.safe_load(Path("config/config.yaml").read_text())
    del value["tracking"]
    assert read_pipeline(value, "c").settings("tracking") == read().settings("tracking")
    assert read().settings("accuracy.sequences") == {"accuracy.sequences": 16}


def test_the_effective_configuration_is_written_once_and_reads_back() -> None:
    read(dtype="float32").write_config()
    file = Path("results/config.yaml")
    before = file.stat().st_mtime_ns
    read(dtype="float32").write_config()
    assert file.stat().st_mtime_ns == before
    again = read_pipeline(yaml.safe_load(file.read_text()), str(file))
    assert again.config == read(dtype="float32").config


def test_nested_values_of_the_command_line_get_their_types() -> None:
    assert typed({"a": "8", "b": ["0.5", "x"], "c": 1}) == {"a": 8, "b": [0.5, "x"], "c": 1}


def test_the_store_shows_as_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    default = store_digest()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host")
    assert store_digest() != default
    assert "secret" not in store_digest()
