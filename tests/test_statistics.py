"""Intervals and robust means of returns."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import DISTRIBUTIONS, coverage, coverage_of_runs, true_values
from il_based_rl import statistics
from il_based_rl.statistics import (
    STATISTICS,
    Estimate,
    difference,
    estimate,
    interquartile_mean,
    luck_of_starts,
    mean_interval,
    probability_of_improvement,
    proportion,
    share_of_advantage,
    success_rate,
    worst_decile,
)


def generator():
    return np.random.default_rng(3)


def test_what_is_small_is_not_written_as_nothing():
    assert str(Estimate(2e-5, 1e-5, 3e-5)) == "0.000020 [0.000010, 0.000030]"
    assert str(Estimate(0.0004, math.nan, math.nan)) == "0.00040"
    assert str(Estimate(-0.002, -0.2, 0.1)) == "-0.00 [-0.20, 0.10]"
    assert str(Estimate(0.0, 0.0, 0.0)) == "0.00 [0.00, 0.00]"
    assert str(Estimate(1e-17, -1e-16, 1e-16)) == "0.00 [-0.00, 0.00]"


def test_every_example_in_the_docstrings_holds():
    result = doctest.testmod(statistics)
    assert result.failed == 0
    assert result.attempted >= 3


def test_interval_of_three_returns_by_hand():
    # Mean 20, standard deviation 10, standard error 10 / sqrt(3) = 5.773503; t(0.975, 2) = 4.302653: half width 24.841377
    low, high = mean_interval(np.array([10.0, 20.0, 30.0]))
    assert low == pytest.approx(20.0 - 24.841377, abs=1e-5)
    assert high == pytest.approx(20.0 + 24.841377, abs=1e-5)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(3.0, 5.0, size=(2000, 6))
    intervals = np.array([mean_interval(sample) for sample in samples])
    covered = ((intervals[:, 0] < 3.0) & (intervals[:, 1] > 3.0)).mean()
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of a share of 2,000


def test_interval_moves_and_stretches_with_the_values():
    values = np.array([1.0, 5.0, 6.0, 9.0])
    low, high = mean_interval(values)
    assert mean_interval(-10.0 * values + 3.0) == pytest.approx((-10.0 * high + 3.0, -10.0 * low + 3.0), rel=1e-12)


def test_a_single_return_has_no_interval():
    assert all(math.isnan(end) for end in mean_interval(np.array([4.0])))


def test_equal_returns_have_an_interval_of_no_width():
    assert mean_interval(np.full(5, -1.5)) == (-1.5, -1.5)


def test_interquartile_mean_drops_a_quarter_at_each_end_whatever_the_order():
    # Sorted: -1000 0 | 1 2 3 6 | 7 9999: (1 + 2 + 3 + 6) / 4 = 3
    assert interquartile_mean(np.array([6.0, 9999.0, 0.0, 3.0, -1000.0, 1.0, 7.0, 2.0])) == 3.0


def test_interquartile_mean_of_ten_seeds_keeps_the_middle_six():
    # A quarter of ten rounds down to two at each end: mean of 2..7 is 4.5, and the outliers do not move it.
    assert interquartile_mean(np.array([-1e6, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 1e9])) == 4.5


# ---- robust statistics and their intervals ----


def test_worst_decile_is_the_mean_of_the_lowest_tenth_and_of_one_at_least():
    assert worst_decile(np.array([3.0, 1.0, 2.0])) == 1.0
    assert worst_decile(np.random.default_rng(0).permutation(30.0 * np.arange(30))) == 30.0
    assert worst_decile(np.arange(21.0)) == 1.0  # three of 21, so that the tenth is whole
    np.testing.assert_array_equal(worst_decile(np.array([[3.0, 1.0], [7.0, 9.0]])), [1.0, 7.0])


def test_estimates_of_many_values_are_scipys_bootstrap():
    values = np.random.default_rng(0).gamma(2.0, 1.0, 60)
    found = estimate("mean", values, np.random.default_rng(5))
    theirs = stats.bootstrap(
        [values], np.mean, n_resamples=2000, batch=200, method="BCa", random_state=np.random.default_rng(5)
    )
    assert (found.low, found.high) == tuple(theirs.confidence_interval)
    assert found.value == values.mean()


def test_estimates_of_few_values_are_t_intervals():
    values = np.random.default_rng(0).normal(size=7)
    assert (lambda e: (e.low, e.high))(estimate("mean", values, generator())) == pytest.approx(mean_interval(values), rel=1e-12)
    # Seven values: one cut off at each end; winsorised standard deviation over (1 - 2 * 0.25) sqrt(7), four degrees of freedom.
    ordered = np.sort(values)
    winsorised = np.array([ordered[1], *ordered[1:6], ordered[5]])
    half = stats.t.ppf(0.975, 4) * winsorised.std(ddof=1) / (0.5 * 7**0.5)
    found = estimate("interquartile_mean", values, generator())
    assert found.value == pytest.approx(ordered[1:6].mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-9)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("count", [2, 5, 50])
def test_equal_values_have_intervals_of_no_width(name, count):
    found = estimate(name, np.full(count, 500.0), generator())
    assert found.value == 500.0
    if count < {"median": 5, "worst_decile": 100}.get(name, 2):
        assert math.isnan(found.low)
    else:
        assert (found.low, found.high) == (500.0, 500.0)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_single_value_has_no_interval(name):
    found = estimate(name, np.array([3.0]), generator())
    assert found.value == 3.0
    assert math.isnan(found.low)
    assert str(found) == "3.00"


@pytest.mark.parametrize("name", STATISTICS)
def test_values_that_nearly_all_agree_have_finite_intervals(name):
    values = np.full(120, 500.0)
    values[7] = 3.0
    found = estimate(name, values, generator())
    assert math.isfinite(found.low)
    assert found.low <= found.value <= found.high


@pytest.mark.slow
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("name", ["mean", "interquartile_mean"])
def test_intervals_of_a_hundred_values_hold_as_often_as_they_say(name, kind):
    truth = true_values(DISTRIBUTIONS[kind])[name]
    assert 0.93 <= coverage(name, DISTRIBUTIONS[kind], 100, truth) <= 0.97


@pytest.mark.parametrize("name", ["mean", "interquartile_mean"])
def test_intervals_of_five_normal_values_hold_as_often_as_they_say(name):
    assert 0.93 <= coverage(name, DISTRIBUTIONS["normal"], 5, 0.0) <= 0.97


# ---- comparisons ----


def starts(random, count=100):
    """How hard start states are: a standard deviation of 74, as of Pendulum-v1's."""
    return random.normal(-140.0, 74.0, count)


