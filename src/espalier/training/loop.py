"""One step of training: an optimiser's step on the ELBO, or a move of the topology in its place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from espalier.contracts import Evidence, Schedule
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork, under
from espalier.sparse import kernels
from espalier.sparse.trial import unmoved
from espalier.store import Bundle
from espalier.topology import codes
from espalier.topology.masks import relocate, united
from espalier.training import distributed, objective, rates
from espalier.training.finite import Finite


class Info(NamedTuple):
    """What one step did; for readers, never fed back."""

    step: int
    loss: Tensor
    """-ELBO / N of the batch, before the step; nats per example, up to the guide's constant."""
    log_likelihood: Tensor
    """Expected log-likelihood per example, nats."""
    kl: Tensor
    """KL bound per example (times kl_scale), nats."""
    grown: int
    """Weights exchanged, where the step was a topology move."""
    moved: bool = False
    """Was the step a topology move?"""
    active: int = 0
    """Active weights that the step computed with."""


class Loop:
    """One step at a time: `step(x, y)` is a step of the optimiser on the ELBO, or a move of the topology in its place."""

    def __init__(
        self,
        model: BayesianNetwork,
        guide: MaskedGuide,
        schedule: Schedule,
        learning_rate: rates.Rate,
        *,
        optimizer: str = "sgd",
        momentum: float = 0.9,
        precision: str = "float32",
        topology_stream: torch.Generator | None = None,
        followers: Sequence[Follower] = (),
    ) -> None:
        self.followers = followers
        self.model, self.guide, self.schedule, self.learning_rate = model, guide, schedule, learning_rate
        self.precision, self.topology_stream = precision, topology_stream or torch.Generator()
        self.closed: bool | None = None
        points = [parameter for parameter in model.parameters() if parameter.requires_grad]
        parameters = [*guide.parameters(), *points]  # their decay is in the ELBO, so the optimiser has none
        if optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters)
        else:
            ahead = momentum > 0 and all(follower.nesterov for follower in followers)
            self.optimizer = torch.optim.SGD(parameters, momentum=momentum, nesterov=ahead)
        self.taken = 0
        self.finite = Finite(
            lambda step: RuntimeError(f"the loss stopped being finite at step {step}: lower the learning_rate or add warmup")
        )
        self.ever = guide.topology
        """All weights that were active at one time."""
        self.source: Tensor | None = None
        for follower in followers:
            follower.begin(model, guide)

    def step(self, x: Any, y: Tensor) -> Info:
        """One step on a batch x `(b, *shape)`, y `(b, ...)`: the same Z in the forward pass, the gradient and the guide."""
        self.taken += 1
        if self.closed is None:
            self.closed = objective.is_ours(self.model, self.guide, x, y)
        moving, active = self.schedule.due(self.taken), len(self.guide.values)
        self.guide.tapped = moving
        self.optimizer.zero_grad()
        terms = (objective.closed_form if self.closed else objective.by_pyro)(
            self.model, self.guide, x, y, objective.cast(self.precision, y.device)
        )
        seen = distributed.mean(terms.loss)
        self.finite.see(self.taken, seen)
        grown, self.source = 0, None
        if moving:
            self.finite.settle()
            gradient = distributed.mean(self.guide.gradient())
            if not torch.isfinite(gradient.sum()):  # of a finite loss it need not be
                raise RuntimeError(
                    f"the gradient stopped being finite at step {self.taken}: lower the learning_rate or add warmup"
                )
            evidence = Evidence(
                self.taken, self.guide.values.data, gradient, self.topology_stream, self.guide.scales(),
                partial(self._loss_with, x, y),
            )  # fmt: skip
            move = self.schedule.move(self.guide.topology, evidence)
            self.guide.move(move, self.optimizer)
            self.ever = united(self.ever, self.guide.topology)
            grown, self.source = move.num_grown, move.source
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(self.taken)
            distributed.average_gradients(self.optimizer)
            for follower in self.followers:
                follower.before(self.taken, x, y, self.model, self.guide)
            self.optimizer.step()
        for follower in self.followers:
            follower.after(self.taken, self.model, self.guide)
        return Info(self.taken, seen, terms.kl + terms.l2 - seen, terms.kl, grown, moving, active)

    @torch.no_grad()
    def _loss_with(self, x: Any, y: Tensor, kept: Tensor) -> float:
        """-log p(y | x, w) at the guide's values, of those kept `(k,)`: the mean over the batch, nats. No buffer moves."""
        guide, model = self.guide, self.model
        values = guide.values.data * (kept.to(guide.values.dtype) * guide.scale)
        weights = guide.placed(values)
        with unmoved(*model.children(), device=values.device), objective.cast(self.precision, y.device):
            loss = objective.negative_log_likelihood(model, model.evaluate(weights, x), y)
        return float(distributed.mean(loss))

    @property
    def keep(self) -> Tensor:
        """Z of the last step `(k,)`, of the weights that are active after it; of one that has just grown, and is zero, it says
        nothing."""
        assert self.guide.keep is not None
        return self.guide.keep if self.source is None else relocate(self.guide.keep, self.source) | (self.source < 0)

    def state(self) -> Bundle:
        """Everything that the next step depends on, but for the random streams."""
        tensors = {codes.NAME: codes.to_gaps(self.guide.topology), **self.guide.lengthwise()}
        tensors[f"ever.{codes.NAME}"] = codes.to_gaps(self.ever)
        tensors |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": slot for name, slot in slots.items() if slot is not None}
        facts: dict[str, Any] = {"step": self.taken, "kernels": kernels.current().name}
        for own in [follower.bundle() for follower in self.followers]:
            tensors, facts = tensors | own.tensors, facts | own.facts
        return Bundle(tensors, facts)

    def restore(self, state: Bundle) -> None:
        """Continue from `state`."""
        begun, own = state.facts.get("kernels", kernels.STOCK.name), kernels.current().name
        if begun != own:
            apart = "equal to rounding, not to the bit"
            warnings.warn(f"this training began with {begun} kernels and goes on with {own}: {apart}", stacklevel=2)
        tensors = state.tensors
        topology = codes.read(tensors, self.guide.sizes)
        self.ever = codes.read(under("ever.", tensors), self.guide.sizes) if f"ever.{codes.NAME}" in tensors else topology
        device = self.guide.values.device
        self.guide.positions, self.guide.counts = topology.positions.to(device), topology.counts
        for name, parameter in self.guide.named_parameters():
            parameter.data = tensors[name].to(device)
        self.model.load_state_dict(under("model.", tensors))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("optimizer.", tensors).items():
            index, key = name.split(".", 1)
            slots.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.taken = state.facts["step"]
        for follower in self.followers:
            follower.restore(state, self.model, self.guide)
