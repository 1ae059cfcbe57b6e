"""What was believed before any data: weights from the prior, on a topology or all of them, and what they say of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from espalier import nested
from espalier.contracts import Rows, Topology
from espalier.distributions.priors import FlatNormal, MixtureNormal
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.prediction.predict import Batches, outcome_of
from espalier.randomness import derived, seeded


def prior_weights(
    model: BayesianNetwork, topology: Topology | None = None, *, draws: int, scale: float | None = None, seed: int = 0
) -> Iterator[Tensor]:
    """Flat weight vectors `(num_weights,)` from `model.prior()`; torch's own stream does not move.

    topology: the prior of a sparse net, its other weights exactly 0, as `fit.topology` is; None is the dense prior. scale:
    another standard deviation than the model's own.

    Raises ValueError for no draws, and for a topology of another network.
    """
    prior = model.prior() if scale is None else FlatNormal(scale, model.num_weights, model.initial)
    return _weights(prior, model, topology, draws, seed)


def _weights(
    prior: FlatNormal | MixtureNormal, model: BayesianNetwork, topology: Topology | None, draws: int, seed: int
) -> Iterator[Tensor]:
    if draws < 1:
        raise ValueError(f"expected at least 1 draw of the prior, got {draws}")
    if topology is not None and topology.sizes != model.sizes:
        raise ValueError(f"expected a topology over layers of {model.sizes} weights, got {topology.sizes}: use the model's own")
    return _drawn(prior, topology, draws, seed, model.initial.device)


def _drawn(
    prior: FlatNormal | MixtureNormal, topology: Topology | None, draws: int, seed: int, device: torch.device
) -> Iterator[Tensor]:
    for number in range(draws):
        with seeded(derived(seed, number, 1), device):
            weights = prior.sample()
        if topology is not None:
            positions = topology.positions.to(weights.device)
            weights = torch.zeros_like(weights).index_copy(0, positions, weights[positions])
        yield weights


def prior_outcomes(
    model: BayesianNetwork | Fit, x: Rows | Any, topology: Topology | None = None, *, draws: int, seed: int = 0
) -> Iterator[dist.TorchDistribution]:
    """The distribution of y given every row of x at each of the `prior_weights`, in the units that the network is trained in.

    Of a fit they are those of `of_fit`. What has no prior (biases, normalisation, the likelihood's own parameters) stands where
    the model has it, or where the training of the fit left it.
    """
    rows = x if isinstance(x, Batches) else Batches(nested.rows_of(x), _network(model).initial.device)
    if isinstance(model, BayesianNetwork):
        return (outcome_of(model, weights, rows) for weights in prior_weights(model, topology, draws=draws, seed=seed))
    network, state = model.model, model.pairs.state(-1)
    return (outcome_of(network, weights, rows, state) for weights in of_fit(model, topology, draws=draws, seed=seed))


def of_fit(fit: Fit, topology: Topology | None = None, *, draws: int, seed: int = 0) -> Iterator[Tensor]:
    """The `prior_weights` that a fit was trained under: of the scale, or the mixture, of its record; on its own topology, or
    another."""
    if fit.record.get("prior_of") == "scores":
        raise ValueError("expected a fit whose weights have a prior, got one whose scores have (edge_popup): they are frozen")
    model, topology, mixture = fit.model, fit.topology if topology is None else topology, fit.record.get("prior")
    if mixture is None:
        return prior_weights(model, topology, draws=draws, scale=fit.record.get("prior_scale"), seed=seed)
    return _weights(MixtureNormal(**mixture, num_weights=model.num_weights, like=model.initial), model, topology, draws, seed)


def _network(model: BayesianNetwork | Fit) -> BayesianNetwork:
    return model if isinstance(model, BayesianNetwork) else model.model
