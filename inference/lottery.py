"""Lottery tickets (Frankle & Carbin 2019): train, prune by magnitude, rewind, and train again what is left, in rounds."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

from espalier.contracts import Data
from espalier.distributions.masked import effective_keep_prob
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.costs import trained
from espalier.prediction.fit import Fit
from espalier.topology import schedules
from espalier.topology.masks import ALLOCATIONS, initial, magnitude_topology
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
    drop_rate: float = 0.0,
    rounds: int = 3,
    rewind_epochs: int = 0,
    allocation: Literal["erk", "uniform"] = "erk",
    average_from: float = 0.8,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: int = 0,
    watch: Watch | None = None,
) -> Fit:
    """`rounds` prunings, each followed by a whole training from the rewound weights: rounds + 1 trainings in all. After
    round i the density is (1 - sparsity)^(i / rounds); every round keeps the largest |u| of each layer.

    sparsity: fraction of the maskable weights at zero. drop_rate: P(Z = 0), in the last round only. rounds: prunings.
    rewind_epochs: epochs at the full rate whose weights are rewound to (Frankle et al. 2020), 0 for the initial ones.
    allocation: how layers share the active weights. average_from: fraction of the last training after which pairs are
    collected. seed: of everything random.
    """
    if rounds < 1 or rewind_epochs < 0:
        raise ValueError(
            f"expected rounds of at least 1 and rewind_epochs of at least 0, got {rounds}, {rewind_epochs}"
        )
    earlier: list[dict[str, Any]] = []
    streams, phase = Streams(seed, find_device(training.device)), Phase(watch)
    counts = [ALLOCATIONS[allocation](model.shapes, (1 - sparsity) ** (i / rounds)) for i in range(1, rounds + 1)]
    for i in reversed(range(rounds - 1)):  # shares are rounded in each round: no layer may grow back
        counts[i] = tuple(map(max, counts[i], counts[i + 1]))
    start, own = copy.deepcopy(model), training
    keep_prob = effective_keep_prob(1 - drop_rate)
    if rewind_epochs:
        own = replace(training, epochs=rewind_epochs, rate="constant")
        dense = prepare(model, data, own)
        guide = MaskedGuide(dense, initial(model.shapes, 0.0, generator=streams.topology))
        fit = train(dense, guide, schedules.static(), data, training=own, streams=streams, watch=phase)
        start.start_from(fit.ticket().state_dict())
        earlier.append(trained(fit))
        phase = phase.next()
    topology = initial(model.shapes, 0.0, generator=streams.topology)
    for left in [*counts, None]:
        p = keep_prob if left is None else 1.0
        ready = prepare(start, data, training, keep_prob=p)
        guide = MaskedGuide(ready, topology, p, generator=streams.mask)
        fit = train(ready, guide, schedules.static(), data, training=training, streams=streams,
                    average_from=average_from if left is None else 1.0, watch=phase)  # fmt: skip
        if left is not None:
            topology = magnitude_topology(model.shapes, left, next(fit.weights("unmasked"))[0])
            earlier.append(trained(fit))
            phase = phase.next()
    fit.record |= {"earlier": earlier}
    return fit
