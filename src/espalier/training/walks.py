"""A walk over a network's layers that removes weights from each: the environment of constrained reinforcement learning, and the
multiplier of its constraint. Malik et al. 2021, *Neural network pruning through constrained reinforcement learning*.

What an agent sees of a layer is (index, outputs, inputs, kernel, stride, padding, sum of its actions so far); its action is the
fraction of the layer's weights to remove, in [0, clip]. At the end of a walk over all L layers

    reward = accuracy in percent                 cost = L * 100 * (1 - sparsity reached)

and nothing before, so that the mean cost of a step is the density in percent, and that is held to the budget. The clip rises
from the sparsity asked for, .90 -> .95 for 90 %.

Pure: no library of reinforcement learning is asked for here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from espalier.maskable import owner_of
from espalier.network import BayesianNetwork

RISE = 0.05
"""Of the clip over all steps, and at most half the way to 1."""
FIRST_MULTIPLIER, MULTIPLIER_RATE = 1.0, 1.0


class Layer(NamedTuple):
    """A masked tensor as the agent sees it. kernel, stride: products over the dimensions; padding: their sum. A linear map is a
    convolution with a kernel of 1."""

    outputs: int
    inputs: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0


def layers_of(model: BayesianNetwork) -> list[Layer]:
    """Of every masked tensor, in the order of the flat vector."""
    return [_layer(weight.shape, owner_of(model.net, weight.name)[0]) for weight in model.weights]


def _layer(shape: tuple[int, ...], module: Any) -> Layer:
    stride, padding = getattr(module, "stride", ()), getattr(module, "padding", ())
    if padding == "same":
        padding = [size // 2 for size in shape[2:]]
    added = 0 if isinstance(padding, str) else sum(padding)
    return Layer(shape[0], math.prod(shape[1:2]), math.prod(shape[2:]), math.prod(stride), added)


class Step(NamedTuple):
    """What follows an action. over: was it the last layer's? reward and cost are 0 before."""

    observation: NDArray[np.float32]
    reward: float
    cost: float
    over: bool


class Walk:
    """layers, sizes: of the masked tensors; reward: of the weights that each keeps, in percent. `reset` begins a walk, `step`
    takes a layer's action; `kept` are the weights that the layers so far keep, at least one each."""

    def __init__(self, layers: Sequence[Layer], sizes: Sequence[int], reward: Callable[[tuple[int, ...]], float]) -> None:
        self.layers, self.sizes, self.reward = layers, sizes, reward
        self.actions: list[float] = []
        self.kept: tuple[int, ...] = ()

    def reset(self) -> NDArray[np.float32]:
        self.actions, self.kept = [], ()
        return self._observation()

    def step(self, action: float) -> Step:
        """action: the fraction of this layer's weights to remove, in [0, 1]."""
        size = self.sizes[len(self.kept)]
        self.actions.append(action)
        self.kept += (max(1, size - round(action * size)),)
        if len(self.kept) < len(self.sizes):
            return Step(self._observation(), 0.0, 0.0, False)
        cost = len(self.sizes) * 100 * sum(self.kept) / sum(self.sizes)
        return Step(self._observation(), self.reward(self.kept), cost, True)

    def _observation(self) -> NDArray[np.float32]:
        """After the last layer, the first one's, as released."""
        index = len(self.kept) % len(self.layers)
        return np.array([index, *self.layers[index], sum(self.actions)], dtype=np.float32)


def clip(sparsity: float, progress: float) -> float:
    """The largest fraction of a layer that may be removed. progress: the fraction of the agent's training that is over."""
    return sparsity + min(RISE, (1 - sparsity) / 2) * progress


def scalarised(reward: float, cost: float, multiplier: float) -> float:
    """(reward - nu * cost) / (1 + nu): what a policy that knows one reward is given."""
    return (reward - multiplier * cost) / (1 + multiplier)


class Multiplier:
    """nu = softplus(z) of the constraint mean cost <= budget: Adam's ascent on nu * (cost - budget), at rate 1 from nu = 1.
    budget: in percent of the weights."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.z = torch.tensor(math.log(math.expm1(FIRST_MULTIPLIER)), dtype=torch.float64, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.z], lr=MULTIPLIER_RATE, maximize=True)

    @property
    def value(self) -> float:
        return float(F.softplus(self.z.detach()))

    def update(self, cost: float) -> None:
        """cost: of a step, the mean over a rollout."""
        self.optimiser.zero_grad()
        (F.softplus(self.z) * (cost - self.budget)).backward()
        self.optimiser.step()
