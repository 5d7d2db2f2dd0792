import math

import pytest
import torch

from evaluation.logits import compare_logits, compare_rounding
from evaluation.records import LogitComparison, RoundingComparison


def compare(ours: torch.Tensor, reference: torch.Tensor, first: int = 0) -> LogitComparison:
    return compare_logits("ours vs reference", "context_encoding", [ours], [reference], first)


def test_values_computed_by_hand() -> None:
    # Reference: p = (3/4, 1/4) then (1/2+, 1/2-); ours: q = (1/4, 3/4), then the same.
    reference = torch.tensor([[math.log(3), 0.0], [1.0, 0.0]])
    ours = torch.tensor([[0.0, math.log(3)], [1.0, 0.0]])
    found = compare(ours, reference)
    kl = 0.75 * math.log(3) - 0.25 * math.log(3)
    assert found.kl_per_token_max == pytest.approx(kl, rel=1e-6)
    assert found.kl_per_token_mean == pytest.approx(kl / 2, rel=1e-6)
    assert found.top1_agreement == 0.5
    assert found.max_abs_error == pytest.approx(math.log(3))
    expected = math.sqrt(2 * math.log(3) ** 2 / (math.log(3) ** 2 + 1))
    assert found.relative_l2_error == pytest.approx(expected)
    assert found.first_diverging_token == 0
    assert (found.tokens, found.finite) == (2, True)


def test_kl_is_of_the_reference_from_ours() -> None:
    p, q = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.5]])
    expected = torch.nn.functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum"
    )
    assert compare(q, p).kl_per_token_mean == pytest.approx(float(expected), rel=1e-6)
    assert compare(p, q).kl_per_token_mean != pytest.approx(float(expected), rel=1e-2)


def test_equal_logits_have_no_error() -> None:
    logits = torch.randn(5, 7)
    found = compare(logits, logits)
    assert found.kl_per_token_max == found.max_abs_error == found.relative_l2_error == 0
    assert (found.top1_agreement, found.first_diverging_token) == (1.0, None)


def test_a_shift_of_all_logits_is_no_divergence_but_an_error() -> None:
    logits = torch.randn(5, 7)
    found = compare(logits + 3, logits)
    assert found.kl_per_token_max == pytest.approx(0, abs=1e-6)
    assert found.max_abs_error == pytest.approx(3, rel=1e-5)


def test_the_first_diverging_token_is_counted_from_its_sequences_start() -> None:
    reference = torch.eye(4)
    late, early = reference.clone(), reference.clone()
    late[3] = reference[0]
    early[2] = reference[0]
    found = compare_logits(
        "x", "token_generation", [late, early], [reference, reference], first_token=10
    )
    assert found.first_diverging_token == 12


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_equal_logits_for_all_tokens_never_look_good(value: float) -> None:
    reference = torch.randn(4, 6)
    reference[:, 0] += 10  # argmax of zeros is 0, too
    found = compare(torch.full((4, 6), value), reference)
    assert found.top1_agreement == 0
    assert found.kl_per_token_mean == found.relative_l2_error == found.max_abs_error == math.inf


def test_one_dead_row_among_good_ones_is_enough() -> None:
    reference = torch.randn(4, 6)
    ours = reference.clone()
    ours[2] = 0
    found = compare(ours, reference)
    assert found.relative_l2_error == math.inf
    assert found.top1_agreement == 0.75


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_looks_good(value: float) -> None:
    reference = torch.randn(4, 6)
    ours = reference.clone()
    ours[1, 2] = value
    found = compare(ours, reference)
    assert not found.finite
    figures = [found.kl_per_token_mean, found.kl_per_token_max, found.max_abs_error]
    assert [*figures, found.relative_l2_error] == [math.inf] * 4
    assert found.top1_agreement == 0.75


@pytest.mark.parametrize("shape", [(4, 5), (3, 6), (6,), (1, 4, 6)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ours vs reference: sequence 0 has logits of shape"):
        compare(torch.randn(shape), torch.randn(4, 6))


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="no logits"):
        compare_logits("x", "context_encoding", [], [])
    with pytest.raises(ValueError, match="1 sequences against 0"):
        compare_logits("x", "context_encoding", [torch.randn(2, 2)], [])
    with pytest.raises(ValueError, match="not empty"):
        compare(torch.empty(0, 6), torch.empty(0, 6))


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_broken_reference_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="reference is broken"):
        compare(torch.randn(2, 3), torch.full((2, 3), value))


