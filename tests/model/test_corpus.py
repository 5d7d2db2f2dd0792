import json
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import pytest

from model.training import corpus
from model.training.corpus import KINDS, NUMBERS, Sentence, Split

DATA = Path("config/tasks/data")


def sentences(kind: str, split: Split, count: int = 300) -> list[Sentence]:
    random = Random(7)
    return [corpus.MAKERS[kind](random, split) for _ in range(count)]


def training_texts(count: int) -> list[str]:
    paragraphs = islice(corpus.paragraphs(0, "training"), count)
    return [" ".join(sentence.whole for sentence in paragraph) for paragraph in paragraphs]


def test_a_seed_gives_the_same_corpus_and_another_seed_another() -> None:
    def start(seed: int) -> list[list[Sentence]]:
        return list(islice(corpus.paragraphs(seed, "training"), 20))

    assert start(3) == start(3)
    assert start(3) != start(4)
    assert corpus.texts(3, 5) == corpus.texts(3, 5) != corpus.texts(4, 5)


def test_the_committed_task_data_is_what_the_generator_writes(tmp_path: Path) -> None:
    corpus.write_tasks(tmp_path, seed=1)
    names = sorted(path.name for path in DATA.glob("*.jsonl"))
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (DATA / name).read_text() == (tmp_path / name).read_text(), name


def test_every_word_is_in_the_vocabulary() -> None:
    words = set(" ".join(training_texts(500) + corpus.texts(1, 50)).split())
    assert words <= set(corpus.vocabulary())


@pytest.mark.parametrize("kind", KINDS)
def test_the_choices_are_different_words_and_one_is_right(kind: str) -> None:
    for made in sentences(kind, "heldout"):
        assert len(set(made.choices)) == len(made.choices) == round(1 / corpus.CHANCE[kind])
        assert all(" " not in choice for choice in made.choices)
        assert made.whole.startswith(f"{made.text} {made.answer} ")
        assert made.whole.endswith(" .")


@pytest.mark.parametrize("kind", ["agreement", "facts", "repeat", "sequence"])
def test_held_out_questions_are_in_no_training_text(kind: str) -> None:
    seen = " . ".join(training_texts(4000))
    for made in sentences(kind, "heldout", 100):
        question = made.text.split(" . ")[0]  # of `repeat`: the first list
        assert f" {question} " not in seen


def test_what_is_held_out_does_not_hang_on_the_seed() -> None:
    assert corpus.split_of("agreement", "king", "boat") == corpus.split_of(
        "agreement", "king", "boat"
    )
    share = [
        corpus.split_of("agreement", one, two) == "heldout"
        for one in corpus.NOUNS
        for two in corpus.NOUNS
    ]
    assert 0.05 < sum(share) / len(share) < 0.4


def test_agreement_the_verb_has_the_subjects_number_and_the_distractor_the_other() -> None:
    for made in sentences("agreement", "heldout"):
        _, subject, _, _, distractor = made.text.split()
        assert subject.endswith("s") != distractor.endswith("s")
        assert subject.endswith("s") != made.answer.endswith("s")


def test_arithmetic_the_sums_are_right() -> None:
    for made in sentences("arithmetic", "heldout"):
        left, sign, right, _ = made.text.split()
        values = NUMBERS.index(left), NUMBERS.index(right)
        assert NUMBERS.index(made.answer) == (
            values[0] + values[1] if sign == "plus" else values[0] - values[1]
        )


def test_facts_one_town_has_one_land_and_one_kind_of_goods_in_both_splits() -> None:
    for made in sentences("facts", "heldout") + sentences("facts", "training"):
        town = next(word for word in made.text.split() if word in corpus.TOWNS)
        assert made.answer in corpus.fact_table()[town]


def test_repeat_the_answer_is_the_word_at_the_same_place_of_the_first_list() -> None:
    for made in sentences("repeat", "heldout"):
        first, second = made.text.split(" . ")
        said = second.split(": ")[1].split()
        assert made.answer == first.split(": ")[1].split()[len(said)]


def test_sequence_the_answer_goes_on_by_the_same_step() -> None:
    for made in sentences("sequence", "heldout"):
        items = [*made.text.split(": ")[1].split(), made.answer]
        around = next(r for r in (corpus.DAYS, corpus.MONTHS, NUMBERS) if items[0] in r)
        places = [around.index(item) for item in items]
        steps = {(b - a) % len(around) for a, b in pairwise(places)}
        assert len(steps) == 1


def test_only_words_that_can_be_known_weigh_as_answers() -> None:
    copied = Sentence("repeat", "say : a b c d . again : a b", ("x", "c"), 1, "d .", certain=2)
    assert copied.weights(1.0, 0.2) == [0.2] * 9 + [1.0] * 5
    open_end = Sentence("agreement", "the a near the b", ("x", "y"), 0, "today .", ends=False)
    assert open_end.weights(1.0, 0.2) == [0.2] * 5 + [1.0] + [0.2] * 2


def test_held_out_texts_have_the_length_that_was_asked_for() -> None:
    lengths = [len(json.loads(line)["text"].split()) for line in (DATA / "heldout.jsonl").open()]
    assert len(lengths) == 200
    assert 40 <= min(lengths) <= max(lengths) <= 100


@pytest.mark.parametrize("name", [*KINDS, "generation"])
def test_each_task_has_200_different_documents(name: str) -> None:
    rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").open()]
    assert len({row["text"] for row in rows}) == len(rows) == 200
