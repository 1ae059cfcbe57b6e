"""Scores of features: each against a naive loop, a library or quadrature, and the traps of released code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import expit

from espalier.calibration.features import DensityScore, LaplaceScore, NeighbourRegression, NeighbourScore


def clusters(seed: int = 0, rows: int = 60, classes: int = 3, columns: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    return rng.normal(size=(classes, columns))[y] * 2 + rng.normal(size=(rows, columns)), y


def naive(x: np.ndarray, features: np.ndarray, y: np.ndarray, h: float, smoothing: float, count: int) -> dict[str, float]:
    distances = [math.dist(x, row) for row in features]
    near = sorted(range(len(features)), key=distances.__getitem__)[:count]
    kernel = {i: math.exp(-(distances[i] ** 2) / (2 * h**2)) for i in near}
    total = sum(kernel.values()) + smoothing
    share = [float(np.mean(y == c)) for c in range(max(y) + 1)]
    p = [(sum(k for i, k in kernel.items() if y[i] == c) + smoothing * share[c]) / total for c in range(max(y) + 1)]
    top = max(p)
    tau = math.sqrt(top * (1 - top) / total)
    return {"nuq_aleatoric": 1 - top, "nuq_epistemic": 2 * math.log(tau), "nuq_total": 1 - top + 2 * math.sqrt(2 / math.pi) * tau}


@pytest.mark.parametrize("smoothing", [1.0, 0.3])
def test_neighbours_say_what_a_naive_loop_says(smoothing: float) -> None:
    features, y = clusters()
    score = NeighbourScore.fit(features, y, bandwidth=0.9, smoothing=smoothing, neighbours=7)
    new = np.random.default_rng(1).normal(size=(9, 4)) * 2
    found = score.uncertainties(new)
    for row in range(len(new)):
        expected = naive(new[row], features, y, 0.9, smoothing, 7)
        assert {name: float(values[row]) for name, values in found.items()} == pytest.approx(expected, rel=1e-9)
    logs, _ = score.log_posterior(new)
    assert np.allclose(np.exp(logs).sum(1), 1, rtol=1e-12)


def test_far_from_every_row_they_say_what_was_said_before_any_and_keep_their_digits() -> None:
    """The frequencies, and log p(1 - p) at D = N0. A row among many of one class keeps a 1 - p of 1e-14, which 1 - exp(log p)
    does not; released code smooths 1 - p by log(1 - log pi), which is no probability."""
    features, y = clusters()
    y = np.where(y == 2, 0, y)  # two thirds are of class 0
    far = NeighbourScore.fit(features, y, bandwidth=0.5).uncertainties(np.full((1, 4), 1e4))
    assert float(far["nuq_aleatoric"][0]) == pytest.approx(1 / 3, rel=1e-12)
    assert float(far["nuq_epistemic"][0]) == pytest.approx(math.log(2 / 9), rel=1e-12)
    sure = NeighbourScore.fit(np.zeros((20, 2)), np.r_[np.zeros(19, int), 1], bandwidth=1e-3, smoothing=1e-12, neighbours=19)
    own = sure._replace(features=np.r_[np.zeros((19, 2)), [[5.0, 5.0]]]).uncertainties(np.zeros((1, 2)))
    assert float(own["nuq_aleatoric"][0]) == pytest.approx(1e-12 * 0.05 / 19, rel=1e-6)


def test_the_bandwidth_is_of_the_distances_and_suits_the_labels() -> None:
    features, y = clusters(rows=300)
    chosen = NeighbourScore.fit(features, y)

    def left_out(h: float) -> float:
        """Mean log-likelihood of every fifth row by the others, from all of those, far ones too, as they hardly count."""
        logs = []
        for fold in range(5):
            out = np.arange(300) % 5 == fold
            known, labels = features[~out], y[~out]
            for row, label in zip(features[out], y[out], strict=True):
                nearest = np.argsort(((known - row) ** 2).sum(1))[:20]
                kernel = np.exp(-((known[nearest] - row) ** 2).sum(1) / (2 * h**2))
                logs.append(math.log((kernel[labels[nearest] == label].sum() + 1 / 3) / (kernel.sum() + 1)))
        return float(np.mean(logs))

    smaller = [left_out(chosen.bandwidth / factor) for factor in (1, 2, 4, 8, 16)]
    assert smaller == sorted(smaller, reverse=True)
    assert smaller[0] > smaller[1] + 0.005
    huge = NeighbourScore.fit(1e6 * features, y)
    assert huge.bandwidth == pytest.approx(1e6 * chosen.bandwidth, rel=1e-6)


def test_of_a_regression_they_are_the_spread_near_a_row() -> None:
    rng = np.random.default_rng(0)
    features, y = rng.normal(size=(50, 2)), rng.normal(size=50) * 3 + 7
    new = rng.normal(size=(4, 2))
    found = NeighbourRegression.fit(features, y, bandwidth=0.7, smoothing=0.5, neighbours=9).uncertainties(new)
    for row in range(4):
        near = np.argsort([math.dist(new[row], own) for own in features])[:9]
        kernel = [math.exp(-(math.dist(new[row], features[i]) ** 2) / (2 * 0.49)) for i in near]
        total = sum(kernel) + 0.5
        # Weighted moments of the rows near, and of one pseudo-row of weight 1/2 that has the targets' own.
        mean = (np.dot(kernel, y[near]) + 0.5 * y.mean()) / total
        second = (np.dot(kernel, y[near] ** 2) + 0.5 * (y**2).mean()) / total
        assert float(found["nuq_aleatoric"][row]) == pytest.approx(second - mean**2, rel=1e-9)
        assert float(found["nuq_epistemic"][row]) == pytest.approx((second - mean**2) / total, rel=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_the_density_is_the_mixture_of_scipys_normals(shared: bool) -> None:
    features, y = clusters(rows=90)
    y = np.where(y == 1, 5, y)  # labels without gaps are not needed
    new = np.random.default_rng(3).normal(size=(6, 4))
    centred = features - np.stack([features[y == label].mean(0) for label in y])
    every = centred.T @ centred / 90
    jitter = 1e-6 * np.trace(every) / 4 * np.eye(4)
    density = 0.0
    for label in (0, 2, 5):
        own = every if shared else np.cov(features[y == label].T, bias=True)
        normal = stats.multivariate_normal(features[y == label].mean(0), own + jitter)
        density = density + np.mean(y == label) * normal.pdf(new)
    found = DensityScore.fit(features, y, shared=shared).uncertainties(new)["density"]
    assert np.allclose(found, -np.log(density), rtol=1e-8)


def test_a_class_of_fewer_rows_than_features_has_a_density_all_the_same() -> None:
    rng = np.random.default_rng(0)
    found = DensityScore.fit(rng.normal(size=(8, 30)), np.arange(8) % 2).log_density(rng.normal(size=(3, 30)))
    assert np.isfinite(found).all()


def test_of_a_logistic_regression_laplace_is_the_gaussian_at_its_mode() -> None:
    """Two classes of which only the difference counts: against the mode and curvature of the exact log-posterior, by numbers, and
    the predictive against quadrature over the difference's Gaussian."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = (rng.random(40) < expit(x @ np.array([1.5, -0.7]))).astype(int)
    s = 0.8

    def potential(w: np.ndarray) -> float:  # weights (2, 2)
        z = x @ w.reshape(2, 2).T
        return float(-(z[np.arange(40), y] - np.logaddexp(z[:, 0], z[:, 1])).sum() + (w**2).sum() / (2 * s**2))

    from scipy.optimize import minimize

    mode = minimize(potential, np.zeros(4), options={"gtol": 1e-9}).x
    step, hessian = 1e-4, np.zeros((4, 4))
    for i, j in np.ndindex(4, 4):
        e, f = np.eye(4)[i] * step, np.eye(4)[j] * step
        hessian[i, j] = (
            potential(mode + e + f) - potential(mode + e - f) - potential(mode - e + f) + potential(mode - e - f)
        ) / (4 * step**2)
    score = LaplaceScore.fit(x, mode.reshape(2, 2), np.zeros(2), prior_scale=s)
    assert np.allclose(score.factor @ score.factor.T, hessian, rtol=1e-4, atol=1e-5)
    new = np.array([[2.0, 1.0], [-4.0, 3.0]])
    mean, covariance = score.logits(new)
    draws = score.draws(new, 40_000, seed=1)
    for row in range(2):
        centre = mean[row, 1] - mean[row, 0]
        variance = covariance[row, 0, 0] + covariance[row, 1, 1] - 2 * covariance[row, 0, 1]
        width = math.sqrt(variance)
        ends = centre - 9 * width, centre + 9 * width
        exact = integrate.quad(lambda z, c=centre, w=width: expit(z) * stats.norm.pdf(z, c, w), *ends)[0]
        assert abs(draws[:, row, 1].mean() - exact) < 4 * draws[:, row, 1].std() / math.sqrt(40_000)
        wide = np.kron(np.array([-1.0, 1.0]), new[row])
        assert variance == pytest.approx(wide @ np.linalg.inv(hessian) @ wide, rel=1e-3)


