"""Logit matching: the accuracy check of NxD Inference, over greedy continuations.

The reference continues each prompt greedily and keeps its logits. The model under test does the
same from the same prompts. Position by position,

1. tokens that the reference prohibits (its logit is -inf) are left out;
2. a line is fitted by least squares, ours = slope * reference + shift, and only the shift is
   removed from ours: a constant added to all logits changes no probability, a slope does;
3. among the reference's k most likely tokens, for each k of the tolerance map,
   max (|ours - reference| - absolute) / max |reference| must be within the relative tolerance;
4. where the most likely token differs, max(ours) - ours[the reference's token] must be less
   than the divergence tolerance.

After a divergence the two texts would go apart, so every sequence is restarted from the
reference's tokens, up to and with the diverging position: the rest is compared on equal terms.

Rules and default tolerances are NxD Inference's (`check_accuracy_logits_v2` and the logit
validation behind it). One rule differs: there a token is also left out where only the model
under test says -inf, so that a model which prohibits what it gets wrong would pass; here that
is an infinite error. NaN is an infinite error too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.interface import LanguageModel
from evaluation.records import LogitMatch, TopKError
from model.configuration import TopKTolerance

Continue = Callable[[list[list[int]], list[list[int]]], Sequence[torch.Tensor]]
"""(prefixes, what the reference says next) -> per sequence logits `[tokens, vocab]`: row 0 after
the prefix, row i after the first i of the following tokens too, at least one row. A greedy
generation feeds just these tokens as long as it agrees; rows after a divergence are not read."""


@dataclass(frozen=True)
class PositionError:
    """One position of one sequence."""

    top_k: tuple[float, ...]
    """In the order of the tolerances; inf where logits are not finite."""
    shift: float
    diverges: bool
    divergence_difference: float
    """max(ours) - ours[the reference's token]; 0 without a divergence."""
    finite: bool


def match_logits(
    comparison: str,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[torch.Tensor],
    continue_: Continue,
    tolerances: Sequence[TopKTolerance],
    divergence_tolerance: float,
) -> LogitMatch:
    """Match greedy continuations of `prompts` with the reference's.

    Args:
        comparison: What is compared with what, for the record.
        prompts: Token ids, per sequence.
        expected: The reference's logits of its own greedy continuation, per sequence
            `[new tokens, vocab]`, of one shape.
        continue_: The model under test.
        tolerances: The tolerance map.
        divergence_tolerance: In logits.

    Raises:
        ValueError: there is nothing to compare, shapes do not fit, a k is larger than the
            vocabulary or repeated, or the reference is not finite.
    """
    _check(comparison, prompts, expected, tolerances)
    following = [[int(token) for token in rows.argmax(-1)] for rows in expected]
    found: list[list[PositionError]] = [[] for _ in prompts]
    start = starts = 0
    while start < len(following[0]):
        starts += 1
        prefixes = [
            [*prompt, *tokens[:start]] for prompt, tokens in zip(prompts, following, strict=True)
        ]
        ours = continue_(prefixes, [tokens[start:] for tokens in following])
        errors = [
            _errors(comparison, rows, wanted[start:], tolerances)
            for rows, wanted in zip(ours, expected, strict=True)
        ]
        # All sequences begin again together, at the first divergence of any of them.
        count = min(_until_divergence(rows) for rows in errors)
        for rows, kept in zip(errors, found, strict=True):
            kept += rows[:count]
        start += count
    return _record(comparison, found, tolerances, divergence_tolerance, starts - 1)


def continuation(model: LanguageModel) -> Continue:
    """A model's greedy continuation: the prefix by context encoding, the rest token by token.

    The prefixes must be of one length.
    """

    def logits(prefixes: list[list[int]], following: list[list[int]]) -> Sequence[torch.Tensor]:
        first = [rows[-1:] for rows in model.logits(prefixes)]
        if len(following[0]) == 1:
            return first
        fed = [prefix + after[:-1] for prefix, after in zip(prefixes, following, strict=True)]
        decoded = model.decode_logits(fed, len(prefixes[0]))
        return [torch.cat(rows) for rows in zip(first, decoded, strict=True)]

    return logits


def position_error(
    ours: torch.Tensor, expected: torch.Tensor, tolerances: Sequence[TopKTolerance]
) -> PositionError:
    """Compare one position's logits, both `[vocab]`, in float64."""
    token = int(expected.argmax())
    allowed = ~torch.isneginf(expected)
    actual, wanted = ours[allowed].double().numpy(), expected[allowed].double().numpy()
    if not np.isfinite(actual).all():
        worst = tuple(math.inf for _ in tolerances)
        return PositionError(worst, math.inf, True, math.inf, finite=False)
    design = np.stack([wanted, np.ones_like(wanted)], axis=1)
    shift = float(np.linalg.lstsq(design, actual, rcond=None)[0][1])
    actual = actual - shift
    order = np.argsort(-wanted, kind="stable")
    errors = []
    for tolerance in tolerances:
        chosen = order[: tolerance.k]
        largest = float(np.abs(wanted[chosen]).max())
        excess = float(np.abs(actual[chosen] - wanted[chosen]).max()) - tolerance.absolute
        errors.append(_ratio(max(excess, 0.0), largest))
    diverges = int(ours.argmax()) != token
    # Of the logits as they are: a shift cancels in a difference.
    difference = float(ours.double().max() - ours.double()[token]) if diverges else 0.0
    if math.isnan(difference):  # NaN at a token that the reference prohibits
        difference = math.inf
    return PositionError(tuple(errors), shift, diverges, difference, finite=True)


def _errors(
    comparison: str,
    ours: torch.Tensor,
    expected: torch.Tensor,
    tolerances: Sequence[TopKTolerance],
) -> list[PositionError]:
    if ours.ndim != 2 or not len(ours) or ours.shape[1] != expected.shape[1]:
        raise ValueError(
            f"{comparison}: the model's logits have shape {list(ours.shape)}; "
            f"[at least 1, {expected.shape[1]}] was expected"
        )
    return [
        position_error(row, wanted, tolerances)
        for row, wanted in zip(ours.detach(), expected, strict=False)
    ]


def _until_divergence(errors: Sequence[PositionError]) -> int:
    """How many positions are comparable: up to and with the first that diverges."""
    for index, error in enumerate(errors):
        if error.diverges:
            return index + 1
    return len(errors)


def _record(
    comparison: str,
    found: Sequence[Sequence[PositionError]],
    tolerances: Sequence[TopKTolerance],
    divergence_tolerance: float,
    restarts: int,
) -> LogitMatch:
    places = [(i, j, error) for i, errors in enumerate(found) for j, error in enumerate(errors)]
    top_k = []
    for index, tolerance in enumerate(tolerances):
        sequence, token, worst = max(places, key=lambda place: place[2].top_k[index])
        error = worst.top_k[index]
        top_k.append(
            TopKError(
                k=tolerance.k,
                relative_error=error,
                absolute_tolerance=tolerance.absolute,
                relative_tolerance=tolerance.relative,
                sequence=sequence,
                token=token,
                passed=math.isfinite(error) and error <= tolerance.relative,
            )
        )
    diverging = [(token, error) for _, token, error in places if error.diverges]
    difference = max((error.divergence_difference for _, error in diverging), default=0.0)
    finite = all(error.finite for _, _, error in places)
    return LogitMatch(
        comparison=comparison,
        sequences=len(found),
        tokens=len(places),
        top_k=top_k,
        divergences=len(diverging),
        first_divergence=min((token for token, _ in diverging), default=None),
        max_divergence_difference=difference,
        divergence_tolerance=divergence_tolerance,
        restarts=restarts,
        max_abs_shift=max(abs(error.shift) for _, _, error in places),
        finite=finite,
        passed=finite
        and all(error.passed for error in top_k)
        and (not diverging or difference < divergence_tolerance),
    )


def _ratio(error: float, largest: float) -> float:
    """`error / largest`, where an error of a reference of zeros is infinite."""
    if largest > 0:
        return error / largest
    return 0.0 if error == 0 else math.inf


def _check(
    comparison: str,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[torch.Tensor],
    tolerances: Sequence[TopKTolerance],
) -> None:
    shapes = {tuple(rows.shape) for rows in expected}
    if not expected or len(prompts) != len(expected) or len(shapes) != 1:
        raise ValueError(
            f"{comparison}: {len(prompts)} prompts and reference logits of the shapes "
            f"{sorted(shapes)}; as many of each are needed, at least one, all of one shape"
        )
    (shape,) = shapes
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{comparison}: reference logits of shape {list(shape)}; [new tokens, vocab] is "
            "needed, not empty"
        )
    ks = [tolerance.k for tolerance in tolerances]
    too_large = [k for k in ks if k is not None and k > shape[1]]
    if too_large or not ks or len(set(ks)) != len(ks):
        raise ValueError(
            f"{comparison}: the tolerances are for k = {ks}; each k once, at most the "
            f"vocabulary's {shape[1]} tokens (null: all of them)"
        )
    for index, rows in enumerate(expected):
        allowed = rows[~torch.isneginf(rows)]
        if not torch.isfinite(allowed).all() or torch.isneginf(rows).all(-1).any():
            raise ValueError(
                f"{comparison}: the reference's logits of sequence {index} are NaN, infinite, or "
                "prohibit every token; the reference is broken"
            )
