"""The likelihoods of `BayesianNetwork`: torch's losses, any callable, and the shapes that are matched or refused."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from budget import assert_mean
from espalier import Data, Split, Training
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.likelihoods import LIKELIHOODS, Normal
from espalier.network import BayesianNetwork, under
from espalier.prediction import evaluate
from espalier.prediction.datatree import to_datatree
from zoo import meet, mlp, prior_draw, sites, train_some_steps

pytestmark = pytest.mark.usefixtures("own_store")


def test_there_is_no_l2_site_without_weight_decay_and_a_batch_is_all_data_without_num_data():
    net, x, y = meet("mlp")
    model = BayesianNetwork(net)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    assert sites(trace) == ["weights", "y"]
    plain = -nn.functional.cross_entropy(model.evaluate(trace.nodes["weights"]["value"], x), y, reduction="sum")
    assert trace.nodes["y"]["log_prob_sum"].item() == pytest.approx(plain.item(), rel=1e-6)


def test_the_prior_of_a_model_without_a_prior_scale_is_standard_normal():
    net, x, _ = meet("mlp")
    model = BayesianNetwork(net)
    torch.manual_seed(3)
    draws = torch.stack([pyro.poutine.trace(model).get_trace(x).nodes["weights"]["value"] for _ in range(400)])
    assert_mean(draws, torch.zeros(model.num_weights))
    assert_mean(draws.square(), torch.ones(model.num_weights))


def test_frozen_parameters_have_no_l2():
    net = mlp()
    net[0].bias.requires_grad_(False)
    model = BayesianNetwork(net, weight_decay=0.2)
    assert model.l2().item() == pytest.approx(0.1 * net[2].bias.square().sum().item(), rel=1e-6)


def outputs_and_targets(kind: str) -> tuple[int, Tensor]:
    torch.manual_seed(4)
    return {
        "categorical": (3, torch.tensor([0, 2, 1, 1, 0, 2, 2, 0])),
        "categorical-unknown": (3, torch.tensor([0, 1, 1, 1, 0, 1, 0, 0])),
        "bernoulli": (1, torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1])),
        "normal": (1, torch.randn(8)),
    }[kind]


def plain_log_likelihood(kind: str, output: Tensor, y: Tensor) -> Tensor:
    """By torch's own losses."""
    if kind == "categorical":
        return -nn.functional.cross_entropy(output, y, reduction="none")
    if kind == "categorical-unknown":
        return -nn.functional.cross_entropy(output[:, :-1], y, reduction="none")
    if kind == "bernoulli":
        return -nn.functional.binary_cross_entropy_with_logits(output[:, 0], y, reduction="none")
    return -0.5 * (y - output[:, 0]).square() - 0.5 * math.log(2 * math.pi)


def regression_net(num_outputs: int) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, num_outputs))


def test_every_likelihood_is_tested_here():
    assert set(LIKELIHOODS) == {"categorical", "categorical-unknown", "bernoulli", "normal"}


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_a_named_likelihood_is_torchs_loss_per_example(kind):
    num_outputs, y = outputs_and_targets(kind)
    model, x = BayesianNetwork(regression_net(num_outputs), likelihood=kind), torch.randn(8, 5)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    expected = plain_log_likelihood(kind, model.evaluate(trace.nodes["weights"]["value"], x), y)
    assert torch.allclose(trace.nodes["y"]["log_prob"], expected, rtol=1e-5, atol=1e-6)
    assert pyro.poutine.trace(model).get_trace(x).nodes["y"]["value"].shape == (8,)


def test_a_wide_bernoulli_output_is_one_event_per_example():
    model, x = BayesianNetwork(regression_net(4), likelihood="bernoulli"), torch.randn(8, 5)
    y = (torch.rand(8, 4) < 0.5).float()
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    logits = model.evaluate(trace.nodes["weights"]["value"], x)
    expected = -nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(1)
    assert torch.allclose(trace.nodes["y"]["log_prob"], expected, rtol=1e-5, atol=1e-6)


def test_a_normal_likelihood_learns_its_precision():
    model = BayesianNetwork(regression_net(1), likelihood=Normal(2.5))
    x, y = torch.randn(8, 5), 10 * torch.randn(8)
    assert model.outcome(model.initial, x).stddev.tolist() == pytest.approx([2.5**-0.5] * 8)
    train_some_steps(model, x, y)
    assert model.likelihood.log_precision.item() < math.log(2.5) - 1e-3  # the residuals are much wider


def test_a_normal_likelihood_with_a_fixed_precision_keeps_it():
    model = BayesianNetwork(regression_net(1), likelihood=Normal(2.5, learn=False))
    train_some_steps(model, torch.randn(8, 5), 10 * torch.randn(8))
    assert model.outcome(model.initial, torch.randn(3, 5)).stddev.tolist() == pytest.approx([2.5**-0.5] * 3)


