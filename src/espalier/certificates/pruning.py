"""What is certified: a predictor whose draws are frozen, and the nested family of its pruned versions.

A family is fixed before the calibration data are seen: scores of the weights from the fit alone, and for every fraction the
lowest-scored ones set to zero in all draws at once, without retraining. Batch-norm statistics, where there are any, are
re-estimated on training inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier import nested
from espalier.bounds import bounds, stability
from espalier.compiled import uncompiled
from espalier.contracts import Data, Rows, Topology, stand_ins
from espalier.data.balls import ball_of
from espalier.guides.hierarchy import LayerSubsets
from espalier.network import BayesianNetwork, evaluating, under
from espalier.prediction import batchnorm
from espalier.prediction.fit import Fit, How
from espalier.prediction.pairs import State
from espalier.prediction.predict import predictive, to_device
from espalier.sparse import scatter
from espalier.store import Bundle
from espalier.topology import codes
from espalier.topology.evidence import log_bayes_factor, normal_at_zero, of_blocks
from espalier.topology.masks import keep_top

By = Literal["magnitude", "layer-magnitude", "snr", "inclusion", "bayes-factor", "nrs"]
Structure = Literal["weights", "channels"]
NRS_EPS, NRS_ROWS = 2 / 255, 512
"""How far inputs move for the order nrs, in the units of `data.ball_of`, and the first training rows that do."""


class Frozen(NamedTuple):
    """Draws that stay as they are, so that what predicts is one function: the average over them.

    values `(S, k)` at the positions of the topology; states: the other parameters and buffers, `(S, ...)` by name.
    """

    model: BayesianNetwork
    topology: Topology
    values: Tensor
    states: State

    @classmethod
    def of(cls, fit: Fit, how: How = "ticket", *, num_samples: int = 16, seed: int = 0) -> Frozen:
        """The predictor of a fit in one of its ways; for `redraw` with `num_samples` masks drawn by `seed`, once."""
        if fit.record.get("task") == "regression":
            raise ValueError(
                "expected a fit of classes or masks to certify, got one of a regression: no loss of it is bounded"
            )
        if how not in fit.ways:
            raise ValueError(f"expected one of {', '.join(fit.ways)}, got {how!r}")
        draws = list(fit.weights(how, num_samples=num_samples, seed=seed))
        values = torch.stack([weights[fit.topology.positions] for weights, _ in draws])
        return cls(fit.model, fit.topology, values, {n: torch.stack([s[n] for _, s in draws]) for n in draws[0][1]})

    def state(self, draw: int) -> State:
        return {name: tensor[draw] for name, tensor in self.states.items()}

    def dense(self, draw: int) -> Tensor:
        """One draw as a flat weight vector `(num_weights,)`."""
        return scatter(self.values[draw], self.topology.positions, self.topology.num_weights)

    def predict(self, x: Rows) -> NDArray[np.float64]:
        """Mean probabilities `(n, ..., C)` over the draws."""
        total = sum(predictive(self.model, self.dense(i), x, self.state(i)).double() for i in range(len(self.values)))
        return np.asarray(total / len(self.values))

    def ticket(self) -> torch.nn.Module:
        """The network of a single draw as a plain dense `nn.Module` with zeros. Raises ValueError where there are several."""
        if len(self.values) > 1:
            raise ValueError(f"expected one draw, got {len(self.values)}: this predictor is an average, use predict")
        return self.model.network(self.dense(0), self.state(0)).eval()

    def bundle(self) -> Bundle:
        """As tensors and JSON: positions by their gaps, values of active weights only."""
        tensors = {codes.NAME: codes.to_gaps(self.topology), "values": self.values}
        return Bundle(tensors | {f"state.{n}": t for n, t in self.states.items()}, {"sizes": list(self.topology.sizes)})

    @classmethod
    def from_bundle(cls, model: BayesianNetwork, bundle: Bundle) -> Frozen:
        topology = codes.read(bundle.tensors, bundle.facts["sizes"])
        return cls(model, topology, bundle.tensors["values"], under("state.", bundle.tensors))


class Family(NamedTuple):
    """Everything that `at` needs. score: of the items that go, `(m,)`; owner: of every active weight, and after them of every
    entry of `biases`, the item it goes with, or -1 where it never goes."""

    base: Frozen
    score: Tensor
    owner: Tensor
    biases: tuple[str, ...] = ()
    inputs: list[Tensor] | None = None

    def at(self, fraction: float) -> Frozen:
        """round(fraction * m) items pruned: the lowest scores, of equals the higher position."""
        gone = round(fraction * len(self.score))
        if gone == 0:
            return self.base
        kept = keep_top(self.score, len(self.score) - gone)
        alive = (self.owner < 0) | kept[self.owner.clamp(min=0)]
        active, rest = alive[: self.base.topology.num_active], alive[self.base.topology.num_active :]
        topology = _subset(self.base.topology, active)
        states = dict(self.base.states)
        sizes = [states[name][0].numel() for name in self.biases]
        for name, part in zip(self.biases, rest.split(sizes), strict=True):
            states[name] = states[name] * part.view(states[name].shape[1:])
        pruned = Frozen(self.base.model, topology, self.base.values[:, active], states)
        return pruned if self.inputs is None else _re_estimated(pruned, self.inputs)


def family(
    fit: Fit,
    base: Frozen,
    by: By = "magnitude",
    structure: Structure = "weights",
    *,
    biases: bool = False,
    data: Data | None = None,
) -> Family:
    """The pruned versions of `base`, scored by what the fit knows.

    by: magnitude (of the mean over draws, one threshold for all layers), layer-magnitude (its rank within the layer, so that
    layers lose alike), snr (|mean| / sd over the collected pairs; Graves 2011), inclusion (probability of staying where the
    layer keeps half of its weights by eq. 3 of Lei et al. 2023, at the layer's mean |u| as temperature), bayes-factor (what
    the data have against leaving a weight of a Gaussian guide out, `topology.evidence.log_bayes_factor`), nrs (of channels alone:
    how stable their ReLUs are around training rows of `data`, `bounds.stability`; Li et al. 2022).
    structure: single weights; or channels, whole output units of every layer but the last by the root mean square of their
    weights' scores (of bayes-factor their sum: the factor of the whole unit), with their bias. biases: with magnitude, biases go
    under the same threshold (Alvarez 2024).
    """
    if by not in get_args(By) or structure not in get_args(Structure):
        raise ValueError(f"expected by of {', '.join(get_args(By))}, structure of {', '.join(get_args(Structure))}, "
                         f"got {by!r} and {structure!r}")  # fmt: skip
    if biases and (by, structure) != ("magnitude", "weights"):
        raise ValueError(
            "expected by magnitude and structure weights where biases are pruned: they share one threshold"
        )
    inputs = None
    if batchnorm.has_batchnorm(fit.model) and fit.record.get("batchnorm") != "running":
        if not fit.inputs:
            raise ValueError(
                "expected training inputs for batch-norm statistics of pruned nets: call fit.look_at(data)"
            )
        inputs = list(fit.inputs)
    if by == "nrs":
        if structure != "channels" or data is None:
            raise ValueError("expected structure channels, and data whose training rows show their ReLUs, to prune by nrs")
        return _channels(fit, base, _stable(base, data), inputs)
    score = _scores(fit, base, by)
    if structure == "channels":
        return _channels(fit, base, _together(base, score, of_blocks if by == "bayes-factor" else _mean_square), inputs)
    extra = tuple(name for name in base.states if name.endswith("bias") and name.startswith("net.")) if biases else ()
    score = torch.cat([score, *(base.states[name].mean(0).abs().flatten() for name in extra)])
    return Family(base, score, torch.arange(len(score), device=score.device), extra, inputs)


def layerwise(base: Frozen, fractions: Sequence[float]) -> Frozen:
    """Every layer pruned by magnitude at its own fraction of its active weights: a grid of several dials, for
    `certificate.pareto`. A network without batch norm, whose statistics would have to follow."""
    if len(fractions) != len(base.topology.counts):
        raise ValueError(f"expected a fraction for each of {len(base.topology.counts)} layers, got {len(fractions)}")
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"expected fractions in [0, 1], got {', '.join(f'{fraction:g}' for fraction in fractions)}")
    if batchnorm.has_batchnorm(base.model):
        raise ValueError("expected a network without batch norm for layer-wise fractions: use family")
    parts = zip(base.values.mean(0).abs().split(list(base.topology.counts)), fractions, strict=True)
    active = torch.cat([keep_top(part, len(part) - round(fraction * len(part))) for part, fraction in parts])
    return Frozen(base.model, _subset(base.topology, active), base.values[:, active], base.states)


def _scores(fit: Fit, base: Frozen, by: By) -> Tensor:
    counts = list(base.topology.counts)
    magnitude = base.values.mean(0).abs()
    if by == "magnitude":
        return magnitude
    if by == "layer-magnitude":
        ranks = [part.argsort(stable=True).argsort().double() / max(1, len(part)) for part in magnitude.split(counts)]
        return torch.cat(ranks)
    if by == "snr":
        if fit.pairs.scales is not None:
            return fit.pairs.values[-1].abs() / fit.pairs.scales[-1]
        if len(fit.pairs.values) < 2:
            raise ValueError("expected two collected pairs or more to prune by snr, got one: lower --average-from")
        draws = fit.pairs.values * fit.pairs.keep
        return draws.mean(0).abs() / draws.std(0).clamp(min=torch.finfo(draws.dtype).tiny)
    if by == "bayes-factor":
        if fit.pairs.scales is None:
            raise ValueError("expected a fit with learned standard deviations to prune by bayes-factor: train with mean_field")
        at_zero = normal_at_zero(fit.record["prior_scale"])
        return -log_bayes_factor(fit.pairs.values[-1].double(), fit.pairs.scales[-1].double(), at_zero)
    probability = torch.zeros_like(magnitude, dtype=torch.float64)
    start = 0
    for part in magnitude.split(counts):
        if len(part) > 1:
            logits = part / part.mean().clamp(min=torch.finfo(part.dtype).tiny)
            probability[start : start + len(part)] = LayerSubsets(logits, [len(part) // 2], [len(part)]).mean
        start += len(part)
    return probability


def _mean_square(score: Tensor, unit: Tensor, count: int) -> Tensor:
    squares = of_blocks(score.double().square(), unit, count)
    return (squares / torch.bincount(unit, minlength=count).clamp(min=1)).sqrt()


def _units(base: Frozen) -> list[Tensor]:
    """Of every layer, the output unit that each of its active weights goes into: a row of a linear map, a filter."""
    starts = np.cumsum([0, *base.topology.sizes])
    parts = zip(base.topology.positions.split(list(base.topology.counts)), starts, base.model.weights, strict=False)
    return [(place - int(start)) // (weight.size // weight.shape[0]) for place, start, weight in parts]


def _together(base: Frozen, score: Tensor, together: Callable[..., Tensor]) -> list[Tensor | None]:
    """Scores of the units of every layer, `(units,)` each, from those of their weights."""
    parts = zip(score.split(list(base.topology.counts)), _units(base), base.model.weights, strict=True)
    return [together(part, unit, weight.shape[0]) for part, unit, weight in parts]


@torch.no_grad()
def _stable(base: Frozen, data: Data) -> list[Tensor | None]:
    """The mean `bounds.stability` of the units of every layer over training rows, places and draws; None where no ReLU follows
    a layer, or batch norm and pooling alone between them."""
    rows = to_device(data.train.x[torch.arange(min(NRS_ROWS, len(data.train.y)))], base.values.device)
    box = ball_of(data, NRS_EPS).box(rows)
    found: dict[str, list[Tensor]] = {}
    for draw in range(len(base.values)):
        net = base.model.network(base.dense(draw), base.state(draw)).eval()
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        for relu in bounds(net, *box).relus:
            if relu.made_by is not None:
                each = stability(relu).double().transpose(0, 1).flatten(1).mean(1)
                found.setdefault(names[id(relu.made_by)], []).append(each)
    own = [found.get(weight.name) for weight in base.model.weights]
    if not any(own[:-1]):
        raise ValueError("expected a network with ReLUs after its layers to prune by nrs, got none: choose another order")
    return [None if each is None else torch.stack(each).mean(0) for each in own]


def _check_units(fit: Fit) -> None:
    """Raises ValueError for a network whose rows of weights are no output units, or whose answer is not of the last one."""
    model, called = fit.model, list[str]()
    if len(model.weights) < 2:
        raise ValueError("expected a network of two masked layers or more to prune channels of, got one layer")
    names = [(weight.name, name) for weight in model.weights for name in weight.names]
    owners = [(first, model.net.get_submodule(name.rpartition(".")[0])) for first, name in names]
    for name, owner in owners:
        if getattr(owner, "transposed", False):
            raise ValueError(f"expected layers whose first dimension is their outputs, but {name} is transposed: prune weights")
    if "shape" not in fit.record:
        return
    layers = [(name, owner) for name, owner in owners if not any(True for _ in owner.children())]
    hooks = [owner.register_forward_hook(lambda *_, own=name: called.append(own)) for name, owner in layers]
    try:
        with torch.no_grad(), evaluating(model), uncompiled(model):
            x = nested.each(lambda leaf: leaf.to(fit.pairs.values.device), stand_ins(fit.record, 2))
            model.evaluate(fit.dense(fit.pairs.values[-1]), x, fit.pairs.state(-1))
    finally:
        for hook in hooks:
            hook.remove()
    if model.weights[-1].name in called and called[-1] != model.weights[-1].name:  # functional calls nobody hears of
        raise ValueError(
            f"expected the network's layer that is declared last to give its answer, whose units stay, but {called[-1]} is "
            f"called after {model.weights[-1].name}: declare it last, or prune weights"
        )


def _channels(fit: Fit, base: Frozen, scores: Sequence[Tensor | None], inputs: list[Tensor] | None) -> Family:
    """Items are output units, by their scores; a layer without scores stays. The last layer's are the answer, and stay."""
    owners, units, first = [], [], 0
    owned: list[tuple[str, Tensor]] = []
    device = base.topology.positions.device
    _check_units(fit)
    for weight, unit, score in zip(fit.model.weights, _units(base), [*scores[:-1], None], strict=True):
        if score is None:
            owners.append(torch.full((len(unit),), -1, device=device))
            continue
        owners.append(unit + first)
        units.append(score)
        name = f"net.{weight.name.removesuffix('weight')}bias"
        if name in base.states and base.states[name][0].numel() == weight.shape[0]:
            owned.append((name, torch.arange(weight.shape[0], device=device) + first))
        first += weight.shape[0]
    owner = torch.cat([*owners, *(own for _, own in owned)])
    return Family(base, torch.cat(units), owner, tuple(name for name, _ in owned), inputs)


def _subset(topology: Topology, active: Tensor) -> Topology:
    counts = tuple(int(part.sum()) for part in active.split(list(topology.counts)))
    return Topology(topology.positions[active], counts, topology.sizes)


@torch.no_grad()
def _re_estimated(pruned: Frozen, inputs: list[Tensor]) -> Frozen:
    states = [
        batchnorm.estimate(pruned.model, pruned.dense(i), pruned.state(i), inputs) for i in range(len(pruned.values))
    ]
    return pruned._replace(states={name: torch.stack([state[name] for state in states]) for name in states[0]})


def facts(frozen: Frozen) -> dict[str, Any]:
    """Sizes of a predictor, JSON-able: never tested, only reported. bytes: of its tensors, positions by their gaps."""
    tensors = frozen.bundle().tensors
    return {
        "num_active": frozen.topology.num_active,
        "num_weights": frozen.topology.num_weights,
        "density": frozen.topology.density,
        "draws": len(frozen.values),
        "bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
    }
