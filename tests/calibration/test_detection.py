"""Claims about calibration.detection: scikit-learn's areas with ties, DeLong's intervals by simulation, pairing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from budget import assert_at_most, assert_rate
from espalier.calibration import detection
from espalier.calibration.detection import (
    aupr_in,
    aupr_out,
    auroc,
    auroc_interval,
    detection_differences,
    detection_summary,
    false_positive_rate,
)
from probabilities import Array


def drawn(shift: float = 1.0, m: int = 90, n: int = 60, seed: int = 0, step: float = 0.25) -> tuple[Array, Array]:
    """Scores rounded to `step`, so that many are tied."""
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=m) / step) * step, np.round(rng.normal(shift, size=n) / step) * step


@pytest.mark.parametrize("shift", [-0.5, 0.0, 1.0, 3.0])
def test_every_number_is_scikit_learns_ties_and_all(shift: float) -> None:
    i, o = drawn(shift)
    scores, outside = np.concatenate([i, o]), np.repeat([0, 1], [len(i), len(o)])
    assert auroc(i, o) == pytest.approx(roc_auc_score(outside, scores), rel=1e-12)
    assert aupr_out(i, o) == pytest.approx(average_precision_score(outside, scores), rel=1e-12)
    assert aupr_in(i, o) == pytest.approx(average_precision_score(1 - outside, -scores), rel=1e-12)
    for accepted in (0.5, 0.95, 1.0):
        fpr, tpr, _ = roc_curve(1 - outside, -scores, drop_intermediate=False)
        assert false_positive_rate(i, o, accepted) == pytest.approx(fpr[tpr >= accepted].min(), rel=1e-12)


def test_the_auroc_is_a_mean_over_pairs() -> None:
    i, o = drawn(m=11, n=7)
    naive = np.mean([1.0 if b > a else 0.5 if a == b else 0.0 for a in i for b in o])
    assert auroc(i, o) == pytest.approx(naive, rel=1e-12)
    assert auroc(i, o) + auroc(o, i) == pytest.approx(1)


@pytest.mark.parametrize(("m", "n", "shift"), [(60, 40, 0.5), (150, 80, 2.0)])
def test_delongs_interval_covers_the_auroc_of_the_population(m: int, n: int, shift: float) -> None:
    rng, worlds, truth = np.random.default_rng(1), 1000, norm.cdf(shift / np.sqrt(2))
    found = [auroc_interval(rng.normal(size=m), rng.normal(shift, size=n)).interval for _ in range(worlds)]
    low, high = np.transpose(found)
    assert_rate(((low <= truth) & (truth <= high)).sum(), worlds, 0.95)
    assert (low > 0).all()
    assert (high < 1).all()


def test_delongs_variance_is_that_of_the_auroc() -> None:
    rng, worlds = np.random.default_rng(2), 3000
    pairs = [(rng.normal(size=30), rng.normal(1, size=20)) for _ in range(worlds)]
    errors = [detection._error(*detection._placements(*pair)) ** 2 for pair in pairs]
    areas = np.array([auroc(*pair) for pair in pairs])
    assert np.mean(errors) == pytest.approx(areas.var(ddof=1), rel=0.2)  # 6 standard errors of the variance: .16


def test_a_perfect_detector_is_not_thought_certain() -> None:
    found = auroc_interval(np.arange(30.0), np.arange(100.0, 120.0))
    assert found == (1.0, (pytest.approx(0.025 ** (1 / 20)), 1.0))
    assert auroc_interval(np.arange(100.0, 120.0), np.arange(30.0)) == (0.0, (0.0, pytest.approx(1 - 0.025 ** (1 / 20))))


def test_a_summary_holds_what_its_functions_say_and_resamples_as_written_out() -> None:
    i, o = drawn()
    found = detection_summary(i, o)
    expected = {"num_inside": 90, "num_outside": 60, "auroc": auroc(i, o), "aupr_in": aupr_in(i, o),
                "aupr_out": aupr_out(i, o), "false_positive_rate": false_positive_rate(i, o)}  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    rng = np.random.default_rng(0)
    a, b = rng.multinomial(90, np.full(90, 1 / 90)), rng.multinomial(60, np.full(60, 1 / 60))
    row = detection._statistic(i, o, 0.95)(a[None].astype(float), b[None].astype(float))[0]
    j, p = np.repeat(i, a), np.repeat(o, b)
    np.testing.assert_allclose(row, [aupr_in(j, p), aupr_out(j, p), false_positive_rate(j, p)], rtol=1e-12)


def test_bootstrap_intervals_cover_the_population() -> None:
    rng, worlds, covered = np.random.default_rng(4), 100, np.zeros(3)
    big = detection._values(rng.normal(size=200_000), rng.normal(1.5, size=200_000))
    for _ in range(worlds):
        summary = detection_summary(rng.normal(size=200), rng.normal(1.5, size=200), num_resamples=150)
        ends = np.array([summary[f"{name}_interval"] for name in detection._NAMES])
        covered += (ends[:, 0] <= big) & (big <= ends[:, 1])
    for times in covered:
        assert_rate(times, worlds, 0.94, looks=3)


def test_paired_differences_cover_and_see_what_two_intervals_would_not() -> None:
    rng, worlds, covered, ratios = np.random.default_rng(6), 500, 0, []
    truth = norm.cdf(1 / np.sqrt(2)) - norm.cdf(1 / np.sqrt(2 * 1.25))
    for _ in range(worlds):
        i, o = rng.normal(size=150), rng.normal(1, size=150)
        first, second = (i, o), (i + 0.5 * rng.normal(size=150), o + 0.5 * rng.normal(size=150))
        low, high = detection_differences(first, second, num_resamples=1)["auroc"].interval
        covered += low <= truth <= high
        ratios.append((high - low) / np.hypot(*(np.ptp(auroc_interval(*pair).interval) for pair in (first, second))))
    assert_rate(covered, worlds, 0.95)
    assert np.mean(ratios) < 0.5


def test_a_score_does_not_differ_from_itself_and_a_better_one_does() -> None:
    i, o = drawn(2.0, 400, 400)
    assert all(each == (0.0, (0.0, 0.0)) for each in detection_differences((i, o), (i, o)).values())
    rng = np.random.default_rng(0)
    worse = i + 2 * rng.normal(size=400), o + 2 * rng.normal(size=400)
    found = detection_differences((i, o), worse)
    assert min(found[name].interval[0] for name in ("auroc", "aupr_in", "aupr_out")) > 0
    assert found["false_positive_rate"].interval[1] < 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected two scores or more of either kind, got \(1, 3\)"):
        auroc(np.ones(1), np.ones(3))
    with pytest.raises(ValueError, match=r"expected finite outside of shape \(n,\)"):
        auroc(np.ones(3), np.array([np.nan, 1]))
    with pytest.raises(ValueError, match=r"expected a share accepted in \(0, 1\], got 0"):
        false_positive_rate(np.ones(3), np.ones(3), 0)
    with pytest.raises(ValueError, match="expected two scores of the same examples"):
        detection_differences((np.ones(3), np.ones(3)), (np.ones(3), np.ones(4)))


def test_the_interval_is_no_point_where_all_scores_tie() -> None:
    found = auroc_interval(np.zeros(30), np.zeros(40))
    assert found.value == 0.5
    assert found.interval[0] < 0.45 < 0.55 < found.interval[1]
    rng, missed = np.random.default_rng(9), 0
    for _ in range(400):
        low, high = auroc_interval(np.zeros(30), (rng.random(30) < 0.05).astype(float)).interval
        missed += not low <= 0.525 <= high
    assert_at_most(missed, 400, 0.05)


def test_two_perfect_scores_may_differ_and_no_false_positive_may_be_one():
    inside, outside = np.array([0.1, 0.2]), np.array([0.8, 0.9])
    low, high = detection.detection_differences((inside, outside), (inside, 2 * outside), num_resamples=50)["auroc"].interval
    assert low < -0.5 < 0.5 < high
    mixed = np.array([0.1, 0.8, 0.3]), np.array([0.2, 0.9, 0.7])
    monotone = detection.detection_differences(mixed, tuple(scores**2 for scores in mixed), num_resamples=50)
    assert monotone["auroc"].interval == (0.0, 0.0)
    found = detection.detection_summary(inside, outside, num_resamples=50)
    assert found["false_positive_rate_interval"] == [0.0, 1.0]  # two inside say nothing of their 95 % point
    many = detection.detection_summary(np.linspace(0.1, 0.2, 200), outside, num_resamples=50)
    assert many["false_positive_rate_interval"] == pytest.approx([0.0, 1 - 0.025**0.5])


def test_of_perfect_separation_the_precision_is_no_surer_than_the_area() -> None:
    """Near that of 20,000 scores of the AUROC's lower end, others first of all, and no more; the most, of perfect confusion."""
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=40), 10 + rng.normal(size=20)
    found = detection_summary(inside, outside)
    area = found["auroc_interval"][0]
    many = np.linspace(0, 1, 20_000)
    for name, odds in (("aupr_in", 0.5), ("aupr_out", 2.0)):
        first = np.where(many < 1 - area, -1.0, 2.0)  # others that come before all that are sought, and those after
        count = round(20_000 / odds)
        probe = aupr_in(np.linspace(0, 1, count), first)
        low, high = found[f"{name}_interval"]
        assert high == 1.0
        assert 0.85 * probe < low < probe + 2e-3
        assert low == pytest.approx(detection._at_area(area, odds, least=True))
    swapped = detection_summary(outside, inside)
    area = swapped["auroc_interval"][1]
    late = np.where(many < area, many, 3.0)
    assert swapped["aupr_in_interval"][1] == pytest.approx(aupr_in(late, np.full(40_000, 2.0)), abs=2e-3)


