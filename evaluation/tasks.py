"""Loading lm-eval tasks: local ones from a folder of YAML files, standard ones by name.

A local task file is lm-eval's own format (`config/tasks/*.yaml`), with its data in JSONL files
named by `dataset_kwargs: {data_files: {SPLIT: PATH}}` relative to the task file, and
`metadata: {version, chance}`. The files are read by `yaml.safe_load`: lm-eval's `!function`
tags, which run Python, are refused.
"""

# ruff: noqa: I001
from __future__ import annotations

from evaluation.offline import hub_allowed  # before any Hugging Face library

import contextlib
import difflib
import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import huggingface_hub.constants
import yaml
from huggingface_hub.utils._http import get_session
from lm_eval.api.registry import metric_registry
from lm_eval.tasks import TaskManager
import lm_eval.api.metrics  # noqa: F401  fills metric_registry

from evaluation.inputs import EvaluationError, read_jsonl

# It advises on keyword arguments of `custom_dataset`, once per task, as a warning.
logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)


HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class LoadedTask:
    """A task that is ready to run."""

    name: str
    task: Any
    """lm-eval's ConfigurableTask."""
    chance: float | None
    files: tuple[Path, ...]
    """The YAML file and its data files; none of a standard task."""
    source: Literal["local", "standard"] = "local"

    def identity(self, documents: int) -> str:
        """What a standard task's results depend on: its settings and its first documents."""
        if self.source == "local":
            return self.name
        docs = [self.task.eval_docs[i] for i in range(min(documents, len(self.task.eval_docs)))]
        settings = self.task.dump_config()
        return json.dumps([self.name, settings, docs], sort_keys=True, default=str)


def load_tasks(folder: Path) -> list[LoadedTask]:
    """Load every `*.yaml` of a folder, sorted by file name.

    Raises:
        EvaluationError: there are none, two share a name, or one is wrong; the message names
            the file and what it lacks.
    """
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise EvaluationError(f"{folder}: holds no lm-eval task files (*.yaml)")
    tasks = [_load_task(path) for path in paths]
    seen: dict[str, Path] = {}
    for loaded in tasks:
        if loaded.name in seen:
            raise EvaluationError(
                f"{loaded.files[0]}: task {loaded.name!r} is already in {seen[loaded.name]}"
            )
        seen[loaded.name] = loaded.files[0]
    return tasks


