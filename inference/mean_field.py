"""Sparse mean-field Gaussian (SSVI, Li et al. 2024): a learned standard deviation for every active weight, and no mask."""

from __future__ import annotations

from typing import Literal

from espalier.contracts import Data
from espalier.guides.gaussian import GaussianGuide
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
    noise_scale: float = 0.01,
    drop_score: Literal["magnitude", "snr", "snr-magnitude"] = "snr-magnitude",
    allocation: Literal["erk", "uniform"] = "erk",
    start: Literal["random", "magnitude"] = "random",
    delta_t: int = 100,
    drop_fraction: float = 0.3,
    freeze: float = 0.75,
    average_from: float = 0.8,
    kl_scale: float = 1.0,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: int = 0,
    watch: Watch | None = None,
) -> Fit:
    """w = mu + sigma * noise on the active weights, both learned; RigL's moves, with a drop score that may look at sigma.

    sparsity: fraction of the maskable weights at zero. noise_scale: where every sigma starts. drop_score: |mu|,
    |mu| / sigma, or E|w| / sd|w|. allocation: how layers share the active weights. start: where they begin. delta_t:
    steps between moves. drop_fraction: of each layer's active weights, exchanged at the first moves. freeze: fraction
    of training after which the topology stands still. average_from: fraction of training after which pairs are
    collected. kl_scale: tempering of the KL. seed: of everything random.
    """
    streams = Streams(seed, find_device(training.device))
    model = prepare(model, data, training)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = GaussianGuide(model, topology, noise_scale=noise_scale, kl_scale=kl_scale, generator=streams.mask)
    last = training.step_at(freeze, data)
    schedule = schedules.rigl(delta_t, last, drop_fraction, schedules.DROP_SCORES[drop_score])
    return train(
        model, guide, schedule, data, training=training, streams=streams, average_from=average_from, watch=watch
    )
