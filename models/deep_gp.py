"""The finite-width deep Gaussian process of Gal & Ghahramani 2016, for regression: layers scaled by sqrt(1 / K)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from espalier.likelihoods import Normal
from espalier.network import BayesianNetwork


class DeepGP(nn.Module):
    """y = sqrt(1/K_L) W_L s(... sqrt(1/K_1) W_2 s(W_1 x + b_1)), s = relu (Lei et al. 2023, sec. 3.1)."""

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        if not widths:
            raise ValueError("expected widths of one hidden layer or more, got none")
        sizes = [inputs, *widths]
        layers = [nn.Linear(fan, width) for fan, width in zip(sizes, widths, strict=False)]
        self.hidden = nn.ModuleList(layers)
        self.top = nn.Linear(widths[-1], outputs, bias=False)
        for layer in [*layers, self.top]:
            nn.init.normal_(layer.weight)  # the scale is in the forward pass, so a prior of scale 1 is the natural one

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for index, layer in enumerate(self.hidden):
            # The factor reaches the weights and not the bias: linear(c x) = c W x + b.
            x = torch.relu(layer(x if index == 0 else math.sqrt(1 / x.shape[1]) * x))
        mean: Tensor = self.top(math.sqrt(1 / x.shape[1]) * x)
        return mean


def model(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    widths: tuple[int, ...] = (50,),
    noise_precision: float = 1.0,
    learn_precision: bool = True,
    prior_scale: float | None = 1.0,
) -> BayesianNetwork:
    """Inputs of `shape` are flattened.

    widths: K_1, K_2, ... of the hidden layers. noise_precision: tau of y ~ N(mean, 1/tau), where it starts.
    learn_precision: learn tau, or fix it there. prior_scale: standard deviation of the weights' prior.
    """
    net = DeepGP(math.prod(shape), widths, num_outputs)
    return BayesianNetwork(net, likelihood=Normal(noise_precision, learn=learn_precision), prior_scale=prior_scale)
