"""Z and W: each statistic sees a dependence that is planted and none where there is none; wrong formulas are caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from budget import FALSE_ALARMS, assert_mean
from espalier.guides.masked import MaskedGuide
from espalier.theory import dependence
from espalier.theory.dependence import gain, gap, over_pairs, permuted, step_covariance, trend
from espalier.theory.recorded import MOMENTUM, NUM_SHIFTS, RATE, cross_covariance, runs
from espalier.training import objective
from planted import collected
from rewritten import Rewrite, Rewrites, assert_seen
from wrong import mutants

CLAIMS = {claim.name: claim for claim in dependence.CLAIMS}
HOLD = ("zw-dependence", "zw-prediction", "zw-prediction-sparsity")
"""The other, Appendix C's claim weight by weight, is not borne out."""


def _another_z(one):
    return np.roll(gain(one), 1, axis=0)


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "zw-dependence": {
        "sign": {"formula": lambda *a: -step_covariance(*a)},
        "factor 2": {"formula": lambda *a: 2 * step_covariance(*a)},
        "p for 1 - p": {"formula": lambda lr, m, p, *a: step_covariance(lr, m, 1 - p, *a)},
        "plain SGD's momentum": {"formula": lambda lr, m, *a: step_covariance(lr, 0.0, *a)},
        "drift forgotten": {"formula": lambda lr, m, p, wd, u, d: step_covariance(lr, m, p, wd, u, 0.0)},
        "Z of the step after": {"steps": lambda one: one.control},
        "1 - Z": {"steps": lambda one: -one.own},
    },
    "zw-sparsity": {
        "Z of the step after": {"steps": lambda one: one.control},
        "falling": {"steps": lambda one: one.own + one.spread * 1e-3 * (1 - one.sparsity)},
    },
    "zw-prediction": {
        "another Z as its own": {"change": _another_z},
        "sign": {"change": lambda one: -gain(one)},
        "the net before the step": {"change": lambda one: one.control_nll},
    },
    "zw-prediction-sparsity": {
        "another Z as its own": {"change": _another_z},
        "sign": {"change": lambda one: -gain(one)},
        "the net before the step": {"change": lambda one: one.control_nll},
    },
}

ANOTHER_Z = Rewrite(MaskedGuide._noted, "self.keep = q.keep", "self.keep = self._draw(len(self.values))")
MORE_DECAY = Rewrite(
    objective._with_gradient_of_kl, "/ num_data\n    guide.", "/ num_data * (sum(guide.sizes) / len(values)) ** 0.5\n    guide."
)

CODE_MUTATIONS: Rewrites = {
    "zw-dependence": {"the guide remembers another Z": ANOTHER_Z},
    "zw-sparsity": {"decay that grows with sparsity": MORE_DECAY},
    "zw-prediction": {"the guide remembers another Z": ANOTHER_Z},
    "zw-prediction-sparsity": {"the guide remembers another Z": ANOTHER_Z},
}


@pytest.mark.parametrize("name", CLAIMS)
def test_verdicts(name: str) -> None:
    finding = CLAIMS[name].check(True)
    assert finding.verdict == ("holds" if name in HOLD else "fails"), finding
    assert finding.breaks


@pytest.mark.parametrize(("name", "mutation"), [(name, wrong) for name, all_ in MUTATIONS.items() for wrong in all_])
def test_wrong_statistic_or_formula_fails(name: str, mutation: str) -> None:
    assert CLAIMS[name].check(True, **MUTATIONS[name][mutation]).verdict == "fails"


def _marked(name: str, wrong: str) -> Any:
    """The other claims share three trainings; this one asks for three of its own."""
    return pytest.param(name, wrong, marks=[pytest.mark.slow] if name == "zw-sparsity" else [])


@pytest.mark.parametrize(("name", "wrong"), [_marked(*each) for each in mutants(CODE_MUTATIONS)])
def test_wrong_code_is_seen(name: str, wrong: str) -> None:
    assert_seen(CLAIMS[name], CODE_MUTATIONS[name][wrong])


def test_every_claim_has_mutations() -> None:
    assert set(MUTATIONS) == set(CLAIMS)


