"""The mean-field guide: a mean and a standard deviation for every active weight."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from espalier.contracts import Topology
from espalier.distributions.gaussian import GaussianWeights
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork


class GaussianGuide(MaskedGuide):
    """Mean-field Gaussian on the active weights: w = scatter(N(mu, sigma^2)), one learned sigma per active weight.

    The sparse variational family of SSVI (Li et al. 2024) and, dense, of Blundell et al. 2015. Same site, same tap, same
    moves as `MaskedGuide`; there is no Z. Trained by `TraceMeanField_ELBO`.

    noise_scale: where every sigma starts, also of a weight that has just grown.

    values: mu `(k,)`. log_scale: ln sigma `(k,)`.
    """

    def __init__(
        self,
        model: BayesianNetwork,
        topology: Topology,
        *,
        noise_scale: float = 0.01,
        kl_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, topology, kl_scale=kl_scale, generator=generator)
        if not 0 < noise_scale < math.inf:
            raise ValueError(f"expected a finite noise_scale above 0, got {noise_scale}: it is a standard deviation")
        self.noise_scale = float(noise_scale)
        self.log_scale = nn.Parameter(torch.full_like(self.values.data, math.log(noise_scale)))

    def asked(self) -> dict[str, Any]:
        return {**super().asked(), "noise_scale": self.noise_scale}

    def distribution(self) -> GaussianWeights:
        size = sum(self.sizes)
        return GaussianWeights(self.values, self.log_scale.exp(), self.positions, size, self.generator, self.layout)

    def grown(self, name: str) -> float:
        return math.log(self.noise_scale) if name == "log_scale" else 0.0

    def scales(self) -> Tensor:
        return self.log_scale.detach().exp()
