"""Estimators that scikit-learn, and what is built on it, takes: its own suite of checks, pipelines, curves, risk control."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV, CalibrationDisplay
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from espalier.adapters.estimators import SparseBayesianClassifier, SparseBayesianRegressor
from espalier.prediction.fit import WAYS

IRIS, DIABETES = load_iris(return_X_y=True), load_diabetes(return_X_y=True)
SMALL: dict[str, Any] = {"hidden": (32,), "epochs": 30, "random_state": 0}
EXPECTED: dict[str, str] = {}
"""Checks that fail -> why they must. There is none."""
SKIPPED = {"check_array_api_input"}
"""It wants SCIPY_ARRAY_API set before SciPy is imported."""


def classifier(**options: Any) -> SparseBayesianClassifier:
    return SparseBayesianClassifier(**{**SMALL, **options})


def regressor(**options: Any) -> SparseBayesianRegressor:
    return SparseBayesianRegressor(**{**SMALL, **options})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [classifier, regressor])
def test_scikit_learn_s_own_checks_pass(make: Any) -> None:
    found = check_estimator(make(), expected_failed_checks=EXPECTED, on_fail=None)
    tally = Counter(check["status"] for check in found)
    assert {check["check_name"]: check["exception"] for check in found if check["status"] == "failed"} == {}
    assert {check["check_name"] for check in found if check["status"] == "skipped"} <= SKIPPED
    assert tally["passed"] >= 50


def test_labels_of_any_kind_and_a_frame_go_in_and_the_same_labels_come_out() -> None:
    names = np.array(["setosa", "versicolor", "virginica"])[IRIS[1]]
    frame = pd.DataFrame(IRIS[0], columns=["a", "b", "c", "d"])
    for labels in (names, pd.Series(names).astype("category"), names.astype(object)):
        fitted = classifier(epochs=80).fit(frame, labels)
        assert list(fitted.classes_) == ["setosa", "versicolor", "virginica"]
        assert list(fitted.feature_names_in_) == ["a", "b", "c", "d"]
        assert fitted.score(frame, labels) > 0.93
    assert classifier().fit(IRIS[0], IRIS[1] == 0).predict(IRIS[0]).dtype == bool


def test_probabilities_are_the_mean_over_the_draws_of_the_way_that_was_asked_for() -> None:
    fitted = classifier().fit(*IRIS)
    x = fitted.data_.inputs(IRIS[0])
    for how in (*WAYS, "moments"):
        fitted.predict_with = how
        found = fitted.predict_proba(IRIS[0])
        expected = fitted.fit_.predict(x, how, num_samples=16).mean(0).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(fitted.predict(IRIS[0]), found.argmax(1))
    assert fitted.fit_.topology.density == pytest.approx(0.2, abs=0.01)
    assert sum(row["moves"] for row in fitted.fit_.history) >= 18
    assert all(len(getattr(fitted.data_, part).y) == 0 for part in ("train", "validation", "test"))


def test_standard_deviations_are_those_of_the_mixture() -> None:
    """Against draws from it: noise and the spread of the networks together."""
    fitted = regressor(num_samples=8).fit(*DIABETES)
    mean, deviation = fitted.predict(DIABETES[0], return_std=True)
    mixture = fitted.fit_.mixture(fitted.data_.inputs(DIABETES[0]), "redraw", num_samples=8)
    torch.manual_seed(0)
    draws = mixture.sample(20000).numpy()
    draws = draws if draws.shape[-1] == len(mean) else draws.reshape(len(draws), len(mean))
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - mean) < 5 * error).all()
    assert (np.abs(draws.std(0) / deviation - 1) < 5 / np.sqrt(2 * len(draws)) * 1.2).all()
    np.testing.assert_array_equal(fitted.predict(DIABETES[0]), mean)
    assert 0.85 < (np.abs(DIABETES[1] - mean) < 1.96 * deviation).mean() <= 1


def test_several_columns_are_predicted_in_their_own_units() -> None:
    y = np.stack([DIABETES[1], -1000 * DIABETES[1]], 1)
    mean, deviation = regressor().fit(DIABETES[0], y).predict(DIABETES[0], return_std=True)
    assert mean.shape == deviation.shape == y.shape
    assert (deviation[:, 1] > 100 * deviation[:, 0]).all()


def test_a_network_of_one_s_own_an_inference_by_name_and_its_options() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 3))
    before = [parameter.clone() for parameter in net.parameters()]
    fitted = classifier(model=net, options={"rule": "static"}).fit(*IRIS)
    assert fitted.fit_.topology.num_weights == 4 * 24 + 24 * 3
    assert all(torch.equal(*both) for both in zip(before, net.parameters(), strict=True))
    assert not any(row["moves"] for row in fitted.fit_.history)
    other = classifier(inference="mean_field", predict_with="pairs", options={"noise_scale": 0.05}).fit(*IRIS)
    assert other.fit_.pairs.scales is not None
    assert classifier(inference="dense").fit(*IRIS).fit_.topology.density == 1
    distilled = {"inference": "distilled", "predict_with": "distilled", "epochs": 150, "validation_fraction": 0.2}
    assert classifier(**distilled).fit(*IRIS).score(*IRIS) > 0.9


def test_patience_ends_it_on_rows_kept_from_training() -> None:
    fitted = classifier(validation_fraction=0.2, patience=2, learning_rate=0.05, epochs=200).fit(*IRIS)
    assert fitted.n_iter_ == fitted.fit_.record["stopped_at"] < 200


def test_the_same_random_state_is_the_same_network_and_a_pickle_predicts_alike() -> None:
    first, second = classifier().fit(*IRIS), clone(classifier()).fit(*IRIS)
    np.testing.assert_array_equal(first.predict_proba(IRIS[0]), second.predict_proba(IRIS[0]))
    other = classifier(random_state=1).fit(*IRIS)
    assert not np.array_equal(first.predict_proba(IRIS[0]), other.predict_proba(IRIS[0]))
    again = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(again.predict_proba(IRIS[0]), first.predict_proba(IRIS[0]))


def test_pipelines_searches_cross_validation_and_calibration_curves_take_it() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), classifier(epochs=15))
    assert cross_val_score(pipeline, x, y, cv=3, scoring="neg_log_loss").mean() > -0.3
    search = GridSearchCV(classifier(epochs=10), {"sparsity": [0.5, 0.9]}, cv=2).fit(*IRIS)
    assert search.best_params_["sparsity"] in (0.5, 0.9)
    fitted = pipeline.fit(x[:400], y[:400])
    display = CalibrationDisplay.from_estimator(fitted, x[400:], y[400:], n_bins=5)
    assert len(display.prob_true) >= 2
    assert CalibratedClassifierCV(classifier(epochs=10), cv=2).fit(x, y).score(x, y) > 0.9


def test_mapie_controls_its_risk() -> None:
    from mapie.risk_control import BinaryClassificationController

    x, y = load_breast_cancer(return_X_y=True)
    fitted = classifier(epochs=15).fit(x[:200], y[:200])
    levels = np.array([0.5, 0.7, 0.9])
    controller = BinaryClassificationController(
        fitted.predict_proba, "precision", target_level=0.85, confidence_level=0.9, list_predict_params=levels
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        controller.calibrate(x[200:450], y[200:450])
    assert controller.best_predict_param in levels
    predicted = np.asarray(controller.predict(x[450:]), dtype=bool)
    assert (y[450:][predicted] == 1).mean() > 0.85


@pytest.mark.parametrize(("options", "sentence"), [
    ({"predict_with": "mode"}, "expected predict_with of ticket, pairs, .*, got 'mode'"),
    ({"predict_with": "distilled"}, "expected predict_with of ticket, pairs, redraw, mean, unmasked, moments, got 'distilled'"),
    ({"inference": "rigle"}, "expected an inference of .* got 'rigle'; did you mean 'rigl'"),
    ({"options": {"deltas": 3}}, "expected options of cigl, .*, got 'deltas'"),
    ({"patience": 3}, "expected a validation split for patience"),
    ({"model": torch.nn.Linear(4, 5)}, "expected a network of 3 outputs, one a class, got one of 5"),
    ({"sparsity": 1.0}, r"expected a sparsity in \[0, 1\)"),
])  # fmt: skip
def test_what_is_wrong_is_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        classifier(**options).fit(*IRIS)


def test_sample_weights_are_refused_and_nobody_believes_that_they_are_taken() -> None:
    from sklearn.utils.validation import has_fit_parameter

    with pytest.raises(TypeError, match="expected every row to count once, got sample_weight: a posterior's evidence is its"):
        classifier().fit(*IRIS, sample_weight=np.ones(150))
    with pytest.raises(TypeError, match="expected X and y, got groups too"):
        regressor().fit(*DIABETES, groups=1)
    assert not has_fit_parameter(classifier(), "sample_weight")
    with pytest.raises(NotFittedError):
        classifier().predict(IRIS[0])


def test_one_width_is_a_network_of_one_layer() -> None:
    one, pair = (classifier(epochs=1, hidden=hidden).fit(*IRIS) for hidden in (8, (8,)))
    assert np.array_equal(one.predict_proba(IRIS[0]), pair.predict_proba(IRIS[0]))


@pytest.mark.parametrize("as_given", [lambda x: x[::-1], lambda x: x.astype(">f4"), np.asfortranarray])
def test_arrays_of_any_layout_predict_as_they_train(as_given: Any) -> None:
    fitted = classifier(epochs=2).fit(*IRIS)
    x = np.asarray(IRIS[0])
    assert np.allclose(fitted.predict_proba(as_given(x)), fitted.predict_proba(np.ascontiguousarray(as_given(x), np.float64)))