def test_any_callable_is_a_likelihood():
    model = BayesianNetwork(regression_net(1), likelihood=lambda out: dist.StudentT(4.0, out.squeeze(-1), 0.5))
    x, y = torch.randn(8, 5), torch.randn(8)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    mean = model.evaluate(trace.nodes["weights"]["value"], x).squeeze(-1)
    expected = torch.distributions.StudentT(4.0, mean, 0.5).log_prob(y)
    assert torch.allclose(trace.nodes["y"]["log_prob"], expected)


def test_a_gpytorch_likelihood_at_one_column_is_a_normal():
    noise = gpytorch.likelihoods.GaussianLikelihood()
    noise.noise = 0.3
    model = BayesianNetwork(regression_net(1), likelihood=lambda out: noise(out.squeeze(-1)), num_data=80)
    x, y = torch.randn(8, 5), torch.randn(8)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    mean = model.evaluate(trace.nodes["weights"]["value"], x).squeeze(-1)
    expected = torch.distributions.Normal(mean, 0.3**0.5).log_prob(y)
    assert torch.allclose(trace.nodes["y"]["log_prob"], 10 * expected, rtol=1e-4)


@pytest.mark.parametrize(
    "likelihood",
    [gpytorch.likelihoods.GaussianLikelihood(), lambda out: dist.Normal(out, 0.5)],
    ids=["gpytorch", "callable"],
)
def test_outputs_of_one_column_and_flat_targets_are_matched_or_refused_but_never_crossed(likelihood):
    """Means (n, 1) against targets (n,) broadcast to (n, n): every target compared with every mean, without a word."""
    model, x, y = BayesianNetwork(regression_net(1), likelihood=likelihood), torch.randn(8, 5), torch.randn(8)
    try:
        trace = pyro.poutine.trace(model).get_trace(x, y)
        trace.compute_log_prob()
    except ValueError:
        return
    mean = model.evaluate(trace.nodes["weights"]["value"], x).squeeze(-1)
    expected = torch.distributions.Normal(mean, likelihood(mean).stddev).log_prob(y)
    assert torch.allclose(trace.nodes["y"]["log_prob"], expected)


def test_an_unknown_likelihood_is_refused_with_those_there_are():
    message = "^expected a likelihood of categorical, categorical-unknown, bernoulli, normal or a callable, got 'poisson'$"
    with pytest.raises(ValueError, match=message):
        BayesianNetwork(mlp(), likelihood="poisson")


def test_a_given_state_stands_in_for_the_parameters_and_buffers():
    net, x, _ = meet("batch_norm")
    model = BayesianNetwork(net).eval()
    other = BayesianNetwork(meet("batch_norm", seed=1)[0].train())
    other.evaluate(other.initial, 3 + x)  # moves its statistics
    other.eval()
    weights, state = prior_draw(model), other.state_dict()
    assert torch.equal(model.evaluate(weights, x, state), other.evaluate(weights, x))
    assert torch.equal(model.network(weights, state).eval()(x), other.evaluate(weights, x))
    assert not torch.equal(model.evaluate(weights, x), other.evaluate(weights, x))  # and only for that call


def test_outputs_in_half_precision_are_widened():
    model = BayesianNetwork(mlp().bfloat16())
    assert model.evaluate(model.initial, torch.randn(2, 5).bfloat16()).dtype == torch.float32


# --- GPyTorch's, on the output of a network ---------------------------------------------------------------------------
GPYTORCH = {
    "Gaussian": (gpytorch.likelihoods.GaussianLikelihood, 1, lambda lik, o: stats.norm(o[:, 0], float(lik.noise.sqrt()))),
    "StudentT": (gpytorch.likelihoods.StudentTLikelihood, 1, lambda lik, o: stats.t(
        float(lik.deg_free), o[:, 0], float(lik.noise.sqrt()))),
    "Laplace": (gpytorch.likelihoods.LaplaceLikelihood, 1, lambda lik, o: stats.laplace(o[:, 0], float(lik.noise.sqrt()))),
    "Beta": (gpytorch.likelihoods.BetaLikelihood, 1, lambda lik, o: stats.beta(
        special.expit(o[:, 0]) * float(lik.scale) + 1, (1 - special.expit(o[:, 0])) * float(lik.scale) + 1)),
    "Poisson": (gpytorch.likelihoods.PoissonLikelihood, 1, lambda lik, o: stats.poisson(np.log1p(np.exp(o[:, 0])))),
    "Bernoulli": (gpytorch.likelihoods.BernoulliLikelihood, 1, lambda lik, o: stats.bernoulli(stats.norm.cdf(o[:, 0]))),
    "Softmax": (lambda: gpytorch.likelihoods.SoftmaxLikelihood(num_classes=3, mixing_weights=False), 3,
                lambda lik, o: Choice(special.softmax(o, -1))),
    "SoftmaxMixed": (lambda: gpytorch.likelihoods.SoftmaxLikelihood(num_features=2, num_classes=3), 2,
                     lambda lik, o: Choice(special.softmax(o @ lik.mixing_weights.detach().double().numpy().T, -1))),
}  # fmt: skip
"""Name -> how it is made, the width of the network it fits, its SciPy twin at outputs `(n, width)`."""
OTHERS = {
    "DirichletClassificationLikelihood": "is made from the training targets and is Gaussian in a latent space",
    "FixedNoiseGaussianLikelihood": "asks for the noise of each new row",
    "HadamardGaussianLikelihood": "asks for a task of each row",
    "LikelihoodList": "is of several outputs with an argument each",
}
"""Those that ask for more than the network's output."""