def test_a_planted_difference_of_two_percent_is_found_by_pairing_and_missed_without():
    random = np.random.default_rng(0)
    seen = np.zeros(2)
    for _ in range(50):
        hard = starts(random)
        expert, student = hard + random.normal(0, 3, 100), 1.02 * hard + random.normal(0, 3, 100)
        for k, paired in enumerate((True, False)):
            seen[k] += difference(student, expert, paired=paired).high < 0.0
    assert seen[0] >= 48
    assert seen[1] <= 5


def test_no_difference_is_found_where_there_is_none_as_often_as_is_said():
    random, found = np.random.default_rng(1), 0
    for _ in range(200):
        hard = starts(random)
        one, other = (hard + random.normal(0, 3, 100) for _ in range(2))
        interval = difference(one, other, paired=True)
        found += not interval.low <= 0.0 <= interval.high
    assert found <= 20  # of ten expected


def test_a_difference_of_few_runs_is_welchs():
    one, other = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 1.5, 0.5])
    theirs = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    found = difference(one, other, paired=False)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert found.value == pytest.approx(one.mean() - other.mean(), rel=1e-12)


def test_a_proportion_stays_between_none_and_all_and_is_wilsons():
    for ones, n in ((0, 20), (20, 20), (13, 20), (1, 100)):
        found = proportion(np.repeat([1.0, 0.0], [ones, n - ones]))
        theirs = stats.binomtest(ones, n).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert 0.0 <= found.low < found.high <= 1.0


@pytest.mark.parametrize(("n", "rate"), [(20, 0.5), (20, 0.95), (100, 0.98)])
def test_intervals_of_proportions_hold_about_as_often_as_they_say(n, rate):
    random = np.random.default_rng(0)
    found = [proportion((random.random(n) < rate).astype(float)) for _ in range(2000)]
    assert 0.92 <= np.mean([each.low <= rate <= each.high for each in found]) <= 0.98


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_of_shares_of_few_values_hold_about_as_often_as_they_say(n, paired):
    random, held = np.random.default_rng(0), 0
    for _ in range(1000):
        hard = random.normal(0, 20, n) if paired else 0.0
        policy, reference, baseline = (hard + random.normal(mean, 10, n) for mean in (80.0, 100.0, 0.0))
        found = share_of_advantage(policy, reference, baseline, paired=paired)
        held += found.low <= 0.8 <= found.high
    assert 0.92 <= held / 1000 <= (0.99 if paired else 1.0)  # with the least degrees of freedom, it errs on the safe side


