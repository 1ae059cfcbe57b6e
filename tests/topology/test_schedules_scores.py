"""Drop scores of weights with a standard deviation: signal to noise, against quadrature and draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from budget import assert_mean
from espalier.contracts import Evidence
from espalier.guides.masked import MaskedGuide
from espalier.topology import schedules
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
    score = schedules.snr_of_magnitude(evidence_of(mu, sigma))
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-7)
    single = schedules.snr_of_magnitude(evidence_of(mu.float(), sigma.float()))
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-4)
    at_zero = math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi)
    np.testing.assert_allclose(score[:4].numpy(), at_zero, rtol=1e-12)


def test_snr_of_magnitude_is_that_of_draws() -> None:
    mu, sigma = torch.tensor([0.4, -0.9]), torch.tensor([0.7, 0.5])
    w = (mu + sigma * torch.randn(40000, 2, generator=torch.Generator().manual_seed(0))).abs()
    score = schedules.snr_of_magnitude(evidence_of(mu, sigma))
    blocks = w.reshape(40, 1000, 2)
    assert_mean(blocks.mean(1) / blocks.std(1), score * (1 + 0.25 / 1000))  # a ratio's first-order bias is within the errors


def test_scores_far_from_zero_are_finite_and_ranked() -> None:
    mu, sigma = torch.logspace(-3, 5, 60), torch.full((60,), 0.1)
    score = schedules.snr_of_magnitude(evidence_of(mu, sigma))
    assert torch.isfinite(score).all()
    assert (score.diff() >= 0).all()
    far = mu / sigma > 10
    torch.testing.assert_close(score[far], (mu / sigma)[far], rtol=1e-3, atol=0)
    close(schedules.snr(evidence_of(-mu, sigma)), mu / sigma)


def test_both_ratios_rank_alike() -> None:
    """E|w| / sd|w| is an increasing function of |mu| / sigma alone, so a layer drops the same weights by either."""
    stream = torch.Generator().manual_seed(0)
    mu, sigma = torch.randn(2000, generator=stream), torch.rand(2000, generator=stream) + 0.05
    evidence = evidence_of(mu, sigma)
    assert torch.equal(schedules.snr(evidence).argsort(), schedules.snr_of_magnitude(evidence).argsort())
    assert not torch.equal(schedules.snr(evidence).argsort(), schedules.magnitude(evidence).argsort())


@pytest.mark.parametrize("score", [schedules.snr, schedules.snr_of_magnitude])
def test_a_score_that_needs_sigma_is_refused_without_it(score: schedules.DropScore) -> None:
    with pytest.raises(ValueError, match="expected a guide that learns standard deviations for this score: use mean_field"):
        score(evidence_of(torch.ones(3), None))
    model, _ = case()
    guide = MaskedGuide(model, initial(model.shapes, 0.5))
    loop = Loop(model, guide, schedules.rigl(1, 10, 0.3, score), rates.constant(0.1))
    with pytest.raises(ValueError, match="expected a guide that learns standard deviations"):
        loop.step(*batch_of(0))
