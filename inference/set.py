"""SET (Mocanu et al. 2018): sparse training whose topology drops small weights and grows at random."""

from __future__ import annotations

from espalier.contracts import Data
from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.topology import initial, schedules
from espalier.topology.options import Allocation, DeltaT, DropFraction, Freeze, Sparsity, Start
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
    delta_t: DeltaT = 100,
    drop_fraction: DropFraction = 0.3,
    freeze: Freeze = 0.75,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """Every `delta_t` steps until `freeze` of training, exchange a cosine-decayed fraction of each layer's weights.

    One point estimate: all five ways to predict are the same network.
    """
    streams = opened(model, data, training, seed)
    model = prepare(model, data, training)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = MaskedGuide(model, topology)
    schedule = schedules.set_(delta_t, training.step_at(freeze, data), drop_fraction)
    return train(model, guide, schedule, data, training=training, streams=streams, watch=watch)
