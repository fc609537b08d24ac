"""Intervals, robust means and comparisons of returns, from scipy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

FEW = 30
"""Of fewer values than this a bootstrap's interval is too narrow, see docs/statistics.md; Student's t takes its place."""
FEWEST = {"median": 5, "worst_decile": 100}
"""Of fewer values than these no interval is given: all may lie on one side of the median; a tenth is too few for its mean."""
RESAMPLES = 2_000
_BATCH = 200
"""Resamples held in memory at once."""
_ROUNDING = 1e-9
"""What is smaller is as good as nothing: sums of returns are rounded by as much."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, whose ends are NaN where the values say nothing about their spread."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        d = decimals(self.value, self.low, self.high)
        return f"{self.value:.{d}f}" if math.isnan(self.low) else f"{self.value:.{d}f} [{self.low:.{d}f}, {self.high:.{d}f}]"


def decimals(*values: float) -> int:
    """Return how many decimals to write values with: two, and more where all are so small that two would show a 0.

    Example:
        >>> decimals(-140.0, 0.001), decimals(0.00002, math.nan), decimals(0.0)
        (2, 6, 2)
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 1 - math.floor(math.log10(largest)) if _ROUNDING < largest < 0.1 else 2


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return Student's t interval of 95 % for the mean of independent values.

    Args:
        values: Shape (E,), at least one.

    Returns:
        Low and high end; both NaN for a single value, which says nothing about its spread.

    Example:
        >>> [round(end, 3) for end in mean_interval(np.array([1.0, 2.0, 3.0]))]
        [-0.484, 4.484]
    """
    if len(values) < 2:
        return math.nan, math.nan
    mean = float(np.mean(values))
    half_width = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean - half_width, mean + half_width


def interquartile_mean(values: np.ndarray, axis: int = -1) -> Any:
    """Return the mean of the middle half of the values (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264).

    Example:
        >>> float(interquartile_mean(np.array([-1000.0, 1.0, 3.0, 1000.0])))
        2.0
    """
    return stats.trim_mean(values, 0.25, axis=axis)


def worst_decile(values: np.ndarray, axis: int = -1) -> Any:
    """Return the mean of the lowest tenth of the values, of one at least.

    Example:
        >>> float(worst_decile(np.arange(20.0)))
        0.5
    """
    count = max(1, math.ceil(values.shape[axis] / 10))
    lowest = np.take(np.partition(values, count - 1, axis=axis), range(count), axis=axis)
    return np.mean(lowest, axis=axis)


STATISTICS: dict[str, Callable[..., Any]] = {
    "mean": np.mean,
    "median": np.median,
    "interquartile_mean": interquartile_mean,
    "worst_decile": worst_decile,
}


def estimate(name: str, values: np.ndarray, random: np.random.Generator) -> Estimate:
    """Estimate one of `STATISTICS` of what independent values are drawn from.

    From `FEW` values on the interval is a bootstrap's, and for the median below that too. Of fewer values it is Student's t for
    the mean, and Tukey and McLaughlin's (1963), a t interval from winsorised values, for the interquartile mean; `FEWEST` says
    below how many there is none.

    Args:
        name: The statistic.
        values: Shape (n,), at least one.
        random: Draws the bootstrap's samples.
    """
    statistic, few = STATISTICS[name], len(values) < FEW
    if len(values) < FEWEST.get(name, 2):
        return Estimate(float(statistic(values)), math.nan, math.nan)
    if few and (name == "mean" or (name == "interquartile_mean" and len(values) < 4)):  # of fewer than four none is cut off
        return Estimate(float(statistic(values)), *mean_interval(values))
    if few and name == "interquartile_mean":
        low, high = stats.mstats.trimmed_mean_ci(values, limits=(0.25, 0.25), alpha=0.05)
        return Estimate(float(statistic(values)), float(low), float(high))
    return bootstrap(statistic, [values], random)


def bootstrap(statistic: Callable[..., Any], samples: Sequence[np.ndarray], random: np.random.Generator) -> Estimate:
    """Estimate a statistic of several samples by resampling each on its own (a stratified bootstrap).

    The interval is bias-corrected and accelerated (Efron 1987).

    Args:
        statistic: Takes the samples, and `axis`.
        samples: Each of shape (n,), at least two values.
        random: Draws the resamples.
    """
    value = float(statistic(*samples, axis=-1))
    if all(np.ptp(sample) == 0 for sample in samples):
        return Estimate(value, value, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a distribution that is one point; seen to below
        found = stats.bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            batch=_BATCH,
            vectorized=True,
            method="BCa",
            random_state=random,
        )
    low, high = found.confidence_interval
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = np.nanquantile(found.bootstrap_distribution, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def proportion(shares: np.ndarray) -> Estimate:
    """Estimate a probability from independent outcomes: 1, 0, or in between for a tie. Shape (n,).

    The interval is Wilson's (1927), which stays between 0 and 1 and says something of outcomes that are all the same.
    """
    n, p, z = len(shares), float(np.mean(shares)), float(stats.norm.ppf(0.975))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, max(0.0, centre - half_width), min(1.0, centre + half_width))


