"""Linear regression: the conjugate model, whose optimum is known in closed form."""

from __future__ import annotations

import math

from torch import nn

from espalier.likelihoods import Normal
from espalier.network import BayesianNetwork


def model(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    noise_precision: float = 1.0,
    learn_precision: bool = True,
    bias: bool = True,
    prior_scale: float | None = None,
) -> BayesianNetwork:
    """y ~ N(w x + b, 1/tau), inputs flattened.

    noise_precision: tau, where it starts. learn_precision: learn tau, or fix it there. bias: have b.
    prior_scale: standard deviation of the weights' prior; None follows weight_decay.
    """
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_outputs, bias=bias))
    return BayesianNetwork(net, likelihood=Normal(noise_precision, learn=learn_precision), prior_scale=prior_scale)
