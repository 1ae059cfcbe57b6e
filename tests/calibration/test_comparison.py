"""Claims about calibration.comparison: scores against scores.py, intervals by simulation, debiasing by resampling."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from budget import assert_mean, assert_rate
from espalier import calibration
from espalier.calibration import comparison
from espalier.calibration.comparison import (
    Scores,
    Summary,
    between,
    crossed_interval,
    differences,
    example_counts,
    t_interval,
)  # fmt: skip
from espalier.calibration.proportions import clopper_pearson


def arm(seed: int, seeds: int = 3, n: int = 400, classes: int = 5) -> tuple[np.ndarray, np.ndarray, Scores]:
    """Predictions `(S, n, C)` of labels that every seed shares, and their scores."""
    labels = np.random.default_rng(99).integers(classes, size=n)
    logits = np.random.default_rng(seed).standard_normal((seeds, n, classes)) + 2 * np.eye(classes)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    fields = (calibration.accuracy_scores, lambda p, y: p.max(1), calibration.nll_scores, calibration.brier_scores)
    return probs, labels, Scores(*(np.stack([field(p, labels) for p in probs]) for field in fields))


# --- Scores -------------------------------------------------------------------------------------------------------
def test_the_scores_are_those_of_calibration() -> None:
    probs, labels, scores = arm(0)
    found = comparison.values(scores)
    for index, p in enumerate(probs):
        assert found["accuracy"][index] == pytest.approx(calibration.accuracy(p, labels), rel=1e-12)
        assert found["nll"][index] == pytest.approx(calibration.nll(p, labels), rel=1e-12)
        assert found["brier"][index] == pytest.approx(calibration.brier(p, labels), rel=1e-12)
        assert found["ece_15"][index] == pytest.approx(calibration.ece(p, labels, 15), rel=1e-12)


def test_a_resample_is_the_score_of_the_rows_it_drew() -> None:
    probs, labels, scores = arm(1, n=150)
    rows = np.random.default_rng(5).integers(150, size=(4, 150))
    counts = np.stack([np.bincount(row, minlength=150) for row in rows]).astype(float)
    found = scores.resampled(counts)
    for index, row in enumerate(rows):
        assert found["ece_15"][2, index] == pytest.approx(calibration.ece(probs[2][row], labels[row], 15), rel=1e-10)
        assert found["brier"][2, index] == pytest.approx(calibration.brier(probs[2][row], labels[row]), rel=1e-10)


def test_a_resample_of_a_regression_is_the_score_of_the_rows_it_drew() -> None:
    rng = np.random.default_rng(8)
    mean, scale = rng.normal(size=(4, 150)), rng.uniform(0.5, 2, (4, 150))
    target = 1.5 * rng.normal(size=150)
    scores = comparison.RegressionScores.of(mean, scale, target)
    rows = np.random.default_rng(5).integers(150, size=(4, 150))
    counts = np.stack([np.bincount(row, minlength=150) for row in rows]).astype(float)
    found, whole = scores.resampled(counts), comparison.values(scores)
    for place, row in enumerate([*rows, np.arange(150)]):
        drawn = mean[:, row], scale[:, row], target[row]
        gap = abs(calibration.interval_coverage(*drawn) - 0.95)
        expected = [calibration.rmse(*drawn), calibration.gaussian_nll(*drawn), calibration.crps(*drawn), gap]
        own = [found[name][0, place] if place < 4 else whole[name][0] for name in ("rmse", "nll", "crps", comparison.GAP)]
        assert own == pytest.approx(expected, rel=1e-9, abs=1e-12)
    worse = comparison.RegressionScores.of(mean, scale, target + 3)
    verdicts = {name: own.verdict for name, own in comparison.differences(worse, scores).items()}
    assert verdicts == {"rmse": "lost", "nll": "lost", "crps": "lost", comparison.GAP: "lost"}
    with pytest.raises(ValueError, match="same seeds and examples"):
        comparison.differences(scores, comparison.RegressionScores.of(mean[:, 1:], scale[:, 1:], target[1:]))


def test_counts_are_resamples_of_n_rows_and_repeat() -> None:
    counts = comparison.example_counts(500, 200)
    assert (counts.sum(1) == 500).all()
    np.testing.assert_array_equal(counts, comparison.example_counts(500, 200))
    assert_mean((counts == 0).mean(1), (1 - 1 / 500) ** 500)  # the chance to be left out


# --- Intervals ----------------------------------------------------------------------------------------------------
def test_the_t_interval_is_scipys_paired_one() -> None:
    rng = np.random.default_rng(0)
    after, before = rng.normal(size=(2, 4))
    theirs = stats.ttest_rel(after, before).confidence_interval(0.9)
    assert t_interval(after - before, 0.9) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert t_interval([0.3]) is None


def test_the_crossed_interval_is_the_two_way_analysis_of_variance() -> None:
    """Mean squares of a table with seeds for rows and examples for columns, by hand, in place of resampling."""
    rng = np.random.default_rng(3)
    d = 0.2 + 0.1 * rng.standard_normal((4, 1)) + 0.8 * rng.standard_normal((1, 250)) + 0.5 * rng.standard_normal((4, 250))
    resamples = d @ comparison.example_counts(250, 20_000).T / 250
    low, high = crossed_interval(d.mean(1), resamples, 0.9)
    residual = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
    noise = (residual**2).sum() / (3 * 249)
    examples = (4 * d.mean(0).var(ddof=1) - noise) / 4 / 250
    seeds = d.mean(1).var(ddof=1) / 4
    freedom = 3 * ((seeds + examples) / seeds) ** 2
    half = stats.t.ppf(0.95, freedom) * np.sqrt(seeds + examples)
    assert (low + high) / 2 == pytest.approx(d.mean(), abs=1e-12)
    assert (high - low) / 2 == pytest.approx(half, rel=0.02)  # 20,000 resamples know a variance to 1 %


def coverage(draw: Callable[[np.random.Generator], tuple[np.ndarray, float]], worlds: int = 400) -> dict[str, float]:
    """How often each interval holds the truth. draw: differences `(S, n)` of one world, and the truth.

    percentile: resample the seeds and the examples, and take the 2.5 % and 97.5 % points.
    """
    held = {"crossed": 0, "t": 0, "percentile": 0}
    for world in range(worlds):
        rng = np.random.default_rng([7, world])
        d, truth = draw(rng)
        count, n = d.shape
        resamples = d @ rng.multinomial(n, np.full(n, 1 / n), size=200).T / n
        chosen = rng.integers(count, size=(200, count))
        both = resamples[chosen, np.arange(200)[:, None]].mean(1)
        ends = {"crossed": crossed_interval(d.mean(1), resamples), "percentile": tuple(np.quantile(both, [0.025, 0.975]))}
        ends["t"] = t_interval(d.mean(1)) or (0.0, 0.0)
        for name, (low, high) in ends.items():
            held[name] += low <= truth <= high
    return {name: times / worlds for name, times in held.items()}


# sd over seeds, over examples, over both at once; with 100 examples a seed's 0.1 weighs as much as an example's 1
MIXTURES = {"seeds": (1.0, 0.0, 0.01), "examples": (0.0, 1.0, 0.1), "both": (0.3, 1.0, 0.3), "noise": (0.0, 0.0, 1.0)}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_crossed_interval_covers_what_new_seeds_give_on_new_examples(mixture: str, count: int) -> None:
    a, b, e = MIXTURES[mixture]

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, float]:
        normal = rng.standard_normal
        return 0.3 + a * normal((count, 1)) + b * normal((1, 100)) + e * normal((count, 100)), 0.3

    found = coverage(draw)
    least = {2: 0.86, 3: 0.91, 5: 0.917}[count]  # 400 worlds know it to 0.011; two seeds know too little of themselves
    assert least <= found["crossed"] <= 0.985
    if mixture == "seeds":
        assert found["percentile"] < 0.9, "a resample of so few seeds is too narrow: why it is not used"
    if mixture == "noise":
        assert found["percentile"] > 0.98, "and it counts the noise of seed and example thrice (Owen 2007)"
    if mixture == "examples":
        assert found["t"] < 0.85, "t answers another question: these very examples"


def test_the_t_interval_covers_what_new_seeds_give_on_these_examples() -> None:
    examples = np.random.default_rng(0).standard_normal((1, 100))

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, float]:
        return 0.1 * rng.standard_normal((3, 1)) + examples + rng.standard_normal((3, 100)), float(examples.mean())

    assert_rate(round(400 * coverage(draw)["t"]), 400, 0.95)


def test_the_crossed_interval_of_one_seed_covers_what_it_gives_on_new_examples() -> None:
    def draw(rng: np.random.Generator) -> tuple[np.ndarray, float]:
        return 0.3 + rng.standard_normal((1, 100)), 0.3

    assert 0.92 <= coverage(draw)["crossed"] <= 0.975


def test_the_crossed_interval_covers_a_difference_of_calibration_errors() -> None:
    """Two arms whose confidence exceeds their accuracy by gaps of 0.15 and 0.06 on average, which vary over seeds."""
    held, worlds, n = 0, 300, 1000
    for world in range(worlds):
        rng = np.random.default_rng([11, world])
        confidence = rng.uniform(0.55, 0.99, n)
        luck = rng.random(n)  # an example is hard for both arms and all seeds, in part
        arms = []
        for gap in (0.15, 0.06):
            own = gap + 0.01 * rng.standard_normal((3, 1))
            hit = (np.where(rng.random((3, n)) < 0.5, luck, rng.random((3, n))) < confidence - own).astype(float)
            arms.append(Scores(hit, np.tile(confidence, (3, 1)), hit, hit))
        counts = comparison.example_counts(n, 200, world)
        low, high = comparison.between(*(comparison.Summary.of(arm, counts) for arm in arms))["ece_15"].crossed
        held += low <= 0.09 <= high
    assert 0.91 <= held / worlds <= 0.985


def test_a_difference_is_paired_and_its_verdict_reads_the_interval() -> None:
    _, _, first = arm(0)
    better = first._replace(nll=first.nll - 0.05 - 0.01 * np.random.default_rng(0).random(first.nll.shape))
    found = comparison.differences(better, first)
    assert found["nll"].verdict == "won"
    assert found["nll"].crossed[1] < 0
    assert comparison.differences(first, better)["nll"].verdict == "lost"
    assert found["accuracy"] == comparison.Difference(0.0, (0.0, 0.0), (0.0, 0.0), "tied")
    _, _, unrelated = arm(1)
    assert comparison.differences(unrelated, first)["brier"].verdict == "tied"
    assert comparison.verdict((0.01, 0.02), 1) == "won"
    assert comparison.verdict((0.01, 0.02), -1) == "lost"
    assert comparison.verdict((-0.01, 0.02), -1) == "tied"


def test_arms_of_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same seeds and examples, got \(3, 400\) and \(3, 300\)"):
        comparison.differences(arm(0)[2], arm(0, n=300)[2])


# --- Debiased ECE -------------------------------------------------------------------------------------------------
def test_the_debiased_ece_is_the_released_one_by_resampling() -> None:
    """`normal_debiased_ce` of Kumar et al.'s uncertainty-calibration, written out: hit rates resampled in every bin."""
    probs, labels, _ = arm(4, n=900)
    p = probs[0]
    confidence, hit = p.max(1), (p.argmax(1) == labels).astype(float)
    index = np.ceil(confidence * 10).astype(int) - 1
    bins = [b for b in range(10) if (index == b).any()]
    share, said, rate, size = (
        np.array([f(index == b) for b in bins])
        for f in (np.mean, lambda m: confidence[m].mean(), lambda m: hit[m].mean(), np.sum)
    )
    plugin = (share * abs(rate - said)).sum()
    assert plugin == pytest.approx(calibration.ece(p, labels, 10), rel=1e-12)
    draws = rate + np.sqrt(rate * (1 - rate) / size) * np.random.default_rng(0).standard_normal((20_000, len(bins)))
    assert_mean(2 * plugin - (share * abs(draws - said)).sum(1), comparison.ece_debiased(p, labels, 10))


