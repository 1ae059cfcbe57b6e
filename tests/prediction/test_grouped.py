"""Claims about scores by group: a group's are those of its rows alone, and a group that is treated worse is found."""

from __future__ import annotations

import json

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from espalier import calibration
from espalier.prediction import Mixture, by_groups, evaluate, predictions
from espalier.prediction.grouped import main_ways
from fitted import digits, regression, trained


def test_a_groups_scores_are_those_of_its_rows() -> None:
    fit, data = trained("mlp")[0], digits()
    assert main_ways(fit) == ("ticket", "redraw")
    said = predictions(fit, data, ways=["ticket"])
    names = np.where(data.test.y.numpy() < 5, "low", "high")
    found = by_groups(said, data, {"half": names})["half"]["ticket"]
    json.dumps(found, allow_nan=False)
    for name in ("low", "high"):
        rows = names == name
        by_hand = calibration.classification_summary(said["ticket"][rows], data.test.y.numpy()[rows])
        for key in ("num_examples", "accuracy", "nll", "ece_15", "ece_15_interval", "ece_15_floor"):
            assert found["groups"][name][key] == by_hand[key]
    assert set(found["differ"]) == {"accuracy", "nll", "calibration"}
    gap = found["groups"]["low"]["accuracy"] - found["groups"]["high"]["accuracy"]
    assert found["gaps"]["accuracy"]["value"] == pytest.approx(abs(gap))


def test_a_group_that_is_treated_worse_is_found() -> None:
    data = digits()
    labels, names = data.test.y.numpy(), np.where(np.arange(len(data.test.y)) % 3 == 0, "few", "many")
    said = np.full((len(labels), 10), 0.01)
    said[np.arange(len(labels)), labels] = 0.91
    wrong = (names == "few") & (np.arange(len(labels)) % 2 == 0)
    worse = said.copy()
    worse[wrong] = np.roll(worse[wrong], 1, axis=1)
    found = by_groups({"fair": said, "unfair": worse}, data, {"who": names})["who"]
    assert min(found["fair"]["differ"].values()) > 0.9
    assert max(found["unfair"]["differ"].values()) < 0.01
    assert found["unfair"]["gaps"]["accuracy"]["lowest"] == "few"


def test_a_group_of_one_is_told_without_a_gap() -> None:
    data = digits()
    names = ["alone", *["rest"] * (len(data.test.y) - 1)]
    found = by_groups(predictions(trained("mlp")[0], data, ways=["ticket"]), data, {"who": names})["who"]["ticket"]
    assert found["groups"]["alone"]["num_examples"] == 1
    assert "gaps" not in found
    assert 0 < found["differ"]["nll"] <= 1


def test_a_regressions_groups_have_its_scores() -> None:
    data, fit = regression()
    said = predictions(fit, data, ways=["redraw"], num_samples=4)
    y = data.in_units(data.test.y).numpy()
    names = np.where(y > np.median(y), "large", "small")
    found = by_groups(said, data, {"size": names})["size"]["redraw"]
    rows = names == "large"
    by_hand = calibration.regression_summary(said["redraw"][:, rows, 0], said["redraw"][:, rows, 1], y[rows])
    for key, value in found["groups"]["large"].items():
        assert value == by_hand[key]
    assert set(found["differ"]) == {"squared_error", "nll", "crps", "coverage_95"}
    # any other likelihood by its own distributions
    mixture = Mixture(
        [dist.Normal(torch.as_tensor(draw[:, 0]), torch.as_tensor(draw[:, 1])) for draw in said["redraw"].astype(float)]
    )
    told = by_groups({"redraw": mixture}, data, {"size": names})["size"]["redraw"]["groups"]["large"]
    assert told["nll"] == pytest.approx(found["groups"]["large"]["nll"], rel=1e-5)
    assert told["crps"] == pytest.approx(found["groups"]["large"]["crps"], rel=0.05)
    assert evaluate(fit, data, predicted={"redraw": mixture})["predict"]["redraw"]["nll"] == pytest.approx(
        mixture.summary(torch.as_tensor(y))["nll"]
    )


def test_several_labels_an_example_are_refused() -> None:
    data = digits()
    wide = data._replace(test=data.test._replace(y=data.test.y[:, None]))
    with pytest.raises(ValueError, match="expected one label or target an example for scores by group"):
        by_groups({}, wide, {})
