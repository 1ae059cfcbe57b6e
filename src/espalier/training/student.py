"""The one network that learns what others say: Nesterov SGD, of clipped gradients, on the cross-entropy from what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from espalier import nested
from espalier.likelihoods import Normal, plain
from espalier.network import BayesianNetwork
from espalier.prediction.pairs import State
from espalier.store import Bundle
from espalier.training import distributed, objective, rates
from espalier.training.finite import Finite
from espalier.training.teachers import copied, cross_entropy

LONGEST = 1.0
"""Of a gradient (Pascanu et al. 2013), nats: without an end, a long first step on few weights may kill a network's ReLUs."""


def _variance(outcome: dist.TorchDistribution) -> float | Tensor:
    """Of a normal student, the mean over the batch; 1 for labels."""
    outcome = plain(outcome)
    return outcome.scale.detach().square().mean() if isinstance(outcome, dist.Normal) else 1.0


class Refused(RuntimeError):
    """A student that is not handed out: its loss is no number, or it ended farther from its teachers than their ticket."""


class Student:
    """The one network that learns, and its optimiser. values: of the active weights, `(k,)`; state: all else, by name."""

    def __init__(
        self, model: BayesianNetwork, values: Tensor, state: State, rate: rates.Rate, precision: str = "float32"
    ) -> None:
        self.model, self.rate, self.precision, self.taken = model, rate, precision, 0
        self.finite = Finite(lambda _: Refused("the distillation's loss stopped being finite: lower the distill_rate"))
        self.state = copied(state)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.values = values.detach().clone().requires_grad_()
        self.own = {n: t.detach().clone().requires_grad_() for n, t in state.items() if n in trained}
        self.optimizer = torch.optim.SGD([self.values, *self.own.values()], lr=0.0, momentum=0.9, nesterov=True)

    def learn(self, x: Any, told: Sequence[dist.TorchDistribution], dense: Callable[[Tensor], Tensor]) -> Tensor:
        """One step towards the even mixture of what is told of x. dense: places values of the active weights among all. Returns
        the cross-entropy, nats per label. Raises Refused where that is no number."""
        self.taken += 1
        with objective.cast(self.precision, self.values.device):
            output = self.model.evaluate(dense(self.values), x, {**copied(self.state), **self.own})
        outcome = self.model.says(nested.each(in_full, output), self.own)
        loss = torch.stack([cross_entropy(one, outcome).mean() for one in told]).mean()
        unit = _variance(outcome)
        seen = distributed.mean(loss.detach())
        self.finite.see(self.taken, seen)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.taken)
        self.optimizer.zero_grad()
        objective.backward(loss * unit)
        distributed.average_gradients(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], LONGEST)
        self.optimizer.step()
        return seen

    @torch.no_grad()
    def match_precision(
        self, told: Sequence[dist.TorchDistribution], x: Any, dense: Callable[[Tensor], Tensor]
    ) -> None:
        """Of a normal likelihood with one learned precision: its optimum, given the means at rows x and what is told of them."""
        learned = self.own.get("likelihood.log_precision")
        if learned is None or not isinstance(self.model.likelihood, Normal):
            return
        values, state = self.network()
        own = plain(self.model.outcome(dense(values), x, copied(state)))
        spread = [(one.scale.square() + (one.loc - own.loc).square()).mean() for one in map(plain, told)]
        learned.copy_(-torch.stack(spread).mean().log())

    def network(self) -> tuple[Tensor, State]:
        """Values `(k,)` and the other parameters and buffers."""
        own = {name: tensor.detach().clone() for name, tensor in self.own.items()}
        return self.values.detach().clone(), {**copied(self.state), **own}

    def bundle(self) -> Bundle:
        """What its next step depends on."""
        tensors = {"values": self.values.detach(), **{f"own.{name}": t.detach() for name, t in self.own.items()}}
        tensors |= {f"state.{name}": tensor for name, tensor in self.state.items()}
        for name, parameter in self._parameters():
            if (momentum := self.optimizer.state[parameter].get("momentum_buffer")) is not None:  # the output depends on it
                tensors[f"momentum.{name}"] = momentum
        return Bundle(tensors, {"step": self.taken})

    def restore(self, saved: Bundle) -> None:
        self.taken = saved.facts["step"]
        self.values.data.copy_(saved.tensors["values"])
        for name, tensor in self.own.items():
            tensor.data.copy_(saved.tensors[f"own.{name}"])
        for name, tensor in self.state.items():
            tensor.copy_(saved.tensors.get(f"state.{name}", tensor))
        for name, parameter in self._parameters():
            if f"momentum.{name}" in saved.tensors:
                self.optimizer.state[parameter]["momentum_buffer"] = saved.tensors[f"momentum.{name}"].to(parameter.device)

    def _parameters(self) -> list[tuple[str, Tensor]]:
        """By name: a file does not keep their order."""
        return [("values", self.values), *((f"own.{name}", tensor) for name, tensor in self.own.items())]


def in_full(leaf: Any) -> Any:
    """What autocast made short, in float32: likelihoods are not for eight bits."""
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16) else leaf