def test_the_interval_of_three_runs_is_the_same_for_both_means_as_none_is_cut_off():
    values = np.array([1.0, 2.0, 6.0])
    assert estimate("interquartile_mean", values, generator()) == estimate("mean", values, generator())


def test_probability_of_improvement_counts_ties_half():
    one, other = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 1.0, 4.0, 2.0])
    assert probability_of_improvement(one, other, generator(), paired=True).value == (0.5 + 1 + 0 + 1) / 4


def test_probability_of_improvement_of_runs_is_mann_and_whitneys():
    random = np.random.default_rng(0)
    one, other = random.normal(0.5, 1, 12), random.normal(0, 1, 9)
    found = probability_of_improvement(one, other, generator(), paired=False)
    assert found.value == pytest.approx(stats.mannwhitneyu(one, other).statistic / (12 * 9), rel=1e-12)
    assert found.low < found.value < found.high


def test_share_of_advantage_by_hand():
    baseline, reference = np.full(50, -1000.0), np.full(50, -100.0)
    found = share_of_advantage(np.full(50, -109.0), reference, baseline, paired=True)
    assert found.value == pytest.approx(0.99, rel=1e-12)
    assert (found.low, found.high) == (found.value, found.value)


def test_share_of_advantage_is_narrower_where_start_states_are_shared():
    random = np.random.default_rng(0)
    hard = starts(random)
    baseline, expert, student = 5 * hard, hard + random.normal(0, 3, 100), hard - 5 + random.normal(0, 3, 100)
    widths = [
        (lambda e: e.high - e.low)(share_of_advantage(student, expert, baseline, paired=paired)) for paired in (True, False)
    ]
    assert widths[0] < widths[1] / 3


@pytest.mark.parametrize(("failing", "size"), [(0.02, 30), (0.02, 100), (0.05, 50)])
def test_a_difference_of_policies_that_seldom_fail_is_called_clear_no_more_often_than_it_says(failing, size):
    random, called = np.random.default_rng(0), 0
    for _ in range(1000):
        fails = random.random((2, size)) < failing
        one, other = np.where(fails, random.uniform(0, 450, (2, size)), random.normal(480, 15, (2, size)))
        found = difference(one, other, paired=True)
        called += not found.low <= 0.0 <= found.high
    assert called <= 65


def test_success_of_few_runs_that_agree_is_not_taken_for_certain():
    succeeded = np.tile(np.arange(20) < 18, (2, 1)).astype(float)
    found = success_rate(succeeded, generator())
    assert found.low <= proportion(succeeded.ravel()).low < 0.9 < found.high


def test_luck_of_starts_by_hand():
    returns = np.array([[1.0, 5.0, 3.0], [3.0, 9.0, 3.0]])  # by start state 2, 7 and 3, of variance 7
    by_run, by_start = [3.0, 5.0], [2.0, 7.0, 3.0]
    left = sum((returns[r, s] - by_run[r] - by_start[s] + 4.0) ** 2 for r in range(2) for s in range(3))
    assert left == 4.0
    # 4 over one times two degrees of freedom, halved, as means are of two runs; t(0.975, 2) = 4.302653
    half = 4.302653 * ((7.0 - 4.0 / 2 / 2) / 3) ** 0.5
    assert luck_of_starts((1.0, returns)) == pytest.approx(half, rel=1e-6)
    assert luck_of_starts((-2.0, returns)) == pytest.approx(2 * half, rel=1e-6)
    # differences of 1, 2 and 0, of variance 1: no more than the two runs differ by at single start states, so that all is kept
    assert luck_of_starts((1.0, returns), (-1.0, returns[:1])) == pytest.approx(4.302653 * (1.0 / 3) ** 0.5, rel=1e-6)
    assert luck_of_starts((1.0, returns[:1])) == pytest.approx(4.302653 * (4.0 / 3) ** 0.5, rel=1e-6)
    assert math.isnan(luck_of_starts((1.0, returns[:, :1])))


@pytest.mark.parametrize(("apart", "runs"), [(0.0, 3), (0.0, 10), (30.0, 5)])
def test_intervals_of_runs_that_share_start_states_hold_as_often_as_they_say(apart, runs):
    assert 0.93 <= coverage_of_runs(apart, runs, draws=500) <= 0.99


def test_the_same_random_generator_gives_the_same_intervals_and_the_global_ones_are_left_alone(global_generators_untouched):
    values = np.random.default_rng(0).normal(size=100)
    assert estimate("median", values, generator()) == estimate("median", values, generator())
