"""Token by token: what both devices' models do with a step of token generation.

Wall-clock times are this machine's, measured by `time.perf_counter`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from model.configuration import Sampling


@dataclass(frozen=True)
class Generation:
    """One generated continuation, without its prompt; times are measured on this CPU."""

    tokens: list[int]
    ttft_ms: float
    itl_ms: list[float]
    end_to_end_ms: float


def timed_generation(
    encode: Callable[[], Tensor],
    step: Callable[[int, int], Tensor],
    *,
    prompt_tokens: int,
    most_tokens: int,
    stop: set[int],
    sampling: Sampling | None,
) -> Generation:
    """Continue one prompt, greedily or by seeded sampling, and time every token.

    Args:
        encode: runs the prompt and gives the logits [V] of its last token.
        step: (token, position) -> logits [V].
        prompt_tokens: the prompt's length.
        most_tokens: to generate, what the cache has room for included.
        stop: tokens that end the continuation, and are its last.
        sampling: None for greedy.
    """
    random = None if sampling is None else torch.Generator().manual_seed(sampling.seed)
    start = time.perf_counter()
    tokens = [choose(encode(), sampling, random)]
    times = [time.perf_counter()]
    while len(tokens) < most_tokens and tokens[-1] not in stop:
        logits = step(tokens[-1], prompt_tokens + len(tokens) - 1)
        tokens.append(choose(logits, sampling, random))
        times.append(time.perf_counter())
    gaps = [1e3 * (b - a) for a, b in pairwise(times)]
    return Generation(tokens, 1e3 * (times[0] - start), gaps, 1e3 * (times[-1] - start))


def teacher_forced(
    sequences: Sequence[list[int]], prefix: int, step: Callable[[list[int], int], Tensor]
) -> list[Tensor]:
    """Feed a batch of sequences whose first `prefix` tokens are encoded already.

    Args:
        sequences: longer than `prefix`.
        prefix: tokens in the cache.
        step: (a token per sequence, their position) -> logits [rows, V].

    Returns:
        Per sequence fp32 [len - prefix, V]; row i follows token `prefix + i`.
    """
    rows: list[list[Tensor]] = [[] for _ in sequences]
    for position in range(prefix, max(map(len, sequences))):
        # A sequence that has ended is fed its last token: nobody reads what follows.
        logits = step([tokens[min(position, len(tokens) - 1)] for tokens in sequences], position)
        for i, tokens in enumerate(sequences):
            if position < len(tokens):
                rows[i].append(logits[i])
    return [torch.stack(row) for row in rows]


def choose(logits: Tensor, sampling: Sampling | None, random: torch.Generator | None) -> int:
    """The next token: the most likely, or a draw by temperature, top-k and top-p."""
    if sampling is None:
        return int(logits.argmax())
    values, tokens = (logits / sampling.temperature).topk(min(sampling.top_k, logits.numel()))
    probabilities = values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    return int(tokens[probabilities.multinomial(1, generator=random)])
