"""Sparse training in a torch loop of one's own: the topology, the random mask and the pairs of `inference/cigl`, attached to a
network whose loss, optimiser and data are somebody else's.

    sparse = attach(net, steps=len(loader) * epochs, sparsity=0.9, drop_rate=0.1, seed=0)
    for epoch in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss(net(x), y).backward()
            sparse.step(optimizer)        # in place of optimizer.step()
        sparse.collect()
    fit = sparse.fit()

A masked weight `w` becomes a parametrisation: the network computes with `w * M * Z`, one Z a step, in training mode, and with its
expectation in evaluation mode. A move of the topology takes the place of a step of the optimiser, as in `training/loop.py`. The
prior is the optimiser's own `weight_decay` (SGD and Adam add it to the gradient, as our ELBO does; AdamW decouples it, and is
then no prior's gradient).

On one seed, and the same batches, both loops give the same topology and weights to rounding, batch norm among it. Dropout and
augmentation draw from torch's default stream here, and there from streams that the seed decides.

What `infer` does better: its guide holds active weights alone, so gradients, moments and products are of their number, where a
foreign optimiser's are of all weights; the loss is the ELBO, of any likelihood and under plain Pyro; it finds the drop rate,
resumes bit for bit and trains on several processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from espalier.contracts import Data, Evidence, Schedule, Topology
from espalier.distributions.masked import given_keep_prob
from espalier.distributions.priors import prior_scale_of
from espalier.guides.masked import Mask, check_mask, draw_mask
from espalier.likelihoods import Likelihood
from espalier.network import BayesianNetwork
from espalier.prediction import batchnorm
from espalier.prediction.fit import Fit
from espalier.prediction.pairs import Pair, Pairs
from espalier.sparse import scatter
from espalier.topology import initial, schedules
from espalier.topology.masks import relocate
from espalier.training import distributed
from espalier.training.streams import Streams
from espalier.training.train import topology_facts

BN_BATCHES = 16
"""Batches of a `Data` that batch-norm statistics are re-estimated on, of `BN_SIZE` rows: as of `Training`."""
BN_SIZE = 128
_DECOUPLED = tuple(getattr(torch.optim, name) for name in ("AdamW", "Adafactor", "Muon") if hasattr(torch.optim, name))


def _decay(group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> float:
    """The weight decay that an optimiser adds to the gradient: 0 of one that takes it off the weights."""
    apart = group.get("decoupled_weight_decay", isinstance(optimizer, _DECOUPLED))
    return 0.0 if apart else float(group.get("weight_decay", 0.0))


class _Masked(nn.Module):
    """The parametrisation of one weight: what it is multiplied by."""

    def __init__(self, owner: Attached, index: int) -> None:
        super().__init__()
        self.owner, self.index = [owner], index  # in a list: `owner` is no module, and is not copied with one

    def forward(self, weight: Tensor) -> Tensor:
        return self.owner[0].masked(self.index, weight, self.training)


def attach(
    net: nn.Module,
    *,
    steps: int,
    sparsity: float = 0.9,
    drop_rate: float = 0.1,
    rescale: bool = False,
    mask: Mask = "weight",
    rule: str = "rigl",
    allocation: str = "erk",
    start: str = "random",
    delta_t: int = 100,
    drop_fraction: float = 0.3,
    freeze: float = 0.75,
    average_from: float = 0.8,
    maskable: Sequence[str] | None = None,
    likelihood: str | Likelihood = "categorical",
    num_data: int | None = None,
    seed: int = 0,
) -> Attached:
    """Make the layers of `net` sparse, in place, for a training of `steps` steps. Options are those of `inference/cigl`.

    maskable: glob patterns of the tensors to mask; by default Linear and Conv weights. likelihood: what the network's output is
    the parameter of, for the fit. num_data: training examples, for the prior that the weight decay is.
    Raises ValueError, before anything is changed, for options out of range, tied weights, several processes, and where pairs
    would be collected while the topology still moves.
    """
    if distributed.size() > 1:
        raise ValueError(f"expected one process, got {distributed.size()}: train on several with `espalier.train` (docs/gpus.md)")
    if not isinstance(drop_rate, Real):
        raise ValueError(f"expected a number for drop_rate, got {drop_rate!r}: to find one, use inference/cigl")
    if num_data is not None and num_data < 1:
        raise ValueError(f"expected num_data of at least 1, the training examples, got {num_data}")
    if steps < 1 or not 0 <= freeze <= 1 or not 0 <= average_from <= 1:
        got = f"{steps}, {freeze} and {average_from}"
        raise ValueError(f"expected steps of at least 1, freeze and average_from in [0, 1], got {got}")
    model = BayesianNetwork(net, likelihood=likelihood, num_data=num_data, maskable=maskable)
    check_mask(model, mask)
    tied = next((weight for weight in model.weights if len(weight.names) > 1), None)
    if tied is not None:
        names = " and ".join(tied.names)
        raise ValueError(f"expected weights of one layer each, but {names} are tied: leave them dense by maskable=")
    if any(parameter.requires_grad for parameter in getattr(model.likelihood, "parameters", tuple)()):
        raise ValueError(
            f"expected a likelihood that is known, but {type(model.likelihood).__name__} has parameters that your loss does not "
            "train: fix them, as espalier.likelihoods.Normal(precision, learn=False)"
        )
    streams = Streams(seed, model.initial.device)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    schedule = schedules.rule(rule, delta_t, int(round(freeze * steps, 9)), drop_fraction, topology.counts)
    if schedule.last > round(average_from * steps, 9):
        raise ValueError(
            f"expected averaging to start after the topology is frozen, got average_from {average_from} and a freeze at step "
            f"{schedule.last} of {steps}: raise one or lower the other"
        )
    if rule in schedules.PRUNING:
        topology = initial(model.shapes, 0.0, generator=streams.topology)
    keep_prob = given_keep_prob(drop_rate)
    return Attached(net, model, topology, schedule, streams, keep_prob, rescale, mask, round(average_from * steps, 9), steps)


class Attached:
    """What `attach` returns: the sparse training beside its network. A copy of the network shares it."""

    def __init__(
        self, net: nn.Module, model: BayesianNetwork, topology: Topology, schedule: Schedule, streams: Streams, keep_prob: float,
        rescale: bool, mask: Mask, collect_after: float, steps: int,
    ) -> None:  # fmt: skip
        self.net, self.model, self.topology, self.schedule, self.streams = net, model, topology, schedule, streams
        self.keep_prob, self.rescale, self.mask = keep_prob, rescale, mask
        self.scale = 1 / keep_prob if rescale else 1.0
        self.collect_after, self.steps = collect_after, steps
        self.taken, self.collected, self.weight_decay = 0, 0, 0.0
        self.pairs: list[Pair] = []
        self.keep: Tensor | None = None
        """The last Z, `(k,)`."""
        self._fresh = False
        self._factors: list[Tensor] = []
        self._active: list[Tensor] = []
        self._gradients: dict[int, Tensor] = {}
        self.owners = [(net.get_submodule(w.name.rpartition(".")[0]), w.name.rpartition(".")[2]) for w in model.weights]
        self.originals: list[nn.Parameter] = [getattr(owner, attribute) for owner, attribute in self.owners]
        for index, (owner, attribute) in enumerate(self.owners):
            parametrize.register_parametrization(owner, attribute, _Masked(self, index), unsafe=True)
        self._stand_on(topology)

    def __deepcopy__(self, memo: object) -> Attached:
        return self

    @property
    def values(self) -> Tensor:
        """u, `(k,)`: the unmasked values of the active weights."""
        return torch.cat([original.detach().reshape(-1) for original in self.originals])[self.topology.positions]

    # ---------------------------------------------------------------------------------------------- what the network asks for

    def masked(self, index: int, weight: Tensor, training: bool) -> Tensor:
        """What a layer computes with: `weight` times M and Z, one Z from step to step, or times M and E[Z]."""
        if self.topology.positions.device != weight.device:
            self._stand_on(self.topology._replace(positions=self.topology.positions.to(weight.device)))
        if not training:
            return weight * (self._active[index] * (self.keep_prob * self.scale))
        if not self._fresh:
            home = self.topology.positions.to(self.streams.device)
            keep = draw_mask(home, self.model.shapes, self.mask, self.keep_prob, self.streams.mask)
            self.keep, self._fresh = keep.to(weight.device), True
            self._factors = self._split(self.keep.to(weight.dtype) * self.scale)
        found = weight * self._factors[index]
        if self.schedule.due(self.taken + 1) and found.requires_grad:
            found.register_hook(lambda gradient: self._seen(index, gradient))
        return found

    def _seen(self, index: int, gradient: Tensor) -> None:
        """d loss / d weight, of every use of a layer and every backward pass of a step."""
        self._gradients[index] = gradient.detach() + self._gradients.get(index, 0.0)

    def _split(self, values: Tensor) -> list[Tensor]:
        """Values of the active weights `(k,)` as dense tensors of the layers."""
        flat = scatter(values, self.topology.positions, self.topology.num_weights)
        return [part.view(shape) for part, shape in zip(flat.split(self.model.sizes), self.model.shapes, strict=True)]

    @torch.no_grad()
    def _stand_on(self, topology: Topology) -> None:
        self.topology, self._fresh = topology, False
        self._active = self._split(torch.ones_like(topology.positions, dtype=self.originals[0].dtype))
        for original, active in zip(self.originals, self._active, strict=True):
            original.mul_(active.to(original.device))

    # --------------------------------------------------------------------------------------------------- what a loop calls

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """After `backward()`, in place of `optimizer.step()`: that, or a move of the topology. Was it a move?"""
        moved = self.before_step(optimizer)
        optimizer.step()
        return moved

    def before_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """The same for those whose optimiser is stepped by somebody else, right afterwards: a move takes the gradients away, and
        an optimiser without any does nothing. Steps of an optimiser that has none of the masked weights do not count. With a
        `GradScaler`, call its `unscale_(optimizer)` first.

        Raises ValueError where it has some of them only, RuntimeError where the topology is to move and nothing was learned.
        """
        groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        held = [id(original) in groups for original in self.originals]
        if not any(held):
            return False
        if not all(held):
            raise ValueError("expected all masked weights in one optimiser, got some of them: make one, with groups")
        self.taken, self._fresh = self.taken + 1, False
        decays = {_decay(groups[id(original)], optimizer) for original in self.originals}
        self.weight_decay = decays.pop() if len(decays) == 1 else 0.0  # of several, no one prior is meant
        if not self.schedule.due(self.taken):
            return False
        self._move(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        return True

    @torch.no_grad()
    def _move(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._gradients or self.keep is None:
            raise RuntimeError("expected a forward pass in training mode and backward() before a step, got neither")
        learned = [self._gradients.get(index, torch.zeros_like(weight)) for index, weight in enumerate(self.originals)]
        gradient = torch.cat([part.reshape(-1) for part in learned])
        self._gradients = {}
        move = self.schedule.move(self.topology, Evidence(self.taken, self.values, gradient, self.streams.topology))
        # Dense tensors need no relocation: what has just grown, or was dropped, begins again at zero, its moments too.
        ones = (move.source >= 0).to(self.originals[0].dtype)
        self.keep = relocate(self.keep, move.source) | (move.source < 0)
        self._stand_on(move.topology)
        for original, stayed in zip(self.originals, self._split(ones), strict=True):
            original.mul_(stayed)
            for moment in optimizer.state.get(original, {}).values():
                if isinstance(moment, Tensor) and moment.shape == original.shape:
                    moment.mul_(stayed)

    def collect(self) -> bool:
        """At an epoch's end: keep the pair (Z, u), if the fraction `average_from` of training is over. Was it kept?"""
        late = self.taken > self.collect_after or self.taken >= self.steps
        if late and self.taken > self.collected:
            self._collect()
        return late

    def _collect(self) -> None:
        if self.keep is None:
            raise RuntimeError("expected a training before its fit, but no step was taken")
        own = self.net.state_dict()
        state = {
            name: own.get(name.removeprefix("net."), tensor).detach().clone() for name, tensor in self.model.state_dict().items()
        }
        self.collected = self.taken
        self.pairs.append(Pair(self.values.clone(), self.keep.clone(), state))

    def fit(self, inputs: Sequence[Any] | None = None, data: Data | None = None) -> Fit:
        """The fit of the pairs so far; of the last step alone where there are none.

        inputs: batches of training inputs, on which batch-norm statistics are re-estimated; without any they are what training
        left. data: in whose units and classes the fit predicts, and whose inputs these are then.
        Raises ValueError where a pruning rule has not reached its sparsity.
        """
        if self.taken < self.schedule.reached:
            raise ValueError(f"expected {self.schedule.reached} steps, to reach the sparsity, got {self.taken}: train on")
        if not self.pairs:
            self._collect()
        model, device = self.model.to(self.topology.positions.device), self.topology.positions.device
        if inputs is None and data is not None and batchnorm.has_batchnorm(model):
            inputs = batchnorm.training_batches(data, BN_BATCHES, BN_SIZE, device)
        if inputs is not None and batchnorm.has_batchnorm(model):
            factor = self.scale
            self.pairs = [
                pair._replace(state=batchnorm.estimate(model, self._dense(pair.draw(index) * factor), pair.state, inputs))
                for index, pair in enumerate(self.pairs)
            ]
        model.load_state_dict(self.pairs[-1].state)
        model.num_data = model.num_data or (len(data.train.y) if data else None)
        if model.num_data and self.weight_decay:
            model.weight_decay = self.weight_decay
            model.prior_scale = prior_scale_of(self.weight_decay, model.num_data, self.keep_prob, rescale=self.rescale)
        record = {
            **(data.facts() if data else {}),
            **topology_facts(model, self.topology),
            "keep_prob": self.keep_prob, "rescale": self.rescale, "steps": self.taken, "num_pairs": len(self.pairs),
            "weight_decay": self.weight_decay, "prior_scale": model.prior_scale,
            "batchnorm": "re-estimate" if inputs else "running", "bn_batches": BN_BATCHES, "batch_size": BN_SIZE,
        }  # fmt: skip
        model.eval()
        return Fit(
            model, self.topology, Pairs.of(self.pairs), keep_prob=self.keep_prob, rescale=self.rescale, mask=self.mask,
            record=record, history=[], inputs=inputs,
        )  # fmt: skip

    def _dense(self, values: Tensor) -> Tensor:
        return scatter(values, self.topology.positions, self.topology.num_weights)

    def remove(self) -> nn.Module:
        """Leave the network as a plain one, its masked weights at their posterior mean; it is not sparse training any more."""
        if not self.pairs and self.keep is not None:
            self._collect()  # while the weights are u, for a `fit` that comes later
        with torch.no_grad():
            for index, (owner, attribute) in enumerate(self.owners):
                self.originals[index].copy_(self.masked(index, self.originals[index], training=False))
                parametrize.remove_parametrizations(owner, attribute, leave_parametrized=False)
        return self.net

    # ------------------------------------------------------------------------------------------------- across a checkpoint

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs beside the state dicts of network and optimiser."""
        return {
            "taken": self.taken, "collected": self.collected, "weight_decay": self.weight_decay,
            "positions": self.topology.positions, "counts": self.topology.counts, "keep": self.keep,
            "pairs": [pair.tensors() for pair in self.pairs],
            "streams": {name: getattr(self.streams, name).get_state() for name in ("topology", "mask")},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, after the network has its own state back."""
        self.taken, self.collected, self.weight_decay = (state[name] for name in ("taken", "collected", "weight_decay"))
        device = self.originals[0].device
        topology = Topology(state["positions"].to(device), tuple(state["counts"]), self.topology.sizes)
        self.keep = None if state["keep"] is None else state["keep"].to(device)
        self.pairs = [Pair.of({name: tensor.to(device) for name, tensor in pair.items()}) for pair in state["pairs"]]
        for name, own in state["streams"].items():
            getattr(self.streams, name).set_state(own.cpu())
        self._stand_on(topology)
