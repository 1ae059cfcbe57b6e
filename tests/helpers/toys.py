"""Three features, three classes and a network of 24 weights."""

import torch
from torch import nn

from espalier.contracts import Data, Split

P, BATCH, DECAY = 0.625, 16, 0.01
CPU = torch.device("cpu")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def toy(count: int = BATCH, classes: int | None = 3) -> Data:
    stream = torch.Generator().manual_seed(4)
    x, y = torch.randn(count, 3, generator=stream), torch.randint(0, 3, (count,), generator=stream)
    part, empty = Split(x, y), Split(x[:0], y[:0])
    return Data("toy", part, empty, part, part, (3,), classes)
