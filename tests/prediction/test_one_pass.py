"""One network's logits: the energy, and what the masked networks that taught it disagree by, read off it."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import GammaRegressor
from torch import nn

from espalier import Training, shelf
from espalier.calibration import UNCERTAINTIES, auroc
from espalier.contracts import Data
from espalier.data import from_arrays, load
from espalier.network import BayesianNetwork
from espalier.prediction import Fit, energy, information, uncertainties
from espalier.prediction.one_pass import LEAST, Line, fitted

TRAINING = Training(epochs=40, batch_size=32, learning_rate=0.2, device="cpu")


@functools.cache
def digits() -> Data:
    return load("digits", train_size=320)


def net() -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10)))


@functools.cache
def taught() -> Fit:
    options = {"sparsity": 0.5, "drop_rate": 0.1, "delta_t": 10, "seed": 1, "training": TRAINING}
    return shelf.load("inference", "distilled")(net(), digits(), **options)


def test_the_energy_is_that_of_the_plain_networks_logits() -> None:
    fit, x = taught(), digits().test.x[:70]
    for way in ("distilled", "ticket", "mean", "unmasked"):
        with torch.no_grad():
            logits = fit.ticket(way)(x).double().numpy()
        np.testing.assert_allclose(energy(fit, x, way), -np.log(np.exp(logits).sum(-1)), rtol=1e-5)


def test_the_line_is_the_gamma_regression_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    t, draws = rng.normal(-4, 3, 300), rng.dirichlet(np.full(4, 0.7), (6, 300))
    told = UNCERTAINTIES["mutual_information"](draws) * 6 / 5 + LEAST
    found = fitted(t, draws)
    other = GammaRegressor(alpha=0, tol=1e-10, max_iter=10_000).fit(t[:, None], told)
    assert found == pytest.approx((other.intercept_, other.coef_[0], np.log(4)), abs=1e-4)
    assert (told / np.exp(found.intercept + found.slope * t)).mean() == pytest.approx(1, abs=1e-5)


def test_it_finds_the_mean_given_the_energy_however_that_scatters() -> None:
    """Dirichlet draws whose concentration a falls with the energy: I ~ (C - 1) / 2a of large a, so a slope of one."""
    rng = np.random.default_rng(4)
    t = rng.uniform(-2, 0, 400)
    draws = np.stack([[rng.dirichlet(np.full(3, 200 * np.exp(-one) / 3)) for one in t] for _ in range(8)])
    found = fitted(t, draws)
    assert found.slope == pytest.approx(1, abs=0.1)
    assert found.intercept == pytest.approx(np.log(2 / 400), abs=0.15)


def test_no_more_than_sure_networks_disagree_by() -> None:
    np.testing.assert_allclose(Line(0.5, 2.0, np.log(5)).at([-3.0, 100.0]), [np.exp(-5.5), np.log(5)])


def test_one_pass_ranks_inputs_as_the_masked_networks_do() -> None:
    fit, x = taught(), digits().test.x
    drawn, once = (uncertainties(fit, x, way, num_samples=64)["mutual_information"] for way in ("redraw", "distilled"))
    assert np.corrcoef(np.log(drawn), np.log(once))[0, 1] > 0.6
    assert once.mean() == pytest.approx(drawn.mean(), rel=0.5)
    assert auroc(once, information(fit, x.flip(-2))) > 0.7


def test_the_parts_of_the_total_add_up_and_other_ways_are_as_they_were() -> None:
    fit, x = taught(), digits().test.x[:50]
    once = uncertainties(fit, x, "distilled")
    np.testing.assert_array_equal(once["mutual_information"], information(fit, x))
    total, left = once["predictive_entropy"], once["expected_entropy"]
    np.testing.assert_allclose(left, np.maximum(total - once["mutual_information"], 0))
    assert set(uncertainties(fit, x, "distilled", names=["mutual_information"])) == {"mutual_information"}
    assert not uncertainties(fit, x, "ticket")["mutual_information"].any()


def test_a_saved_fit_says_the_same(tmp_path: Path) -> None:
    fit, x = taught(), digits().test.x[:50]
    fit.save(tmp_path / "fit")
    np.testing.assert_array_equal(information(Fit.load(tmp_path / "fit", net()), x), information(fit, x))


def test_what_has_no_level_is_refused() -> None:
    fit, x = taught(), digits().test.x[:5]
    with pytest.raises(ValueError, match="expected one network's logits of classes for an energy, got redraw of Categorical"):
        energy(fit, x, "redraw")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 3))
    data = from_arrays(inputs, inputs[:, 0], validation=0.2)
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), likelihood="normal")
    training = Training(epochs=8, batch_size=16, learning_rate=0.02, device="cpu")
    other = shelf.load("inference", "distilled")(model, data, sparsity=0.2, drop_rate=0.2, delta_t=2, training=training)
    with pytest.raises(ValueError, match="expected one network's logits of classes for an energy, got distilled of Normal"):
        energy(other, data.test.x)
    with pytest.raises(ValueError, match="expected a fit with a distilled network of classes, got none"):
        information(other, data.test.x)
    assert "mutual_information" not in uncertainties(other, data.test.x, "distilled")
