"""A control variate for the gradient: that of the same batch at a snapshot of the network, of which the mean is known (AGENT,
Lei et al. 2023; with a coefficient of one it is SVRG, Johnson & Zhang 2013).

    once an epoch, at weights w:  u = the mean over all batches j of grad L_j(w),  c <- memory c + (1 - memory) c^,
                                  c^ = Cov_j(L_j(w), L_j(w_snap)) / Var_j(L_j(w_snap)),  and then w_snap = w
    every step, on batch B:       g <- g + gamma c (u - grad L_B(w_snap)),  by the Z of the step itself

L is the likelihood's part of the loss: prior and L2 do not depend on the batch and would cancel. The snapshot is a network of its
own: a move of the topology leaves it as it is, with the weights that have since been dropped, so that u stays the mean of its
gradients. The correction is handed on where both networks have a weight; one that has grown has none until the next epoch: of
it nothing was computed, and 0 has the mean that a correction needs. So g has the expectation of the plain gradient, whatever c.

Where weights are masked, each batch of the pass has a Z of its own, drawn from a stream of this file; u is right on average over
them. The pass looks at all training rows, in their order and without augmentation or mixup: under these u is the mean of another
gradient, and g is biased by gamma c times the difference. Batch norm is by each batch's own statistics, as in the step, and no
buffer is moved; a network's own dropout is drawn afresh, and its stream left where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from espalier import nested
from espalier.contracts import Data, Topology
from espalier.data.streamed import in_turn
from espalier.distributions.masked import draw_keep
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork, under
from espalier.prediction.fit import Fit
from espalier.prediction.predict import to_device
from espalier.randomness import forked, own_stream
from espalier.sparse import Layout, scatter
from espalier.sparse.trial import unmoved
from espalier.store import Bundle
from espalier.topology import codes
from espalier.topology.masks import relocate, sources
from espalier.training import distributed, objective
from espalier.training.batches import soften
from espalier.training.options import Training

STREAM = 12
"""Of random numbers, apart from those of training."""
GRADIENT = 3
"""A forward and a backward pass, in forward passes."""


class Point(NamedTuple):
    """A network: values `(k,)` of the active weights, and the other parameters that are trained."""

    topology: Topology
    values: Tensor
    others: tuple[Tensor, ...]
    layout: Layout | None

    @property
    def positions(self) -> Tensor:
        return self.topology.positions


class ControlVariate(Follower):
    """Of one training on `data`. gamma: damping of the correction. coefficient: c before the second epoch. memory: of c."""

    def __init__(
        self, data: Data, training: Training, *, gamma: float = 0.1, coefficient: float = 0.1, memory: float = 0.7, seed: int = 0
    ) -> None:
        if not 0 < gamma < float("inf") or not 0 <= memory <= 1 or not abs(coefficient) < float("inf"):
            raise ValueError(
                f"expected a gamma above 0, a finite coefficient and a memory in [0, 1], got {gamma}, {coefficient} and {memory}"
            )
        self.data, self.training = data, training
        self.gamma, self.coefficient, self.memory = gamma, coefficient, memory
        self.per_epoch = training.steps_per_epoch(data)
        self.passed, self.work = 0, 0
        """Epochs that have had their pass; forward passes of an example beside the training's own."""
        self.generator = own_stream(seed, STREAM)
        self.options = {"gamma": gamma, "coefficient": coefficient, "memory": memory}
        self.snapshot: Point | None = None
        self.mean: tuple[Tensor, ...] = ()
        """u: of the snapshot's values, then of its other parameters."""

    def asked(self) -> dict[str, Any]:
        return self.options

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        one = isinstance(guide.keep_prob, float) and guide.num_particles == guide.microbatches == 1
        if guide.scales() is not None or guide.mask != "weight" or not one:
            raise ValueError(
                "expected a guide with one Z a step and weight for a control variate, which is to share it: use MaskedGuide with "
                "mask weight, one particle, one microbatch and one keep_prob"
            )

    def before(self, taken: int, x: Any, y: Tensor, model: BayesianNetwork, guide: MaskedGuide) -> None:
        epoch = 1 + (taken - 1) // self.per_epoch
        if self.passed < epoch:
            self.look(model, guide)
            self.passed = epoch
        assert self.snapshot is not None
        assert guide.keep is not None
        keep = self.carried(guide.keep, guide.positions, self.snapshot.positions, one_rate(guide))
        _, gradients = self.gradient(model, guide, self.snapshot, keep, x, y)
        self.work += GRADIENT * nested.num_rows(x) * distributed.size()
        moved = [mean - distributed.mean(gradient) for mean, gradient in zip(self.mean, gradients, strict=True)]
        moved[0] = relocate(moved[0], sources(self.snapshot.positions, guide.positions))
        for parameter, correction in zip([guide.values, *points(model)], moved, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(correction, alpha=self.gamma * self.coefficient)

    def look(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """The pass: u and c at the weights as they are, which then are the snapshot."""
        others = tuple(parameter.detach().clone() for parameter in points(model))
        now, old = Point(guide.topology, guide.values.detach().clone(), others, guide.layout), self.snapshot
        total, losses = [torch.zeros_like(tensor) for tensor in (now.values, *others)], []
        with forked(guide.values.device):  # what the network draws itself is drawn afresh for every batch
            for x, y in self.batches(guide.values.device):
                keep = draw_keep(len(now.values), one_rate(guide), torch.device("cpu"), self.generator).to(now.values.device)
                loss, gradients = self.gradient(model, guide, now, keep, x, y)
                self.work += GRADIENT * len(y) * distributed.size()
                for sum_, gradient in zip(total, gradients, strict=True):
                    sum_.add_(gradient, alpha=len(y) / len(self.data.train.y))
                if old is not None:
                    kept = self.carried(keep, now.positions, old.positions, one_rate(guide))
                    with standing(model, guide, old, kept) as weights, torch.no_grad():
                        losses.append([float(loss), float(self.loss(model, weights, x, y))])
                    self.work += len(y) * distributed.size()
                torch.rand((), device=guide.values.device)  # each evaluation puts the stream back: on to the next
        self.snapshot, self.mean = now, tuple(distributed.mean(tensor) for tensor in total)
        if len(losses) > 1:
            here, there = np.array(losses).T
            if there.var() > 0:
                slope = torch.tensor(np.cov(here, there, bias=True)[0, 1] / there.var())
                self.coefficient = self.memory * self.coefficient + (1 - self.memory) * float(distributed.mean(slope))

    def batches(self, device: torch.device) -> Iterator[tuple[Any, Tensor]]:
        """All training rows in their order, in as many batches as an epoch has; labels smoothed, and nothing else done to it."""
        x, y = self.data.train
        parts = torch.arange(len(y)).tensor_split(self.per_epoch)
        for rows, batch in zip(parts, in_turn(x, parts), strict=True):
            inputs, labels = to_device(batch, device), y[rows].to(device)
            if self.training.label_smoothing:
                inputs, labels = soften(inputs, labels, self.data.num_classes or 0, self.training.label_smoothing, 0.0)
            yield inputs, labels

    def carried(self, keep: Tensor, old: Tensor, new: Tensor, keep_prob: float) -> Tensor:
        """Z of the weights at `old` positions as one of those at `new` ones: what is not there is drawn."""
        source = sources(old, new)
        if keep_prob == 1.0 or bool((source >= 0).all()):
            return relocate(keep, source) | (source < 0)
        drawn = draw_keep(len(new), keep_prob, torch.device("cpu"), self.generator).to(keep.device)
        return torch.where(source < 0, drawn, relocate(keep, source))

    def gradient(
        self, model: BayesianNetwork, guide: MaskedGuide, point: Point, keep: Tensor, x: Any, y: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The likelihood's loss of a batch at a point under Z `(k,)`, and its gradient in values and other parameters."""
        values = point.values.clone().requires_grad_()
        with standing(model, guide, point._replace(values=values), keep) as weights:
            loss = self.loss(model, weights, x, y)
            wanted = [values, *points(model)]
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
        gradients = [torch.zeros_like(own) if one is None else one for one, own in zip(found, wanted, strict=True)]
        return loss.detach(), gradients

    def loss(self, model: BayesianNetwork, weights: Tensor, x: Any, y: Tensor) -> Tensor:
        """-log p(y | x, w), the mean over the batch, nats."""
        with objective.cast(self.training.precision, y.device):
            return objective.negative_log_likelihood(model, model.evaluate(weights, x), y)

    def row(self) -> dict[str, float]:
        return {"control": self.gamma * self.coefficient}

    def bundle(self) -> Bundle:
        facts = {"passed": self.passed, "coefficient": self.coefficient, "work": self.work}
        tensors = {"control.stream": self.generator.get_state()}
        if self.snapshot is not None:
            tensors |= {f"control.{codes.NAME}": codes.to_gaps(self.snapshot.topology), "control.values": self.snapshot.values}
            tensors |= {f"control.other.{index}": tensor for index, tensor in enumerate(self.snapshot.others)}
            tensors |= {f"control.mean.{index}": tensor for index, tensor in enumerate(self.mean)}
        return Bundle(tensors, {"control": facts})

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        facts, tensors = saved.facts["control"], under("control.", saved.tensors)
        self.passed, self.coefficient, self.work = facts["passed"], facts["coefficient"], facts["work"]
        self.generator.set_state(tensors.pop("stream").cpu())
        if self.passed:
            device = guide.values.device
            topology = codes.read(tensors, guide.sizes)
            topology = topology._replace(positions=topology.positions.to(device))
            others, mean = (tuple(one.to(device) for one in numbered(kind, tensors)) for kind in ("other.", "mean."))
            layout = Layout.where_worthwhile(topology.positions, topology.counts, guide.shapes)
            self.snapshot, self.mean = Point(topology, tensors["values"].to(device), others, layout), mean

    def end(self, fit: Fit, data: Data) -> None:
        held = [] if self.snapshot is None else [self.snapshot.positions, self.snapshot.values, *self.snapshot.others, *self.mean]
        fit.record["control_variate"] = {
            "gamma": self.gamma, "memory": self.memory, "coefficient": self.coefficient, "forward_examples": self.work,
            "state_bytes": sum(tensor.numel() * tensor.element_size() for tensor in held),
        }  # fmt: skip


def points(model: BayesianNetwork) -> list[nn.Parameter]:
    """The parameters beside the guide's that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def numbered(kind: str, tensors: dict[str, Tensor]) -> list[Tensor]:
    """Those under `kind`, by their numbers."""
    found = under(kind, tensors)
    return [found[str(index)] for index in range(len(found))]


@contextmanager
def standing(model: BayesianNetwork, guide: MaskedGuide, point: Point, keep: Tensor) -> Iterator[Tensor]:
    """For the while, the model's other parameters are the point's; yields its flat weights under Z. Buffers and torch's random
    streams are afterwards as they were."""
    before: Sequence[Tensor] = [parameter.data for parameter in points(model)]
    with unmoved(*model.children(), device=point.values.device), torch.enable_grad():
        try:
            for parameter, tensor in zip(points(model), point.others, strict=True):
                parameter.data = tensor
            values = point.values * (keep.to(point.values.dtype) * guide.scale)
            yield scatter(values, point.positions, model.num_weights, point.layout)
        finally:
            for parameter, tensor in zip(points(model), before, strict=True):
                parameter.data = tensor


def one_rate(guide: MaskedGuide) -> float:
    """P(Z = 1), which `begin` has made sure is one number."""
    assert isinstance(guide.keep_prob, float)
    return guide.keep_prob
