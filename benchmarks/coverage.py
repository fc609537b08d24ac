"""How often the intervals hold what they claim: `python -m benchmarks.coverage`.

From distributions whose true mean, median, interquartile mean and worst decile are known, many samples are drawn; an interval
of 95 % must hold the true value in 95 of 100. Writes `docs/statistics.md`.
"""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

from il_based_rl.statistics import (
    FEW,
    FEWEST,
    STATISTICS,
    difference,
    estimate,
    luck_of_starts,
    proportion,
    share_of_advantage,
    success_rate,
    widened,
)

PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
DRAWS = 1_000
SIZES = (3, 5, 10, 20, 50, 100, 200)

# Shaped like returns: alike around a mean; a short tail of good ones and a long one of bad ones; mostly solved, sometimes not.
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda random, n: random.normal(0.0, 1.0, n),
    "skewed": lambda random, n: -random.gamma(2.0, 75.0, n),
    "sometimes failing": lambda random, n: np.where(
        random.random(n) < 0.8, random.normal(480, 15, n), random.uniform(0, 450, n)
    ),
}


WHICH = """This is about the intervals of `il-rl compare` and `il-rl report`, each of 95 %; `il-rl evaluate` and
learning curves have Student's t. Of a policy from one training run the values are its returns from many start states;
of several runs they are each run's mean return, and the interval of the runs is joined with one of the start states,
whose luck they share (the variance between start states in a two-way layout; arms joined as Zou and
Donner 2008 do). Two policies that played from the same start states are compared by
their differences there, which takes out how hard a start state is; two methods by the means of their runs, joined with
what their differences owe to the start states; one run
against several says nothing of the luck of the one, and has no interval, but for the random policy, which is no run."""
HOW = f"""Differences have Student's t, of the pairs or of runs (Welch's), and shares of an advantage Student's t of the ratio
made linear, however many values there are: where most pairs are alike and a few far apart, as of policies that seldom
fail, a bootstrap's interval leaves out a true 0 up to four times as often as it claims. Several comparisons are not
corrected for being several. What is said of one policy alone has from {FEW} values on a bootstrap's interval: 2,000
resamples, bias-corrected and accelerated (Efron 1987), by `scipy.stats.bootstrap`; without width where all values are
equal. Of fewer values, as of training seeds, a bootstrap's are too narrow; Student's t takes its place for the mean,
and Tukey and McLaughlin's interval from winsorised values for the interquartile mean. Success and better-or-worse
have Wilson's (1927) where there is one run of each; of several, success has Student's t of the runs' rates joined
with the start states' (where all episodes agree, with Wilson's), and better-or-worse, which is said of these start
states alone, a bootstrap's from four runs on: too narrow where nearly all runs of one are better, and without width
where all are. The median has no interval below {FEWEST["median"]} values. The worst decile, the mean of the lowest
tenth, has none below {FEWEST["worst_decile"]}, and one that is a little too narrow above. Where some of a few values are
far from the rest, no method here holds what it claims, as the table shows; a warning says when values are few."""


def true_values(draw: Callable[[np.random.Generator, int], np.ndarray]) -> dict[str, float]:
    """Return what the statistics come to over as good as the whole distribution."""
    values = draw(np.random.default_rng(1), 8_000_000)
    return {name: float(statistic(values)) for name, statistic in STATISTICS.items()}


def coverage(
    name: str, draw: Callable[[np.random.Generator, int], np.ndarray], size: int, truth: float, draws: int = DRAWS
) -> float:
    """Return the share of samples whose interval holds the true value; NaN where none is given."""
    random = np.random.default_rng([size, *name.encode()])
    found = [estimate(name, draw(random, size), random) for _ in range(draws)]
    return math.nan if math.isnan(found[0].low) else float(np.mean([each.low <= truth <= each.high for each in found]))


def coverage_of_rates(rate: float, size: int, draws: int = DRAWS) -> float:
    """Return the share of samples of successes whose interval holds the true rate."""
    random = np.random.default_rng(size)
    found = [proportion((random.random(size) < rate).astype(float)) for _ in range(draws)]
    return float(np.mean([each.low <= rate <= each.high for each in found]))


def coverage_of_shares(paired: bool, size: int, draws: int = DRAWS) -> float:
    """Return the share of samples whose interval holds the true share of the advantage, 0.8."""
    random, held = np.random.default_rng(size), 0
    for _ in range(draws):
        hard = random.normal(0.0, 20.0, size) if paired else 0.0
        policy, reference, baseline = (hard + random.normal(mean, 10.0, size) for mean in (80.0, 100.0, 0.0))
        found = share_of_advantage(policy, reference, baseline, paired=paired)
        held += found.low <= 0.8 <= found.high
    return held / draws


