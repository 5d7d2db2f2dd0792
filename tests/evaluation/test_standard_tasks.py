"""lm-eval's own tasks: chosen by name, one clear sentence where the hub cannot be reached."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import hub_cache
import huggingface_hub.constants
import lm_eval.tasks
import pytest
from datasets import Features, List, Value
from hub_cache import TEXT
from lm_eval.evaluator import evaluate
from lm_eval.tasks._index import TaskIndex
from test_lm_eval_adapter import import_hflm
from transformers import PreTrainedTokenizerFast

import evaluation.tasks
from evaluation.inputs import EvaluationError
from evaluation.lm_eval_adapter import NkiLM, run_tasks
from evaluation.offline import hub_allowed
from evaluation.reference import load_hf
from evaluation.tasks import LoadedTask, load_standard_tasks
from model.configuration import parse_config, read_kernel_configuration
from model.download import download
from model.runtime import LanguageModel, load
from model.training import corpus

ROOT = Path(__file__).parents[2]
TINY = ROOT / "model/checkpoints/tiny-qwen3-moe"
SPLITS = ("train", "validation", "test")
DOCUMENTS = 6
ARC = Features(
    {
        "id": TEXT,
        "question": TEXT,
        "choices": {"text": List(TEXT), "label": List(TEXT)},
        "answerKey": TEXT,
    }
)
HELLASWAG = Features(
    {
        "ind": Value("int32"),
        **dict.fromkeys(("activity_label", "ctx_a", "ctx_b", "ctx"), TEXT),
        "endings": List(TEXT),
        **dict.fromkeys(("source_id", "split", "split_type", "label"), TEXT),
    }
)
GSM8K = Features({"question": TEXT, "answer": TEXT})
WIKITEXT = Features({"page": TEXT})
"""The columns of the hub's data sets, as their cards have them."""

METRICS = {
    "arc_easy": ("acc", "acc_norm"),
    "hellaswag": ("acc", "acc_norm"),
    "gsm8k": ("exact_match", "exact_match_flexible-extract"),
    "wikitext": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}


FOLDERS = ("arc", "gsm8k", "hellaswag", "mmlu/default", "wikitext")


@pytest.fixture(scope="module", autouse=True)
def few_folders() -> Iterator[None]:
    """lm-eval's index of these folders alone: that of all its 14,000 tasks takes ten seconds."""
    own, build = Path(lm_eval.tasks.__file__).parent, TaskIndex.build

    def build_few(paths: list[Path]) -> Any:
        assert paths == [own]
        return build([own / folder for folder in FOLDERS])

    evaluation.tasks._standard_manager.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(build_few))
        yield
    evaluation.tasks._standard_manager.cache_clear()


