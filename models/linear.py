"""Linear regression: the conjugate model, whose optimum is known in closed form."""

from __future__ import annotations

import math

from torch import nn

from espalier.network import BayesianNetwork, Normal


def model(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    precision: float = 1.0,
    learn_precision: bool = True,
    bias: bool = True,
    prior_scale: float | None = None,
) -> BayesianNetwork:
    """y ~ N(w x + b, 1/precision), inputs flattened; the precision is learned or fixed."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_outputs, bias=bias))
    return BayesianNetwork(net, likelihood=Normal(precision, learn=learn_precision), prior_scale=prior_scale)