def test_the_claim_that_fails_can_hold() -> None:
    growing = CLAIMS["zw-sparsity"].check(True, steps=lambda one: one.own + one.spread * 1e-3 * one.sparsity)
    assert growing.verdict == "holds"


def test_over_pairs_sees_what_is_planted_in_the_runs() -> None:
    every = runs(True)
    planted = [one._replace(pairs=one.pairs + 2e-3 * np.eye(len(one.pairs)) / len(one.pairs)) for one in every]
    plain, found = over_pairs(every)[0], over_pairs(planted)[0]
    assert found["pooled"] == pytest.approx(plain["pooled"] + 2e-3, rel=0.1)
    assert found["pooled_p_value"] < 0.001
    shifted, _ = over_pairs([one._replace(pairs=np.roll(one.pairs, -1, axis=1)) for one in planted])
    assert shifted["pooled_p_value"] > 0.01


def _p_value(rng: np.random.Generator, planted: float, shift: int = 0) -> float:
    cross = np.roll(cross_covariance(*collected(rng, planted), 0.8), -shift, axis=1)
    null = permuted(cross, rng, 199)
    return float((1 + (null >= np.trace(cross)).sum()) / 200)


def test_permutation_null_is_uniform_under_independence() -> None:
    rng = np.random.default_rng(0)
    p_values = np.array([_p_value(rng, 0.0) for _ in range(400)])
    assert stats.kstest(p_values - rng.random(400) / 200, "uniform").pvalue > FALSE_ALARMS


def test_permutation_test_sees_a_planted_dependence_and_loses_it_with_the_wrong_z() -> None:
    rng = np.random.default_rng(1)
    assert max(_p_value(rng, 0.6) for _ in range(20)) < 0.01
    assert max(_p_value(rng, 0.6, shift=1) for _ in range(20)) > 0.1
    assert min(_p_value(rng, -0.6) for _ in range(20)) > 0.9


def test_step_covariance_against_plain_simulation_of_one_weight() -> None:
    """Nesterov's SGD by hand on a masked quadratic, at rest: Cov(Z, u) over many chains, by its definition."""
    rng, chains, p, decay = np.random.default_rng(3), 200_000, 0.7, 0.3
    u, buffer = np.full(chains, 0.5), np.zeros(chains)
    for _ in range(120):
        z = rng.random(chains) < p
        slope = z * 0.5 * (z * u - 1.0 + rng.standard_normal(chains)) + decay * u
        buffer = MOMENTUM * buffer + slope
        u = u - RATE * (slope + MOMENTUM * buffer)
    assert_mean((z - p) * u, step_covariance(RATE, MOMENTUM, p, decay, float(u.mean()), 0.0))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean((z - p) * u, 1.5 * step_covariance(RATE, MOMENTUM, p, decay, float(u.mean()), 0.0))


def test_controls_have_mean_zero() -> None:
    for one in runs(True):
        assert_mean(one.control, 0.0)
        difference, error = gap(one.control_nll)
        assert abs(difference) < stats.t.isf(FALSE_ALARMS / 2, NUM_SHIFTS - 1) * error


def test_gap_and_trend_cover_the_truth() -> None:
    rng = np.random.default_rng(4)
    noise = [
        gap(rng.standard_normal((1 + NUM_SHIFTS, 1)) + np.r_[0.7, np.zeros(NUM_SHIFTS)][:, None]) for _ in range(2_000)
    ]
    inside = sum(abs(found - 0.7) < stats.t.isf(0.025, NUM_SHIFTS - 1) * error for found, error in noise)
    assert stats.binomtest(int(inside), len(noise), 0.95).pvalue > FALSE_ALARMS

    sparsities = np.repeat([0.0, 0.9, 0.99], 5)
    errors = np.repeat([0.1, 0.5, 1.0], 5)
    lines = [
        trend(sparsities, -2 * np.log10(1 - sparsities) + errors * rng.standard_normal(15), errors)
        for _ in range(1_000)
    ]
    assert_mean([slope for slope, _ in lines], 2.0)
    z = np.array([(slope - 2) / error for slope, error in lines])
    assert z.std() < 1.05  # errors are not too small
