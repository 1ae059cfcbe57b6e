"""The literal guide: CigL's eq. 3 (Lei et al. 2023) as four explicit Pyro sites, with a distribution over topologies.

    U ~ N(V, s^2)      M | U ~ P(M) prop. to exp(sum_i M_i |U_i| / T), each layer's count fixed      Z ~ Bernoulli(p)
    weights | Z, U, M ~ N(Z M U, s^2)

At noise scale s = 0 and temperature T = 0 it is `MaskedGuide`, up to constants of the ELBO. At s = 0 and T > 0 it learns
a distribution over topologies, and `inclusion` says how probable each weight is. At s > 0 it is for theory.

U, M and Z are auxiliary (Ranganath et al. 2016, hierarchical variational models): `reversed_model` gives the model the
sites r(U, M, Z | weights), which makes the ELBO a bound for any r. Here r(U, M | weights) = q(U) q(M | U), and r(Z | weights,
U, M) is the exact posterior of Z, so that the bound is tight in Z. What it gives away is I(weights; U, M) nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from espalier.contracts import Topology
from espalier.distributions.masked import effective_keep_prob
from espalier.distributions.subsets import KSubset
from espalier.guides.masked import MaskedGuide, check_store
from espalier.network import BayesianNetwork

_CERTAIN = 40.0  # log odds of Z = 1 where p = 1: no infinity, whose log_prob would be NaN


class LayerSubsets(TorchDistribution):
    """Independent `KSubset`s, one per layer, over one flat vector: layer l has `counts[l]` ones among `sizes[l]` places.

    logits: `(num_weights,)`, finite. Event shape `(num_weights,)`. `mean` are the inclusion probabilities.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, logits: Tensor, counts: Sequence[int], sizes: Sequence[int]) -> None:
        self.layers = [KSubset(part, k, False) for part, k in zip(logits.split(list(sizes)), counts, strict=True)]
        self.sizes = list(sizes)
        super().__init__(event_shape=logits.shape, validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.boolean, 1)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> LayerSubsets:
        if tuple(batch_shape):
            raise ValueError(f"expected one network's topology, got a batch of {tuple(batch_shape)}: loop over draws")
        return self

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.cat([layer.sample(sample_shape) for layer in self.layers], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = zip(self.layers, value.split(self.sizes, dim=-1), strict=True)
        return torch.stack([layer.log_prob(part) for layer, part in parts]).sum(0)

    @property
    def mean(self) -> Tensor:
        return torch.cat([layer.mean for layer in self.layers])

    @property
    def mode(self) -> Tensor:
        return torch.cat([layer.mode for layer in self.layers])

    def entropy(self) -> Tensor:
        """In nats, `()`."""
        return torch.stack([layer.entropy() for layer in self.layers]).sum()


class HierarchicalGuide(PyroModule):
    """Eq. 3 as sites `U`, `M`, `Z` and `weights`, each `(num_weights,)`: a guide for `reversed_model(model, guide)`.

    topology: how many weights are active in each layer; where M starts is decided by |V|, not by it.
    keep_prob: p = P(Z = 1), its effective value as in `MaskedGuide`.
    noise_scale: s, the standard deviation of U and of both components; 0 makes U and weights deterministic given M and Z,
        and then r(Z | ...) is q(Z), the bound A(m) of `distributions.kl_bound`.
    temperature: T, in the units of the weights; 1 is eq. 3, 0 the mode: the largest |U| of each layer.

    values: parameter V `(num_weights,)`, starting at the network's own weights.
    Train it with `LeaveOneOutELBO` where T > 0: M has no reparametrisation.
    """

    def __init__(
        self,
        model: BayesianNetwork,
        topology: Topology,
        keep_prob: float = 1.0,
        *,
        noise_scale: float = 0.0,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        if topology.sizes != model.sizes:
            raise ValueError(f"expected a topology over layers of {model.sizes} weights, got {topology.sizes}")
        if noise_scale < 0 or temperature < 0:
            raise ValueError(f"expected noise_scale and temperature of 0 or more, got {noise_scale} and {temperature}")
        self.counts, self.sizes = topology.counts, topology.sizes
        self.keep_prob = effective_keep_prob(keep_prob)
        self.noise_scale, self.temperature = noise_scale, temperature
        self.values = nn.Parameter(model.initial.clone())

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The Pyro program. The data are not looked at.

        Raises ValueError where Pyro's parameter store would give it the values of an earlier guide, and train those.
        """
        check_store(self, self.values)
        u, m = self._hierarchy()
        z = pyro.sample("Z", dist.Bernoulli(torch.full_like(u, self.keep_prob)).to_event(1))
        weights: Tensor = pyro.sample("weights", self._around(z * m * u))
        return weights

    def reverse(self, weights: Tensor) -> None:
        """The Pyro program r(U, M, Z | weights): the model's side of the auxiliary sites."""
        u, m = self._hierarchy()
        p = self.keep_prob
        log_odds = torch.full_like(u, math.log(p / (1 - p)) if p < 1 else _CERTAIN)
        if self.noise_scale > 0:  # log N(w; MU, s^2) - log N(w; 0, s^2)
            log_odds = log_odds + m * u * (2 * weights - m * u) / (2 * self.noise_scale**2)
        pyro.sample("Z", dist.Bernoulli(logits=log_odds).to_event(1))

    def _hierarchy(self) -> tuple[Tensor, Tensor]:
        """U and M, of the guide and of its reverse alike."""
        u = pyro.sample("U", self._around(self.values))
        return u, pyro.sample("M", self.topologies(u))

    def _around(self, mean: Tensor) -> TorchDistribution:
        return (
            dist.Normal(mean, self.noise_scale).to_event(1) if self.noise_scale > 0 else dist.Delta(mean, event_dim=1)
        )

    def topologies(self, u: Tensor | None = None) -> TorchDistribution:
        """q(M | U) at `u` `(num_weights,)`, by default at V."""
        u = self.values if u is None else u
        if self.temperature > 0:
            return LayerSubsets(u.abs() / self.temperature, self.counts, self.sizes)
        return dist.Delta(LayerSubsets(u.detach().abs(), self.counts, self.sizes).mode, event_dim=1)

    def inclusion(self) -> Tensor:
        """P(M_i = 1) of each weight given U = V, `(num_weights,)`: sums to the layer's count in every layer."""
        probability: Tensor = self.topologies().mean
        return probability.detach()

    def collapse(self, model: BayesianNetwork) -> MaskedGuide:
        """The guide that trains: M at its mode given V, s = 0, and V's values there."""
        mode = LayerSubsets(self.values.detach().abs(), self.counts, self.sizes).mode
        topology = Topology(mode.nonzero().squeeze(-1), self.counts, self.sizes)
        guide = MaskedGuide(model, topology, self.keep_prob)
        guide.values.data = self.values.detach()[topology.positions].clone()
        return guide


def reversed_model(model: BayesianNetwork, guide: HierarchicalGuide) -> Callable[..., Tensor]:
    """The Pyro program p(weights) p(y | x, weights) r(U, M, Z | weights): what an ELBO holds against the literal guide."""

    def program(x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.poutine.trace() as seen:  # the sites go on to whoever listens outside
            outcome: Tensor = model(x, y)
        guide.reverse(seen.trace.nodes["weights"]["value"])
        return outcome

    return program


class LeaveOneOutELBO(Trace_ELBO):
    """`Trace_ELBO` for guides with discrete sites: the score function with the other particles' mean as baseline.

    gradient = mean_i [ grad f_i + (f_i - mean_{j != i} f_j) grad log q(discrete sites of i) ],  f the ELBO of a particle.

    Unbiased, as the baseline does not depend on draw i. Source: Kool, van Hoof & Welling 2019 ("REINFORCE leave-one-out");
    Mnih & Rezende 2016 (VIMCO's baseline without its bound). Needs num_particles >= 2.
    """

    def __init__(self, num_particles: int = 4, **kwargs: Any) -> None:
        if num_particles < 2:
            raise ValueError(f"expected at least 2 particles, got {num_particles}: each is the other's baseline")
        super().__init__(num_particles=num_particles, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """-ELBO averaged over the particles; its gradient is the estimator."""
        elbos, scores = [], []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            elbos.append(model_trace.log_prob_sum() - guide_trace.log_prob_sum())
            discrete = [site for site in guide_trace.nodes.values() if _needs_score(site)]
            scores.append(sum((site["log_prob_sum"] for site in discrete), torch.zeros(())))
        elbo = torch.stack(elbos)
        rest = elbo.detach()
        advantage = (rest - rest.mean()) * len(elbo) / (len(elbo) - 1)  # f_i minus the mean of the others
        score = torch.stack(scores)
        return -(elbo + advantage * (score - score.detach())).mean()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())


def _needs_score(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site["fn"].has_rsample
