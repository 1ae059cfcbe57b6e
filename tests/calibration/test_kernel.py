"""Claims about calibration.kernel: naive sums, netcal and MAPIE; the level of both tests, and what they see."""

from __future__ import annotations

import numpy as np
import pytest
from mapie.metrics.calibration import spiegelhalter_p_value, spiegelhalter_statistic
from netcal.metrics import MMCE
from scipy.stats import kstest

from budget import FALSE_ALARMS, assert_at_most, assert_rate
from espalier.calibration import brier_scores, kernel, skce, skce_test, spiegelhalter
from probabilities import Array, draw_probs


def calibrated(n: int, rng: np.random.Generator, classes: int = 3, distortion: float = 1.0) -> tuple[Array, Array]:
    """Predictions, and labels drawn from them tempered by `distortion`: below 1 the predictions are over-confident."""
    p = rng.dirichlet(np.ones(classes), n)
    true = p**distortion / (p**distortion).sum(1, keepdims=True)
    return p, (rng.random((n, 1)) > true.cumsum(1)).sum(1)


def test_the_error_is_the_naive_mean_over_pairs() -> None:
    p, y = draw_probs(30, 4)
    total, pairs = 0.0, 0
    for i in range(30):
        for j in range(30):
            if i != j:
                dot = sum((float(y[i] == c) - p[i, c]) * (float(y[j] == c) - p[j, c]) for c in range(4))
                total, pairs = total + dot * np.exp(-np.sqrt(((p[i] - p[j]) ** 2).sum()) / 0.7), pairs + 1
    assert skce(p, y, bandwidth=0.7) == pytest.approx(total / pairs, rel=1e-12)
    distances = [np.sqrt(((p[i] - p[j]) ** 2).sum()) for i in range(30) for j in range(i)]
    assert skce(p, y) == pytest.approx(skce(p, y, bandwidth=float(np.median(distances))), rel=1e-12)


@pytest.mark.filterwarnings("ignore")  # netcal's own
def test_for_two_classes_it_is_netcals_mmce_without_its_diagonal() -> None:
    # r = (hit - c) (-1, 1) and |p - p'| = sqrt(2) |c - c'|, so at bandwidth sqrt(2) / 2.5 each pair has twice MMCE's term;
    # MMCE is the root of the mean over all pairs, each example with itself too.
    rng = np.random.default_rng(0)
    c = rng.uniform(0.5, 1, 80)
    hit = (rng.random(80) < c**3).astype(int)
    theirs, n = MMCE().measure(c, hit), 80
    expected = 2 * (n**2 * theirs**2 - ((hit - c) ** 2).sum()) / (n * (n - 1))
    assert skce(np.stack([1 - c, c], axis=1), hit, bandwidth=np.sqrt(2) / 2.5) == pytest.approx(expected, rel=1e-9)


def test_blocks_are_the_mean_over_their_pairs() -> None:
    p, y = draw_probs(31, 4)
    parts = [slice(k, None, 4) for k in range(4)]
    sizes = np.array([len(y[part]) for part in parts])
    each = [skce(p[part], y[part], bandwidth=0.5) for part in parts]
    expected = np.average(each, weights=sizes * (sizes - 1))
    assert skce(p, y, bandwidth=0.5, block=9) == pytest.approx(expected, rel=1e-12)


def test_the_error_of_calibrated_predictions_is_0_on_average_and_that_of_others_is_not() -> None:
    rng = np.random.default_rng(1)
    found = np.array([skce(*calibrated(50, rng), bandwidth=0.5) for _ in range(600)])
    error = found.std(ddof=1) / np.sqrt(600)
    assert abs(found.mean()) < 4.9 * error
    assert np.mean([skce(*calibrated(50, rng, distortion=0.3), bandwidth=0.5) for _ in range(200)]) > 20 * error


def test_the_kernel_test_has_its_level_exactly() -> None:
    """p-values are uniform over k / 20 with 19 redraws: a tenth of them is a whole number of ranks."""
    rng, worlds = np.random.default_rng(2), 1000
    found = np.array([skce_test(*calibrated(30, rng), num_draws=19, seed=k).p_value for k in range(worlds)])
    assert_rate((found <= 0.05).sum(), worlds, 0.05, looks=3)
    assert_rate((found <= 0.1).sum(), worlds, 0.1, looks=3)
    assert_rate((found <= 0.5).sum(), worlds, 0.5, looks=3)


