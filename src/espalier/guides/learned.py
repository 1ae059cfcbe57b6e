"""The keep probability as a parameter of a plain Pyro program, learned by its ELBO along with the values.

With the drop rate r = 1 - p = sin^2 phi, the ELBO's negative has in phi the derivative of

    E_Z[-log p(y | x, Z * u)]  +  kl_scale ( p sum u^2 / 2v  -  k H(p) )

for k active weights, H the binary entropy: as the noise scale goes to 0 a mixture of two parts that do not overlap has the
entropy of its choice on top of theirs, so that the KL is `masked.kl_bound` less H, exactly. It is differentiated as it stands.
The first is a sum over 2^k masks; its derivative is estimated by a coupled difference: one set of uniform numbers, thresholded at
phi - d and at phi + d, so that the two masks differ only where the rates do. That is unbiased for the difference, and so for the
derivative up to d^2. (Derived for this project; see Glasserman & Yao 1992 on common random numbers, and Dong, Mnih & Tucker 2020,
*DisARM*, for what else there is.)

What it is not: the rate of `drop_rate: auto`. An ELBO of the training rows weighs a network's fit to them against its prior;
where a network interpolates them that pushes the rate down, whatever the test rows would like (docs/drop-rate.md). Give its
likelihood other rows than the values have seen, or use `auto`, where prediction is what counts.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from espalier.contracts import Topology
from espalier.distributions.masked import effective_keep_prob, in_use
from espalier.guides.masked import MaskedGuide, groups
from espalier.network import BayesianNetwork
from espalier.sparse.trial import unmoved

HALF_WIDTH = 0.06
"""d, of the difference in phi."""


class LearnedGuide(MaskedGuide):
    """`MaskedGuide` whose P(Z = 1) is learned: train it by `CoupledELBO`, under any optimiser.

    keep_prob: where it starts, in (0, 1); afterwards that of the last draw, of 16 bits.
    angle: parameter phi, a scalar; P(Z = 0) = sin^2 phi.
    Raises ValueError for a keep_prob of 1, at which the derivative is 0, and for `rescale`, whose values would depend on it.
    """

    def __init__(self, model: BayesianNetwork, topology: Topology, keep_prob: float = 0.99, **options: Any) -> None:
        if options.get("rescale"):
            raise ValueError("expected rescale=False where keep_prob is learned, got True: the values would have it as a factor")
        if not 0 < keep_prob < 1:
            raise ValueError(f"expected a keep_prob in (0, 1) to start from, got {keep_prob}: at 1 there are no masks to compare")
        super().__init__(model, topology, keep_prob, **options)
        self.angle = nn.Parameter(self.values.new_tensor(math.acos(math.sqrt(keep_prob))))

    @property
    def rate(self) -> float:
        """P(Z = 0), of any precision."""
        return math.sin(float(self.angle.detach())) ** 2

    def distribution(self) -> Any:
        self.keep_prob = effective_keep_prob(max(1 - self.rate, 1e-9))
        return super().distribution()

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The Pyro program. Raises ValueError under an ELBO that would leave keep_prob where it is."""
        elbo = in_use(ELBO)
        if elbo is not None and not isinstance(elbo, CoupledELBO):
            raise ValueError(f"expected CoupledELBO for a learned keep_prob, got {type(elbo).__name__}: it would stay as it is")
        return super().forward(x, y)

    @torch.no_grad()
    def slope(self, model: BayesianNetwork, *args: Any, **kwargs: Any) -> Tensor:
        """The estimate of d E_Z[-log p(y | x, w)] / d phi, nats of all the data that the model scales to; a scalar. The network's
        buffers and the default random stream are left as they were, and both evaluations see the same of the latter."""
        shared = groups(self.positions, self.shapes, self.mask)
        count = len(self.positions) if shared is None else shared[1]
        device = self.values.device
        uniform = torch.rand(count, device=device, generator=self.generator, dtype=torch.float64)
        turns = float(self.angle.detach()) / math.pi
        phi = abs(turns - round(turns)) * math.pi  # sin^2 is even and of period pi
        rising = 1.0 if turns >= round(turns) else -1.0
        low, high = max(0.0, phi - HALF_WIDTH), min(math.pi / 2, phi + HALF_WIDTH)
        found = []
        for angle in (low, high):
            keep = uniform >= math.sin(angle) ** 2
            values = self.values * (keep if shared is None else keep[shared[0]])
            weights = self.placed(values)
            with unmoved(*model.children(), device=device):
                conditioned = pyro.poutine.condition(model, {"weights": weights})
                trace = pyro.poutine.trace(conditioned).get_trace(*args, **kwargs)
                found.append(-trace.log_prob_sum(lambda name, site: name != "weights"))
        return torch.as_tensor(rising * (found[1] - found[0]) / (high - low))

    def kl_in_angle(self, model: BayesianNetwork) -> Tensor:
        """kl_scale (p sum u^2 / 2v - k H(p)), nats, as a function of `angle` alone; k Zs there are."""
        drop = torch.sin(self.angle) ** 2
        size = torch.dot(self.values.detach(), self.values.detach()) / (2 * model.prior().scale ** 2)
        entropy = -(torch.special.xlogy(drop, drop) + torch.special.xlogy(1 - drop, 1 - drop))
        shared = groups(self.positions, self.shapes, self.mask)
        count = len(self.values) if shared is None else len(shared[0].unique())
        found: Tensor = self.kl_scale * ((1 - drop) * size - count * entropy)
        return found


class CoupledELBO(TraceMeanField_ELBO):
    """`TraceMeanField_ELBO` of a `BayesianNetwork` and a `LearnedGuide`: with the entropy of Z in its KL, and a gradient for the
    guide's `angle`, at two more forward passes a particle, without gradients. The estimate is mostly small and seldom large:
    plain SGD bears that, Adam, which divides by its size, drifts."""

    def differentiable_loss(self, model: BayesianNetwork, guide: LearnedGuide, *args: Any, **kwargs: Any) -> Tensor:
        """-ELBO, nats; its gradient is the estimator."""
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        kl, moved = guide.kl_in_angle(model), guide.angle - guide.angle.detach()
        size = guide.kl_scale * kl_divergence(guide.distribution(), model.prior())  # that part of the KL is in the loss already
        slopes = [guide.slope(model, *args, **kwargs) for _ in range(self.num_particles)]
        found: Tensor = loss + kl - size.detach() + torch.stack(slopes).mean() * moved
        return found

    @torch.no_grad()
    def loss(self, model: BayesianNetwork, guide: LearnedGuide, *args: Any, **kwargs: Any) -> float:
        return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: BayesianNetwork, guide: LearnedGuide, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())
