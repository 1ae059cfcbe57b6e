"""Multi-layer perceptron with ReLU units, for anything that can be flattened."""

from __future__ import annotations

import math

from torch import nn

from espalier.network import BayesianNetwork


def model(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    hidden: tuple[int, ...] = (512, 512),
    likelihood: str = "categorical",
    prior_scale: float | None = None,
) -> BayesianNetwork:
    """Inputs of `shape` are flattened.

    hidden: widths of the hidden layers. likelihood: categorical, bernoulli or normal.
    prior_scale: standard deviation of the weights' prior; None follows weight_decay.
    """
    widths = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for narrow, wide in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    last = 1 if likelihood == "bernoulli" else num_outputs  # one logit says both probabilities
    net = nn.Sequential(*layers, nn.Linear(widths[-1], last))
    return BayesianNetwork(net, likelihood=likelihood, prior_scale=prior_scale)
