"""A second run answers from disk what the first one had finished, and judges the same calls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import hf_model
import pytest
import torch

from evaluation.lm_eval_adapter import NkiLM, run_tasks
from evaluation.records import TaskResult
from evaluation.request_cache import KEPT, RequestCache
from evaluation.tasks import load_tasks
from model.records import CheckpointRecord

KERNEL = "nki_rmsnorm_kernel"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("requests")
    hf_model.make_checkpoint(folder)
    hf_model.write_tasks(folder / "tasks")
    return folder


@pytest.fixture
def model(folder: Path) -> hf_model.HfModel:
    record = CheckpointRecord.read(folder / "checkpoint.json")
    return hf_model.HfModel(record, {"rmsnorm": KERNEL})


def results(model: hf_model.HfModel, folder: Path, cache: RequestCache) -> list[TaskResult]:
    return run_tasks(model, load_tasks(folder / "tasks"), 5, 24, 4, cache)  # type: ignore[arg-type]


def test_a_second_run_needs_no_model(model: hf_model.HfModel, folder: Path, tmp_path: Path) -> None:
    first = results(model, folder, RequestCache(tmp_path, "key"))
    made, calls = model.forwards, dict(model.calls[KERNEL])
    assert made > 0
    assert [task.requests_cached for task in first] == [0, 0, 0]
    # 5 documents of 4 choices, 5 texts of 10 to 14 tokens in one window each, 5 prompts.
    assert {task.task: task.requests for task in first} == {
        "choice": 20,
        "perplexity": 5,
        "generation": 5,
    }
    cache = RequestCache(tmp_path, "key")
    second = results(model, folder, cache)
    assert model.forwards == made
    assert [task.metrics for task in second] == [task.metrics for task in first]
    assert [task.requests_cached for task in second] == [task.requests for task in first]
    assert cache.kernel_calls() == {KERNEL: calls}


def test_another_key_is_another_model(
    model: hf_model.HfModel, folder: Path, tmp_path: Path
) -> None:
    results(model, folder, RequestCache(tmp_path, "key"))
    made = model.forwards
    assert all(x.requests_cached == 0 for x in results(model, folder, RequestCache(tmp_path, "no")))
    assert model.forwards == 2 * made


def test_an_interrupted_run_is_continued(
    model: hf_model.HfModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = results(model, folder, RequestCache(None, ""))
    needed, calls = model.forwards, dict(model.calls[KERNEL])
    model.forwards = 0
    logits, allowed = model.logits, 2

    def interrupted(sequences: list[list[int]]) -> list[torch.Tensor]:
        if model.forwards == allowed:
            raise KeyboardInterrupt
        return logits(sequences)

    monkeypatch.setattr(model, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results(model, folder, RequestCache(tmp_path, "key"))
    monkeypatch.setattr(model, "logits", logits)
    model.calls[KERNEL].clear()
    cache = RequestCache(tmp_path, "key")
    found = results(model, folder, cache)
    assert model.forwards == needed
    assert 0 < sum(task.requests_cached for task in found) < sum(task.requests for task in found)
    assert [task.metrics for task in found] == [task.metrics for task in whole]
    # What the interrupted run had called, and what was left, are the calls of a whole run.
    earlier = cache.kernel_calls()[KERNEL]
    assert earlier == {"context_encoding": allowed, "token_generation": 0}
    assert {g: n + earlier.get(g, 0) for g, n in model.calls[KERNEL].items()} == calls  # type: ignore[call-overload]


def test_a_kernel_that_was_not_called_stays_uncalled(
    model: hf_model.HfModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "kernel_calls", lambda: {KERNEL: {"context_encoding": 0}})
    results(model, folder, RequestCache(tmp_path, "key"))
    cache = RequestCache(tmp_path, "key")
    results(model, folder, cache)
    assert cache.kernel_calls() == {KERNEL: {"context_encoding": 0}}


@pytest.mark.parametrize("damage", ["torn", "value", "calls", "not json"])
def test_a_damaged_line_is_no_answer(
    model: hf_model.HfModel, folder: Path, tmp_path: Path, damage: str
) -> None:
    whole = results(model, folder, RequestCache(tmp_path, "key"))
    file = tmp_path / "key.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    last = {
        "torn": lines[-1][:-1],
        "value": lines[0].replace(b"true", b"null").replace(b"false", b"true"),
        "calls": lines[-1].replace(b'_encoding": 0', b'_encoding": 1').replace(b'": 1', b'": 7'),
        "not json": b"{]\n",
    }[damage]
    assert last not in lines
    kept = lines[:-1] if damage != "value" else []
    file.write_bytes(b"".join([*kept, last]))
    found = results(model, folder, RequestCache(tmp_path, "key"))
    asked = sum(task.requests for task in found)
    assert sum(task.requests_cached for task in found) < asked
    assert [task.metrics for task in found] == [task.metrics for task in whole]
    again = results(model, folder, RequestCache(tmp_path, "key"))
    assert sum(task.requests_cached for task in again) == asked


def test_answers_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path, "key")
    cache.keep({"a": (float("-inf"), False)}, {}, {})
    cache.keep({"b": (-1.5, True)}, {"c": (1, 2)}, {})
    found = RequestCache(tmp_path, "key")
    assert (found.score("a"), found.score("b"), found.tokens("c")) == (None, (-1.5, True), (1, 2))
    assert (found.score("c"), found.tokens("b")) == (None, None)


def test_old_files_go(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        RequestCache(tmp_path, f"key{number}")
    assert len(list(tmp_path.iterdir())) == KEPT
    assert (tmp_path / f"key{KEPT + 2}.jsonl").exists()


def test_generation_comes_in_batches(model: hf_model.HfModel) -> None:
    ours = NkiLM(model, max_context=24, batch_size=3)  # type: ignore[arg-type]
    options = {"until": ["."], "max_gen_toks": 4, "do_sample": False}
    prompts = ["the cat sees a dog", "red", "six so", "the cat hears", "one two three", "red"]
    alone = [ours.generate_until([SimpleNamespace(args=(p, options))])[0] for p in prompts]
    model.forwards = 0
    fresh = NkiLM(model, max_context=24, batch_size=3)  # type: ignore[arg-type]
    found = fresh.generate_until([SimpleNamespace(args=(p, options)) for p in prompts])
    assert found == alone
    assert model.forwards == 2  # five prompts that differ, three at once


def test_the_batch_that_is_not_full_holds_the_shortest(
    model: hf_model.HfModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    logits = model.logits

    def noted(sequences: list[list[int]]) -> list[torch.Tensor]:
        batches.append([len(tokens) for tokens in sequences])
        return logits(sequences)

    monkeypatch.setattr(model, "logits", noted)
    ours = NkiLM(model, max_context=24, batch_size=3)  # type: ignore[arg-type]
    texts = [[5] * length for length in (9, 4, 6, 8, 7)]
    ours._loglikelihood_tokens([(None, text, [6]) for text in texts])
    assert batches == [[4, 6], [7, 8, 9]]
