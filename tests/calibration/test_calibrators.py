"""Claims about calibration.calibrators: all of them by name; temperature against torch and netcal, and its limits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from netcal.scaling import TemperatureScaling
from scipy.special import log_softmax, softmax

from espalier import calibration
from espalier.calibration import apply_draws_temperature, fit_draws_temperature
from espalier.calibration.calibrators import (
    CALIBRATORS,
    DRAW_CALIBRATORS,
    HOTTEST,
    apply_temperature,
    fit_temperature,
)


def overconfident(n: int = 3000, classes: int = 7, sharpness: float = 2.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `sharpness` times those the labels were drawn from."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((n, classes))
    labels = np.array([rng.choice(classes, p=row) for row in softmax(logits, axis=1)])
    return sharpness * logits, labels


def test_a_temperature_divides_the_logits() -> None:
    logits, _ = overconfident(50)
    np.testing.assert_allclose(apply_temperature(softmax(logits, axis=1), 1.7), softmax(logits / 1.7, axis=1), rtol=1e-12)


def test_the_fitted_temperature_is_the_one_that_torch_finds_on_the_logits() -> None:
    logits, labels = overconfident()
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x, y = torch.from_numpy(logits), torch.from_numpy(labels)
    options = {"max_iter": 200, "tolerance_grad": 1e-12, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([log_t], **options)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x / log_t.exp(), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = fit_temperature(softmax(logits, axis=1), labels)
    assert fitted == pytest.approx(float(log_t.detach().exp()), rel=1e-7)
    assert fitted == pytest.approx(2.3, rel=0.1)


@pytest.mark.filterwarnings("ignore:independent is deprecated")  # pyro's own, which netcal calls
def test_the_fitted_temperature_is_netcals_for_two_classes_and_many() -> None:
    for classes in (2, 7):
        logits, labels = overconfident(classes=classes)
        probs = softmax(logits, axis=1)
        theirs = TemperatureScaling()
        if classes == 2:
            theirs.fit(probs[:, 1], labels)
            calibrated = theirs.transform(probs[:, 1])
            ours = apply_temperature(probs, fit_temperature(probs, labels))[:, 1]
        else:
            theirs.fit(probs, labels)
            calibrated, ours = theirs.transform(probs), apply_temperature(probs, fit_temperature(probs, labels))
        np.testing.assert_allclose(ours, calibrated, atol=2e-3)


def test_no_other_temperature_has_a_lower_nll() -> None:
    logits, labels = overconfident(200, seed=1)
    probs = softmax(logits, axis=1)
    best = fit_temperature(probs, labels)
    lowest = calibration.nll(apply_temperature(probs, best), labels)
    grid = np.geomspace(1 / HOTTEST, HOTTEST, 400)
    assert all(calibration.nll(apply_temperature(probs, t), labels) >= lowest for t in [*grid, best * 0.999, best * 1.001])


def test_a_temperature_changes_no_decision_and_helps_the_probabilities_of_a_mixture() -> None:
    first, labels = overconfident(seed=2)
    mixture = (softmax(first, axis=1) + softmax(first + np.random.default_rng(3).standard_normal(first.shape), axis=1)) / 2
    calibrator = CALIBRATORS["temperature"]
    after = calibrator.apply(mixture, calibrator.fit(mixture, labels))
    np.testing.assert_array_equal(after.argmax(1), mixture.argmax(1))
    assert calibration.nll(after, labels) < calibration.nll(mixture, labels)
    assert calibration.ece(after, labels) < calibration.ece(mixture, labels)


def test_labels_that_are_all_right_or_unrelated_lead_to_a_limit() -> None:
    logits = np.random.default_rng(0).standard_normal((500, 4))
    probs = softmax(logits, axis=1)
    assert fit_temperature(probs, probs.argmax(1)) == 1 / HOTTEST
    assert fit_temperature(probs, probs.argmin(1)) == HOTTEST


def test_a_zero_probability_is_a_surprise_and_not_an_error() -> None:
    probs = np.array([[1.0, 0.0], [0.9, 0.1], [0.2, 0.8]])
    labels = np.array([1, 0, 1])
    after = apply_temperature(probs, fit_temperature(probs, labels))
    assert np.isfinite(after).all()
    np.testing.assert_allclose(after.sum(1), 1, rtol=1e-12)
    assert np.isfinite(log_softmax(after, axis=1)).all()


def test_what_does_not_fit_is_refused() -> None:
    probs = np.full((3, 2), 0.5)
    with pytest.raises(ValueError, match=r"expected integer labels of shape \(3,\), got float64 \(3,\)"):
        fit_temperature(probs, np.zeros(3))
    with pytest.raises(ValueError, match=r"expected integer labels of shape \(3,\)"):
        fit_temperature(probs, np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match=r"expected probs of shape \(n, C\), got \(5, 3, 2\); average"):
        fit_temperature(np.zeros((5, 3, 2)), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="expected a temperature above 0, got 0"):
        apply_temperature(probs, 0)


@pytest.mark.parametrize(
    ("probs", "labels", "says"),
    [
        ([[0.2, 0.8]], [-1], "expected labels in 0..1"),
        ([[0.2, 0.8]], [2], "expected labels in 0..1"),
        ([[3.0, -1.0]], [0], "expected rows of probs that sum to 1"),
        ([[np.nan, 0.5]], [0], "expected finite probs"),
        ([[0.2, 0.8]], [0.0], "expected integer labels"),
    ],
)
def test_what_is_no_prediction_has_no_temperature(probs: list[list[float]], labels: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit_temperature(np.array(probs), np.array(labels))


@pytest.mark.parametrize("times", [1, 10, 50])
def test_a_temperature_scales_with_the_logits_however_wide_they_are(times: float) -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, (400, 5))
    labels = (logits + rng.gumbel(size=(400, 5))).argmax(1)
    base = fit_temperature(softmax(logits, axis=1), labels)
    assert fit_temperature(softmax(times * logits, axis=1), labels) == pytest.approx(times * base, rel=1e-6)


# --- By name, and of draws ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("classes", [2, 5])
def test_every_calibrator_mends_overconfidence_and_its_parameters_survive_json(name: str, classes: int) -> None:
    calibrator, (logits, labels) = CALIBRATORS[name], overconfident(classes=classes, n=1500)
    new, answers = overconfident(classes=classes, n=1500, seed=9)
    fitted = calibrator.fit(softmax(logits, axis=1), labels)
    after = calibrator.apply(softmax(new, axis=1), json.loads(json.dumps(fitted)))
    np.testing.assert_allclose(after.sum(1), 1, rtol=1e-9)
    for score in (calibration.brier, calibration.ece):
        assert score(after, answers) < score(softmax(new, axis=1), answers)


def test_a_temperature_of_draws_is_that_of_their_mixture() -> None:
    first, labels = overconfident(800, seed=2)
    draws = softmax(np.stack([first + np.random.default_rng(k).standard_normal(first.shape) for k in range(3)]), axis=-1)
    calibrator = DRAW_CALIBRATORS["temperature"]
    best = calibrator.fit(draws, labels)

    def loss(t: float) -> float:
        mixed = np.mean([softmax(np.log(p) / t, axis=1) for p in draws], axis=0)
        np.testing.assert_allclose(calibrator.apply(draws, t), mixed, rtol=1e-12)
        return calibration.nll(mixed, labels)

    assert all(loss(t) >= loss(best) - 1e-12 for t in [*np.geomspace(1 / HOTTEST, HOTTEST, 60), best * 0.999, best * 1.001])
    assert best != pytest.approx(fit_temperature(draws.mean(0), labels), rel=0.01)  # tempered first, pooled after


def test_a_temperature_of_one_draw_is_the_temperature() -> None:
    logits, labels = overconfident(500)
    probs = softmax(logits, axis=1)
    assert fit_draws_temperature(probs[None], labels) == pytest.approx(fit_temperature(probs, labels), rel=1e-5)
    assert fit_draws_temperature(probs[None], probs.argmax(1)) == pytest.approx(1 / HOTTEST, rel=0.2)
    assert fit_draws_temperature(probs[None], probs.argmin(1)) == pytest.approx(HOTTEST)


def test_draws_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected draws of shape \(S, n, C\), got \(3, 2\)"):
        fit_draws_temperature(np.full((3, 2), 0.5), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="expected a temperature above 0, got 0"):
        apply_draws_temperature(np.full((1, 3, 2), 0.5), 0)
