"""Static sparse training: a topology drawn once and kept."""

from __future__ import annotations

from espalier.contracts import Data
from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.topology import initial, schedules
from espalier.topology.options import Allocation, Sparsity, Start
from espalier.training import Training, Watches, opened, prepare
from espalier.training.options import Seed
from espalier.training.train import train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity = 0.9,
    allocation: Allocation = "erk",
    start: Start = "random",
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """Train the weights of one fixed sparse topology.

    One point estimate: all five ways to predict are the same network.
    """
    streams = opened(model, data, training, seed)
    model = prepare(model, data, training)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = MaskedGuide(model, topology)
    schedule = schedules.static()
    return train(model, guide, schedule, data, training=training, streams=streams, watch=watch)
