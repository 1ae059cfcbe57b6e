"""The posterior predictive projected back onto one sparse net: one forward pass, as calibrated as its own draws.

From the ticket's weights, on its frozen support, minimise over w

    L(w) = (1/N) sum_n CE( E_Z softmax f(x_n; Z * u),  softmax f(x_n; w) )

with u the average over the collected pairs. Cross-entropy is linear in its first argument, so one draw of Z per step gives an
unbiased gradient: the teacher costs a forward pass. It sees training inputs only, no labels and no held-out data. Sources:
Korattikara et al. 2015, *Bayesian dark knowledge*; Bulo et al. 2016, *Dropout distillation*.

For a regression both are normal, and the cross-entropy teaches the one net the spread between the masked ones too, as far as
its likelihood has a variance to learn. Each step is then taken in units of the student's own variance: the loss times it,
held fixed, has the same optimum, and its gradient does not grow with the precision, from which plain SGD runs away. One learned
precision ends at its optimum given the means, the inverse mean of (f_Z - f)^2 + 1 / tau (moment matching).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from espalier.contracts import Data
from espalier.guides.masked import draw_mask
from espalier.likelihoods import Normal, plain
from espalier.network import BayesianNetwork, evaluating, under
from espalier.prediction import batchnorm
from espalier.prediction.fit import Fit, State
from espalier.prediction.predict import outcome_of, to_device
from espalier.store import Bundle
from espalier.training import distributed, rates
from espalier.training.batches import batches
from espalier.training.loop import Info
from espalier.training.options import MOST_EPOCHS, Training
from espalier.training.streams import Streams
from espalier.training.train import validation_scores
from espalier.training.watch import Silent, Watch

SHOWN, MASKS = 512, 8
"""Training rows and masks by which the end of distillation is compared with its beginning."""
WORSE = 0.05
"""Nats, or share of them, by which a student may end farther from its teacher than its ticket: more is no noise."""


def distill(
    fit: Fit,
    data: Data,
    *,
    training: Training,
    streams: Streams,
    epochs: int,
    learning_rate: float,
    watch: Watch | None = None,
) -> Fit:
    """Add the distilled network to `fit`, as its way to predict `distilled`; returns the same fit.

    epochs: passes over the training inputs, in batches and under the augmentation of `training`. learning_rate: its
    peak, of Nesterov SGD under a cosine. Raises ValueError for a fit without random masks, or a likelihood that is not
    categorical, Bernoulli or normal.
    """
    check(fit.model, data, fit.keep_prob, epochs, learning_rate)
    fit.look_at(data)
    devices = [streams.device] if streams.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        pyro.validation_enabled(False),
    ):  # a loss that is not finite gets our own sentence
        return _distill(fit, data, training, streams, epochs, learning_rate, watch or Silent())


@torch.no_grad()
def check(model: BayesianNetwork, data: Data, keep_prob: float, epochs: int, learning_rate: float) -> None:
    """Can this be distilled? Raises ValueError before any work where it cannot."""
    if keep_prob == 1:
        raise ValueError(
            "expected a drop_rate above 0: without random masks there is one network and nothing to distill"
        )
    if not 1 <= epochs <= MOST_EPOCHS or not 0 < learning_rate < math.inf:
        raise ValueError(f"expected distill_epochs of at least 1 and a rate above 0, got {epochs} and {learning_rate}")
    with evaluating(model):
        rows = to_device(data.train.x[torch.arange(min(2, len(data.train.y)))], model.initial.device)
        outcome = model.outcome(model.initial, rows)
    cross_entropy(outcome, outcome)


def _distill(
    fit: Fit, data: Data, training: Training, streams: Streams, epochs: int, learning_rate: float, watch: Watch
) -> Fit:
    student = _Student(fit, rates.cosine(learning_rate, epochs * training.steps_per_epoch(data)))
    shown = to_device(data.train.x[torch.arange(min(SHOWN, len(data.train.y)))], streams.device)
    fit.model.train()  # batch norm by the batch, for teacher and student alike
    ticket = student.distance(shown)
    history: list[dict[str, Any]] = []
    streams.seed_default()
    saved = watch.resume()
    if saved is not None:
        history = saved.facts["history"]
        student.restore(saved)
        streams.restore(under("stream.", saved.tensors))
    for _ in range(len(history), epochs):
        losses, number = [], training.epochs + len(history) + 1
        streams.part_ways(number)
        with distributed.synchronised(fit.model.net, streams.device):
            for x, _ in batches(data, training, streams):
                losses.append(student.step(x, streams.mask))
                watch.step(Info(student.taken, losses[-1], -losses[-1], torch.zeros(()), 0))
        row = {"epoch": number, "step": fit.history[-1]["step"] + student.taken, "loss": float(torch.stack(losses).mean()),
               "learning_rate": student.rate(student.taken), "density": fit.topology.density, "exchanged": 0}  # fmt: skip
        history.append(row | _validate(fit, data, *student.network()))
        watch.epoch(history[-1], lambda: student.checkpoint(streams, history))
    student.match_precision(shown)
    if not (reached := student.distance(shown)) <= ticket + WORSE * max(1.0, abs(ticket)):
        raise RuntimeError(
            f"the distilled net ended farther from its teacher than the ticket that it began as, {reached:.4g} against "
            f"{ticket:.4g} nats: lower the distill_rate"
        )
    fit.model.eval()
    fit.history = [*fit.history, *history]
    fit.record |= {"distilled": {"epochs": epochs, "learning_rate": learning_rate, "loss": history[-1]["loss"]}}
    values, state = student.network()
    fit.student = (values, batchnorm.estimate(fit.model, fit.dense(values), state, fit.inputs) if fit.inputs else state)
    return fit


def cross_entropy(teacher: dist.TorchDistribution, student: dist.TorchDistribution) -> Tensor:
    """-E log student(y) under y ~ teacher, `(n, ...)`, nats: a sum over classes, or the closed form of two normals."""
    teacher, student = plain(teacher), plain(student)
    if isinstance(student, dist.Categorical) and isinstance(teacher, dist.Categorical):
        loss: Tensor = -(teacher.probs * student.logits).sum(-1)
        return loss
    if isinstance(student, dist.Normal) and isinstance(teacher, dist.Normal):
        square = teacher.scale.square() + (teacher.loc - student.loc).square()
        loss = 0.5 * square / student.scale.square() + student.scale.log() + 0.5 * math.log(2 * math.pi)
        return loss
    if isinstance(student, dist.Bernoulli) and isinstance(teacher, dist.Bernoulli):
        return torch.nn.functional.binary_cross_entropy_with_logits(student.logits, teacher.probs, reduction="none")
    raise ValueError(f"expected a categorical, Bernoulli or normal likelihood to distill, got {type(student).__name__}")


def _variance(outcome: dist.TorchDistribution) -> float | Tensor:
    """Of a normal student, the mean over the batch; 1 for labels."""
    outcome = plain(outcome)
    return outcome.scale.detach().square().mean() if isinstance(outcome, dist.Normal) else 1.0


class _Student:
    """The one network that learns, its optimiser, and the masked teacher."""

    def __init__(self, fit: Fit, rate: rates.Rate) -> None:
        self.fit, self.rate, self.taken = fit, rate, 0
        pairs = fit.pairs
        self.factor = 1 / fit.keep_prob if fit.rescale else 1.0
        self.teacher = pairs.values.mean(0) * self.factor
        self.state = pairs.mean_state()
        trained = {name for name, parameter in fit.model.named_parameters() if parameter.requires_grad}
        self.values = (fit.pairs.values * fit.pairs.keep).mean(0).mul(self.factor).requires_grad_()
        self.own = {n: t.clone().requires_grad_() for n, t in self.state.items() if n in trained}
        parameters = [self.values, *self.own.values()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, nesterov=True)

    def step(self, x: Any, stream: torch.Generator) -> Tensor:
        """One draw of Z, one step towards its predictions. Returns the cross-entropy, nats per example."""
        fit, self.taken = self.fit, self.taken + 1
        with torch.no_grad():
            keep = draw_mask(fit.topology.positions, fit.model.shapes, fit.mask, fit.keep_prob, stream)
            target = fit.model.outcome(fit.dense(self.teacher * keep), x, _copied(self.state))
        outcome = fit.model.outcome(fit.dense(self.values), x, {**_copied(self.state), **self.own})
        loss = cross_entropy(target, outcome).mean()
        unit = _variance(outcome)
        seen = distributed.mean(loss.detach())
        if not torch.isfinite(seen):
            raise RuntimeError("the distillation's loss stopped being finite: lower the distill_rate")
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.taken)
        self.optimizer.zero_grad()
        (loss * unit).backward()
        distributed.average_gradients(self.optimizer)
        self.optimizer.step()
        return seen

    def distance(self, x: Any) -> float:
        """Mean cross-entropy from `MASKS` draws of the teacher at rows x, nats: the same ones whenever it is asked."""
        return float(torch.stack([cross_entropy(*pair).mean() for pair in self._pairs(x)]).mean())

    @torch.no_grad()
    def match_precision(self, x: Any) -> None:
        """Of a normal likelihood with one learned precision: its optimum, given the means at rows x."""
        if (learned := self.own.get("likelihood.log_precision")) is not None and isinstance(self.fit.model.likelihood, Normal):
            both = [(plain(teacher), plain(student)) for teacher, student in self._pairs(x)]
            spread = [(t.scale.square() + (t.loc - s.loc).square()).mean() for t, s in both]
            learned.copy_(-torch.stack(spread).mean().log())

    @torch.no_grad()
    def _pairs(self, x: Any) -> Iterator[tuple[dist.TorchDistribution, dist.TorchDistribution]]:
        """What teacher, under `MASKS` masks, and student say of rows x."""
        fit, stream = self.fit, torch.Generator().manual_seed(0)
        student = fit.model.outcome(fit.dense(self.values), x, {**_copied(self.state), **self.own})
        for _ in range(MASKS):
            keep = draw_mask(fit.topology.positions.cpu(), fit.model.shapes, fit.mask, fit.keep_prob, stream)
            weights = fit.dense(self.teacher * keep.to(self.teacher.device))
            yield fit.model.outcome(weights, x, _copied(self.state)), student

    def network(self) -> tuple[Tensor, State]:
        """Values `(k,)` and the other parameters and buffers."""
        own = {name: tensor.detach().clone() for name, tensor in self.own.items()}
        return self.values.detach().clone(), {**_copied(self.state), **own}

    def checkpoint(self, streams: Streams, history: list[dict[str, Any]]) -> Bundle:
        tensors = {"values": self.values.detach(), **{f"own.{name}": t.detach() for name, t in self.own.items()}}
        tensors |= {f"stream.{name}": state for name, state in streams.state().items()}
        for name, parameter in self._parameters():
            tensors[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        return Bundle(tensors, {"step": self.taken, "history": history})

    def restore(self, saved: Bundle) -> None:
        self.taken = saved.facts["step"]
        self.values.data.copy_(saved.tensors["values"])
        for name, tensor in self.own.items():
            tensor.data.copy_(saved.tensors[f"own.{name}"])
        for name, parameter in self._parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = saved.tensors[f"momentum.{name}"].to(parameter.device)

    def _parameters(self) -> list[tuple[str, Tensor]]:
        """By name: a file does not keep their order."""
        return [("values", self.values), *((f"own.{name}", tensor) for name, tensor in self.own.items())]


def _copied(state: State) -> State:
    """Batch norm writes into the buffers that it is given."""
    return {name: tensor.clone() for name, tensor in state.items()}


def _validate(fit: Fit, data: Data, values: Tensor, state: State) -> dict[str, float]:
    if not len(data.validation.y):
        return {}
    return validation_scores(outcome_of(fit.model, fit.dense(values), data.validation.x, state), data)
