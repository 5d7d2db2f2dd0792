"""What a checkpoint can do, measured with plain `transformers`: the figures of the model card.

`python -m model.training.quality model/checkpoints/tiny-qwen3-moe` prints them. The tasks are
those of `config/tasks`, scored as lm-eval scores them (the likeliest choice), in fp32.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.training.corpus import CHANCE, KINDS

TASKS = Path("config/tasks/data")


def read_jsonl(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a JSONL file, the first `limit` of them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:limit]]


@torch.inference_mode()
def log_probabilities(model: Any, sequences: list[list[int]]) -> list[torch.Tensor]:
    """fp32 log-probabilities of the next token, `[len, vocab]` for each sequence.

    Sequences are run together with others of their length, so nothing is padded.
    """
    found: dict[int, torch.Tensor] = {}
    lengths = sorted({len(sequence) for sequence in sequences})
    for length in lengths:
        rows = [row for row, sequence in enumerate(sequences) if len(sequence) == length]
        batch = torch.tensor([sequences[row] for row in rows])
        logits = model(input_ids=batch, use_cache=False).logits.float()
        found.update(zip(rows, logits.log_softmax(-1), strict=True))
    return [found[row] for row in range(len(sequences))]


def choice_accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Share of the questions whose likeliest choice is the right one (choices of one token)."""
    last = log_probabilities(model, [tokenizer(row["text"])["input_ids"] for row in rows])
    right = 0
    for row, scores in zip(rows, last, strict=True):
        choices = tokenizer.convert_tokens_to_ids(row["choices"])
        right += int(scores[-1][choices].argmax()) == row["label"]
    return right / len(rows)


def perplexities(model: Any, tokenizer: Any, texts: list[str]) -> tuple[float, float]:
    """Per token: the model's perplexity, and the best that any unigram model can reach.

    The unigram model is fitted on the very texts it is scored on; one fitted on anything
    else is worse. Each text is read after the end-of-text token, as lm-eval reads it.
    """
    sequences = [tokenizer(text)["input_ids"] for text in texts]
    prefixed = [[tokenizer.eos_token_id, *sequence] for sequence in sequences]
    scores = log_probabilities(model, prefixed)
    total = sum(
        float(score[:-1].gather(1, torch.tensor(sequence)[:, None]).double().sum())
        for score, sequence in zip(scores, sequences, strict=True)
    )
    counts = Counter(token for sequence in sequences for token in sequence)
    tokens = sum(counts.values())
    unigram = -sum(count / tokens * math.log(count / tokens) for count in counts.values())
    return math.exp(-total / tokens), math.exp(unigram)


@torch.inference_mode()
def exact_generation(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Share of the openings that greedy decoding ends with the answer and a full stop."""
    right = 0
    for row in rows:
        prompt = tokenizer(row["text"], return_tensors="pt")
        answer = tokenizer(f"{row['answer']} .")["input_ids"]
        output = model.generate(
            **prompt, max_new_tokens=len(answer), do_sample=False, pad_token_id=0
        )
        right += output[0, prompt["input_ids"].shape[1] :].tolist() == answer
    return right / len(rows)


def measure(checkpoint: Path, tasks: Path = TASKS, limit: int | None = None) -> dict[str, float]:
    """Every figure of the card: accuracies, `perplexity`, `unigram_perplexity`, `generation`."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    figures = {
        kind: choice_accuracy(model, tokenizer, read_jsonl(tasks / f"{kind}.jsonl", limit))
        for kind in KINDS
    }
    texts = [row["text"] for row in read_jsonl(tasks / "heldout.jsonl", limit)]
    figures["perplexity"], figures["unigram_perplexity"] = perplexities(model, tokenizer, texts)
    rows = read_jsonl(tasks / "generation.jsonl", limit)
    figures["generation"] = exact_generation(model, tokenizer, rows)
    return figures


def table(figures: dict[str, float]) -> str:
    """The figures as a Markdown table."""
    lines = ["| task | this model | chance |", "|---|---|---|"]
    lines += [f"| {kind} (accuracy) | {figures[kind]:.3f} | {CHANCE[kind]:.2f} |" for kind in KINDS]
    lines += [
        f"| generation (exact match) | {figures['generation']:.3f} | 0 |",
        f"| held-out text (perplexity per token) | {figures['perplexity']:.2f} | "
        f"{figures['unigram_perplexity']:.1f} (best unigram model) |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure a checkpoint's quality.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tasks", type=Path, default=TASKS)
    arguments = parser.parse_args()
    print(table(measure(arguments.checkpoint, arguments.tasks)))


if __name__ == "__main__":
    main()
