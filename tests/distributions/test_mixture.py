"""The prior of slab and spike: its density, threshold and KL against torch's mixtures, quadrature and draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence

from espalier.distributions.gaussian import GaussianWeights
from espalier.distributions.masked import MaskedWeights
from espalier.distributions.priors import MixtureNormal
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology.masks import initial
from espalier.training import objective

pytestmark = pytest.mark.usefixtures("float64")

PRIORS = {"generic": (0.3, 0.7, 0.11), "published": (1e-8, 0.2, math.sqrt(1.5e-6)), "nearly one": (0.9, 1.3, 1.1)}
POINTS = [-1.9, -0.3, -0.02, -0.004, 0.0, 0.0011, 0.05, 0.4, 2.3]


def mixture(name: str, size: int = len(POINTS)) -> MixtureNormal:
    return MixtureNormal(*PRIORS[name], size, torch.zeros(()))


def torchs(name: str) -> MixtureSameFamily:
    lam, slab, spike = PRIORS[name]
    return MixtureSameFamily(Categorical(torch.tensor([lam, 1 - lam])), Normal(torch.zeros(2), torch.tensor([slab, spike])))


@pytest.mark.parametrize("name", PRIORS)
def test_its_density_is_torchs_and_its_gradient_the_published_score(name: str) -> None:
    w = torch.tensor(POINTS, requires_grad=True)
    found = mixture(name).log_prob(w)
    assert torch.allclose(mixture(name).log_density(w), torchs(name).log_prob(w), rtol=1e-10)
    assert float(found.detach()) == pytest.approx(float(torchs(name).log_prob(w).sum().detach()), rel=1e-10)
    lam, slab, spike = PRIORS[name]
    odds = (1 - lam) / lam * slab / spike * torch.exp(-w.detach().square() / 2 * (1 / spike**2 - 1 / slab**2))
    p = 1 / (1 + odds)
    assert torch.allclose(mixture(name).slab_probability(w), p, rtol=1e-9)
    score = -w.detach() * (p / slab**2 + (1 - p) / spike**2)
    assert torch.allclose(torch.autograd.grad(found, w)[0], score, rtol=1e-8)


@pytest.mark.parametrize("name", ["generic", "published"])
def test_the_threshold_is_where_slab_and_spike_are_as_likely(name: str) -> None:
    lam, slab, spike = PRIORS[name]
    at = mixture(name).threshold
    assert lam * stats.norm.pdf(at, 0, slab) == pytest.approx((1 - lam) * stats.norm.pdf(at, 0, spike), rel=1e-9)
    sides = mixture(name).slab_probability(torch.tensor([0.999 * at, 1.001 * at]))
    assert sides[0] < 0.5 < sides[1]


def test_scales_are_standard_deviations() -> None:
    """Released code calls variances sigma: read so, the published threshold would be above a tenth. It is .0084."""
    assert mixture("published").threshold == pytest.approx(0.0084, abs=5e-5)


def test_a_slab_that_is_likelier_everywhere_keeps_every_weight() -> None:
    assert mixture("nearly one").threshold == 0


def test_its_draws_are_of_the_mixture() -> None:
    torch.manual_seed(0)
    lam, slab, spike = PRIORS["generic"]
    drawn = mixture("generic", 20_000).sample().numpy()

    def below(x: np.ndarray) -> np.ndarray:
        return lam * stats.norm.cdf(x, 0, slab) + (1 - lam) * stats.norm.cdf(x, 0, spike)

    assert stats.kstest(drawn, below).pvalue > 1e-3


def by_quadrature(name: str, mean: float, scale: float) -> float:
    """KL(N(mean, scale^2) || mixture), nats."""
    lam, slab, spike = PRIORS[name]

    def part(w: float) -> float:
        prior = np.logaddexp(math.log(lam) + stats.norm.logpdf(w, 0, slab), math.log(1 - lam) + stats.norm.logpdf(w, 0, spike))
        return float(stats.norm.pdf(w, mean, scale) * (stats.norm.logpdf(w, mean, scale) - prior))

    return float(integrate.quad(part, mean - 12 * scale, mean + 12 * scale, limit=400)[0])


@pytest.mark.parametrize("keep_prob", [1.0, 0.75])
def test_the_kl_of_masked_weights_is_the_limit_of_the_bound(keep_prob: float) -> None:
    """Of mixtures p N(m, s^2) + (1 - p) N(0, s^2) the bound by convexity, p KL_m + (1 - p) KL_0, less its value at m = 0."""
    name, s, means = "generic", 1e-4, [0.3, -0.05, 0.0]
    bound = sum(keep_prob * (by_quadrature(name, m, s) - by_quadrature(name, 0.0, s)) for m in means)
    q = MaskedWeights(torch.tensor(means), torch.tensor([0, 2, 5]), 7, keep_prob)
    assert float(kl_divergence(q, mixture(name, 7))) == pytest.approx(bound, rel=1e-4)


def test_the_kl_of_gaussian_weights_is_unbiased() -> None:
    means, scales = [0.25, -0.02], [0.1, 0.3]
    stream = torch.Generator().manual_seed(0)
    q = GaussianWeights(torch.tensor(means), torch.tensor(scales), torch.tensor([1, 4]), 6, stream)
    draws = torch.stack([kl_divergence(q, mixture("generic", 6)) for _ in range(4000)])
    exact = sum(by_quadrature("generic", m, s) for m, s in zip(means, scales, strict=True))
    error = float(draws.std()) / math.sqrt(len(draws))
    assert abs(float(draws.mean()) - exact) < 3.5 * error
    assert error < 0.02 * exact


def gradients(model: BayesianNetwork, guide: MaskedGuide, x: Tensor, y: Tensor, closed: bool) -> list[Tensor]:
    for parameter in (*guide.parameters(), *model.parameters()):
        parameter.grad = None
    assert guide.generator is not None
    guide.generator.manual_seed(5)
    if closed:
        objective.closed_form(model, guide, x, y)
    else:
        (TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / 40).backward()
    return [parameter.grad.clone() for parameter in guide.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_closed_form_of_a_step_is_pyros(gaussian: bool) -> None:
    torch.manual_seed(1)
    model = BayesianNetwork(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), num_data=40, prior_scale=0.5)
    model.mixture = MixtureNormal(*PRIORS["generic"], model.num_weights, model.initial)
    stream, topology = torch.Generator(), initial(model.shapes, 0.4)
    guide = (
        GaussianGuide(model, topology, noise_scale=0.2, kl_scale=0.7, generator=stream)
        if gaussian
        else MaskedGuide(model, topology, 0.8, rescale=True, kl_scale=0.7, generator=stream)
    )
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    for mine, pyros in zip(gradients(model, guide, x, y, True), gradients(model, guide, x, y, False), strict=True):
        torch.testing.assert_close(mine, pyros, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wrong", [(0.0, 1, 0.1), (1.0, 1, 0.1), (0.5, 0.1, 0.2), (0.5, 0.1, 0.0)])
def test_what_is_no_mixture_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="expected a probability of the slab in"):
        MixtureNormal(*wrong, 3)
