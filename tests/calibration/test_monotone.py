"""Claims about calibration.monotone: scikit-learn's isotonic regression, netcal's beta, gradients and mirror images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from netcal.scaling import BetaCalibration
from scipy.optimize import check_grad
from scipy.special import expit, logit, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from espalier import calibration
from espalier.calibration import monotone
from espalier.calibration.calibrators import CALIBRATORS
from espalier.calibration.monotone import apply_beta, apply_isotonic, fit_beta, fit_isotonic
from probabilities import Array, draw_probs


def two(n: int = 500, a: float = 0.5, b: float = 0.8, c: float = 0.4, seed: int = 0) -> tuple[Array, Array]:
    """Probabilities of the second class, and labels at the rate of a beta map of them."""
    rng = np.random.default_rng(seed)
    p = np.round(expit(2 * rng.standard_normal(n)), 3).clip(0.001, 0.999)
    rate = expit(a * np.log(p) - b * np.log1p(-p) + c)
    return np.stack([1 - p, p], axis=1), (rng.random(n) < rate).astype(int)


def test_isotonic_is_scikit_learns_ties_and_all() -> None:
    probs, y = two()
    theirs = IsotonicRegression(out_of_bounds="clip").fit(probs[:, 1], y)
    kept = fit_isotonic(probs, y)
    np.testing.assert_allclose(apply_isotonic(probs, kept)[:, 1], theirs.predict(probs[:, 1]), atol=1e-12)
    new = np.linspace(0, 1, 1001)
    ours = apply_isotonic(np.stack([1 - new, new], axis=1), kept)[:, 1]
    np.testing.assert_allclose(ours, theirs.predict(new), atol=1e-9)
    assert len(kept["maps"][0]["at"]) < 80  # corners alone
    assert (np.diff(ours) >= 0).all()


def test_the_objective_of_beta_has_the_gradient_of_finite_differences() -> None:
    probs, y = two(60)
    value = monotone.beta_objective(np.log(probs[:, ::-1]), y.astype(float))
    theta = np.array([0.7, 1.3, -0.2])
    assert check_grad(lambda t: value(t)[0], lambda t: value(t)[1], theta) < 1e-6


def test_beta_is_a_logistic_regression_of_two_logarithms() -> None:
    probs, y = two(4000)
    a, b, c = fit_beta(probs, y)["maps"][0]["abc"]
    x = np.stack([np.log(probs[:, 1]), -np.log(probs[:, 0])], axis=1)
    theirs = LogisticRegression(C=1e10, tol=1e-10, max_iter=5000).fit(x, y)
    np.testing.assert_allclose([a, b, c], [*theirs.coef_[0], theirs.intercept_[0]], atol=1e-4)
    np.testing.assert_allclose([a, b, c], [0.5, 0.8, 0.4], atol=0.15)


@pytest.mark.filterwarnings("ignore")  # netcal's own
def test_beta_is_netcals() -> None:
    probs, y = two(4000)
    theirs = BetaCalibration()
    theirs.fit(probs[:, 1], y)
    ours = apply_beta(probs, fit_beta(probs, y))[:, 1]
    np.testing.assert_allclose(ours, np.ravel(theirs.transform(probs[:, 1])), atol=5e-3)


def test_a_slope_that_would_fall_is_held_at_0_and_the_rest_is_optimal() -> None:
    probs, y = two(800, a=-0.4, b=0.9)
    a, b, c = fit_beta(probs, y)["maps"][0]["abc"]
    assert a == 0
    slope = monotone.beta_objective(np.log(probs[:, ::-1]), y.astype(float))(np.array([a, b, c]))[1]
    assert slope[0] > 0  # below 0 the loss would fall on
    np.testing.assert_allclose(slope[1:], 0, atol=1e-6)
    found = apply_beta(np.stack([1 - np.linspace(0, 1, 99), np.linspace(0, 1, 99)], axis=1), fit_beta(probs, y))
    assert (np.diff(found[:, 1]) >= 0).all()


@pytest.mark.parametrize("name", ["isotonic", "beta"])
def test_the_other_class_has_the_mirror_image(name: str) -> None:
    probs, y = two()
    calibrator = CALIBRATORS[name]
    there = calibrator.apply(probs, calibrator.fit(probs, y))
    back = calibrator.apply(probs[:, ::-1], calibrator.fit(probs[:, ::-1], 1 - y))
    np.testing.assert_allclose(back[:, ::-1], there, atol=1e-6)


@pytest.mark.parametrize("name", ["isotonic", "beta"])
def test_more_classes_are_mapped_one_against_the_rest(name: str) -> None:
    probs, y = draw_probs(2000)
    calibrator = CALIBRATORS[name]
    kept = json.loads(json.dumps(calibrator.fit(probs, y)))
    after = calibrator.apply(probs, kept)
    each = []
    for c in range(4):
        pair = np.stack([1 - probs[:, c], probs[:, c]], axis=1)
        each.append(calibrator.apply(pair, calibrator.fit(pair, (y == c).astype(int)))[:, 1])
    total = np.sum(each, axis=0)
    np.testing.assert_allclose(after, np.transpose(each / total), atol=1e-5)
    assert calibration.ece(after, y) < calibration.ece(probs, y)
    assert calibration.brier(after, y) < calibration.brier(probs, y)


def test_a_row_that_every_map_takes_to_0_becomes_even() -> None:
    kept = {"classes": 3, "maps": [{"at": [0.0, 0.5, 1.0], "value": [0.0, 0.0, 1.0]}] * 3}
    np.testing.assert_allclose(apply_isotonic(np.array([[0.4, 0.3, 0.3], [0.8, 0.1, 0.1]]), kept), [[1 / 3] * 3, [1, 0, 0]])


def test_certain_and_rounded_predictions_are_no_trouble() -> None:
    logits = np.array([[0.0, 200.0], [0, -200], [0, 1], [0, 0], [0, -1], [0, 2]], dtype=np.float32)
    probs, y = softmax(logits, axis=1), np.array([1, 0, 0, 1, 0, 1])
    for name in ("isotonic", "beta"):
        after = CALIBRATORS[name].apply(probs, CALIBRATORS[name].fit(probs, y))
        assert np.isfinite(after).all()
        np.testing.assert_allclose(after.sum(1), 1, rtol=1e-12)
    assert logit(apply_beta(probs, fit_beta(probs, y))[2, 1]) < 1


def test_what_does_not_fit_is_refused() -> None:
    probs, y = two(20)
    for name in ("isotonic", "beta"):
        calibrator = CALIBRATORS[name]
        with pytest.raises(ValueError, match="expected labels in 0..1"):
            calibrator.fit(probs, y + 1)
        with pytest.raises(ValueError, match="expected at least two classes, got 1"):
            calibrator.fit(np.ones((3, 1)), np.zeros(3, dtype=int))
        with pytest.raises(ValueError, match="expected parameters of 3 classes, got 2; fit them on predictions"):
            calibrator.apply(np.full((2, 3), 1 / 3), calibrator.fit(probs, y))


def test_a_small_probability_keeps_its_digits_in_either_class() -> None:
    identity = {"classes": 2, "maps": [{"abc": [1.0, 1.0, 0.0]}]}
    p = np.array([[1e-20, 1.0], [1.0, 1e-20]])
    np.testing.assert_allclose(apply_beta(p, identity), p, rtol=1e-9)
    np.testing.assert_allclose(calibration.nll_scores(apply_beta(p, identity), [0, 1]), -np.log(1e-20), rtol=1e-9)
