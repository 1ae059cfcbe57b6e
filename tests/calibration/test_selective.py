"""Claims about calibration.selective: against every order of the ties, closed forms and scikit-learn's AUROC."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from budget import assert_rate
from espalier.calibration import selective
from espalier.calibration.selective import (
    augrc,
    aurc,
    coverage_at_risk,
    excess_aurc,
    risk_at_coverage,
    risk_coverage,
    selective_differences,
    selective_summary,
)
from probabilities import Array

TIED = np.array([0.2, 0.5, 0.5, 0.1, 0.5, 0.2]), np.array([0.0, 1, 0.3, 0, 0, 2])


def over_orders(u: Array, x: Array) -> Array:
    """The mean risks `(n,)` over every order of the examples in which the uncertainty does not fall."""
    orders = [o for o in map(list, permutations(range(len(u)))) if (np.diff(u[o]) >= 0).all()]
    assert len(orders) == 12
    return np.mean([np.cumsum(x[o]) / np.arange(1, len(u) + 1) for o in orders], axis=0)


def noisy(n: int = 300, seed: int = 0, levels: int = 40) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    u = rng.integers(levels, size=n) / levels
    return u, (rng.random(n) < 0.5 * u).astype(float)


def test_ties_count_as_the_mean_over_all_their_orders() -> None:
    risks, n = over_orders(*TIED), 6
    curve = risk_coverage(*TIED)
    np.testing.assert_allclose(curve.risk, risks, rtol=1e-12)
    np.testing.assert_allclose(curve.coverage, np.arange(1, 7) / 6)
    np.testing.assert_array_equal(curve.threshold, [0.1, 0.2, 0.2, 0.5, 0.5, 0.5])
    assert aurc(*TIED) == pytest.approx(risks.mean(), rel=1e-12)
    kept = np.concatenate([[0], risks * np.arange(1, 7) / n])
    assert augrc(*TIED) == pytest.approx(np.trapezoid(kept, dx=1 / n), rel=1e-12)
    for k in range(1, 7):
        assert risk_at_coverage(*TIED, coverage=k / 6) == pytest.approx(risks[k - 1], rel=1e-12)
        assert risk_at_coverage(*TIED, coverage=(k - 0.5) / 6) == pytest.approx(risks[k - 1], rel=1e-12)
    best = np.cumsum(np.sort(TIED[1])) / np.arange(1, 7)
    assert excess_aurc(*TIED) == pytest.approx(risks.mean() - best.mean(), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_coverage_at_a_risk_is_the_last_point_of_the_curve_below_it(seed: int) -> None:
    u, x = noisy(seed=seed, levels=6 + 20 * (seed % 2))
    curve = risk_coverage(u, x)
    for risk in (0.0, 0.03, 0.1, 0.17, 0.23, 0.5):
        held = curve.coverage[curve.risk <= risk + 1e-12]
        assert coverage_at_risk(u, x, risk) == pytest.approx(held.max() if len(held) else 0.0, abs=1e-12)


def test_augrc_is_the_auroc_of_errors_in_disguise() -> None:
    u, x = noisy()
    rate = x.mean()
    assert augrc(u, x) == pytest.approx((1 - roc_auc_score(x, u)) * rate * (1 - rate) + rate**2 / 2, rel=1e-12)


def test_the_best_order_has_no_excess_and_the_area_of_its_limit() -> None:
    x = (np.arange(20_000) < 3000).astype(float)
    assert excess_aurc(x, x) == 0
    assert aurc(x, x) == pytest.approx(0.15 + 0.85 * np.log(0.85), abs=1e-4)  # Geifman et al. 2019, at error rate .15
    assert aurc(np.zeros(20_000), x) == pytest.approx(0.15, rel=1e-12)  # no order at all: the mean
    assert aurc(-x, x) > 0.15


def test_an_interval_covers_the_area_of_the_population() -> None:
    # P(error | u) = a u, u uniform: E R_k = a (k + 1) / (2 (n + 1)), so E AURC = a (n + 3) / (4 (n + 1)).
    rng, n, a, worlds = np.random.default_rng(3), 200, 0.6, 150
    truth, covered = a * (n + 3) / (4 * (n + 1)), 0
    for _ in range(worlds):
        u = rng.random(n)
        found = selective_summary(u, (rng.random(n) < a * u).astype(float), num_resamples=150)
        low, high = found["aurc_interval"]
        covered += low <= truth <= high
    assert_rate(covered, worlds, 0.94)  # percentiles of 150 resamples lose a point


def test_a_summary_holds_what_its_functions_say() -> None:
    u, x = noisy()
    found = selective_summary(u, x, coverage=0.6, risk=0.1)
    expected = {"aurc": aurc(u, x), "excess_aurc": excess_aurc(u, x), "augrc": augrc(u, x), "num_examples": 300,
                "risk_at_coverage": risk_at_coverage(u, x, 0.6), "coverage_at_risk": coverage_at_risk(u, x, 0.1)}  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    for name in selective._NAMES:
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high


def test_a_resample_is_scored_as_its_examples_written_out() -> None:
    u, x = noisy(50, seed=2)
    counts = np.random.default_rng(0).multinomial(50, np.full(50, 0.02), size=4).astype(float)
    found = selective._statistic(u, x, 0.7, 0.1)(counts)
    for row, own in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(50), own.astype(int))
        v, z = u[rows], x[rows]
        alone = [aurc(v, z), excess_aurc(v, z), augrc(v, z), risk_at_coverage(v, z, 0.7), coverage_at_risk(v, z, 0.1)]
        np.testing.assert_allclose(row, alone, rtol=1e-12, atol=1e-14)


def test_a_paired_difference_is_narrower_than_two_intervals_and_finds_the_better_order() -> None:
    rng = np.random.default_rng(5)
    u = rng.random(600)
    x = (rng.random(600) < 0.5 * u).astype(float)
    worse = u + 0.3 * rng.standard_normal(600)
    found = selective_differences((u, x), (worse, x))["aurc"]
    assert found.value == pytest.approx(aurc(u, x) - aurc(worse, x), rel=1e-12)
    assert found.interval[1] < 0
    widths = [np.ptp(selective_summary(each, x)["aurc_interval"]) for each in (u, worse)]
    assert np.ptp(found.interval) < 0.7 * np.hypot(*widths)
    same = selective_differences((u, x), (u, x))
    assert all(each == (0.0, (0.0, 0.0)) for each in same.values())


def test_what_does_not_fit_is_refused() -> None:
    u, x = noisy(10)
    with pytest.raises(ValueError, match=r"expected uncertainty and losses of one shape, got \(\(10,\), \(9,\)\)"):
        aurc(u, x[:9])
    with pytest.raises(ValueError, match="expected losses of at least 0, got -1; pass 1 - accuracy_scores"):
        aurc(u, x - 1)
    with pytest.raises(ValueError, match=r"expected a coverage in \(0, 1\], got 0"):
        risk_at_coverage(u, x, 0)
    with pytest.raises(ValueError, match="expected a risk of at least 0, got -1"):
        coverage_at_risk(u, x, -1)
    with pytest.raises(ValueError, match=r"expected two methods on the same examples, got \(10, 9\)"):
        selective_differences((u, x), (u[:9], x[:9]))


def test_where_no_accepted_example_errs_the_risk_has_an_interval():
    hits, worlds = 0, 200
    for world in range(worlds):
        rng = np.random.default_rng([12, world])
        found = selective.selective_summary(rng.random(60), (rng.random(60) < 0.01) * 1.0, num_resamples=100)
        low, high = found["risk_at_coverage_interval"]
        hits += low <= 0.01 <= high
    assert hits >= 0.95 * worlds


def test_intervals_cover_where_hardly_any_example_errs() -> None:
    """P(error) = .04 u, u uniform: of 100 examples one sample in seven has no error, and no resample of it tells .02 from 0."""
    rng = np.random.default_rng(0)
    wide = rng.random(400_000)
    truth = selective_summary(wide, (rng.random(400_000) < 0.04 * wide).astype(float), num_resamples=1)
    missed = dict.fromkeys(("aurc", "augrc", "coverage_at_risk"), 0)
    empty = 0
    for seed in range(400):
        u = rng.random(100)
        losses = (rng.random(100) < 0.04 * u).astype(float)
        if losses.any():
            continue
        empty += 1
        found = selective_summary(u, losses, num_resamples=50, seed=seed)
        for name in missed:
            low, high = found[f"{name}_interval"]
            missed[name] += not low <= truth[name] <= high
    assert empty > 30
    assert not any(missed.values())


def test_where_all_err_the_ends_are_what_the_rates_allow() -> None:
    """In 5,000 examples of an error rate at the end of Clopper and Pearson's interval, ordered for the best and worst."""
    found = selective_summary(np.arange(30.0), np.ones(30), risk=0.5)
    low = 0.025 ** (1 / 30)
    many = np.arange(5000) < low * 5000
    best = selective_summary(many.astype(float), many.astype(float), risk=0.5, num_resamples=2)
    for name in ("aurc", "augrc"):
        assert found[f"{name}_interval"] == pytest.approx([best[name], found[name]], abs=1e-3)
    assert found["coverage_at_risk_interval"] == pytest.approx([0.0, best["coverage_at_risk"]], abs=1e-3)
    none = selective_summary(np.arange(30.0), np.zeros(30))
    worst = selective_summary(-(~many).astype(float), (~many).astype(float), num_resamples=2)
    for name in ("aurc", "augrc"):
        assert none[f"{name}_interval"] == pytest.approx([0.0, worst[name]], abs=2e-3)
