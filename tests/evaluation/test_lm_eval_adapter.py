"""Our scores are HFLM's, made without a socket; wrong task files are refused by name."""

from __future__ import annotations

import importlib.util
import math
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import hf_model
import pytest
import torch
from lm_eval.evaluator import evaluate

from evaluation.inputs import EvaluationError
from evaluation.lm_eval_adapter import NkiLM, run_tasks
from evaluation.records import TaskResult
from evaluation.tasks import load_tasks, task_files
from model.records import CheckpointRecord

CONTEXT = 24


def import_hflm() -> Any:
    """HFLM imports accelerate, which is not installed, and uses none of it on a ready model."""
    if importlib.util.find_spec("accelerate") is None:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("accelerate", "accelerate.utils"):
                patch.setitem(sys.modules, name, MagicMock())
            return importlib.import_module("lm_eval.models.huggingface").HFLM
    return importlib.import_module("lm_eval.models.huggingface").HFLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    hf_model.make_checkpoint(folder)
    hf_model.write_tasks(folder / "tasks")
    return folder


@pytest.fixture
def model(folder: Path) -> hf_model.HfModel:
    return hf_model.HfModel(CheckpointRecord.read(folder / "checkpoint.json"))


@pytest.fixture
def ours(model: hf_model.HfModel) -> NkiLM:
    return NkiLM(model, max_context=CONTEXT, batch_size=3)  # type: ignore[arg-type]


@pytest.fixture
def hflm(model: hf_model.HfModel) -> Any:
    return import_hflm()(
        pretrained=model.hf,
        tokenizer=model.tokenizer,
        batch_size=4,
        max_length=CONTEXT,
        device="cpu",
        prefix_token_id=model.tokenizer.bos_token_id,
    )


def instances(*arguments: tuple[Any, ...]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=x) for x in arguments]


LONG = " ".join(["the cat sees a dog and", "one two three ."] * 6)


def test_loglikelihood_is_hflms(ours: NkiLM, hflm: Any) -> None:
    requests = instances(
        ("the cat", " sees a dog"),
        ("the cat ", "sees"),
        ("the cat", " hears"),
        ("", "red blue"),
        (LONG, " green ."),
        ("<|bos|> the", " cat"),
        ("the cat", " sees a dog"),
    )
    expected = hflm.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    assert [x[0] for x in found] == pytest.approx([x[0] for x in expected], abs=1e-5)
    assert [x[1] for x in found] == [x[1] for x in expected]


def test_a_greedy_continuation_is_said_to_be_greedy(ours: NkiLM, model: hf_model.HfModel) -> None:
    prompt = ours.tok_encode("the cat sees")
    (output,) = model.generate_batch([prompt], 3, [])
    greedy = ours._loglikelihood_tokens([(None, prompt, output)])
    other = ours._loglikelihood_tokens([(None, prompt, [*output[:2], 3])])
    assert (greedy[0][1], other[0][1]) == (True, False)


def test_rolling_loglikelihood_is_hflms(ours: NkiLM, hflm: Any) -> None:
    requests = instances(("the cat sees a dog",), (LONG,), ("red",), (LONG + " six",))
    expected = hflm.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("until", [["."], ["cat"], [], ["a dog"]])
def test_generation_is_hflms(ours: NkiLM, hflm: Any, until: list[str]) -> None:
    options = {"until": until, "max_gen_toks": 8, "do_sample": False}
    prompts = ["the cat", "red blue green", "six so and", LONG]
    # One by one: HFLM pads on the left, which moves a random model's close calls.
    expected = [
        hflm.generate_until(instances((prompt, options)), disable_tqdm=True)[0]
        for prompt in prompts[:3]
    ]
    found = ours.generate_until(instances(*((prompt, options) for prompt in prompts)))
    assert found[:3] == expected
    assert any(found)


def linear_error(metric: str, documents: list[tuple[float, int]]) -> float:
    """The standard error of a ratio of sums, to first order (documents drawn at random)."""
    size = sum(length for _, length in documents)
    mean = sum(score for score, _ in documents) / size
    error = math.sqrt(sum((score - mean * length) ** 2 for score, length in documents)) / size
    return error / math.log(2) if metric == "bits_per_byte" else error * math.exp(-mean)


