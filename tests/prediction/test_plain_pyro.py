"""Claims about results of plain Pyro as labelled arrays: chains apart, log-likelihoods of every observation, groups by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import from_pyro
from espalier.topology import initial

X = torch.linspace(-1, 1, 12)
Y = 2 * X + 0.3 * torch.sin(40 * X)


def line(x: Tensor, y: Tensor | None = None) -> Any:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.factor("nothing", torch.tensor(0.0))
    with pyro.plate("data", len(x)), pyro.poutine.scale(scale=3.0):
        return pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def test_mcmc_keeps_its_chains_and_says_every_observations_log_likelihood() -> None:
    torch.manual_seed(0)
    mcmc = MCMC(NUTS(line), num_samples=6, warmup_steps=6, disable_progbar=True)
    mcmc.run(X, Y)
    tree = from_pyro(mcmc, model=line, args=(X, Y), dims={"y": ["observation"]}, coords={"observation": np.arange(12)})
    assert set(tree.children) == {"posterior", "log_likelihood", "observed_data"}
    assert dict(tree["posterior"].sizes) == {"chain": 1, "draw": 6}
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "observation")
    slope, scale = (tree["posterior"][name].values[..., None] for name in ("slope", "scale"))
    by_hand = -0.5 * ((Y.numpy() - slope * X.numpy()) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(tree["log_likelihood"]["y"], by_hand, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(tree["observed_data"]["y"], Y)


def test_what_predictive_gives_is_read_as_it_is() -> None:
    """Padded by a one for the plate, observed sites among the latent ones."""
    torch.manual_seed(0)
    network = BayesianNetwork(torch.nn.Linear(3, 2), num_data=12)
    guide = MaskedGuide(network, initial(network.shapes, 0.3), 0.8)
    x, y = torch.randn(12, 3), torch.arange(12) % 2
    draws = Predictive(network, guide=guide, num_samples=5)(x)
    assert draws["weights"].shape == (5, 1, 6)
    tree = from_pyro(draws, model=network, args=(x, y))
    assert tree["posterior"]["weights"].shape == (1, 5, 6)
    assert [*tree["posterior"].data_vars] == ["weights"]
    assert tree["posterior_predictive"]["y"].shape == (1, 5, 12)
    for place, weights in enumerate(draws["weights"][:, 0]):
        logits = x @ weights.view(2, 3).T + network.net.get_parameter("bias")
        expected = logits.log_softmax(-1)[torch.arange(12), y].detach().numpy()
        np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0, place], expected, rtol=1e-4, atol=1e-6)


def mixture(y: Tensor, mask: Any = True, rows: int | None = None) -> None:
    """Two clusters, with a site that is worked out, and rows drawn or masked where that is asked."""
    centre = pyro.sample("centre", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    pyro.deterministic("apart", centre[1] - centre[0])
    with pyro.plate("data", len(y), subsample_size=rows) as chosen, pyro.poutine.mask(mask=mask):
        which = pyro.sample("which", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(centre[which], 0.5), obs=y[chosen])


def test_what_the_model_works_out_is_no_observation() -> None:
    centre, which = torch.randn(5, 2), torch.ones(5, 12, dtype=torch.long)
    tree = from_pyro({"centre": centre, "which": which}, model=mixture, args=(Y,))
    assert [*tree["observed_data"].data_vars] == [*tree["log_likelihood"].data_vars] == ["y"]
    expected = dist.Normal(centre[:, 1:], 0.5).log_prob(Y).numpy()
    np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({}, "expected samples of every latent site, but the posterior has none of 'which' .NUTS sums discrete ones out"),
     ({"rows": 5}, "expected all 12 rows of plate 'data', got 5 drawn ones"),
     ({"mask": Y > 0}, "expected observations without a mask, got 'y' under poutine.mask")],
)  # fmt: skip
def test_a_log_likelihood_that_is_not_of_the_posterior_is_refused(options: dict[str, Any], sentence: str) -> None:
    posterior = {"centre": torch.randn(4, 2)} | ({"which": torch.ones(4, options.get("rows", 12)).long()} if options else {})
    with pytest.raises(ValueError, match=sentence):
        from_pyro(posterior, model=mixture, args=(Y,), kwargs=options)


def test_samples_of_predictive_make_every_group() -> None:
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        guide = AutoNormal(line)
        SVI(line, guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO()).step(X, Y)
        posterior = Predictive(guide, num_samples=8, return_sites=["slope", "scale"])(X)
        predictive = Predictive(line, posterior, return_sites=["y"])(X)
        prior = Predictive(line, num_samples=5)(X)
    tree = from_pyro(
        posterior,
        predictive,
        prior={name: prior[name].squeeze(-1) for name in ("slope", "scale")},
        prior_predictive={"y": prior["y"]},
        constant_data={"x": X},
        observed_data={"y": Y},
        num_chains=2,
        dims={"y": ["observation"], "x": ["observation"]},
    )
    assert dict(tree["posterior"].sizes) == {"chain": 2, "draw": 4}
    np.testing.assert_array_equal(tree["posterior"]["slope"].values.ravel(), posterior["slope"].detach().ravel())
    assert dict(tree["posterior_predictive"].sizes) == {"chain": 2, "draw": 4, "observation": 12}
    assert dict(tree["prior_predictive"].sizes) == {"chain": 1, "draw": 5, "observation": 12}
    assert tree["constant_data"]["x"].dims == ("observation",)


@pytest.mark.parametrize(
    ("called", "sentence"),
    [
        (lambda: from_pyro(), "expected a posterior, or any other group, got none"),
        (lambda: from_pyro({"a": torch.zeros(7)}, num_chains=2), "expected samples of a that divide into 2 chains"),
        (lambda: from_pyro({"a": torch.zeros(())}), "got shape ()"),
    ],
)
def test_what_makes_no_tree_is_refused(called: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        called()


def test_nothing_is_drawn_from_the_prior_of_a_site_that_has_samples() -> None:
    def wild(x: Tensor, y: Tensor | None = None) -> Any:
        slope = pyro.sample("slope", dist.ImproperUniform(dist.constraints.real, (), ()))
        scale = pyro.sample("scale", dist.Normal(0.0, 100.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(slope * x, scale.exp()), obs=y)

    draws = {"slope": torch.randn(5, 1), "scale": 0.1 * torch.randn(5, 1), "_RETURN": torch.randn(5, 12)}
    for _ in range(20):
        tree = from_pyro(draws, model=wild, args=(X, Y))
    expected = dist.Normal(draws["slope"] * X, draws["scale"].exp()).log_prob(Y).numpy()
    np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0], expected, rtol=1e-4)