def test_where_samples_can_be_told_by_chance_the_precision_is_covered() -> None:
    """Two normals 3 apart, 25 of each: every ninth sample or so is perfectly apart."""
    rng = np.random.default_rng(1)
    truth = aupr_in(rng.normal(size=100_000), 3 + rng.normal(size=100_000))
    perfect = covered = 0
    for seed in range(400):
        i, o = rng.normal(size=25), 3 + rng.normal(size=25)
        if i.max() < o.min():
            low, high = detection_summary(i, o, num_resamples=20, seed=seed)["aupr_in_interval"]
            perfect, covered = perfect + 1, covered + (low <= truth <= high)
    assert perfect > 20
    assert covered == perfect


@pytest.mark.parametrize(("m", "n", "shift"), [(1000, 2, 1.0), (500, 3, 2.0), (8, 200, 2.5), (100, 5, 2.0), (300, 300, 1.0)])
def test_an_area_of_few_scores_on_a_side_is_covered(m, n, shift):
    """Normal scores, whose area is known; by a normal quantile these were .71 to .96."""
    rng, area, missed = np.random.default_rng(m + n), norm.cdf(shift / 2**0.5), 0
    for _ in range(300):
        low, high = detection.auroc_interval(rng.normal(size=m), rng.normal(size=n) + shift).interval
        missed += not low <= area <= high
    assert_at_most(missed, 300, 0.05)


