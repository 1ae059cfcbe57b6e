"""Logistic regression: one linear layer and a categorical likelihood."""

from __future__ import annotations

import math

from torch import nn

from espalier.network import BayesianNetwork


def model(shape: tuple[int, ...], num_outputs: int, *, prior_scale: float | None = None) -> BayesianNetwork:
    """Inputs of `shape` are flattened; one logit per class.

    prior_scale: standard deviation of the weights' prior; None follows weight_decay.
    """
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_outputs))
    return BayesianNetwork(net, likelihood="categorical", prior_scale=prior_scale)
