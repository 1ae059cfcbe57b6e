"""What a follower may do to a training: nothing by itself, and to the gradient before the optimiser's step what it likes."""

from __future__ import annotations

from typing import Any

import torch

from digits import digits, mlp
from espalier.contracts import Data
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.options import Training, prepare
from espalier.training.streams import Streams
from espalier.training.train import train


class Scaled(Follower):
    """Multiplies every gradient, and counts."""

    def __init__(self, factor: float) -> None:
        self.factor, self.steps = factor, list[tuple[int, int]]()

    def before(self, taken: int, x: Any, y: torch.Tensor, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.steps.append((taken, len(y)))
        for parameter in (*guide.parameters(), *model.parameters()):
            assert parameter.grad is not None
            parameter.grad *= self.factor


def fitted(rate: float, *followers: Follower, data: Data | None = None) -> Fit:
    data = data or digits()
    training = Training(epochs=2, batch_size=32, learning_rate=rate, device="cpu")
    streams = Streams(3, torch.device("cpu"))
    model = prepare(mlp(), data, training)
    guide = MaskedGuide(model, initial(model.shapes, 0.6, generator=streams.topology), 0.8, generator=streams.mask)
    schedule = schedules.rigl(6, 13, 0.3)
    return train(model, guide, schedule, data, training=training, streams=streams, followers=followers)


def test_one_that_says_nothing_changes_nothing() -> None:
    plain, followed = fitted(0.1), fitted(0.1, Follower())
    assert torch.equal(plain.pairs.values, followed.pairs.values)
    assert plain.history == followed.history
    assert plain.record == followed.record


def test_what_it_writes_into_the_gradient_is_what_the_optimiser_sees() -> None:
    """A power of two, so that half the rate at twice the gradient is the same to the bit."""
    follower = Scaled(2.0)
    doubled, plain = fitted(0.05, follower), fitted(0.1)
    assert torch.equal(doubled.pairs.values, plain.pairs.values)
    for name, tensor in plain.pairs.states.items():
        assert torch.equal(tensor, doubled.pairs.states[name])
    assert follower.steps == [(step, 32) for step in range(1, 21) if step not in (6, 12)]  # moves of the topology
