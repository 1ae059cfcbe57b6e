"""Out-of-distribution detection: how well does a score tell examples like those of training from others?

`inside` `(m,)` and `outside` `(n,)` are scores of any unit, larger for what is thought to be outside: uncertainties. Equal
scores are one threshold, and count half in the AUROC.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import binom
from scipy.stats import t as student

from espalier.calibration.proportions import clopper_pearson, of_all_or_none
from espalier.calibration.resampling import Estimate, estimates, sums, tied, vector
from espalier.calibration.scores import LEVEL, NUM_RESAMPLES, SEED, Floats, Interval, Summary, require

ACCEPTED = 0.95
"""Share of `inside` that is accepted, at least, where the false positive rate is read."""
_STEPS = 4000  # of an integral over what is sought
FEW_REJECTED = 5
"""Of `inside`, below which the threshold of that rate is known by its order statistics alone."""


def _samples(inside: ArrayLike, outside: ArrayLike) -> tuple[Floats, Floats]:
    i, o = vector(inside, "inside"), vector(outside, "outside")
    require(min(len(i), len(o)) > 1, "two scores or more of either kind", (len(i), len(o)), "score more examples")
    return i, o


def _placements(inside: Floats, outside: Floats) -> tuple[Floats, Floats]:
    """For each inside, the share of outside above it, and for each outside, that of inside below it, ties as halves."""

    def below(reference: Floats, scores: Floats) -> Floats:
        ranked = np.sort(reference)
        sides = np.searchsorted(ranked, scores, "left") + np.searchsorted(ranked, scores, "right")
        return np.asarray(sides / (2 * len(reference)))

    return 1 - below(outside, inside), below(inside, outside)


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """P(outside > inside) + 1/2 P(outside = inside) over all pairs: the area under the ROC curve (Hanley & McNeil 1982)."""
    return float(_placements(*_samples(inside, outside))[0].mean())


def auroc_interval(inside: ArrayLike, outside: ArrayLike, level: float = LEVEL) -> Estimate:
    """`auroc` and its interval by the variance of DeLong et al. 1988, taken on the logit scale, where it keeps within 0 and 1
    and covers better near them (Pepe 2003, sec. 5.2), and Student's t by the degrees of freedom of its two variances
    (Satterthwaite 1946), of which a side of few has few. In simulation it covers .95 to 1 from two scores a side on.

    Where every pair is in one order that variance is 0. Then min(m, n) disjoint pairs are, which are independent, and a
    probability theta of each has theta^min(m, n) for all: the end is Clopper & Pearson's 1934 for them. Where all scores tie
    it is 0 too, and the probability of a tie is at least that end: the area is half of it away from 0 and from 1. No interval
    says more for the side of 0 or 1 than that of all pairs in one order would.
    """
    i, o = _samples(inside, outside)
    require(0 < level < 1, "level between 0 and 1", level, f"use {LEVEL}")
    above, below = _placements(i, o)
    area, error = float(above.mean()), _error(above, below)
    least = ((1 - level) / 2) ** (1 / min(len(i), len(o)))
    if area in (0.0, 1.0) or error == 0:
        return Estimate(area, {1.0: (least, 1.0), 0.0: (0.0, 1 - least)}.get(area, (least / 2, 1 - least / 2)))
    half = _quantile(above, below, level) * error / (area * (1 - area))
    low, high = float(expit(logit(area) - half)), float(expit(logit(area) + half))
    return Estimate(area, (min(low, least), max(high, 1 - least)))


def _error(above: Floats, below: Floats) -> float:
    """The standard error of the mean of the placements: their variances over their counts, added (DeLong et al. 1988)."""
    return float(np.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)))


def _quantile(above: Floats, below: Floats, level: float) -> float:
    """How many of these errors the interval reaches: Student's t, by the freedom of the two variances (Satterthwaite 1946)."""
    parts = [(float(own.var(ddof=1)) / len(own), len(own) - 1) for own in (above, below)]
    lost = sum(part**2 / freedom for part, freedom in parts)
    return float(student.ppf((1 + level) / 2, sum(part for part, _ in parts) ** 2 / lost if lost > 0 else np.inf))


