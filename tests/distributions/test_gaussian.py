"""A standard deviation for every active weight: its KL, its draws and its gradients against torch's own normals."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from budget import FALSE_ALARMS, assert_mean
from espalier.distributions.gaussian import GaussianWeights
from espalier.distributions.priors import FlatNormal
from rounding import close
from tiny import PRIOR

pytestmark = pytest.mark.usefixtures("float64")


def weights_of(active: int = 7, num_weights: int = 20) -> tuple[GaussianWeights, Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    mu = torch.randn(active, generator=stream).requires_grad_()
    sigma = (0.1 + torch.rand(active, generator=stream)).requires_grad_()
    positions = torch.randperm(num_weights, generator=stream)[:active].sort().values
    return GaussianWeights(mu, sigma, positions, num_weights, stream), mu, sigma, positions


@pytest.mark.parametrize("prior_scale", [0.3, 1.0, 2.7])
def test_the_kl_is_torch_s_over_the_active_weights(prior_scale: float) -> None:
    q, mu, sigma, _ = weights_of()
    own = torch.distributions.kl_divergence(q, FlatNormal(prior_scale, 20))
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, sigma), torch.distributions.Normal(0.0, prior_scale)
    ).sum()
    close(own, theirs)
    for mine, other in zip(torch.autograd.grad(own, [mu, sigma]), torch.autograd.grad(theirs, [mu, sigma]), strict=True):
        close(mine, other)


def test_the_kl_is_the_mean_of_the_log_ratio_of_draws() -> None:
    q, mu, sigma, positions = weights_of()
    with torch.no_grad():
        w = q.rsample((20000,))[:, positions]
        ratio = torch.distributions.Normal(mu, sigma).log_prob(w) - torch.distributions.Normal(0.0, PRIOR).log_prob(w)
        assert_mean(ratio.sum(-1), torch.distributions.kl_divergence(q, FlatNormal(PRIOR, 20)))


def test_draws_have_their_mean_and_variance_and_are_zero_elsewhere() -> None:
    q, mu, sigma, positions = weights_of()
    with torch.no_grad():
        w = q.rsample((20000,))
        assert w.shape == (20000, 20)
        elsewhere = torch.ones(20, dtype=torch.bool)
        elsewhere[positions] = False
        assert (w[:, elsewhere] == 0).all()
        standard = (w[:, positions] - mu) / sigma
        assert stats.kstest(standard.flatten().numpy(), "norm").pvalue > FALSE_ALARMS
        assert_mean(w, q.mean)
        assert_mean((w - q.mean) ** 2, q.variance)
        one, other = standard[:, :1], standard[:, 1:]
        assert_mean(one * other, torch.zeros(6))  # independent of each other
    close(q.mean[positions], mu)
    close(q.variance[positions], sigma**2)
    assert q.keep is not None
    assert q.keep.shape == (20000, 7)
    assert q.keep.all()


def test_the_sample_is_reparameterised() -> None:
    q, mu, sigma, positions = weights_of()
    w = q.rsample()
    slopes = torch.randn(20)
    by_mu, by_sigma = torch.autograd.grad((w * slopes).sum(), [mu, sigma])
    close(by_mu, slopes[positions])
    close(by_sigma, slopes[positions] * ((w[positions] - mu) / sigma))


def test_a_density_over_all_weights_is_not_pretended() -> None:
    q, *_ = weights_of()
    with pytest.raises(NotImplementedError, match="TraceMeanField_ELBO"):
        q.log_prob(q.rsample())
    with pytest.raises(ValueError, match="loop over particles"):
        q.expand(torch.Size([3]))
