"""Sparsity from the prior (Sun, Xiong & Liang 2021): SGHMC under an annealed slab and spike, a threshold, a refit."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from espalier.contracts import Data
from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.prediction.costs import trained
from espalier.topology import initial, schedules
from espalier.topology.masks import check_count
from espalier.topology.options import Sparsity
from espalier.training import Phase, Training, Watches, opened, prepare, started_from
from espalier.training.annealing import Annealing, Noise, PriorAnnealing, spikes_that_suit, survivors
from espalier.training.options import AverageFrom, Seed
from espalier.training.train import train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity | None = None,
    slab_probability: float = 1e-7,
    slab_scale: float = 0.2,
    spike_from: float | Literal["auto"] = "auto",
    spike_to: float | Literal["auto"] = "auto",
    temperature: float = 0.01,
    prior_from: float = 0.5,
    prior_whole: float = 0.66,
    spike_final: float = 0.75,
    refit_epochs: int = 10,
    refit_rate: float = 0.01,
    refit_temperature: float = 0.01,
    average_from: AverageFrom = 0.8,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """Train dense under weight decay, then under the mixture, whose factor rises and whose spike narrows (`annealing.Annealing`);
    keep each weight that is likelier the slab's; and train those alone, under the slab. How many are left is what comes out.

    sparsity: keep so many, the likeliest; none: all likelier. slab_probability: of a weight, before data. slab_scale: standard
    deviation. spike_from: that of the spike at first. spike_to: and at last; auto is as narrow as the steps can follow, and ten
    times its variance before. temperature: of the noise of the first training, 1 is the posterior's. prior_from: fraction of it
    at which the mixture begins. prior_whole: at which its factor is 1. spike_final: at which the spike is at its last.
    refit_epochs: of the second, 0 returns the draws of the first, on all weights. refit_rate: its peak. refit_temperature: of
    its noise. average_from: fraction of the first training after which pairs are collected; of the second all are.
    """
    streams, phase = opened(model, data, training, seed), Phase(watch)
    if training.optimizer != "sgd" or refit_epochs < (sparsity is not None):
        raise ValueError(f"expected sgd, refit_epochs of 0 or more, 1 with a sparsity, got {training.optimizer}, {refit_epochs}")
    check_count(model.shapes, round((1 - (sparsity or 0)) * model.num_weights))
    suit = spikes_that_suit(training, data, spike_final)
    spikes = tuple(own if given == "auto" else float(given) for given, own in zip((spike_from, spike_to), suit, strict=True))
    stages = Annealing(spikes, temperature, prior_from, prior_whole, spike_final)
    annealing = PriorAnnealing.of(training, data, stages, slab_probability, slab_scale, streams.mask)
    own = replace(training, epochs=max(1, refit_epochs), learning_rate=refit_rate, warmup=0, weight_decay=None)
    noise = Noise(refit_temperature, own.momentum, own.learning_rates(own.steps(data)), streams.mask)
    dense, first = prepare(model, data, training), replace(training, patience=0)  # stages are fractions of it
    guide = MaskedGuide(dense, initial(model.shapes, 0.0, generator=streams.topology))
    fit = train(dense, guide, schedules.static(), data, training=first, streams=streams,
                average_from=average_from, followers=[annealing], watch=phase)  # fmt: skip
    left, selected = survivors(dense, fit, sparsity)
    fit.record["selected"] = selected
    if not refit_epochs:
        return fit
    start = started_from(model, fit, "unmasked")
    start.prior_scale, start.weight_decay = slab_scale, 0.0
    ready, earlier = prepare(start, data, own), trained(fit)
    guide = MaskedGuide(ready, left)
    fit = train(ready, guide, schedules.static(), data, training=own, streams=streams, average_from=0.0,
                followers=[noise], watch=phase.next())  # fmt: skip
    fit.record |= {"earlier": [earlier], "selected": selected}
    return fit
