"""Intervals for means cover where examples are few and errors rare. (What the summaries hold is in test_scores_intervals.py.)"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from budget import assert_at_most
from espalier import calibration


@pytest.mark.parametrize("n", [4, 10, 30])
def test_the_mean_of_few_normal_scores_is_covered(n: int) -> None:
    """Percentiles of resamples alone miss .21, .10 and .07."""
    rng, missed = np.random.default_rng(n), 0
    for seed in range(400):
        low, high = calibration.bootstrap_interval(rng.normal(size=n), num_resamples=400, seed=seed)
        missed += not low <= 0 <= high
    assert_at_most(missed, 400, 0.08)


def test_ends_are_those_of_resamples_widened_by_students_t() -> None:
    x = np.random.default_rng(0).exponential(size=12)
    rng = np.random.default_rng(3)
    means = np.array([x[rng.integers(12, size=12, dtype=np.int32)].mean() for _ in range(4000)])
    factor = (12 / 11) ** 0.5 * stats.t.ppf(0.95, 11) / stats.norm.ppf(0.95)
    expected = x.mean() + factor * (np.quantile(means, [0.05, 0.95]) - x.mean())
    found = calibration.bootstrap_interval(x, level=0.9, num_resamples=40_000, seed=5)
    np.testing.assert_allclose(found, expected, atol=0.03)


@pytest.mark.parametrize(
    ("n", "said", "right"), [(50, 0.99, 0.99), (200, 0.99, 0.99), (360, 0.997, 0.997), (1000, 0.999, 0.999), (300, 0.999, 0.97),
                             (300, 0.99, 0.995)],
)  # fmt: skip
def test_losses_of_a_classifier_that_is_rarely_wrong_are_covered(n: int, said: float, right: float) -> None:
    """Whether it says its rate or another: resamples alone cover .41 at 50 rows and .63 at a thousand."""
    p, rng = np.tile([said, 1 - said], (n, 1)), np.random.default_rng(n)
    truth = {"nll": -(right * np.log(said) + (1 - right) * np.log(1 - said)),
             "brier": 2 * (right * (1 - said) ** 2 + (1 - right) * said**2)}  # fmt: skip
    missed = dict.fromkeys(truth, 0)
    for seed in range(200):
        found = calibration.loss_intervals(p, (rng.random(n) > right).astype(int), seed=seed)
        for name, value in truth.items():
            missed[name] += not found[name][0] <= value <= found[name][1]
    for times in missed.values():
        assert_at_most(times, 200, 0.05)


def test_where_errors_are_many_losses_have_the_intervals_of_means() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3), size=400)
    y = rng.integers(3, size=400)
    found = calibration.loss_intervals(p, y, seed=4)
    assert found["nll"] == calibration.bootstrap_interval(calibration.nll_scores(p, y), seed=4)
    assert found["brier"] == calibration.bootstrap_interval(calibration.brier_scores(p, y), seed=4)
    one = calibration.classification_summary([[0.3, 0.7]], [1])
    assert one["nll_interval"][0] <= one["nll"] < one["nll_interval"][1]  # type: ignore[index, operator]


def test_a_classifier_that_is_all_but_sure_costs_no_more_than_it_says() -> None:
    """1 - p is exactly 0 from 1e-17 on, and what the others are is not."""
    found = calibration.loss_intervals(np.tile([1.0, 1e-20], (50, 1)), np.zeros(50, int))
    most = stats.beta.ppf(0.975, 1, 50)
    np.testing.assert_allclose([found["nll"][1], found["brier"][1]], [most * -np.log(1e-20), most * 2], rtol=1e-6)
    sure = calibration.loss_intervals(np.tile([1.0, 0.0], (50, 1)), np.zeros(50, int))
    assert sure["brier"][1] == pytest.approx(most * 2)
    shares = calibration.means_by_group([1, 1, 0, 1, 1, 1, 1, 0.0], ["a"] * 4 + ["b"] * 4)
    assert all(0 <= each.interval[0] < each.interval[1] <= 1 for each in shares.values())
