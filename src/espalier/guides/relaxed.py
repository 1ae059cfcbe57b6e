"""The guide of a mask that is not yet a mask: every active weight has a real number for it, learned along with its value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import register_kl

from espalier.contracts import Topology
from espalier.distributions.masked import MaskedWeights
from espalier.distributions.priors import FlatNormal
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork


class RelaxedWeights(MaskedWeights):
    """`MaskedWeights` at the point w * m, without a Z. penalty: -log p(m) of the Laplace prior, up to its constant; nats."""

    def __init__(self, mean: Tensor, penalty: Tensor, *args: Any, **options: Any) -> None:
        super().__init__(mean, *args, **options)
        self.penalty = penalty


class RelaxedGuide(MaskedGuide):
    """Weights scatter(w * m): m = 1 at first, w and m learned jointly under a Laplace prior p(m) ~ exp(-rate |m|) and a flat one
    for w: the loss per example is -log p(y | x, w * m) + rate / N * |m|_1 (ESPN, Cho, Joshi & Hegde 2020, as a MAP estimate).

    There is no Z. Its pairs, and so its fit, hold w * m.

    values: w `(k,)`. relaxed: m `(k,)`.
    """

    def __init__(self, model: BayesianNetwork, topology: Topology, *, rate: float) -> None:
        if not 0 < rate < float("inf"):
            raise ValueError(f"expected a rate above 0 for the Laplace prior of m, got {rate:g}")
        super().__init__(model, topology)
        self.rate = rate
        self.relaxed = nn.Parameter(torch.ones_like(self.values.data))

    def distribution(self) -> RelaxedWeights:
        penalty = self.rate * self.relaxed.abs().sum()
        return RelaxedWeights(self.values * self.relaxed, penalty, self.positions, sum(self.sizes), 1.0, layout=self.layout)

    def grown(self, name: str) -> float:
        return 1.0 if name == "relaxed" else 0.0

    def collected(self) -> Tensor:
        return (self.values * self.relaxed).detach()


@register_kl(RelaxedWeights, FlatNormal)
def _kl_relaxed_flat(q: RelaxedWeights, p: FlatNormal) -> Tensor:
    """What depends on the parameters. The normal prior is not looked at: ESPN decays m, and not w."""
    return q.penalty
