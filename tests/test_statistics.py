"""Intervals and robust means of returns."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from il_based_rl import statistics
from il_based_rl.statistics import interquartile_mean, mean_interval


def test_every_example_in_the_docstrings_holds():
    result = doctest.testmod(statistics)
    assert result.failed == 0
    assert result.attempted >= 2


def test_interval_of_three_returns_by_hand():
    # Mean 20, standard deviation 10, standard error 10 / sqrt(3) = 5.773503; t(0.975, 2) = 4.302653: half width 24.841377
    low, high = mean_interval(np.array([10.0, 20.0, 30.0]))
    assert low == pytest.approx(20.0 - 24.841377, abs=1e-5)
    assert high == pytest.approx(20.0 + 24.841377, abs=1e-5)


def test_interval_at_ninety_percent_by_hand():
    # t(0.95, 3) = 2.353363; four values of standard deviation sqrt(2/3), standard error sqrt(1/6) = 0.408248
    low, high = mean_interval(np.array([1.0, 1.0, 2.0, 2.0]) + np.array([-0.5, 0.5, -0.5, 0.5]), confidence=0.9)
    assert (low + high) / 2 == pytest.approx(1.5, rel=1e-12)
    assert (high - low) / 2 == pytest.approx(2.353363 * 0.408248, abs=1e-5)


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
