"""Claims about calibration.uncertainty: naive float64 loops, closed forms, and what each score is blind to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import softmax

from espalier.calibration.uncertainty import REGRESSION_UNCERTAINTIES, UNCERTAINTIES
from probabilities import Array


def drawn(draws: int = 5, n: int = 7, classes: int = 4, seed: int = 0) -> Array:
    return softmax(2 * np.random.default_rng(seed).standard_normal((draws, n, classes)), axis=-1)


def by_hand(p: Array) -> dict[str, list[float]]:
    """Every score by loops over Python floats."""

    def entropy(row: list[float]) -> float:
        return -sum(x * math.log(x) for x in row if x > 0)

    found: dict[str, list[float]] = {name: [] for name in UNCERTAINTIES}
    for i in range(p.shape[1]):
        rows = [[float(x) for x in p[s, i]] for s in range(len(p))]
        mean = [sum(row[c] for row in rows) / len(rows) for c in range(p.shape[2])]
        expected = sum(map(entropy, rows)) / len(rows)
        votes = [row.index(max(row)) for row in rows]
        first, second = sorted(mean)[-1], sorted(mean)[-2]
        found["predictive_entropy"].append(entropy(mean))
        found["expected_entropy"].append(expected)
        found["mutual_information"].append(entropy(mean) - expected)
        found["variation_ratio"].append(1 - max(votes.count(c) for c in set(votes)) / len(votes))
        found["max_probability"].append(1 - first)
        found["margin"].append(1 - (first - second))
    return found


@pytest.mark.parametrize("name", UNCERTAINTIES)
def test_a_score_is_what_a_naive_loop_says(name: str) -> None:
    p = drawn()
    np.testing.assert_allclose(UNCERTAINTIES[name](p), by_hand(p)[name], rtol=1e-12, atol=1e-14)


def test_two_certain_draws_that_disagree_know_nothing_for_one_bit() -> None:
    p = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    expected = {"predictive_entropy": math.log(2), "expected_entropy": 0, "mutual_information": math.log(2),
                "variation_ratio": 0.5, "max_probability": 0.5, "margin": 1}  # fmt: skip
    assert {name: float(score(p)[0]) for name, score in UNCERTAINTIES.items()} == pytest.approx(expected)


def test_zeros_and_ones_and_rounded_rows_give_finite_scores() -> None:
    p = np.array([[[1.0000004, 0.0, 0.0], [1, 0, 0]], [[1, 0, 0], [1e-38, 1, 0]]], dtype=np.float32)
    for score in UNCERTAINTIES.values():
        found = score(p)
        assert found.dtype == np.float64
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert found[0] == pytest.approx(0, abs=1e-12)


def test_a_tiny_disagreement_is_not_lost_to_cancellation() -> None:
    # KL(p + e, p) is about e^2 / (2 p (1 - p)): at e = 1e-9 the difference of two entropies would be rounding alone.
    p = np.array([[[0.3 + 1e-9, 0.7 - 1e-9]], [[0.3 - 1e-9, 0.7 + 1e-9]]])
    assert UNCERTAINTIES["mutual_information"](p)[0] == pytest.approx(1e-18 / (2 * 0.3 * 0.7), rel=0.3)


def test_draws_that_agree_have_no_epistemic_part() -> None:
    p = np.repeat(drawn(1), 6, axis=0)
    for name in ("mutual_information", "variation_ratio"):
        np.testing.assert_allclose(UNCERTAINTIES[name](p), 0, atol=1e-15)
    np.testing.assert_allclose(UNCERTAINTIES["expected_entropy"](p), UNCERTAINTIES["predictive_entropy"](p), rtol=1e-12)


def test_equal_draws_have_no_mutual_information_at_all_whatever_their_mean_rounds_to() -> None:
    p = np.repeat(drawn(1, n=200, classes=10), 16, axis=0)
    assert (p.mean(0) != p[0]).any()
    assert not UNCERTAINTIES["mutual_information"](p).any()


def test_the_variances_are_those_of_the_mixture() -> None:
    rng = np.random.default_rng(1)
    draws = np.stack([rng.normal(size=(3, 4)), rng.uniform(0.2, 2, size=(3, 4))], axis=-1)
    own = {name: score(draws) for name, score in REGRESSION_UNCERTAINTIES.items()}
    grid = np.linspace(-14, 14, 40_001)
    density = np.exp(-0.5 * ((grid[:, None, None] - draws[..., 0]) / draws[..., 1]) ** 2) / draws[..., 1]
    density = density.mean(1) / np.sqrt(2 * np.pi)
    mean = np.trapezoid(grid[:, None] * density, grid, axis=0)
    total = np.trapezoid((grid[:, None] - mean) ** 2 * density, grid, axis=0)
    np.testing.assert_allclose(own["total_variance"], total, rtol=1e-9)
    np.testing.assert_allclose(own["aleatoric_variance"] + own["epistemic_variance"], total, rtol=1e-9)
    np.testing.assert_allclose(own["aleatoric_variance"], [np.mean([s * s for s in col]) for col in draws[..., 1].T])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected draws of shape \(S, n, C\), got \(2, 3\); put the draws first"):
        UNCERTAINTIES["margin"](np.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match="expected rows of probs that sum to 1"):
        UNCERTAINTIES["margin"](np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="expected at least two classes, got 1"):
        UNCERTAINTIES["margin"](np.ones((2, 3, 1)))
    for score in REGRESSION_UNCERTAINTIES.values():
        with pytest.raises(ValueError, match=r"expected draws of shape \(S, n, 2\), got \(2, 3, 4\)"):
            score(np.ones((2, 3, 4)))
        with pytest.raises(ValueError, match="expected finite means and standard deviations of at least 0"):
            score(-np.ones((2, 3, 2)))
