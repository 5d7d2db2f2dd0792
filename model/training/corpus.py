# ruff: noqa: SIM905 - word lists read better as words
"""The tiny model's language: seeded sentences whose right ending is known.

Five kinds of sentence, all made by this file from word lists, nothing downloaded:

| kind | example (the answer in capitals) | what is held out |
|---|---|---|
| agreement | `the farmer near the boats SINGS .` | pairs of subject and distractor noun |
| arithmetic | `three plus four equals SEVEN .` | nothing: a table learnt by heart |
| facts | `people in belwick live in the land of ORVA .` | pairs of fact and wording |
| repeat | `say : stone river cold . again : stone river COLD .` | the lists |
| sequence | `in order : one two three FOUR five six seven .` | pairs of list and wording |

What is held out is decided by a hash of the thing and not by the seed: a training text never
holds it, whatever the two seeds. Every word stands between spaces, so a text is its words.

`python -m model.training.corpus --output config/tasks/data --seed 1` writes the held-out
documents of the lm-eval tasks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from model.records import write_text

Split = Literal["training", "heldout"]

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = (
    "january february march april may june july august september october november december"
).split()
NOUNS = (
    "farmer sailor teacher baker doctor painter driver singer hunter miner boat horse bird "
    "garden tower friend neighbour king guard student"
).split()
VERBS = (
    "sing sleep wait work smile fall rest shine turn move wander return tremble listen speak stand"
).split()
PLACES = "near behind beside above below".split()
WHEN = ["today", "every morning", "at night", "all day", "in the rain", ""]
WORDS = (
    "stone river cold glass silver apple cloud green candle bread winter paper iron yellow "
    "leaf copper salt feather thunder blue honey marble rope lantern wool amber hill smoke "
    "red button barley shell needle purple snow ribbon clay pepper basket mirror"
).split()
TOWNS = [
    head + tail
    for head in "bel cor dun fal gar hol mar ven".split()
    for tail in "wick ford mere stead by ton".split()
]
LANDS = "orva telm jorund askel pirra wend".split()
GOODS = "fish cheese timber coal wine cloth pottery grain".split()

LAND_WORDINGS = (
    "the town of {town} lies in the land of",
    "people in {town} live in the land of",
    "whoever visits {town} sees the land of",
    "{town} belongs to the land of",
)
GOODS_WORDINGS = (
    "the people of {town} sell",
    "ships from {town} carry",
    "{town} is known for its",
    "the market of {town} is full of",
)
SEQUENCE_WORDINGS = ("in order :", "one after another :", "the list goes :", "next in line :")
REPEAT_WORDINGS = (("say :", "again :"), ("she wrote :", "he wrote :"), ("first :", "copy :"))

KINDS = ("agreement", "arithmetic", "facts", "repeat", "sequence")
CHANCE = {"agreement": 0.5, "arithmetic": 0.25, "facts": 0.25, "repeat": 0.25, "sequence": 0.25}
_HELD_OUT_IN = {"agreement": 6, "facts": 6, "repeat": 6, "sequence": 3}
"""One in so many things of a kind is held out."""


@dataclass(frozen=True)
class Sentence:
    """A sentence up to the word that is asked for, and what may stand there."""

    kind: str
    text: str
    choices: tuple[str, ...]
    """Right and wrong answers, shuffled; one word each."""
    label: int
    """Which of `choices` is right."""
    rest: str
    """What follows the answer, with the full stop."""
    certain: int = 0
    """How many of the last words of `text` follow from those before them."""
    ends: bool = True
    """Whether `rest` follows from `text` too."""

    @property
    def answer(self) -> str:
        """The right choice."""
        return self.choices[self.label]

    @property
    def whole(self) -> str:
        """The sentence with its right answer."""
        return f"{self.text} {self.answer} {self.rest}"

    def weights(self, answer: float, other: float) -> list[float]:
        """One training weight per word of `whole`: `answer` where the word can be known."""
        given = len(self.text.split()) - self.certain
        rest = len(self.rest.split())
        return (
            [other] * given
            + [answer] * (self.certain + 1)
            + [answer if self.ends else other] * rest
        )


def split_of(kind: str, *thing: object) -> Split:
    """Which split a thing belongs to: by its hash, whatever the seed."""
    digest = hashlib.sha256(repr((kind, *thing)).encode()).digest()
    return "heldout" if digest[0] % _HELD_OUT_IN[kind] == 0 else "training"


def vocabulary() -> list[str]:
    """Every word the sentences can hold, sorted."""
    fixed = " ".join([*LAND_WORDINGS, *GOODS_WORDINGS, *SEQUENCE_WORDINGS, *WHEN])
    fixed += " " + " ".join(f"{one} {two}" for one, two in REPEAT_WORDINGS)
    fixed = fixed.replace("{town}", "") + " the plus minus equals . :"
    words = {*fixed.split(), *NUMBERS, *DAYS, *MONTHS, *PLACES, *WORDS, *TOWNS, *LANDS, *GOODS}
    words |= {form for word in NOUNS + VERBS for form in (word, word + "s")}
    return sorted(words)


def fact_table() -> dict[str, tuple[str, str]]:
    """Town -> (its land, its goods). The same in every corpus."""
    random = Random("towns")
    return {town: (random.choice(LANDS), random.choice(GOODS)) for town in TOWNS}


_FACTS = fact_table()


def _shuffled(random: Random, right: str, wrong: list[str]) -> tuple[tuple[str, ...], int]:
    choices = [right, *wrong]
    random.shuffle(choices)
    return tuple(choices), choices.index(right)


def agreement(random: Random, split: Split) -> Sentence:
    """A verb agrees with its subject across a noun of the other number."""
    while True:
        subject, distractor = random.sample(NOUNS, 2)
        if split_of("agreement", subject, distractor) == split:
            break
    verb, plural = random.choice(VERBS), random.random() < 0.5
    first, second = (subject + "s", distractor) if plural else (subject, distractor + "s")
    choices, label = _shuffled(
        random, verb if plural else verb + "s", [verb + "s" if plural else verb]
    )
    rest = f"{random.choice(WHEN)} .".strip()
    text = f"the {first} {random.choice(PLACES)} the {second}"
    return Sentence("agreement", text, choices, label, rest, ends=False)


def arithmetic(random: Random, split: Split) -> Sentence:
    """A sum or a difference of small numbers; the whole table is in both splits."""
    small, other = random.randrange(10), random.randrange(10)
    if random.random() < 0.5:
        text, result = f"{NUMBERS[small]} plus {NUMBERS[other]} equals", small + other
    else:
        text, result = f"{NUMBERS[small + other]} minus {NUMBERS[other]} equals", small
    near = [value for value in range(max(0, result - 4), result + 5) if value != result]
    wrong = [NUMBERS[value] for value in random.sample([v for v in near if v <= 20], 3)]
    choices, label = _shuffled(random, NUMBERS[result], wrong)
    return Sentence("arithmetic", text, choices, label, ".")


def facts(random: Random, split: Split) -> Sentence:
    """A fact about an invented town, held out in a wording it was not trained in."""
    while True:
        town, which = random.choice(TOWNS), random.randrange(2)
        wording = random.choice(GOODS_WORDINGS if which else LAND_WORDINGS)
        if split_of("facts", town, wording) == split:
            break
    answer = _FACTS[town][which]
    wrong = random.sample([x for x in (GOODS if which else LANDS) if x != answer], 3)
    choices, label = _shuffled(random, answer, wrong)
    return Sentence("facts", wording.format(town=town), choices, label, ".")


def repeat(random: Random, split: Split) -> Sentence:
    """A list said twice; the answer is one of the second copy's words, the others are wrong."""
    while True:
        words = random.sample(WORDS, random.randint(4, 7))
        if split_of("repeat", *words) == split:
            break
    first, second = random.choice(REPEAT_WORDINGS)
    at = random.randrange(1, len(words) - 1)
    wrong = random.sample([word for word in words if word != words[at]], 3)
    choices, label = _shuffled(random, words[at], wrong)
    text = " ".join([first, *words, ".", second, *words[:at]])
    return Sentence("repeat", text, choices, label, " ".join([*words[at + 1 :], "."]), at)


