"""Claims about calibration.groups: a group's scores are its own, equal groups show a gap that the interval takes back."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from budget import assert_at_most, assert_rate
from espalier import calibration
from espalier.calibration import (
    by_group,
    calibration_differs,
    class_reliability,
    groups_differ,
    largest_gap,
    means_by_group,
)
from probabilities import draw_probs


def test_each_group_has_the_summary_of_its_examples_alone() -> None:
    probs, labels = draw_probs(90)
    groups = np.array(["red", "green", "blue"])[np.arange(90) % 3]
    found = by_group(probs, labels, groups)
    assert list(found) == ["blue", "green", "red"]
    for name, own in found.items():
        rows = groups == name
        assert own == calibration.classification_summary(probs[rows], labels[rows])
    json.dumps(found)
    assert list(by_group(probs, labels, np.arange(90) // 45)) == ["0", "1"]


def test_means_by_group_are_means_with_the_wings_own_interval() -> None:
    x, groups = np.random.default_rng(0).exponential(size=60), np.arange(60) % 2
    found = means_by_group(x, groups)
    for k in (0, 1):
        assert found[str(k)] == (pytest.approx(x[k::2].mean()), calibration.bootstrap_interval(x[k::2]))
    low, high = means_by_group([1, 1, 1, 0, 1, 1.0], list("aaabbb"))["a"].interval  # three hits of three
    z = 1.959963984540054
    assert (low, high) == (pytest.approx(3 / (3 + z**2)), pytest.approx(1.0))


def test_the_largest_gap_names_its_two_groups() -> None:
    x, groups = np.array([1.0, 1, 5, 5, 3, 3]), ["b", "b", "a", "a", "c", "c"]
    assert largest_gap(x, groups) == ("a", "b", 4.0, (4.0, 4.0))  # no spread within groups


@pytest.mark.parametrize("means", [(0.0,) * 6, (0.0, 0.0, 0.3, 0.5, 0.5, 0.5)])
def test_the_interval_of_the_largest_gap_covers_it(means: tuple[float, ...]) -> None:
    rng, sizes, worlds = np.random.default_rng(1), (40, 40, 80, 80, 120, 200), 300
    groups, truth, missed, plain = np.repeat(np.arange(6), sizes), np.ptp(means), 0, []
    for _ in range(worlds):
        gap = largest_gap(rng.normal(np.repeat(means, sizes)), groups, num_resamples=200)
        missed += not gap.interval[0] <= truth <= gap.interval[1]
        plain.append(gap.value)
    # the percentile of groups of 40 is a little narrow, and that of 200 resamples uncertain by .015
    assert_at_most(missed, worlds, 0.07)
    assert np.mean(plain) > truth + 0.02  # what is seen is too large: the interval is not built around it by accident


@pytest.mark.parametrize(("rates", "size"), [((1.0, 0.95), 30), ((0.99, 0.9), 20), ((0.98, 0.98, 0.98), 25)])
def test_it_covers_the_gap_of_accuracies_where_a_group_may_have_no_error(rates: tuple[float, ...], size: int) -> None:
    rng, groups, missed = np.random.default_rng(5), np.repeat(np.arange(len(rates)), size), 0
    for _ in range(300):
        low, high = largest_gap(rng.random(len(groups)) < np.repeat(rates, size), groups, num_resamples=300).interval
        missed += not low - 1e-9 <= np.ptp(rates) <= high + 1e-9
    assert_at_most(missed, 300, 0.05)
    low, high = largest_gap(np.ones(60), groups[:1].tolist() * 30 + ["b"] * 30).interval
    assert low == 0
    assert high > 0.05


def test_it_covers_the_gap_of_groups_of_five() -> None:
    rng, groups, missed = np.random.default_rng(6), np.repeat(np.arange(10), 5), 0
    for _ in range(300):
        missed += largest_gap(rng.normal(size=50), groups, num_resamples=200).interval[0] > 0
    assert_at_most(missed, 300, 0.05)


def test_a_wide_gap_is_seen() -> None:
    rng = np.random.default_rng(2)
    gap = largest_gap(rng.normal(np.repeat([0.0, 0.1, 1.0], 200)), np.repeat([0, 1, 2], 200))
    assert (gap.highest, gap.lowest) == ("2", "0")
    assert gap.interval[0] > 0.6


def test_the_p_value_counts_permutations_that_part_the_groups_as_far() -> None:
    x, groups = np.array([0.0, 1, 5, 9, 2, 3]), np.array(["a", "a", "b", "b", "c", "c"])

    def parted(scores: np.ndarray) -> float:
        return sum(2 * (scores[groups == name].mean() - scores.mean()) ** 2 for name in "abc")

    found = groups_differ(x, groups, num_permutations=20_000)
    assert found.statistic == pytest.approx(parted(x))
    every = [parted(x[list(order)]) for order in itertools.permutations(range(6))]
    exact = np.mean(np.array(every) >= parted(x) - 1e-9)
    assert_rate(round(found.p_value * 20_001) - 1, 20_000, float(exact))


def test_groups_that_are_equal_are_found_different_at_the_nominal_rate_whatever_their_sizes() -> None:
    """Where the bootstrap of a group of five, all right by chance, would be certain."""
    rng, groups = np.random.default_rng(3), np.repeat([0, 1, 2], [300, 20, 5])
    found = [groups_differ((rng.random(325) < 0.9).astype(float), groups, num_permutations=99, seed=k) for k in range(600)]
    assert_at_most(sum(each.p_value <= 0.05 for each in found), 600, 0.05)


def of_groups(seed: int, bias: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two classes; the second group is harder, and says so, but for a bias in what it says."""
    rng = np.random.default_rng(seed)
    groups = (rng.random(400) < 0.3).astype(int)
    confidence = np.clip(0.55 + 0.44 * rng.beta(4 - 3 * groups, 1), 0.5, 1)
    hit = rng.random(400) < confidence - bias * groups
    return np.stack([confidence, 1 - confidence], 1), 1 - hit.astype(int), groups


