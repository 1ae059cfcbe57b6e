"""The claims on the guide, topologies, the KL and scale hold, and each check catches formulas that are wrong on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import special, stats

from espalier.distributions.masked import kl_bound
from espalier.distributions.priors import prior_scale_of
from espalier.distributions.subsets import overlap_with_mode
from espalier.guides.hierarchy import HierarchicalGuide, LeaveOneOutELBO
from espalier.theory import kl, literal, scale, topologies

CLAIMS = {claim.name: claim for module in (literal, topologies, kl, scale) for claim in module.CLAIMS}


class FlatReverse(HierarchicalGuide):
    """r(Z | ...) := q(Z): a valid bound, but not the one that is tight in Z."""

    def reverse(self, weights):
        u, _ = self._hierarchy()
        pyro.sample("Z", dist.Bernoulli(torch.full_like(u, self.keep_prob)).to_event(1))


class NarrowReverse(HierarchicalGuide):
    """A factor 2 in the posterior odds of Z: s^2 for 2 s^2."""

    def reverse(self, weights):
        u, m = self._hierarchy()
        odds = np.log(self.keep_prob / (1 - self.keep_prob)) + m * u * (2 * weights - m * u) / self.noise_scale**2
        pyro.sample("Z", dist.Bernoulli(logits=odds).to_event(1))


class OwnBaseline(LeaveOneOutELBO):
    """The mean of all particles, one's own among them, as baseline: biased by the factor (S - 1) / S."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        elbos, scores = [], []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            elbos.append(model_trace.log_prob_sum() - guide_trace.log_prob_sum())
            scores.append(guide_trace.nodes["M"]["log_prob_sum"] + guide_trace.nodes["Z"]["log_prob_sum"])
        elbo, score = torch.stack(elbos), torch.stack(scores)
        advantage = (elbo - elbo.mean()).detach()
        return -(elbo + advantage * (score - score.detach())).mean()


