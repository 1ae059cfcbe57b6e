"""Floors and intervals of scores: by simulation of worlds whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit, logit

from espalier import calibration
from probabilities import Array, as_probs, draw_probs
from soon import soon


def test_floor_is_the_mean_ece_of_calibrated_worlds() -> None:
    probs, _ = draw_probs(n=300)
    rng, confidence = np.random.default_rng(5), probs.max(1)
    worlds = []
    for _ in range(600):
        hit = rng.random(300) < confidence
        table = calibration.reliability(confidence, hit, 10)
        worlds.append(np.nansum(table.counts * np.abs(table.accuracy - table.confidence)) / 300)
    error = np.std(worlds) * np.sqrt(1 / 600 + 1 / calibration.NUM_RESAMPLES)
    assert calibration.ece_floor(probs, 10) == pytest.approx(np.mean(worlds), abs=4 * error)


def test_floor_of_certainty_is_0() -> None:
    assert calibration.ece_floor(np.eye(3), 10) == 0.0


def test_bootstrap_interval_is_that_of_the_normal_for_a_large_sample() -> None:
    scores = np.random.default_rng(0).normal(3, 2, size=4000)
    low, high = calibration.bootstrap_interval(scores, level=0.9)
    error = scores.std() / np.sqrt(len(scores))
    # 1000 resamples: a 5 % quantile has a standard error of .07 standard deviations.
    assert low == pytest.approx(scores.mean() - 1.645 * error, abs=0.28 * error)
    assert high == pytest.approx(scores.mean() + 1.645 * error, abs=0.28 * error)
    assert calibration.bootstrap_interval(scores, level=0.9) == (low, high)
    assert calibration.bootstrap_interval(scores, level=0.9, seed=1) != (low, high)


class Process:
    """Confidences by their quantile function, hit probabilities by a distortion; its binned ECE is exact."""

    def __init__(self, quantile: Callable[[Array], Array], distort: Callable[[Array, float], Array], truth: float):
        self.quantile, self.distort = quantile, distort
        grid = quantile((np.arange(100_000) + 0.5) / 100_000)
        bins = np.ceil(grid * 15).astype(int)

        def error(strength: float) -> float:
            return float(np.abs(np.bincount(bins, distort(grid, strength) - grid)).sum() / len(grid))

        self.strength = optimize.brentq(lambda s: error(s) - truth, 0, 2.5) if truth else 0.0
        assert error(self.strength) == pytest.approx(truth, abs=1e-9)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        confidence = self.quantile(rng.random(n))
        return confidence, rng.random(n) < self.distort(confidence, self.strength)


def network_like(u: Array) -> Array:
    """Mostly above .95, as real networks are: 1 - .9 v^6 has median .986."""
    return 1 - 0.9 * u**6


def spread_out(u: Array) -> Array:
    return 0.1 + 0.9 * u


def overconfident(c: Array, strength: float) -> Array:
    return expit(logit(np.clip(c, 1e-9, 1 - 1e-9)) / (1 + strength))


def mixed_sign(c: Array, strength: float) -> Array:
    return np.clip(c + strength * np.where(np.ceil(c * 15) % 3 == 0, 1, -1), 0, 1)


PROCESSES = {"network": (network_like, overconfident), "mixed": (spread_out, mixed_sign)}


@pytest.mark.parametrize("truth", [0.0, 0.02, 0.05])
@pytest.mark.parametrize(
    ("name", "n", "widest"), [("network", 500, 0.09), ("network", 2000, 0.045), ("mixed", 2000, 0.06)]
)
def test_ece_interval_covers_the_population_error(name: str, n: int, widest: float, truth: float) -> None:
    rng, process, worlds = np.random.default_rng(17), Process(*PROCESSES[name], truth), 250
    ends = np.array([calibration.ece_interval(*as_probs(*process.draw(n, rng))) for _ in range(worlds)])
    covered = np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
    assert covered >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / worlds)  # 3 standard errors: .909
    assert np.mean(ends[:, 1] - ends[:, 0]) < widest


def test_a_percentile_bootstrap_would_not_cover_an_error_of_0() -> None:
    rng, process, covered = np.random.default_rng(18), Process(*PROCESSES["network"], 0.0), []
    for _ in range(60):
        confidence, hit = process.draw(1000, rng)
        rows = rng.integers(1000, size=(200, 1000))
        bins = np.ceil(confidence * 15).astype(int)[rows] + 16 * np.arange(200)[:, None]
        gaps = np.bincount(bins.ravel(), (hit - confidence)[rows].ravel(), 16 * 200)
        covered.append(np.quantile(np.abs(gaps.reshape(200, 16)).sum(1) / 1000, 0.025) <= 0)
    assert np.mean(covered) < 0.05


def test_adaptive_ece_interval_covers_the_error_over_its_own_bins() -> None:
    rng, process, covered = np.random.default_rng(19), Process(*PROCESSES["network"], 0.02), []
    grid = process.quantile((np.arange(20_000) + 0.5) / 20_000)
    gap = process.distort(grid, process.strength) - grid
    for _ in range(200):
        confidence, hit = process.draw(1500, rng)
        upper = np.sort(confidence)[99:-1:100]  # 15 bins of 100
        truth = np.abs(np.bincount(np.searchsorted(upper, grid), gap)).sum() / len(grid)
        low, high = calibration.adaptive_ece_interval(*as_probs(confidence, hit))
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)


def test_ece_interval_of_saturated_confidences_obeys_the_rule_of_three() -> None:
    # 500 certainties, all right: a miss rate above 3.7/500 would have shown itself with probability .975.
    low, high = calibration.ece_interval(*as_probs(np.ones(500), np.ones(500, dtype=bool)))
    assert low == 0.0
    assert 3.5 / 500 < high < 5 / 500


def test_ece_interval_narrows_with_its_level_and_repeats_itself() -> None:
    probs, labels = draw_probs()
    wide, narrow = calibration.ece_interval(probs, labels), calibration.ece_interval(probs, labels, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert calibration.ece_interval(probs, labels) == wide


def test_intervals_for_ten_thousand_examples_take_a_fraction_of_a_second() -> None:
    probs, labels = draw_probs(n=10_000)
    scores = calibration.nll_scores(probs, labels)
    for work in (lambda: calibration.ece_interval(probs, labels), lambda: calibration.bootstrap_interval(scores)):
        with soon(0.6):  # .01 and .12 on an idle core
            work()


def test_accuracy_interval_of_a_perfect_score_stays_open() -> None:
    # Wilson at 20 of 20: [n / (n + z^2), 1].
    summary = calibration.classification_summary(np.eye(2)[[0] * 20], np.zeros(20, dtype=int))
    np.testing.assert_allclose(summary["accuracy_interval"], [20 / (20 + stats.norm.ppf(0.975) ** 2), 1])


@pytest.mark.parametrize("distortion", [1.0, 0.5])
def test_the_classwise_interval_covers_the_population_error(distortion: float) -> None:
    """Four classes; labels drawn from a tempered version of what is said: calibrated at 1, over-confident at 0.5."""
    worlds, n, num_classes = 80, 600, 4
    rng = np.random.default_rng(11)

    def said(count: int) -> np.ndarray:
        logits = 2 * rng.standard_normal((count, num_classes))
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def true(probs: np.ndarray) -> np.ndarray:
        return probs**distortion / (probs**distortion).sum(1, keepdims=True)

    many = said(400_000)
    cell = np.minimum((many * 15).astype(int), 14)
    gap = true(many) - many
    target = np.mean([np.abs(np.bincount(cell[:, c], gap[:, c], 15)).sum() / len(many) for c in range(num_classes)])
    covered, widths = 0, []
    for _ in range(worlds):
        probs = said(n)
        labels = (rng.random((n, 1)) > true(probs).cumsum(1)).sum(1)
        low, high = calibration.classwise_ece_interval(probs, labels)
        covered += low <= target <= high
        widths.append(high - low)
    assert covered / worlds >= 0.95 - 4 * np.sqrt(0.05 * 0.95 / worlds)
    assert np.mean(widths) < 0.15, "an interval that says nothing"
    assert (target < 1e-3) == (distortion == 1.0)
