"""Ground truth for small networks: the posterior of the active weights on a fixed topology, sampled by Pyro's NUTS.

The posterior is that of the guide's own model: active values ~ N(0, prior_scale^2), all others 0, y by the likelihood.
`program` says so in Pyro: the dense site `weights` is conditioned on the scatter of the values and its prior blocked.
`Potential` is the same density without the tracing, twice as fast (0.37 against 0.72 ms a leapfrog step for 58 weights).

A network's weights have mirror images (signs and order of hidden units), between which no chain needs to mix for its
predictive to be right. So convergence is judged where it is used, on predictive probabilities and the log joint; R-hat
and effective sample sizes of the weights are there to be read.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from espalier.contracts import Topology
from espalier.distributions.priors import MixtureNormal
from espalier.likelihoods import is_soft, matched
from espalier.network import BayesianNetwork
from espalier.prediction.predict import predictive
from espalier.randomness import derived, forked, seed_default
from espalier.sparse import scatter

if TYPE_CHECKING:
    import xarray

State = Mapping[str, Tensor]


def _prior_scale(model: BayesianNetwork) -> float:
    """Of the normal prior. Raises ValueError for a mixture, which has a spike that chains do not leave, and for a loss in the
    likelihood's place, whose factor depends on where its training stood."""
    if model.loss is not None:
        raise ValueError(f"expected a model of its likelihood, got one of loss {model.loss.name}: set model.loss to None first")
    prior = model.prior()
    if isinstance(prior, MixtureNormal):
        raise ValueError("expected a normal prior of the weights to sample under, got a mixture: take the refitted fit of sghmc")
    return prior.scale


def program(model: BayesianNetwork, topology: Topology) -> Callable[[Tensor, Tensor], None]:
    """The Pyro program that is sampled, of one latent site `values` `(k,)`: the model given their scatter."""

    scale = _prior_scale(model)

    def conditioned(x: Tensor, y: Tensor) -> None:
        zeros = model.initial.new_zeros(topology.num_active)
        values = pyro.sample("values", dist.Normal(zeros, scale).to_event(1))
        weights = scatter(values, topology.positions, topology.num_weights)
        poutine.block(poutine.condition(model, data={"weights": weights}), hide=["weights"])(x, y)

    return conditioned


class Potential:
    """-log p(values, y | x) in nats, of the active values `(k,)`: `program`'s, without the point estimates' L2."""

    def __init__(self, model: BayesianNetwork, topology: Topology, x: Tensor, y: Tensor, state: State | None) -> None:
        self.model, self.topology, self.x, self.y, self.state = model, topology, x, y, state
        self.scale = _prior_scale(model)
        self.constant = topology.num_active * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))

    def __call__(self, values: Tensor) -> Tensor:
        weights = scatter(values, self.topology.positions, self.topology.num_weights)
        outcome = self.model.outcome(weights, self.x, self.state)
        y = matched(self.y, outcome)
        log_likelihood = ((y * outcome.logits) if is_soft(y, outcome) else outcome.log_prob(y)).sum()
        nats: Tensor = 0.5 * torch.dot(values, values) / self.scale**2 + self.constant - log_likelihood
        return nats


class Convergence(NamedTuple):
    """Rank-normalised split R-hat and effective sample sizes (Vehtari et al. 2021), one of each per quantity `(q,)`."""

    rhat: NDArray[np.float64]
    ess_bulk: NDArray[np.float64]
    ess_tail: NDArray[np.float64]

    @property
    def worst(self) -> tuple[float, float]:
        """The largest R-hat and the smallest effective sample size; NaN, where a chain stood still, is the worst."""
        return float(np.max(self.rhat)), float(np.min([self.ess_bulk, self.ess_tail]))


