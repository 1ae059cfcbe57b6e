"""Edge-popup (Ramanujan et al. 2020): a subnetwork of weights that are never trained, found by a score for each."""

from __future__ import annotations

from typing import Literal

from espalier.contracts import Data
from espalier.guides.popup import Chosen, PopupGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.topology import schedules
from espalier.topology.masks import allocated
from espalier.topology.options import Allocation, Sparsity
from espalier.training import Training, Watches, opened, prepare
from espalier.training.options import Seed
from espalier.training.train import train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity = 0.9,
    allocation: Allocation = "uniform",
    frozen: Literal["signed", "kaiming"] = "signed",
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """Train scores; the largest of each layer are in, and the gradient of a weight goes straight through to its score. With
    `loss dro:T` at several T, averaged by their logits, the members of Sapkota et al. 2023.

    frozen: weights of one size a layer, sqrt(2 / (fan_in * density)), with the signs of the initial ones; or normal ones of that
    standard deviation. weight_decay is that of the scores.
    """
    streams = opened(model, data, training, seed)
    model = prepare(model, data, training)
    counts = allocated(model.shapes, 1 - sparsity, allocation)
    guide = PopupGuide(model, counts, frozen=frozen, generator=streams.topology)
    return train(model, guide, schedules.static(), data, training=training, streams=streams, followers=[Chosen()], watch=watch)
