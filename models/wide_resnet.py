"""Wide residual network with pre-activation blocks (Zagoruyko & Komodakis 2016); 22-2 by default, 1.08M weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espalier.network import BayesianNetwork


class Block(nn.Module):
    """norm, relu, conv, norm, relu, conv, plus the input (through a 1 x 1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.norm1(x))
        residual: Tensor = self.conv2(torch.relu(self.norm2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


def model(
    shape: tuple[int, ...], num_outputs: int, *, depth: int = 22, widen: int = 2, prior_scale: float | None = None
) -> BayesianNetwork:
    """Images of `shape` (c, h, w).

    depth: 6 n + 4 layers. widen: multiplies the widths 16, 32, 64.
    prior_scale: standard deviation of the weights' prior; None follows weight_decay.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"expected a depth of 6 n + 4 (10, 16, 22, 28 ...), got {depth}")
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)]
    inputs = 16
    for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for index in range((depth - 4) // 6):
            layers.append(Block(inputs, width, 2 if stage and not index else 1))
            inputs = width
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_outputs)]
    net = nn.Sequential(*layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return BayesianNetwork(net, likelihood="categorical", prior_scale=prior_scale)
