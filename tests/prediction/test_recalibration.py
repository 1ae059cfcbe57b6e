"""Claims about calibrated predictions: fitted on the validation split and nowhere else, for every way to predict."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from espalier.calibration import apply_temperature, fit_temperature, nll
from espalier.prediction import recalibrated
from espalier.prediction.recalibration import check, names_of
from fitted import digits, regression, trained


def test_a_temperature_is_that_of_the_validation_split() -> None:
    fit, data = trained("mlp")[0], digits()
    found, kept = recalibrated(fit, data, "test", ["temperature"], ways=["ticket", "redraw"], num_samples=4)
    for way in ("ticket", "redraw"):
        seen, asked = (fit.predict(part.x, way, num_samples=4).double().mean(0).numpy() for part in (data.validation, data.test))
        temperature = fit_temperature(seen, data.validation.y.numpy())
        assert kept[f"{way} + temperature"] == {"temperature": pytest.approx(temperature)}
        np.testing.assert_allclose(found[f"{way} + temperature"], apply_temperature(asked, temperature), atol=1e-9)


def test_every_calibrator_gives_probabilities_and_words_for_json() -> None:
    fit, data = trained("mlp")[0], digits()
    names = names_of(data)
    assert names == ("temperature", "dropped-logit", "vector", "matrix", "dirichlet", "isotonic", "beta", "draws-temperature")
    found, kept = recalibrated(fit, data, "test", names, ways=["redraw"], num_samples=3)
    json.dumps(kept, allow_nan=False)
    for name in names:
        probs = found[f"redraw + {name}"]
        np.testing.assert_allclose(probs.sum(1), 1)
        assert nll(probs, data.test.y.numpy()) > 0


def test_a_regressions_variance_is_scaled() -> None:
    data, fit = regression()
    found, kept = recalibrated(fit, data, "test", ["variance"], ways=["redraw"], num_samples=4)
    before, after = fit.predict(data.test.x, "redraw", num_samples=4).double().numpy(), found["redraw + variance"]
    factor = kept["redraw + variance"]["variance_factor"]
    np.testing.assert_allclose(after[..., 1], before[..., 1] * factor**0.5, rtol=1e-5)
    np.testing.assert_allclose(after[..., 0].mean(0), before[..., 0].mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("split", "name", "sentence"),
    [
        ("test", "platt", "expected calibrators of temperature, .* for digits, got 'platt'"),
        ("test", "variance", "got 'variance'"),
        ("validation", "temperature", "expected another split than validation"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(split: str, name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check(digits(), split, [name])
    data, _ = regression()
    several = data._replace(test=data.test._replace(y=data.test.y[:, None].repeat(1, 2)))
    with pytest.raises(ValueError, match="expected one label or target an example for calibrators, got several"):
        check(several, "test", ["variance"])
    with pytest.raises(ValueError, match=re.escape("in the validation split")):
        check(digits()._replace(validation=digits().train._replace(y=digits().train.y[:0])), "test", ["temperature"])
