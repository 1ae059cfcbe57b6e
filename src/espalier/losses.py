"""Losses in the likelihood's place: what pulls the weights, while predictions stay the likelihood's.

The Pyro model has one as `factor("y", -loss)`, so that what is fitted is a Gibbs posterior (Bissiri, Holmes & Walker 2016), by
every inference, topology and mask alike. A new one is a function `(logits (m, C), labels (m,), progress) -> (m,)`, in nats per
label; progress is the fraction of training that is over, in [0, 1). Of several processes each sees its own share of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from espalier.followers import Follower
from espalier.store import Bundle

if TYPE_CHECKING:
    from espalier.contracts import Data
    from espalier.guides.masked import MaskedGuide
    from espalier.network import BayesianNetwork
    from espalier.prediction.fit import Fit

Function = Callable[[Tensor, Tensor, float], Tensor]
LIKELIHOOD = "likelihood"
SMALL = 0.01
"""Where the warm-up of `gradient-decay` begins; ours, the paper's schedule is not public."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y of each label, nats. Raises IndexError for a label that is no class."""
    return -logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)


def gradient_decay(logits: Tensor, y: Tensor, b: float) -> Tensor:
    """J_b = log(sum_{i != y} e^{z_i} + b e^{z_y}) - z_y (Zhang & Xie 2024): the larger b > 0, the sooner right answers
    stop pulling.

    Computed as the cross-entropy of z + log(b) onehot(y), plus log b, which it equals; b = 1 is the cross-entropy.
    """
    margin = torch.zeros_like(logits).scatter_(-1, y.unsqueeze(-1), math.log(b))
    return cross_entropy(logits + margin, y) + math.log(b)


def robust(logits: Tensor, y: Tensor, temperature: float, *, through: bool = False) -> Tensor:
    """m p_i l_i, l the cross-entropies of m labels and p_i proportional to exp(l_i / temperature): their mean is sum p_i l_i, the
    worst case that a KL of price `temperature` allows (Sapkota et al. 2023).

    The gradient is p_i grad l_i (Danskin); `through` lets it run through p too, as the paper's released code does, which
    multiplies it by 1 + (l_i - sum p l) / temperature.
    """
    losses = cross_entropy(logits, y)
    shares = (losses / temperature).softmax(0)
    return len(losses) * (shares if through else shares.detach()) * losses


def _gradient_decay(b: float, warmup: float = 0.0) -> Function:
    if not b > 0 or not 0 <= warmup <= 1:
        raise ValueError(f"expected a b above 0 and a warmup in [0, 1], a fraction of training, got {b:g} and {warmup:g}")

    def loss(logits: Tensor, y: Tensor, progress: float) -> Tensor:
        reached = min(1.0, progress / warmup) if warmup else 1.0
        start = min(SMALL, b)
        return gradient_decay(logits, y, start + (b - start) * reached)

    return loss


def _robust(through: bool) -> Callable[[float], Function]:
    def of(temperature: float) -> Function:
        if not temperature > 0:
            raise ValueError(f"expected a temperature above 0, got {temperature:g}: large is the mean, small the worst label")

        def loss(logits: Tensor, y: Tensor, progress: float) -> Tensor:
            return robust(logits, y, temperature / 2 * (1 + math.cos(math.pi * progress)), through=through)

        return loss

    return of


LOSSES: Mapping[str, tuple[Callable[..., Function], str]] = {
    "gradient-decay": (_gradient_decay, "gradient-decay:B or gradient-decay:B:WARMUP"),
    "dro": (_robust(through=False), "dro:TEMPERATURE"),
    "dro-released": (_robust(through=True), "dro-released:TEMPERATURE"),
}
"""By name: what makes one of its numbers, and how they are written. The temperature of dro falls to 0 by half a cosine."""


def named(spec: str | Function) -> Function | None:
    """The function that is meant by `NAME:NUMBER...`, or one's own; None for the likelihood.

    Raises ValueError for a name that none has, and for numbers that it does not take.
    """
    if callable(spec):
        return spec
    if spec == LIKELIHOOD:
        return None
    name, *numbers = spec.split(":")
    if name not in LOSSES:
        raise ValueError(f"expected a loss of {LIKELIHOOD}, {', '.join(form for _, form in LOSSES.values())}, got {spec!r}")
    make, form = LOSSES[name]
    try:
        return make(*map(float, numbers))
    except (TypeError, ValueError) as error:
        why = str(error) if str(error).startswith("expected") else "other numbers than it takes"
        raise ValueError(f"expected a loss {form}, got {spec!r}: {why}") from error


class Loss(Follower):
    """One loss of one training of `steps` steps, which it follows: its state is in the checkpoints."""

    def __init__(self, spec: str | Function, function: Function, steps: int) -> None:
        self.name = spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
        self.function, self.steps, self.taken = function, steps, 0

    def __call__(self, logits: Any, y: Tensor) -> Tensor:
        """Of each example `(n,)`, the sum over its labels `(n, ...)`. Raises ValueError for logits that are not `(n, ..., C)`."""
        if not isinstance(logits, Tensor) or logits.shape[:-1] != y.shape or y.is_floating_point():
            said = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"expected a tensor of logits, one row for each of the labels {tuple(y.shape)}, for loss {self.name}, got {said}"
            )
        each = self.function(logits.flatten(0, -2), y.flatten().long(), self.taken / self.steps)
        if each.shape != (y.numel(),):
            of = tuple(each.shape)
            raise ValueError(f"expected loss {self.name} to give one number for each of {y.numel()} labels, got {of}")
        return each.view(len(y), -1).sum(1)

    def after(self, taken: int, x: Any, output: Any, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.taken = taken

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.taken = saved.facts["step"]

    def end(self, fit: Fit, data: Data) -> None:
        fit.record["loss"] = self.name
