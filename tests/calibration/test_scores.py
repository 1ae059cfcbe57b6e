"""Claims about calibration.scores: by hand, against other libraries and by quadrature."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import scoringrules
import torch
from scipy import integrate, stats
from scipy.special import softmax
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from espalier import calibration
from places import SHARED
from probabilities import Array, as_probs, draw_probs

# Four examples, three classes. Top label: .5 hit, .7 miss, .9 hit, 1.0 hit.
HAND_PROBS = np.array([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.0, 0.0, 1.0]])
HAND_LABELS = np.array([0, 1, 1, 2])


def draw_mixture(draws: int = 3, n: int = 40, seed: int = 0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(draws, n)), np.exp(rng.normal(size=(draws, n)) / 2), 2 * rng.normal(size=n)


# --- Worked by hand ---


def test_accuracy_nll_and_brier_are_those_worked_by_hand() -> None:
    assert calibration.accuracy(HAND_PROBS, HAND_LABELS) == 3 / 4
    # -log of .5, .2, .9 and 1
    expected = -(np.log(0.5) + np.log(0.2) + np.log(0.9)) / 4
    assert calibration.nll(HAND_PROBS, HAND_LABELS) == pytest.approx(expected, rel=1e-12)
    # .25+.09+.04 = .38;  .49+.64+.01 = 1.14;  .0025+.01+.0025 = .015;  0.  Sum 1.535.
    np.testing.assert_allclose(calibration.brier_scores(HAND_PROBS, HAND_LABELS), [0.38, 1.14, 0.015, 0], atol=1e-15)
    assert calibration.brier(HAND_PROBS, HAND_LABELS) == pytest.approx(1.535 / 4, rel=1e-12)


def test_reliability_bins_are_open_below_and_closed_above() -> None:
    # Five bins: 0 and .2 are in (0, .2], .2000001 in (.2, .4], .8 in (.6, .8], 1 in (.8, 1]; (.4, .6] is empty.
    table = calibration.reliability([0.0, 0.2, 0.2000001, 0.8, 1.0], [0, 1, 1, 0, 1], 5)
    np.testing.assert_array_equal(table.edges, [0, 0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_array_equal(table.counts, [2, 1, 0, 1, 1])
    np.testing.assert_allclose(table.confidence, [0.1, 0.2000001, np.nan, 0.8, 1])
    np.testing.assert_allclose(table.accuracy, [0.5, 1, np.nan, 0, 1])


@pytest.mark.parametrize("num_bins", [3, 5, 7, 10, 15, 49])
def test_a_confidence_on_an_edge_is_in_the_bin_below_it(num_bins: int) -> None:
    edges = [k / num_bins for k in range(1, num_bins + 1)]
    np.testing.assert_array_equal(calibration.reliability(edges, [1] * num_bins, num_bins).counts, 1)


def test_ece_is_that_worked_by_hand() -> None:
    # Two bins: (0, .5] holds .5, a hit: gap +.5.  (.5, 1] holds .7 miss, .9 hit, 1 hit: 2 - 2.6 = -.6.  (.5 + .6)/4.
    assert calibration.ece(HAND_PROBS, HAND_LABELS, 2) == pytest.approx(1.1 / 4, rel=1e-12)
    # Ten bins: every example alone: |1-.5| + |0-.7| + |1-.9| + 0 = 1.3, over 4.
    assert calibration.ece(HAND_PROBS, HAND_LABELS, 10) == pytest.approx(1.3 / 4, rel=1e-12)


def test_adaptive_ece_is_that_worked_by_hand_and_keeps_ties_together() -> None:
    # Two bins of two: .5 hit, .7 miss: 1 - 1.2 = -.2;  .9 hit, 1 hit: 2 - 1.9 = +.1.  (.2 + .1)/4.
    assert calibration.adaptive_ece(HAND_PROBS, HAND_LABELS, 2) == pytest.approx(0.3 / 4, rel=1e-12)
    # .6 .6 .6 .9: the edge is the second smallest, .6, so all three .6 are below it. Hits 1 0 0, 1: |1-1.8| + .1 = .9.
    probs, labels = as_probs(np.array([0.6, 0.9, 0.6, 0.6]), np.array([1, 1, 0, 0]), classes=3)
    assert calibration.adaptive_ece(probs, labels, 2) == pytest.approx(0.9 / 4, rel=1e-12)


def test_classwise_ece_is_that_worked_by_hand() -> None:
    # Two bins (0, .5], (.5, 1], sums of 1{label} - prob per class.
    # Class 0: .5 .05 0 | .7      labels 1 0 0 | 0   -> |1 - .55| + |0 - .7|     = 1.15
    # Class 1: .3 .2 0 | .9       labels 0 1 0 | 1   -> |1 - .5|  + |1 - .9|     = 0.6
    # Class 2: .2 .1 .05 | 1      labels 0 0 0 | 1   -> |0 - .35| + 0            = 0.35
    assert calibration.classwise_ece(HAND_PROBS, HAND_LABELS, 2) == pytest.approx(2.1 / 4 / 3, rel=1e-12)


def test_an_impossible_event_costs_what_its_dtype_can_tell_and_stays_finite() -> None:
    assert calibration.nll(np.array([[1.0, 0.0]], np.float32), [1]) == pytest.approx(126 * np.log(2), rel=1e-6)
    assert calibration.nll([[1.0, 0.0]], [1]) == pytest.approx(1022 * np.log(2), rel=1e-6)


def test_regression_scores_are_those_worked_by_hand() -> None:
    # Two draws, means 0 and 2, so 1; targets 1, 4 and 1: errors 0, 3, 0, and RMSE sqrt(9/3).
    mean, scale, target = np.array([[0.0] * 3, [2.0] * 3]), np.ones((2, 3)), np.array([1.0, 4.0, 1.0])
    assert calibration.rmse(mean, scale, target) == pytest.approx(np.sqrt(3), rel=1e-12)
    # F(4) = (Phi(4) + Phi(2))/2 = .98861 > .975; by symmetry F(1) = .5.
    np.testing.assert_array_equal(calibration.coverage_scores(mean, scale, target), [1, 0, 1])
    assert calibration.interval_coverage(mean, scale, target, level=0.98) == 1.0


# --- Against other libraries ---


def test_scores_agree_with_scikit_learn() -> None:
    probs, labels = draw_probs()
    assert calibration.nll(probs, labels) == pytest.approx(log_loss(labels, probs), rel=1e-12)
    assert calibration.accuracy(probs, labels) == pytest.approx(accuracy_score(labels, probs.argmax(1)), rel=1e-12)
    two, binary = draw_probs(classes=2)
    assert calibration.brier(two, binary) == pytest.approx(2 * brier_score_loss(binary, two[:, 1]), rel=1e-12)


def test_ece_agrees_with_netcal() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from netcal.metrics import ECE

        probs, labels = draw_probs(n=600)  # no confidence on an edge: theirs are [lo, hi)
        theirs = ECE(15).measure(probs, labels)
    assert calibration.ece(probs, labels, 15) == pytest.approx(theirs, rel=1e-12)


def test_adaptive_ece_of_untied_confidences_is_that_of_equal_blocks() -> None:
    probs, labels = draw_probs(n=600)
    gap = (probs.argmax(1) == labels) - probs.max(1)
    blocks = gap[np.argsort(probs.max(1))].reshape(15, 40)
    assert calibration.adaptive_ece(probs, labels, 15) == pytest.approx(np.abs(blocks.mean(1)).mean(), rel=1e-12)


def test_mixture_nll_agrees_with_scipy() -> None:
    mean, scale, target = draw_mixture()
    expected = -np.log(stats.norm.pdf(target, mean, scale).mean(0))
    np.testing.assert_allclose(calibration.gaussian_nll_scores(mean, scale, target), expected, rtol=1e-12)


def test_mixture_nll_stays_finite_far_out() -> None:
    # Both densities underflow; the nearer draw, at 99 standard deviations, decides: 99^2/2 + log(2 pi)/2 + log 2.
    value = calibration.gaussian_nll([[0.0], [1.0]], [[1.0], [1.0]], [100.0])
    assert value == pytest.approx(99**2 / 2 + np.log(2 * np.pi) / 2 + np.log(2), rel=1e-12)


def test_crps_of_a_mixture_is_its_integral() -> None:
    mean, scale, target = draw_mixture(n=4)

    def integral(m: Array, s: Array, y: float) -> float:
        def squared(x: float, step: float) -> float:
            return float((stats.norm.cdf(x, m, s).mean() - step) ** 2)

        below = integrate.quad(squared, -40, y, args=(0,), points=sorted(m[m < y]), limit=200, epsabs=1e-11)[0]
        above = integrate.quad(squared, y, 40, args=(1,), points=sorted(m[m > y]), limit=200, epsabs=1e-11)[0]
        return below + above

    expected = [integral(m, s, y) for m, s, y in zip(mean.T, scale.T, target, strict=True)]
    np.testing.assert_allclose(calibration.crps_scores(mean, scale, target), expected, atol=1e-8)


def test_crps_of_a_mixture_is_what_scoringrules_has() -> None:
    rng = np.random.default_rng(31)
    mean, scale = rng.normal(0, 2, (7, 40)), rng.uniform(0.05, 3, (7, 40))
    target = rng.normal(0, 4, 40)
    expected = scoringrules.crps_mixnorm(target, mean.T, scale.T)
    np.testing.assert_allclose(calibration.crps_scores(mean, scale, target), expected, rtol=1e-10, atol=1e-12)


def test_crps_of_one_gaussian_is_the_closed_form() -> None:
    mean, scale, target = draw_mixture(draws=1)
    z = (target - mean[0]) / scale[0]
    expected = scale[0] * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(calibration.crps_scores(mean, scale, target), expected, rtol=1e-11, atol=1e-13)


def test_ece_of_published_networks_is_the_published_one() -> None:
    shared = SHARED
    folder = next((f for f in (shared / "logits", shared / "data" / "logits") if f.is_dir()), None)
    if folder is None:
        pytest.skip(f"no published network outputs under {shared}: set ESPALIER_SHARED to the folder that holds them")
    for name, published in {"lenet5_c10_probs": 0.10789, "vgg16_c10_probs": 0.03978}.items():
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            assert calibration.ece(file["test_probs"], file["test_labels"]) == pytest.approx(published, abs=6e-6)
    with np.load(folder / "resnet110_c10.npz", allow_pickle=False) as file:
        probs, labels = softmax(file["test_logits"], axis=1), file["test_labels"]
    assert calibration.ece(probs, labels, 15) == pytest.approx(0.047504, abs=6e-7)
    assert calibration.nll(probs, labels) == pytest.approx(0.35827, abs=6e-6)
    assert calibration.accuracy(probs, labels) == 0.9356


# --- Invariances and traps ---


def test_probabilities_a_rounding_error_above_1_are_clamped() -> None:
    probs, labels = draw_probs()
    probs[:20] = np.eye(4)[labels[:20]]
    above = probs.copy()
    above[:20] *= 1 + 4e-7
    for metric in (calibration.ece, calibration.adaptive_ece, calibration.nll, calibration.brier):
        assert metric(above, labels) == metric(probs, labels)
    assert calibration.ece(softmax(above, axis=1), labels) > calibration.ece(above, labels) + 0.1  # what the trap costs


def test_the_order_of_the_examples_is_immaterial() -> None:
    probs, labels = draw_probs()
    probs = np.round(probs, 1)
    probs /= probs.sum(1, keepdims=True)  # many ties
    order = np.random.default_rng(1).permutation(len(labels))
    for metric in (calibration.ece, calibration.adaptive_ece, calibration.classwise_ece, calibration.nll):
        assert metric(probs[order], labels[order]) == pytest.approx(metric(probs, labels), rel=1e-12)
    interval = calibration.ece_interval(probs[order], labels[order])
    assert interval == pytest.approx(calibration.ece_interval(probs, labels), rel=1e-6)


def test_labels_of_any_integer_type_are_taken() -> None:
    probs, labels = draw_probs()
    assert calibration.nll(probs.astype(np.float32), labels.astype(np.uint8)) == pytest.approx(
        calibration.nll(probs, labels), rel=1e-5
    )


def test_each_mean_has_the_name_and_the_documentation_of_its_score() -> None:
    for name in ("accuracy", "nll", "brier", "gaussian_nll", "crps", "interval_coverage"):
        assert (getattr(calibration, name).__doc__ or "").startswith("Mean over examples of ")
    assert calibration.crps.__name__ == "crps"


# --- Summaries ---


def test_classification_summary_is_json_with_intervals_about_its_numbers() -> None:
    probs, labels = draw_probs()
    summary = calibration.classification_summary(probs, labels)
    assert json.loads(json.dumps(summary)) == summary
    plain = {"accuracy", "nll", "brier", "ece_10", "ece_15", "adaptive_ece", "classwise_ece"}
    floors = {"ece_10_floor", "ece_15_floor"}
    assert set(summary) == plain | {f"{k}_interval" for k in plain} | floors | {"num_examples"}
    assert summary["num_examples"] == 500
    assert summary["ece_10"] == calibration.ece(probs, labels, 10)
    assert summary["ece_15_floor"] == calibration.ece_floor(probs, 15)
    for name in ("accuracy", "nll", "brier"):
        low, high = summary[f"{name}_interval"]  # type: ignore[misc]
        assert low < summary[name] < high


def test_regression_summary_is_json_in_units_of_the_target() -> None:
    mean, scale, target = draw_mixture(n=200)
    summary = calibration.regression_summary(mean, scale, target)
    assert json.loads(json.dumps(summary)) == summary
    plain = {"rmse", "nll", "crps", "coverage_95"}
    assert set(summary) == plain | {f"{k}_interval" for k in plain} | {"num_examples"}
    for name in plain:
        low, high = summary[f"{name}_interval"]  # type: ignore[misc]
        assert low < summary[name] < high
    tenfold = calibration.regression_summary(10 * mean, 10 * scale, 10 * target)
    for name in ("rmse", "crps", "rmse_interval", "crps_interval"):
        np.testing.assert_allclose(tenfold[name], 10 * np.asarray(summary[name]), rtol=1e-10)
    assert "coverage_90" in calibration.regression_summary(mean, scale, target, level=0.9)


# --- Refusals ---

ROW = [[0.5, 0.5]]
REFUSALS: dict[str, Callable[[], object]] = {
    r"expected probs of shape \(n, C\), got \(3,\); average": lambda: calibration.nll([0.2, 0.3, 0.5], [0, 1, 2]),
    r"expected finite probs, got nan": lambda: calibration.ece([[np.nan, 1.0]], [0]),
    r"rows of probs that sum to 1, got one off by 0.5; softmax": lambda: calibration.brier([[0.5, 1.0]], [0]),
    r"rows of probs that sum to 1, got one off by 1; softmax": lambda: calibration.ece_floor([[-1.0, 2.0]]),
    r"integer labels of shape \(1,\), got float64": lambda: calibration.accuracy(ROW, [0.0]),
    r"integer labels of shape \(1,\), got int64 \(2,\)": lambda: calibration.accuracy(ROW, [0, 1]),
    r"labels in 0\.\.1, got \[-1\]; drop": lambda: calibration.classwise_ece(ROW, [-1]),
    r"labels in 0\.\.1, got \[2\]; drop": lambda: calibration.classification_summary(ROW, [2]),
    r"num_bins, a whole number of at least 1, got 0": lambda: calibration.adaptive_ece(ROW, [0], 0),
    r"num_bins, a whole number of at least 1, got 1.5": lambda: calibration.ece(ROW, [0], 1.5),
    r"one off by 0.003; divide them by their sums, if they were rounded": lambda: calibration.ece([[0.5, 0.497]], [0]),
    r"level between 0 and 1, got 95": lambda: calibration.ece_interval(ROW, [0], level=95),
    r"level between 0 and 1, got 0;": lambda: calibration.bootstrap_interval([1.0], level=0),
    r"finite scores of shape \(n,\), got shape \(1, 1\)": lambda: calibration.bootstrap_interval([[1.0]]),
    r"confidence in \[0, 1\] and hit 0 or 1": lambda: calibration.reliability([1.1], [1], 10),
    r"confidence and hit of one shape": lambda: calibration.reliability([0.1], [1, 0], 10),
    r"mean and scale \(S, n\), target \(n,\), got": lambda: calibration.rmse([0.0], [1.0], [0.0]),
    r"finite mean, scale and target": lambda: calibration.crps([[np.inf]], [[1.0]], [0.0]),
    r"scale above 0, got 0; pass": lambda: calibration.gaussian_nll([[0.0]], [[0.0]], [0.0]),
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_a_wrong_argument_is_refused_with_a_sentence(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        REFUSALS[sentence]()


def test_a_tensor_that_carries_a_gradient_gives_its_values() -> None:
    probs = torch.tensor([[0.25, 0.75]], requires_grad=True)
    assert calibration.nll(probs, torch.tensor([1])) == pytest.approx(-np.log(0.75), rel=1e-6)
    mean = torch.zeros(1, 1, requires_grad=True)
    assert calibration.rmse(mean, torch.ones(1, 1), torch.tensor([2.0])) == 2.0


def test_every_summary_scores_a_zero_in_the_precision_that_it_came_in() -> None:
    probs, y = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32), np.array([1, 0])
    said = calibration.nll(probs, y)
    assert said == pytest.approx((87.3365 + math.log(2)) / 2, abs=1e-3)
    assert calibration.classification_summary(probs, y)["nll"] == pytest.approx(said)
    assert calibration.clustered_summary(probs[None], y[None])["nll"] == pytest.approx(said)
    assert calibration.by_group(probs, y, ["a", "a"])["a"]["nll"] == pytest.approx(said)


def test_bins_and_groups_that_are_none_are_refused_in_a_sentence() -> None:
    probs, y = np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([1, 0])
    for wrong in (lambda: calibration.ece_floor(probs, 10.5), lambda: calibration.bin_gaps(probs.max(1), y, 0)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected num_bins, a whole number of at least 1"):
            wrong()
    with pytest.raises(ValueError, match="expected groups of one kind"):
        calibration.means_by_group([1.0, 2.0, 3.0], np.array(["a", None, "b"], object))
    carried = torch.tensor(probs, requires_grad=True)
    assert calibration.clustered_summary(carried[None], y[None])["nll"] > 0
