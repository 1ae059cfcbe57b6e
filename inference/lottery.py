"""Lottery tickets (Frankle & Carbin 2019): train, prune by magnitude, rewind, and train again what is left, in rounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from espalier.contracts import Data
from espalier.distributions import given_keep_prob
from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.prediction.costs import trained
from espalier.topology import initial, magnitude_topology, schedules
from espalier.topology.masks import allocated
from espalier.topology.options import Allocation, Sparsity
from espalier.training import Phase, Training, Watches, opened, prepare, started_from
from espalier.training.options import AverageFrom, Seed
from espalier.training.phases import Origin
from espalier.training.train import check_average_from, train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity = 0.9,
    drop_rate: float = 0.0,
    rounds: int = 3,
    rewind_epochs: int = 0,
    allocation: Allocation = "erk",
    average_from: AverageFrom = 0.8,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """`rounds` prunings, each followed by a whole training from the rewound weights: rounds + 1 trainings in all. After
    round i the density is (1 - sparsity)^(i / rounds); every round keeps the largest |u| of each layer.

    drop_rate: P(Z = 0), in the last round only. rounds: prunings. rewind_epochs: epochs at the full rate whose weights are
    rewound to (Frankle et al. 2020), 0 for the initial ones. average_from: fraction of the last training after which pairs
    are collected.
    """
    streams, phase = opened(model, data, training, seed), Phase(watch)
    if rounds not in range(1, 101) or rewind_epochs < 0 or not 0 <= sparsity < 1:
        got = f"{rounds}, {rewind_epochs}, {sparsity:g}"
        raise ValueError(f"expected rounds of 1 to 100, rewind_epochs of at least 0 and a sparsity in [0, 1), got {got}")
    rounds = int(rounds)
    check_average_from(average_from)
    training.check_with(data)  # refused at once, and not after other trainings
    earlier: list[dict[str, Any]] = []
    counts = [allocated(model.shapes, (1 - sparsity) ** (i / rounds), allocation) for i in range(1, rounds + 1)]
    for i in reversed(range(rounds - 1)):  # shares are rounded in each round: no layer may grow back
        counts[i] = tuple(map(max, counts[i], counts[i + 1]))
    start, own = model, training
    origin = [] if rewind_epochs else [Origin(model)]  # what every round goes back to is in no checkpoint
    keep_prob = given_keep_prob(drop_rate)
    if rewind_epochs:
        own = replace(training, epochs=rewind_epochs, rate="constant", warmup=0, patience=0)
        dense = prepare(model, data, own)
        guide = MaskedGuide(dense, initial(model.shapes, 0.0, generator=streams.topology))
        fit = train(dense, guide, schedules.static(), data, training=own, streams=streams, watch=phase)
        start = started_from(model, fit)
        earlier.append(trained(fit))
        phase = phase.next()
    topology = initial(model.shapes, 0.0, generator=streams.topology)
    for left in [*counts, None]:
        p = keep_prob if left is None else 1.0
        ready = prepare(start, data, training, keep_prob=p)
        guide = MaskedGuide(ready, topology, p, generator=streams.mask)
        fit = train(ready, guide, schedules.static(), data, training=training, streams=streams,
                    average_from=average_from if left is None else 1.0, followers=origin, watch=phase)  # fmt: skip
        if left is not None:
            topology = magnitude_topology(model.shapes, left, next(fit.weights("unmasked"))[0])
            earlier.append(trained(fit))
            phase = phase.next()
    fit.record |= {"earlier": earlier}
    return fit
