"""Claims about calibration.groups: a group's scores are its own, equal groups show a gap that the interval takes back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from budget import assert_at_most
from espalier import calibration
from espalier.calibration import by_group, class_reliability, largest_gap, means_by_group
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


def test_a_wide_gap_is_seen() -> None:
    rng = np.random.default_rng(2)
    gap = largest_gap(rng.normal(np.repeat([0.0, 0.1, 1.0], 200)), np.repeat([0, 1, 2], 200))
    assert (gap.highest, gap.lowest) == ("2", "0")
    assert gap.interval[0] > 0.6


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
