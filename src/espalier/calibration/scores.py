"""Is the network right as often as it says? Accuracy, proper scores and calibration, each with its uncertainty.

Pure functions over NumPy arrays. Classification takes `probs` `(n, C)`, averaged over Monte Carlo draws, and `labels`
`(n,)`; regression takes the draws, `mean` and `scale` `(S, n)` of the mixture 1/S sum_s Normal(mean_si, scale_si), and
`target` `(n,)` in the same units. Scores come one per example and as means. Every refusal is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, ndtr

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]
Summary = dict[str, float | list[float]]
_P = ParamSpec("_P")

NUM_BINS = 15
LEVEL = 0.95
SEED = 0
NUM_WORLDS, NUM_RESAMPLES = 2000, 1000
MANY_CLASSES = 20
_BLOCK = 4_000_000  # simulated examples held at once: about 64 MiB at the widest


def require(holds: bool, expected: str, got: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"expected {expected}, got {got}; {remedy}")


def array(values: ArrayLike, dtype: type | None = None) -> NDArray[Any]:
    """As NumPy has it; a tensor that carries a gradient gives its values, of bfloat16, which NumPy does not know, in float32."""
    own: Any = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(own.float() if str(getattr(own, "dtype", "")) == "torch.bfloat16" else own, dtype=dtype)


def tail_of(level: float) -> float:
    require(0 < level < 1, "level between 0 and 1", level, f"use {LEVEL}")
    return (1 - level) / 2


def _mean(scores: Callable[_P, Floats]) -> Callable[_P, float]:
    @wraps(scores)
    def mean(*args: _P.args, **kwargs: _P.kwargs) -> float:
        return float(scores(*args, **kwargs).mean())

    mean.__name__ = mean.__qualname__ = scores.__name__.removesuffix("_scores")
    mean.__doc__ = f"Mean over examples of {scores.__doc__}"
    return mean


# --- Classification -----------------------------------------------------------------------------------------------
def probabilities(probs: ArrayLike) -> Floats:
    """`probs` as float64 `(n, C)` in [0, 1]. float32 means of softmaxes reach 1.0000004, which some libraries take for
    logits and push through a second softmax; here they are clamped."""
    p: Floats = array(probs, np.float64)
    require(p.ndim == 2 and p.size > 0, "probs of shape (n, C)", p.shape, "average over the draws first")
    require(bool(np.isfinite(p).all()), "finite probs", "nan or infinity", "look for a diverged fit")
    worst = max(float(np.abs(p.sum(1) - 1).max()), float(-p.min()))
    remedy = "divide them by their sums, if they were rounded" if worst < 0.05 and p.min() >= 0 else "softmax the logits"
    require(worst <= 1e-3, "rows of probs that sum to 1", f"one off by {worst:.3g}", remedy)
    return np.clip(p, 0.0, 1.0)


def classification(probs: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    """The one door: `probs` (see `probabilities`) and int64 `labels` `(n,)` in 0..C-1, or a ValueError."""
    p, y = probabilities(probs), array(labels)
    fits = y.dtype.kind in "iu" and y.shape == p.shape[:1]
    require(fits, f"integer labels of shape ({len(p)},)", f"{y.dtype} {y.shape}", "pass one class index per row")
    wrong = np.unique(y[(y < 0) | (y >= p.shape[1])])
    require(wrong.size == 0, f"labels in 0..{p.shape[1] - 1}", wrong[:3].tolist(), "drop or renumber those classes")
    return p, y.astype(np.int64)


def top_label(p: Floats, y: Ints) -> tuple[Floats, Floats]:
    return p.max(1), (p.argmax(1) == y).astype(np.float64)


def accuracy_scores(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """1{argmax_c p_ic = y_i}, `(n,)`; the lowest class wins a tie."""
    return top_label(*classification(probs, labels))[1]


def nll_scores(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """-log p_i,y_i, `(n,)`, nats (Good 1952). A zero counts as the smallest number that the dtype of probs can tell from it:
    a surprise is at most 87.3 nats in float32, 708.4 in float64."""
    p, y = classification(probs, labels)
    return -np.log(np.maximum(p[np.arange(len(y)), y], smallest(probs)))


def smallest(probs: ArrayLike) -> float:
    """The smallest normal number of the dtype of `probs`."""
    dtype = array(probs).dtype
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).tiny)


def brier_scores(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """sum_c (p_ic - 1{c = y_i})^2, `(n,)`, in [0, 2]: the sum over classes of Brier 1950."""
    p, y = classification(probs, labels)
    return np.asarray(((p - np.eye(p.shape[1])[y]) ** 2).sum(1))


accuracy, nll, brier = _mean(accuracy_scores), _mean(nll_scores), _mean(brier_scores)


# --- Binned calibration error -------------------------------------------------------------------------------------
def bin_gaps(confidence: Floats, hit: ArrayLike, num_bins: int = NUM_BINS) -> Floats:
    """(hit - confidence) 1{bin} of every example, `(n, num_bins)`: the ECE is the sum over bins of the absolute means."""
    member = equal_width(confidence, num_bins)[:, None] == np.arange(num_bins)
    return np.asarray(member * (np.asarray(hit, dtype=np.float64) - confidence)[:, None])


class Reliability(NamedTuple):
    """A reliability diagram (Murphy & Winkler 1977): `edges` `(B + 1,)`; per bin, `counts`, mean `confidence` and
    `accuracy` `(B,)`, the two means nan where a bin is empty."""

    edges: Floats
    counts: Ints
    confidence: Floats
    accuracy: Floats


def _edges(num_bins: int) -> Floats:
    whole = isinstance(num_bins, int | np.integer) and num_bins >= 1
    require(whole, "num_bins, a whole number of at least 1", num_bins, f"use {NUM_BINS}")
    return np.asarray(np.arange(num_bins + 1) / num_bins)  # rounded correctly, unlike linspace: 0.2 is the edge 3/15


def equal_width(confidence: Floats, num_bins: int) -> Ints:
    """The bin of each confidence among the B intervals (lo, hi] of width 1/B; 0 goes to the first."""
    return np.searchsorted(_edges(num_bins)[1:-1], confidence, side="left")


def equal_mass(confidence: Floats, num_bins: int) -> Ints:
    """The bin as `adaptive_ece` has it. Ties share one, so the order of examples is immaterial; bins may be empty."""
    _edges(num_bins)
    rank = -(-np.arange(1, num_bins) * len(confidence) // num_bins) - 1
    return np.searchsorted(np.sort(confidence)[rank], confidence, side="left")


def _gaps(index: Ints, residual: Floats, num_bins: int) -> Floats:
    """1/n sum_{i in b} residual_i, `(B,)`: n_b/n (acc_b - conf_b), and 0 for an empty bin."""
    return np.asarray(np.bincount(index, residual, num_bins) / len(index))


def reliability(confidence: ArrayLike, hit: ArrayLike, num_bins: int) -> Reliability:
    """Equal-width bins (lo, hi] of [0, 1], the first with 0 too, of `confidence` against `hit`, 0 or 1, both `(n,)`."""
    c, h = np.asarray(confidence, dtype=np.float64), np.asarray(hit, dtype=np.float64)
    shaped = c.ndim == 1 and c.size > 0 and c.shape == h.shape
    require(shaped, "confidence and hit of one shape (n,)", (c.shape, h.shape), "pass one of each per example")
    inside = bool(((c >= 0) & (c <= 1) & np.isin(h, (0, 1))).all())
    require(inside, "confidence in [0, 1] and hit 0 or 1", "values outside", "clamp the one, compare for the other")
    edges, index = _edges(num_bins), equal_width(c, num_bins)
    count = np.bincount(index, minlength=num_bins)
    share = np.where(count > 0, count / len(c), np.nan)
    return Reliability(edges, count, _gaps(index, c, num_bins) / share, _gaps(index, h, num_bins) / share)


def ece(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error of the top label: sum_b n_b/n |acc_b - conf_b| over equal-width bins (lo, hi], in
    [0, 1] (Naeini et al. 2015; Guo et al. 2017). Biased upwards: set it beside `ece_floor` and `ece_interval`."""
    confidence, hit = top_label(*classification(probs, labels))
    return float(np.abs(_gaps(equal_width(confidence, num_bins), hit - confidence, num_bins)).sum())


