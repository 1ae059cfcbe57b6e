"""How many weights each layer of a trained network keeps: layer ratios that are searched for, beside ERK and uniform.

The budget is the number of active weights, met exactly; what goes is decided by magnitude within a layer. Two searches:

dual    the layers trade weights at one price, the dual variable of the budget. What a layer would lose or gain is measured, the
        others as they are; of these curves' convex hulls the steepest pieces are bought until the budget is spent (Everett
        1963: at the optimum of a separable problem, every layer's marginal loss is the multiplier). What comes of it is kept
        only where the joint loss agrees; where not, the steps get smaller. No gradient, nothing random.
ppo     constrained reinforcement learning (Malik et al. 2021), in `constrained.py`.

Both look at training rows, or at validation rows where that is asked for, and never at others.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from espalier import nested
from espalier.contracts import Data
from espalier.data.streamed import in_turn, some
from espalier.likelihoods import matched
from espalier.network import BayesianNetwork, evaluating
from espalier.prediction import batchnorm
from espalier.prediction.fit import Fit
from espalier.prediction.predict import BATCH, parameters_of, to_device
from espalier.topology.masks import ALLOCATIONS, magnitude_topology
from espalier.training.walks import layers_of

By = Literal["dual", "ppo", "erk", "uniform"]
SearchOn = Literal["train", "validation"]
Counts = tuple[int, ...]

ROWS, STEPS = 2000, 40_000
"""Rows that every candidate is looked at on; the agent's steps, as released."""
FACTOR, FINEST, MOST_ROUNDS = 2.0, 1.02, 30
"""By which the layers' counts are varied in the first round of `dual`, and in the last."""
STATISTICS = 4, 128
"""Batches of training rows, and their size, for the batch-norm statistics of a candidate."""


class Score(NamedTuple):
    """Of a pruned network on the rows: mean negative log-likelihood in nats, and accuracy (NaN for a regression)."""

    loss: float
    accuracy: float


class Ratios(NamedTuple):
    """What was found. counts: active weights by layer; trace: one row for each round of the search, JSON-able;
    forward_examples: forward passes of one example that it took."""

    by: By
    counts: Counts
    score: Score
    trace: list[dict[str, Any]]
    forward_examples: int

    def facts(self) -> dict[str, Any]:
        """What a record keeps, JSON-able: `costs` counts `forward_examples`."""
        accuracy = {} if np.isnan(self.score.accuracy) else {"accuracy": self.score.accuracy}
        own = {"by": self.by, "counts": list(self.counts), "loss": self.score.loss, **accuracy, "rounds": len(self.trace)}
        return own | {"forward_examples": self.forward_examples}


class Scorer:
    """A trained network's score by how many weights each layer keeps: the largest |w|, the others at zero, nothing retrained.

    weights: `(num_weights,)`, dense; state: as in `BayesianNetwork.evaluate`. Batch-norm statistics, where there are any, are
    re-estimated for every candidate. No candidate is looked at twice.
    """

    def __init__(
        self, model: BayesianNetwork, weights: Tensor, state: dict[str, Tensor], data: Data, rows: int, on: SearchOn
    ) -> None:
        x, y = getattr(data, on)
        self.model, self.weights, self.state, device = model, weights.detach(), state, weights.device
        self.rows, self.of_classes = min(rows, len(y)), data.num_classes is not None
        chosen = some(len(y), self.rows) if on == "validation" else torch.arange(self.rows)
        pieces = chosen.split(BATCH)
        self.batches = [
            (to_device(batch, device), y[piece].to(device)) for batch, piece in zip(in_turn(x, pieces), pieces, strict=True)
        ]
        self.inputs = batchnorm.training_batches(data, *STATISTICS, device) if batchnorm.has_batchnorm(model) else []
        self.known: dict[Counts, Score] = {}

    @property
    def forward_examples(self) -> int:
        """Forward passes of one example so far."""
        return len(self.known) * (self.rows + min(STATISTICS[0] * STATISTICS[1], sum(map(nested.num_rows, self.inputs))))

    @torch.no_grad()
    def __call__(self, counts: Counts) -> Score:
        if counts in self.known:
            return self.known[counts]
        positions = magnitude_topology(self.model.shapes, counts, self.weights).positions.to(self.weights.device)
        pruned = torch.zeros_like(self.weights)
        pruned[positions] = self.weights[positions]
        state = batchnorm.estimate(self.model, pruned, self.state, self.inputs) if self.inputs else self.state
        loss, right, labels = 0.0, 0, 0
        with evaluating(self.model):
            for x, y in self.batches:
                outcome = self.model.outcome(pruned, x, state)
                loss -= float(outcome.log_prob(matched(y, outcome)).double().sum())
                if self.of_classes:
                    right += int((parameters_of(outcome).argmax(-1) == y).sum())
                    labels += y.numel()
        self.known[counts] = Score(loss / self.rows, right / labels if labels else np.nan)
        return self.known[counts]


