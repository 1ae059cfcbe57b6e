"""Claims about espalier.prediction.mixture: whatever the likelihood, scores and draws are its own, against SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from budget import assert_mean, assert_rate
from espalier import BayesianNetwork, Data, Fit, Training, calibration
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.prediction import Mixture, evaluate
from espalier.prediction.datatree import to_datatree
from espalier.prediction.mixture import crps_of_draws
from espalier.prediction.predict import parameters_of

RNG = np.random.default_rng(11)
X = RNG.normal(size=(160, 2))


class Kind(NamedTuple):
    """A likelihood of one output, its SciPy twin at an output o, and targets from it."""

    likelihood: Callable[[Tensor], Any]
    twin: Callable[[Any], Any]
    discrete: bool = False


def column(o: Tensor) -> Tensor:
    return o.squeeze(-1)


class Twin:
    """A mixture or inflated law out of SciPy's, with what is asked of it."""

    def __init__(self, parts: list[tuple[Any, Any]], at_zero: float = 0.0) -> None:
        self.parts, self.at_zero = parts, at_zero

    def pdf(self, y: Any) -> Any:
        return sum(weight * part.pdf(y) for weight, part in self.parts)

    def pmf(self, y: Any) -> Any:
        return sum(weight * part.pmf(y) for weight, part in self.parts) + self.at_zero * (np.asarray(y) == 0)

    def cdf(self, y: Any) -> Any:
        return sum(weight * part.cdf(y) for weight, part in self.parts) + self.at_zero * (np.asarray(y) >= 0)

    def rvs(self, random_state: Any) -> Any:
        shape = np.broadcast(*[part.mean() for _, part in self.parts], np.zeros(len(X))).shape
        weights = [weight for weight, _ in self.parts] + ([self.at_zero] if self.at_zero else [])
        draws = [np.broadcast_to(part.rvs(random_state=random_state), shape) for _, part in self.parts]
        draws += [np.zeros(shape)] if self.at_zero else []
        pick = random_state.choice(len(draws), size=shape, p=weights)
        return np.choose(pick, draws)


def two_normals(o: Tensor) -> Any:
    locs = torch.stack([column(o) - 2, column(o) + 1], -1)
    weights = torch.tensor([0.3, 0.7], dtype=o.dtype).expand(locs.shape)
    scales = torch.tensor([0.5, 1.5], dtype=o.dtype).expand(locs.shape)
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scales))


KINDS = {
    "poisson": Kind(lambda o: dist.Poisson(column(o).exp()), lambda o: stats.poisson(np.exp(o)), True),
    "negative binomial": Kind(
        lambda o: dist.NegativeBinomial(torch.tensor(4.0).to(o), logits=column(o)),
        lambda o: stats.nbinom(4, 1 / (1 + np.exp(o))), True),
    "gamma": Kind(lambda o: dist.Gamma(torch.tensor(2.5).to(o), column(o).exp()), lambda o: stats.gamma(2.5, scale=np.exp(-o))),
    "log-normal": Kind(lambda o: dist.LogNormal(column(o), 0.7), lambda o: stats.lognorm(0.7, scale=np.exp(o))),
    "student 2": Kind(lambda o: dist.StudentT(2.0, column(o), 0.5), lambda o: stats.t(2, o, 0.5)),
    "student 4": Kind(lambda o: dist.StudentT(4.0, column(o), 0.5), lambda o: stats.t(4, o, 0.5)),
    "laplace": Kind(lambda o: dist.Laplace(column(o), 0.8), lambda o: stats.laplace(o, 0.8)),
    "cauchy": Kind(lambda o: dist.Cauchy(column(o), 0.3), lambda o: stats.cauchy(o, 0.3)),
    "beta": Kind(lambda o: dist.Beta(column(o).exp() + 0.5, torch.tensor(2.0).to(o)), lambda o: stats.beta(np.exp(o) + 0.5, 2.0)),
    "zero-inflated poisson": Kind(
        lambda o: dist.ZeroInflatedPoisson(column(o).exp(), gate=torch.tensor(0.35).to(o)),
        lambda o: Twin([(0.65, stats.poisson(np.exp(o)))], at_zero=0.35), True),
    "two normals": Kind(two_normals, lambda o: Twin([(0.3, stats.norm(o - 2, 0.5)), (0.7, stats.norm(o + 1, 1.5))])),
}  # fmt: skip
every_kind = pytest.mark.parametrize("name", KINDS)


