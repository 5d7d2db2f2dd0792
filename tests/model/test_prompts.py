from pathlib import Path

import pytest
import yaml

from model.configuration import ConfigurationError
from model.prompts import read_prompts
from model.training.corpus import KINDS, vocabulary

DEFAULT = Path("config/prompts/default.yaml")
GOOD = {"name": "a", "task": None, "length": "short", "text": "one two", "expected": "three"}


def refusal(tmp_path: Path, content: object) -> str:
    path = tmp_path / "prompts.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ConfigurationError) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_the_default_prompts_are_words_of_the_tiny_model() -> None:
    for prompt in read_prompts(DEFAULT):
        words = set(f"{prompt.text} {prompt.expected or ''}".split())
        assert words <= set(vocabulary()), prompt.name


def test_the_default_prompts_have_each_length_and_each_quality_task() -> None:
    prompts = {prompt.name: prompt for prompt in read_prompts(DEFAULT)}
    tokens = {name: len(prompts[name].text.split()) for name in ("short", "medium", "long")}
    assert tokens["short"] <= 10
    assert 25 <= tokens["medium"] <= 35
    assert 90 <= tokens["long"] <= 112
    assert {prompt.task for prompt in prompts.values()} == {None, *(f"nano_{k}" for k in KINDS)}
    for prompt in prompts.values():
        assert prompt.task is None or Path(f"config/tasks/{prompt.task}.yaml").is_file()


def test_an_unknown_key_is_named_with_the_allowed_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"prompts": [GOOD, {**GOOD, "name": "b", "expect": "x"}]})
    assert "prompts[1] (b)" in message
    assert "'expect'" in message
    assert "allowed: name, task, length, text, expected" in message


def test_a_wrong_length_is_named_with_the_allowed_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"prompts": [{**GOOD, "length": "huge"}]})
    assert "prompts[0] (a).length" in message
    assert "'short', 'medium' or 'long'" in message
    assert "'huge'" in message


@pytest.mark.parametrize("key", ["name", "length", "text"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    entry = {name: value for name, value in GOOD.items() if name != key}
    assert f"{key} is needed and missing" in refusal(tmp_path, {"prompts": [entry]})


@pytest.mark.parametrize("text", ["", "   ", 7])
def test_an_empty_text_or_a_number_is_refused(tmp_path: Path, text: object) -> None:
    assert ".text" in refusal(tmp_path, {"prompts": [{**GOOD, "text": text}]})


def test_names_must_differ(tmp_path: Path) -> None:
    assert "two prompts are named 'a'" in refusal(tmp_path, {"prompts": [GOOD, GOOD]})


@pytest.mark.parametrize(
    "content",
    ["", "- 1", "prompts: 3", "prompts: []", "prompts: [1]", "prompts: [", "other: []"],
)
def test_another_shape_of_file_is_refused(tmp_path: Path, content: str) -> None:
    refusal(tmp_path, content)


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    assert "not valid YAML" in refusal(tmp_path, "prompts: !!python/object/apply:os.getcwd []")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.yaml: no such file"):
        read_prompts(tmp_path / "none.yaml")