def luck_of_starts(*parts: tuple[float, np.ndarray]) -> float:
    """Return half the width of the 95 % interval that start states alone give a weighted sum of mean returns.

    Runs that play from the same start states share their luck, of which the spread between runs shows nothing. It is Student's
    t of the sums by start state, less what runs differ by at single ones, which the spread between runs holds already (variance
    components of a two-way layout; Searle, Casella and McCulloch 1992, "Variance components").

    Args:
        parts: A weight, and returns of some runs from the same start states, of shape (runs, E).

    Returns:
        NaN for a single start state.
    """
    starts = parts[0][1].shape[1]
    if starts < 2:
        return math.nan
    whole = variance = float(np.var(sum(weight * returns.mean(axis=0) for weight, returns in parts), ddof=1))
    for weight, returns in parts:
        runs = len(returns)
        if runs > 1:
            residuals = returns - returns.mean(axis=1, keepdims=True) - returns.mean(axis=0) + returns.mean()
            variance -= weight**2 * float(np.sum(residuals**2)) / ((runs - 1) * (starts - 1)) / runs
    variance = variance if variance > 0.0 else whole  # a difference of two estimates, which few runs may make nothing of
    return float(stats.t.ppf(0.975, starts - 1)) * math.sqrt(variance / starts)


def widened(found: Estimate, low: float, high: float | None = None) -> Estimate:
    """Add a second, independent source of chance to an interval, whose arms are `low` and `high` long.

    Arms are joined as in Zou and Donner (2008), "Construction of confidence limits about effect measures: a general approach".
    """
    high = low if high is None else high
    return Estimate(
        found.value,
        found.value - math.hypot(found.value - found.low, low),
        found.value + math.hypot(found.high - found.value, high),
    )


def success_rate(succeeded: np.ndarray, random: np.random.Generator) -> Estimate:
    """Estimate how often a method succeeds; outcomes, 1 or 0, are of its runs from the same start states. Shape (runs, E)."""
    if len(succeeded) == 1:
        return proportion(succeeded[0])
    found, least = estimate("mean", succeeded.mean(axis=1), random), proportion(succeeded.ravel())
    if 0.0 < found.value < 1.0:
        found = widened(found, luck_of_starts((1.0, succeeded)))
        found = Estimate(found.value, min(found.low, least.low), max(found.high, least.high))  # as if all were independent
    else:  # all episodes agree, which says nothing of their spread
        start_states = proportion(succeeded[0])
        found = widened(found, found.value - start_states.low, start_states.high - found.value)
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def difference(one: np.ndarray, other: np.ndarray, *, paired: bool) -> Estimate:
    """Estimate by how much the mean of one is above that of the other, by Student's t of the pairs, or else by Welch's.

    However many there are: where most pairs are alike and a few far apart, as of policies that seldom fail, a bootstrap's
    interval leaves out a true 0 up to four times as often as it claims, see docs/statistics.md.
    """
    value = float(one.mean() - other.mean())
    if paired:
        return Estimate(value, *mean_interval(one - other))
    if min(len(one), len(other)) < 2:
        return Estimate(value, math.nan, math.nan)
    if max(np.ptp(one), np.ptp(other)) == 0:
        return Estimate(value, value, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one sample whose values are all but the same
        interval = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    return Estimate(value, float(interval.low), float(interval.high))


def probability_of_improvement(one: np.ndarray, other: np.ndarray, random: np.random.Generator, *, paired: bool) -> Estimate:
    """Estimate how likely one is above the other, ties counted half.

    Paired, on the same start state; else of any run of the one and any of the other, as Agarwal et al. (2021) have it.
    """
    if paired:
        return proportion(np.where(one == other, 0.5, (one > other).astype(float)))
    if min(len(one), len(other)) < 4:  # of fewer runs a bootstrap's intervals hold less than nine times in ten
        return Estimate(float(_wins(one, other)), math.nan, math.nan)
    return bootstrap(_wins, [one, other], random)


def _wins(one: np.ndarray, other: np.ndarray, axis: int = -1) -> Any:
    pairs = np.expand_dims(one, -1) - np.expand_dims(other, -2)
    return np.mean(0.5 * (1.0 + np.sign(pairs)), axis=(-2, -1))


def share_of_advantage(policy: np.ndarray, reference: np.ndarray, baseline: np.ndarray, *, paired: bool) -> Estimate:
    """Estimate which share of the reference's advantage over the baseline a policy keeps: 1 all of it, 0 none.

    The interval is Student's t for the ratio made linear (the delta method), with the least of their degrees of freedom.
    """
    low, advantage = float(baseline.mean()), float(reference.mean() - baseline.mean())
    value, count = float(policy.mean() - low) / advantage, min(map(len, (policy, reference, baseline)))
    if count < 2:
        return Estimate(value, math.nan, math.nan)
    # d(share) = (d(p) - share d(r) - (1 - share) d(b)) / advantage
    weighted = [policy, -value * reference, -(1.0 - value) * baseline]
    variance = float(np.var(sum(weighted), ddof=1)) / count if paired else sum(np.var(x, ddof=1) / len(x) for x in weighted)
    half_width = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance) / abs(advantage)
    return Estimate(value, value - half_width, value + half_width)
