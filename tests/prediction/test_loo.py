"""Claims about espalier.prediction.loo: leave-one-out is that of a conjugate model, and refused where it would mean nothing."""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize, stats
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from arviz_base import from_dict

from budget import FALSE_ALARMS
from espalier import BayesianNetwork, Fit, Training
from espalier.inference import mean_field
from espalier.prediction import Mixture, compare_loo, leave_one_out, loo_pit, psis_loo, to_datatree
from fitted import digits, regression, trained

RNG = np.random.default_rng(3)
N, TAU, SIGMA, DRAWS = 25, 2.0, 1.5, 4000
Y = 1.0 + SIGMA * RNG.normal(size=N)


def posterior(y: np.ndarray, tau: float = TAU, sigma: float = SIGMA) -> tuple[float, float]:
    """Mean and variance of theta ~ N(0, tau^2) given y ~ N(theta, sigma^2)."""
    precision = 1 / tau**2 + len(y) / sigma**2
    return y.sum() / sigma**2 / precision, 1 / precision


def exact(y: np.ndarray, tau: float = TAU, sigma: float = SIGMA) -> list[Any]:
    """The predictive law of every row given the others."""
    laws = []
    for i in range(len(y)):
        mean, var = posterior(np.delete(y, i), tau, sigma)
        laws.append(stats.norm(mean, np.sqrt(var + sigma**2)))
    return laws


def tree(y: np.ndarray, tau: float = TAU, sigma: float = SIGMA, draws: int = DRAWS, seed: int = 0) -> Any:
    """As `to_datatree` makes it of as many normals, faster."""
    (mean, var), rng = posterior(y, tau, sigma), np.random.default_rng(seed)
    thetas = rng.normal(mean, np.sqrt(var), (1, draws, 1))
    groups = {
        "posterior_predictive": {"y": rng.normal(thetas, sigma, (1, draws, len(y)))},
        "log_likelihood": {"y": stats.norm(thetas, sigma).logpdf(y)},
        "observed_data": {"y": y},
    }
    return from_dict(groups, dims={"y": ["observation"]})


@functools.cache
def several() -> tuple[list[Any], Any]:
    """Twelve independent LOOs of the same rows."""
    trees = [tree(Y, draws=1000, seed=seed) for seed in range(12)]
    return [psis_loo(each) for each in trees], trees


def test_the_score_of_every_row_is_the_conjugate_models() -> None:
    found, _ = several()
    truth = np.array([law.logpdf(y) for law, y in zip(exact(Y), Y, strict=True)])
    pointwise = np.stack([one.pointwise for one in found])
    error = pointwise.std(0, ddof=1) / np.sqrt(12)
    limit = stats.t.isf(FALSE_ALARMS / (2 * N), 11)
    assert (np.abs(pointwise.mean(0) - truth) <= limit * error + 1e-12).all()
    assert (limit * error).max() < 0.1  # and the draws are many enough to tell it from the fit's own score
    mean, var = posterior(Y)
    inside = stats.norm(mean, np.sqrt(var + SIGMA**2)).logpdf(Y)
    assert found[0].elpd == pytest.approx(truth.sum(), abs=0.05)
    assert inside.sum() - truth.sum() > 0.5
    assert found[0].p == pytest.approx(inside.sum() - truth.sum(), abs=0.05)
    assert found[0].se == pytest.approx(np.sqrt(N) * truth.std(), rel=0.05)
    assert (found[0].bad, found[0].num_draws, found[0].num_rows, found[0].note) == (0, 1000, N, "")


def test_pit_of_a_row_is_the_conjugate_models() -> None:
    _, trees = several()
    truth = np.array([law.cdf(y) for law, y in zip(exact(Y), Y, strict=True)])
    pits = np.stack([loo_pit(each) for each in trees])
    error = pits.std(0, ddof=1) / np.sqrt(12)
    assert (np.abs(pits.mean(0) - truth) <= stats.t.isf(FALSE_ALARMS / (2 * N), 11) * error + 1e-12).all()