class NoScore(Trace_ELBO):
    """The path alone, as if M did not depend on U."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        traces = list(self._get_traces(model, guide, args, kwargs))
        return -torch.stack([m.log_prob_sum() - g.log_prob_sum() for m, g in traces]).mean()


def marginal(spread: float = np.sqrt(2), keep=lambda p: p):
    def cdf(w, v, p, s):
        p = keep(p)
        return p * stats.norm.cdf(w, v, spread * s) + (1 - p) * stats.norm.cdf(w, 0, s)

    return cdf


def quadrature(change) -> Any:
    return lambda *args: change(*literal.two_weights(*args))


def subsets(logit_factor: float = 1.0, zeros: bool = False):
    def enumerate_all(logits, k):
        rows, _ = topologies.subsets_by_hand(logits, k)
        return rows, special.softmax((1 - rows if zeros else rows) @ (logit_factor * logits))

    return enumerate_all


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "literal-marginal": {
        "variance s^2 for 2 s^2": {"cdf": marginal(spread=1.0)},
        "p for 1 - p": {"cdf": marginal(keep=lambda p: 1 - p)},
        "sign of V": {"cdf": lambda w, v, p, s: literal.marginal_cdf(w, -v, p, s)},
    },
    "literal-gap": {
        "information subtracted": {"quadrature": quadrature(lambda kl, information: (kl, -information))},
        "no gap": {"quadrature": quadrature(lambda kl, information: (kl, 0.0))},
        "r(Z) not the posterior": {"guide_class": FlatReverse},
        "a factor 2 in r(Z)": {"guide_class": NarrowReverse},
    },
    "literal-limit": {
        "p for 1 - p": {"keep_weighting": lambda p, ones: (1 - p) ** ones * p ** (ones.max() - ones)},
        "prior variance halved": {"prior_factor": 0.5},
    },
    "subsets-enumeration": {
        "logits doubled": {"enumerate_all": subsets(2.0)},
        "sign of the logits": {"enumerate_all": subsets(-1.0)},
        "sums over the zeros": {"enumerate_all": subsets(zeros=True)},
    },
    "subsets-large": {
        "k off by one": {"reference": lambda logits, k: topologies.log_elementary_symmetric(logits, k - 1)},
        "logits halved": {"reference": lambda logits, k: topologies.log_elementary_symmetric(logits / 2, k)},
    },
    "subsets-mode": {
        "the mode itself": {"overlap": lambda logits, k: torch.tensor(1.0)},
        "temperature one tenth": {"overlap": lambda logits, k: overlap_with_mode(10 * logits, k)},
    },
    "subsets-gradient": {
        "own draw in the baseline": {"elbo": OwnBaseline},
        "no score function": {"elbo": lambda count: NoScore(num_particles=count)},
    },
    "kl-bound": {
        "factor 2 in m^2": {"bound": lambda m, p, v, s: kl_bound(1.4142 * m, p, v, s)},
        "1 - p for p": {"bound": lambda m, p, v, s: kl_bound(m, 1 - p, v, s)},
        "sign of the logarithm": {"bound": lambda m, p, v, s: kl_bound(m, p, v, s) + np.log(s**2 / v**2)},
        "p (1 - p) for the entropy": {"entropy": lambda p: p * (1 - p)},
    },
    "kl-gal": {
        "entropy added": {"approximation": lambda m, p, v, s: kl_bound(m, p, v, s) + kl.binary_entropy(p)},
        "no entropy": {"approximation": kl_bound},
    },
    "kl-monte-carlo": {
        "weights of the parts swapped": {"log_density": lambda w, m, p, s: kl.mixture_log_density(w, m, 1 - p, s)},
        "variance doubled": {"log_density": lambda w, m, p, s: kl.mixture_log_density(w, m, p, 1.4142 * s)},
    },
    "objective-cigl": {
        "no factor 1/2": {"decay": lambda decay, u: 2 * kl.l2_of(decay, u)},
        "sign": {"decay": lambda decay, u: -kl.l2_of(decay, u)},
        "prior without p": {"prior": lambda decay, n, p, rescale: prior_scale_of(decay, n, 1.0, rescale=rescale)},
    },
    "objective-prior-scale": {
        "1 - p for p": {"prior": lambda decay, n, p, rescale: prior_scale_of(decay, n, 1 - p, rescale=rescale)},
        "factor 2": {"prior": lambda decay, n, p, rescale: prior_scale_of(2 * decay, n, p, rescale=rescale)},
        "rescale forgotten": {"prior": lambda decay, n, p, rescale: prior_scale_of(decay, n, p, rescale=False)},
    },
    "scale-rescale": {
        "rate p": {"recipe": lambda p, rate, decay: (p, rate * p, decay / p**2)},
        "decay p^-1": {"recipe": lambda p, rate, decay: (p, rate * p**2, decay / p)},
        "start unscaled": {"recipe": lambda p, rate, decay: (1.0, rate * p**2, decay / p**2)},
    },
    "scale-logits": {
        "p^L": {"factor": lambda p, layers: p**layers},
        "one layer short": {"factor": lambda p, layers: p ** (1 - layers)},
        "1 - p for p": {"factor": lambda p, layers: (1 - p) ** -layers},
    },
}  # fmt: skip
MUTANTS = [(claim, name) for claim, mutations in MUTATIONS.items() for name in mutations]


pytestmark = pytest.mark.usefixtures("own_stream", "own_store")


def test_every_claim_has_mutations() -> None:
    assert MUTATIONS.keys() == CLAIMS.keys()
    assert all(len(mutations) >= 2 for mutations in MUTATIONS.values())


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name: str) -> None:
    finding = CLAIMS[name].check(True)
    assert finding.verdict == "holds", finding
    assert finding.compared


@pytest.mark.parametrize(("name", "mutation"), MUTANTS)
def test_a_wrong_formula_is_caught(name: str, mutation: str) -> None:
    finding = CLAIMS[name].check(True, **MUTATIONS[name][mutation])
    assert finding.verdict == "fails", finding


def test_the_kl_has_the_values_of_the_design_note() -> None:
    """seed-systems.md 2.5: p .9, s .05, v 1 at m = 0, .05, .1, .3, 1."""
    found = [kl.kl_by_quadrature(m, 0.9, 1.0, 0.05) for m in (0, 0.05, 0.1, 0.3, 1)]
    assert found == pytest.approx([2.497, 2.455, 2.359, 2.215, 2.622], abs=6e-4)


def test_the_mode_is_a_large_step_at_temperature_one() -> None:
    finding = CLAIMS["subsets-mode"].check(True)
    assert finding.figures["normal, sd 0.05, 5 %"]["overlap"] == pytest.approx(0.0537, abs=2e-3)
