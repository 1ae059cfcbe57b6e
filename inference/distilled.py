"""The distilled ticket: CigL, then its posterior predictive projected onto one sparse net by distillation."""

from __future__ import annotations

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
from espalier.training.train import train
from espalier.training.woven import Woven


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
    distill_rate: float = 0.02,
    distill_masks: int = 1,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """CigL's Algorithm 1, and one net on the same support that learns what the masked ones predict, a fresh mask at every
    step, without labels: in the last tenth of training, or in epochs of its own. The way to predict `distilled` is one pass.

    drop_rate: P(Z = 0), or auto: found on validation rows while training; auto-kind and auto-layer find several. rescale: weights
    are Z * u / keep_prob instead of Z * u. mask: one Z per weight, per input unit, or per filter. num_particles: masks a step.
    microbatches: parts of a batch, a mask each, at the price of one step. rule: how the topology moves.
    distill_epochs: passes over the training inputs after training; 0: it learns on the way, at no pass of its own.
    distill_rate: peak of its learning rate. distill_masks: masks whose mean it is told; more than a step has cost a pass each.
    """
    streams = opened(model, data, training, seed)
    keep_prob, followers = begin(drop_rate, model, data, training, seed=streams.seed, rescale=rescale)
    model = prepare(model, data, training, keep_prob=keep_prob, rescale=rescale)
    lessons = Lessons(distill_epochs, distill_rate, distill_masks)
    check(model, data, keep_prob < 1, lessons)
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = MaskedGuide(
        model, topology, keep_prob, rescale=rescale, mask=mask, num_particles=num_particles, microbatches=microbatches,
        generator=streams.mask,
    )  # fmt: skip
    schedule = schedules.rule(rule, delta_t, training.step_at(freeze, data), drop_fraction)
    if not distill_epochs:
        followers.append(Woven.of(training, data, average_from, lessons, seed=streams.seed))
    first = Phase(watch)
    fit = train(
        model, guide, schedule, data, training=training, streams=streams, average_from=average_from, followers=followers,
        watch=first,
    )  # fmt: skip
    return fit if not distill_epochs else distill(
        fit, data, training=training, seed=streams.seed, microbatches=microbatches, watch=first.next(), **lessons._asdict()
    )