def fitted(name: str) -> tuple[Fit, Data]:
    kind = KINDS[name]
    y = np.asarray(kind.twin(0.4 * X[:, 0] + 0.3).rvs(random_state=np.random.default_rng(3)), dtype=np.float64)
    y = np.clip(y, 1e-4, 1 - 1e-4) if name == "beta" else y
    data = from_arrays(X, y, standardise="inputs", validation=0.2)
    torch.manual_seed(0)
    net = BayesianNetwork(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), likelihood=kind.likelihood)
    training = Training(epochs=6, batch_size=32, learning_rate=0.01)
    return cigl.infer(net, data, sparsity=0.4, drop_rate=0.3, delta_t=2, average_from=0.75, training=training), data


def log_density(kind: Kind, output: Any, y: Any) -> Any:
    law = kind.twin(output)
    return np.log(law.pmf(y) if kind.discrete else law.pdf(y))


@every_kind
def test_log_likelihood_is_scipys_by_the_mixture_the_tree_and_evaluate(name: str) -> None:
    fit, data = fitted(name)
    x, y = data.test.x, data.test.y.double()
    outputs = [fit.model.evaluate(w, x, s).detach().double().numpy()[:, 0] for w, s in fit.weights("pairs")]
    pointwise = np.stack([log_density(KINDS[name], output, y.numpy()) for output in outputs])
    mixture = fit.mixture(x, "pairs")
    np.testing.assert_allclose(mixture.log_probs(y).detach(), pointwise, rtol=1e-6, atol=1e-7)
    expected = np.log(np.exp(pointwise).mean(0))
    np.testing.assert_allclose(mixture.log_prob(y).detach(), expected, rtol=1e-6, atol=1e-7)
    tree = to_datatree(fit.mixture(x), y)
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], pointwise, rtol=1e-6, atol=1e-7)
    assert evaluate(fit, data)["predict"]["pairs"]["nll"] == pytest.approx(-expected.mean(), rel=1e-6)
    last = fit.history[-1]["validation_nll"]
    output = fit.model.evaluate(next(fit.weights("mean"))[0], data.validation.x).detach().double().numpy()[:, 0]
    assert last == pytest.approx(-log_density(KINDS[name], output, data.validation.y.numpy()).mean(), rel=1e-5)


@every_kind
def test_draws_are_the_likelihoods_own(name: str) -> None:
    kind, outputs = KINDS[name], np.array([0.2, -0.7, 0.9])
    mixture = Mixture([kind.likelihood(torch.full((4, 1), output, dtype=torch.float64)) for output in outputs])
    drawn = mixture.sample(9000, seed=4).numpy()
    assert drawn.shape == (9000, 4)
    if kind.discrete:
        assert (drawn == np.rint(drawn)).all()
        assert (drawn >= 0).all()
    for point in np.quantile(drawn, [0.1, 0.3, 0.5, 0.8, 0.95]):
        p = float(np.mean([kind.twin(output).cdf(point) for output in outputs]))
        assert_rate(int((drawn <= point).sum()), drawn.size, p, looks=5)
    tree_like = mixture.draws(seed=1)
    assert tree_like.shape == (3, 4)
    state = torch.get_rng_state()
    assert torch.equal(mixture.sample(30, seed=9), mixture.sample(30, seed=9))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["gamma", "laplace", "two normals", "student 4", "beta"])
def test_crps_is_the_integral_of_the_squared_distance_of_distribution_functions(name: str) -> None:
    kind, outputs, target = KINDS[name], [0.3, -0.4], 0.6

    def squared(y: float) -> float:
        return float((np.mean([kind.twin(output).cdf(y) for output in outputs]) - (y >= target)) ** 2)

    expected = integrate.quad(squared, -60, target, limit=400)[0] + integrate.quad(squared, target, 60, limit=400)[0]
    mixture = Mixture([kind.likelihood(torch.full((400, 1), output, dtype=torch.float64)) for output in outputs])
    drawn = np.sort(mixture.sample(2048, seed=3).numpy(), axis=0)
    scores = crps_of_draws(drawn, np.full(400, target))  # 400 estimates of one number
    assert_mean(scores, expected)


