"""The Gaussian family over the active weights: a learned standard deviation each, and no mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import register_kl

from espalier.distributions.masked import Scattered
from espalier.distributions.priors import FlatNormal
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
