"""Claims about calibration.smooth: relplot, a naive sum over reflections, and coverage where percentiles have none."""

from __future__ import annotations

import numpy as np
import pytest
import relplot
from scipy.special import expit, logit

from budget import assert_at_most
from espalier import calibration
from espalier.calibration import smooth
from espalier.calibration.smooth import smooth_error, smooth_error_interval, smooth_reliability
from probabilities import Array, draw_probs


def drawn(n: int, rng: np.random.Generator, sharpness: float = 1.0) -> tuple[Array, Array]:
    """Confidences mostly high, hits at the rate expit(logit(confidence) / sharpness)."""
    c = 1 - 0.9 * rng.random(n) ** 2
    return c, (rng.random(n) < expit(logit(np.clip(c, 1e-9, 1 - 1e-9)) / sharpness)).astype(float)


def naive(c: Array, weights: Array, bandwidth: float, at: Array) -> Array:
    """sum_i w_i K(c_i, t) as a sum over reflections in 0 and 1, one example after another."""
    total = np.zeros_like(at)
    for place, weight in zip(c, weights, strict=True):
        for k in range(-8, 9):
            for image in (2 * k + place, 2 * k - place):
                total += weight * np.exp(-0.5 * ((at - image) / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    return total


@pytest.mark.parametrize("bandwidth", [0.03, 0.2, 1.0])
def test_the_error_at_a_bandwidth_is_a_naive_integral_over_reflections(bandwidth: float) -> None:
    c, h = drawn(40, np.random.default_rng(0), 3.0)
    at = np.linspace(0, 1, 8001)
    integral = np.trapezoid(np.abs(naive(c, (h - c) / 40, bandwidth, at)), at)
    assert smooth_error(c, h, bandwidth) == pytest.approx(integral, rel=3e-4)  # the grid's (1 / (GRID bandwidth))^2


def test_left_to_itself_the_bandwidth_is_the_error_and_both_are_relplots() -> None:
    # relplot counts a grid point at 0 or 1 once where reflection counts it twice, so no confidences are drawn there
    for seed, power in enumerate((1.0, 2.0, 4.0)):
        rng = np.random.default_rng(seed)
        c = 0.05 + 0.85 * rng.random(1500)
        h = (rng.random(1500) < c**power).astype(float)
        value = smooth_error(c, h)
        assert smooth_reliability(c, h).bandwidth == pytest.approx(value, abs=1e-8)
        assert value == pytest.approx(relplot.smECE(c, h), abs=2e-3)  # relplot bisects its bandwidth ten times
        assert smooth_error(c, h, 0.07) == pytest.approx(relplot.smECE_sigma(c, h, 0.07), abs=1e-3)


def test_the_curve_is_relplots_and_a_naive_ratio() -> None:
    c, h = drawn(300, np.random.default_rng(4), 2.0)
    curve = smooth_reliability(c, h, 0.08)
    at = curve.confidence[::20]
    ratio = naive(c, h, 0.08, at) / naive(c, np.ones_like(h), 0.08, at)
    np.testing.assert_allclose(curve.accuracy[::20], ratio, atol=1e-4)
    c = 0.9 * c
    curve = smooth_reliability(c, h, 0.08)
    theirs, _ = relplot.kernels.ReflectedGaussianKernel(0.08).smooth(c, h, curve.confidence)
    np.testing.assert_allclose(curve.accuracy[40:], theirs[40:], atol=1e-3)
    assert np.trapezoid(curve.density, curve.confidence) == pytest.approx(1, abs=1e-4)


def test_where_no_example_is_near_there_is_no_rate() -> None:
    curve = smooth_reliability(np.full(50, 0.9), np.ones(50), 0.02)
    assert np.isnan(curve.accuracy[:100]).all()
    assert curve.accuracy[180] == pytest.approx(1)


def test_no_bin_edge_matters_where_ece_jumps() -> None:
    c, h = np.full(200, 0.6), (np.arange(200) % 5 < 3).astype(float)
    up, down = c + 1e-6 * h, c - 1e-6 * (1 - h)
    for moved in (up, down):
        assert smooth_error(moved, h) == pytest.approx(smooth_error(c, h), abs=1e-3)  # the root of the shift
    probs = np.stack([up, 1 - up], axis=1)
    assert calibration.ece(probs, 1 - h.astype(int), 5) > 0.4  # two bins of one kind of label each


def test_certainty_that_is_right_has_no_error_and_that_is_wrong_has_it_all() -> None:
    assert smooth_error(np.ones(30), np.ones(30)) == 0
    assert smooth_error(np.ones(30), np.zeros(30)) == pytest.approx(1, abs=1e-6)
    assert smooth_error_interval(np.ones(30), np.ones(30)) == (0, (0, 0))


@pytest.mark.parametrize(("n", "sharpness"), [(400, 1.0), (400, 2.5)])
def test_the_interval_covers_the_error_of_the_population(n: int, sharpness: float) -> None:
    rng, worlds = np.random.default_rng(7), 120
    grid = 1 - 0.9 * ((np.arange(200_000) + 0.5) / 200_000) ** 2
    gap = expit(logit(grid) / sharpness) - grid
    truth = smooth._fixed_point(smooth._gridded(gap[None] / len(grid), grid)) if sharpness > 1 else 0.0
    found = [smooth_error_interval(*drawn(n, rng, sharpness), num_resamples=100).interval for _ in range(worlds)]
    low, high = np.transpose(found)
    assert_at_most(((truth < low) | (high < truth)).sum(), worlds, 0.06)  # a quantile of 100 resamples is off by .01
    assert np.mean(high - low) < 0.16, "an interval that says nothing"
    assert (low > 0).mean() > 0.9 or sharpness == 1.0


def test_percentiles_of_resampled_errors_would_not_cover_an_error_of_0() -> None:
    rng, covered = np.random.default_rng(8), 0
    for _ in range(8):
        c, h = drawn(300, rng)
        rows = rng.integers(300, size=(40, 300))
        covered += np.quantile([smooth_error(c[r], h[r]) for r in rows], 0.025) <= 0
    assert covered == 0


def test_the_top_label_is_what_it_is_of() -> None:
    probs, labels = draw_probs()
    hit = calibration.accuracy_scores(probs, labels)
    assert calibration.smooth_ece(probs, labels) == smooth_error(probs.max(1), hit)
    found = calibration.smooth_ece_interval(probs, labels, num_resamples=50)
    assert found == smooth_error_interval(probs.max(1), hit, num_resamples=50)
    assert found.interval[0] < found.value < found.interval[1]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected confidence in \[0, 1\] and hit 0 or 1, got values outside"):
        smooth_error(np.array([1.2]), np.array([1.0]))
    with pytest.raises(ValueError, match="expected confidence and hit of one shape"):
        smooth_error(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="expected a bandwidth above 0, got 0; leave it out"):
        smooth_error(np.ones(2), np.ones(2), 0)


@pytest.mark.parametrize(("count", "confidence"), [(20, 0.95), (20, 0.99), (60, 0.97)])
def test_the_interval_covers_0_where_hardly_an_error_is_seen(count: int, confidence: float) -> None:
    rng, missed = np.random.default_rng(8), 0
    for _ in range(200):
        hit = (rng.random(count) < confidence).astype(float)
        missed += smooth_error_interval(np.full(count, confidence), hit, num_resamples=200).interval[0] > 0
    assert_at_most(missed, 200, 0.05)


@pytest.mark.parametrize("count", [1, 10, 100, 1000])
def test_certain_and_always_wrong_is_an_error_of_1(count: int) -> None:
    for certain in (1.0, 0.0):
        assert smooth_error(np.full(count, certain), np.full(count, 1 - certain)) == pytest.approx(1.0)