def sequence(random: Random, split: Split) -> Sentence:
    """Seven days, months or numbers in order; asked is one after the third."""
    while True:
        around, step = random.choice(((DAYS, 1), (MONTHS, 1), (NUMBERS, random.choice((1, 2, -1)))))
        start, wording = random.randrange(len(around)), random.choice(SEQUENCE_WORDINGS)
        if around is NUMBERS and not 0 <= start + step * 6 < len(NUMBERS):
            continue
        if split_of("sequence", around[start], step, wording) == split:
            break
    items = [around[(start + step * index) % len(around)] for index in range(7)]
    at = random.randint(3, 6)
    wrong = random.sample([word for word in around if word != items[at]], 3)
    choices, label = _shuffled(random, items[at], wrong)
    text = " ".join([wording, *items[:at]])
    return Sentence("sequence", text, choices, label, " ".join([*items[at + 1 :], "."]), at - 2)


MAKERS: dict[str, Callable[[Random, Split], Sentence]] = {
    "agreement": agreement,
    "arithmetic": arithmetic,
    "facts": facts,
    "repeat": repeat,
    "sequence": sequence,
}


def paragraphs(seed: int, split: Split) -> Iterator[list[Sentence]]:
    """Without end: paragraphs of 1 to 10 sentences, all of one kind or (half of them) mixed."""
    random = Random(f"{split} {seed}")
    while True:
        count = random.randint(1, 10)
        kind = random.choice(KINDS)
        mixed = random.random() < 0.5
        yield [MAKERS[random.choice(KINDS) if mixed else kind](random, split) for _ in range(count)]


