"""CigL (Lei et al., ICLR 2023): sparse training under a random mask, and the average of the masked weights it visits."""

from __future__ import annotations

from typing import Literal

from espalier.contracts import Data
from espalier.distributions.masked import effective_keep_prob
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
    drop_rate: float = 0.1,
    rescale: bool = False,
    mask: Literal["weight", "unit"] = "weight",
    rule: Literal["rigl", "set", "static", "gradual", "one-shot"] = "rigl",
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
    """Algorithm 1: at every step a fresh Z ~ Bernoulli(1 - drop_rate) on the active weights; every `delta_t` steps a
    topology move; after `average_from` of training one pair (Z, u) per epoch, whose mean is the ticket.

    sparsity: fraction of the maskable weights at zero. drop_rate: P(Z = 0), the paper's "mask sparsity".
    rescale: weights are Z * u / keep_prob instead of Z * u. mask: one Z per weight, or per input unit (Gal's dropout).
    rule: how the topology moves; gradual and one-shot start dense and prune. allocation: how layers share
    the active weights. start: where they begin. delta_t: steps between moves. drop_fraction: of each layer's active
    weights, exchanged at the first moves. freeze: fraction of training after which the topology stands still.
    average_from: fraction of training after which pairs are collected. kl_scale: tempering of the KL. seed: of
    everything random.
    """
    streams = Streams(seed, find_device(training.device))
    keep_prob = effective_keep_prob(1 - drop_rate)
    model = prepare(model, data, training, keep_prob=keep_prob, rescale=rescale)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    schedule = schedules.rule(rule, delta_t, training.step_at(freeze, data), drop_fraction, topology.counts)
    if rule in schedules.PRUNING:
        topology = initial(model.shapes, 0.0, generator=streams.topology)
    guide = MaskedGuide(
        model, topology, keep_prob, rescale=rescale, mask=mask, kl_scale=kl_scale, generator=streams.mask
    )
    return train(
        model, guide, schedule, data, training=training, streams=streams, average_from=average_from, watch=watch
    )
