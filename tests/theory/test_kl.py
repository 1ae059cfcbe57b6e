"""The bound on the KL, the objective and the prior: the claims hold, and wrong formulas are caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from espalier.distributions.masked import kl_bound
from espalier.distributions.priors import prior_scale_of
from espalier.network import BayesianNetwork
from espalier.theory import kl
from rewritten import KL_WITHOUT_P, MORE_KEPT, Rewrite, Rewrites, assert_seen
from wrong import assert_all_have_mutations, assert_caught, assert_holds, mutants

CLAIMS = {claim.name: claim for claim in kl.CLAIMS}


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "kl-bound": {
        "factor 2 in m^2": {"bound": lambda m, p, v, s: kl_bound(1.4142 * m, p, v, s)},
        "1 - p for p": {"bound": lambda m, p, v, s: kl_bound(m, 1 - p, v, s)},
        "sign of the logarithm": {"bound": lambda m, p, v, s: kl_bound(m, p, v, s) + np.log(s**2 / v**2)},
        "p (1 - p) for the entropy": {"entropy": lambda p: p * (1 - p)},
    },
    "kl-gal": {
        "entropy added": {"approximation": lambda m, p, v, s: kl_bound(m, p, v, s) + kl.binary_entropy(p)},
        "no entropy": {"approximation": kl_bound},
        "exact for single weights, too": {
            "approximation": lambda m, p, v, s: torch.tensor(kl.kl_by_quadrature(float(m), p, v**2, s)),
        },
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
}  # fmt: skip

BOUND_WITHOUT_P = Rewrite(kl_bound, "keep_prob * mean", "mean", anew=False)

CODE_MUTATIONS: Rewrites = {
    "kl-bound": {"no p": BOUND_WITHOUT_P},
    "kl-gal": {"no p": BOUND_WITHOUT_P},
    "kl-monte-carlo": {"P(Z = 1) + .02": MORE_KEPT._replace(anew=False)},
    "objective-cigl": {
        "KL without p": KL_WITHOUT_P,
        "biases decay twice": Rewrite(BayesianNetwork.l2, "0.5 * self.weight_decay", "self.weight_decay"),
    },
    "objective-prior-scale": {
        "rescale's p upside down": Rewrite(prior_scale_of, "1 / keep_prob if rescale", "keep_prob if rescale"),
    },
}

pytestmark = pytest.mark.usefixtures("own_stream", "own_store")


def test_every_claim_has_mutations() -> None:
    assert_all_have_mutations(CLAIMS, MUTATIONS)


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name: str) -> None:
    assert_holds(CLAIMS[name])


@pytest.mark.parametrize(("name", "mutation"), mutants(MUTATIONS))
def test_a_wrong_formula_is_caught(name: str, mutation: str) -> None:
    assert_caught(CLAIMS[name], MUTATIONS[name][mutation])


@pytest.mark.parametrize(("name", "wrong"), mutants(CODE_MUTATIONS))
def test_wrong_code_is_seen(name: str, wrong: str) -> None:
    assert_seen(CLAIMS[name], CODE_MUTATIONS[name][wrong])


def test_the_kl_has_the_values_of_the_design_note() -> None:
    """seed-systems.md 2.5: p .9, s .05, v 1 at m = 0, .05, .1, .3, 1."""
    found = [kl.kl_by_quadrature(m, 0.9, 1.0, 0.05) for m in (0, 0.05, 0.1, 0.3, 1)]
    assert found == pytest.approx([2.497, 2.455, 2.359, 2.215, 2.622], abs=6e-4)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_kl_of_one_component_is_that_of_two_normals(p: float) -> None:
    mixed = kl.kl_by_quadrature(0.3, abs(p - 1e-9), 0.7, 0.2)
    assert kl.kl_by_quadrature(0.3, p, 0.7, 0.2) == pytest.approx(mixed, abs=1e-6)
