"""How sure a share is: exact intervals for binomial counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from espalier.calibration.scores import LEVEL, Floats, Interval, tail_of


def clopper_pearson(hits: ArrayLike, counts: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Lower and upper ends of the exact interval for the probability behind `hits` of `counts`, elementwise (Clopper & Pearson
    1934): 0 where nothing hit, 1 where all did. counts: above 0."""
    x, n = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    tail = tail_of(level)
    low, high = beta.ppf(tail, x, n - x + 1), beta.ppf(1 - tail, x + 1, n - x)
    return np.where(x == 0, 0.0, low), np.where(x == n, 1.0, high)


def of_all_or_none(rate: float, count: int, level: float = LEVEL) -> Interval:
    """`clopper_pearson`'s interval for a rate of 0 or 1 of `count`, which no resample changes."""
    low, high = clopper_pearson(round(rate * count), count, level)
    return float(low), float(high)
