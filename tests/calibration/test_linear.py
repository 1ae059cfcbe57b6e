"""Claims about calibration.linear: gradients, optima that torch finds too, families that hold each other, ODIR."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from scipy.special import log_softmax, softmax

from espalier import calibration
from espalier.calibration import linear
from espalier.calibration.calibrators import CALIBRATORS
from espalier.calibration.linear import (
    apply_dirichlet,
    apply_matrix,
    apply_vector,
    fit_dirichlet,
    fit_matrix,
    fit_vector,
)
from probabilities import Array, draw_probs

NAMES = ("vector", "matrix", "dirichlet")


def confused(n: int = 600, classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    """Predictions that are too sharp, lean to one class and mistake two others: no temperature mends them."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((n, classes))
    true = logits.copy()
    true[:, 1] += 0.7 * logits[:, 2]
    true[:, 0] -= 1.0
    labels = (true + rng.gumbel(size=true.shape)).argmax(1)
    return softmax(2 * logits, axis=1), labels


def objectives(z: Array, y: Array) -> dict[str, tuple[linear.Objective, Array]]:
    rng = np.random.default_rng(3)
    return {"vector": (linear.vector_objective(z, y), rng.standard_normal(8)),
            "matrix": (linear.matrix_objective(z, y, 0.3), rng.standard_normal(20))}  # fmt: skip


@pytest.mark.parametrize("name", ["vector", "matrix"])
def test_gradients_and_curvatures_are_those_of_finite_differences(name: str) -> None:
    probs, y = confused(50)
    (value, curvature), theta = objectives(linear.centred(np.log(probs)), y)[name]
    assert check_grad(lambda t: value(t)[0], lambda t: value(t)[1], theta) < 1e-5
    towards = np.random.default_rng(4).standard_normal(theta.shape)
    numeric = (value(theta + 1e-6 * towards)[1] - value(theta - 1e-6 * towards)[1]) / 2e-6
    found = curvature(theta) @ towards if name == "vector" else curvature(theta, towards)
    np.testing.assert_allclose(found, numeric, atol=1e-7)


def minimum(x: Array, y: Array, strength: float | None) -> tuple[Array, float]:
    """What torch finds: probabilities, and the objective. None: vector scaling."""
    z, labels, classes = torch.from_numpy(x), torch.from_numpy(y), x.shape[1]
    w = torch.eye(classes, dtype=torch.float64) if strength is not None else torch.ones(classes, dtype=torch.float64)
    w, b = w.requires_grad_(), torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=1000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe")

    def scores() -> torch.Tensor:
        return z @ w.T + b if strength is not None else z * w + b

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = torch.nn.functional.cross_entropy(scores(), labels)
        if strength is not None:
            off = w[~torch.eye(classes, dtype=torch.bool)]
            total = total + strength * ((off**2).mean() + (b**2).mean())
        total.backward()
        return total

    optimizer.step(loss)
    return torch.softmax(scores(), 1).detach().numpy(), float(loss().detach())


def test_every_fit_is_the_optimum_that_torch_finds() -> None:
    probs, y = confused(200)
    logs = np.log(probs)
    z = logs - logs.mean(1, keepdims=True)
    found = apply_vector(probs, fit_vector(probs, y))
    np.testing.assert_allclose(found, minimum(z, y, None)[0], atol=1e-6)
    for fit, apply, x in ((fit_matrix, apply_matrix, z), (fit_dirichlet, apply_dirichlet, logs)):
        np.testing.assert_allclose(apply(probs, fit(probs, y, strength=0.2)), minimum(x, y, 0.2)[0], atol=1e-6)


def test_a_vector_is_wider_than_a_temperature_and_a_weak_matrix_than_a_vector() -> None:
    probs, y = confused(2000)
    temperature = CALIBRATORS["temperature"]
    said = {
        "none": probs,
        "temperature": temperature.apply(probs, temperature.fit(probs, y)),
        "vector": apply_vector(probs, fit_vector(probs, y)),
        "matrix": apply_matrix(probs, fit_matrix(probs, y, strength=1e-6)),
        "dirichlet": apply_dirichlet(probs, fit_dirichlet(probs, y, strength=1e-6)),
    }
    losses = [calibration.nll(p, y) for p in said.values()]
    assert losses == sorted(losses, reverse=True)
    new, labels = confused(4000, seed=1)
    held_out = apply_dirichlet(new, fit_dirichlet(probs, y))
    assert calibration.nll(held_out, labels) < calibration.nll(temperature.apply(new, temperature.fit(probs, y)), labels) - 0.05


