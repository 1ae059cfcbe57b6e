"""Is the network right as often as it says? Accuracy, proper scores and calibration, each with its uncertainty.

Pure functions over NumPy arrays. Classification takes `probs` `(n, C)`, already averaged over Monte Carlo draws, and
`labels` `(n,)`; regression takes the draws themselves, `mean` and `scale` `(S, n)`, whose predictive is the mixture
p(y_i) = 1/S sum_s Normal(y_i; mean_si, scale_si), and `target` `(n,)` in the same units. A proper score comes as
`*_scores`, one number per example, and as their mean. Every refusal is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, ndtr
from scipy.stats import binomtest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]
Summary = dict[str, float | list[float]]

NUM_BINS = 15
LEVEL = 0.95
SEED = 0
NUM_WORLDS = 2000
NUM_RESAMPLES = 1000
ROW_TOLERANCE = 1e-3
SMALLEST_PROB = float(np.finfo(np.float32).tiny)
"""An impossible event that happens costs -log(1.2e-38) = 87.3 nats, what float32 could still have told from 0."""
_BLOCK = 4_000_000  # simulated examples held at once: about 64 MiB at the widest


def _require(holds: bool, expected: str, got: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"expected {expected}, got {got}; {remedy}")


def _tail(level: float) -> float:
    _require(0 < level < 1, "level between 0 and 1", level, f"use {LEVEL}")
    return (1 - level) / 2


# --- Classification -----------------------------------------------------------------------------------------------


def _probabilities(probs: ArrayLike) -> Floats:
    """`probs` as float64 `(n, C)` in [0, 1]. float32 means of softmaxes reach 1.0000004, which some libraries take for
    logits and push through a second softmax; here they are clamped."""
    p = np.asarray(probs, dtype=np.float64)
    _require(p.ndim == 2 and p.size > 0, "probs of shape (n, C)", p.shape, "average over the draws first")
    _require(bool(np.isfinite(p).all()), "finite probs", "nan or infinity", "look for a diverged fit")
    worst = max(float(np.abs(p.sum(1) - 1).max()), float(-p.min()))
    what = f"probs that are at least 0 and sum to 1 within {ROW_TOLERANCE:g}"
    _require(worst <= ROW_TOLERANCE, what, f"a row off by {worst:.3g}", "apply softmax to logits")
    return np.clip(p, 0.0, 1.0)


def _classification(probs: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    """The one door: `probs` (see `_probabilities`) and int64 `labels` `(n,)` in 0..C-1, or a ValueError."""
    p, y = _probabilities(probs), np.asarray(labels)
    _require(y.dtype.kind in "iu", "integer labels", y.dtype, "pass class indices, not one-hot rows or floats")
    _require(y.shape == p.shape[:1], f"labels of shape ({len(p)},)", y.shape, "pass one label for each row of probs")
    wrong = np.unique(y[(y < 0) | (y >= p.shape[1])])
    _require(wrong.size == 0, f"labels in 0..{p.shape[1] - 1}", wrong[:3].tolist(), "drop or renumber those classes")
    return p, y.astype(np.int64)


def _top_label(p: Floats, y: Ints) -> tuple[Floats, Floats]:
    return p.max(1), (p.argmax(1) == y).astype(np.float64)


def accuracy_scores(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """1{argmax_c p_ic = y_i}, `(n,)`; the lowest class wins a tie."""
    return _top_label(*_classification(probs, labels))[1]


def nll_scores(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """-log max(p_i,y_i, `SMALLEST_PROB`), `(n,)`, nats (Good 1952)."""
    p, y = _classification(probs, labels)
    return -np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST_PROB))


def brier_scores(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """sum_c (p_ic - 1{c = y_i})^2, `(n,)`, in [0, 2]: the sum over classes of Brier 1950."""
    p, y = _classification(probs, labels)
    return np.asarray(((p - np.eye(p.shape[1])[y]) ** 2).sum(1))


def accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean of `accuracy_scores`, a fraction."""
    return float(accuracy_scores(probs, labels).mean())


