"""Intervals and robust means of returns, from scipy."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval for the mean of independent values.

    Args:
        values: Shape (E,), at least one.
        confidence: Coverage, in (0, 1).

    Returns:
        Low and high end; both NaN for a single value, which says nothing about its spread.

    Example:
        >>> [round(end, 3) for end in mean_interval(np.array([1.0, 2.0, 3.0]))]
        [-0.484, 4.484]
    """
    if len(values) < 2:
        return math.nan, math.nan
    mean = float(np.mean(values))
    half_width = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values))
    return mean - half_width, mean + half_width


def interquartile_mean(values: np.ndarray) -> float:
    """Return the mean of the middle half of the values (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264).

    Example:
        >>> interquartile_mean(np.array([-1000.0, 1.0, 3.0, 1000.0]))
        2.0
    """
    return float(stats.trim_mean(values, 0.25))