def kl(reference: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """Per row, by torch's own function."""
    p, q = reference.double().log_softmax(-1), ours.double().log_softmax(-1)
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)


def test_quantiles_of_the_kl_are_over_all_tokens() -> None:
    torch.manual_seed(0)
    reference = [torch.randn(n, 9) for n in (3, 8)]
    ours = [rows + 0.1 * torch.randn(rows.shape) for rows in reference]
    found = compare_logits("x", "context_encoding", ours, reference)
    values = torch.cat([kl(r, o) for r, o in zip(reference, ours, strict=True)])
    assert found.kl_per_token_median == pytest.approx(float(values.quantile(0.5)), rel=1e-9)
    assert found.kl_per_token_p90 == pytest.approx(float(values.quantile(0.9)), rel=1e-9)


def noisy(exact: torch.Tensor, size: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return exact + size * torch.randn(exact.shape, generator=generator)


EXACT = torch.randn(600, 32, generator=torch.Generator().manual_seed(0)) * 3


def rounding(ours: torch.Tensor, rounded: torch.Tensor | None = None) -> RoundingComparison:
    rounded = noisy(EXACT, 0.02, 1) if rounded is None else rounded
    return compare_rounding("context_encoding", [ours], [rounded], [EXACT])


def test_rounding_by_hand() -> None:
    # Errors of ours 2, 0, 1 and of theirs 1, 1, 1; logits of which the first is by far the best.
    exact = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
    theirs = exact + torch.tensor([0.0, 1.0])
    ours = exact + torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 1.0]])
    found = compare_rounding("token_generation", [ours], [theirs], [exact])
    assert found.error_median_ratio == pytest.approx(1.0)
    assert found.further_share == pytest.approx(0.5)  # further, nearer, and a tie
    assert found.kl_median_ratio == pytest.approx(1.0)
    one, two = (float(kl(exact[:1], exact[:1] + torch.tensor([0.0, x]))) for x in (1.0, 2.0))
    assert found.kl_p90_ratio == pytest.approx((0.2 * one + 0.8 * two) / one, rel=1e-9)
    assert (found.tokens, found.top1_agreement_difference) == (3, 0.0)


def test_a_copy_of_the_rounded_reference_is_as_good_as_it() -> None:
    found = rounding(noisy(EXACT, 0.02, 1))
    assert (found.error_median_ratio, found.kl_p90_ratio, found.further_share) == (1.0, 1.0, 0.5)


def test_noise_of_the_same_size_is_about_as_good_and_larger_noise_is_not() -> None:
    same, larger = rounding(noisy(EXACT, 0.02, 2)), rounding(noisy(EXACT, 0.03, 2))
    assert same.error_median_ratio == pytest.approx(1, abs=0.05)
    assert same.further_share == pytest.approx(0.5, abs=0.06)
    assert larger.error_median_ratio == pytest.approx(1.5, abs=0.08)
    assert larger.further_share > 0.7


def test_one_flipped_token_moves_the_mean_and_not_the_rounding() -> None:
    ours = noisy(EXACT, 0.02, 2)
    before, mean = rounding(ours), compare(ours, EXACT).kl_per_token_mean
    ours[7] = ours[7].roll(1)
    assert compare(ours, EXACT).kl_per_token_mean > 10 * mean
    after = rounding(ours)
    assert after.error_median_ratio == pytest.approx(before.error_median_ratio, abs=0.01)
    assert after.kl_p90_ratio == pytest.approx(before.kl_p90_ratio, abs=0.05)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_dead_logits_round_as_badly_as_can_be(value: float) -> None:
    ours = noisy(EXACT, 0.02, 2)
    ours[3] = value
    found = rounding(ours)
    assert found.error_median_ratio == found.kl_median_ratio == found.kl_p90_ratio == math.inf
    assert (found.further_share, found.top1_agreement_difference) == (1.0, -1.0)


def test_an_exact_reference_forgives_only_exactness() -> None:
    assert rounding(EXACT, EXACT.clone()).error_median_ratio == 1.0
    assert rounding(noisy(EXACT, 1e-6, 1), EXACT.clone()).error_median_ratio == math.inf


def test_rounding_of_a_broken_reference_is_refused() -> None:
    for broken in (EXACT * math.nan, EXACT * 0):
        with pytest.raises(ValueError, match="the reference's logits are not finite or all equal"):
            rounding(EXACT, broken)
    with pytest.raises(ValueError, match="shape"):
        rounding(EXACT[:5])
