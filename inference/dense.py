"""Dense training: every weight active, the yardstick of the sparse methods."""

from __future__ import annotations

from espalier.contracts import Data
from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.topology import initial, schedules
from espalier.training import Training, Watches, opened, prepare
from espalier.training.options import Seed
from espalier.training.train import train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """Train all weights: the same loop at sparsity 0."""
    streams = opened(model, data, training, seed)
    model = prepare(model, data, training)
    guide = MaskedGuide(model, initial(model.shapes, 0.0, generator=streams.topology))
    return train(model, guide, schedules.static(), data, training=training, streams=streams, watch=watch)
