"""Numbers as a person reads them."""

from __future__ import annotations

import math

from evaluation.estimates import Comparison, Estimate, Pair, Score


def number(value: float) -> str:
    """Three significant digits, thousands apart; a count in full."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or value == 0 or 99.95 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 99.95:
        return f"{value:#.3g}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def percent(value: float) -> str:
    """A share as percent: two significant digits if small, one decimal otherwise."""
    return f"{100 * value:.2g} %" if 0 < value < 0.01 else f"{100 * value:.1f} %"


def capital(text: str) -> str:
    """With a capital at its beginning, the rest as it is."""
    return text[:1].upper() + text[1:]


def within(estimate: Estimate) -> str:
    """An estimate's 95 % interval."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{number(estimate.low)} to {number(estimate.high)}"


def ratio(comparison: Comparison | Pair) -> str:
    """How many times as long as the other, with its interval: `1.100× (1.09 to 1.11)`."""
    return f"{comparison.ratio.value:.3f}× ({within(comparison.ratio)})"


def score_source(score: Score) -> str:
    """`predicted for trn2`, or `measured on neuron`."""
    return f"{score.source} {'for' if score.source == 'predicted' else 'on'} {score.device}"


def gate_value(value: float | str | None) -> str:
    """A gate's value: counts are whole, what is missing is said."""
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    return number(int(value) if value.is_integer() else value)