def test_an_interval_is_that_of_the_mixture_in_units_of_the_target() -> None:
    """Of two normals a third each way, beside the root of their distribution function."""
    means, sds = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).double(), torch.tensor([[1.0, 0.5], [0.5, 2.0]]).double()
    mixture = Mixture([dist.Normal(mean, sd) for mean, sd in zip(means, sds, strict=True)], 10.0, 3.0)
    for level in (0.9, 0.5):
        for side, found in zip(((1 - level) / 2, (1 + level) / 2), mixture.interval(level=level), strict=True):
            below = [np.mean([stats.norm.cdf((y - 10) / 3, m[row], s[row]) for m, s in zip(means, sds, strict=True)])
                     for row, y in enumerate(found)]  # fmt: skip
            assert below == pytest.approx([side] * 2, abs=4.5 * math.sqrt(0.25 / 2048))


def test_the_summary_is_in_units_of_the_target() -> None:
    shift, scale = 40.0, 7.0
    law = dist.Laplace(torch.zeros(50, dtype=torch.float64), 0.8)
    y = torch.from_numpy(stats.laplace(shift, 0.8 * scale).rvs(50, random_state=1))
    inside, outside = Mixture([law]), Mixture([law], shift, scale)
    np.testing.assert_allclose(outside.log_prob(y), stats.laplace(shift, 0.8 * scale).logpdf(y), rtol=1e-12)
    mine, theirs = outside.summary(y), inside.summary((y - shift) / scale)
    for score in ("rmse", "crps"):
        assert mine[score] == pytest.approx(scale * theirs[score], rel=1e-9)
    assert mine["nll"] == pytest.approx(theirs["nll"] + math.log(scale), rel=1e-12)
    assert mine["coverage_95"] == theirs["coverage_95"]


def test_a_law_without_a_mean_is_centred_at_its_median() -> None:
    mixture = Mixture([dist.Cauchy(torch.full((3,), 5.0, dtype=torch.float64), 0.1)])
    centre = mixture.centre(np.sort(mixture.sample(2001).numpy(), axis=0))
    np.testing.assert_allclose(centre, 5.0, atol=0.05)


def test_a_law_that_knows_no_mean_is_scored_and_says_nan() -> None:
    law = dist.TransformedDistribution(
        dist.Normal(torch.zeros(30, dtype=torch.float64), 1.0), [torch.distributions.transforms.SigmoidTransform()]
    )
    y = 1 / (1 + np.exp(-RNG.normal(size=30)))
    summary = Mixture([law]).summary(torch.from_numpy(y))
    expected = stats.norm.logpdf(np.log(y / (1 - y))) - np.log(y * (1 - y))
    assert summary["nll"] == pytest.approx(-float(np.mean(expected)), rel=1e-9)
    assert 0 < summary["rmse"] < 0.5
    assert torch.isnan(parameters_of(law)).all()


def test_the_poisson_of_the_cases_is_right() -> None:
    net = nn.Linear(1, 1)
    nn.init.zeros_(net.weight)
    nn.init.constant_(net.bias, math.log(3))
    model = BayesianNetwork(net, likelihood=KINDS["poisson"].likelihood)
    outcome = model.says(model.evaluate(model.initial, torch.zeros(1, 1)).double().detach())
    assert float(Mixture([outcome]).log_prob(torch.tensor([2.0])).detach()) == pytest.approx(
        2 * math.log(3) - 3 - math.log(2), abs=1e-6
    )


