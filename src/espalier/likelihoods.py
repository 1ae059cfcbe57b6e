"""From a network's output to the distribution of y: the likelihoods by name, and how targets meet any of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

Likelihood = Callable[[Any], dist.TorchDistribution]
"""From the network's output, a tensor `(n, ...)` or a tuple or dict of them, to the distribution of `y`."""


class Categorical(nn.Module):
    """Labels 0 .. C-1 from logits `(n, C)`."""

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=output)


class WithUnknown(Categorical):
    """Labels 0 .. C-1 from logits `(n, C + 1)`, the last of which is "unknown" and never a label: probabilities are renormalised
    over the C classes, and what was the unknown's is the outcome's `unknown` `(n,)`."""

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        outcome = dist.Categorical(logits=output[..., :-1])
        outcome.unknown = output.softmax(-1)[..., -1]
        return outcome


class Bernoulli(nn.Module):
    """Labels 0 or 1 from one logit: `(n, 1)` -> y `(n,)`; wider outputs (masks of images) keep their shape."""

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=one_column(output))


class Normal(nn.Module):
    """Targets `(n,)` from means `(n, 1)` with one learned precision tau: y ~ N(mean, 1/tau).

    `precision` is where it starts; `learn=False` fixes it there.
    """

    def __init__(self, precision: float = 1.0, learn: bool = True) -> None:
        super().__init__()
        if not 0 < precision < math.inf:
            raise ValueError(f"expected a precision above 0, one over the variance of the noise, got {precision}")
        start = torch.tensor(math.log(precision))
        self.log_precision: Tensor
        if learn:
            self.log_precision = nn.Parameter(start)
        else:
            self.register_buffer("log_precision", start)

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Normal(one_column(output), torch.exp(-0.5 * self.log_precision))


LIKELIHOODS: dict[str, type[nn.Module]] = {
    "categorical": Categorical, "categorical-unknown": WithUnknown, "bernoulli": Bernoulli, "normal": Normal,
}  # fmt: skip


def one_column(output: Tensor) -> Tensor:
    """`(n, 1)` -> `(n,)`; anything else as it is."""
    return output.squeeze(-1) if output.dim() == 2 and output.shape[-1] == 1 else output


def likelihood_of(likelihood: str | Likelihood) -> Likelihood:
    """By name, or as it is. Raises ValueError for a name that none has."""
    if callable(likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"expected a likelihood of {', '.join(LIKELIHOODS)} or a callable, got {likelihood!r}")
    return LIKELIHOODS[likelihood]()


def is_of_gpytorch(likelihood: Likelihood) -> bool:
    """Is it one of GPyTorch's?"""
    return any(kind.__module__.startswith("gpytorch.") for kind in type(likelihood).__mro__)


def said_of(says: Likelihood, likelihood: Any, output: Any) -> dist.TorchDistribution:
    """What `says`, a likelihood or a call of it, makes of an output. Of GPyTorch's at `(n, d)`: those of single outputs expect
    `(n,)`, and `SoftmaxLikelihood` transposes what has as many rows as features, with a warning, so it gets one more."""
    if not isinstance(output, Tensor) or not is_of_gpytorch(likelihood):
        return says(output)
    if hasattr(likelihood, "num_features") and len(output) == likelihood.num_features:
        return dist.Categorical(logits=says(torch.cat([output, output[-1:]])).logits[:-1])
    return says(output if hasattr(likelihood, "num_features") or hasattr(likelihood, "num_tasks") else one_column(output))


def plain(outcome: dist.TorchDistribution) -> dist.TorchDistribution:
    """Without `to_event`: an example's outputs one by one."""
    while isinstance(outcome, torch.distributions.Independent):
        outcome = outcome.base_dist
    return outcome


def is_soft(y: Tensor, outcome: dist.TorchDistribution) -> bool:
    """Are these labels probabilities of the classes?"""
    return isinstance(outcome, dist.Categorical) and y.is_floating_point() and y.dim() == outcome.logits.dim()


def matched(y: Tensor, outcome: dist.TorchDistribution) -> Tensor:
    """Targets in the shape and kind of what the likelihood says. Raises ValueError where they would broadcast."""
    if not isinstance(outcome, dist.Categorical):
        y = y.to(torch.get_default_dtype()) if not y.is_floating_point() else y
    shape = outcome.logits.shape if is_soft(y, outcome) else outcome.shape()
    if shape == (*y.shape, 1):
        y = y.unsqueeze(-1)
    if shape != y.shape:
        raise ValueError(f"expected targets of shape {tuple(shape)}, as the likelihood has, got {tuple(y.shape)}")
    return y
