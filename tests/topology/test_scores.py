"""Drop scores of weights with a standard deviation, against quadrature and draws."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from budget import assert_mean
from espalier.contracts import Evidence
from espalier.guides.masked import MaskedGuide
from espalier.topology import schedules, scores
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop
from rounding import close
from tiny import batch_of, case

pytestmark = pytest.mark.usefixtures("float64")


def evidence_of(mu: Tensor, sigma: Tensor | None) -> Evidence:
    return Evidence(1, mu, torch.zeros(len(mu)), torch.Generator(), sigma)


GRID = [(mu, sigma) for mu in (0.0, 0.013, -0.3, 1.0, -4.0) for sigma in (0.01, 0.2, 1.0, 3.0)]


def test_snr_of_magnitude_is_mean_over_deviation_of_the_folded_normal() -> None:
    expected = []
    for mu, sigma in GRID:
        density = stats.norm(mu, sigma).pdf
        ends = sorted({mu - 12 * sigma, 0.0, mu + 12 * sigma})
        parts = list(itertools.pairwise(ends))
        first, second = (
            sum(integrate.quad(lambda w, k=k, d=density: abs(w) ** k * d(w), *part, epsabs=0, epsrel=1e-12)[0] for part in parts)
            for k in (1, 2)
        )
        expected.append(first / math.sqrt(second - first**2))
    mu, sigma = (torch.tensor(column) for column in zip(*GRID, strict=True))
    score = scores.snr_of_magnitude(evidence_of(mu, sigma))
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-7)
    single = scores.snr_of_magnitude(evidence_of(mu.float(), sigma.float()))
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-4)
    at_zero = math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi)
    np.testing.assert_allclose(score[:4].numpy(), at_zero, rtol=1e-12)


def expected(function: Callable[[float], float], mu: float, sigma: float, power: int) -> float:
    """E f(|w|)^power, w ~ N(mu, sigma^2), by quadrature."""
    density, reach = stats.norm(mu, sigma).pdf, 14 * sigma + 4 * sigma**2
    ends = itertools.pairwise(sorted({mu - reach, 0.0, mu + reach}))

    def integrand(w: float) -> float:
        return function(abs(w)) ** power * density(w)

    return sum(integrate.quad(integrand, *part, epsabs=0, epsrel=1e-12, limit=200)[0] for part in ends)


def test_means_of_magnitude_and_of_its_exponential_are_those_of_quadrature() -> None:
    mu, sigma = (torch.tensor(column) for column in zip(*GRID, strict=True))
    evidence = evidence_of(mu, sigma)
    mean = [expected(lambda w: w, *point, 1) for point in GRID]
    np.testing.assert_allclose(scores.mean_of_magnitude(evidence).numpy(), mean, rtol=1e-9)
    first, second = ([expected(math.exp, *point, power) for point in GRID] for power in (1, 2))
    np.testing.assert_allclose(scores.mean_of_exponential(evidence).exp().numpy(), first, rtol=1e-9)
    ratio = [one / math.sqrt(two - one**2) for one, two in zip(first, second, strict=True)]
    np.testing.assert_allclose(scores.snr_of_exponential(evidence).numpy(), ratio, rtol=1e-6)


def test_the_bayes_factor_is_the_ratio_of_densities_at_zero() -> None:
    """Savage and Dickey: BF(w = 0) = q(0) / p(0), q the posterior and p the prior."""
    prior = 0.7
    mu, sigma = (torch.tensor(column) for column in zip(*GRID, strict=True))
    log_factor = stats.norm(mu.numpy(), sigma.numpy()).logpdf(0) - stats.norm(0, prior).logpdf(0)
    np.testing.assert_allclose(scores.bayes_factor(evidence_of(mu, sigma)).numpy(), math.log(prior) - log_factor, rtol=1e-10)


def test_no_two_criteria_are_one_but_the_two_ratios() -> None:
    """Both grow with |mu| / sigma alone."""
    stream = torch.Generator().manual_seed(0)
    evidence = evidence_of(torch.randn(500, generator=stream), torch.rand(500, generator=stream) + 0.2)
    ranks = {name: tuple(score(evidence).argsort().tolist()) for name, score in scores.DROP_SCORES.items()}
    assert len(set(ranks.values())) == len(ranks) - 1
    assert ranks["snr"] == ranks["snr-magnitude"]


@pytest.mark.parametrize("score", [scores.mean_of_exponential, scores.snr_of_exponential, scores.bayes_factor])
def test_scores_of_any_size_are_finite(score: scores.DropScore) -> None:
    mu, sigma = torch.tensor([0.0, 1e-9, 3e2, -2e4]), torch.tensor([1e-5, 1e-3, 0.1, 5.0])
    assert torch.isfinite(score(evidence_of(mu, sigma))).all()


def test_snr_of_magnitude_is_that_of_draws() -> None:
    mu, sigma = torch.tensor([0.4, -0.9]), torch.tensor([0.7, 0.5])
    w = (mu + sigma * torch.randn(40000, 2, generator=torch.Generator().manual_seed(0))).abs()
    score = scores.snr_of_magnitude(evidence_of(mu, sigma))
    blocks = w.reshape(40, 1000, 2)
    assert_mean(blocks.mean(1) / blocks.std(1), score * (1 + 0.25 / 1000))  # a ratio's first-order bias is within the errors


def test_scores_far_from_zero_are_finite_and_ranked() -> None:
    mu, sigma = torch.logspace(-3, 5, 60), torch.full((60,), 0.1)
    score = scores.snr_of_magnitude(evidence_of(mu, sigma))
    assert torch.isfinite(score).all()
    assert (score.diff() >= 0).all()
    far = mu / sigma > 10
    torch.testing.assert_close(score[far], (mu / sigma)[far], rtol=1e-3, atol=0)
    close(scores.snr(evidence_of(-mu, sigma)), mu / sigma)


def test_both_ratios_rank_alike() -> None:
    """E|w| / sd|w| is an increasing function of |mu| / sigma alone, so a layer drops the same weights by either."""
    stream = torch.Generator().manual_seed(0)
    mu, sigma = torch.randn(2000, generator=stream), torch.rand(2000, generator=stream) + 0.05
    evidence = evidence_of(mu, sigma)
    assert torch.equal(scores.snr(evidence).argsort(), scores.snr_of_magnitude(evidence).argsort())
    assert not torch.equal(scores.snr(evidence).argsort(), scores.magnitude(evidence).argsort())


@pytest.mark.parametrize("score", [score for name, score in scores.DROP_SCORES.items() if name != "magnitude"])
def test_a_score_that_needs_sigma_is_refused_without_it(score: scores.DropScore) -> None:
    with pytest.raises(ValueError, match="expected a guide that learns standard deviations for this score: use mean_field"):
        score(evidence_of(torch.ones(3), None))
    model, _ = case()
    guide = MaskedGuide(model, initial(model.shapes, 0.5))
    loop = Loop(model, guide, schedules.rigl(1, 10, 0.3, score), rates.constant(0.1))
    with pytest.raises(ValueError, match="expected a guide that learns standard deviations"):
        loop.step(*batch_of(0))
