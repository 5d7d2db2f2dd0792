"""Logit matching on logits made for it: every rule alone, divergences, tolerance edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from evaluation.logit_matching import continuation, match_logits, position_error
from evaluation.records import LogitMatch
from model.configuration import TopKTolerance

PROMPTS = [[7, 1], [8, 1]]
TOLERANCES = [
    TopKTolerance(k=2, absolute=0.0, relative=0.01),
    TopKTolerance(k=None, absolute=0.0, relative=0.05),
]
# Per sequence 5 new tokens of a vocabulary of 6; the largest logits are 8 and 4.
EXPECTED = [
    torch.tensor([8.0, 4.0, 0.0, -2.0, -1.0, 1.0]).roll(shift).repeat(5, 1) for shift in (0, 2)
]


class Model:
    """Greedy generation from logits made beforehand; after a divergence it says nonsense."""

    def __init__(self, logits: list[torch.Tensor]) -> None:
        self.logits = logits
        self.prefixes: list[list[list[int]]] = []

    def __call__(self, prefixes: list[list[int]], following: list[list[int]]) -> list[torch.Tensor]:
        self.prefixes.append([list(prefix) for prefix in prefixes])
        result = []
        for rows, expected, prefix, after in zip(
            self.logits, EXPECTED, prefixes, following, strict=True
        ):
            start = len(prefix) - 2
            assert len(after) == len(rows) - start
            given = rows[start:].clone()
            best = given.argmax(-1) != expected[start:].argmax(-1)
            if best.any():
                given[int(best.nonzero()[0]) + 1 :] = torch.nan
            result.append(given)
        return result


def match(
    change: Callable[[list[torch.Tensor]], object] = lambda _: None,
    tolerances: list[TopKTolerance] = TOLERANCES,
    divergence_tolerance: float = 0.1,
) -> tuple[LogitMatch, Model]:
    logits = [rows.clone() for rows in EXPECTED]
    change(logits)
    model = Model(logits)
    found = match_logits("x", PROMPTS, EXPECTED, model, tolerances, divergence_tolerance)
    return found, model


def near_tie(sequence: int, token: int, difference: float) -> Callable[[Any], object]:
    """The second best wins by `difference`, all else as it was; errors stay large."""

    def change(logits: list[torch.Tensor]) -> None:
        row = logits[sequence][token]
        first, second = row.topk(2).indices
        row[second] = row[first] + difference

    return change


LOOSE = [TopKTolerance(k=None, absolute=0.0, relative=1.0)]


def test_equal_logits_match() -> None:
    found, model = match()
    assert found.passed
    assert found.finite
    assert (found.sequences, found.tokens, found.restarts, found.divergences) == (2, 10, 0, 0)
    assert found.first_divergence is None
    assert [error.relative_error for error in found.top_k] == pytest.approx([0, 0], abs=1e-12)
    assert model.prefixes == [PROMPTS]


@pytest.mark.parametrize("shift", [3.0, -20.0])
def test_a_shift_is_removed(shift: float) -> None:
    found, _ = match(lambda logits: [rows.add_(shift) for rows in logits])
    assert found.passed
    assert found.max_abs_shift == pytest.approx(abs(shift))
    assert found.top_k[1].relative_error == pytest.approx(0, abs=1e-9)


def test_a_slope_is_not_removed() -> None:
    found, _ = match(lambda logits: [rows.mul_(1.02) for rows in logits])
    assert [error.relative_error for error in found.top_k] == pytest.approx([0.02, 0.02])
    assert [error.passed for error in found.top_k] == [False, True]
    assert not found.passed


def test_the_error_is_of_the_largest_of_the_k() -> None:
    # By hand: shift 0 (the error is orthogonal to the logits and to a constant), then |error|.
    expected = torch.tensor([3.0, 1.0, -1.0, -3.0])
    error = torch.tensor([0.01, -0.03, 0.03, -0.01])
    assert float(error @ expected) == pytest.approx(0, abs=1e-7)
    tolerances = [TopKTolerance(k=k, absolute=0.005, relative=1) for k in (1, 2, None)]
    found = position_error(expected + error, expected, tolerances)
    assert found.shift == pytest.approx(0, abs=1e-7)
    assert found.top_k == pytest.approx((0.005 / 3, 0.025 / 3, 0.025 / 3), rel=1e-4)


def test_the_largest_of_the_k_is_by_size_not_by_rank() -> None:
    expected = torch.tensor([1.0, 0.0, -9.0, 0.5])
    found = position_error(expected * 1.1, expected, [TopKTolerance(relative=1, absolute=0)])
    assert found.top_k == pytest.approx((0.1,), rel=1e-3)


@pytest.mark.parametrize(("slope", "passed"), [(1.0499, True), (1.0501, False)])
def test_the_edge_of_a_tolerance(slope: float, passed: bool) -> None:
    found, _ = match(
        lambda logits: [rows.mul_(slope) for rows in logits], tolerances=[TOLERANCES[1]]
    )
    assert found.passed is passed


def test_the_absolute_tolerance_is_taken_off_first() -> None:
    tolerances = [TopKTolerance(k=2, absolute=0.09, relative=0.01)]
    found, _ = match(lambda logits: [rows.mul_(1.02) for rows in logits], tolerances)
    assert found.top_k[0].relative_error == pytest.approx((8 * 0.02 - 0.09) / 8, rel=1e-5)
    assert found.passed


def test_an_error_outside_the_top_k_counts_only_for_all() -> None:
    def change(logits: list[torch.Tensor]) -> None:
        logits[1][4, 5] += 0.2

    found, _ = match(change)
    assert [error.passed for error in found.top_k] == [True, True]
    assert found.top_k[0].relative_error < 0.01 < found.top_k[1].relative_error
    assert (found.top_k[1].sequence, found.top_k[1].token) == (1, 4)


@pytest.mark.parametrize("token", [0, 2, 4])
def test_after_a_divergence_all_go_on_from_the_references_tokens(token: int) -> None:
    found, model = match(near_tie(1, token, 0.05), LOOSE)
    assert found.passed
    assert (found.divergences, found.first_divergence, found.tokens) == (1, token, 10)
    assert found.max_divergence_difference == pytest.approx(0.05, abs=1e-5)
    assert found.restarts == (0 if token == 4 else 1)
    if token < 4:  # both sequences begin anew after the diverging token, which is the reference's
        best = [int(rows[0].argmax()) for rows in EXPECTED]
        again = [[*p, *[b] * (token + 1)] for p, b in zip(PROMPTS, best, strict=True)]
        assert model.prefixes == [PROMPTS, again]


def test_two_divergences_are_two_restarts_and_the_worst_is_kept() -> None:
    def change(logits: list[torch.Tensor]) -> None:
        near_tie(0, 1, 0.03)(logits)
        near_tie(1, 3, 0.06)(logits)

    found, _ = match(change, LOOSE)
    assert (found.divergences, found.first_divergence, found.restarts) == (2, 1, 2)
    assert found.max_divergence_difference == pytest.approx(0.06, abs=1e-5)


@pytest.mark.parametrize(("difference", "passed"), [(0.099, True), (0.101, False)])
def test_the_edge_of_the_divergence_tolerance(difference: float, passed: bool) -> None:
    assert match(near_tie(0, 2, difference), LOOSE)[0].passed is passed


def test_what_follows_a_divergence_is_compared_too() -> None:
    def change(logits: list[torch.Tensor]) -> None:
        near_tie(0, 1, 0.03)(logits)
        logits[0][3] *= 1.5

    found, _ = match(change, [TopKTolerance(k=1, absolute=0.0, relative=0.4)])
    assert not found.passed
    assert (found.top_k[0].sequence, found.top_k[0].token) == (0, 3)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [0, 4])
def test_dead_logits_never_match(value: float, token: int) -> None:
    def change(logits: list[torch.Tensor]) -> None:
        logits[1][token] = value

    found, _ = match(change, [TopKTolerance(k=None, relative=0.9)], divergence_tolerance=1e9)
    assert not found.passed
    assert found.finite is (value == 0)
    assert found.tokens == 10


def test_tokens_that_the_reference_prohibits_are_left_out() -> None:
    expected = EXPECTED[0][0].clone()
    expected[3] = -math.inf
    ours = expected * 1.02
    both = position_error(ours, expected, TOLERANCES)
    assert both.top_k == pytest.approx((0.02, 0.02))
    ours[3] = 5.0
    assert position_error(ours, expected, TOLERANCES).top_k == pytest.approx((0.02, 0.02))
    ours[3] = 50.0  # it prefers what is prohibited
    found = position_error(ours, expected, TOLERANCES)
    assert found.diverges
    assert found.divergence_difference == pytest.approx(50 - 8 * 1.02)


def test_a_token_that_only_ours_prohibits_is_an_infinite_error() -> None:
    ours = EXPECTED[0][0].clone()
    ours[3] = -math.inf
    found = position_error(ours, EXPECTED[0][0], TOLERANCES)
    assert not found.finite
    assert found.top_k == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("prompts", "expected", "tolerances", "message"),
    [
        ([], [], TOLERANCES, "0 prompts"),
        (PROMPTS[:1], EXPECTED, TOLERANCES, "1 prompts and reference logits"),
        (PROMPTS, [EXPECTED[0], EXPECTED[1][:2]], TOLERANCES, "all of one shape"),
        (PROMPTS, [x[:0] for x in EXPECTED], TOLERANCES, "not empty"),
        (PROMPTS, EXPECTED, [TopKTolerance(k=7, relative=1)], "at most the vocabulary's 6"),
        (PROMPTS, EXPECTED, [TOLERANCES[0]] * 2, "each k once"),
        (PROMPTS, EXPECTED, [], "each k once"),
        (PROMPTS, [x * math.nan for x in EXPECTED], TOLERANCES, "the reference is broken"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    prompts: Any, expected: Any, tolerances: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        match_logits("x", prompts, expected, Model(EXPECTED), tolerances, 0.1)


def test_a_model_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="6] was expected"):
        match_logits("x", PROMPTS, EXPECTED, lambda *_: [x[:, :5] for x in EXPECTED], TOLERANCES, 1)


class Recorder:
    """A model whose context encoding says 1 and whose token generation says 2."""

    def __init__(self) -> None:
        self.fed: list[Any] = []

    def logits(self, sequences: list[list[int]]) -> list[torch.Tensor]:
        return [torch.full((len(tokens), 3), 1.0) for tokens in sequences]

    def decode_logits(self, sequences: list[list[int]], prefix: int) -> list[torch.Tensor]:
        self.fed.append((sequences, prefix))
        return [torch.full((len(tokens) - prefix, 3), 2.0) for tokens in sequences]


def test_a_continuation_is_one_encoding_and_then_decoding() -> None:
    model = Recorder()
    run = continuation(model)  # type: ignore[arg-type]
    (rows,) = run([[5, 6]], [[7, 8, 9]])
    assert rows[:, 0].tolist() == [1, 2, 2]
    assert model.fed == [([[5, 6, 7, 8]], 2)]
    (row,) = run([[5, 6]], [[7]])
    assert row[:, 0].tolist() == [1]
