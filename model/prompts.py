"""The prompts that the generation stage runs: `config/prompts/default.yaml` and its like."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.configuration import ConfigurationError


class Prompt(BaseModel):
    """One prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    task: str | None = None
    """The lm-eval task whose kind of question it asks, if any."""
    length: Literal["short", "medium", "long"]
    text: str = Field(min_length=1, pattern=r"\S")
    expected: str | None = None
    """What a right greedy continuation starts with, if there is one."""


def read_prompts(path: Path) -> list[Prompt]:
    """Read and validate a prompts file: a mapping with one key, `prompts`, a list.

    Raises:
        ConfigurationError: naming the file, every wrong entry, and what is allowed there.
    """
    entries = _entries(path)
    prompts: list[Prompt] = []
    faults: list[str] = []
    for at, entry in enumerate(entries):
        try:
            prompts.append(Prompt.model_validate(entry))
        except ValidationError as error:
            faults += [f"{path}: {_where(at, entry)}{_explain(item)}" for item in error.errors()]
    names = [prompt.name for prompt in prompts]
    faults += [
        f"{path}: two prompts are named {name!r}; names must differ"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if faults:
        raise ConfigurationError("\n".join(faults))
    return prompts


def _entries(path: Path) -> list[Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(value, dict) or list(value) != ["prompts"]:
        raise ConfigurationError(f"{path}: must be a mapping with the one key `prompts`")
    entries = value["prompts"]
    if not isinstance(entries, list) or not entries:
        raise ConfigurationError(f"{path}: prompts must be a list of at least one prompt")
    return entries


def _where(at: int, entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"prompts[{at}] ({name})" if name else f"prompts[{at}]"


def _explain(item: Any) -> str:
    key = ".".join(str(step) for step in item["loc"])
    allowed = f"allowed: {', '.join(Prompt.model_fields)}"
    if item["type"] == "extra_forbidden":
        return f": unknown key {key!r}; {allowed}"
    if item["type"] == "missing":
        return f": {key} is needed and missing; {allowed}"
    where = f".{key}" if key else ""
    return f"{where}: {item['msg']}; found {item['input']!r}"