def test_a_task_set_gives_hflms_metrics(folder: Path, model: hf_model.HfModel, hflm: Any) -> None:
    def results() -> list[TaskResult]:
        return run_tasks(model, load_tasks(folder / "tasks"), 6, CONTEXT, 4)  # type: ignore[arg-type]

    found = {task.task: task for task in results()}
    tasks = {x.name: x.task for x in load_tasks(folder / "tasks")}
    for task in tasks.values():
        task.set_fewshot_seed(1234)
    expected = evaluate(
        hflm,
        {"tasks": tasks, "groups": {}, "group_map": {}},
        limit=6,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = expected["samples"]["perplexity"]
    expected = expected["results"]
    assert found["choice"].metrics["acc"] == expected["choice"]["acc,none"]
    accuracy = found["choice"].metrics["acc"]
    assert found["choice"].metrics["acc_stderr"] == pytest.approx(
        math.sqrt(accuracy * (1 - accuracy) / 5)
    )
    perplexity = found["perplexity"].metrics
    for metric in ("word_perplexity", "bits_per_byte"):
        assert perplexity[metric] == pytest.approx(
            expected["perplexity"][f"{metric},none"], rel=1e-5
        )
        documents = [sample[metric] for sample in samples]
        error = perplexity[f"{metric}_stderr"]
        assert error == pytest.approx(linear_error(metric, documents), rel=0.15)
    assert len(perplexity) == 4
    assert (
        found["generation"].metrics["exact_match"] == (expected["generation"]["exact_match,none"])
    )
    assert {x.documents for x in found.values()} == {6}
    assert results() == list(found.values())


def test_no_socket_is_opened(
    folder: Path, model: hf_model.HfModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tasks = load_tasks(folder / "tasks")
    assert len(run_tasks(model, tasks, 2, CONTEXT, 4)) == 3  # type: ignore[arg-type]


def test_equal_inputs_are_computed_once(ours: NkiLM, model: hf_model.HfModel) -> None:
    requests = instances(*(("the cat", f" {word}") for word in ("sees", "hears", "is", "red")))
    ours.loglikelihood(requests, disable_tqdm=True)
    assert model.forwards == 1
    ours.loglikelihood(requests, disable_tqdm=True)
    assert model.forwards == 1


def test_logits_that_are_not_finite_are_an_error(
    ours: NkiLM, model: hf_model.HfModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        model, "logits", lambda batch: [torch.full((len(x), 24), math.nan) for x in batch]
    )
    with pytest.raises(EvaluationError, match="NaN, infinite"):
        ours.loglikelihood(instances(("the", " cat")), disable_tqdm=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": ["."], "do_sample": True, "temperature": 0.5}, "do_sample: false"),
        ({"until": ["."], "max_gen_toks": 48}, "max_gen_toks is 48"),
    ],
)
def test_generation_that_cannot_be_had_is_refused(
    ours: NkiLM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        ours.generate_until(instances(("the", options)))


def test_a_continuation_beyond_the_buckets_is_refused(ours: NkiLM) -> None:
    with pytest.raises(EvaluationError, match="largest context_encoding bucket holds 24"):
        ours.loglikelihood(instances(("the", " cat" * 25)), disable_tqdm=True)


# --- task files ---------------------------------------------------------------------------


@pytest.fixture
def tasks(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder / "tasks", tmp_path / "tasks")
    for name in ("perplexity", "generation"):
        (tmp_path / "tasks" / f"{name}.yaml").unlink()
    return tmp_path / "tasks"


def test_the_files_of_tasks_are_listed(tasks: Path) -> None:
    assert task_files(tasks) == [tasks / "choice.yaml", tasks / "data" / "choice.jsonl"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("task: choice\n", "", r"choice\.yaml: must be a mapping with `task: NAME`"),
        ("data/choice.jsonl", "data/none.jsonl", r"data_files: test: there is no file .*none"),
        ("dataset_path: json", "dataset_path: cais/mmlu", r"needs `dataset_path: json`"),
        ("metric: acc,", "metric: bleurt,", r"none of lm-eval's own metrics"),
        ("chance: 0.25", "chance: low", r"metadata\.chance: must be a number, found 'low'"),
        ("doc_to_choice: choices", "doc_to_choice: !function x.y", r"not plain YAML"),
        ("doc_to_choice: choices", "doc_to_chioce: choices", r"choice\.yaml: lm-eval cannot make"),
        ("doc_to_target: label", "doc_to_target: lable", r"document 1: the answer 'lable' is none"),
        ("test_split: test", "test_split: dev", r"choice\.yaml: lm-eval cannot make"),
        ("test_split: test", "include: other.yaml", r"include: not supported"),
        ("task: choice", "task: [", r"not plain YAML"),
    ],
)
def test_a_wrong_task_file_is_refused_by_name(
    tasks: Path, old: str, new: str, message: str
) -> None:
    file = tasks / "choice.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(EvaluationError, match=message):
        load_tasks(tasks)


def test_wrong_data_is_refused_by_line(tasks: Path) -> None:
    data = tasks / "data" / "choice.jsonl"
    data.write_text(data.read_text() + "{'text': 1}\n")
    with pytest.raises(EvaluationError, match=r"choice\.jsonl:9: not valid JSON"):
        load_tasks(tasks)
    data.write_text("\n")
    with pytest.raises(EvaluationError, match="holds no lines"):
        load_tasks(tasks)


def test_an_answer_that_is_no_choice_is_refused(tasks: Path) -> None:
    data = tasks / "data" / "choice.jsonl"
    data.write_text(data.read_text().replace('"label": 3', '"label": 4'))
    with pytest.raises(EvaluationError, match=r"choice\.yaml: document 4: the answer 4 is none"):
        load_tasks(tasks)


def test_a_folder_without_tasks_or_with_a_name_twice_is_refused(
    tasks: Path, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match="holds no lm-eval task files"):
        load_tasks(tmp_path)
    shutil.copy(tasks / "choice.yaml", tasks / "zwei.yaml")
    with pytest.raises(EvaluationError, match=r"zwei\.yaml: task 'choice' is already in"):
        load_tasks(tasks)
