"""One pass of means and variances: the claims hold, and wrong formulas are caught."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from espalier.prediction import moments
from espalier.theory import one_pass
from espalier.theory.one_pass import of_sums, rectified
from rewritten import Rewrite, Rewrites, assert_seen
from wrong import assert_all_have_mutations, assert_caught, assert_holds, mutants

CLAIMS = {claim.name: claim for claim in one_pass.CLAIMS}

MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "moments-products": {
        "u for p u": {"weighted": lambda u, p: (u, p * (1 - p) * u**2)},
        "p for p (1 - p)": {"weighted": lambda u, p: (p * u, p * u**2)},
        "(1 - p) / p, of u": {"weighted": lambda u, p: (p * u, (1 - p) / p * u**2)},
    },
    "moments-relu": {
        "of the mean alone": {"rule": lambda loc, variance: (loc.clamp_min(0), variance * (loc > 0))},
        "the mean's square left in": {"rule": lambda a, b: (rectified(a, b)[0], rectified(a, b)[1] + rectified(a, b)[0] ** 2)},
        "half the variance": {"rule": lambda a, b: rectified(a, b / 2)},
    },
}  # fmt: skip

CODE_MUTATIONS: Rewrites = {
    "moments-products": {
        "known inputs": Rewrite(moments._product, " else variance + of(b, _squared(m), None)", " else variance")
    },
    "moments-relu": {"no density": Rewrite(moments._relu, ".mul_(1 / math.sqrt(2 * math.pi))", ".mul_(0.3)")},
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("own_stream", "own_store")


def test_every_claim_has_mutations() -> None:
    assert_all_have_mutations(CLAIMS, MUTATIONS)


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name: str) -> None:
    assert_holds(CLAIMS[name])


@pytest.mark.parametrize(("name", "mutation"), mutants(MUTATIONS))
def test_a_wrong_formula_is_caught(name: str, mutation: str) -> None:
    assert_caught(CLAIMS[name], MUTATIONS[name][mutation])


def test_sums_by_fourier_are_those_of_all_masks() -> None:
    terms, p = np.array([[3, -7, 2, 5], [-1, -2, -3, 4]]), 0.7
    mean, variance = of_sums(terms, p)
    for row, own, spread in zip(terms, mean, variance, strict=True):
        pairs = [(max(0, int(row @ z)), p ** sum(z) * (1 - p) ** (4 - sum(z))) for z in itertools.product((0, 1), repeat=4)]
        first = sum(value * share for value, share in pairs)
        assert own == pytest.approx(first)
        assert spread == pytest.approx(sum(value**2 * share for value, share in pairs) - first**2)


@pytest.mark.parametrize(("name", "wrong"), mutants(CODE_MUTATIONS))
def test_wrong_code_is_seen(name: str, wrong: str) -> None:
    assert_seen(CLAIMS[name], CODE_MUTATIONS[name][wrong])
