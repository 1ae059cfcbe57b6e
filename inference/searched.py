"""Searched layer ratios: train dense, search how much each layer keeps, prune by magnitude, train on what is left."""

from __future__ import annotations

from espalier.contracts import Data
from espalier.distributions import given_keep_prob
from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.prediction.costs import trained
from espalier.topology import initial, magnitude_topology, schedules
from espalier.topology.options import Sparsity
from espalier.training import Phase, Training, Watches, layer_ratios, opened, prepare, ratios
from espalier.training.options import AverageFrom, Seed
from espalier.training.phases import started_from
from espalier.training.ratios import By, SearchOn
from espalier.training.train import check_average_from, train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity = 0.9,
    drop_rate: float = 0.0,
    by: By = "dual",
    search_rows: int = ratios.ROWS,
    search_on: SearchOn = "train",
    search_steps: int = ratios.STEPS,
    average_from: AverageFrom = 0.8,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """Two trainings, each by the whole schedule of the learning rate (Renda et al. 2020), and a search between them.

    drop_rate: P(Z = 0), in the second training only. by: dual, layers that trade weights at one price; ppo,
    constrained reinforcement learning (Malik et al. 2021; needs `espalier[rl]`); erk or uniform, no search. search_rows: that
    every candidate is looked at on. search_on: the split that they are of. search_steps: of ppo's agent. average_from: fraction
    of the second training after which pairs are collected.
    """
    check_average_from(average_from)
    streams, first = opened(model, data, training, seed), Phase(watch)
    keep_prob = given_keep_prob(drop_rate)
    dense = prepare(model, data, training)
    ratios.check(dense, data, sparsity, by, search_rows, search_on, search_steps)
    guide = MaskedGuide(dense, initial(model.shapes, 0.0, generator=streams.topology))
    fit = train(
        dense, guide, schedules.static(), data, training=training, streams=streams, average_from=1.0, watch=first
    )  # fmt: skip
    found = layer_ratios(
        fit, data, sparsity=sparsity, by=by, seed=streams.seed, rows=search_rows, search_on=search_on, steps=search_steps
    )  # fmt: skip
    topology = magnitude_topology(model.shapes, found.counts, next(fit.weights("ticket"))[0])
    ready = prepare(started_from(model, fit), data, training, keep_prob=keep_prob)
    guide = MaskedGuide(ready, topology, keep_prob, generator=streams.mask)
    earlier = [trained(fit)]
    fit = train(ready, guide, schedules.static(), data, training=training, streams=streams,
                average_from=average_from, watch=first.next())  # fmt: skip
    fit.record |= {"earlier": earlier, "search": found.facts()}
    return fit
