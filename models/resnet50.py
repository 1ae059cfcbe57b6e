"""ResNet-50 (He et al. 2016), with the 3 x 3 stem of the CIFAR experiments or ImageNet's 7 x 7; 23.5M weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from espalier.network import BayesianNetwork


class Bottleneck(nn.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up by four, each with batch norm, plus the input."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def model(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    stem: Literal["cifar", "imagenet"] = "cifar",
    prior_scale: float | None = None,
) -> BayesianNetwork:
    """Images of `shape` (c, h, w).

    stem: cifar is one 3 x 3 convolution, imagenet 7 x 7 by two and a pool by two.
    prior_scale: standard deviation of the weights' prior; None follows weight_decay.
    """
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"expected a stem of cifar, imagenet, got {stem!r}")
    if stem == "cifar":
        layers: list[nn.Module] = [nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    else:
        layers = [nn.Conv2d(shape[0], 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        for index in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if stage and not index else 1))
            inputs = 4 * width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_outputs))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return BayesianNetwork(net, likelihood="categorical", prior_scale=prior_scale)
