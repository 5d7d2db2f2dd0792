"""Comparing logits with a reference's.

This is the gate that notices a broken kernel: task accuracy barely moves when one expert of
eight is dropped, the KL divergence does. A broken output must never look good here: NaN,
infinity and rows of equal logits (a kernel that returns zeros) make every error infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from evaluation.records import LogitComparison, RoundingComparison
from model.records import Graph


def compare_logits(
    comparison: str,
    graph: Graph,
    ours: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    first_token: int = 0,
) -> LogitComparison:
    """Compare logits position by position, in float64.

    Args:
        comparison: What is compared with what, for the record.
        graph: The graph that made `ours`.
        ours: Per sequence `[tokens, vocab]`.
        reference: The same shapes.
        first_token: Position in its sequence of each tensor's first row.

    Returns:
        KL(reference || ours) in nats per token, the share of equal argmax, the largest
        absolute error, the L2 norm of the error over that of the reference, and the
        smallest position, counted from its sequence's start, where the argmax differs.

    Raises:
        ValueError: numbers of sequences or shapes differ, there is nothing to compare, or
            the reference itself is not finite or has a row of equal logits.
    """
    _check_shapes(comparison, ours, reference)
    kl: list[torch.Tensor] = []
    agrees: list[torch.Tensor] = []
    diverging: list[int] = []
    finite, alive = True, True
    max_abs = squared_error = squared_reference = 0.0
    for index, (raw, expected_raw) in enumerate(zip(ours, reference, strict=True)):
        actual, expected = raw.detach().double(), expected_raw.detach().double()
        if not _alive(expected).all():
            raise ValueError(
                f"{comparison}: the reference's logits of sequence {index} are not finite or all "
                "equal at some token; the reference is broken"
            )
        row_alive = _alive(actual)
        same = (actual.argmax(-1) == expected.argmax(-1)) & row_alive
        agrees.append(same)
        if not same.all():
            diverging.append(first_token + int((~same).nonzero()[0]))
        finite &= bool(torch.isfinite(actual).all())
        alive &= bool(row_alive.all())
        error = actual - expected
        kl.append(_kl_per_token(expected, actual))
        max_abs = max(max_abs, float(error.abs().max()))
        squared_error += float(error.square().sum())
        squared_reference += float(expected.square().sum())
    divergence, agreement = torch.cat(kl), torch.cat(agrees)
    return LogitComparison(
        comparison=comparison,
        graph=graph,
        tokens=divergence.numel(),
        kl_per_token_mean=float(divergence.mean()) if alive else math.inf,
        kl_per_token_median=_quantile(divergence, 0.5) if alive else math.inf,
        kl_per_token_p90=_quantile(divergence, 0.9) if alive else math.inf,
        kl_per_token_max=float(divergence.max()) if alive else math.inf,
        top1_agreement=float(agreement.double().mean()),
        max_abs_error=max_abs if alive else math.inf,
        relative_l2_error=math.sqrt(squared_error / squared_reference) if alive else math.inf,
        first_diverging_token=min(diverging, default=None),
        finite=finite,
    )


def compare_rounding(
    graph: Graph,
    ours: Sequence[torch.Tensor],
    rounded: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
) -> RoundingComparison:
    """Compare two bf16 runs by how far each is from the fp32 reference, token by token.

    Args:
        graph: The graph that made `ours`.
        ours: The configuration's bf16 logits, per sequence `[tokens, vocab]`.
        rounded: The reference's bf16 logits, the same shapes.
        exact: The reference's fp32 logits, the same shapes.

    Returns:
        The comparison. If a row of `ours` is not finite or all equal, every figure is as bad
        as can be.

    Raises:
        ValueError: see `compare_logits`.
    """
    _check_shapes("rounding", ours, exact)
    _check_shapes("rounding", rounded, exact)
    mine, theirs, truth = (
        torch.cat([x.detach().double() for x in y]) for y in (ours, rounded, exact)
    )
    if not _alive(truth).all() or not _alive(theirs).all():
        raise ValueError("rounding: the reference's logits are not finite or all equal somewhere")
    if not _alive(mine).all():
        return RoundingComparison(
            graph=graph,
            tokens=len(truth),
            kl_median_ratio=math.inf,
            kl_p90_ratio=math.inf,
            error_median_ratio=math.inf,
            further_share=1.0,
            top1_agreement_difference=-1.0,
        )
    kl, own_kl = _kl_per_token(truth, mine), _kl_per_token(truth, theirs)
    error, own_error = (mine - truth).norm(dim=-1), (theirs - truth).norm(dim=-1)
    best = truth.argmax(-1)
    agreement, own_agreement = (
        float((rows.argmax(-1) == best).double().mean()) for rows in (mine, theirs)
    )
    return RoundingComparison(
        graph=graph,
        tokens=len(truth),
        kl_median_ratio=_ratio(_quantile(kl, 0.5), _quantile(own_kl, 0.5)),
        kl_p90_ratio=_ratio(_quantile(kl, 0.9), _quantile(own_kl, 0.9)),
        error_median_ratio=_ratio(_quantile(error, 0.5), _quantile(own_error, 0.5)),
        # Ties count half, so that a copy of the reference has 0.5.
        further_share=float(((kl > own_kl).double() + (kl >= own_kl).double()).mean() / 2),
        top1_agreement_difference=agreement - own_agreement,
    )


def _ratio(ours: float, reference: float) -> float:
    if reference > 0:
        return ours / reference
    return 1.0 if ours <= 0 else math.inf


def _alive(rows: torch.Tensor) -> torch.Tensor:
    """Which rows of `[tokens, vocab]` are finite and prefer some token: `[tokens]` of bool."""
    return torch.isfinite(rows).all(-1) & (rows.amax(-1) > rows.amin(-1))


def _kl_per_token(reference: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """KL(reference || ours) per row, in nats, from float64 logits `[tokens, vocab]`."""
    log_p, log_q = reference.log_softmax(-1), ours.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _quantile(values: torch.Tensor, at: float) -> float:
    """By linear interpolation; NumPy's, since torch's refuses long inputs."""
    return float(np.quantile(values.numpy(), at))


def _check_shapes(
    comparison: str, ours: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]
) -> None:
    if len(ours) != len(reference):
        raise ValueError(
            f"{comparison}: {len(ours)} sequences against {len(reference)} of the reference"
        )
    if not ours:
        raise ValueError(f"{comparison}: there are no logits to compare")
    for index, (actual, expected) in enumerate(zip(ours, reference, strict=True)):
        if expected.ndim != 2 or 0 in expected.shape or actual.shape != expected.shape:
            raise ValueError(
                f"{comparison}: sequence {index} has logits of shape {list(actual.shape)}, the "
                f"reference {list(expected.shape)}; both must be one [tokens, vocab], not empty"
            )