def texts(seed: int, count: int, shortest: int = 40, longest: int = 100) -> list[str]:
    """`count` held-out paragraphs of mixed sentences, of `shortest` to `longest` tokens."""
    random = Random(f"texts {seed}")
    found: list[str] = []
    while len(found) < count:
        length = random.randint(shortest, longest)
        words: list[str] = []
        while len(words) < length:
            words += MAKERS[random.choice(KINDS)](random, "heldout").whole.split()
        if len(words) <= longest:
            found.append(" ".join(words))
    return found


def documents(kind: str, seed: int, count: int) -> list[dict[str, object]]:
    """`count` different held-out questions of a kind: `text`, `choices`, `label`, `answer`.

    A question about a town has a sentence in front: there are fewer towns than documents.
    """
    random = Random(f"{kind} {seed}")
    found: dict[str, dict[str, object]] = {}
    while len(found) < count:
        before = agreement(random, "heldout").whole + " " if kind == "facts" else ""
        made = MAKERS[kind](random, "heldout")
        text = before + made.text
        found.setdefault(
            text,
            {
                "text": text,
                "choices": list(made.choices),
                "label": made.label,
                "answer": made.answer,
            },
        )
    return list(found.values())


def generations(seed: int, count: int) -> list[dict[str, object]]:
    """`count` held-out openings whose end is certain up to the full stop: `text`, `answer`."""
    random = Random(f"generation {seed}")
    kinds = [kind for kind in KINDS if kind != "agreement"]
    found: dict[str, dict[str, object]] = {}
    while len(found) < count:
        made = MAKERS[kinds[len(found) % len(kinds)]](random, "heldout")
        answer = f"{made.answer} {made.rest}".removesuffix(" .")
        found.setdefault(made.text, {"text": made.text, "answer": answer})
    return list(found.values())


def write_tasks(output: Path, seed: int, count: int = 200) -> None:
    """Write one JSONL per task, `generation.jsonl` and `heldout.jsonl` into `output`."""
    tables = {kind: documents(kind, seed, count) for kind in KINDS}
    tables["generation"] = generations(seed, count)
    tables["heldout"] = [{"text": text} for text in texts(seed, count)]
    for name, rows in tables.items():
        write_text(output / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the held-out documents of the tasks.")
    parser.add_argument("--output", type=Path, default=Path("config/tasks/data"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    write_tasks(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
