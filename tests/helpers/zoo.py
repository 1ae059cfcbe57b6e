"""A zoo of plain networks: tied, shared, recurrent, normalised; what a model of any kind must bear."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn

from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology.masks import initial


class TiedLinears(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.top = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.top(torch.relu(self.b(torch.relu(self.a(x)))))


class SharedLayer(nn.Module):
    """One layer under two names, as weight-shared (recurrent or Siamese) networks have it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = self.a
        self.top = nn.Linear(6, 3)

    def forward(self, x):
        return self.top(torch.relu(self.b(torch.relu(self.a(x)))))


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embedding(x).mean(1)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.top = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.top(self.attend(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.top = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.top(self.lstm(x)[0][:, -1])


class Animal(NamedTuple):
    build: object
    shape: tuple[int, ...]
    num_outputs: int = 3
    names: tuple[str, ...] = ()
    """The maskable tensors, in order, by their first name."""


def tokens(animal: Animal) -> bool:
    return animal.build is TiedEmbedding


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def pooled(layer, channels, flat=nn.Flatten):
    pool = {nn.Conv1d: nn.AdaptiveAvgPool1d, nn.ConvTranspose1d: nn.AdaptiveAvgPool1d}
    pooled = pool.get(type(layer), nn.AdaptiveAvgPool2d)(1)
    return nn.Sequential(layer, nn.ReLU(), pooled, flat(), nn.Linear(channels, 3))


def batchnorm():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))


ZOO = {
    "mlp": Animal(mlp, (5,), names=("0.weight", "2.weight")),
    "bare_layer": Animal(lambda: nn.Linear(5, 3), (5,), names=("weight",)),
    "float64": Animal(lambda: mlp().double(), (5,), names=("0.weight", "2.weight")),
    "tied_linears": Animal(TiedLinears, (6,), names=("a.weight", "top.weight")),
    "shared_layer": Animal(SharedLayer, (6,), names=("a.weight", "top.weight")),
    "tied_embedding": Animal(TiedEmbedding, (4,), 11, names=("embedding.weight",)),
    "attention": Animal(Attention, (4, 8), names=("attend.out_proj.weight", "top.weight")),
    "transformer": Animal(
        transformer, (4, 8), names=("0.self_attn.out_proj.weight", "0.linear1.weight", "0.linear2.weight", "2.weight")
    ),
    "lstm": Animal(Recurrent, (6, 4), names=("top.weight",)),
    "grouped_conv": Animal(lambda: pooled(nn.Conv2d(4, 6, 3, groups=2), 6), (4, 5, 5), names=("0.weight", "4.weight")),
    "conv_transpose": Animal(
        lambda: pooled(nn.ConvTranspose2d(2, 5, 3, stride=2), 5), (2, 4, 4), names=("0.weight", "4.weight")
    ),
    "conv1d": Animal(lambda: pooled(nn.Conv1d(3, 5, 3), 5), (3, 9), names=("0.weight", "4.weight")),
    "dropout": Animal(
        lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 3)),
        (5,),
        names=("0.weight", "3.weight"),
    ),
    "batch_norm": Animal(batchnorm, (2, 6, 6), names=("0.weight", "5.weight")),
}


def meet(name: str, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """The animal's network in evaluation mode, eight inputs and labels."""
    torch.manual_seed(seed)
    animal = ZOO[name]
    net = animal.build().eval()
    dtype = next(net.parameters()).dtype
    x = torch.randint(0, 11, (8, *animal.shape)) if tokens(animal) else torch.randn(8, *animal.shape, dtype=dtype)
    return net, x, torch.randint(0, animal.num_outputs, (8,))


def prior_draw(model: BayesianNetwork, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(model.num_weights, dtype=model.initial.dtype, generator=generator)


def sites(trace) -> list[str]:
    return [name for name, node in trace.nodes.items() if node["type"] == "sample" and name != "data"]


def train_some_steps(model: BayesianNetwork, x: Tensor, y: Tensor, steps: int = 3) -> MaskedGuide:
    topology = initial(model.shapes, 0.5, generator=torch.Generator().manual_seed(0))
    guide = MaskedGuide(model, topology, 0.9)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), TraceMeanField_ELBO())
    for _ in range(steps):
        assert math.isfinite(svi.step(x, y))
    return guide


class Words(nn.Module):
    """Of five tokens out of nine, which may come as floats."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(9, 4), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.embedding(x.long()).flatten(1))
        return logits