def adaptive_ece(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """`ece` over equal-mass bins (lo, hi], hi the sorted confidences of rank ceil(k n / B), tied ones in the same bin
    (Nguyen & O'Connor 2015; the top-label form of Nixon et al. 2019)."""
    confidence, hit = top_label(*classification(probs, labels))
    return float(np.abs(_gaps(equal_mass(confidence, num_bins), hit - confidence, num_bins)).sum())


def classwise_ece(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """1/C sum_c sum_b n_cb/n |freq_cb - prob_cb|, equal-width bins of each class's probability (Nixon et al. 2019)."""
    p, y = classification(probs, labels)
    cell = equal_width(p, num_bins) + num_bins * np.arange(p.shape[1])
    return float(np.abs(_gaps(cell.ravel(), (np.eye(p.shape[1])[y] - p).ravel(), num_bins * p.shape[1])).sum())


def ece_floor(probs: ArrayLike, num_bins: int = NUM_BINS, num_worlds: int = NUM_RESAMPLES, seed: int = SEED) -> float:
    """The `ece` that a perfectly calibrated predictor is expected to score with these very confidences: the mean over
    `num_worlds` simulations of hit_i ~ Bernoulli(confidence_i) (consistency resampling, Bröcker & Smith 2007)."""
    confidence = probabilities(probs).max(1)
    member = (equal_width(confidence, num_bins)[:, None] == np.arange(num_bins)).astype(np.float32)
    sharp, said = confidence.astype(np.float32), confidence @ member
    rng, n, total, step = np.random.default_rng(seed), len(sharp), 0.0, max(1, _BLOCK // len(sharp))
    for start in range(0, num_worlds, step):
        hit = rng.random((min(step, num_worlds - start), n), dtype=np.float32) < sharp
        total += float(np.abs(hit.astype(np.float32) @ member - said).sum())
    return total / (num_worlds * n)


def _bisect(accepts: Callable[[float], bool], no: float, yes: float) -> float:
    for _ in range(26):
        middle = (no + yes) / 2
        no, yes = (no, middle) if accepts(middle) else (middle, yes)
    return yes


def gap_interval(
    confidence: Floats, hit: Floats, index: Ints, num_bins: int, level: float, seed: int, num_worlds: int = NUM_WORLDS,
    effect: Floats | float = 1.0, root: Floats | None = None,
) -> Interval:  # fmt: skip
    """`ece_interval` of any confidences `(n,)` in bins `index`; effect `(B,)`, root `(B, B)`: of `clusters.dependence`."""
    n, tail, share = len(index), tail_of(level), np.bincount(index, minlength=num_bins) / len(index)
    gap, said = _gaps(index, hit - confidence, num_bins), _gaps(index, confidence, num_bins)
    depth, observed = np.abs(gap), float(np.abs(gap).sum())
    noise = np.random.default_rng(seed).standard_normal((num_worlds, num_bins)) @ (np.eye(num_bins) if root is None else root.T)
    # Were the hit rate c + g, Var(hit - c) would be c (1 - c) + g (1 - 2c): linear in the true gap.
    variance = effect * _gaps(index, confidence * (1 - confidence), num_bins) / n
    tilt = effect * (share - 2 * said) / (np.where(share > 0, share, 1) * n)
    # The gap that can be resolved: the deviation of a calibrated bin, and a count, since even confidence 1 may err.
    unit = np.sqrt(variance + 1 / n**2)
    order = np.argsort(-depth / unit, kind="stable")
    before = (np.cumsum(depth[order]) - depth[order])[np.argsort(order)]
    # Towards a hit rate of 1/2 there is most room, the rate being within 0 and 1, and most noise.
    room = np.where(tilt > 0, share - said, -said)
    # Where a calibrated bin hardly ever errs, the normal would fold too much: what is seen there is one-sided.
    scarce = np.minimum(said, share - said) < np.minimum(1.5 / n, 0.1 * share)

    def worlds(truth: Floats, one_sided: NDArray[np.bool_] | bool = False) -> Floats:
        seen = truth + noise * np.sqrt(np.maximum(variance + truth * tilt, 0))
        return np.asarray(np.where(one_sided, np.sign(room) * seen, np.abs(seen)).sum(1))

    def concentrated(size: float) -> Floats:
        return np.sign(gap) * np.clip(size - before, 0, depth)

    def spread(multiple: float) -> Floats:
        return np.sign(room) * np.minimum(multiple * unit, np.abs(room))

    # The ECE moves by counts of 1/n: half a count of continuity correction keeps the normal honest near confidence 1.
    above, below = observed - 0.5 / n, observed + 0.5 / n
    low = _bisect(lambda size: bool(np.mean(worlds(concentrated(size)) >= above) > tail), -observed, observed)
    most = float((np.abs(room) / unit).max())
    far = _bisect(lambda multiple: bool(np.mean(worlds(spread(multiple), scarce) <= below) <= tail), 0.0, most)
    return max(low, 0.0), max(low, float(np.abs(spread(far)).sum()))


def ece_interval(
    probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS, level: float = LEVEL, seed: int = SEED
) -> Interval:
    """A confidence interval for the population's binned error sum_b |E[(hit - conf) 1{conf in bin b}]|.

    The plug-in `ece` lies above its target, near 0 by about `ece_floor`, so a bootstrap around it never covers a true
    0. Here a test is inverted (Neyman 1937): a truth is kept if the observed ECE is within the central `level` of those
    it gives in simulation. Many gaps have one total, so each end takes an unfavourable one: the lower puts the total
    into the few bins of the surest gaps, which inflates the plug-in most; the upper spreads it over all in proportion
    to their noise, where it hides best. The interval may reach 0 and need not hold the plug-in value."""
    confidence, hit = top_label(*classification(probs, labels))
    return gap_interval(confidence, hit, equal_width(confidence, num_bins), num_bins, level, seed)


def adaptive_ece_interval(
    probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS, level: float = LEVEL, seed: int = SEED
) -> Interval:
    """`ece_interval` for `adaptive_ece`: its target is the population's error over the bins that this sample fixed."""
    confidence, hit = top_label(*classification(probs, labels))
    return gap_interval(confidence, hit, equal_mass(confidence, num_bins), num_bins, level, seed)


def classwise_ece_interval(
    probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS, level: float = LEVEL, seed: int = SEED,
    effect: Callable[[Floats, Ints], tuple[Floats | float, Floats | None]] = lambda residual, index: (1.0, None),
) -> Interval:  # fmt: skip
    """A confidence interval for the population's `classwise_ece`: the mean of the classes' intervals, each at the level
    1 - (1 - level) / C, so that all hold together (Bonferroni). Conservative, and slow beyond some twenty classes. effect: of
    residuals and their bins, what `gap_interval` is told."""
    p, y = classification(probs, labels)
    count = p.shape[1]
    own_level = 1 - (1 - level) / count
    num_worlds = max(NUM_WORLDS, int(16 / (1 - own_level)))  # eight worlds in either tail
    ends = []
    for own, hit in zip(p.T, (y == np.arange(count)[:, None]).astype(float), strict=True):
        index = equal_width(own, num_bins)
        ends.append(gap_interval(own, hit, index, num_bins, own_level, seed, num_worlds, *effect(hit - own, index)))
    return float(np.mean([low for low, _ in ends])), float(np.mean([high for _, high in ends]))


# --- Regression ---------------------------------------------------------------------------------------------------
def _regression(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The one door: float64 `mean`, `scale` `(S, n)` and `target` `(n,)`, finite, scale > 0, or a ValueError."""
    m, s, t = (array(a, np.float64) for a in (mean, scale, target))
    fits = m.ndim == 2 and m.size > 0 and m.shape == s.shape and t.shape == m.shape[1:]
    require(fits, "mean and scale (S, n), target (n,)", (m.shape, s.shape, t.shape), "put the draws first")
    finite = all(np.isfinite(a).all() for a in (m, s, t))
    require(finite, "finite mean, scale and target", "nan or infinity", "look for a diverged fit")
    require(bool((s > 0).all()), "scale above 0", f"{s.min():.3g}", "pass standard deviations, not their logarithms")
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
    within = s.sum(0) / np.sqrt(np.pi)  # 1/2 E|Y - Y'| of a draw with itself is scale / sqrt(pi)
    for i in range(len(m) - 1):
        within += _mean_distance(m[i] - m[i + 1 :], np.hypot(s[i], s[i + 1 :])).sum(0)
    return np.asarray(_mean_distance(t - m, s).mean(0) - within / len(m) ** 2)


def coverage_scores(mean: ArrayLike, scale: ArrayLike, target: ArrayLike, level: float = LEVEL) -> Floats:
    """1{(1 - level)/2 <= F_i(target_i) <= (1 + level)/2}, `(n,)`, F_i the distribution function of the mixture."""
    m, s, t = _regression(mean, scale, target)
    return np.asarray(np.abs(ndtr((t - m) / s).mean(0) - 0.5) <= 0.5 - tail_of(level), dtype=np.float64)


def rmse(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> float:
    """Root of the mean of `squared_errors`, in units of the target; `scale` is checked and not used."""
    return float(np.sqrt(squared_errors(mean, scale, target).mean()))


gaussian_nll, crps, interval_coverage = _mean(gaussian_nll_scores), _mean(crps_scores), _mean(coverage_scores)
