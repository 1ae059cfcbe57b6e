"""The search for a mask by an L1 on relaxed ones (`guides/relaxed.py`): how strong, how long, and what it kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from espalier.contracts import Topology
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.store import Bundle
from espalier.topology.masks import ALLOCATIONS, Shapes, check_count, global_topology, magnitude_topology
from espalier.training.options import Training
from espalier.training.watch import Row, Watch

THRESHOLD = 0.01
"""|m| above which a weight counts as kept (Cho, Joshi & Hegde 2020)."""
ABOVE = "above_threshold"
"""How many they are: a column of the history."""
REACHED = "relaxed.reached"
"""Of a checkpoint: the mask values that are kept."""


def strength(l1: float | Literal["auto"], training: Training, steps: int) -> float:
    """The factor of |m|_1. auto: that which takes a mask value without another gradient from 1 to 0 in half of the `steps`:
    momentum SGD moves it by learning_rate * l1 / (1 - momentum) a step, so 2 (1 - momentum) / (learning_rate * steps).

    Raises ValueError for one that is not above 0, and for auto under another optimiser.
    """
    if l1 == "auto":
        if training.optimizer != "sgd":
            raise ValueError(f"expected a number for l1 with {training.optimizer}, whose steps do not grow with it, got auto")
        return 2 * (1 - training.momentum) / (training.learning_rate * steps)
    if isinstance(l1, str) or not 0 < l1 < float("inf"):
        raise ValueError(f"expected an l1 above 0 or auto, got {l1!r}")
    return float(l1)


def budget(shapes: Shapes, sparsity: float, allocation: str) -> tuple[int, ...] | int:
    """How many weights are kept: of each layer, or, where allocation is global, in all. Raises ValueError where it cannot be."""
    if allocation in ALLOCATIONS:
        return ALLOCATIONS[allocation](shapes, 1 - sparsity)
    if allocation != "global":
        raise ValueError(f"expected an allocation of global, {', '.join(ALLOCATIONS)}, got {allocation!r}")
    count = round((1 - sparsity) * sum(math.prod(shape) for shape in shapes))
    check_count(shapes, count)
    return count


def kept(shapes: Shapes, budget: tuple[int, ...] | int, relaxed: Tensor) -> Topology:
    """The largest |m|, m `(num_weights,)`, of each layer or of all: the mask that is found."""
    choose: Callable[..., Topology] = global_topology if isinstance(budget, int) else magnitude_topology
    return choose(shapes, budget, relaxed)


def above(relaxed: Tensor) -> int:
    """How many |m| are above the threshold."""
    return int((relaxed.detach().abs() > THRESHOLD).sum())


class Search(Follower):
    """Keeps the mask values of the first step after which no more than `count` are above the threshold: where they fall in a
    body, those of the epoch's end would rank what is left by chance. The history tells how many are above. l1: of the guide."""

    def __init__(self, budget: tuple[int, ...] | int, l1: float) -> None:
        self.budget, self.l1 = budget, l1
        self.count = budget if isinstance(budget, int) else sum(budget)
        self.reached: Tensor | None = None

    def asked(self) -> Mapping[str, Any]:
        return {"kept": self.count, "each": None if isinstance(self.budget, int) else list(self.budget), "l1": self.l1}

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.guide = guide

    @property
    def relaxed(self) -> Tensor:
        """m `(k,)`, of that step or of now."""
        return self.guide.get_parameter("relaxed").detach() if self.reached is None else self.reached

    def after(self, taken: int, model: BayesianNetwork, guide: MaskedGuide) -> None:
        if self.reached is None and above(self.relaxed) <= self.count:
            self.reached = self.relaxed.clone()

    def row(self) -> Mapping[str, float]:
        return {ABOVE: above(self.relaxed)}

    def bundle(self) -> Bundle:
        return Bundle({} if self.reached is None else {REACHED: self.reached}, {})

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.reached = saved.tensors[REACHED].to(guide.values.device) if REACHED in saved.tensors else None


class Few(Watch):
    """Ends the search with the epoch in which no more than `count` were above the threshold. All it knows is the row."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_epoch(self, row: Row) -> str | None:
        return f"{row[ABOVE]} mask values are above {THRESHOLD}, of {self.count} to be kept" if row[ABOVE] <= self.count else None