def nll(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean of `nll_scores`, nats per example."""
    return float(nll_scores(probs, labels).mean())


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean of `brier_scores`, in [0, 2]."""
    return float(brier_scores(probs, labels).mean())


# --- Binned calibration error -------------------------------------------------------------------------------------


class Reliability(NamedTuple):
    """A reliability diagram (Murphy & Winkler 1977): `edges` `(B + 1,)`; per bin, `count`, mean `confidence` and
    `accuracy` `(B,)`, the two means nan where a bin is empty."""

    edges: Floats
    count: Ints
    confidence: Floats
    accuracy: Floats


def _edges(num_bins: int) -> Floats:
    _require(num_bins >= 1, "num_bins of at least 1", num_bins, f"use {NUM_BINS}")
    # i / B and not linspace: correctly rounded, so that a confidence written 0.2 is on the edge 3/15.
    return np.asarray(np.arange(num_bins + 1) / num_bins)


def _equal_width(confidence: Floats, num_bins: int) -> Ints:
    """The bin of each confidence among the B intervals (lo, hi] of width 1/B; 0 goes to the first."""
    return np.searchsorted(_edges(num_bins)[1:-1], confidence, side="left")


def _equal_mass(confidence: Floats, num_bins: int) -> Ints:
    """Bins (lo, hi] whose upper edges are the sorted confidences at ranks ceil(k n / B). Tied confidences share a bin,
    so the order of the examples is immaterial; a bin whose edges coincide is empty."""
    _edges(num_bins)
    rank = -(-np.arange(1, num_bins) * len(confidence) // num_bins) - 1
    return np.searchsorted(np.sort(confidence)[np.maximum(rank, 0)], confidence, side="left")


def _gaps(index: Ints, residual: Floats, num_bins: int) -> Floats:
    """1/n sum_{i in b} residual_i, `(B,)`: n_b/n (acc_b - conf_b), and 0 for an empty bin."""
    return np.asarray(np.bincount(index, residual, num_bins) / len(index))


def reliability(confidence: ArrayLike, hit: ArrayLike, num_bins: int) -> Reliability:
    """Equal-width bins (lo, hi] of [0, 1], the first of which holds 0 too, of `confidence` `(n,)` against `hit` `(n,)`,
    0 or 1. ValueError for other shapes, or a confidence outside [0, 1]."""
    c, h = np.asarray(confidence, dtype=np.float64), np.asarray(hit, dtype=np.float64)
    fits = c.ndim == 1 and c.size > 0 and c.shape == h.shape
    _require(fits, "confidence and hit of one shape (n,)", f"{c.shape} and {h.shape}", "pass one of each per example")
    inside = bool(((c >= 0) & (c <= 1)).all() and np.isin(h, (0, 1)).all())
    _require(inside, "confidence in [0, 1] and hit 0 or 1", "values outside", "clamp the one, compare for the other")
    edges, index = _edges(num_bins), _equal_width(c, num_bins)
    count = np.bincount(index, minlength=num_bins)
    share = np.where(count > 0, count / len(c), np.nan)
    return Reliability(edges, count, _gaps(index, c, num_bins) / share, _gaps(index, h, num_bins) / share)


def ece(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error of the top label: sum_b n_b/n |acc_b - conf_b| over equal-width bins (lo, hi], in
    [0, 1] (Naeini et al. 2015; Guo et al. 2017). Biased upwards: set it beside `ece_floor` and `ece_interval`."""
    confidence, hit = _top_label(*_classification(probs, labels))
    return float(np.abs(_gaps(_equal_width(confidence, num_bins), hit - confidence, num_bins)).sum())


def adaptive_ece(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """`ece` over bins of equal mass: upper edges at the sorted confidences of rank ceil(k n / B), ties in one bin
    (Nguyen & O'Connor 2015; the top-label form of Nixon et al. 2019)."""
    confidence, hit = _top_label(*_classification(probs, labels))
    return float(np.abs(_gaps(_equal_mass(confidence, num_bins), hit - confidence, num_bins)).sum())


def classwise_ece(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """1/C sum_c sum_b n_cb/n |freq_cb - prob_cb| over equal-width bins of each class's own probability (Kull et al.
    2019; the static calibration error of Nixon et al. 2019)."""
    p, y = _classification(probs, labels)
    cell = _equal_width(p, num_bins) + num_bins * np.arange(p.shape[1])
    return float(np.abs(_gaps(cell.ravel(), (np.eye(p.shape[1])[y] - p).ravel(), cell.size)).sum())


def ece_floor(probs: ArrayLike, num_bins: int = NUM_BINS, num_worlds: int = NUM_RESAMPLES, seed: int = SEED) -> float:
    """The `ece` that a perfectly calibrated predictor is expected to score with these very confidences: the mean over
    `num_worlds` simulations of hit_i ~ Bernoulli(confidence_i) (consistency resampling, Bröcker & Smith 2007)."""
    confidence = _probabilities(probs).max(1)
    index = _equal_width(confidence, num_bins)
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    sharp, said = confidence[order].astype(np.float32), np.add.reduceat(confidence[order], starts)
    rng, n, total, step = np.random.default_rng(seed), len(index), 0.0, max(1, _BLOCK // len(index))
    for start in range(0, num_worlds, step):
        hit = rng.random((min(step, num_worlds - start), n), dtype=np.float32) < sharp
        total += float(np.abs(np.add.reduceat(hit, starts, axis=1, dtype=np.float32) - said).sum())
    return total / (num_worlds * n)


class _Cells(NamedTuple):
    """The bins as a normal experiment. Were the true gaps m, the observed ones would be independent and
    Normal(m_b, variance_b + m_b tilt_b): Var(hit - c) = c(1 - c) + g(1 - 2c) when the hit rate is c + g."""

    gap: Floats
    variance: Floats
    tilt: Floats
    unit: Floats  # the gap that n examples can resolve: standard deviation were the bin calibrated, one count added
    room: Floats  # the furthest gap towards a hit rate of 1/2 and beyond, signed: the hit rate stays within 0 and 1


def _cells(confidence: Floats, hit: Floats, index: Ints, num_bins: int) -> _Cells:
    n, share = len(index), np.bincount(index, minlength=num_bins) / len(index)
    said, unsaid = _gaps(index, confidence, num_bins), _gaps(index, 1 - confidence, num_bins)
    variance = _gaps(index, confidence * (1 - confidence), num_bins) / n
    return _Cells(
        gap=_gaps(index, hit - confidence, num_bins),
        variance=variance,
        tilt=(unsaid - said) / (np.where(share > 0, share, 1) * n),
        unit=np.sqrt(variance + (share > 0) / n**2),
        room=np.where(unsaid > said, unsaid, -said),
    )


def _concentrated(cells: _Cells, size: float) -> Floats:
    """The part of the observed gaps that totals `size`, in as few bins as it fits: the surest gaps are filled first.
    Bins without a gap add most to the plug-in ECE, so this is the truth of that size that is inflated most."""
    depth = np.abs(cells.gap)
    order = np.argsort(-depth / np.maximum(cells.unit, SMALLEST_PROB), kind="stable")
    before = np.empty_like(depth)
    before[order] = np.cumsum(depth[order]) - depth[order]
    return np.sign(cells.gap) * np.clip(size - before, 0, depth)


def _spread(cells: _Cells, multiple: float) -> Floats:
    """The same `multiple` of the resolution in every bin, towards a hit rate of 1/2, where there is most room and most
    noise. Gaps like these inflate the plug-in ECE least: the truth of their size that hides best."""
    return np.sign(cells.room) * np.minimum(multiple * cells.unit, np.abs(cells.room))


def _bisect(accepts: Callable[[float], bool], no: float, yes: float) -> float:
    for _ in range(26):
        middle = (no + yes) / 2
        no, yes = (no, middle) if accepts(middle) else (middle, yes)
    return yes


def _gap_interval(cells: _Cells, n: int, level: float, seed: int) -> Interval:
    noise = np.random.default_rng(seed).standard_normal((NUM_WORLDS, len(cells.gap)))
    observed, tail, half = float(np.abs(cells.gap).sum()), _tail(level), 0.5 / n

    def worlds(gap: Floats) -> Floats:
        deviation = np.sqrt(np.maximum(cells.variance + gap * cells.tilt, 0))
        return np.asarray(np.abs(gap + noise * deviation).sum(1))

    # The ECE moves by counts of 1/n: half a count of continuity correction keeps the normal honest near confidence 1.
    def reaches(size: float) -> bool:
        return bool(np.mean(worlds(_concentrated(cells, size)) >= observed - half) > tail)

    def exceeds(multiple: float) -> bool:
        return bool(np.mean(worlds(_spread(cells, multiple)) <= observed + half) <= tail)

    low = 0.0 if reaches(0.0) else _bisect(reaches, 0.0, observed)
    largest = float(np.max(np.abs(cells.room) / np.maximum(cells.unit, SMALLEST_PROB)))
    high = float(np.abs(_spread(cells, _bisect(exceeds, 0.0, largest))).sum())
    return low, max(low, high)


def ece_interval(
    probs: ArrayLike,
    labels: ArrayLike,
    num_bins: int = NUM_BINS,
    level: float = LEVEL,
    seed: int = SEED,
    *,
    equal_mass: bool = False,
) -> Interval:
    """A confidence interval for the population's binned error sum_b |E[(hit - conf) 1{conf in bin b}]|.

    The plug-in `ece` lies above its target, by about `ece_floor` near 0, so a bootstrap around it misses and a true 0
    is never covered. Here a test is inverted (Neyman 1937): a truth is kept if the observed ECE is within the central
    `level` of the ECEs it gives in simulation. Many gaps have one total, so each end takes an unfavourable one: the
    lower end puts the total into few bins, the upper end spreads it over all. Coverage is at least nominal to within
    simulation error; the interval may reach 0 and need not contain the plug-in value. `equal_mass` serves
    `adaptive_ece`: its target is the error over the bins that this sample fixed.
    """
    confidence, hit = _top_label(*_classification(probs, labels))
    index = (_equal_mass if equal_mass else _equal_width)(confidence, num_bins)
    return _gap_interval(_cells(confidence, hit, index, num_bins), len(hit), level, seed)


# --- Regression ---------------------------------------------------------------------------------------------------


def _regression(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The one door: float64 `mean`, `scale` `(S, n)` and `target` `(n,)`, finite, scale > 0, or a ValueError."""
    m, s, t = (np.asarray(a, dtype=np.float64) for a in (mean, scale, target))
    shapes = f"{m.shape}, {s.shape} and {t.shape}"
    fits = m.ndim == 2 and m.size > 0 and m.shape == s.shape and t.shape == m.shape[1:]
    _require(fits, "mean and scale of shape (S, n) and target (n,)", shapes, "put the draws first")
    finite = all(bool(np.isfinite(a).all()) for a in (m, s, t))
    _require(finite, "finite mean, scale and target", "nan or infinity", "look for a diverged fit")
    _require(bool((s > 0).all()), "scale above 0", f"{s.min():.3g}", "pass standard deviations, not their logarithms")
    return m, s, t


def squared_errors(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> Floats:
    """(target_i - 1/S sum_s mean_si)^2, `(n,)`, in squared units of the target."""
    m, _, t = _regression(mean, scale, target)
    return np.asarray((t - m.mean(0)) ** 2)


def gaussian_nll_scores(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> Floats:
    """-log 1/S sum_s Normal(target_i; mean_si, scale_si), `(n,)`, nats: of the mixture, not the draws' average."""
    m, s, t = _regression(mean, scale, target)
    log_density = -0.5 * ((t - m) / s) ** 2 - np.log(s)
    return np.asarray(np.log(len(m) * np.sqrt(2 * np.pi)) - logsumexp(log_density, axis=0))


def _mean_distance(shift: Floats, scale: Floats) -> Floats:
    """E|X| for X ~ Normal(shift, scale)."""
    z = shift / scale
    return np.asarray(scale * np.sqrt(2 / np.pi) * np.exp(-0.5 * z**2) + shift * (2 * ndtr(z) - 1))


def crps_scores(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> Floats:
    """E|Y - target_i| - 1/2 E|Y - Y'| with Y, Y' from the mixture, `(n,)`, in units of the target: the closed form of
    Grimit et al. 2006 for the score of Gneiting & Raftery 2007. Time S^2 n; memory that of the input."""
    m, s, t = _regression(mean, scale, target)
    draws, within = len(m), s.sum(0) / np.sqrt(np.pi)  # 1/2 E|Y - Y'| of a draw with itself is scale / sqrt(pi)
    for i in range(draws - 1):
        within += _mean_distance(m[i] - m[i + 1 :], np.hypot(s[i], s[i + 1 :])).sum(0)
    return np.asarray(_mean_distance(t - m, s).mean(0) - within / draws**2)


def coverage_scores(mean: ArrayLike, scale: ArrayLike, target: ArrayLike, level: float = LEVEL) -> Floats:
    """1{(1 - level)/2 <= F_i(target_i) <= (1 + level)/2}, `(n,)`, with F_i the mixture's distribution function: is the
    target in the central `level` interval? ValueError unless 0 < level < 1."""
    m, s, t = _regression(mean, scale, target)
    return np.asarray(np.abs(ndtr((t - m) / s).mean(0) - 0.5) <= 0.5 - _tail(level), dtype=np.float64)


def rmse(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> float:
    """Root of the mean of `squared_errors`, in units of the target; `scale` is checked and not used."""
    return float(np.sqrt(squared_errors(mean, scale, target).mean()))


def gaussian_nll(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> float:
    """Mean of `gaussian_nll_scores`, nats per example."""
    return float(gaussian_nll_scores(mean, scale, target).mean())


def crps(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> float:
    """Mean of `crps_scores`, in units of the target."""
    return float(crps_scores(mean, scale, target).mean())


def interval_coverage(mean: ArrayLike, scale: ArrayLike, target: ArrayLike, level: float = LEVEL) -> float:
    """Mean of `coverage_scores`: the fraction of targets inside the central `level` interval."""
    return float(coverage_scores(mean, scale, target, level).mean())


# --- Intervals for means, and the two summaries -------------------------------------------------------------------


def bootstrap_interval(
    scores: ArrayLike, level: float = LEVEL, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> Interval:
    """Percentile bootstrap over examples for the mean of `scores` `(n,)` (Efron 1979). For means only: a binned error
    is not one, see `ece_interval`. ValueError for scores that are not 1-D and finite, or a level outside (0, 1)."""
    x = np.asarray(scores, dtype=np.float64)
    _require(x.ndim == 1 and x.size > 0, "scores of shape (n,)", x.shape, "pass one score per example")
    _require(bool(np.isfinite(x).all()), "finite scores", "nan or infinity", "drop the examples without a score")
    tail = _tail(level)
    rng, means, step = np.random.default_rng(seed), np.empty(num_resamples), max(1, _BLOCK // len(x))
    for start in range(0, num_resamples, step):
        block = means[start : start + step]
        block[:] = x[rng.integers(len(x), size=(len(block), len(x)), dtype=np.int32)].mean(1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _proportion_interval(hits: Floats, level: float) -> list[float]:
    """The score interval of Wilson 1927, which stays open at 0 and 1, where a bootstrap has width 0."""
    _tail(level)
    found = binomtest(int(hits.sum()), hits.size).proportion_ci(level, method="wilson")
    return [float(found.low), float(found.high)]


def _mean_and_interval(name: str, scores: Floats, level: float, seed: int) -> Summary:
    return {name: float(scores.mean()), f"{name}_interval": list(bootstrap_interval(scores, level, seed=seed))}


def classification_summary(probs: ArrayLike, labels: ArrayLike, *, level: float = LEVEL, seed: int = SEED) -> Summary:
    """What a record keeps of a classifier, ready for JSON: each number and its neighbour `NAME_interval` [lo, hi].

    Wilson for the accuracy, bootstrap for NLL and Brier, `ece_interval` for the binned errors. `classwise_ece` has no
    interval: its cells are dependent across classes, and one that ignored this would not cover.
    """
    p, y = _classification(probs, labels)
    hits = accuracy_scores(p, y)
    out: Summary = {"num_examples": len(y), "accuracy": float(hits.mean())}
    out["accuracy_interval"] = _proportion_interval(hits, level)
    out |= _mean_and_interval("nll", nll_scores(p, y), level, seed)
    out |= _mean_and_interval("brier", brier_scores(p, y), level, seed)
    for bins in (10, 15):
        out[f"ece_{bins}"] = ece(p, y, bins)
        out[f"ece_{bins}_interval"] = list(ece_interval(p, y, bins, level, seed))
        out[f"ece_{bins}_floor"] = ece_floor(p, bins, seed=seed)
    out["adaptive_ece"] = adaptive_ece(p, y)
    out["adaptive_ece_interval"] = list(ece_interval(p, y, level=level, seed=seed, equal_mass=True))
    return out | {"classwise_ece": classwise_ece(p, y)}


def regression_summary(
    mean: ArrayLike, scale: ArrayLike, target: ArrayLike, *, level: float = LEVEL, seed: int = SEED
) -> Summary:
    """The same of a regression, in units of the target: rmse, nll, crps and `coverage_95` (named by `level`, which is
    also that of the intervals: bootstrap, and Wilson for the coverage)."""
    m, s, t = _regression(mean, scale, target)
    errors, covered, name = squared_errors(m, s, t), coverage_scores(m, s, t, level), f"coverage_{100 * level:g}"
    out: Summary = {"num_examples": len(t), "rmse": float(np.sqrt(errors.mean()))}
    out["rmse_interval"] = np.sqrt(bootstrap_interval(errors, level, seed=seed)).tolist()
    out |= _mean_and_interval("nll", gaussian_nll_scores(m, s, t), level, seed)
    out |= _mean_and_interval("crps", crps_scores(m, s, t), level, seed)
    return out | {name: float(covered.mean()), f"{name}_interval": _proportion_interval(covered, level)}
