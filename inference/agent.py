"""AGENT (Lei et al. 2023): sparse training on gradients that are steadied by those of a snapshot, an epoch old at most."""

from __future__ import annotations

from typing import Literal

from espalier.contracts import Data
from espalier.distributions import given_keep_prob
from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.topology import initial, schedules
from espalier.topology.options import Allocation, DeltaT, DropFraction, Freeze, Sparsity, Start
from espalier.training import Training, Watches, opened, prepare
from espalier.training.control_variates import ControlVariate
from espalier.training.options import AverageFrom, Seed
from espalier.training.train import train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity = 0.9,
    drop_rate: float = 0.0,
    gamma: float = 0.1,
    coefficient: float = 0.1,
    memory: float = 0.7,
    rule: Literal["rigl", "set", "static"] = "rigl",
    allocation: Allocation = "erk",
    start: Start = "random",
    delta_t: DeltaT = 100,
    drop_fraction: DropFraction = 0.3,
    freeze: Freeze = 0.75,
    average_from: AverageFrom = 0.8,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """RigL, or CigL where weights are masked, on the gradient plus gamma * c * (u - the gradient of the same batch and Z at a
    snapshot), u the mean of the latter over all batches, once an epoch. Three times the work of an epoch, and more.

    drop_rate: P(Z = 0). gamma: damping of the correction. coefficient: c before it is estimated, in the second epoch. memory: of
    c, which goes to the slope of the batches' losses over those at the snapshot. rule: how the topology moves.
    """
    streams, keep_prob = opened(model, data, training, seed), given_keep_prob(drop_rate)
    model = prepare(model, data, training, keep_prob=keep_prob)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = MaskedGuide(model, topology, keep_prob, generator=streams.mask)
    schedule = schedules.rule(rule, delta_t, training.step_at(freeze, data), drop_fraction)
    control = ControlVariate(data, training, gamma=gamma, coefficient=coefficient, memory=memory, seed=streams.seed)
    return train(
        model, guide, schedule, data, training=training, streams=streams, average_from=average_from, followers=[control],
        watch=watch,
    )  # fmt: skip
