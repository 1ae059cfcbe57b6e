"""Approximation by constructed networks: the claims hold, wrong bounds are caught, and the bounds' parts are right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from espalier.sparse import kernels, products
from espalier.sparse.modules import SparseLinear
from espalier.theory import approximation
from espalier.theory.approximation import gain, largest, lower, nonzeros, saturated, scale_of_products, upper
from espalier.theory.constructed import STEEPNESS, exponential, power
from rewritten import Rewrite, Rewrites, assert_seen
from wrong import assert_all_have_mutations, assert_caught, assert_holds, mutants

CLAIMS = {claim.name: claim for claim in approximation.CLAIMS}


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "approximation-rate": {
        "rate s + 1": {"bound": lambda target, n: upper(target, n) / n},
        "half the constant": {"bound": lambda target, n: upper(target, n) / 2},
        "no Gamma(s + 1)": {"floor": lambda target, n: lower(target, n) * math.gamma(target.smoothness + 1)},
        "rate s - 1 from below": {"floor": lambda target, n: lower(target, n) * n},
        "half the units": {"count": lambda target, cells: nonzeros(target, cells) / 2},
        "cells of one side": {"count": lambda target, cells: nonzeros(target, 1) * cells ** (1 / target.dim)},
        "weights of the gates": {"weight": lambda target, n: STEEPNESS * n},
        "h^-1 for h^-2": {"weight": lambda target, n: max(STEEPNESS * n, largest(target, n) * scale_of_products(target, n))},
    },
    "approximation-sparse": {
        "no factor": {"factor": lambda share, s, d: 1.0},
        "no dimension": {"factor": lambda share, s, d: share**s},
        "no smoothness": {"factor": lambda share, s, d: share ** (1 / d)},
        "the rest's share": {"factor": lambda share, s, d: gain(1 - share, s, d)},
        "rate s + 1": {"bound": lambda target, n: upper(target, n) / n},
    },
    "approximation-saturation": {
        "two layers at rate 2": {"most": lambda dim, n: approximation.ceiling(dim, n) / n},
        "two layers do not fall": {"floor": lambda dim, n: saturated(dim, 2)},
        "a whole cell away": {"floor": lambda dim, n: saturated(2 * dim, n)},
        "three layers at rate s + 1": {"bound": lambda target, n: upper(target, n) / n},
    },
}

CODE_MUTATIONS: Rewrites = {
    "approximation-rate": {
        "no biases": Rewrite(kernels.Stock.multiply, "bias.unsqueeze(1)", "0 * bias.unsqueeze(1)"),
        "a bias off by 1e-6": Rewrite(kernels.Stock.multiply, "bias.unsqueeze(1)", "bias.unsqueeze(1) + 1e-6"),
    },
    "approximation-sparse": {"weights 10 % up": Rewrite(products.Product.forward, "columns, values,", "columns, 1.1 * values,")},
    "approximation-saturation": {
        "weights the other way round": Rewrite(SparseLinear.__init__, "flat[self.positions]", "flat[self.positions.flip(0)]")
    },
}


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


def test_errors_fall_at_the_rate_of_the_smoothness_and_stop_at_one_with_two_hidden_layers() -> None:
    rows = CLAIMS["approximation-rate"].check(True).figures["networks"]
    for row in rows:
        if row["s"] == int(row["s"]):
            assert row["slope in n"] == pytest.approx(-row["s"], abs=0.01)
    for row in CLAIMS["approximation-saturation"].check(True).figures["networks"]:
        slopes = row["slopes in n"]
        assert -1 < slopes["two"] < -0.85
        assert slopes["three, s = 4"] < -3.7


@pytest.mark.parametrize(("dim", "s"), [(1, 0.5), (1, 1.0), (1, 2.0), (1, 3.0), (2, 0.7), (2, 1.5), (2, 2.0), (3, 4.0)])
def test_the_moment_is_above_that_of_the_random_cell_and_exact_in_closed_form(dim: int, s: float) -> None:
    rng = np.random.default_rng(0)
    away = 0.5 + np.abs(rng.logistic(scale=1 / STEEPNESS, size=(200_000, dim)))
    draws = away.sum(1) ** s
    found = approximation.moment(dim, s)
    assert found > draws.mean() - 5 * draws.std() / math.sqrt(len(draws))
    assert found < 1.05 * draws.mean()
    if dim == 1 and s in (1, 2):  # E|xi| = 2 ln 2 / a, E xi^2 = pi^2 / 3 a^2
        first, second = 2 * math.log(2) / STEEPNESS, math.pi**2 / (3 * STEEPNESS**2)
        assert found == pytest.approx(0.5 + first if s == 1 else 0.25 + first + second, rel=1e-10)


def test_the_products_cost_at_most_their_price_at_n_equal_one_times_the_rate() -> None:
    for target in (power(2, 2.5), exponential(3, 4), power(1, 0.5)):
        at_one = approximation.cost_of_products(target.dim, target.degree, scale_of_products(target, 1))
        for n in (2, 7, 40):
            cost = approximation.cost_of_products(target.dim, target.degree, scale_of_products(target, n))
            assert 0 < cost <= at_one * n**-target.smoothness * (1 + 1e-12)


def test_sizes_follow_the_smoothness_over_the_dimension() -> None:
    """log of the bound in log of the size, far out: -s / d."""
    for dim, s in ((1, 1.5), (2, 3), (3, 2)):
        target = power(dim, s)
        ends = [(nonzeros(target, n**dim), upper(target, n)) for n in (1000, 100_000)]
        (few, large), (many, small) = np.log(ends)
        assert (small - large) / (many - few) == pytest.approx(-s / dim, rel=1e-3)