def test_debiasing_is_exact_for_wide_gaps_and_takes_two_fifths_of_the_floor() -> None:
    wide, none, plugin = [], [], []
    for world in range(400):
        rng = np.random.default_rng(world)
        confidence = rng.uniform(0.6, 0.9, 2000)
        probs = np.stack([confidence, 1 - confidence], 1)
        wide.append(comparison.ece_debiased(probs, (rng.random(2000) >= confidence - 0.2).astype(int)))
        labels = (rng.random(2000) >= confidence).astype(int)
        none.append(comparison.ece_debiased(probs, labels))
        plugin.append(calibration.ece(probs, labels))
    assert_mean(wide, 0.2)
    left = 2 - np.sqrt(2)  # (2 E|g| - E|Normal(g, s)|) / E|g| with g ~ Normal(0, s)
    assert np.mean(none) / np.mean(plugin) == pytest.approx(left, abs=0.05)


def test_a_bin_that_never_errs_has_no_noise() -> None:
    probs = np.array([[0.9, 0.1], [0.95, 0.05]])
    assert comparison.ece_debiased(probs, np.array([0, 0])) == pytest.approx(calibration.ece(probs, np.array([0, 0])))


def test_statistics_and_calibrators_need_no_torch() -> None:
    code = "import sys, espalier.calibration.comparison, espalier.calibration.calibrators; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_seeds_that_happen_to_agree_make_no_verdict() -> None:
    """Two seeds with one difference, of two of eighty examples: new examples alone vary it by more."""

    def arm(*missed: list[int]) -> Scores:
        probs = np.tile([0.9, 0.1], (len(missed), 80, 1))
        for seed, rows in enumerate(missed):
            probs[seed, rows] = [0.1, 0.9]
        each = [Scores.of(one, np.zeros(80, dtype=int)) for one in probs]
        return Scores(*(np.concatenate(parts) for parts in zip(*each, strict=True)))

    found = differences(arm([4], [14]), arm([1, 2, 3], [10, 11, 12]))["accuracy"]
    assert found.verdict == "tied"
    # Of each seed 1 / 80 and 3 / 80 err: the mean of both has an eighth of 4 / 80^2 and 2 / 80^3 less as its variance, or so.
    alone = 1.96 * np.sqrt(2 * (4 / 80 - (2 / 80) ** 2) / 4 / 80)
    assert found.crossed[1] - found.mean == pytest.approx(alone, rel=0.15)


def test_false_verdicts_of_few_examples_and_seeds_are_few() -> None:
    """Arms that err alike: at a level of .95 one in twenty may be told apart, and two seeds know little."""
    rng, found = np.random.default_rng(0), 0
    counts = example_counts(80, 200)
    for _ in range(400):
        hits = (rng.random((2, 2, 80)) < 0.9).astype(float)
        arms = [Summary.of(Scores(hit, np.full((2, 80), 0.9), hit, hit), counts) for hit in hits]
        found += between(*arms)["accuracy"].verdict != "tied"
    assert found <= 40


@pytest.mark.parametrize("level", [95, 0.0, 1.0])
def test_a_level_that_is_none_is_refused(level: float) -> None:
    for interval in (lambda: t_interval([1.0, 2.0], level), lambda: clopper_pearson(1, 2, level),
                     lambda: crossed_interval([1.0, 2.0], np.ones((2, 9)), level)):  # fmt: skip
        with pytest.raises(ValueError, match="expected level between 0 and 1, got"):
            interval()
