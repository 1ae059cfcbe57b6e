"""Claims about calibration.spread: a closed form for one draw, the optimum for several, and coverage after it."""

from __future__ import annotations

import numpy as np
import pytest
from netcal.regression import VarianceScaling

from espalier import calibration
from espalier.calibration import apply_variance, fit_variance
from espalier.calibration.calibrators import REGRESSION_CALIBRATORS
from probabilities import Array


def drawn(draws: int, n: int = 1500, narrow: float = 0.5, seed: int = 0) -> tuple[Array, Array, Array]:
    """Draws whose scales and distances are `narrow` times what they ought to be."""
    rng = np.random.default_rng(seed)
    scale, target = rng.uniform(0.5, 2, size=(draws, n)), rng.normal(size=n)
    shift = rng.normal(size=(draws, n))
    chosen = rng.integers(draws, size=n), np.arange(n)
    wide = target + rng.normal(size=n) * scale[chosen] - shift[chosen] + shift
    centre = wide.mean(0)
    return centre + narrow * (wide - centre), narrow * scale, target


def test_for_one_draw_it_is_the_mean_squared_z() -> None:
    mean, scale, target = drawn(1)
    factor = fit_variance(mean, scale, target)
    assert factor == pytest.approx(np.mean(((target - mean[0]) / scale[0]) ** 2), rel=1e-12)
    assert factor == pytest.approx(4, rel=0.1)


@pytest.mark.filterwarnings("ignore")  # netcal's own
def test_for_one_draw_it_is_netcals() -> None:
    mean, scale, target = drawn(1)
    theirs = VarianceScaling()
    theirs.fit((mean[0], scale[0]), target)
    found = np.ravel(theirs.transform((mean[0], scale[0])))
    np.testing.assert_allclose(apply_variance(mean, scale, fit_variance(mean, scale, target))[1][0], found, rtol=1e-4)


def test_for_a_mixture_no_other_factor_has_a_lower_nll() -> None:
    mean, scale, target = drawn(4)
    best = fit_variance(mean, scale, target)
    lowest = calibration.gaussian_nll(*apply_variance(mean, scale, best), target)
    for factor in [*np.geomspace(1e-2, 1e2, 60), best * 0.99, best * 1.01]:
        assert calibration.gaussian_nll(*apply_variance(mean, scale, factor), target) >= lowest
    assert best == pytest.approx(4, rel=0.15)


def test_the_mixture_keeps_its_mean_and_has_the_factor_times_its_variance() -> None:
    mean, scale, _ = drawn(3, 20)
    after = apply_variance(mean, scale, 2.5)
    np.testing.assert_allclose(after[0].mean(0), mean.mean(0), rtol=1e-12)
    total = calibration.total_variance(np.stack([mean, scale], axis=-1))
    np.testing.assert_allclose(calibration.total_variance(np.stack(after, axis=-1)), 2.5 * total, rtol=1e-12)


def test_it_mends_coverage_elsewhere() -> None:
    calibrator = REGRESSION_CALIBRATORS["variance"]
    factor = calibrator.fit(*drawn(3))
    mean, scale, target = drawn(3, seed=1)
    assert calibration.interval_coverage(mean, scale, target) < 0.8
    assert calibration.interval_coverage(*calibrator.apply(mean, scale, factor), target) == pytest.approx(0.95, abs=0.03)
    assert isinstance(factor, float)


def test_what_does_not_fit_is_refused() -> None:
    ones = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"expected mean and scale \(S, n\), target \(n,\)"):
        fit_variance(ones, ones, np.ones(4))
    with pytest.raises(ValueError, match="expected a factor above 0, got 0"):
        apply_variance(ones, ones, 0)
    with pytest.raises(ValueError, match="expected targets that differ from the mean"):
        fit_variance(ones[:1], ones[:1], np.ones(3))
