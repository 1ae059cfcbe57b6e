"""Bayes factors of leaving weights out: against quadrature, a linear model's evidences, and moves that accept by them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from digits import digits, mlp
from espalier import shelf
from espalier.certificates import pruning
from espalier.contracts import Evidence, Topology
from espalier.distributions.priors import MixtureNormal
from espalier.prediction.fit import Fit
from espalier.topology import evidence, schedules
from espalier.topology.masks import candidates, drop_and_grow
from espalier.training.options import Training
from espalier.training.watch import Watch

pytestmark = pytest.mark.usefixtures("float64")
MEANS, SCALES = torch.tensor([[0.4, -0.03, 1.2], [0.2, 0.05, 0.9]], dtype=torch.float64)


def ratio(mean: float, scale: float, density: Any, ends: tuple[float, float] = (-8, 8)) -> float:
    """log of the integral of q(w) density(w), w by quadrature."""
    return math.log(integrate.quad(lambda w: stats.norm.pdf(w, mean, scale) * density(w), *ends, limit=400, points=[0, mean])[0])


@pytest.mark.parametrize(("reduced", "centre"), [(0.3, 0.0), (0.05, 0.2), (1.4, -0.1)])
def test_a_reduced_priors_evidence_is_the_integral(reduced: float, centre: float) -> None:
    found = evidence.log_reduction(MEANS, SCALES, 1.5, reduced, centre)
    for place, (mean, scale) in enumerate(zip(MEANS.tolist(), SCALES.tolist(), strict=True)):
        exact = ratio(mean, scale, lambda w: stats.norm.pdf(w, centre, reduced) / stats.norm.pdf(w, 0, 1.5))
        assert float(found[place]) == pytest.approx(exact, rel=1e-6)


def test_the_bayes_factor_is_the_limit_of_a_narrow_prior_under_either_prior() -> None:
    normal = evidence.log_bayes_factor(MEANS, SCALES, evidence.normal_at_zero(1.5))
    assert torch.allclose(normal, evidence.log_reduction(MEANS, SCALES, 1.5, 1e-6), atol=1e-8)
    assert torch.allclose(normal, (1.5 / SCALES).log() - (MEANS / SCALES).square() / 2, rtol=1e-12)
    mixture = MixtureNormal(0.2, 0.8, 0.1, 3)
    found = evidence.log_bayes_factor(MEANS, SCALES, float(mixture.log_density(torch.zeros(()))))
    for place, (mean, scale) in enumerate(zip(MEANS.tolist(), SCALES.tolist(), strict=True)):

        def density(w: float) -> float:
            prior = 0.2 * stats.norm.pdf(w, 0, 0.8) + 0.8 * stats.norm.pdf(w, 0, 0.1)
            return float(stats.norm.pdf(w, 0, 1e-4) / prior)

        assert float(found[place]) == pytest.approx(ratio(mean, scale, density, (-1e-3, 1e-3)), abs=1e-4)


def test_a_prior_that_would_leave_no_posterior_has_no_evidence() -> None:
    assert float(evidence.log_reduction(torch.tensor(0.3), torch.tensor(2.0), 1.0, 3.0)) == -math.inf


def test_of_an_orthogonal_linear_model_it_is_the_ratio_of_exact_evidences() -> None:
    """y ~ N(x w, 1), x'x diagonal: the posterior factorises, and leaving weights out is another Gaussian's log-density."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(40, 5)))[0] * np.array([3.0, 5.0, 2.0, 4.0, 6.0])
    y = x @ np.array([0.0, 0.5, 0.0, -0.2, 0.05]) + rng.normal(size=40)
    s = 0.7

    def log_evidence(kept: list[int]) -> float:
        return float(stats.multivariate_normal.logpdf(y, np.zeros(40), np.eye(40) + s**2 * x[:, kept] @ x[:, kept].T))

    precision = np.diag(x.T @ x) + s**-2
    mean, scale = torch.tensor((x.T @ y) / precision), torch.tensor(precision**-0.5)
    factors = evidence.log_bayes_factor(mean, scale, evidence.normal_at_zero(s))
    for out in range(5):
        kept = [place for place in range(5) if place != out]
        assert float(factors[out]) == pytest.approx(log_evidence(kept) - log_evidence([0, 1, 2, 3, 4]), rel=1e-9)
    found, order = evidence.curve(factors), factors.sort(descending=True).indices.tolist()
    exact = [log_evidence(sorted(order[count:])) - log_evidence([0, 1, 2, 3, 4]) for count in range(6)]
    assert found.tolist() == pytest.approx(exact, rel=1e-9)
    assert int(found.argmax()) == int((factors > 0).sum())
    block = torch.tensor([0, 1, 0, 1, 1])
    blocks = evidence.of_blocks(factors, block, 2)
    assert float(blocks[0]) == pytest.approx(log_evidence([1, 3, 4]) - log_evidence([0, 1, 2, 3, 4]), rel=1e-9)