def test_labels_of_the_family_give_its_parameters_back() -> None:
    rng = np.random.default_rng(5)
    logs = log_softmax(rng.standard_normal((40_000, 3)), axis=1)
    weights, bias = np.array([[0.8, 0.1, 0], [0.2, 1.4, -0.3], [0, 0, 0.9]]), np.array([0.2, -0.1, 0.4])
    true = softmax(logs @ weights.T + bias, axis=1)
    labels = (rng.random((40_000, 1)) > true.cumsum(1)).sum(1)
    found = apply_dirichlet(np.exp(logs), fit_dirichlet(np.exp(logs), labels, strength=1e-5))
    assert np.abs(found - true).mean() < 0.006
    assert np.abs(np.exp(logs) - true).mean() > 0.05


def test_a_strong_odir_leaves_the_diagonal_alone() -> None:
    probs, y = confused()
    found = fit_dirichlet(probs, y, strength=1e7)
    weights = np.array(found["weights"])
    np.testing.assert_allclose(weights - np.diag(np.diag(weights)), 0, atol=1e-5)
    np.testing.assert_allclose(found["bias"], 0, atol=1e-5)
    assert (np.diag(weights) > 0.1).all()


def test_the_strength_is_chosen_on_held_out_folds_of_what_is_given() -> None:
    """200 examples and 6 classes: 30 free numbers overfit, and the choice is a stronger ODIR than of 10 times as many."""
    few, many = confused(200, 6), confused(1500, 6)
    assert fit_matrix(*few)["strength"] > fit_matrix(*many)["strength"]
    z, y = linear.centred(np.log(few[0])), few[1]
    fold, losses = np.random.default_rng(calibration.SEED).permutation(200) % 3, []
    for strength in linear.STRENGTHS:
        fits = [(k, fit_matrix(few[0][fold != k], y[fold != k], strength)) for k in range(3)]
        losses.append(sum(calibration.nll_scores(apply_matrix(few[0][fold == k], own), y[fold == k]).sum() for k, own in fits))
    assert linear.strength_of(z, y, linear._start(*few, 6)) == linear.STRENGTHS[int(np.argmin(losses))]


@pytest.mark.parametrize("name", NAMES)
def test_logits_up_to_a_constant_a_zero_and_json_are_no_trouble(name: str) -> None:
    probs, y = confused(150)
    probs[3], y[3] = np.eye(4)[1], 1
    calibrator = CALIBRATORS[name]
    kept = calibrator.fit(probs, y) if name == "vector" else calibrator.fit(probs, y, strength=1.0)
    after = calibrator.apply(probs, json.loads(json.dumps(kept)))
    np.testing.assert_array_equal(after, calibrator.apply(probs, kept))
    np.testing.assert_allclose(after.sum(1), 1, rtol=1e-12)
    assert np.isfinite(after).all()


def test_labels_that_are_all_right_end_at_a_finite_fit() -> None:
    probs, _ = draw_probs(200)
    for name in NAMES:
        kept = CALIBRATORS[name].fit(probs, probs.argmax(1))
        assert np.isfinite(kept["weights"]).all()
        assert calibration.nll(CALIBRATORS[name].apply(probs, kept), probs.argmax(1)) < 0.01


def test_what_does_not_fit_is_refused() -> None:
    probs, y = confused(30)
    for name in NAMES:
        with pytest.raises(ValueError, match=r"expected integer labels of shape \(30,\)"):
            CALIBRATORS[name].fit(probs, y[:9])
        kept = CALIBRATORS[name].fit(probs, y)
        with pytest.raises(ValueError, match=r"expected parameters of 3 classes, got \(4.*; fit them on predictions of the same"):
            CALIBRATORS[name].apply(np.full((2, 3), 1 / 3), kept)
    with pytest.raises(ValueError, match="expected a strength above 0, got 0"):
        fit_matrix(probs, y, strength=0)
    with pytest.raises(ValueError, match="expected two examples or more, got 1"):
        fit_dirichlet(probs[:1], y[:1])
