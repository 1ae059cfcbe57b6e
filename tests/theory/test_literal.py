"""The four sites of eq. 3 against the collapsed guide: the claims hold, and wrong formulas are caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from espalier.guides.hierarchy import HierarchicalGuide
from espalier.theory import literal
from rewritten import KL_WITHOUT_P, Rewrite, Rewrites, assert_seen
from wrong import assert_all_have_mutations, assert_caught, assert_holds, mutants

CLAIMS = {claim.name: claim for claim in literal.CLAIMS}


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


def marginal(spread: float = np.sqrt(2), keep=lambda p: p):
    def cdf(w, v, p, s):
        p = keep(p)
        return p * stats.norm.cdf(w, v, spread * s) + (1 - p) * stats.norm.cdf(w, 0, s)

    return cdf


def quadrature(change) -> Any:
    return lambda *args: change(*literal.two_weights(*args))


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
}  # fmt: skip

CODE_MUTATIONS: Rewrites = {
    "literal-marginal": {
        "P(Z = 1) + .02": Rewrite(HierarchicalGuide.forward, "self.keep_prob)", "self.keep_prob + 0.02)"),
    },
    "literal-gap": {
        "s^2 for 2 s^2 in r(Z)": Rewrite(HierarchicalGuide.reverse, "/ (2 * self.noise_scale**2)", "/ self.noise_scale**2"),
    },
    "literal-limit": {"KL without p": KL_WITHOUT_P},
}

pytestmark = pytest.mark.usefixtures("own_stream", "own_store")


def test_every_claim_has_mutations() -> None:
    assert_all_have_mutations(CLAIMS, MUTATIONS)


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name: str) -> None:
    assert_holds(CLAIMS[name])


def _marked(name: str, wrong: str) -> Any:
    """Seven seconds each: one of the gap's is enough for the gate."""
    return pytest.param(name, wrong, marks=[pytest.mark.slow] if name == "literal-gap" and wrong != "no gap" else [])


@pytest.mark.parametrize(("name", "mutation"), [_marked(*each) for each in mutants(MUTATIONS)])
def test_a_wrong_formula_is_caught(name: str, mutation: str) -> None:
    assert_caught(CLAIMS[name], MUTATIONS[name][mutation])


@pytest.mark.parametrize(("name", "wrong"), mutants(CODE_MUTATIONS))
def test_wrong_code_is_seen(name: str, wrong: str) -> None:
    assert_seen(CLAIMS[name], CODE_MUTATIONS[name][wrong])
