"""Claims about the uncertainty of every row: the scores of its draws, a piece of the rows at a time."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from espalier import BayesianNetwork, Training, shelf
from espalier.calibration import REGRESSION_UNCERTAINTIES, UNCERTAINTIES
from espalier.data import from_arrays
from espalier.inference import sghmc
from espalier.models import mlp
from espalier.prediction import posterior_check, uncertainties
from espalier.prediction.grouped import main_ways
from fitted import digits, regression, trained


def test_every_score_is_that_of_the_draws_of_its_rows() -> None:
    fit, x = trained("mlp")[0], digits().test.x[:50]
    draws = fit.predict(x, "redraw", num_samples=4).numpy()
    found = uncertainties(fit, x, num_samples=4)
    assert set(found) == set(UNCERTAINTIES)
    for name, scores in found.items():
        np.testing.assert_allclose(scores, UNCERTAINTIES[name](draws), atol=1e-12)


def test_no_rows_and_rows_of_another_dtype_are_a_sentence_and_an_array_is_taken() -> None:
    fit, x = trained("mlp")[0], digits().test.x[:9]
    with pytest.raises(ValueError, match="expected at least one row to be uncertain of, got none"):
        uncertainties(fit, x[:0])
    with pytest.raises(ValueError, match=r"expected rows of torch.float32, got torch.float64: data.inputs\(x\) makes them so"):
        fit.predict(x.double())
    assert torch.equal(fit.predict(x.numpy()), fit.predict(x))


def test_a_chain_is_uncertain_by_its_states() -> None:
    """It has no masks: drawn anew, it is its last network again and again."""
    data = digits()
    training = Training(epochs=6, batch_size=100, device="cpu")
    fit = sghmc.infer(mlp.model(data.shape, 10, hidden=(12,)), data, sparsity=0.5, training=training, average_from=0.5)
    assert fit.posterior == "pairs"
    assert main_ways(fit) == ("ticket", "pairs")
    found, expected = uncertainties(fit, data.test.x), uncertainties(fit, data.test.x, "pairs")
    assert found["mutual_information"].max() > 0
    np.testing.assert_array_equal(found["mutual_information"], expected["mutual_information"])
    mine, theirs = (posterior_check(fit, data.test.x, data.test.y, replicates=50, **how) for how in ({}, {"how": "pairs"}))
    assert [one.p_value for one in mine] == [one.p_value for one in theirs]


def test_a_regression_has_scores_of_its_own() -> None:
    data, fit = regression()
    draws = fit.predict(data.test.x, "pairs").numpy()
    found = uncertainties(fit, data.test.x, "pairs")
    assert set(found) == set(REGRESSION_UNCERTAINTIES)
    np.testing.assert_allclose(found["epistemic_variance"], draws[..., 0].astype(float).var(0), rtol=1e-5)


def test_scores_are_the_same_however_many_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, x = trained("mlp")[0], digits().test.x
    whole = uncertainties(fit, x, names=["margin", "variation_ratio"], num_samples=4)
    monkeypatch.setattr("espalier.prediction.uncertainty.HELD", 1000)
    for name, scores in uncertainties(fit, x, names=["margin", "variation_ratio"], num_samples=4).items():
        np.testing.assert_allclose(scores, whole[name], atol=1e-6)


def test_an_uncertainty_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("expected uncertainties of ") + ".*got 'mood'"):
        uncertainties(trained("mlp")[0], digits().test.x, names=["mood"])


def test_of_several_labels_a_row_each_has_its_own() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    data = from_arrays(x, (x[:, :3] + rng.normal(size=(200, 3)) > 0).astype(int))
    training = Training(epochs=2, batch_size=40, device="cpu")
    model = BayesianNetwork(nn.Linear(5, 3), likelihood="bernoulli")
    fit = shelf.load("inference", "cigl")(model, data, sparsity=0.3, drop_rate=0.2, training=training)
    found = uncertainties(fit, data.test.x)
    draws = fit.predict(data.test.x, "redraw").numpy()
    assert draws.shape == (16, len(data.test.y), 3, 2)
    for label in range(3):
        for name, score in UNCERTAINTIES.items():
            np.testing.assert_allclose(found[name][:, label], score(draws[:, :, label]), rtol=1e-9, atol=1e-12, err_msg=name)