class Choice:
    """SciPy has no categorical distribution."""

    def __init__(self, probs):
        self.probs = probs

    def logpmf(self, y):
        return np.log(self.probs[np.arange(len(y)), y])


@pytest.mark.parametrize("name", GPYTORCH)
def test_a_gpytorch_likelihood_trains_and_scores_as_scipy_says(name):
    make, width, twin = GPYTORCH[name]
    rng = np.random.default_rng(2)
    x = rng.normal(size=(120, 3))
    kinds = {"Poisson": rng.poisson(2.0, 120).astype(float), "Beta": rng.beta(2, 2, 120), "Bernoulli": rng.integers(0, 2, 120)}
    y = rng.integers(0, 3, 120) if name.startswith("Softmax") else kinds.get(name, rng.normal(size=120))
    data = from_arrays(x, y, standardise="inputs")
    model = BayesianNetwork(regression_net_of(3, width), likelihood=make())
    training = Training(epochs=3, batch_size=20, learning_rate=0.01)
    fit = cigl.infer(model, data, sparsity=0.5, drop_rate=0.1, training=training, seed=0)
    weights, state = next(fit.weights("mean"))
    with torch.no_grad():
        output = fit.model.eval().evaluate(weights, data.test.x, state).double().numpy()
    own = twin(state_of(fit.model.likelihood, state), output)
    targets = data.test.y.numpy()
    right = (own.logpmf if hasattr(own, "logpmf") else own.logpdf)(targets)
    found = evaluate(fit, data)["predict"]["mean"]
    assert found["nll"] == pytest.approx(-right.mean(), rel=1e-6)
    tree = to_datatree(fit.mixture(data.test.x, "mean"), data.test.y)
    np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0, 0], right, rtol=1e-6)
    assert tree["posterior_predictive"]["y"].shape == (1, 1, len(targets))
    few = data.test.x[: max(2, width)]  # as many rows as features, which GPyTorch's softmax would transpose
    torch.testing.assert_close(fit.predict(few, "mean")[0], fit.predict(data.test.x, "mean")[0, : len(few)])


def regression_net_of(features: int, width: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, width))


def state_of(likelihood, state):
    """The likelihood with the values of a pair."""
    likelihood.load_state_dict({**likelihood.state_dict(), **under("likelihood.", state)})
    return likelihood.double().requires_grad_(False)


def test_a_multitask_likelihood_scores_the_columns_together():
    rng = np.random.default_rng(2)
    y = torch.from_numpy(rng.normal(size=(60, 2))).float()
    part = Split(torch.from_numpy(rng.normal(size=(60, 3))).float(), y)
    data = Data("two tasks", part, part, part, part, (3,), None)
    model = BayesianNetwork(regression_net_of(3, 2), likelihood=gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2))
    fit = cigl.infer(model, data, sparsity=0.5, training=Training(epochs=2, batch_size=20, learning_rate=0.01), seed=0)
    found = evaluate(fit, data)["predict"]["mean"]
    draws = fit.predict(part.x, "mean")[0].double().numpy()
    right = stats.norm(draws[..., 0], draws[..., 1]).logpdf(y.numpy()).sum(1)
    assert found["nll"] == pytest.approx(-right.mean() / 2, rel=1e-6)


def test_every_likelihood_of_gpytorch_is_tried_or_known_to_ask_for_more():
    public = {name for name in gpytorch.likelihoods.__all__ if name.endswith("Likelihood") and not name.startswith("_")}
    tried = {f"{name}Likelihood" for name in GPYTORCH} | {"MultitaskGaussianLikelihood", *OTHERS}
    known = {"Likelihood", "GaussianLikelihoodWithMissingObs", "NegativeBinomialLikelihood"}
    assert public - tried - known == set()
