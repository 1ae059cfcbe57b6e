"""The objective of CigL written out in plain torch: networks, their forward pass, loss and L2."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology.masks import initial

NUM_DATA, BATCH = 137, 24
DECAY = 0.013


class Case(NamedTuple):
    """A network, and the same network by hand: `forward(u, others, x)`, with `u` the flat vector of all weights."""

    net: Callable[[], nn.Module]
    shape: tuple[int, ...]
    others: tuple[str, ...]
    """The point-estimated parameters, by their names in the network."""
    forward: Callable[[Tensor, dict[str, Tensor], Tensor], Tensor]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5))


def mlp_by_hand(w: Tensor, o: dict[str, Tensor], x: Tensor) -> Tensor:
    first, second = w[:54].reshape(9, 6), w[54:].reshape(5, 9)
    return torch.tanh(x @ first.T + o["0.bias"]) @ second.T + o["2.bias"]


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def conv_by_hand(w: Tensor, o: dict[str, Tensor], x: Tensor) -> Tensor:
    first, second, last = w[:72].reshape(4, 2, 3, 3), w[72:180].reshape(3, 4, 3, 3), w[180:].reshape(5, 12)

    def normalised(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # batch norm in train mode, by its definition
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
        return (h - mean) / (var + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]

    h = F.relu(normalised(F.conv2d(x, first, o["0.bias"], padding=1), o["1.weight"], o["1.bias"]))
    h = F.relu(normalised(F.conv2d(h, second, stride=2), o["4.weight"], o["4.bias"]))
    return h.reshape(len(h), -1) @ last.T + o["7.bias"]


CASES = {
    "mlp": Case(mlp, (6,), ("0.bias", "2.bias"), mlp_by_hand),
    "conv": Case(conv, (2, 6, 6), ("0.bias", "1.weight", "1.bias", "4.weight", "4.bias", "7.bias"), conv_by_hand),
}


def bayesian(
    case: Case,
    *,
    keep_prob: float,
    rescale: bool = False,
    kl_scale: float = 1.0,
    weight_decay: float = DECAY,
    num_data: int | None = NUM_DATA,
    density: float = 0.4,
    seed: int = 0,
    likelihood: object = "categorical",
) -> tuple[BayesianNetwork, MaskedGuide]:
    """A model and its guide, with the prior that `weight_decay` implies (formula written out, not the library's)."""
    torch.manual_seed(seed)
    net = case.net()
    with torch.no_grad():
        for parameter in net.parameters():  # biases of 0 and scales of 1 would hide their L2
            parameter.add_(0.1 * torch.randn_like(parameter))
    p = round(65536 * keep_prob) / 65536
    count = num_data or BATCH
    v = 1 / (p * count * weight_decay) if rescale else p / (count * weight_decay)
    model = BayesianNetwork(
        net, prior_scale=math.sqrt(v), num_data=num_data, weight_decay=weight_decay, likelihood=likelihood
    )
    stream = torch.Generator().manual_seed(seed + 1)
    topology = initial(model.shapes, 1 - density, generator=stream)
    return model, MaskedGuide(model, topology, keep_prob, rescale=rescale, kl_scale=kl_scale, generator=stream)


def batch_of(case: Case, seed: int = 3, size: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *case.shape, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def dense_by_hand(values: Tensor, keep: Tensor, positions: Tensor, num_weights: int, factor: float) -> Tensor:
    """Z * u (/ p), one weight at a time."""
    dense = torch.zeros(num_weights)
    dense[positions] = torch.where(keep, values, torch.zeros(())) * factor
    return dense


class Hand:
    """The hand-written loss of one guide: its own copies of u and the other parameters, nothing shared."""

    def __init__(self, case: Case, model: BayesianNetwork, guide: MaskedGuide, weight_decay: float = DECAY) -> None:
        self.case, self.positions, self.num_weights = case, guide.positions.clone(), model.num_weights
        self.factor = 1 / guide.keep_prob if guide.rescale else 1.0
        self.weight_decay, self.kl_scale = weight_decay, guide.kl_scale
        self.u = guide.values.detach().clone().requires_grad_()
        own = dict(model.net.named_parameters())
        assert sorted(own) == sorted(case.others)  # nothing trained but these, and nothing of them forgotten
        self.others = {name: own[name].detach().clone().requires_grad_() for name in case.others}

    def likelihood_loss(self, keep: Tensor, x: Tensor, y: Tensor) -> Tensor:
        dense = dense_by_hand(self.u, keep, self.positions, self.num_weights, self.factor)
        logits = self.case.forward(dense, self.others, x)
        return -F.log_softmax(logits, -1)[torch.arange(len(y)), y].sum() / len(y)

    def kl(self) -> Tensor:
        return self.kl_scale * self.weight_decay / 2 * (self.u**2).sum()

    def l2(self) -> Tensor:
        return self.weight_decay / 2 * sum((other**2).sum() for other in self.others.values())

    def loss(self, keep: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.likelihood_loss(keep, x, y) + self.kl() + self.l2()

    @property
    def parameters(self) -> list[Tensor]:
        return [self.u, *self.others.values()]
