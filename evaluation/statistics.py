"""Intervals and verdicts for latencies, which are skewed, drift and have outliers.

Rows of a sample are *rounds* in the order in which they ran. Neighbouring rounds resemble one
another (the machine speeds up and slows down), so that no single round counts as an observation:

- A *ratio* of two sides, in which drift cancels out, is resampled in blocks of rounds: the
  bootstrap of non-overlapping blocks (Carlstein, Annals of Statistics 14, 1986), by
  `scipy.stats.bootstrap`.
- A figure of *one side*, in which it does not, is found in each third of the session, and
  Student's t (`scipy.stats`) says what three such figures tell: batch means, as simulation
  studies use them (Schmeiser, Operations Research 30, 1982). A drift shows in few parts of a
  session, and a bootstrap of few blocks cannot reach beyond the outermost.

benchmarks/statistics.py measures how often each interval holds the truth.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from evaluation.estimates import Estimate, PairVerdict

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 999
"""So that 2.5 % and 97.5 % are order statistics (Davison and Hinkley 1997, section 2.4)."""
FEWEST_BLOCKS = 6
"""Blocks are no longer than leaves this many; fewer would make the interval a guess."""
THIRDS = 3
"""Parts of a session for the interval of one side's figure. With more, the parts are shorter and so
more like their neighbours, and the interval is too short (measured, docs/evaluation.md)."""
ERROR_BLOCKS = 6
"""For the standard error that ends a session. Not the interval's own parts: a session would end
when these happen to agree."""
FEWEST_ROUNDS = 6
"""No interval below: six rounds that all agree have a chance of 2/2**6 = 3 %."""
BEYOND = 10
"""A percentile has an interval only if this many observations lie beyond it."""
TRIMMED = 0.2
"""Share that a location leaves out at each end (Wilcox's usual choice): one run in five may be
disturbed, either way, before a comparison notices."""
FENCE = 3.0
"""Interquartile ranges from the quartiles to what is *far out* (Tukey 1977)."""


def block_length(rounds: Array) -> int:
    """How many neighbouring rounds make a block: Carlstein's rule for the lag-1 correlation.

    Args:
        rounds: one figure per round, in order of time.
    """
    count = len(rounds)
    if count < FEWEST_ROUNDS or float(np.ptp(rounds)) == 0.0:
        return 1
    ranks = stats.rankdata(rounds)  # an outlier hides the correlation of the rest
    correlation = min(float(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]), 0.99)
    if not correlation > 0:
        return 1
    best = (2 * correlation / (1 - correlation**2)) ** (2 / 3) * count ** (1 / 3)
    return int(min(max(1, count // FEWEST_BLOCKS), max(1, round(best))))


def blocks_of(sample: Array, length: int) -> Array:
    """`[rounds, ...]` cut into `[blocks, length, ...]`; the first rounds that do not fill a
    block are left out, as they are nearest to the warm-up.
    """
    count = len(sample) // length
    return sample[len(sample) - count * length :].reshape(count, length, *sample.shape[1:])


def relative_standard_error(sample: Array) -> float:
    """Standard error of the mean of `[rounds, runs]`, relative to the mean; inf if unknown."""
    rounds = sample.reshape(len(sample), -1).mean(1)
    if len(rounds) < FEWEST_ROUNDS:
        return math.inf
    means = blocks_of(rounds, len(rounds) // ERROR_BLOCKS).mean(1)
    return float(stats.sem(means) / means.mean())


def location(rounds: Array) -> Array:
    """Of `[..., rounds, prompts]`: each prompt's mean without its smallest and largest fifth,
    averaged over the prompts.
    """
    found: Array = stats.trim_mean(rounds, TRIMMED, axis=-2).mean(-1)
    return found


def estimate_mean(sample: Array) -> Estimate:
    """The mean of `[rounds, runs]` and its interval."""
    return estimate_one_side(sample, lambda x: x.mean((-2, -1)))


def estimate_percentile(sample: Array, percentile: float) -> Estimate:
    """A percentile of all of `[rounds, runs]`; no interval if too few runs lie beyond it."""
    share = percentile / 100
    if sample.size * min(share, 1 - share) < BEYOND:
        return Estimate(value=float(np.quantile(sample, share)), low=None, high=None)
    return estimate_one_side(sample, lambda x: np.quantile(x, share, axis=(-2, -1)))


def estimate_one_side(sample: Array, statistic: Callable[[Array], Array]) -> Estimate:
    """A statistic of one side's latencies with its 95 % interval, from the session's thirds.

    Args:
        sample: positive, `[rounds, runs]`, rounds in order of time.
        statistic: of `[..., rounds, runs]`, gives `[...]`.

    Returns:
        The statistic of the whole sample; the interval is Student's of the thirds' logarithms,
        so that both its ends are positive.
    """
    value = float(statistic(sample))
    if len(sample) < FEWEST_ROUNDS:
        return Estimate(value=value, low=None, high=None)
    thirds = np.log(statistic(blocks_of(sample, len(sample) // THIRDS)))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, THIRDS - 1) * stats.sem(thirds))
    return Estimate(value=value, low=value * math.exp(-reach), high=value * math.exp(reach))


def estimate(sample: Array, statistic: Callable[[Array], Array], seed: int) -> Estimate:
    """A statistic of `[rounds, runs]` with its 95 % interval, by resampling blocks of rounds.

    Args:
        sample: figures in which the machine's drift cancels out, rounds in order of time.
        statistic: of `[..., rounds, runs]`, gives `[...]`.
        seed: of the resampling.
    """
    sample = sample.reshape(len(sample), -1)
    value = float(statistic(sample))
    if len(sample) < FEWEST_ROUNDS:
        return Estimate(value=value, low=None, high=None)
    blocks = blocks_of(sample, block_length(sample.mean(1)))
    if float(np.ptp(blocks)) == 0.0:
        return Estimate(value=value, low=value, high=value)

    def of_blocks(chosen: npt.NDArray[np.int64], axis: int = -1) -> Array:
        drawn = blocks[np.moveaxis(chosen, axis, -1)]
        return statistic(drawn.reshape(*drawn.shape[:-3], -1, drawn.shape[-1]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.arange(len(blocks)),),
            of_blocks,
            n_resamples=RESAMPLES,
            batch=max(1, 2_000_000 // blocks.size),
            confidence_level=expanded(len(blocks)),
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Estimate(
        value=value, low=min(value, float(found.low)), high=max(value, float(found.high))
    )


def expanded(count: int) -> float:
    """The confidence level at which the percentile interval of `count` items covers 95 %.

    The plain percentile interval of a small sample is too short, as if the normal quantile
    took the place of Student's and n that of n - 1 (Hesterberg, The American Statistician
    69, 2015, section 5.3.2).
    """
    t = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    return float(1 - 2 * stats.norm.cdf(-math.sqrt(count / (count - 1)) * t))


@dataclass(frozen=True)
class Paired:
    """Two sides' latencies, both `[rounds, prompts]`: run side by side, round for round."""

    configuration: Array
    baseline: Array

    @property
    def log_ratios(self) -> Array:
        """`[rounds, prompts]` of log(configuration / baseline).

        What slows both runs of a prompt down cancels out of it.
        """
        found: Array = np.log(self.configuration / self.baseline)
        return found