def test_an_area_next_to_one_is_no_surer_than_one():
    inside = np.arange(1000.0)
    perfect = detection.auroc_interval(inside, [1001.0, 1002, 1003, 1004, 1005]).interval
    nearly = detection.auroc_interval(inside, [998.5, 1001, 1002, 1003, 1004]).interval
    assert nearly[0] <= perfect[0] < 0.5
    assert detection.auroc_interval(-inside, [-998.5, -1001, -1002, -1003, -1004]).interval[1] >= 1 - perfect[0]


def test_a_false_positive_rate_of_few_inside_is_covered():
    """A 95 % point of twenty scores is their last but one or beyond, where no resample comes: the bootstrap covers .74."""
    rng, rate, missed = np.random.default_rng(3), norm.cdf(norm.ppf(0.95) - 2), 0
    for seed in range(100):
        inside, outside = rng.normal(size=20), rng.normal(size=200) + 2
        found = detection.detection_summary(inside, outside, num_resamples=50, seed=seed)
        missed += not found["false_positive_rate_interval"][0] <= rate <= found["false_positive_rate_interval"][1]
    assert_at_most(missed, 100, 0.05)


@pytest.mark.parametrize(("area", "odds"), [(0.9, 1.0), (0.7, 10.0), (0.69, 50.0), (0.16, 1.0), (0.16, 50.0), (0.99, 3.0)])
def test_no_order_of_that_area_has_less_precision(area: float, odds: float) -> None:
    """Beside powers of t, capped at 1, and steps: the shares passed, never falling, of the same integral."""
    t = (np.arange(20_000) + 0.5) / 20_000

    def precision(rise: Array) -> float:
        low, high = 0.0, 1e9
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if np.minimum(1, middle * rise).mean() < 1 - area else (low, middle)
        return float((t / (t + odds * np.minimum(1, high * rise))).mean())

    others = [precision(t**power) for power in np.linspace(0, 3, 31)] + [precision(t + shift) for shift in (0.05, 0.3, 1.0)]
    least = detection._at_area(area, odds, least=True)
    assert least <= min(others) + 1e-4
    assert least == pytest.approx(min(others), rel=0.11)
