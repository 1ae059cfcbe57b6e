"""Sparse mean-field Gaussian (SSVI, Li et al. 2024): a learned standard deviation for every active weight, and no mask."""

from __future__ import annotations

from typing import Literal

from espalier.contracts import Data
from espalier.guides import GaussianGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.topology import initial, schedules
from espalier.topology.options import Allocation, DeltaT, DropFraction, DropScoreName, Freeze, Sparsity, Start
from espalier.topology.scores import drop_score as score_of
from espalier.training import Training, Watches, opened, prepare
from espalier.training.annealing import KLWarmup
from espalier.training.options import AverageFrom, Seed
from espalier.training.train import train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity = 0.9,
    noise_scale: float = 0.01,
    drop_score: DropScoreName = "snr-magnitude",
    accept: Literal["all", "bayes-factor", "joint-density"] = "all",
    log_threshold: float = 0.0,
    allocation: Allocation = "erk",
    start: Start = "random",
    delta_t: DeltaT = 100,
    drop_fraction: DropFraction = 0.3,
    freeze: Freeze = 0.75,
    average_from: AverageFrom = 0.8,
    kl_scale: float = 1.0,
    kl_warmup: float = 0.0,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """w = mu + sigma * noise on the active weights, both learned; RigL's moves, with a drop score that may look at sigma.

    noise_scale: where every sigma starts. drop_score: |mu|, E|w|, |mu| / sigma, E|w| / sd|w|, the last two of e^|w|, or the
    Bayes factor for w = 0 (`espalier.topology.scores`). accept: of those that would go, all; each whose log Bayes factor is above
    the threshold; or all if the joint density of the move's batch and the weights is higher without them, by as much, else none
    (`espalier.topology.schedules.favoured`, `likelier`). log_threshold: of accept, in nats. kl_scale: tempering of the KL.
    kl_warmup: fraction of training over which it rises from 0.
    """
    streams = opened(model, data, training, seed)
    model = prepare(model, data, training)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = GaussianGuide(model, topology, noise_scale=noise_scale, kl_scale=kl_scale, generator=streams.mask)
    last = training.step_at(freeze, data)
    rules = {
        "all": None, "bayes-factor": schedules.favoured(model.prior().scale, log_threshold),
        "joint-density": schedules.likelier(model.prior().scale, model.num_data or 1, log_threshold),
    }  # fmt: skip
    if accept not in rules:
        raise ValueError(f"expected accept of {', '.join(rules)}, got {accept!r}")
    schedule = schedules.rigl(delta_t, last, drop_fraction, score_of(drop_score), rules[accept])
    return train(
        model, guide, schedule, data, training=training, streams=streams, average_from=average_from, watch=watch,
        followers=[KLWarmup(kl_warmup, training.steps(data))] if kl_warmup else [],
    )  # fmt: skip
