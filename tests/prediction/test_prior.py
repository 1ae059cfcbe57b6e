"""Claims about the prior: its weights are N(0, scale^2) where the topology has one and 0 elsewhere, and y follows from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from budget import assert_mean
from espalier import BayesianNetwork
from espalier.prediction import prior_check, prior_outcomes, prior_weights, tree_of
from espalier.randomness import derived
from espalier.topology import random_topology
from fitted import digits, regression, trained


def line(scale: float = 0.5) -> BayesianNetwork:
    net = nn.Linear(6, 1)
    nn.init.zeros_(net.bias)
    return BayesianNetwork(net, likelihood="normal", prior_scale=scale)


def test_weights_have_the_scale_where_the_topology_is_and_none_elsewhere() -> None:
    model = line()
    topology = random_topology(model.shapes, (4,), torch.Generator().manual_seed(1))
    active = np.isin(np.arange(6), topology.positions)
    draws = torch.stack(list(prior_weights(model, topology, draws=4000))).numpy()
    assert (draws[:, ~active] == 0).all()
    assert_mean(draws[:, active], np.zeros(4))
    assert_mean(draws[:, active] ** 2, np.full(4, 0.25))
    dense = torch.stack(list(prior_weights(model, draws=4000, scale=2.0))).numpy()
    assert_mean(dense**2, np.full(6, 4.0))


def test_a_linear_models_predictive_variance_is_the_sum_of_the_active_squares() -> None:
    """Var f(x) = scale^2 sum of x_j^2 over the active j: in closed form."""
    model = line()
    topology = random_topology(model.shapes, (4,), torch.Generator().manual_seed(1))
    x = torch.arange(1.0, 7.0)[None] * torch.tensor([[1.0], [0.5]])
    means = torch.stack([each.mean for each in prior_outcomes(model, x, topology, draws=4000)])
    truth = 0.25 * (x[:, topology.positions] ** 2).sum(1)
    assert_mean(means.flatten(1).numpy() ** 2, truth.numpy())


def test_draws_are_decided_by_their_seed_and_leave_torchs_stream_alone() -> None:
    model = line()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (torch.stack(list(prior_weights(model, draws=2, seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_check_of_a_fit_is_of_the_prior_that_the_tree_holds() -> None:
    data, fit = regression()
    y = data.in_units(data.test.y)
    centre = {"centre": lambda y, x: y.mean()}
    (check,) = prior_check(fit, data.test.x, y, (), own=centre, replicates=400, seed=derived(0, 0))
    drawn = tree_of(fit, data, ways=["ticket"], prior=400)["prior_predictive"]["y"][0].mean("observation").values
    # the same networks, and noise of their own
    networks = torch.stack([each.mean.flatten() for each in prior_outcomes(fit, data.test.x, draws=400, seed=derived(0, 0))])
    own = data.in_units(networks).mean(1).numpy()
    assert np.corrcoef(check.replicated, own)[0, 1] > 0.99
    assert np.corrcoef(drawn, own)[0, 1] > 0.99
    by_hand = prior_check(fit.model, data.test.x, y, (), own=centre, replicates=400, topology=fit.topology,
                          shift=data.target_shift, scale=data.target_scale, seed=derived(0, 0))  # fmt: skip
    np.testing.assert_allclose(by_hand[0].replicated, check.replicated, rtol=1e-4)


def test_what_is_no_prior_of_the_network_is_refused() -> None:
    fit, data = trained("mlp")[0], digits()
    with pytest.raises(ValueError, match="expected at least 1 draw of the prior, got 0"):
        prior_weights(fit.model, draws=0)
    with pytest.raises(ValueError, match=r"expected a topology over layers of \(2560, 400\) weights, got \(6,\)"):
        prior_weights(fit.model, random_topology(line().shapes, (4,)), draws=1)
    with pytest.raises(ValueError, match="expected 0 or more draws of the prior, got -1"):
        tree_of(fit, data, prior=-1)
