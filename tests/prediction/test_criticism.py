"""Claims about espalier.prediction.criticism: statistics are what they say, p-values are uniform for a right model, and a
model that is wrong about its noise is found out."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from budget import FALSE_ALARMS, assert_at_most, assert_mean, assert_rate
from espalier import BayesianNetwork, Data, Fit, Training, pictures
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.prediction import CLASSES, TARGETS, check_pictures, posterior_check, predictive_check, prior_check
from fitted import PAIRS, digits, trained
from places import ROOT

RNG = np.random.default_rng(5)
M, S = torch.from_numpy(RNG.normal(70, 20, (30, 12))), torch.from_numpy(RNG.uniform(2, 5, (30, 12)))
X = torch.from_numpy(RNG.normal(size=(12, 2)))
Y = M.mean(0) + 6 * torch.from_numpy(RNG.normal(size=12))
LOGITS = torch.from_numpy(RNG.normal(size=(30, 40, 3)))
LABELS = torch.from_numpy(RNG.integers(0, 3, 40))


@functools.cache
def targets() -> dict[str, Any]:
    return {check.name: check for check in predictive_check([dist.Normal(m, s) for m, s in zip(M, S, strict=True)], X, Y)}


@functools.cache
def labels() -> dict[str, Any]:
    return {check.name: check for check in predictive_check([dist.Categorical(logits=each) for each in LOGITS], X, LABELS)}


def residuals() -> np.ndarray:
    """By the law of total variance, one row at a time."""
    sd = [np.sqrt(np.mean(S[:, i].numpy() ** 2) + np.var(M[:, i].numpy())) for i in range(12)]
    return (Y - M.mean(0)).numpy() / np.array(sd)


BY_SCIPY = {
    "mean": lambda z: np.mean(z),
    "sd": lambda z: np.sqrt(np.mean((z - z.mean()) ** 2)),
    "min": lambda z: sorted(z)[0],
    "max": lambda z: sorted(z)[-1],
    "spread over mean": lambda z: stats.pearsonr(z**2, M.mean(0).numpy())[0],
    "spread over input": lambda z: stats.pearsonr(z**2, X[:, 0].numpy())[0],
    "skewness": lambda z: stats.skew(z),
    "kurtosis": lambda z: stats.kurtosis(z, fisher=False),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_statistic_of_targets_is_scipys_of_residuals_standardised_by_the_mixture(name: str) -> None:
    assert targets()[name].observed == pytest.approx(BY_SCIPY[name](residuals()), rel=1e-12)


def test_statistics_of_labels_are_what_loops_count() -> None:
    probs = LOGITS.softmax(-1).mean(0).numpy()
    guess, y = probs.argmax(1), LABELS.numpy()
    for c in range(3):
        assert labels()[f"frequency[{c}]"].observed == sum(label == c for label in y) / 40
        hits = [guess[i] == c for i in range(40) if y[i] == c]
        assert labels()[f"accuracy[{c}]"].observed == sum(hits) / len(hits)
    confidence, accuracy = sum(max(row) for row in probs) / 40, sum(guess == y) / 40
    assert labels()["calibration in the large"].observed == pytest.approx(confidence - accuracy, rel=1e-12)
    surprise = np.mean([-np.log(probs[i, y[i]]) for i in range(40)]) - np.mean(stats.entropy(probs, axis=1))
    assert labels()["surprise"].observed == pytest.approx(surprise, rel=1e-12)
    assert {name.split("[")[0] for name in labels()} == set(CLASSES)


@pytest.mark.parametrize("found", [targets, labels])
def test_p_values_count_ties_on_both_sides_and_the_data_themselves(found: Any) -> None:
    for check in found().values():
        larger = sum(1 for value in check.replicated if not value < check.observed)
        smaller = sum(1 for value in check.replicated if not value > check.observed)
        assert len(check.replicated) == 30
        assert (check.upper, check.lower) == ((larger + 1) / 31, (smaller + 1) / 31)
        assert check.p_value == min(1, 2 * min(check.upper, check.lower))
        p = min(check.upper, check.lower)
        assert check.error == pytest.approx(2 * np.sqrt(p * (1 - p) / 30))


def test_the_monte_carlo_error_is_the_spread_of_p_values_over_seeds() -> None:
    outcomes = [dist.Normal(m, s) for m, s in zip(M[:1].expand(150, -1), S[:1].expand(150, -1), strict=True)]
    y = M[0] + 0.35 * S[0]
    checks = [predictive_check(outcomes, X, y, ["mean"], seed=seed)[0] for seed in range(40)]
    spread, said = np.std([check.p_value for check in checks]), np.mean([check.error for check in checks])
    low, high = np.sqrt(stats.chi2.ppf([FALSE_ALARMS / 2, 1 - FALSE_ALARMS / 2], 39) / 39)
    assert low < spread / said < high


def test_replicates_are_draws_of_the_likelihood_in_the_datas_units() -> None:
    outcomes = [dist.Normal(m, s) for m, s in zip(M, S, strict=True)]
    (check,) = predictive_check(outcomes, X, 3 * Y + 5, (), own={"at 4": lambda y, x: y[4]}, each=200, shift=5.0, scale=3.0)
    assert check.observed == float(3 * Y[4] + 5)
    by_draw = check.replicated.reshape(30, 200)
    assert_mean(by_draw.T, 3 * M[:, 4] + 5)
    assert_mean(((by_draw - (3 * M[:, 4:5] + 5).numpy()) ** 2).T, (3 * S[:, 4]) ** 2)


def test_a_discrepancy_sees_the_draw_that_its_replicate_is_of() -> None:
    outcomes = [dist.Normal(m, s) for m, s in zip(M, S, strict=True)]

    def chi2(y: Tensor, x: Any, parameters: Tensor) -> Tensor:
        return (((y - parameters[..., 0]) / parameters[..., 1]) ** 2).sum()

    (check,) = predictive_check(outcomes, X, 3 * Y + 5, (), discrepancies={"chi2": chi2}, each=50, shift=5.0, scale=3.0)
    by_hand = (((Y - M) / S) ** 2).sum(1).numpy()
    np.testing.assert_allclose(check.realised, by_hand.repeat(50), rtol=1e-10)
    assert_mean(check.replicated, 12.0)  # chi-squared of 12 numbers, whatever the draw
    assert check.observed == pytest.approx(by_hand.mean())
    assert check.upper == (1 + sum(check.replicated >= check.realised)) / 1501


# ------------------------------------------------------------------------------------------------- right and wrong models


@functools.cache
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("criticism_study", ROOT / "examples" / "benchmarks" / "criticism.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_right_model_of_targets_fails_at_the_nominal_rate() -> None:
    found = study().p_values("regression, right, noise grows", 40)
    assert set(found) == set(TARGETS)
    for values in found.values():  # 199 replicates: p-values are uniform on 2/200, 4/200, ..., 1
        assert_rate((values <= 0.05).sum(), 40, 0.05, looks=2 * len(found))
        assert stats.kstest(values, "uniform").pvalue > FALSE_ALARMS / (2 * len(found))


def test_a_right_model_of_labels_fails_at_most_at_the_nominal_rate() -> None:
    for values in study().p_values("classes, right", 30).values():  # ties make them conservative
        assert_at_most((values <= 0.05).sum(), 30, 0.05)


def test_a_model_that_takes_growing_noise_for_constant_fails_where_it_is_wrong() -> None:
    found = study().p_values("regression, WRONG: noise grows", 12)
    assert (found["spread over input"] <= 0.02).all()
    assert (found["mean"] > 0.05).sum() >= 8  # it is right about the mean


@functools.cache
def fitted(grows: bool) -> tuple[Fit, Data]:
    """A homoscedastic network of a line with noise whose sd is exp(1.2 x), or constant."""
    rng = np.random.default_rng(6)
    x = rng.uniform(-1, 1, (600, 2))
    y = 40 + 8 * x[:, 1] + 2 * np.exp(1.2 * x[:, 0] * grows) * rng.normal(size=600)
    data = from_arrays(x, y, validation=0.2, calibration=0.0)
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)), likelihood="normal")
    training = Training(epochs=12, batch_size=32, learning_rate=0.05)
    return cigl.infer(model, data, sparsity=0.3, drop_rate=0.05, delta_t=20, training=training), data


def test_a_homoscedastic_fit_of_heteroscedastic_data_fails_and_of_homoscedastic_data_passes() -> None:
    for grows in (True, False):
        fit, data = fitted(grows)
        (check,) = posterior_check(fit, data.test.x, data.in_units(data.test.y), ["spread over input"])
        assert len(check.replicated) == 200
        assert check.source == "posterior, redraw"
        assert (check.p_value < 0.011) == grows
        assert check.p_value >= 2 / 201
        assert not grows or check.observed > 0.15


def test_a_check_of_a_fit_is_the_check_of_its_outcomes() -> None:
    fit, data = fitted(True)
    x, y = data.test.x, data.in_units(data.test.y)
    found = posterior_check(fit, x, y, replicates=20, seed=3)
    outcomes = fit.outcomes(x, "redraw", num_samples=20, seed=3)
    again = predictive_check(outcomes, x, y, shift=data.target_shift, scale=data.target_scale, seed=3)
    for one, two in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.replicated, two.replicated)
        assert one.p_value == two.p_value


@pytest.mark.parametrize(("how", "count"), [("redraw", 10), ("pairs", 12), ("ticket", 10)])
def test_few_draws_are_taken_in_turn_equally_often(how: Any, count: int) -> None:
    fit, _ = trained("mlp")
    x, y = digits().validation.x[:50], digits().validation.y[:50]
    state = torch.get_rng_state()
    found = posterior_check(fit, x, y, ["frequency"], how=how, replicates=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert PAIRS == 4
    assert [len(check.replicated) for check in found] == [count] * 10
    assert found[3].observed == float((y == 3).double().mean())


# --------------------------------------------------------------------------------------------------------------- the prior


def test_prior_replicates_are_of_the_prior_dense_or_on_a_topology() -> None:
    fit, data = fitted(True)
    net = BayesianNetwork(nn.Sequential(nn.Linear(2, 1, bias=False)), prior_scale=1.5, likelihood=Unit())
    topology = fit.topology._replace(positions=torch.tensor([1]), counts=(1,), sizes=(2,))
    x, y = torch.tensor([[2.0, 3.0]]), torch.tensor([1.0])
    own = {"it": lambda y, x: y[0]}
    (dense,) = prior_check(net, x, y, (), own=own, replicates=400, shift=10.0, scale=2.0)
    (sparse,) = prior_check(net, x, y, (), own=own, replicates=400, topology=topology)
    assert_mean(dense.replicated, 10.0)
    assert_mean((dense.replicated - 10) ** 2, 4 * (1.5**2 * (4 + 9) + 1))
    assert_mean(sparse.replicated**2, 1.5**2 * 9 + 1)
    assert (dense.source, sparse.source) == ("prior, dense", "prior, 1 of 2 weights")
    found = prior_check(fit.model, data.test.x, data.in_units(data.test.y), topology=fit.topology, replicates=3)
    assert [check.name for check in found] == list(TARGETS)


class Unit(nn.Module):
    """N(output, 1)."""

    def forward(self, output: Tensor) -> Any:
        return dist.Normal(output.squeeze(-1), torch.ones((), dtype=output.dtype))


# ---------------------------------------------------------------------------------------------------------- and its edges


def test_a_statistic_without_a_value_is_a_tie() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2]], dtype=torch.float64)
    found = {c.name: c for c in predictive_check([dist.Categorical(probs)] * 20, None, torch.tensor([0, 0]))}
    assert np.isnan(found["accuracy[1]"].observed)
    assert found["accuracy[1]"].p_value == 1.0
    assert np.isnan(found["accuracy[1]"].replicated).any()


def test_labels_of_every_pixel_and_targets_of_every_column_are_checked_together() -> None:
    outcomes = [dist.Bernoulli(logits=LOGITS[s, :6, :2]) for s in range(5)]
    mask = (LOGITS[7, :6, :2] > 0).double()
    (check, _) = predictive_check(outcomes, None, mask, ["frequency"])
    assert check.observed == float((mask == 0).double().mean())
    two = [dist.Normal(LOGITS[s, :6, :2], 1.0).to_event(1) for s in range(9)]
    y = LOGITS[8, :6, :2]
    (check,) = predictive_check(two, X[:6], 2 * y + torch.tensor([5.0, 1.0]), ["mean"], shift=(5.0, 1.0), scale=(2.0, 2.0))
    mean, sd = LOGITS[:9, :6, :2].mean(0), (1 + LOGITS[:9, :6, :2].var(0, correction=0)).sqrt()
    assert check.observed == pytest.approx(float(((y - mean) / sd).mean()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"statistics": ["median"]}, "expected statistics of mean, sd, .* got 'median': give your own by own="),
        ({"y": Y[:5]}, r"expected targets of shape \(12,\), as the likelihood has, got \(5,\)"),
        ({"outcomes": []}, "expected one or more draws of the network, got none"),
        ({"each": 0}, "expected each of at least 1, got 0"),
        ({"outcomes": [dist.Cauchy(M[0], S[0])]}, "expected a likelihood with a finite mean and sd, got none: statistics="),
        ({"x": None, "statistics": ["spread over input"]}, "expected inputs that are one tensor"),
        ({"outcomes": [dist.Poisson(S[0])], "y": -Y}, "expected targets in the support of the Poisson likelihood"),
        ({"outcomes": [dist.Categorical(logits=LOGITS[0])], "y": LOGITS[0].softmax(-1)}, "expected whole labels"),
    ],
)
def test_what_cannot_be_checked_gets_a_sentence(change: dict[str, Any], sentence: str) -> None:
    options = {"outcomes": [dist.Normal(M[0], S[0])], "x": X, "y": Y, **change}
    with pytest.raises(ValueError, match=sentence):
        predictive_check(**options)


def test_a_fit_and_a_prior_want_replicates_and_a_topology_of_their_own() -> None:
    fit, data = fitted(True)
    for function in (lambda: posterior_check(fit, data.test.x, data.test.y, replicates=0),
                     lambda: prior_check(fit.model, data.test.x, data.test.y, replicates=0)):  # fmt: skip
        with pytest.raises(ValueError, match="expected replicates of at least 1, got 0"):
            function()
    with pytest.raises(ValueError, match=r"expected a topology over layers of \(32, 16\) weights"):
        prior_check(fit.model, data.test.x, data.test.y, topology=fit.topology._replace(sizes=(4, 4)))


def test_checks_are_drawn_each_with_its_line() -> None:
    outcomes = [dist.Normal(m, s) for m, s in zip(M, S, strict=True)]
    checks = predictive_check(outcomes, X, Y, ["mean", "sd"], discrepancies={"d": lambda y, x, p: (y - p[..., 0]).mean()})
    panels = check_pictures(checks)
    figure = pictures.replicated(panels, columns=2)
    first, _, last, empty = figure.axes
    assert first.lines[0].get_xdata() == [checks[0].observed] * 2
    assert f"p = {checks[0].p_value:.3g}" in first.get_title()
    assert sum(patch.get_height() for patch in first.patches) == 30
    assert last.lines[0].get_xdata() == [0, 0]
    np.testing.assert_array_equal(panels[2].replicated, checks[2].replicated - checks[2].realised)
    assert not empty.axison
    with pytest.raises(ValueError, match="expected one or more checks to draw, got none"):
        pictures.replicated(())