@pytest.mark.parametrize(("draws", "most", "said"), [(100, 0.5, "0.5"), (1000, 2 / 3, "0.667"), (4000, 0.7, "0.7")])
def test_a_row_that_the_posterior_hangs_on_has_a_large_k_and_the_note_says_so(draws: int, most: float, said: str) -> None:
    """Larger than min(1 - 1 / log10 S, .7) for S draws (Vehtari et al. 2024)."""
    y = np.append(Y, 30.0)
    found = psis_loo(tree(y, tau=20.0, sigma=0.5, draws=draws))
    assert found.bad >= 1
    assert found.pareto_k[-1] > most
    assert found.bad == (found.pareto_k > most).sum()
    assert f"{found.bad} of 26 rows have Pareto k above {said}: their scores are not to be trusted; score held-out" in found.note


def test_a_comparison_is_of_paired_rows_best_first() -> None:
    good, narrow = (psis_loo(tree(Y, sigma=sigma, draws=1000)) for sigma in (SIGMA, 0.6))
    best, other = compare_loo({"narrow": narrow, "good": good})
    truth = [np.array([law.logpdf(y) for law, y in zip(exact(Y, sigma=s), Y, strict=True)]) for s in (SIGMA, 0.6)]
    gap = truth[0] - truth[1]
    assert (best.name, other.name) == ("good", "narrow")
    assert (best.difference, best.error) == (0, 0)
    assert other.difference == pytest.approx(gap.sum(), rel=0.03)
    assert other.error == pytest.approx(np.sqrt(N) * gap.std(), rel=0.06)
    assert best.elpd - other.elpd == pytest.approx(other.difference, rel=1e-9)
    assert best.weight + other.weight == pytest.approx(1)
    mixed = optimize.minimize_scalar(lambda w: -np.log(w * np.exp(truth[0]) + (1 - w) * np.exp(truth[1])).sum(), bounds=(0, 1))
    assert best.weight == pytest.approx(mixed.x, abs=0.02)


def test_chains_count_by_their_effective_draws() -> None:
    one = tree(Y, draws=400)
    repeated = one["log_likelihood"]["y"].to_numpy().reshape(4, 100, N).repeat(5, axis=1)  # stands still for five
    both = {"log_likelihood": {"y": repeated}, "observed_data": {"y": Y}}
    found = psis_loo(from_dict(both, dims={"y": ["observation"]}))
    assert found.num_draws == 2000
    assert found.elpd == pytest.approx(psis_loo(one).elpd, abs=0.05)


# ------------------------------------------------------------------------------------------------------------ of a fit


def test_masks_of_one_optimum_are_said_to_be_that_and_stand_beside_the_held_out_score() -> None:
    data, fit = regression()
    found = leave_one_out(fit, data, num_samples=120)
    mixture = fit.mixture(data.train.x, "redraw", num_samples=120)
    assert found.pointwise.shape == data.train.y.shape
    assert found.elpd <= float(mixture.log_prob(data.in_units(data.train.y)).sum())
    held = fit.mixture(data.validation.x, "redraw", num_samples=120).log_prob(data.in_units(data.validation.y)).mean()
    assert found.held_out == pytest.approx(float(held))
    per_row = found.elpd / len(data.train.y)
    said = f"masks of one optimum.* LOO gives {per_row:.3f} nats a row; held-out rows have {float(held):.3f}"
    assert re.search(said, found.note)
    assert "espalier compare" in found.note


@functools.cache
def gaussian() -> Fit:
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), likelihood="normal")
    training = Training(epochs=4, batch_size=32, learning_rate=0.02)
    return mean_field.infer(model, regression()[0], sparsity=0.3, delta_t=10, training=training)


def test_a_gaussian_guide_is_said_to_be_variational() -> None:
    data, _ = regression()
    without = data._replace(validation=data.validation._replace(y=data.validation.y[:0]))
    note = leave_one_out(gaussian(), without, num_samples=100).note
    assert "draws are of a variational posterior; biases and noise are points" in note
    assert "no validation rows say otherwise" in note


