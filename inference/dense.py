"""Dense training: every weight active, the yardstick of the sparse methods."""

from __future__ import annotations

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
    training: Training = Training(),  # noqa: B008 - frozen
    seed: int = 0,
    watch: Watch | None = None,
) -> Fit:
    """Train all weights: the same loop at sparsity 0.

    seed: of everything random.
    """
    streams = Streams(seed, find_device(training.device))
    model = prepare(model, data, training)
    guide = MaskedGuide(model, initial(model.shapes, 0.0, generator=streams.topology))
    return train(model, guide, schedules.static(), data, training=training, streams=streams, watch=watch)
