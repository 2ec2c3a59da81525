"""Medians, pairs and intervals that the benches share. All intervals are 95%."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

Z = 1.96
# The 97.5th percentile of Student's t by degrees of freedom; the normal's beyond them.
T_975 = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
}  # fmt: skip


def medians(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of every figure over several turns."""
    return {figure: statistics.median(turn[figure] for turn in turns) for figure in turns[0]}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of one value per seed with Student's interval; NaN where there is none."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = T_975.get(len(values) - 1, Z) * error
    return mean, mean - half, mean + half


def paired(gains: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Return mean, interval (low, high), t and two-sided p of paired gains, one per seed."""
    mean, low, high = mean_interval(gains)
    t, p = paired_t(gains)
    return mean, low, high, t, p


def paired_t(gains: Sequence[float]) -> tuple[float, float]:
    """Return Student's t of a mean against zero, and its two-sided p.

    Gains that are all equal have no spread: t is infinite and p is 0, or both say nothing (0 and
    1) where the gains are zero. One gain alone says nothing either: both are NaN.
    """
    if len(gains) < 2:
        return math.nan, math.nan
    mean, error = statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    if error == 0:
        return (math.copysign(math.inf, mean), 0.0) if mean else (0.0, 1.0)
    return mean / error, student_p(mean / error, len(gains) - 1)


def student_p(t: float, freedom: int) -> float:
    """Return the two-sided p of Student's t.

    With t = sqrt(freedom) tan(angle) the density is cos(angle)^(freedom - 1) on a finite range,
    which the trapezoidal rule sums to 1e-6.
    """
    power = freedom - 1
    tail = np.linspace(math.atan(abs(t) / math.sqrt(freedom)), math.pi / 2, 20001)
    whole = np.linspace(-math.pi / 2, math.pi / 2, 20001)
    area = np.trapezoid(np.cos(whole) ** power, whole)
    return float(2 * np.trapezoid(np.cos(tail) ** power, tail) / area)


def wilson(right: Sequence[float]) -> tuple[float, float, float]:
    """Return a share of right answers (1 or 0 each) with Wilson's interval."""
    n, share = len(right), statistics.mean(right)
    middle, scale = share + Z * Z / (2 * n), 1 + Z * Z / n
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return share, (middle - half) / scale, (middle + half) / scale


def normal_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of many paired differences with the normal interval."""
    mean, half = float(values.mean()), Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half
