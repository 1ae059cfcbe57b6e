"""Simulation-based calibration of the linear model: its claims hold, and every wrong formula is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from budget import FALSE_ALARMS, assert_rate
from espalier.distributions import priors
from espalier.theory import sbc
from espalier.theory.claims import Ranks
from espalier.theory.sbc import by_enumeration, fits, optimum, posterior, rank_law
from rewritten import KL_WITHOUT_P, MORE_KEPT, Rewrite, Rewrites, assert_seen
from wrong import mutants

CLAIMS = {claim.name: claim for claim in sbc.CLAIMS}


def _double_variance(x, precision, prior_scale):
    gain, covariance = posterior(x, precision, prior_scale)
    return gain, 2 * covariance


def _ridge(x, precision, prior_scale, keep_prob):
    return posterior(x, precision, prior_scale)[0]


def _no_shrinkage_by_the_mask(x, precision, prior_scale, keep_prob):
    """The spread term p (1 - p) |x_j|^2 u_j^2 forgotten."""
    return np.linalg.solve(keep_prob * x.T @ x + np.eye(x.shape[1]) / (precision * prior_scale**2), x.T)


def _unordered(covariance, keep_prob, num_draws):
    """The sign of the covariance of theta and u turned round."""
    return rank_law(covariance * np.array([[1, -1], [-1, 1]]), keep_prob, num_draws)


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sbc-exact": {
        "twice the variance": {"formula": _double_variance},
        "prior scale for its square": {"formula": lambda x, tau, s: posterior(x, tau, s**0.5)},
        "noise variance for precision": {"formula": lambda x, tau, s: posterior(x, 1 / tau, s)},
        "mean of the wrong sign": {"formula": lambda x, tau, s: (-posterior(x, tau, s)[0], posterior(x, tau, s)[1])},
    },
    "sbc-guide": {
        "p for 1 - p in the law": {"law": lambda c, p, n: rank_law(c, 1 - p, n)},
        "sign of the covariance": {"law": _unordered},
        "the exact posterior's uniform law": {"law": lambda c, p, n: np.full((2, n + 1), 0.5 / (n + 1))},
        "twice the variance of u": {"law": lambda c, p, n: rank_law(c * np.array([[1, 1], [1, 2]]), p, n)},
        "ridge for the masked optimum": {"formula": _ridge},
        "p for 1 - p in the optimum": {"formula": lambda x, tau, s, p: optimum(x, tau, s, 1 - p)},
    },
    "sbc-optimum": {
        "ridge": {"formula": _ridge},
        "p for 1 - p": {"formula": lambda x, tau, s, p: optimum(x, tau, s, 1 - p)},
        "mask's variance forgotten": {"formula": _no_shrinkage_by_the_mask},
        "posterior mean p u for u": {"formula": lambda x, tau, s, p: p * optimum(x, tau, s, p)},
    },
}

CODE_MUTATIONS: Rewrites = {
    "sbc-exact": {"prior 10 % wide": Rewrite(priors.FlatNormal.rsample, "self.scale *", "1.1 * self.scale *")},
    "sbc-guide": {"P(Z = 1) + .02": MORE_KEPT._replace(anew=False)},
    "sbc-optimum": {"KL without p": KL_WITHOUT_P, "P(Z = 1) + .02": MORE_KEPT},
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_holds(name: str) -> None:
    finding = CLAIMS[name].check(True)
    assert finding.verdict == "holds", finding


@pytest.mark.parametrize(("name", "mutation"), [(name, wrong) for name, all_ in MUTATIONS.items() for wrong in all_])
def test_wrong_formula_fails(name: str, mutation: str) -> None:
    assert CLAIMS[name].check(True, **MUTATIONS[name][mutation]).verdict == "fails"


@pytest.mark.parametrize(("name", "wrong"), mutants(CODE_MUTATIONS))
def test_wrong_code_is_seen(name: str, wrong: str) -> None:
    assert_seen(CLAIMS[name], CODE_MUTATIONS[name][wrong])


def test_every_claim_has_mutations() -> None:
    assert set(MUTATIONS) == set(CLAIMS)


@pytest.mark.parametrize("keep_prob", [0.75, 0.3, 1.0])
def test_closed_form_optimum_is_that_of_all_masks(keep_prob: float) -> None:
    x = np.random.default_rng(0).standard_normal((7, 4))
    np.testing.assert_allclose(
        optimum(x, 2.0, 0.4, keep_prob), by_enumeration(x, 2.0, 0.4, keep_prob), rtol=0, atol=1e-13
    )


def test_without_a_mask_the_optimum_is_the_posterior_mean() -> None:
    x = np.random.default_rng(0).standard_normal((7, 4))
    np.testing.assert_allclose(optimum(x, 2.0, 0.4, 1.0), posterior(x, 2.0, 0.4)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.9])
def test_rank_law_against_plain_simulation(correlation: float) -> None:
    rng, count, draws, p = np.random.default_rng(1), 100_000, 5, 0.7
    covariance = np.array([[1.3, correlation * np.sqrt(1.3 * 0.4)], [correlation * np.sqrt(1.3 * 0.4), 0.4]])
    theta, u = rng.multivariate_normal([0, 0], covariance, size=count).T
    ranks = (np.where(rng.random((count, draws)) < p, u[:, None], 0.0) < theta[:, None]).sum(1)
    law = rank_law(covariance, p, draws)
    assert law.sum() == pytest.approx(1, abs=1e-12)
    for sign in (0, 1):
        for rank in range(draws + 1):
            seen = int(((theta > 0) == sign)[ranks == rank].sum())
            assert_rate(seen, count, float(law[sign, rank]), looks=2 * (draws + 1))


def test_chi_square_joins_small_cells_and_is_uniform_under_the_law() -> None:
    rng, law = np.random.default_rng(2), np.array([[0.4, 0.001, 0.0], [0.3, 0.009, 0.29]])
    p_values = [fits(rng.multinomial(3_000, law.ravel()), law) for _ in range(1_000)]
    assert stats.kstest(p_values, "uniform").pvalue > FALSE_ALARMS
    assert (
        fits(rng.multinomial(3_000, [0.3, 0.001, 0.1, 0.3, 0.009, 0.29]), law) < FALSE_ALARMS
    )  # a cell of the law's 0


def test_data_come_from_the_models_own_program() -> None:
    world = sbc.simulate(8_000)
    residual = world.y - world.weights @ world.x.T
    for values, variance in ((residual, 1 / sbc.PRECISION), (world.weights, sbc.PRIOR_SCALE**2)):
        total = float((values**2).sum() / variance)
        assert min(stats.chi2.cdf(total, values.size), stats.chi2.sf(total, values.size)) > FALSE_ALARMS
    assert world.topology.num_active == 4


def test_checks_leave_the_callers_random_stream_alone() -> None:
    before = torch.get_rng_state()
    sbc.simulate.cache_clear()
    sbc.check_guide(True)
    assert torch.equal(before, torch.get_rng_state())


def test_rank_pictures_say_what_to_expect() -> None:
    for name in ("sbc-exact", "sbc-guide"):
        (picture,) = CLAIMS[name].check(True).pictures
        assert isinstance(picture, Ranks)
        assert 0 <= np.min(picture.ranks) <= np.max(picture.ranks) <= picture.num_draws
        assert (picture.expected is None) == (name == "sbc-exact")
        if picture.expected is not None:
            assert np.sum(picture.expected) == pytest.approx(1, abs=1e-12)
            assert len(np.asarray(picture.expected)) == picture.num_draws + 1