def test_a_harder_group_that_knows_it_is_as_calibrated() -> None:
    found, harder = [], []
    for seed in range(300):
        probs, labels, groups = of_groups(seed, 0.0)
        found.append(calibration_differs(probs, labels, groups, seed=seed).p_value)
        harder.append(groups_differ(calibration.accuracy_scores(probs, labels), groups, num_permutations=99).p_value)
    assert_at_most(sum(np.array(found) <= 0.05), 300, 0.05)
    assert np.mean(np.array(harder) <= 0.05) > 0.5, "and its accuracy differs"
    biased = [calibration_differs(*of_groups(seed, 0.15)).p_value for seed in range(40)]
    assert np.mean(np.array(biased) <= 0.05) > 0.7


@pytest.mark.parametrize(("sizes", "shapes"), [((20, 200), (5.0, 100.0)), ((60, 60), (100.0, 3.0))])
def test_groups_of_other_confidences_are_as_calibrated(sizes: tuple[int, int], shapes: tuple[float, float]) -> None:
    """Where permutations within bins find a difference in a seventh of the worlds."""
    rng, groups, found = np.random.default_rng(7), np.repeat([0, 1], sizes), []
    for seed in range(200):
        confidence = np.maximum(np.concatenate([rng.beta(a, 1, n) for a, n in zip(shapes, sizes, strict=True)]), 0.5)
        labels = (rng.random(len(groups)) >= confidence).astype(int)
        found.append(calibration_differs(np.stack([confidence, 1 - confidence], 1), labels, groups, seed=seed).p_value)
    assert_at_most(int((np.array(found) <= 0.05).sum()), 200, 0.05)


def test_where_all_are_right_no_group_differs() -> None:
    probs = np.stack([np.linspace(0.6, 1, 40), np.linspace(0.4, 0, 40)], 1)
    assert calibration_differs(probs, np.zeros(40, int), np.arange(40) % 2).p_value > 0.2


def test_the_classes_diagrams_add_up_to_the_classwise_error() -> None:
    probs, labels = draw_probs(400, 5)
    tables = class_reliability(probs, labels, 10)
    assert len(tables) == 5
    errors = [np.nansum(t.counts * np.abs(t.accuracy - t.confidence)) / 400 for t in tables]
    assert np.mean(errors) == pytest.approx(calibration.classwise_ece(probs, labels, 10), rel=1e-12)
    inside = (probs[:, 2] > 0.2) & (probs[:, 2] <= 0.3)
    assert tables[2].counts[2] == inside.sum()
    assert tables[2].accuracy[2] == pytest.approx((labels[inside] == 2).mean())


def test_what_does_not_fit_is_refused() -> None:
    x = np.arange(4.0)
    with pytest.raises(ValueError, match=r"expected groups of shape \(4,\), none nan, got .* \(3,\); name a group"):
        largest_gap(x, [0, 0, 1])
    with pytest.raises(ValueError, match=r"expected groups of shape \(4,\), none nan"):
        largest_gap(x, [0, 0, 1, np.nan])
    with pytest.raises(ValueError, match="expected two groups or more, got 1"):
        largest_gap(x, [0] * 4)
    with pytest.raises(ValueError, match=r"expected two examples or more in every group, got one in \['b'\]; join"):
        largest_gap(x, ["a", "a", "a", "b"])
    with pytest.raises(ValueError, match="expected two groups or more, got 1"):
        groups_differ(x, [0] * 4)
    with pytest.raises(ValueError, match=r"expected strata of shape \(4,\), got \(3,\)"):
        groups_differ(x, [0, 0, 1, 1], [0, 0, 1])
    with pytest.raises(ValueError, match="expected two groups or more, got 1"):
        calibration_differs(np.full((4, 2), 0.5), [0, 1, 0, 1], [0] * 4)
    assert groups_differ(x, ["a", "a", "a", "b"], num_permutations=9).p_value > 0, "a single example is a group, too"


@pytest.mark.parametrize("size", [10, 30, 50, 100])
def test_a_gap_of_skewed_scores_covers_a_true_zero_where_a_group_is_small(size):
    """One example in fifty is a surprise, and of a hundred many groups show none."""
    hits, worlds = 0, 150
    for world in range(worlds):
        rng = np.random.default_rng([11, world])
        scores = np.where(rng.random(500 + size) < 0.02, rng.exponential(5, 500 + size), 0.01)
        found = calibration.largest_gap(scores, np.repeat([0, 1], [size, 500]), num_resamples=300)
        hits += found.interval[0] <= 0
    assert hits >= 0.9 * worlds