def test_the_kernel_test_keeps_its_level_in_blocks_and_with_certain_predictions() -> None:
    rng, wrong = np.random.default_rng(3), 0
    for k in range(500):
        p, y = calibrated(40, rng)
        p[:20], y[:20] = np.eye(3)[y[:20]], y[:20]
        wrong += skce_test(p, y, block=15, num_draws=19, seed=k).p_value <= 0.05
    assert_at_most(wrong, 500, 0.05)


def test_the_kernel_test_sees_a_distortion_that_spares_the_top_label() -> None:
    """The largest probability is right; the other two are swapped: no reliability diagram of the top label shows it."""
    rng, seen, missed = np.random.default_rng(4), 0, 0
    for k in range(25):
        p = rng.dirichlet(np.ones(3), 300)
        true = p.copy()
        rows, order = np.arange(300), p.argsort(1)
        true[rows, order[:, 0]], true[rows, order[:, 1]] = p[rows, order[:, 1]], p[rows, order[:, 0]]
        y = (rng.random((300, 1)) > true.cumsum(1)).sum(1)
        seen += skce_test(p, y, seed=k).p_value <= 0.05
        missed += skce_test(*calibrated(300, rng), seed=k).p_value > 0.05
    assert seen >= 18
    assert missed >= 18


def test_spiegelhalters_z_is_mapies_for_two_classes() -> None:
    p, y = calibrated(200, np.random.default_rng(5), classes=2, distortion=0.6)
    found = spiegelhalter(p, y)
    assert found.statistic == pytest.approx(spiegelhalter_statistic(y, p[:, 1]), rel=1e-9)
    above = float(spiegelhalter_p_value(y, p[:, 1]))  # one-sided there
    assert found.p_value == pytest.approx(2 * min(above, 1 - above), rel=1e-6)


def test_spiegelhalters_moments_are_those_of_the_brier_score() -> None:
    p, y = draw_probs(12, 4)
    each = np.stack([brier_scores(p, np.full(12, c)) for c in range(4)], axis=1)
    mean = (p * each).sum(1)
    variance = (p * (each - mean[:, None]) ** 2).sum(1)
    z = (brier_scores(p, y) - mean).sum() / np.sqrt(variance.sum())
    assert spiegelhalter(p, y).statistic == pytest.approx(z, rel=1e-9)


def test_spiegelhalters_p_values_are_uniform_and_over_confidence_is_positive() -> None:
    rng = np.random.default_rng(6)
    found = [spiegelhalter(*calibrated(400, rng, classes=4)) for _ in range(1000)]
    p_values = np.array([each.p_value for each in found])
    assert kstest(p_values, "uniform").pvalue > FALSE_ALARMS
    assert_rate((p_values <= 0.05).sum(), 1000, 0.05)
    over = [spiegelhalter(*calibrated(400, rng, classes=4, distortion=0.5)) for _ in range(50)]
    assert all(each.statistic > 0 for each in over)
    assert np.mean([each.p_value <= 0.05 for each in over]) > 0.9


def test_where_one_score_alone_is_possible_there_is_no_doubt() -> None:
    assert spiegelhalter(np.eye(3), np.arange(3)) == (0.0, 1.0)
    assert spiegelhalter(np.eye(3), np.array([0, 1, 1])) == (np.inf, 0.0)
    assert spiegelhalter(np.full((4, 2), 0.5), np.array([0, 1, 1, 1])) == (0.0, 1.0)
    assert skce_test(np.eye(3), np.arange(3)).p_value == 1.0
    assert skce_test(np.eye(3)[[0] * 9], np.ones(9, dtype=int)).p_value == 1 / (1 + kernel.NUM_DRAWS)


def test_what_does_not_fit_is_refused() -> None:
    p, y = draw_probs(5)
    with pytest.raises(ValueError, match="expected at least two examples, got 1; pairs of them are compared"):
        skce(p[:1], y[:1])
    with pytest.raises(ValueError, match="expected a bandwidth above 0, got -1"):
        skce_test(p, y, bandwidth=-1)
    with pytest.raises(ValueError, match="expected a block of at least 2 examples, got 1"):
        skce(p, y, block=1)
    with pytest.raises(ValueError, match="expected labels in 0..3"):
        spiegelhalter(p, y + 4)