def _precision(wanted: Floats, other: Floats) -> Floats:
    """Average precision: wanted and other `(R, G)`, the thresholds in the order in which they are passed."""
    found, all_ = wanted.cumsum(1), (wanted + other).cumsum(1)
    precision = np.divide(found, all_, out=np.zeros_like(found), where=all_ > 0)
    return np.asarray((precision * wanted).sum(1) / found[:, -1])


def _at_area(area: float, odds: float, *, least: bool) -> float:
    """The least, or the largest, average precision at an AUROC, of many, `odds` others to one that is sought. With x(t) the share
    of others passed when t of those sought are found it is the integral of t / (t + odds x(t)), convex in x, the integral of x
    1 - area: largest where those others come last, x 0 up to t = area and the rest of those sought tied. Least where exchanging x
    among the t does not help, t odds / (t + odds x)^2 the same 1 / m at all of them; x = (sqrt(m t odds) - t) / odds falls again,
    which no share passed does, so from a t on it is a constant, with that mean over the rest; and 1 at most [derived]."""
    if not least:
        return area + (1 - area) / (1 + odds)
    t = (np.arange(_STEPS) + 0.5) / _STEPS

    def shares(m: float) -> Floats:
        free = np.sqrt(m * t * odds) - t
        mean = odds * (np.log((1 + free) / (t + free)) + free / (1 + free) - free / (t + free)) / (1 - t)
        start = int(np.argmax(mean <= 1 / m)) if (mean <= 1 / m).any() else _STEPS - 1
        return np.clip(np.where(np.arange(_STEPS) < start, free, free[start]) / odds, 0.0, 1.0)

    low, high = 0.0, 4 * (1 + odds) ** 2 / odds / t[0]  # at which all are 1
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if shares(middle).mean() < 1 - area else (low, middle)
    return float((t / (t + odds * shares(high))).mean())


def _false_positives(inside: Floats, outside: Floats, accepted: float) -> Floats:
    kept, passed = inside.cumsum(1), outside.cumsum(1)
    group = (kept < accepted * kept[:, -1:] - 1e-9).sum(1)[:, None]
    return np.asarray(np.take_along_axis(passed, group, 1)[:, 0] / passed[:, -1])


def _statistic(inside: Floats, outside: Floats, accepted: float) -> Callable[[Floats, Floats], Floats]:
    """Counts `(R, m)` and `(R, n)` to `aupr_in`, `aupr_out` and `fpr` `(R, 3)`."""
    require(0 < accepted <= 1, "a share accepted in (0, 1]", accepted, f"use {ACCEPTED}")
    ties, m = tied(np.concatenate([inside, outside])), len(inside)

    def statistic(of_inside: Floats, of_outside: Floats) -> Floats:
        both = np.concatenate([of_inside, of_outside], axis=1)
        own = both.copy()
        own[:, m:] = 0
        i = sums(own, ties)
        o = sums(both, ties) - i
        areas = _precision(i, o), _precision(o[:, ::-1], i[:, ::-1])
        return np.stack([*areas, _false_positives(i, o, accepted)], axis=1)

    return statistic


def _values(inside: ArrayLike, outside: ArrayLike, accepted: float = ACCEPTED) -> Floats:
    i, o = _samples(inside, outside)
    return np.asarray(_statistic(i, o, accepted)(np.ones((1, len(i))), np.ones((1, len(o))))[0])


def aupr_in(inside: ArrayLike, outside: ArrayLike) -> float:
    """Average precision with the inside as what is sought, by low scores: sum over thresholds of precision times the recall
    gained (Davis & Goadrich 2006: no interpolation). An uninformative score has m / (m + n)."""
    return float(_values(inside, outside)[0])


def aupr_out(inside: ArrayLike, outside: ArrayLike) -> float:
    """The same with the outside as what is sought, by high scores; an uninformative score has n / (m + n)."""
    return float(_values(inside, outside)[1])


def false_positive_rate(inside: ArrayLike, outside: ArrayLike, accepted: float = ACCEPTED) -> float:
    """The share of the outside that passes as inside at the lowest threshold that accepts `accepted` of the inside: "FPR at
    95 % TPR" (Liang et al. 2018), the inside being the positives."""
    return float(_values(inside, outside, accepted)[2])