def test_a_move_drops_none_that_is_not_accepted() -> None:
    topology = Topology(torch.tensor([0, 2, 3, 5, 7, 8, 9]), (4, 3), (6, 6))
    score = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.5, 0.1, 0.4])
    grow = torch.arange(12.0)
    assert candidates(topology, score, 0.5).tolist() == [True, False, True, False, False, True, False]
    droppable = torch.tensor([False, False, True, False, False, False, False])
    move = drop_and_grow(topology, score, grow, 0.5, droppable)
    assert move.topology.counts == topology.counts
    assert sorted({0, 2, 3, 5, 7, 8, 9} - set(move.topology.positions.tolist())) == [3]
    assert move.num_grown == 1


def evidence_of(**more: Any) -> Evidence:
    values, scales = torch.tensor([0.02, 0.5, -0.3]), torch.tensor([0.1, 0.1, 0.4])
    return Evidence(1, values, torch.zeros(6), torch.Generator(), scales, **more)


def test_favoured_are_those_whose_bayes_factor_is_above_the_threshold() -> None:
    """By hand, prior sd .6: log 6 - .02 = 1.77, log 6 - 12.5 = -10.7, log 1.5 - .28 = .12."""
    dropped = torch.tensor([True, True, True])
    assert schedules.favoured(0.6)(evidence_of(), dropped).tolist() == [True, False, True]
    assert schedules.favoured(0.6, 1.0)(evidence_of(), dropped).tolist() == [True, False, False]
    assert schedules.favoured(0.6)(evidence_of(), torch.tensor([False, True, True])).tolist() == [False, False, True]


def test_likelier_is_all_or_none_by_the_joint_density() -> None:
    """Without the third, sum w^2 / 2s^2 falls by .09 / .72 = .125; the loss of 50 examples may grow by that, .0025 each."""
    dropped = torch.tensor([False, False, True])
    for growth, expected in ((0.002, True), (0.003, False)):
        loss = {(True, True, True): 0.7, (True, True, False): 0.7 + growth}
        told = evidence_of(loss_with=lambda kept, loss=loss: loss[tuple(kept.tolist())])
        assert bool(schedules.likelier(0.6, 50)(told, dropped).any()) == expected
        assert not schedules.likelier(0.6, 50, 1.0)(told, dropped).any()


class Moves(Watch):
    def __init__(self) -> None:
        self.grown: list[int] = []

    def on_step(self, info: Any) -> None:
        if info.moved:
            self.grown.append(info.grown)


def trained(watch: Watch | None = None, **options: Any) -> Fit:
    training = Training(epochs=3, batch_size=32, learning_rate=0.1, device="cpu")
    options = {"sparsity": 0.5, "delta_t": 7, "freeze": 0.8, "noise_scale": 0.05, "average_from": 0.9, **options}
    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float32)
        return shelf.load("inference", "mean_field")(mlp(), digits(), training=training, seed=1, watch=watch, **options)


def test_a_training_exchanges_as_many_as_are_accepted() -> None:
    every, fewer, none, one = Moves(), Moves(), Moves(), Moves()
    trained(every)
    trained(fewer, accept="bayes-factor", log_threshold=4.6)
    trained(none, accept="bayes-factor", log_threshold=1e6)
    trained(one, accept="joint-density", log_threshold=-1e9)
    assert len(every.grown) == len(fewer.grown) == 3
    assert 0 < sum(fewer.grown) < sum(every.grown)
    assert none.grown == [0, 0, 0]
    assert one.grown == every.grown


def test_a_family_is_pruned_by_what_the_data_have_against_it() -> None:
    fit = trained()
    base = pruning.Frozen.of(fit, "mean")
    assert fit.pairs.scales is not None
    factors = evidence.log_bayes_factor(
        fit.pairs.values[-1].double(), fit.pairs.scales[-1].double(), evidence.normal_at_zero(fit.record["prior_scale"])
    )
    weights = pruning.family(fit, base, "bayes-factor")
    kept = set(weights.at(0.4).topology.positions.tolist())
    gone = factors.sort(descending=True).indices[: round(0.4 * len(factors))]
    assert kept == set(fit.topology.positions.tolist()) - set(fit.topology.positions[gone].tolist())
    units = pruning.family(fit, base, "bayes-factor", "channels")
    first = fit.topology.counts[0]
    unit = fit.topology.positions[:first] // 64
    assert torch.allclose(units.score, -evidence.of_blocks(factors[:first], unit, 30))


def test_without_standard_deviations_there_are_no_bayes_factors() -> None:
    fit = shelf.load("inference", "rigl")(mlp(), digits(), delta_t=5, training=Training(epochs=1, device="cpu"))
    with pytest.raises(ValueError, match="expected a fit with learned standard deviations to prune by bayes-factor"):
        pruning.family(fit, pruning.Frozen.of(fit), "bayes-factor")
