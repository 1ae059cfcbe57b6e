"""Static sparse training: a topology drawn once and kept."""

from __future__ import annotations

from typing import Literal

from espalier.contracts import Data
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.options import Training, prepare
from espalier.training.streams import Streams, find_device
from espalier.training.train import train
from espalier.training.watch import Watch


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: float = 0.9,
    allocation: Literal["erk", "uniform"] = "erk",
    start: Literal["random", "magnitude"] = "random",
    training: Training = Training(),  # noqa: B008 - frozen
    seed: int = 0,
    watch: Watch | None = None,
) -> Fit:
    """Train the weights of one fixed sparse topology.

    sparsity: fraction of the maskable weights at zero. allocation: how layers share the active weights. start: where
    they begin. seed: of everything random.

    One point estimate: all five ways to predict are the same network.
    """
    streams = Streams(seed, find_device(training.device))
    model = prepare(model, data, training)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = MaskedGuide(model, topology)
    schedule = schedules.static()
    return train(model, guide, schedule, data, training=training, streams=streams, watch=watch)
