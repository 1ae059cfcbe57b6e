"""Claims about shares: their intervals are SciPy's exact ones, at the ends too."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from espalier.calibration import clopper_pearson


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_an_interval_is_that_of_the_exact_test(level: float) -> None:
    hits, counts = np.array([0, 1, 7, 20, 1]), np.array([12, 12, 31, 20, 1])
    low, high = clopper_pearson(hits, counts, level)
    for place, (x, n) in enumerate(zip(hits, counts, strict=True)):
        exact = binomtest(int(x), int(n)).proportion_ci(level, method="exact")
        assert (low[place], high[place]) == pytest.approx((exact.low, exact.high), abs=1e-12)
