"""Claims about espalier.calibration.clusters: several labels per example are scored alike, and examples are what varies."""

from __future__ import annotations

import numpy as np
import pytest

from budget import assert_rate
from espalier import calibration
from espalier.calibration.clusters import clustered_summary, dependence, flattened
from espalier.calibration.scores import equal_width

RNG = np.random.default_rng(5)


def world(count, labels, classes=3, together=0.0, rng=RNG):
    """Calibrated probabilities `(n, m, C)` and labels `(n, m)`, a share `together` of which repeat the example's first."""
    probs = rng.dirichlet(np.full(classes, 0.7), size=count)[:, None].repeat(labels, 1)
    drawn = (rng.random((count, labels, 1)) > probs.cumsum(-1)).sum(-1)
    same = rng.random((count, labels)) < together
    return probs, np.where(same, drawn[:, :1], drawn)


def test_values_are_those_of_all_labels_taken_alike():
    probs, y = world(40, 6)
    found, flat = clustered_summary(probs, y), calibration.classification_summary(probs.reshape(-1, 3), y.ravel())
    assert (found["num_examples"], found["num_labels"]) == (40, 240)
    for name in ("accuracy", "nll", "brier", "ece_10", "ece_15", "adaptive_ece", "classwise_ece"):
        assert found[name] == pytest.approx(flat[name], rel=1e-12)
    assert found.keys() - {"num_labels"} == flat.keys()


def test_labels_that_only_repeat_tell_nothing_new():
    probs, y = world(300, 1)
    one, many = clustered_summary(probs, y), clustered_summary(probs.repeat(7, 1), y.repeat(7, 1))
    for name in ("nll", "brier"):
        assert many[f"{name}_interval"] == pytest.approx(one[f"{name}_interval"], rel=1e-12)
    for name in ("ece_15", "classwise_ece"):
        np.testing.assert_allclose(many[f"{name}_interval"], one[f"{name}_interval"], rtol=0, atol=0.02)
        naive = calibration.classification_summary(probs.repeat(7, 1).reshape(-1, 3), y.repeat(7, 1).ravel())
        assert np.ptp(naive[f"{name}_interval"]) < 0.7 * np.ptp(many[f"{name}_interval"])
    assert many["ece_15_floor"] == pytest.approx(one["ece_15_floor"], rel=1e-12)


def test_design_effect_of_repeats_is_their_number_and_of_independent_labels_one():
    probs, y = world(2_000, 1)
    p, labels, count = flattened(probs.repeat(5, 1), y.repeat(5, 1))
    index = equal_width(p.max(1), 4)
    effect, root = dependence((p.argmax(1) == labels) - p.max(1), index, 4, count)
    filled = np.bincount(index, minlength=4) > 0
    np.testing.assert_allclose(effect[filled], 5, rtol=1e-12)
    assert (effect[~filled] == 1).all()
    np.testing.assert_allclose(root @ root.T, np.eye(4), atol=1e-9)  # a repeated label is of one bin
    p, labels, count = flattened(*world(4_000, 5))
    index = equal_width(p.max(1), 4)
    alone, _ = dependence((p.argmax(1) == labels) - p.max(1), index, 4, count)
    assert alone.max() < 1.2


@pytest.mark.slow
def test_the_floor_is_the_mean_ece_of_calibrated_worlds():
    rng, found, floors = np.random.default_rng(7), [], []
    for _ in range(200):
        probs, y = world(150, 8, together=0.6, rng=rng)
        found.append(calibration.ece(probs.reshape(-1, 3), y.ravel()))
        floors.append(clustered_summary(probs, y)["ece_15_floor"])
    assert np.mean(floors) == pytest.approx(np.mean(found), rel=0.12)


def test_intervals_cover_where_labels_err_together():
    rng, worlds, hits = np.random.default_rng(8), 120, {"nll": 0, "ece_15": 0}
    truth = np.mean([clustered_nll(rng) for _ in range(200)])
    for _ in range(worlds):
        found = clustered_summary(*world(150, 8, together=0.6, rng=rng), level=0.9)
        hits["nll"] += found["nll_interval"][0] <= truth <= found["nll_interval"][1]
        hits["ece_15"] += found["ece_15_interval"][0] <= 0.002  # calibrated: the population's error is 0
    assert_rate(hits["nll"], worlds, 0.9)
    assert hits["ece_15"] >= 0.88 * worlds


def test_intervals_cover_where_an_example_errs_alike_in_all_its_bins():
    """Images whose pixels lie in five bins, each image with an offset of its own in all of them: the population's error is .1."""
    rng, worlds, hits = np.random.default_rng(9), 150, {"ece_15": 0, "adaptive_ece": 0}
    for _ in range(worlds):
        confidence = rng.uniform(0.6, 0.9, (50, 60))
        wrong = rng.random((50, 60)) > confidence - 0.1 + rng.uniform(-0.17, 0.17, (50, 1))
        found = clustered_summary(np.stack([confidence, 1 - confidence], -1), wrong.astype(int))
        for name in hits:
            low, high = found[f"{name}_interval"]
            hits[name] += low <= 0.1 <= high
    for name in hits:
        assert_rate(hits[name], worlds, 0.95)


def test_the_floor_of_sure_labels_is_that_of_the_labels_that_may_err():
    confidence, rng = np.full((200, 50), 1 - 1e-5), np.random.default_rng(0)
    probs = np.stack([confidence, 1 - confidence], -1)
    found = clustered_summary(probs, (rng.random((200, 50)) > confidence).astype(int))
    assert found["ece_15_floor"] == pytest.approx(calibration.ece_floor(probs.reshape(-1, 2)), rel=0.15)


def clustered_nll(rng):
    """The mean nll of one large world."""
    probs, y = world(3_000, 2, together=0.6, rng=rng)
    return -np.log(np.take_along_axis(probs, y[..., None], -1)).mean()


@pytest.mark.parametrize(("p", "y"), [((4, 3), (4, 3)), ((4, 5, 3), (4,)), ((3,), ()), ((0, 5, 2), (0, 5))])
def test_shapes_that_do_not_fit_are_refused(p, y):
    with pytest.raises(ValueError, match=r"expected probs \(n, ..., C\) and labels \(n, ...\)"):
        flattened(np.full(p, 0.5), np.zeros(y, int))


def test_where_every_label_is_right_the_accuracy_has_an_interval():
    probs = np.full((20, 7, 2), 0.1)
    probs[..., 0] = 0.9
    assert clustered_summary(probs, np.zeros((20, 7), int))["accuracy_interval"] == pytest.approx([0.025 ** (1 / 20), 1.0])