class Chains(NamedTuple):
    """Draws of the posterior of a model on a topology.

    values: `(chains, draws, k)` float64; log_joint: `(chains, draws)`, log p(values, y | x) in nats; divergences:
    transitions after warm-up whose energy error was too large. model: the model in float64; state: its other parameters.
    """

    values: Tensor
    log_joint: Tensor
    divergences: int
    model: BayesianNetwork
    topology: Topology
    state: State | None = None

    def draws(self, x: Tensor) -> Iterator[Tensor]:
        """Predictive parameters `(n, C)` for x `(n, *shape)`, a draw at a time, chain after chain."""
        for values in self.values.flatten(0, 1):
            weights = scatter(values, self.topology.positions, self.topology.num_weights)
            yield predictive(self.model, weights, x.double(), self.state)

    def predict(self, x: Tensor) -> Tensor:
        """Predictive draws `(chains, draws, n, C)`: class probabilities, or means and standard deviations (C = 2)."""
        predicted = torch.stack(list(self.draws(x)))
        return predicted.view(*self.values.shape[:2], *predicted.shape[1:])

    def to_datatree(self, predicted: Tensor | None = None) -> xarray.DataTree:
        """`posterior` of an ArviZ DataTree: weights, log_joint and, where given, `predicted` (what `predict` returned)."""
        from arviz_base import from_dict

        posterior = {"weights": self.values.numpy(), "log_joint": self.log_joint.numpy()}
        dims = {"weights": ["weight"]}
        if predicted is not None:
            several = [f"output_{axis}" if predicted.dim() > 5 else "output" for axis in range(predicted.dim() - 4)]
            posterior["predictive"], dims["predictive"] = predicted.numpy(), ["observation", *several, "parameter"]
        tree: xarray.DataTree = from_dict({"posterior": posterior}, dims=dims)
        return tree

    def convergence(self, predicted: Tensor | None = None) -> dict[str, Convergence]:
        """By ArviZ, of every variable of `to_datatree`; a quantity that never varies is left out. Needs 4 draws."""
        from arviz_base import from_dict
        from arviz_stats import ess, rhat

        found = {}
        for name, variable in self.to_datatree(predicted)["posterior"].data_vars.items():
            values = variable.to_numpy().reshape(*self.log_joint.shape, -1)
            varying = {"it": values[..., np.ptp(values, axis=(0, 1)) > 0]}
            tree = from_dict({"posterior": varying})
            with np.errstate(all="ignore"):  # a chain that stands still
                each = [rhat(tree), ess(tree, method="bulk"), ess(tree, method="tail")]
            found[str(name)] = Convergence(*(one["it"].to_numpy().astype(np.float64) for one in each))
        return found

    def require_converged(
        self, predicted: Tensor, max_rhat: float = 1.01, min_ess: float = 400.0
    ) -> dict[str, Convergence]:
        """`convergence`, where the predictive draws and the log joint have converged; the weights need not.

        predicted: what `predict` returned for the inputs at which the chains are about to be compared. The defaults are
        those of Vehtari et al. 2021. Raises RuntimeError otherwise: unconverged chains are no ground truth. Raises ValueError for
        one chain, which cannot tell what it has missed.
        """
        if len(self.values) < 2:
            raise ValueError("expected two chains or more to compare, got one: sample with num_chains=4")
        judged = self.convergence(predicted)
        for name in ("log_joint", "predictive"):
            largest, smallest = judged[name].worst
            if not (largest <= max_rhat and smallest >= min_ess):
                raise RuntimeError(
                    f"the chains have not converged: {name} has R-hat {largest:.3f} and {smallest:.0f} effective draws, "
                    f"and a comparison needs at most {max_rhat:g} and at least {min_ess:g}: sample for longer"
                )
        return judged


def nuts(
    model: BayesianNetwork,
    topology: Topology,
    x: Tensor,
    y: Tensor,
    *,
    num_samples: int = 1000,
    warmup_steps: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
    spread: float = 1.0,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    full_mass: bool = False,
    state: State | None = None,
) -> Chains:
    """Sample the posterior of the active values given all the training data x `(n, *shape)`, y `(n,)`, in float64.

    num_samples and warmup_steps: per chain. seed: of starts and chains; torch's own stream is left as it was.
    spread: chains start at N(0, (spread * prior_scale)^2). target_accept, max_tree_depth, full_mass: Pyro's (Hoffman &
    Gelman 2014). state: what other parameters, such as biases, stand at; by default the model's own.

    Raises ValueError where the topology is another network's, x is only a part of the model's num_data, there are fewer than 4
    samples a chain, or the model has a mixture prior or a loss in its likelihood's place.
    """
    if num_samples < 4 or num_chains < 1:
        raise ValueError(f"expected num_samples of 4 or more, as R-hat needs, of any chain, got {num_samples}, {num_chains}")
    if topology.sizes != model.sizes:
        raise ValueError(f"expected a topology over layers of {model.sizes} weights, got {topology.sizes}")
    if model.num_data not in (None, len(x)):
        raise ValueError(f"expected all {model.num_data} training examples, got {len(x)}: NUTS takes no mini-batches")
    model = copy.deepcopy(model).double().eval()
    y = y.double() if y.is_floating_point() else y
    state = None if state is None else {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
    potential = Potential(model, topology, x.double(), y, state)
    chains, divergences = [], 0
    with forked(model.initial.device), pyro.get_param_store().scope():
        for chain in range(num_chains):
            seed_default(derived(seed, chain), model.initial.device)
            start = spread * potential.scale * torch.randn_like(model.initial[: topology.num_active])
            kernel = NUTS(
                potential_fn=lambda site: potential(site["values"]),
                target_accept_prob=target_accept,
                max_tree_depth=max_tree_depth,
                full_mass=full_mass,
            )
            sampler = MCMC(kernel, num_samples, warmup_steps, {"values": start}, disable_progbar=True)
            sampler.run()
            chains.append(sampler.get_samples()["values"])
            divergences += len(sampler.diagnostics()["divergences"]["chain 0"])
    values = torch.stack(chains)
    with torch.no_grad():
        log_joint = torch.stack([-potential(each) for each in values.flatten(0, 1)]).view(values.shape[:2])
    return Chains(values, log_joint, divergences, model, topology, state)
