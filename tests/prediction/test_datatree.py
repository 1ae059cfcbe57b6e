"""Predictive draws as labelled arrays, for ArviZ."""

import math
import warnings
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from budget import assert_mean
from espalier.prediction import Mixture
from espalier.prediction.datatree import to_datatree
from fitted import PAIRS, digits, regression, trained


@pytest.fixture
def arviz_base() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz_base
    return arviz_base


def test_datatree_of_class_probabilities(arviz_base: Any) -> None:
    fit, _ = trained("mlp")
    x, y = digits().test
    draws = fit.predict(x, "pairs")
    tree = to_datatree(fit.mixture(x, "pairs"), y)
    assert sorted(tree.children) == ["log_likelihood", "observed_data", "posterior_predictive", "predictions"]
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "observation")
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "observation")
    assert tree["observed_data"]["y"].dims == ("observation",)
    np.testing.assert_array_equal(tree["observed_data"]["y"], y.numpy())
    np.testing.assert_array_equal(tree["predictions"]["probability"][0], draws.numpy())
    by_hand = draws.double()[:, torch.arange(len(y)), y].log()
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], by_hand.numpy(), rtol=0, atol=1e-5)
    extracted = arviz_base.extract(tree, group="log_likelihood")
    assert extracted.sizes == {"observation": len(y), "sample": PAIRS}


def test_datatree_names_the_dimensions_of_the_predicted_parameters() -> None:
    fit, _ = trained("mlp")
    x, y = digits().test
    tree = to_datatree(fit.mixture(x, "pairs"), y)
    assert tree["predictions"]["probability"].dims == ("chain", "draw", "observation", "class")
    data, fit = regression()
    tree = to_datatree(fit.mixture(data.test.x, "pairs"), data.test.y)
    assert tree["predictions"]["mean_and_scale"].dims == ("chain", "draw", "observation", "moment")


def test_datatree_of_means_and_scales(arviz_base: Any) -> None:
    data, fit = regression()
    y = data.test.y * data.target_scale + data.target_shift
    draws = fit.predict(data.test.x, "redraw", num_samples=6).double()
    tree = to_datatree(fit.mixture(data.test.x, "redraw", num_samples=6), y)
    mean, scale = draws[..., 0], draws[..., 1]
    by_hand = -0.5 * ((y - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], by_hand.numpy(), rtol=1e-5, atol=1e-5)
    assert arviz_base.extract(tree, group="posterior_predictive").sizes == {"observation": len(y), "sample": 6}


def test_posterior_predictive_draws_follow_the_predicted_distribution() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    tree = to_datatree(Mixture([dist.Categorical(probabilities)] * 4000), torch.tensor([0, 1]))
    labels = tree["posterior_predictive"]["y"].values[0]
    assert_mean(labels[..., None] == np.arange(3), probabilities)
    parameters = torch.tensor([[3.0, 0.5], [-1.0, 2.0]])
    tree = to_datatree(Mixture([dist.Normal(*parameters.T)] * 4000), torch.zeros(2))
    values = tree["posterior_predictive"]["y"].values[0]
    assert_mean(values, parameters[:, 0])
    assert_mean((values - parameters[:, 0].numpy()) ** 2, parameters[:, 1] ** 2)


def test_datatree_is_decided_by_its_seed() -> None:
    said, y = Mixture([dist.Categorical(torch.full((8, 4), 0.25))] * 50), torch.zeros(8, dtype=torch.int64)
    trees = [to_datatree(said, y, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (tree["posterior_predictive"]["y"].values for tree in trees)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_likelihood_that_is_one_event_a_row_has_its_classes() -> None:
    x, y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 1]] * 6)
    tree = to_datatree(Mixture([dist.Bernoulli(logits=x.double()).to_event(1)] * 2), y)
    assert tree["predictions"]["probability"].sizes["class"] == 2
    assert tree["posterior_predictive"]["y"].dtype == np.int64
