"""The distilled ticket: CigL, then its posterior predictive projected onto one sparse net by distillation."""

from __future__ import annotations

import warnings
from typing import Literal

from espalier.contracts import Data
from espalier.guides import Mask, MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.topology import initial, schedules
from espalier.topology.options import Allocation, DeltaT, DropFraction, Freeze, Sparsity, Start
from espalier.training import Phase, Training, Watches, opened, prepare
from espalier.training.distillation import Lessons, check, distill
from espalier.training.drop_rates import DropRate, begin
from espalier.training.options import AverageFrom, Seed
from espalier.training.student import Refused
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
    rule: Literal["rigl", "set", "static"] = "rigl",
    allocation: Allocation = "erk",
    start: Start = "random",
    delta_t: DeltaT = 100,
    drop_fraction: DropFraction = 0.3,
    freeze: Freeze = 0.75,
    average_from: AverageFrom = 0.8,
    distill_epochs: int = 0,
    distill_rate: float | None = None,
    distill_masks: int = 0,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """CigL's Algorithm 1, and then one net on the same support that learns what the masked ones predict together, without labels,
    in a twenty-fifth of the training's steps. The way to predict `distilled` is one pass.

    drop_rate: P(Z = 0), or auto: found on validation rows while training; auto-kind and auto-layer find several. rescale: weights
    are Z * u / keep_prob instead of Z * u. mask: one Z per weight, per input unit, or per filter. num_particles: masks a step.
    microbatches: parts of a batch, a mask each, at the price of one step. rule: how the topology moves.
    distill_masks: draws whose mean it is told at a step, at a forward pass each; 0: by moments, what all of them say.
    distill_epochs: passes over the training inputs; 0: 4 % of the training's steps, or 10 % where it is told draws.
    distill_rate: peak of its learning rate; null: .1, or .02 where it is told draws.
    """
    streams = opened(model, data, training, seed)
    keep_prob, followers = begin(drop_rate, model, data, training, seed=streams.seed, rescale=rescale)
    model = prepare(model, data, training, keep_prob=keep_prob, rescale=rescale)
    lessons = Lessons(distill_epochs, distill_rate, distill_masks).plain()
    check(model, data, keep_prob < 1, lessons)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = MaskedGuide(
        model, topology, keep_prob, rescale=rescale, mask=mask, num_particles=num_particles, microbatches=microbatches,
        generator=streams.mask,
    )  # fmt: skip
    schedule = schedules.rule(rule, delta_t, training.step_at(freeze, data), drop_fraction)
    first = Phase(watch)
    fit = train(
        model, guide, schedule, data, training=training, streams=streams, average_from=average_from, followers=followers,
        watch=first,
    )  # fmt: skip
    try:
        distill(
            fit, data, training=training, seed=streams.seed, microbatches=microbatches, watch=first.next(), **lessons._asdict()
        )
    except Refused as why:  # the training is over, and stays
        fit.record["refused"] = str(why)
        warnings.warn(f"the fit has no distilled net: {why}", stacklevel=2)
    return fit
