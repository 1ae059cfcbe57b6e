"""LeNet-5 as Caffe has it: two 5 x 5 convolutions with pooling, one hidden layer of 500 (430,500 weights on 28 x 28)."""

from __future__ import annotations

import torch
from torch import nn

from espalier.network import BayesianNetwork


def model(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    channels: tuple[int, int] = (20, 50),
    hidden: int = 500,
    prior_scale: float | None = None,
) -> BayesianNetwork:
    """Images of `shape` (c, h, w), h and w at least 16 (LeCun et al. 1998; the widths of Caffe's version).

    channels: of the two convolutions. hidden: width of the dense layer.
    prior_scale: standard deviation of the weights' prior; None follows weight_decay.
    """
    features = nn.Sequential(
        nn.Conv2d(shape[0], channels[0], 5),
        nn.MaxPool2d(2),
        nn.ReLU(),  # after the pool: the same values for a quarter of the work
        nn.Conv2d(channels[0], channels[1], 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )
    if len(shape) != 3 or min(shape[1:]) < 16:
        raise ValueError(f"expected images (channels, height, width) of at least 16 x 16 for lenet, got shape {shape}")
    width = features(torch.zeros(1, *shape)).shape[1]
    net = nn.Sequential(features, nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs))
    return BayesianNetwork(net, likelihood="categorical", prior_scale=prior_scale)
