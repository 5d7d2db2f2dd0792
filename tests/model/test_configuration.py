from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from model.configuration import (
    ConfigurationError,
    kernel_configuration_path,
    parse_config,
    read_config,
    read_kernel_configuration,
)

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def with_key(path: str, value: Any) -> dict[str, Any]:
    """The shipped configuration with one key set."""
    changed: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SHIPPED))
    *sections, last = path.split(".")
    here = changed
    for section in sections:
        here = here[section]
    here[last] = value
    return changed


def test_the_shipped_configuration_is_valid() -> None:
    config = read_config(ROOT / "config/config.yaml")
    assert config.model in config.models
    for name in config.configurations:
        path = kernel_configuration_path(name, ROOT / "config/kernels")
        assert read_kernel_configuration(path).description


def test_every_shipped_kernel_configuration_is_valid() -> None:
    for path in (ROOT / "config/kernels").glob("*.yaml"):
        read_kernel_configuration(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("dtype", "fp8", ["dtype", "'bfloat16' or 'float32'", "'fp8'"]),
        ("dtpye", "float32", ["dtpye", "did you mean 'dtype'", "allowed here"]),
        ("generate.max_new_tokens", "16", ["generate.max_new_tokens", "integer", "'16'"]),
        ("generate.max_new_tokens", 0, ["generate.max_new_tokens", "1"]),
        ("generate.sampling.temprature", 1.0, ["did you mean 'temperature'"]),
        ("accuracy.tolerances.float32_op", float("nan"), ["accuracy.tolerances.float32_op"]),
        ("buckets.context_encoding", [64, 32], ["ascending"]),
        ("buckets.context_encoding", [512], ["max_length (160)", "512"]),
        ("configurations", [], ["configurations"]),
        ("configurations", ["all", "all"], ["names one twice"]),
        ("configurations", ["../../etc"], ["configurations.0"]),
        ("model", "nothing", ["'nothing'", "tiny-qwen3-moe"]),
        ("models.tiny-qwen3-moe.revision", "main", ["revision", "source, manifest"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    key: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(with_key(key, value), Path("my.yaml"))
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert len(message) < 400
    for word in words:
        assert word in message


def test_a_missing_key_is_named() -> None:
    value = {key: item for key, item in SHIPPED.items() if key != "buckets"}
    with pytest.raises(ConfigurationError, match="buckets: this key is needed"):
        parse_config(value)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config({**SHIPPED, "dtype": 1, "target": "trn9"})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("description: [", "not valid YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("ops: {}\n", "description: this key is needed"),
        ("description: x\nops: {silu: {kernel: nki_silo_kernel}}", "did you mean"),
        ("description: x\nops: {sillu: {kernel: nki_silu_kernel}}", "did you mean 'silu'"),
        ("description: x\nops: {softmax: {kernel: nki_silu_kernel}}", "is for op 'silu'"),
        (
            "description: x\nops: {silu: {kernel: nki_silu_kernel, parameters: {a: .nan}}}",
            "must be finite",
        ),
        ("description: x\nop: {}\n", "did you mean 'ops'"),
    ],
)
def test_a_wrong_kernel_configuration_names_its_file(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_kernel_configuration(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)


def test_an_unknown_kernel_configuration_lists_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "norms.yaml").write_text("description: x\n")
    with pytest.raises(ConfigurationError) as caught:
        kernel_configuration_path("norm", tmp_path)
    assert "did you mean 'norms'" in str(caught.value)


def test_a_users_kernel_is_named_by_file_and_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("description: x\nops: {silu: {kernel: 'mine/fast.py:fast'}}\n")
    assert read_kernel_configuration(file).ops["silu"].kernel == "mine/fast.py:fast"
