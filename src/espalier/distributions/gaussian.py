"""The Gaussian family over the active weights: a learned standard deviation each, and no mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import register_kl

from espalier.distributions.masked import Scattered
from espalier.distributions.priors import FlatNormal, MixtureNormal
from espalier.sparse import Layout


class GaussianWeights(Scattered):
    """Mean-field Gaussian on the active weights: `w = scatter(mean + scale * noise)`.

    mean, scale: `(k,)`; positions: `(k,)`; event shape `(num_weights,)`. `keep` is all True, `(*sample_shape, k)`.
    """

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        positions: Tensor,
        num_weights: int,
        generator: torch.Generator | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.mean_value, self.scale, self.positions, self._generator = mean, scale, positions, generator
        self.layout = layout
        self.keep: Tensor | None = None
        super().__init__(event_shape=torch.Size([num_weights]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.placed(self.mean_value)

    @property
    def variance(self) -> Tensor:
        return self.placed(self.scale.square())

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = (*sample_shape, *self.mean_value.shape)
        self.keep = torch.ones((), dtype=torch.bool, device=self.mean_value.device).expand(shape)
        noise = torch.randn(
            shape, generator=self._generator, dtype=self.mean_value.dtype, device=self.mean_value.device
        )
        return self.placed(self.mean_value + self.scale * noise)


@register_kl(GaussianWeights, FlatNormal)
def _kl_gaussian_flat(q: GaussianWeights, p: FlatNormal) -> Tensor:
    """sum over active weights of KL(N(mu, sigma^2) || N(0, v)) = (mu^2 + sigma^2)/2v - 1/2 - ln(sigma / sqrt v). In nats."""
    squares = torch.dot(q.mean_value, q.mean_value) + torch.dot(q.scale, q.scale)
    constant = len(q.scale) * (math.log(p.scale) - 0.5)
    return 0.5 * squares / p.scale**2 - q.scale.log().sum() + constant


@register_kl(GaussianWeights, MixtureNormal)
def _kl_gaussian_mixture(q: GaussianWeights, p: MixtureNormal) -> Tensor:
    """sum over active weights of -ln sigma - ln(2 pi e) / 2 - ln pi(w), w one draw of N(mu, sigma^2) of its own: unbiased for
    the KL, of which there is no closed form (Blundell et al. 2015, eq. 2). In nats."""
    noise = torch.randn(q.scale.shape, generator=q._generator, dtype=q.scale.dtype, device=q.scale.device)
    entropy = q.scale.log().sum() + len(q.scale) * 0.5 * math.log(2 * math.pi * math.e)
    return -entropy - p.log_density(q.mean_value + q.scale * noise).sum()
