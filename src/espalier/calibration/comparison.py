"""Is one method better than another? Paired differences over seeds and test examples, with intervals that cover.

Pure functions over NumPy arrays; no torch. Both arms are scored on the same test examples, and a seed of the one is paired
with the same seed of the other. Two intervals answer two questions:

    t         Student's t over the differences of the S seeds, S - 1 degrees of freedom (Student 1908): what would new
              seeds give on these very test examples?
    crossed   what would new seeds give on new test examples? Seeds and examples are crossed, every seed being scored on
              every example, so the examples are resampled for all seeds and both arms at once (Owen 2007).

Resampling three seeds as well, and taking percentiles, covers far too little (the 2.5 % point of a resample of three is
all but their minimum; `test_comparison.py` shows it), so `crossed` adds what seeds contribute as Student did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import t as student

from espalier import calibration
from espalier.calibration.scores import LEVEL, NUM_BINS, NUM_RESAMPLES, SEED, Interval, array, tail_of

Floats = NDArray[np.float64]
Verdict = Literal["won", "tied", "lost"]

GAP = f"coverage_{100 * LEVEL:g}_gap"
"""|share of the targets within their central `LEVEL` - LEVEL|."""
SIGNS: Mapping[str, int] = {"accuracy": 1, "rmse": -1, "nll": -1, "brier": -1, "crps": -1, "ece_15": -1, GAP: -1}
"""The scores that are compared, of classes or of a regression: 1 where more is better, -1 where less is."""


class Scores(NamedTuple):
    """One arm on n test examples with classes, every field `(S, n)`, a row per seed."""

    hit: Floats
    confidence: Floats
    nll: Floats
    brier: Floats

    @classmethod
    def of(cls, probs: Floats, labels: ArrayLike) -> Scores:
        """Of one seed, `(1, n)`: predictive distributions `(n, C)` of class labels `(n,)`."""
        scores = (
            calibration.accuracy_scores(probs, labels),
            np.clip(array(probs).max(1), 0, 1),
            calibration.nll_scores(probs, labels),
            calibration.brier_scores(probs, labels),
        )
        return cls(*(np.asarray(each, dtype=np.float64)[None] for each in scores))

    def resampled(self, counts: ArrayLike) -> dict[str, Floats]:
        """Accuracy, NLL, Brier and ECE on every resample, `(S, R)`. counts: `example_counts`, `(R, n)`."""
        weights = np.asarray(counts)
        means = {"accuracy": self.hit, "nll": self.nll, "brier": self.brier}
        each = zip(self.hit, self.confidence, strict=True)
        ece = np.stack([_ece(hit, confidence, weights) for hit, confidence in each])
        return {name: _means(rows, weights) for name, rows in means.items()} | {"ece_15": ece}


class RegressionScores(NamedTuple):
    """One arm on n test examples with targets, every field `(S, n)`, a row per seed: squared errors, NLL, CRPS, and 1 where the
    central `LEVEL` covers the target; of several targets an example, their means."""

    squared_error: Floats
    nll: Floats
    crps: Floats
    covered: Floats

    @classmethod
    def of(cls, mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> RegressionScores:
        """Of one seed, `(1, n)`: draws of means and standard deviations `(D, n)` for targets `(n,)`."""
        error, nll = calibration.squared_errors(mean, scale, target), calibration.gaussian_nll_scores(mean, scale, target)
        crps, covered = calibration.crps_scores(mean, scale, target), calibration.coverage_scores(mean, scale, target)
        return cls(error[None], nll[None], crps[None], covered[None])

    def resampled(self, counts: ArrayLike) -> dict[str, Floats]:
        """RMSE, NLL, CRPS and how far the coverage is from `LEVEL`, on every resample, `(S, R)`. counts: `example_counts`."""
        error, nll, crps, covered = (_means(rows, np.asarray(counts)) for rows in self)
        return {"rmse": np.sqrt(error), "nll": nll, "crps": crps, GAP: np.abs(covered - LEVEL)}


class Difference(NamedTuple):
    """One arm minus another in one score: `mean` over seeds, its two intervals, and what `crossed` decides.

    t: None for a single seed. crossed: for a single seed over the examples alone.
    """

    mean: float
    t: Interval | None
    crossed: Interval
    verdict: Verdict


class Summary(NamedTuple):
    """Every score of one arm that `SIGNS` has: on all examples `(S,)`, and on every resample of them `(S, R)`."""

    values: dict[str, Floats]
    resamples: dict[str, Floats]

    @classmethod
    def of(cls, scores: Scores | RegressionScores, counts: ArrayLike | None = None) -> Summary:
        """counts: `example_counts`, the same for all arms that are compared."""
        weights = example_counts(scores.nll.shape[1]) if counts is None else counts
        return cls(values(scores), scores.resampled(weights))

    @classmethod
    def stack(cls, seeds: Sequence[Summary]) -> Summary:
        """Those of one seed each, together."""
        return cls(
            *({name: np.concatenate([seed[field][name] for seed in seeds]) for name in seeds[0].values} for field in (0, 1))
        )


def example_counts(num_examples: int, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> NDArray[np.float32]:
    """How often each example is in each resample of all, `(R, n)`: the same for every arm that is compared."""
    rng = np.random.default_rng(seed)
    counts = np.empty((num_resamples, num_examples), np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(num_examples, size=num_examples), minlength=num_examples)
    return counts


def values(scores: Scores | RegressionScores) -> dict[str, Floats]:
    """Every score on all examples, `(S,)`."""
    return {name: value[:, 0] for name, value in scores.resampled(np.ones((1, scores.nll.shape[1]))).items()}


def _means(rows: Floats, weights: NDArray[np.floating]) -> Floats:
    return np.asarray((weights @ rows.T.astype(weights.dtype) / rows.shape[1]).T, dtype=np.float64)


def _ece(hit: Floats, confidence: Floats, weights: NDArray[np.floating]) -> Floats:
    """`calibration.ece` of every resample: sum over bins of |mean of hit - confidence in the bin|."""
    gaps = weights @ calibration.bin_gaps(confidence, hit).astype(weights.dtype)
    return np.asarray(np.abs(gaps).sum(1) / len(hit), dtype=np.float64)


def t_interval(differences: ArrayLike, level: float = LEVEL) -> Interval | None:
    """mean +- t_{S-1} s / sqrt(S) over paired differences `(S,)` (Student 1908). None for a single one."""
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return None
    half = float(student.ppf(1 - tail_of(level), len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    return float(d.mean()) - half, float(d.mean()) + half


def crossed_interval(differences: ArrayLike, resamples: ArrayLike, level: float = LEVEL) -> Interval:
    """An interval for the mean over new seeds and new examples of a score's difference.

    differences: per seed on all examples, `(S,)`; resamples: the same on every resample of the examples, `(S, R)`, one
    resample shared by all seeds. With d_si = mean + a_s + b_i + e_si the variance of the mean is

        var(a) / S + var(e) / (S n)   seeds: s^2 / S of the differences, S - 1 degrees of freedom
      + var(b) / n                    examples: what all seeds share; the variance between resamples of the seeds' mean is
                                      var(b) / n + var(e) / (S n), that of a single seed var(b) / n + var(e) / n

    and the interval is mean +- t_f sqrt(seeds + examples), f = (S - 1) (1 + examples / seeds)^2 (Satterthwaite 1946; the
    examples' own n - 1 degrees count as infinitely many). It is no narrower than what new examples alone vary the mean by,
    +- z sqrt(var(b) / n + var(e) / (S n)): seeds that happen to agree say nothing of those. For a single seed only the examples
    vary. In simulation it covers 0.93 to 0.95 from three seeds on, and 0.88 to 0.95 with two, which know too little of how seeds
    vary.
    """
    d, r = np.asarray(differences, dtype=np.float64), np.asarray(resamples, dtype=np.float64)
    mean, count = float(d.mean()), len(d)
    together = float(r.mean(0).var(ddof=1))
    alone = float(student.ppf(1 - tail_of(level), np.inf)) * together**0.5
    if count == 1:
        return mean - alone, mean + alone
    single = float(r.var(axis=1, ddof=1).mean())
    seeds = float(d.var(ddof=1)) / count
    examples = max(0.0, together - (single - together) / (count - 1))
    freedom = (count - 1) * (1 + examples / seeds) ** 2 if seeds > 0 else np.inf
    half = max(alone, float(student.ppf(1 - tail_of(level), freedom)) * (seeds + examples) ** 0.5)
    return mean - half, mean + half


def verdict(interval: Interval, sign: int) -> Verdict:
    """Lost where the whole interval lies on the losing side, won where it lies on the other, else tied."""
    low, high = sorted((sign * interval[0], sign * interval[1]))
    return "lost" if high < 0 else "won" if low > 0 else "tied"


Arm = TypeVar("Arm", Scores, RegressionScores)


def differences(arm: Arm, baseline: Arm, level: float = LEVEL) -> dict[str, Difference]:
    """Arm minus baseline in every score that `SIGNS` has of them, paired by seed and by example.

    Raises ValueError for arms of different shapes.
    """
    if arm.nll.shape != baseline.nll.shape:
        raise ValueError(
            f"expected two arms scored on the same seeds and examples, got {arm.nll.shape} and {baseline.nll.shape}"
        )
    counts = example_counts(arm.nll.shape[1])
    return between(Summary.of(arm, counts), Summary.of(baseline, counts), level)


def between(arm: Summary, baseline: Summary, level: float = LEVEL) -> dict[str, Difference]:
    """`differences` of two arms that were resampled by the same counts."""
    result = {}
    for name, own in arm.values.items():
        d = own - baseline.values[name]
        crossed = crossed_interval(d, arm.resamples[name] - baseline.resamples[name], level)
        result[name] = Difference(float(d.mean()), t_interval(d, level), crossed, verdict(crossed, SIGNS[name]))
    return result


def ece_debiased(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """`calibration.ece` less its estimated bias: 2 sum_b |g_b| - sum_b E|Normal(g_b, s_b)|, g_b the gap of bin b and s_b
    = sqrt(acc_b (1 - acc_b) n_b) / n its noise.

    The correction that Kumar et al. 2019 release for the absolute error (`normal_debiased_ce`; by resampling there, here
    the mean of a folded normal in closed form). It removes the bias where gaps are wide beside their noise and about
    two fifths of it where there are none, and so may be below 0: read it beside `ece_floor`, not in its place.
    """
    p, y = array(probs, np.float64), array(labels)
    hit, confidence = calibration.accuracy_scores(p, y), np.clip(p.max(1), 0, 1)
    table = calibration.reliability(confidence, hit, num_bins)
    held = table.counts > 0
    count, rate = table.counts[held], table.accuracy[held]
    gap = count / len(y) * (rate - table.confidence[held])
    noise = np.sqrt(rate * (1 - rate) * count) / len(y)
    return float((2 * np.abs(gap) - _folded_mean(gap, noise)).sum())


def _folded_mean(mean: Floats, scale: Floats) -> Floats:
    """E|Normal(mean, scale)| (Leone et al. 1961); |mean| where the scale is 0."""
    z = mean / np.where(scale > 0, scale, 1)
    folded = scale * np.sqrt(2 / np.pi) * np.exp(-0.5 * z**2) + mean * (2 * ndtr(z) - 1)
    return np.asarray(np.where(scale > 0, folded, np.abs(mean)))
