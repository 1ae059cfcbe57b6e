"""The distilled ticket: CigL, then its posterior predictive projected onto one sparse net by distillation."""

from __future__ import annotations

from typing import Literal

from espalier.contracts import Data
from espalier.distributions.masked import effective_keep_prob
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.distillation import check, distill
from espalier.training.options import Training, prepare
from espalier.training.phases import Phase
from espalier.training.streams import Streams, find_device
from espalier.training.train import train
from espalier.training.watch import Watch


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: float = 0.9,
    drop_rate: float = 0.2,
    rescale: bool = False,
    mask: Literal["weight", "unit"] = "weight",
    rule: Literal["rigl", "set", "static"] = "rigl",
    allocation: Literal["erk", "uniform"] = "erk",
    start: Literal["random", "magnitude"] = "random",
    delta_t: int = 100,
    drop_fraction: float = 0.3,
    freeze: float = 0.75,
    average_from: float = 0.8,
    distill_epochs: int = 10,
    distill_rate: float = 0.02,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: int = 0,
    watch: Watch | None = None,
) -> Fit:
    """CigL's Algorithm 1, then `distill_epochs` in which one net on the same support learns what the masked ones predict,
    a fresh mask at every step, without labels. The way to predict `distilled` is one pass.

    sparsity: fraction of the maskable weights at zero. drop_rate: P(Z = 0). rescale: weights are Z * u / keep_prob
    instead of Z * u. mask: one Z per weight, or per input unit. rule: how the topology moves. allocation: how layers
    share the active weights. start: where they begin. delta_t: steps between moves. drop_fraction: of each layer's
    active weights, exchanged at the first moves. freeze: fraction of training after which the topology stands still.
    average_from: fraction of training after which pairs are collected. distill_epochs: passes over the training inputs.
    distill_rate: peak of their learning rate. seed: of everything random.
    """
    streams = Streams(seed, find_device(training.device))
    keep_prob = effective_keep_prob(1 - drop_rate)
    model = prepare(model, data, training, keep_prob=keep_prob, rescale=rescale)
    check(model, data, keep_prob, distill_epochs, distill_rate)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = MaskedGuide(model, topology, keep_prob, rescale=rescale, mask=mask, generator=streams.mask)
    schedule = schedules.rule(rule, delta_t, training.step_at(freeze, data), drop_fraction)
    first = Phase(watch)
    fit = train(
        model, guide, schedule, data, training=training, streams=streams, average_from=average_from, watch=first
    )
    return distill(
        fit, data, training=training, streams=streams, epochs=distill_epochs, learning_rate=distill_rate,
        watch=first.next(),
    )  # fmt: skip
