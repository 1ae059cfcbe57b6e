"""Claims about the uncertainty of every row: the scores of its draws, a piece of the rows at a time."""

from __future__ import annotations

import re

import numpy as np
import pytest

from espalier.calibration import REGRESSION_UNCERTAINTIES, UNCERTAINTIES
from espalier.prediction import uncertainties
from fitted import digits, regression, trained


def test_every_score_is_that_of_the_draws_of_its_rows() -> None:
    fit, x = trained("mlp")[0], digits().test.x[:50]
    draws = fit.predict(x, "redraw", num_samples=4).numpy()
    found = uncertainties(fit, x, num_samples=4)
    assert set(found) == set(UNCERTAINTIES)
    for name, scores in found.items():
        np.testing.assert_allclose(scores, UNCERTAINTIES[name](draws), atol=1e-12)


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
