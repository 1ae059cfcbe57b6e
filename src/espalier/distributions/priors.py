"""The prior N(0, scale^2) over the flat weight vector, and the weight decay that it is."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from espalier.sparse import Unwritten

_D = TypeVar("_D", bound=TorchDistribution)


class FlatNormal(TorchDistribution):
    """The prior: independent N(0, scale^2) over `num_weights` weights, event shape `(num_weights,)`.

    A class of its own because its `log_prob` is one dot product, 70 times faster than `Normal.to_event` at 23.5M
    weights, and an ELBO evaluates it at every step although the KL is in closed form.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, scale: float, num_weights: int, like: Tensor | None = None) -> None:
        self.scale = scale
        self._like = torch.empty(()) if like is None else like  # dtype and device of the draws
        super().__init__(event_shape=torch.Size([num_weights]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> FlatNormal:
        return unbatched(self, batch_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.scale * torch.randn(
            (*sample_shape, *self.event_shape), dtype=self._like.dtype, device=self._like.device
        )

    def log_prob(self, value: Tensor) -> Tensor:
        log_normaliser = value.shape[-1] * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))
        if value.dim() == 1:
            active = value.active if isinstance(value, Unwritten) and value.written is None else value
            square = torch.dot(active, active)
        else:
            square = value.square().sum(-1)
        return -0.5 * square / self.scale**2 - log_normaliser


def unbatched(distribution: _D, batch_shape: torch.Size) -> _D:
    if tuple(batch_shape):
        raise ValueError(
            f"expected the weights of one network, got a batch of {tuple(batch_shape)}: loop over particles"
        )
    return distribution


def prior_scale_of(weight_decay: float, num_data: int, keep_prob: float, *, rescale: bool) -> float:
    """The prior scale sqrt(v) that a coupled weight decay on u implies: wd = p/(vN), or 1/(pvN) where m = u/p.

    Coupled is torch's `weight_decay` convention: the gradient of wd/2 * sum u^2. Source: matching CigL's eq. 1 with the
    bound `kl_bound`.
    """
    factor = 1 / keep_prob if rescale else keep_prob
    return math.sqrt(factor / (num_data * weight_decay))


def weight_decay_of(prior_scale: float, num_data: int, keep_prob: float, *, rescale: bool) -> float:
    """The inverse of `prior_scale_of`."""
    factor = 1 / keep_prob if rescale else keep_prob
    return factor / (num_data * prior_scale**2)