def _of_few(inside: Floats, outside: Floats, accepted: float, level: float) -> Interval:
    """The false positive rate where the threshold is one of the last of few inside, beyond which no resample moves it: exact
    for the quantile, by its order statistics, and for the share of the outside that passes at either of them (Clopper & Pearson
    1934), half of what is left of the level each (Bonferroni)."""
    tail, ranked, m = (1 - level) / 4, np.sort(inside), len(inside)
    low, high = int(binom.ppf(tail, m, accepted)), int(binom.ppf(1 - tail, m, accepted)) + 1
    thresholds = ranked[low - 1] if low else -np.inf, ranked[high - 1] if high <= m else np.inf
    passed = [float((outside <= threshold).sum()) for threshold in thresholds]
    ends = [clopper_pearson(hits, len(outside), 1 - 2 * tail) for hits in passed]
    return float(ends[0][0]), float(ends[1][1])


_NAMES = ("aupr_in", "aupr_out", "false_positive_rate")


def detection_summary(
    inside: ArrayLike, outside: ArrayLike, *, accepted: float = ACCEPTED, level: float = LEVEL, seed: int = SEED,
    num_resamples: int = NUM_RESAMPLES,
) -> Summary:  # fmt: skip
    """What a record keeps, ready for JSON: `auroc` (by `auroc_interval`), `aupr_in`, `aupr_out` and `false_positive_rate`
    (percentile bootstrap, inside and outside resampled each for itself), each with its neighbour `NAME_interval`. Of a rate of 0
    or 1, which no resample changes, it is `clopper_pearson`'s; where all pairs are in one order the ends of the two others are
    the farthest that the end of the AUROC's allows (`_at_area`)."""
    i, o = _samples(inside, outside)
    found = estimates(_statistic(i, o, accepted), (len(i), len(o)), level, num_resamples, seed)
    if (rate := found[2].value) in (0.0, 1.0):
        found[2] = Estimate(rate, of_all_or_none(rate, len(o), level))
    if len(i) * (1 - accepted) < FEW_REJECTED:
        low, high = _of_few(i, o, accepted, level)
        found[2] = Estimate(rate, (min(low, found[2].interval[0]), max(high, found[2].interval[1])))
    area = auroc_interval(i, o, level)
    if area.value in (0.0, 1.0):
        other = area.interval[0] if area.value == 1 else area.interval[1]
        for place, odds in enumerate((len(o) / len(i), len(i) / len(o))):
            ends = sorted((found[place].value, _at_area(other, odds, least=area.value == 1)))
            found[place] = Estimate(found[place].value, (ends[0], ends[1]))
    named = {"auroc": area, **dict(zip(_NAMES, found, strict=True))}
    out: Summary = {"num_inside": len(i), "num_outside": len(o), **{name: each.value for name, each in named.items()}}
    return out | {f"{name}_interval": list(each.interval) for name, each in named.items()}


def detection_differences(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], *, accepted: float = ACCEPTED,
    level: float = LEVEL, seed: int = SEED, num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Estimate]:  # fmt: skip
    """First less second in each number of `detection_summary`, paired by example: the AUROC with the covariance of DeLong et
    al. 1988 and Student's t, the others by a bootstrap that resamples both alike.

    first, second: `(inside, outside)` of two scores or methods, on the same examples in the same order.
    """
    (i, o), (j, p) = _samples(*first), _samples(*second)
    shapes = (len(i), len(o)), (len(j), len(p))
    require(shapes[0] == shapes[1], "two scores of the same examples", shapes, "score both on all of them, in one order")
    own, other = _statistic(i, o, accepted), _statistic(j, p, accepted)
    found = estimates(lambda *counts: own(*counts) - other(*counts), shapes[0], level, num_resamples, seed)
    above, below = (a - b for a, b in zip(_placements(i, o), _placements(j, p), strict=True))
    mean, half = float(above.mean()), _quantile(above, below, level) * _error(above, below)
    same = np.array_equal(i, j) and np.array_equal(o, p)
    if half == 0 and not same and auroc(i, o) in (0.0, 1.0):  # of two perfect ones, what either may be off by
        half = max(float(np.ptp(auroc_interval(*pair, level).interval)) for pair in ((i, o), (j, p)))
    return {"auroc": Estimate(mean, (mean - half, mean + half)), **dict(zip(_NAMES, found, strict=True))}