def load_standard_tasks(names: Sequence[str], taken: Sequence[str] = ()) -> list[LoadedTask]:
    """Load tasks of lm-eval's own, with their data from the hub or from its cache.

    Args:
        names: lm-eval's names of single tasks.
        taken: Names that local tasks have.

    Raises:
        EvaluationError: a name is no single task of lm-eval's or is taken; or the hub cannot be
            reached and the data is not in the cache.
    """
    if not names:
        return []
    manager = _standard_manager()
    wrong = [name for name in names if name not in manager.all_subtasks]
    if wrong:
        near = difflib.get_close_matches(wrong[0], manager.all_subtasks, n=3)
        raise EvaluationError(
            f"accuracy.standard_tasks: lm-eval has no single task {wrong[0]!r}"
            + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    doubled = [name for i, name in enumerate(names) if name in taken or name in names[:i]]
    if doubled:
        raise EvaluationError(f"accuracy.standard_tasks: there is already a task {doubled[0]!r}")
    problem = hub_problem()
    with contextlib.nullcontext() if problem else hub_allowed():
        return [_load_standard(manager, name, problem) for name in names]


def hub_problem() -> str | None:
    """Why the hub cannot be reached, None if it answers."""
    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        with hub_allowed():
            get_session().head(endpoint, timeout=HUB_TIMEOUT_S)
    except OSError as error:
        return f"{endpoint} cannot be reached ({type(error).__name__})"
    return None


@functools.cache
def _standard_manager() -> TaskManager:
    return TaskManager(include_defaults=True)  # 8 s: it indexes 14,000 tasks


def _load_standard(manager: TaskManager, name: str, problem: str | None) -> LoadedTask:
    try:
        (task,) = manager.load([name])["tasks"].values()
        len(task.eval_docs)
    except Exception as error:  # datasets raises whatever its parts do
        cache = datasets.config.HF_CACHE_HOME
        reason = f"{problem}, and its data is not in {cache}" if problem else str(error)
        raise EvaluationError(
            f"accuracy.standard_tasks: {name}: {reason}. Connect this machine, or copy the cache "
            "of one that ran it (HF_HOME), or leave the task out; then run snakemake again. What "
            "other stages found is kept."
        ) from error
    return LoadedTask(name, task, None, (), "standard")


def task_files(folder: Path) -> list[Path]:
    """The files the tasks of a folder are made of: what a result depends on."""
    return sorted({file for task in load_tasks(folder) for file in task.files})


def _load_task(path: Path) -> LoadedTask:
    config = _read_config(path)
    data_files = _data_files(path, config)
    chance = _chance(path, config)
    config["dataset_path"], config["dataset_kwargs"] = "json", {}
    config["custom_dataset"] = _dataset(data_files)
    config.setdefault("num_fewshot", 0)
    try:
        loaded = TaskManager(include_defaults=False).load([config])["tasks"]
        (task,) = loaded.values()
        _check_documents(path, task)
    except EvaluationError:
        raise
    except Exception as error:  # lm-eval raises whatever its parts do
        raise EvaluationError(
            f"{path}: lm-eval cannot make this task: {type(error).__name__}: {error}"
        ) from error
    return LoadedTask(config["task"], task, chance, (path, *data_files.values()))


def _check_documents(path: Path, task: Any) -> None:
    """Every document renders; lm-eval only warns of an answer that is none of the choices."""
    for number, document in enumerate(task.eval_docs, start=1):
        task.doc_to_text(document)
        target = task.doc_to_target(document)
        if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
            continue
        choices = list(task.doc_to_choice(document))
        answers = target if isinstance(target, list) else [target]
        if not all(x in range(len(choices)) or x in choices for x in answers):
            raise EvaluationError(
                f"{path}: document {number}: the answer {target!r} is none of the choices "
                f"{choices}, nor the index of one (from 0)"
            )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise EvaluationError(
            f"{path}: not plain YAML (tags such as !function are not supported): {error}"
        ) from None
    if not isinstance(config, dict) or not isinstance(config.get("task"), str):
        raise EvaluationError(
            f"{path}: must be a mapping with `task: NAME` (groups: one file each)"
        )
    for key in ("include", "group", "class", "custom_dataset", "process_docs", "unsafe_code"):
        if key in config:
            raise EvaluationError(f"{path}: {key}: not supported here; write the task out in full")
    for metric in config.get("metric_list") or []:
        name = metric.get("metric") if isinstance(metric, dict) else None
        if name not in metric_registry or metric.get("hf_evaluate"):
            raise EvaluationError(
                f"{path}: metric_list: {metric!r} is none of lm-eval's own metrics: "
                f"{', '.join(sorted(metric_registry))}"
            )
    return config


def _data_files(path: Path, config: dict[str, Any]) -> dict[str, Path]:
    """Split -> data file, made absolute."""
    kwargs = config.get("dataset_kwargs")
    files = kwargs.get("data_files") if isinstance(kwargs, dict) else None
    if config.get("dataset_path") != "json" or not isinstance(files, dict) or not files:
        raise EvaluationError(
            f"{path}: needs `dataset_path: json` and `dataset_kwargs: {{data_files: {{test: "
            "data/NAME.jsonl}}`, paths relative to this file"
        )
    result = {}
    for split, file in files.items():
        data = (path.parent / str(file)).resolve()
        if not data.is_file():
            raise EvaluationError(f"{path}: data_files: {split}: there is no file {data}")
        result[str(split)] = data
    return result


def _dataset(data_files: dict[str, Path]) -> Callable[..., dict[str, Any]]:
    """For lm-eval's `custom_dataset`: no builder, cache folder or lock file in between."""

    def dataset(**_: object) -> dict[str, Any]:
        return {
            split: datasets.Dataset.from_list(read_jsonl(file))
            for split, file in data_files.items()
        }

    return dataset


def _chance(path: Path, config: dict[str, Any]) -> float | None:
    metadata = config.get("metadata") or {}
    chance = metadata.get("chance") if isinstance(metadata, dict) else None
    if chance is None:
        return None
    if isinstance(chance, bool) or not isinstance(chance, int | float):
        raise EvaluationError(f"{path}: metadata.chance: must be a number, found {chance!r}")
    return float(chance)