def rows(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Invented documents of each data set, in words that the tiny model knows."""
    found: dict[str, list[dict[str, Any]]] = {"arc": [], "hellaswag": [], "gsm8k": [], "page": []}
    for number, asked in enumerate(corpus.documents("arithmetic", seed, DOCUMENTS)):
        text, right = str(asked["text"]), str(asked["answer"])
        choices, label = asked["choices"], int(str(asked["label"]))
        letters = ["A", "B", "C", "D"]
        found["arc"].append(
            {
                "id": f"arc {number}",
                "question": text,
                "choices": {"text": choices, "label": letters},
                "answerKey": letters[label],
            }
        )
        found["hellaswag"].append(
            {
                "ind": number,
                "activity_label": "sums",
                "ctx_a": "the farmer sings .",
                "ctx_b": text,
                "ctx": f"the farmer sings . {text}",
                "endings": choices,
                "source_id": "invented",
                "split": "val",
                "split_type": "indomain",
                "label": str(label),
            }
        )
        # The model knows no digits: what lm-eval finds in any answer of its is "[invalid]".
        answer = "[invalid]" if number % 3 == 0 else str(number)
        found["gsm8k"].append({"question": f"{text} ?", "answer": f"{right} . #### {answer}"})
    found["page"] = [{"page": f" = one = \n {text}"} for text in corpus.texts(seed, DOCUMENTS)]
    return found


@pytest.fixture(scope="module")
def cached_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A machine without network that ran the tasks before: the data sets are in the cache."""
    cache = tmp_path_factory.mktemp("datasets")
    made = {split: rows(seed) for seed, split in enumerate(SPLITS, start=50)}
    for repository, config, features, key in (
        ("allenai/ai2_arc", "ARC-Easy", ARC, "arc"),
        ("Rowan/hellaswag", "default", HELLASWAG, "hellaswag"),
        ("openai/gsm8k", "main", GSM8K, "gsm8k"),
        ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", WIKITEXT, "page"),
    ):
        splits = {split: made[split][key] for split in SPLITS}
        hub_cache.write(cache, repository, config, features, splits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        yield


LONGEST, NEW_TOKENS = 64, 32
"""Tokens of a request; new tokens where a task names no number: half of it."""


@pytest.fixture
def tiny(tmp_path: Path) -> LanguageModel:
    """The trained tiny model in fp32, with a kernel."""
    config = parse_config(
        {
            "model": "tiny",
            "models": {"tiny": {"source": str(TINY), "manifest": str(TINY / "manifest.json")}},
            "configurations": ["baseline"],
            "buckets": {"context_encoding": [LONGEST], "max_length": LONGEST},
            "generate": {"prompts": "none"},
            "accuracy": {"texts": "none", "tasks": "none", "batch_size": 8},
        }
    )
    download(config, tmp_path / "checkpoint.json")
    kernels = read_kernel_configuration(ROOT / "config/kernels/rmsnorm.yaml")
    return load(tmp_path / "checkpoint.json", kernels, dtype="float32", config=config)


def hflm(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-eval's own adapter on Hugging Face's model of the same checkpoint."""
    made = import_hflm()
    monkeypatch.setattr(made, "max_gen_toks", NEW_TOKENS)
    return made(
        pretrained=load_hf(TINY, "float32"),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(TINY),
        batch_size=1,
        max_length=LONGEST,
        device="cpu",
        prefix_token_id=NkiLM(model, LONGEST, 8).prefix_token_id,
    )


def answers(lm: Any, tasks: list[LoadedTask]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """lm-eval's results, and what the model answered to each task's requests."""
    by_name = {task.name: task.task for task in tasks}
    for task in by_name.values():
        task.set_fewshot_seed(seed=1234)
    found = evaluate(
        lm,
        {"tasks": by_name, "groups": {}, "group_map": {}},
        limit=DOCUMENTS,
        bootstrap_iters=100,
        log_samples=True,
    )
    samples = {
        name: [x["resps"] for x in sorted(each, key=lambda x: (x["filter"], x["doc_id"]))]
        for name, each in found["samples"].items()
    }
    return found["results"], samples


@pytest.mark.usefixtures("cached_hub")
def test_lm_evals_own_tasks_run_from_the_cache_and_give_hflms_figures(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = load_standard_tasks(list(METRICS))
    assert {task.name: task.task.OUTPUT_TYPE for task in tasks} == {
        "arc_easy": "multiple_choice",
        "hellaswag": "multiple_choice",
        "gsm8k": "generate_until",
        "wikitext": "loglikelihood_rolling",
    }
    expected, theirs = answers(hflm(tiny, monkeypatch), tasks)
    _, ours = answers(NkiLM(tiny, LONGEST, 8), tasks)
    assert ours["gsm8k"] == theirs["gsm8k"]
    for name in ("arc_easy", "hellaswag", "wikitext"):
        assert _numbers(ours[name]) == pytest.approx(_numbers(theirs[name]), rel=1e-4)

    found = {result.task: result for result in run_tasks(tiny, tasks, DOCUMENTS, LONGEST, 8)}
    for name, result in found.items():
        assert (result.source, result.documents) == ("standard", DOCUMENTS)
        assert set(result.metrics) == {
            f"{metric}{end}" for metric in METRICS[name] for end in ("", "_stderr")
        }
        for metric in METRICS[name]:
            base, _, filter_name = metric.partition("_flexible")
            key = "flexible-extract" if filter_name else "strict-match"
            key = key if name == "gsm8k" else "none"
            assert result.metrics[metric] == pytest.approx(
                expected[name][f"{base},{key}"], rel=1e-4
            )
    share = found["gsm8k"].metrics["exact_match"]
    assert share == pytest.approx(1 / 3)
    assert found["gsm8k"].metrics["exact_match_stderr"] == pytest.approx(
        math.sqrt(share * (1 - share) / (DOCUMENTS - 1))
    )
    assert found["wikitext"].metrics["bits_per_byte_stderr"] > 0
    assert tiny.kernel_calls()["nki_rmsnorm_kernel"]["token_generation"] > 0
    assert len({task.identity(3) for task in tasks}) == 4
    assert tasks[0].identity(3) != tasks[0].identity(2)


def _numbers(responses: list[Any]) -> list[float]:
    """All log-likelihoods in nested answers."""
    if isinstance(responses, list | tuple):
        return [number for each in responses for number in _numbers(each)]
    return [float(responses)]


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
