"""U-Net (Ronneberger et al. 2015), small: a decision for every pixel of an image; 29,600 weights by default on colour."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from espalier.network import BayesianNetwork


def block(inputs: int, outputs: int) -> nn.Sequential:
    """conv, norm, relu, twice, with He's start; norms of four groups of channels need no statistics of a batch."""
    layers: list[nn.Module] = []
    for conv in (nn.Conv2d(width, outputs, 3, padding=1, bias=False) for width in (inputs, outputs)):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.GroupNorm(math.gcd(4, outputs), outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Down by pooling, up by repetition; each level on the way up also sees what that level was on the way down."""

    def __init__(self, inputs: int, channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(block(*widths) for widths in pairwise((inputs, *channels)))
        self.up = nn.ModuleList(block(low + high, high) for low, high in pairwise(channels[::-1]))
        self.head = nn.Conv2d(channels[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels: list[Tensor] = []
        for down in self.down:
            levels.append(down(nn.functional.max_pool2d(levels[-1], 2) if levels else x))
        x = levels.pop()
        for up in self.up:
            x = up(torch.cat([nn.functional.interpolate(x, scale_factor=2), levels.pop()], 1))
        return self.head(x).movedim(1, -1).squeeze(-1)  # type: ignore[no-any-return]


def model(
    shape: tuple[int, ...], num_outputs: int, *, channels: tuple[int, ...] = (8, 16, 32), prior_scale: float | None = None
) -> BayesianNetwork:
    """Images of `shape` (c, h, w); y is an image too, (h, w). Up to two outputs are one logit a pixel, more one per class.

    channels: of each level; every level after the first halves height and width.
    prior_scale: standard deviation of the weights' prior; None follows weight_decay.
    """
    if not channels:
        raise ValueError("expected channels of one level or more, got none")
    factor = 2 ** (len(channels) - 1)
    if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
        raise ValueError(f"expected images (channels, height, width) of sides divisible by {factor} for unet, got shape {shape}: "
                         "resize or crop them, or give fewer channels")  # fmt: skip
    net = UNet(shape[0], channels, num_outputs if num_outputs > 2 else 1)
    return BayesianNetwork(net, likelihood="categorical" if num_outputs > 2 else "bernoulli", prior_scale=prior_scale)
