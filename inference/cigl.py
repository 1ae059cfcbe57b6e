"""CigL (Lei et al., ICLR 2023): sparse training under a random mask, and the average of the masked weights it visits."""

from __future__ import annotations

from typing import Literal

from espalier.contracts import Data
from espalier.guides import Mask, MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.topology import initial, schedules
from espalier.topology.options import Allocation, DeltaT, DropFraction, Freeze, Sparsity, Start
from espalier.training import Training, Watches, opened, prepare
from espalier.training.drop_rates import DropRate, begin
from espalier.training.options import AverageFrom, Seed
from espalier.training.train import train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity = 0.9,
    drop_rate: DropRate = "auto",
    rescale: bool = False,
    mask: Mask = "weight",
    num_particles: int = 1,
    microbatches: int = 1,
    rule: Literal["rigl", "set", "static", "gradual", "one-shot"] = "rigl",
    allocation: Allocation = "erk",
    start: Start = "random",
    delta_t: DeltaT = 100,
    drop_fraction: DropFraction = 0.3,
    freeze: Freeze = 0.75,
    average_from: AverageFrom = 0.8,
    kl_scale: float = 1.0,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """Algorithm 1: at every step a fresh Z ~ Bernoulli(1 - drop_rate) on the active weights; every `delta_t` steps a
    topology move; after `average_from` of training one pair (Z, u) per epoch, whose mean is the ticket.

    drop_rate: P(Z = 0), the paper's "mask sparsity", or auto: found on validation rows while training; auto-kind and
    auto-layer find several. rescale: weights are Z * u / keep_prob instead of Z * u. mask: one Z per weight, per input unit
    (Gal's dropout), or per filter of a convolution. num_particles: masks a step. microbatches: parts of a batch, a mask each,
    at the price of one step.
    rule: how the topology moves; gradual and one-shot start dense and prune. kl_scale: tempering of the KL.
    """
    streams = opened(model, data, training, seed)
    keep_prob, followers = begin(drop_rate, model, data, training, seed=streams.seed, rescale=rescale)
    model = prepare(model, data, training, keep_prob=keep_prob, rescale=rescale)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    schedule = schedules.rule(rule, delta_t, training.step_at(freeze, data), drop_fraction, topology.counts)
    if rule in schedules.PRUNING:
        topology = initial(model.shapes, 0.0, generator=streams.topology)
    guide = MaskedGuide(
        model, topology, keep_prob, rescale=rescale, mask=mask, kl_scale=kl_scale, num_particles=num_particles,
        microbatches=microbatches, generator=streams.mask,
    )  # fmt: skip
    return train(
        model, guide, schedule, data, training=training, streams=streams, average_from=average_from, followers=followers,
        watch=watch,
    )  # fmt: skip