@pytest.mark.parametrize(
    ("name", "bad", "says"),
    [
        ("poisson", -1.0, r"expected targets in the support of the Poisson likelihood .* got -1 in row 7"),
        ("poisson", 2.5, "got 2.5 in row 7"),
        ("beta", 2.0, "support of the Beta likelihood"),
        ("gamma", -3.0, "support of the Gamma likelihood"),
    ],
)
def test_targets_that_cannot_come_from_the_likelihood_are_refused_before_training(
    name: str, bad: float, says: str
) -> None:
    y = np.full(60, 0.5 if name == "beta" else 1.0)
    net = BayesianNetwork(nn.Linear(2, 1), likelihood=KINDS[name].likelihood)
    data = from_arrays(X[:60], y, standardise="none", validation=0.0, calibration=0.0)
    wrong = data.train.y.clone()
    wrong[7] = bad
    with pytest.raises(ValueError, match=says):
        cigl.infer(net, data._replace(train=data.train._replace(y=wrong)), sparsity=0.5, drop_rate=0.1)


def test_counts_that_were_standardised_are_refused_with_the_way_out() -> None:
    net = BayesianNetwork(nn.Linear(2, 1), likelihood=KINDS["poisson"].likelihood)
    with pytest.raises(ValueError, match="standardised to .* keep targets as they are with standardise inputs"):
        cigl.infer(net, from_arrays(X, RNG.poisson(3, 160).astype(float)), sparsity=0.5)


def test_one_logit_keeps_the_digits_of_both_probabilities() -> None:
    net = nn.Linear(1, 1)
    nn.init.zeros_(net.weight)
    net.bias.data.fill_(20.0)
    data = from_arrays(np.zeros((40, 1)), np.arange(40) % 2, standardise=False)
    fit = cigl.infer(
        BayesianNetwork(net, likelihood="bernoulli"), data, sparsity=0.0, drop_rate=0.0, start="magnitude",
        training=Training(epochs=1, batch_size=16, learning_rate=1e-30, weight_decay=1e-12),
    )  # fmt: skip
    probs = fit.predict(data.test.x)[0].numpy()
    np.testing.assert_allclose(-np.log(probs[:, 0]), 20.000000002061153, rtol=1e-12)
    tree = to_datatree(fit.mixture(data.test.x), torch.zeros(len(data.test.y), dtype=torch.int64))
    np.testing.assert_allclose(tree["log_likelihood"]["y"], -20.000000002061153, rtol=1e-12)


def test_a_class_of_probability_1e_22_has_its_log_likelihood() -> None:
    logits = torch.tensor([[0.0, math.log(1e-22)]], dtype=torch.float64)
    mixture = Mixture([dist.Categorical(logits=logits)])
    assert float(mixture.log_probs(torch.tensor([1]))) == pytest.approx(-50.656872, abs=1e-6)


def test_targets_of_the_predictive_itself_are_covered_at_the_nominal_rate_by_few_draws_each() -> None:
    """80,000 of them leave 419 draws for each; between Hyndman & Fan's quantiles of type 7 lie .5 % too few."""
    count = 80_000
    mixture = Mixture([dist.StudentT(5.0, torch.zeros(count), 1.0)], 0.0, 1.0)
    torch.manual_seed(11)
    y = dist.StudentT(5.0, torch.zeros(count), 1.0).sample()
    covered = mixture.scores(y)[1]
    assert abs(covered.mean() - 0.95) < 4 * (0.95 * 0.05 / count) ** 0.5


def test_the_coverage_of_several_columns_lies_in_its_interval() -> None:
    covered = np.array([0.9, 1.0, 0.8, 0.9])
    found = calibration.summary_of({"rmse": np.ones(4)}, covered)
    assert found["coverage_95"] == pytest.approx(0.9)
    low, high = found["coverage_95_interval"]
    assert low <= 0.9 <= high
    assert 0.7 <= low < high <= 1


def test_the_spread_is_that_of_many_draws_in_the_units_of_the_target() -> None:
    loc, scale = torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 0.5]]).double(), torch.tensor([0.5, 2.0]).double()
    mixture = Mixture([dist.Normal(each, scale) for each in loc], 5.0, 10.0)
    by_hand = 10 * np.sqrt(scale.numpy() ** 2 + loc.numpy().var(0))
    np.testing.assert_allclose(mixture.spread(), by_hand)
    np.testing.assert_allclose(mixture.sample(200_000).std(0).numpy(), by_hand, rtol=0.01)
    assert np.isnan(Mixture([dist.StudentT(torch.tensor([1.5]), 0.0, 1.0)]).spread()).all()