def layer_ratios(
    of: Fit | BayesianNetwork,
    data: Data,
    *,
    sparsity: float,
    by: By = "dual",
    seed: int = 0,
    rows: int = ROWS,
    search_on: SearchOn = "train",
    steps: int = STEPS,
) -> Ratios:
    """How many weights each layer keeps: `round((1 - sparsity) * num_weights)` in all, exactly.

    of: a dense fit, whose ticket is pruned, or a model that came with trained weights. rows: of the split `search_on`, the
    first, or as many validation rows at random.
    seed, steps: of the agent, the only thing that is random. Raises ValueError for what `check` refuses, and for a sparse fit.
    """
    if isinstance(of, Fit) and of.topology.num_active < of.topology.num_weights:
        raise ValueError(f"expected a dense fit to find layer ratios of, got density {of.topology.density:g}")
    model = cast(BayesianNetwork, of.model if isinstance(of, Fit) else of)  # to mypy, a PyroModule might be a Fit, too
    check(model, data, sparsity, by, rows, search_on, steps)
    weights, state = next(cast(Fit, of).weights("ticket")) if of is not model else (model.initial, model.state_dict())
    score = Scorer(model, weights, dict(state), data, rows, search_on)

    def loss(counts: Counts) -> float:
        return score(counts).loss

    def accuracy(counts: Counts) -> float:
        return score(counts).accuracy

    total, trace = round((1 - sparsity) * model.num_weights), list[dict[str, Any]]()
    least = least_of(model.shapes, total)
    if by == "dual":
        starts = [fitted(own, model.sizes, total, least) for own in (list(map(sum, model.shapes)), model.sizes)]  # ERK, uniform
        counts, trace = exchange(loss, model.sizes, min(starts, key=loss), least)
    elif by == "ppo":
        kept, trace = _agent().search(
            lambda counts: 100 * accuracy(counts), layers_of(model), model.sizes, sparsity, steps=steps, seed=seed
        )  # fmt: skip
        counts = max((fitted(own, model.sizes, total, least) for own in kept), key=accuracy)
    else:
        counts = ALLOCATIONS[by](model.shapes, 1 - sparsity)
    return Ratios(by, counts, score(counts), trace, score.forward_examples)


def check(
    model: BayesianNetwork, data: Data, sparsity: float, by: By, rows: int = ROWS, on: SearchOn = "train", steps: int = STEPS
) -> None:
    """Raises ValueError, before any work, for what cannot be searched, and where the libraries of `ppo` are missing."""
    if by not in get_args(By) or on not in get_args(SearchOn):
        raise ValueError(f"expected by of {', '.join(get_args(By))} and search_on of train, validation, got {by!r}, {on!r}")
    if not (rows >= 1 and steps >= 1 and rows % 1 == steps % 1 == 0):
        raise ValueError(f"expected whole rows and steps of at least 1 for the search of layer ratios, got {rows} and {steps}")
    least = len(model.sizes)
    if not 0 <= sparsity < 1 or round((1 - sparsity) * model.num_weights) < least:
        raise ValueError(f"expected a sparsity in [0, 1) that leaves a weight to each of {least} layers, got {sparsity:g}")
    if by in ALLOCATIONS:
        ALLOCATIONS[by](model.shapes, 1 - sparsity)
    if not len(getattr(data, on).y):
        raise ValueError(f"expected rows to find layer ratios on, but the {on} split of {data.name} is empty")
    if by == "ppo":
        if data.num_classes is None:
            raise ValueError(f"expected classes for by ppo, whose reward is accuracy, but {data.name} is a regression: by dual")
        _agent()