def test_leave_one_out_of_a_fit_is_refused_where_it_would_mean_nothing() -> None:
    data, fit = regression()
    for how, count in (("ticket", 1), ("mean", 1), ("pairs", len(fit.pairs.values))):
        with pytest.raises(ValueError, match=f"expected 100 or more draws .* got {count} of '{how}': .* K-fold, as `esp"):
            leave_one_out(fit, data, how)
    with pytest.raises(ValueError, match="got 99 of 'redraw'"):
        leave_one_out(fit, data, num_samples=99)
    other = data._replace(train=data.test, hashes={**data.hashes, "train": data.hashes["test"]})
    with pytest.raises(ValueError, match="expected the rows that the fit was trained on, got others: .* held out: score"):
        leave_one_out(fit, other)
    with pytest.raises(ValueError, match="expected the rows that the fit was trained on"):
        leave_one_out(fit, data._replace(train=data.test))
    rigl, _ = trained("mlp-rigl")
    with pytest.raises(ValueError, match="expected draws of a posterior, got 1000 equal networks .* K-fold"):
        leave_one_out(rigl, digits())


def test_a_tree_is_refused_where_it_holds_no_posterior() -> None:
    y, few = torch.zeros(5), [dist.Normal(torch.full((5,), 0.1 * s), 1.0) for s in range(100)]
    with pytest.raises(ValueError, match="expected 100 or more draws for leave-one-out, got 99: .* K-fold"):
        psis_loo(to_datatree(Mixture(few[1:]), y))
    with pytest.raises(ValueError, match="expected draws of a posterior, got 100 equal networks"):
        psis_loo(to_datatree(Mixture(few[:1] * 100), y))
    labels = torch.tensor([0, 1, 0])
    with np.errstate(divide="ignore"):
        logs = np.log(np.eye(100, 3)[None] + np.array([1.0, 1.0, 0.0]))
    never = {"log_likelihood": {"y": logs}, "observed_data": {"y": y[:3].numpy()}}
    with pytest.raises(ValueError, match="expected a likelihood above 0 of every row by every draw, got 0 or NaN in row 2"):
        psis_loo(from_dict(never, dims={"y": ["observation"]}))
    sure = [dist.Categorical(logits=torch.tensor([[0.0, 0.01 * s]] * 3)) for s in range(100)]
    with pytest.raises(ValueError, match="expected targets that have an order, got class labels"):
        loo_pit(to_datatree(Mixture(sure), labels))
    two = [dist.Normal(torch.full((5, 2), 0.1 * s), 1.0).to_event(1) for s in range(100)]
    joint = to_datatree(Mixture(two), torch.zeros(5, 2))
    assert psis_loo(joint).num_rows == 5
    with pytest.raises(ValueError, match="expected one target a row, got several"):
        loo_pit(joint)


def test_a_comparison_wants_two_fits_of_the_same_rows() -> None:
    one, other = psis_loo(tree(Y, draws=200)), psis_loo(tree(Y + 1, draws=200))
    with pytest.raises(ValueError, match="expected two or more fits to compare, got 1"):
        compare_loo({"one": one})
    with pytest.raises(ValueError, match="expected LOO scores of the same rows, but those of 'one' and 'other' have other"):
        compare_loo({"one": one, "other": other})


def test_a_tree_that_names_its_outcomes_otherwise_is_told_what_to_rename() -> None:
    mine = from_dict({"log_likelihood": {"obs": np.zeros((1, 200, 5))}, "observed_data": {"obs": np.zeros(5)}})
    with pytest.raises(ValueError, match="expected y in the tree's log_likelihood, .* got obs: rename yours"):
        psis_loo(mine)
    with pytest.raises(ValueError, match="expected y in the tree's observed_data, .* got no such group"):
        psis_loo(from_dict({"log_likelihood": {"y": np.zeros((1, 200, 5))}}))
