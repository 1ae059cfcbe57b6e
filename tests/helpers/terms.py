"""The terms and gradients of one step, in closed form and by Pyro, written out and not; and cases for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology.masks import initial
from espalier.training.objective import by_pyro, closed_form, is_ours
from unwritten import written_out


def mlp(outputs: int = 3, width: int = 128) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(160, width), nn.Tanh(), nn.Linear(width, outputs))


def x_of(*shape: int) -> Tensor:
    return torch.randn(*(shape or (20, 160)), generator=torch.Generator().manual_seed(1))


def labels(*shape: int, classes: int = 3) -> Tensor:
    return torch.randint(0, classes, shape or (20,), generator=torch.Generator().manual_seed(2))


def guide_of(model: BayesianNetwork, kind: str = "masked", **options: Any) -> MaskedGuide:
    stream = torch.Generator().manual_seed(3)
    topology = initial(model.shapes, 0.9, generator=stream)
    if kind == "gaussian":
        return GaussianGuide(model, topology, noise_scale=0.1, generator=stream, **options)
    return MaskedGuide(model, topology, generator=stream, **{"keep_prob": 0.9, **options})


def step(objective: Callable[..., Any], model: BayesianNetwork, guide: MaskedGuide, x: Any, y: Tensor) -> dict[str, Tensor]:
    """Everything that one step gives, of copies."""
    model, guide, stream = copy.deepcopy(model), copy.deepcopy(guide), torch.Generator()
    stream.set_state(guide.generator.get_state())
    guide.generator = stream
    torch.manual_seed(4)
    terms = objective(model, guide, x, y, nullcontext())
    every = [*guide.named_parameters(), *model.named_parameters()]
    found = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in every}
    of_loss = {name: getattr(terms, name) for name in ("loss", "fit", "kl", "l2")}
    return {**of_loss, **dict(model.named_buffers()), **found}


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor], eps: float = 1e-10) -> None:
    assert mine.keys() == theirs.keys()
    for name, wanted in theirs.items():
        scale = 1 + float(wanted.detach().double().abs().max()) if wanted.numel() else 1.0
        assert torch.allclose(mine[name].double(), wanted.double(), rtol=0, atol=eps * scale), name


def agree(model: BayesianNetwork, x: Any, y: Tensor, eps: float = 1e-10, kind: str = "masked", **options: Any) -> None:
    """Unwritten and in closed form, against Pyro's of the dense draw."""
    guide = guide_of(model, kind, **options)
    assert is_ours(model, guide, x, y)
    mine = step(closed_form, model, guide, x, y)
    with written_out():
        same(mine, step(by_pyro, model, guide, x, y), eps)
    same(mine, step(by_pyro, model, guide, x, y), eps)
