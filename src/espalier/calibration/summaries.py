"""Intervals for means of scores, and the summaries that a record keeps. NumPy and SciPy; no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from espalier.calibration.proportions import clopper_pearson
from espalier.calibration.scores import (
    LEVEL,
    MANY_CLASSES,
    NUM_BINS,
    NUM_RESAMPLES,
    SEED,
    Floats,
    Interval,
    Summary,
    accuracy_scores,
    adaptive_ece,
    adaptive_ece_interval,
    array,
    brier_scores,
    classification,
    classwise_ece,
    classwise_ece_interval,
    coverage_scores,
    crps_scores,
    ece,
    ece_floor,
    ece_interval,
    gaussian_nll_scores,
    nll_scores,
    require,
    squared_errors,
    tail_of,
)

FEW_ERRORS = 30
"""Of a classifier, below which the means of its losses are known no better than their rate."""
_BLOCK = 4_000_000  # examples of resamples held at once


def bootstrap_interval(
    scores: ArrayLike, level: float = LEVEL, num_resamples: int = NUM_RESAMPLES, seed: int = SEED,
    bounds: Interval = (-np.inf, np.inf),
) -> Interval:  # fmt: skip
    """Percentile bootstrap (Efron 1979) for the mean of `scores` `(n,)`, its ends farther from the mean by sqrt(n / (n - 1)) and
    by Student's t over the normal's, as that of few is too narrow (Hesterberg 2015). Of one it has no width, and of losses that
    are rarely large it knows what was seen alone (`loss_intervals`). bounds: of a score, beyond which its mean is not. A binned
    error is no mean: `ece_interval`."""
    x = np.asarray(scores, dtype=np.float64)
    fits = x.ndim == 1 and x.size > 0 and bool(np.isfinite(x).all())
    require(fits, "finite scores of shape (n,)", f"shape {x.shape}, or nan", "pass one number per example")
    rng, means, step = np.random.default_rng(seed), np.empty(num_resamples), max(1, _BLOCK // len(x))
    for start in range(0, num_resamples, step):
        block = means[start : start + step]
        block[:] = x[rng.integers(len(x), size=(len(block), len(x)), dtype=np.int32)].mean(1)
    mean, tail, n = float(x.mean()), tail_of(level), len(x)
    wider = float(student.ppf(1 - tail, n - 1) / norm.ppf(1 - tail)) * (n / (n - 1)) ** 0.5 if n > 1 else 1.0
    low, high = mean + wider * (np.quantile(means, [tail, 1 - tail]) - mean)
    return max(bounds[0], float(low)), min(bounds[1], float(high))


def loss_intervals(
    probs: ArrayLike, labels: ArrayLike, level: float = LEVEL, seed: int = SEED
) -> dict[str, Interval]:
    """Intervals for the means of NLL and Brier score of predictive distributions `(n, C)` of labels `(n,)`.

    A classifier that is rarely wrong may show no error where there are some, and resamples of right answers none at all. Of fewer
    than `FEW_ERRORS` errors the rate is known within Clopper & Pearson's 1934 interval, and each end is the farther of
    `bootstrap_interval`'s and of the mean as far off as that rate, times what an error costs beside a right answer: by what is
    said of all rows, or by those seen, whichever is more [derived]."""
    p, y = classification(probs, labels)
    rows, top = np.arange(len(p)), p.argmax(1)
    scores = {"nll": nll_scores(probs, y), "brier": brier_scores(p, y)}
    found = {name: bootstrap_interval(own, level, seed=seed, bounds=(0.0, np.inf)) for name, own in scores.items()}
    wrong = top != y
    if wrong.sum() >= FEW_ERRORS:
        return found
    least, most = (float(end) - wrong.mean() for end in clopper_pearson(int(wrong.sum()), len(p), level))
    each = {"nll": -np.log(np.maximum(p, np.finfo(np.float64).tiny)), "brier": (p**2).sum(1, keepdims=True) - 2 * p + 1}
    for name, loss in each.items():
        right, rest = loss[rows, top], np.where(np.arange(p.shape[1]) == top[:, None], 0.0, p)  # 1 - p would lose what is small
        doubt = float(rest.sum())
        told = float((rest * (loss - right[:, None])).sum()) / doubt if doubt > 0 else float(loss.max())
        seen = float((scores[name] - right)[wrong].mean()) if wrong.any() else 0.0
        cost, mean = max(told, seen), float(scores[name].mean())
        low, high = found[name]
        found[name] = max(0.0, float(min(low, mean + cost * least))), float(max(high, mean + cost * most))
    return found


def wilson(hits: Floats, level: float) -> Interval:
    """The score interval of Wilson 1927, which stays open at 0 and 1, where a bootstrap has width 0."""
    found = binomtest(int(hits.sum()), hits.size).proportion_ci(1 - 2 * tail_of(level), method="wilson")
    return float(found.low), float(found.high)


def classification_summary(probs: ArrayLike, labels: ArrayLike, *, level: float = LEVEL, seed: int = SEED) -> Summary:
    """What a record keeps of a classifier, ready for JSON: each number and its neighbour `NAME_interval` [lo, hi] by
    Wilson (accuracy), `loss_intervals` (NLL, Brier) or `ece_interval` and its like. Beyond `MANY_CLASSES` classes
    `classwise_ece` goes without: its interval would take seconds and say little."""
    p, y = classification(probs, labels)
    scores = {"accuracy": accuracy_scores(p, y), "nll": nll_scores(probs, y), "brier": brier_scores(p, y)}
    values = {name: float(score.mean()) for name, score in scores.items()}
    values |= {"adaptive_ece": adaptive_ece(p, y), "classwise_ece": classwise_ece(p, y)}
    values |= {f"ece_{bins}": ece(p, y, bins) for bins in (10, 15)}
    values |= {f"ece_{bins}_floor": ece_floor(p, bins, seed=seed) for bins in (10, 15)}
    intervals = loss_intervals(probs, y, level, seed)
    intervals |= {f"ece_{bins}": ece_interval(p, y, bins, level, seed) for bins in (10, 15)}
    intervals["accuracy"] = wilson(scores["accuracy"], level)
    intervals["adaptive_ece"] = adaptive_ece_interval(p, y, NUM_BINS, level, seed)
    if p.shape[1] <= MANY_CLASSES:
        intervals["classwise_ece"] = classwise_ece_interval(p, y, NUM_BINS, level, seed)
    out: Summary = {"num_examples": len(y), **values}
    return out | {f"{name}_interval": list(ends) for name, ends in intervals.items()}


def regression_summary(
    mean: ArrayLike, scale: ArrayLike, target: ArrayLike, *, level: float = LEVEL, seed: int = SEED
) -> Summary:
    """The same of a regression, in units of the target: rmse, nll, crps and `coverage_95`, named by `level`."""
    m, s, t = (array(a, np.float64) for a in (mean, scale, target))
    scores = {"rmse": squared_errors(m, s, t), "nll": gaussian_nll_scores(m, s, t), "crps": crps_scores(m, s, t)}
    return summary_of(scores, coverage_scores(m, s, t, level), level=level, seed=seed)


def summary_of(scores: dict[str, Floats], covered: Floats, *, level: float = LEVEL, seed: int = SEED) -> Summary:
    """The summary of a regression from its scores `(n,)`: `rmse` (squared errors), others; `covered`, 0 or 1 or a share."""
    coverage = f"coverage_{100 * level:g}"
    values = {name: float(score.mean()) for name, score in scores.items()} | {coverage: float(covered.mean())}
    least = {"rmse": 0.0, "crps": 0.0}
    intervals = {name: bootstrap_interval(score, level, seed=seed, bounds=(least.get(name, -np.inf), np.inf))
                 for name, score in scores.items()}  # fmt: skip
    shares = not np.isin(covered, (0, 1)).all()
    within = 0.0, 1.0
    intervals[coverage] = bootstrap_interval(covered, level, seed=seed, bounds=within) if shares else wilson(covered, level)
    intervals["rmse"] = (intervals["rmse"][0] ** 0.5, intervals["rmse"][1] ** 0.5)
    out: Summary = {"num_examples": len(covered), **values, "rmse": values["rmse"] ** 0.5}
    return out | {f"{name}_interval": list(ends) for name, ends in intervals.items()}
