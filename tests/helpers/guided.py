"""A model, its masked guide and its loop: equal arguments give equal ones, that will draw the same Z."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from espalier.contracts import Schedule
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop
from rounding import close

NUM_DATA, BATCH, RATE = 90, 16, 0.05


def dense_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))


def norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 4))


def pair(
    net: Callable[[], nn.Module] = dense_net, *, keep_prob: float = 0.7, sparsity: float = 0.5, seed: int = 1, **options
) -> tuple[BayesianNetwork, MaskedGuide]:
    """A model and its guide; equal arguments give equal ones, that will draw the same Z."""
    model = BayesianNetwork(net(), prior_scale=0.8, num_data=NUM_DATA, weight_decay=0.02)
    stream = torch.Generator().manual_seed(seed)
    topology = initial(model.shapes, sparsity, generator=stream)
    return model, MaskedGuide(model, topology, keep_prob, generator=stream, **options)


def batch_of(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 6, generator=generator), torch.randint(0, 4, (BATCH,), generator=generator)


def loop_of(
    model: BayesianNetwork, guide: MaskedGuide, schedule: Schedule | None = None, kind: str = "sgd", rate: float = RATE
) -> Loop:
    return Loop(model, guide, schedule or schedules.static(), rates.constant(rate), optimizer=kind)


def same_parameters(model: BayesianNetwork, guide: MaskedGuide, other: BayesianNetwork, twin: MaskedGuide) -> None:
    close(guide.values, twin.values)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        close(mine, theirs)


def tensors_in(thing: object) -> Iterator[Tensor]:
    """Every tensor below an object's attributes, items and dictionary values."""
    if isinstance(thing, Tensor):
        yield thing
        if thing.grad is not None:
            yield thing.grad
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors_in(value)
    elif isinstance(thing, MaskedGuide):
        yield from tensors_in(vars(thing))