def _agent() -> Any:
    try:
        return importlib.import_module("espalier.training.constrained")
    except ImportError as error:
        raise ValueError('expected gymnasium and stable-baselines3 for by ppo: pip install "espalier[rl]", or by dual') from error


def least_of(shapes: Sequence[tuple[int, ...]], total: int) -> Counts:
    """What each layer keeps at least: a weight for each of its outputs, where the budget has as many; else one.

    Where hardly anything is left, no pruned network is better than chance before it is trained again, and their losses would
    send a layer's last weights elsewhere.
    """
    outputs = tuple(shape[0] for shape in shapes)
    return outputs if sum(outputs) <= total else (1,) * len(shapes)


def exchange(
    loss: Callable[[Counts], float], sizes: Sequence[int], start: Counts, least: Counts
) -> tuple[Counts, list[dict[str, Any]]]:
    """Counts of the same total as `start` and of no greater loss, by trade between layers at one price, none below `least`.
    Trace: round by round the price in loss per weight, the factor, the loss and the counts."""
    counts, best, factor, trace = start, loss(start), FACTOR, list[dict[str, Any]]()
    while len(trace) < MOST_ROUNDS and factor >= FINEST:
        options: list[list[int]] = []
        losses: list[list[float]] = []
        for layer, (count, size) in enumerate(zip(counts, sizes, strict=True)):
            ups = [max(count + power, round(count * factor**power)) for power in (1, 2)]
            downs = [min(count - power, round(count / factor**power)) for power in (1, 2)]
            options.append(sorted({count, *(min(up, size) for up in ups), *(max(down, least[layer]) for down in downs)}))
            losses.append([loss((*counts[:layer], other, *counts[layer + 1 :])) for other in options[-1]])
        traded, price = bought(options, losses, sum(start))
        if loss(traded) < best:
            counts, best = traded, loss(traded)
        else:
            factor **= 0.5
        trace.append({"price": price, "factor": factor, "loss": best, "counts": list(counts)})
    return counts, trace


def bought(options: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], total: int) -> tuple[Counts, float]:
    """Counts that add up to `total` and minimise the sum of the layers' losses, each the lower convex hull of its own points; and
    the price at the margin, loss per weight. options: of each layer, rising; losses: at each of them. The sums of the least and
    of the largest options enclose `total`.

    The hulls' pieces are taken in the order of their slopes, the last one as far as the budget goes: an optimal linear programme.
    """
    pieces = []
    for layer, points in enumerate(zip(options, losses, strict=True)):
        hull = _lower_hull(list(zip(*points, strict=True)))
        pieces += [((b[1] - a[1]) / (b[0] - a[0]), layer, b[0] - a[0]) for a, b in itertools.pairwise(hull)]
    counts, price = [own[0] for own in options], 0.0
    for slope, layer, width in sorted(pieces):
        taken = min(width, total - sum(counts))
        if taken == 0:
            break
        counts[layer] += taken
        price = -slope
    return tuple(counts), price


def _lower_hull(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Of points with rising first coordinates (Andrew 1979)."""
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (a, fa), (b, fb) = hull[-2:]
            if (fb - fa) * (x - b) < (y - fb) * (b - a):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def fitted(kept: Sequence[int], sizes: Sequence[int], total: int, least: Counts) -> Counts:
    """Counts that add up to `total`, in the proportions of `kept` but within `least` and the layer's size; largest remainders
    up."""
    own, low, most = (np.asarray(values, dtype=np.float64) for values in (kept, least, sizes))
    factor = brentq(lambda c: np.clip(c * own, low, most).sum() - total, 0, (most / own).max())
    shares = np.clip(factor * own, low, most)
    counts = np.floor(shares).astype(np.int64)
    order = [layer for layer in np.argsort(counts - shares, kind="stable") if counts[layer] < sizes[layer]]
    counts[order[: total - int(counts.sum())]] += 1
    return tuple(counts.tolist())