def test_a_wide_layer_keeps_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(30, 1600)), 0.01 * rng.normal(size=(2, 1600))
    score = LaplaceScore.fit(x, w, np.zeros(2), prior_scale=0.5)
    p = expit(x @ (w[1] - w[0]))
    precision = (p * (1 - p)) @ x**2 + 4
    assert np.allclose(score.factor, np.r_[precision, precision], rtol=1e-9)
    _, covariance = score.logits(x[:2])
    assert np.allclose(covariance[0], np.eye(2) * (x[0] ** 2 / precision).sum(), rtol=1e-9)


def test_what_is_no_feature_is_refused() -> None:
    features, y = clusters()
    with pytest.raises(ValueError, match="expected finite features"):
        NeighbourScore.fit(np.full((3, 2), np.nan), [0, 1, 0])
    with pytest.raises(ValueError, match="expected a label of 0, 1, ... for each of 60 rows"):
        DensityScore.fit(features, y[:5])
    with pytest.raises(ValueError, match=r"expected finite features \(n, 4\)"):
        NeighbourScore.fit(features, y).uncertainties(features[:, :2])
    with pytest.raises(ValueError, match="expected 3 biases and a prior_scale above 0"):
        LaplaceScore.fit(features, np.zeros((3, 4)), np.zeros(2))


def test_uncertainties_of_many_rows_are_those_of_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(60, 4)), rng.normal(size=(3, 4)), rng.normal(size=3)
    score = LaplaceScore.fit(x, w, b)
    whole = score.uncertainties(x, num_samples=3000)["laplace_mutual_information"]
    monkeypatch.setattr("espalier.calibration.features._HELD", 3000 * 60)
    parts = score.uncertainties(x, num_samples=3000)["laplace_mutual_information"]
    np.testing.assert_allclose(parts, whole, atol=0.03)
    assert not np.array_equal(parts, whole)
