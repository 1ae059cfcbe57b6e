"""RigL (Evci et al. 2020): sparse training whose topology drops small weights and grows where the gradient is large."""

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
    delta_t: int = 100,
    drop_fraction: float = 0.3,
    freeze: float = 0.75,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: int = 0,
    watch: Watch | None = None,
) -> Fit:
    """Every `delta_t` steps until `freeze` of training, exchange a cosine-decayed fraction of each layer's weights.

    sparsity: fraction of the maskable weights at zero. allocation: how layers share the active weights. start:
    where they begin. delta_t: steps between moves. drop_fraction: of each layer's active weights, exchanged at the
    first moves. freeze: fraction of training after which the topology stands still. seed: of everything random.

    One point estimate: all five ways to predict are the same network.
    """
    streams = Streams(seed, find_device(training.device))
    model = prepare(model, data, training)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = MaskedGuide(model, topology)
    schedule = schedules.rigl(delta_t, training.step_at(freeze, data), drop_fraction)
    return train(model, guide, schedule, data, training=training, streams=streams, watch=watch)
