"""The sampler of ground truth: its density is the traced program's, it hits a closed form, refuses, and repeats itself."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from pyro.poutine.util import site_is_subsample
from torch import nn

from budget import assert_mean
from espalier import losses
from espalier.distributions.priors import MixtureNormal
from espalier.likelihoods import Normal
from espalier.losses import Loss
from espalier.network import BayesianNetwork
from espalier.references.nuts import Potential, nuts, program
from espalier.topology.masks import initial

FAST = {"num_samples": 60, "warmup_steps": 40, "num_chains": 2}


def network(bias: bool = False, weight_decay: float = 0.0) -> BayesianNetwork:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias)).double()
    return BayesianNetwork(net, prior_scale=0.7, weight_decay=weight_decay)


def rows(n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(n, 3, dtype=torch.float64, generator=generator), torch.arange(n) % 3


def sparse(model: BayesianNetwork, sparsity: float = 0.4):
    return initial(model.shapes, sparsity, generator=torch.Generator().manual_seed(5))


def line() -> tuple[BayesianNetwork, torch.Tensor, torch.Tensor]:
    """One weight: y ~ N(w x, 1/4), w ~ N(0, 1)."""
    likelihood = Normal(4.0, learn=False).double()
    likelihood.log_precision.fill_(math.log(4.0))
    model = BayesianNetwork(nn.Linear(1, 1, bias=False).double(), likelihood=likelihood, prior_scale=1.0)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    return model, x, 0.8 * x[:, 0] + 0.3


@pytest.mark.parametrize(("bias", "weight_decay"), [(False, 0.0), (True, 0.0), (True, 0.01)])
def test_the_potential_is_the_traced_programs_up_to_the_l2_of_point_estimates(bias, weight_decay):
    model, (x, y) = network(bias, weight_decay), rows()
    topology = sparse(model)
    for seed in range(3):
        values = torch.randn(topology.num_active, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with pyro.get_param_store().scope():
            conditioned = poutine.condition(program(model, topology), data={"values": values})
            joint = poutine.trace(conditioned).get_trace(x, y).log_prob_sum()
        found = Potential(model, topology, x, y, None)(values) + (len(x) * model.l2() if weight_decay else 0)
        assert found.item() == pytest.approx(-joint.item(), rel=1e-13)


def test_the_program_has_one_latent_site_of_the_active_values():
    model, (x, y) = network(), rows()
    trace = poutine.trace(program(model, sparse(model))).get_trace(x, y)
    latent = [name for name in trace.stochastic_nodes if not site_is_subsample(trace.nodes[name])]
    assert latent == ["values"]
    assert trace.nodes["values"]["value"].shape == (sparse(model).num_active,)
    assert trace.observation_nodes == ["y"]


def test_pyros_own_potential_of_the_program_has_the_same_gradient():
    model, (x, y) = network(), rows()
    topology = sparse(model)
    _, theirs, _, _ = initialize_model(program(model, topology), (x, y))
    values = torch.randn(topology.num_active, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for potential in (lambda v: theirs({"values": v}), Potential(model, topology, x, y, None)):
        leaf = values.clone().requires_grad_()
        gradients += torch.autograd.grad(potential(leaf), [leaf])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_one_weight_has_its_conjugate_posterior():
    model, x, y = line()
    chains = nuts(model, sparse(model, 0.0), x, y, num_samples=1000, warmup_steps=100, num_chains=2, seed=1)
    precision = 1 + 4 * float(x.square().sum())
    mean = 4 * float(x[:, 0] @ y) / precision
    values = chains.values[:, ::5, 0].flatten().numpy()  # thinned: the budget counts independent draws
    assert_mean(np.stack([values, (values - mean) ** 2], -1), np.array([mean, 1 / precision]))


def test_predictions_take_the_path_of_every_other_predictive():
    model, (x, y) = network(), rows()
    topology = sparse(model)
    chains = nuts(model, topology, x, y, seed=2, **FAST)
    probs = chains.predict(x)
    assert probs.shape == (2, 60, 20, 3)
    weights = torch.zeros(model.num_weights, dtype=torch.float64)
    weights[topology.positions] = chains.values[1, 7]
    torch.testing.assert_close(probs[1, 7], torch.softmax(model.network(weights)(x), -1), rtol=1e-12, atol=0)
    potential = Potential(model, topology, x, y, None)
    assert chains.log_joint[1, 7].item() == pytest.approx(-potential(chains.values[1, 7]).item(), rel=1e-13)


def test_seeds_reproduce_and_torchs_stream_is_put_back():
    model, (x, y) = network(), rows()
    run = {"num_samples": 10, "warmup_steps": 10, "num_chains": 2}
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    first = nuts(model, sparse(model), x, y, seed=5, **run)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first.values, nuts(model, sparse(model), x, y, seed=5, **run).values)
    assert not torch.equal(first.values, nuts(model, sparse(model), x, y, seed=6, **run).values)
    assert not torch.equal(first.values[0], first.values[1])


def test_given_biases_are_used():
    model, (x, y) = network(bias=True), rows()
    state = {"net.2.bias": torch.tensor([9.0, 0.0, 0.0])}
    chains = nuts(model, sparse(model), x, y, num_samples=4, warmup_steps=4, num_chains=1, state=state)
    expected = -Potential(model, sparse(model), x, y, {"net.2.bias": state["net.2.bias"].double()})(chains.values[0, 0])
    assert chains.log_joint[0, 0].item() == pytest.approx(expected.item(), rel=1e-13)


def test_short_chains_from_far_starts_are_refused():
    model, (x, y) = network(), rows()
    chains = nuts(
        model, sparse(model), x, y, num_samples=8, warmup_steps=0, num_chains=3, spread=10.0, max_tree_depth=1
    )
    with pytest.raises(RuntimeError, match="the chains have not converged: log_joint has R-hat"):
        chains.require_converged(chains.predict(x))


def test_mirror_images_of_one_mode_pass_though_their_weights_disagree():
    """tanh is odd: with all weights negated, the signs of hidden units and outputs cancel."""
    model, (x, y) = network(), rows()
    chains = nuts(model, sparse(model, 0.0), x, y, seed=1, **FAST | {"num_samples": 200, "num_chains": 1})
    first, second = chains.values[0].abs().split(100)
    mirrored = chains._replace(values=torch.stack([first, -second]), log_joint=chains.log_joint.view(2, 100))
    plain = mirrored._replace(values=torch.stack([first, second]))
    predicted = mirrored.predict(x)
    torch.testing.assert_close(predicted, plain.predict(x), rtol=1e-12, atol=0)
    judged = mirrored.require_converged(predicted, max_rhat=1.2, min_ess=10)
    assert judged["weights"].worst[0] > 1.5
    assert plain.convergence()["weights"].worst[0] < 1.3


def test_a_chain_that_stands_still_is_refused():
    model, (x, y) = network(), rows()
    chains = nuts(model, sparse(model), x, y, seed=1, **FAST)
    values, log_joint = chains.values.clone(), chains.log_joint.clone()
    values[1], log_joint[1] = values[1, 0], log_joint[1, 0]
    stuck = chains._replace(values=values, log_joint=log_joint)
    with pytest.raises(RuntimeError, match="have not converged"):
        stuck.require_converged(stuck.predict(x), max_rhat=1.1, min_ess=10)


def test_the_datatree_holds_weights_log_joint_and_predictive():
    model, (x, y) = network(), rows()
    chains = nuts(model, sparse(model), x, y, num_samples=8, warmup_steps=2, num_chains=2)
    posterior = chains.to_datatree(chains.predict(x))["posterior"]
    assert posterior["weights"].dims == ("chain", "draw", "weight")
    assert posterior["log_joint"].dims == ("chain", "draw")
    assert posterior["predictive"].dims == ("chain", "draw", "observation", "parameter")
    assert "predictive" not in chains.to_datatree()["posterior"]
    several = chains.to_datatree(torch.zeros(2, 8, 3, 4, 2))["posterior"]
    assert several["predictive"].dims == ("chain", "draw", "observation", "output", "parameter")


def test_one_chain_is_not_compared_with_itself():
    model, (x, y) = network(), rows()
    alone = nuts(model, sparse(model), x, y, num_samples=8, warmup_steps=2, num_chains=1)
    with pytest.raises(ValueError, match="expected two chains or more to compare, got one: sample with num_chains=4"):
        alone.require_converged(alone.predict(x))


def test_a_mixture_prior_is_refused():
    model, (x, y) = network(), rows()
    model.mixture = MixtureNormal(0.1, 1.0, 0.1, model.num_weights)
    with pytest.raises(ValueError, match="expected a normal prior of the weights to sample under, got a mixture"):
        nuts(model, sparse(model), x, y)


def test_a_foreign_topology_and_a_part_of_the_data_are_refused():
    model, (x, y) = network(), rows()
    with pytest.raises(ValueError, match="expected a topology over layers"):
        nuts(model, sparse(line()[0], 0.0), x, y)
    model.num_data = 100
    with pytest.raises(ValueError, match="expected all 100 training examples, got 20"):
        nuts(model, sparse(model), x, y)


@pytest.mark.parametrize("kind", ["normal of one column", "poisson of one column", "bernoulli", "soft labels"])
def test_targets_meet_the_likelihood_as_they_do_in_the_program(kind: str) -> None:
    """`(n,)` targets of an `(n, 1)` outcome would broadcast to `(n, n)`."""
    torch.manual_seed(0)
    x, net = torch.randn(6, 3).double(), nn.Linear(3, 3 if kind == "soft labels" else 1).double()
    likelihood, y = {
        "normal of one column": (lambda out: dist.Normal(out, 0.5), torch.randn(6).double()),
        "poisson of one column": (lambda out: dist.Poisson(out.exp()), torch.arange(6) % 3),
        "bernoulli": ("bernoulli", torch.arange(6) % 2),
        "soft labels": ("categorical", torch.randn(6, 3).double().softmax(-1)),
    }[kind]
    model = BayesianNetwork(net, likelihood=likelihood, prior_scale=0.7)
    topology, values = sparse(model), torch.randn(sparse(model).num_active).double()
    with pyro.get_param_store().scope():
        joint = poutine.trace(poutine.condition(program(model, topology), data={"values": values})).get_trace(x, y).log_prob_sum()
    assert Potential(model, topology, x, y, None)(values).item() == pytest.approx(-joint.item(), rel=1e-12)
    assert nuts(model, topology, x, y, num_samples=4, warmup_steps=2, num_chains=1).values.shape == (1, 4, topology.num_active)


def test_a_loss_in_the_likelihoods_place_is_refused() -> None:
    model, (x, y) = network(), rows()
    model.loss = Loss("dro:5", losses.named("dro:5"), 10, 1)
    for begin in (lambda: nuts(model, sparse(model), x, y), lambda: program(model, sparse(model))):
        with pytest.raises(ValueError, match="expected a model of its likelihood, got one of loss dro:5: set model.loss to None"):
            begin()


def test_chains_too_short_for_their_diagnosis_are_refused_before_they_run() -> None:
    model, (x, y) = network(), rows()
    for few in ({"num_samples": 3}, {"num_chains": 0}):
        with pytest.raises(ValueError, match="expected num_samples of 4 or more"):
            nuts(model, sparse(model), x, y, **{**FAST, **few})