def estimate_ratio(pair: Paired, seed: int) -> Estimate:
    """How many times as long the configuration takes as the baseline, typically.

    The `location` of the log ratios, back from logarithms: a stall of one side counts as one
    run, however long it was. Stalls show in the means and percentiles.
    """
    found = estimate(pair.log_ratios, location, seed)
    return Estimate(
        value=math.exp(found.value),
        low=None if found.low is None else math.exp(found.low),
        high=None if found.high is None else math.exp(found.high),
    )


def verdict(ratio: Estimate, smallest_difference: float) -> PairVerdict:
    """What a ratio's interval says.

    Args:
        ratio: configuration / baseline.
        smallest_difference: the share below which two configurations count as equal, e.g. 0.03.

    Returns:
        `faster` or `slower` if the interval excludes 1; `no difference` if it holds 1 and
        stays within `smallest_difference` of it; else `not enough data`.
    """
    if ratio.low is None or ratio.high is None or not math.isfinite(ratio.low * ratio.high):
        return "not enough data"
    if ratio.high < 1:
        return "faster"
    if ratio.low > 1:
        return "slower"
    near = 1 + smallest_difference
    return "no difference" if 1 / near <= ratio.low and ratio.high <= near else "not enough data"


def far_out(values: Array) -> npt.NDArray[np.bool_]:
    """Which values lie beyond three interquartile ranges of the quartiles."""
    low, high = np.quantile(values, [0.25, 0.75])
    reach = FENCE * (high - low)
    found: npt.NDArray[np.bool_] = (values < low - reach) | (values > high + reach)
    return found
