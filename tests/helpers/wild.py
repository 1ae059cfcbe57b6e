"""Networks put together at random from all that a user may do with a weight."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from espalier.network import BayesianNetwork

WIDTH = 128


class Block(nn.Module):
    """`(n, 128) -> (n, 128)`: `use` of a layer and its inputs."""

    def __init__(self, use: Callable[[nn.Linear, Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.layer, self.use = nn.Linear(WIDTH, WIDTH, bias), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.layer, x)


class Tied(nn.Module):
    """Two layers with one weight, by two names; `shared`: one layer in two places."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH)
        self.b = self.a if shared else nn.Linear(WIDTH, WIDTH)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Inside(nn.Module):
    """A module of another shape, between two reshapes."""

    def __init__(self, module: nn.Module, *shape: int) -> None:
        super().__init__()
        self.module, self.shape = module, shape

    def forward(self, x: Tensor) -> Tensor:
        found = self.module(x.reshape(len(x), *self.shape))
        return found.reshape(len(x), -1)[:, :WIDTH]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] + torch.arange(3, dtype=x.dtype)[:, None] / 3
        return self.attend(x, x, x, need_weights=False)[0].mean(1)


def clamped(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.weight.data.clamp_(-0.1, 0.1)
    return layer(x)


def frozen() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH).requires_grad_(False)


def normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))


def transformer() -> nn.Module:
    return Inside(nn.TransformerEncoderLayer(64, 2, 256, dropout=0.0, batch_first=True), 2, 64)


USES: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "residual": lambda layer, x: x + layer(x.relu()),
    "matmul": lambda layer, x: x @ layer.weight.t(),
    "mm of a transpose": lambda layer, x: torch.mm(x, layer.weight.T),
    "einsum": lambda layer, x: torch.einsum("ni,oi->no", x, layer.weight),
    "autoencoder": lambda layer, x: F.linear(F.linear(x, layer.weight).tanh(), layer.weight.t()),
    "twice": lambda layer, x: layer(layer(x).tanh()),
    "penalty": lambda layer, x: layer(x) + 1e-3 * layer.weight.square().sum(),
    "penalty before": lambda layer, x: x + 1e-3 * layer.weight.abs().sum() + layer(x),
    "all parameters": lambda layer, x: layer(x) * torch.stack([p.square().mean() for p in layer.parameters()]).sum(),
    "rows of the weight": lambda layer, x: layer(x) + layer.weight[3:4],
    "embedding": lambda layer, x: layer(x) + F.embedding(torch.arange(len(x)) % WIDTH, layer.weight),
    "standardised": lambda layer, x: F.linear(x, layer.weight / (1 + layer.weight.std(1, keepdim=True)), layer.bias),
    "in place": lambda layer, x: F.relu(layer(x), inplace=True),
    "clamped": clamped,
    "sequence": lambda layer, x: layer(x[:, None].expand(-1, 3, -1)).mean(1),
    "columns": lambda layer, x: layer(x.flip(1)[:, ::2].repeat(1, 2)),
    "no grad": lambda layer, x: x + layer(x).detach() * layer.bias,
    "flattened": lambda layer, x: layer(x).reshape(-1).view(len(x), -1),
    "split heads": lambda layer, x: layer(x).view(len(x), 4, -1).transpose(1, 2).flatten(1),
}
DENSE: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "view": lambda layer, x: layer(x).view(-1).view(len(x), -1),
    "as_strided": lambda layer, x: layer(x).as_strided((len(x), WIDTH), (WIDTH, 1)),
}
"""What must not be given products that lie feature by feature."""
MODULES: dict[str, Callable[[], nn.Module]] = {
    "tied": lambda: Tied(False),
    "shared": lambda: Tied(True),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "attention": Attention,
    "transformer": transformer,
    "tokens": lambda: Inside(nn.Linear(64, 256), 2, 64),
    "conv": lambda: Inside(nn.Conv1d(2, 2, 3, padding=1), 2, 64),
    "frozen": frozen,
    "weight norm": normed,
}


class Wild(nn.Module):
    """Called with a tensor, or with two by place or by name."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.first, self.blocks, self.head = nn.Linear(160, WIDTH), nn.ModuleList(blocks), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        h = self.first(x if other is None else x + other.flip(1)).tanh()
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def wild(seed: int, dense: bool = False) -> tuple[list[str], BayesianNetwork]:
    """Names of its blocks, and a model. dense: with something in it that needs ordinary memory."""
    choice = random.Random(seed)
    torch.manual_seed(seed)
    names = choice.sample([*USES, *MODULES], choice.randint(1, 4)) + ([choice.choice([*DENSE])] if dense else [])
    blocks = [MODULES[name]() if name in MODULES else Block({**USES, **DENSE}[name]) for name in names]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*stay dense", UserWarning)
        return names, BayesianNetwork(
            Wild(blocks), prior_scale=choice.choice([0.3, 1.0]), num_data=90, weight_decay=choice.choice([0.0, 0.02])
        )