def coverage_of_differences(failing: float, size: int, draws: int = DRAWS) -> float:
    """Return the share of samples whose interval holds 0, of two equally good policies that sometimes fail."""
    random, held = np.random.default_rng([size, int(1000 * failing)]), 0
    for _ in range(draws):
        fails = random.random((2, size)) < failing
        one, other = np.where(fails, random.uniform(0, 450, (2, size)), random.normal(480, 15, (2, size)))
        found = difference(one, other, paired=True)
        held += found.low <= 0.0 <= found.high
    return held / draws


def coverage_of_runs(between: float, size: int, draws: int = DRAWS) -> float:
    """Return the share of samples of runs whose interval holds the true mean, as runs from 100 shared start states have it.

    Args:
        between: Standard deviation between runs; it is 80 between start states, and 30 at each beside that.
        size: How many runs.
        draws: How many samples.
    """
    random, held = np.random.default_rng([size, int(between)]), 0
    for _ in range(draws):
        runs, starts = random.normal(0.0, between, (size, 1)), random.normal(0.0, 80.0, (1, 100))
        returns = runs + starts + random.normal(0.0, 30.0, (size, 100))
        found = widened(estimate("mean", returns.mean(axis=1), random), luck_of_starts((1.0, returns)))
        held += found.low <= 0.0 <= found.high
    return held / draws


def coverage_of_success_of_runs(hardness: float, size: int, draws: int = DRAWS) -> float:
    """Return the share of samples of runs whose interval holds the true rate of success, 0.9, from 100 shared start states.

    Args:
        hardness: How much of success the start state decides: all of it for 1, nothing for 0.
        size: How many runs.
        draws: How many samples.
    """
    random, held = np.random.default_rng([size, int(100 * hardness)]), 0
    for _ in range(draws):
        shared, own = random.random((1, 100)), random.random((size, 100))
        succeeded = (np.where(random.random((size, 100)) < hardness, shared, own) < 0.9).astype(float)
        found = success_rate(succeeded, random)
        held += found.low <= 0.9 <= found.high
    return held / draws


def page(rows: list[tuple[str, str, list[float]]]) -> str:
    """Write the document."""
    error = 100 * stats.binom(DRAWS, 0.95).std() / DRAWS
    lines = [
        "# How far intervals can be believed",
        "",
        *textwrap.wrap(WHICH, 124),
        "",
        *textwrap.wrap(HOW, 124),
        "",
        "## Measured",
        "",
        f"`python -m benchmarks.coverage`, {time.strftime('%Y-%m-%d')}: of {DRAWS:,} samples each, the share (in %) whose",
        f"interval held the true value; chance alone moves it by {error:.1f} (one standard deviation). Values: normal; skewed,",
        "minus a gamma of shape 2; sometimes failing, 80 % around 480 and 20 % anywhere from 0 to 450; differences of two such",
        "that fail as often as is said, from the same start states. Mean of runs: of n runs",
        "from 100 start states, which differ by 80 (one standard deviation), and runs by 0 or 30; success, likewise, of 90 %.",
        "",
        f"| statistic | values are | {' | '.join(f'n = {size}' for size in SIZES)} |",
        f"|---|---|{'---|' * len(SIZES)}",
    ]
    for name, kind, found in rows:
        shares = ["-" if math.isnan(share) else f"{100 * share:.1f}" for share in found]
        lines.append(f"| {name.replace('_', ' ')} | {kind} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the document."""
    truths = {kind: true_values(draw) for kind, draw in DISTRIBUTIONS.items()}
    rows = []
    for name in STATISTICS:
        for kind, draw in DISTRIBUTIONS.items():
            rows.append((name, kind, [coverage(name, draw, size, truths[kind][name]) for size in SIZES]))
            print(*rows[-1], flush=True)
    rows += [
        ("success rate", f"{rate:.0%} ones", [coverage_of_rates(rate, size) for size in SIZES]) for rate in (0.5, 0.95, 0.99)
    ]
    for paired, kind in ((True, "of the same start states"), (False, "of training runs")):
        rows.append(("share of advantage", kind, [coverage_of_shares(paired, size) for size in SIZES]))
    for failing in (0.02, 0.05, 0.2):
        rows.append(("difference", f"{failing:.0%} failing", [coverage_of_differences(failing, size) for size in SIZES]))
    for between in (0.0, 30.0):
        rows.append(("mean of runs", f"{between:.0f} apart", [coverage_of_runs(between, size) for size in SIZES]))
    for hardness in (0.0, 0.8):
        kind = f"{hardness:.0%} by the start state"
        rows.append(("success of runs", kind, [coverage_of_success_of_runs(hardness, size) for size in SIZES]))
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
