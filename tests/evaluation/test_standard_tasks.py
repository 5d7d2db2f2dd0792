"""lm-eval's own tasks: chosen by name, one clear sentence where the hub cannot be reached."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import hf_model
import huggingface_hub.constants
import pytest

import evaluation.tasks
from evaluation.inputs import EvaluationError
from evaluation.lm_eval_adapter import run_tasks
from evaluation.offline import hub_allowed
from evaluation.tasks import load_standard_tasks
from model.records import CheckpointRecord

WORDS = "the cat sees a dog and one two three red blue green"
HELLASWAG = {
    "activity_label": "Cat",
    "ctx_a": "the cat sees",
    "ctx_b": "a dog",
    "endings": ["red", "blue", "green", "one two"],
    "label": "2",
}
DATA: dict[str, dict[str, Any]] = {
    "allenai/ai2_arc": {
        "question": "the cat sees",
        "choices": {"text": ["red", "blue", "green"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    "Rowan/hellaswag": HELLASWAG,
    "openai/gsm8k": {"question": "one and two", "answer": "three #### 3"},
    "EleutherAI/wikitext_document_level": {"page": WORDS},
}
"""Hub data set -> a document of it, in its own columns."""

METRICS = {
    "arc_easy": {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"},
    "hellaswag": {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"},
    "gsm8k": {
        "exact_match",
        "exact_match_stderr",
        "exact_match_flexible-extract",
        "exact_match_flexible-extract_stderr",
    },
    "wikitext": {"word_perplexity", "byte_perplexity", "bits_per_byte"},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has the data sets, of eight documents each."""

    def load(path: str, name: str | None = None, **_: object) -> Any:
        rows = datasets.Dataset.from_list([DATA[path]] * 8)
        return datasets.DatasetDict({split: rows for split in ("train", "validation", "test")})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(evaluation.tasks, "hub_problem", lambda: None)


@pytest.mark.slow  # lm-eval indexes its 14,000 tasks first
@pytest.mark.usefixtures("hub")
def test_standard_tasks_run_with_their_metrics_and_standard_errors(tmp_path: Path) -> None:
    record = CheckpointRecord.read(hf_model.make_checkpoint(tmp_path))
    model: Any = hf_model.HfModel(record)
    tasks = load_standard_tasks(list(METRICS))
    found = run_tasks(model, tasks, 3, 24, 4)
    for result in found:
        assert result.source == "standard"
        assert result.documents == 3
        assert set(result.metrics) == METRICS[result.task]
        assert all(map(math.isfinite, result.metrics.values()))
    assert len({task.identity(3) for task in tasks}) == 4
    assert tasks[0].identity(3) != tasks[0].identity(2)


@pytest.mark.slow
def test_an_unreachable_hub_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(EvaluationError) as error:
        load_standard_tasks(["arc_easy"])
    message = str(error.value)
    assert message.startswith("accuracy.standard_tasks: arc_easy: http://127.0.0.1:9 cannot be")
    assert "HF_HOME" in message
    assert "is kept" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "taken", "message"),
    [
        (["arc_easi"], [], "no single task 'arc_easi'; did you mean arc_easy"),
        (["mmlu"], [], "no single task 'mmlu'"),
        (["arc_easy", "arc_easy"], [], "already a task 'arc_easy'"),
        (["arc_easy"], ["arc_easy"], "already a task 'arc_easy'"),
    ],
)
def test_a_wrong_name_is_refused(names: list[str], taken: list[str], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_standard_tasks(names, taken)


def test_no_names_need_nothing() -> None:
    assert load_standard_tasks([]) == []


def test_the_hub_is_allowed_only_within_the_block() -> None:
    places: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)

    def leave() -> None:
        with hub_allowed():
            assert [place.HF_HUB_OFFLINE for place in places] == [False, False]
            raise KeyError

    assert [place.HF_HUB_OFFLINE for place in places] == [True, True]
    with pytest.raises(KeyError):
        leave()
    assert [place.HF_HUB_OFFLINE for place in places] == [True, True]
