"""p-values for H: risk > alpha, from the losses of a calibration set. Finite-sample unless it says otherwise; no torch.

Losses are i.i.d.; a p-value is super-uniform under H: P(p <= u) <= u for every u, whatever the law of the losses.

    binomial     losses 0 or 1: the exact tail, the smallest that depends on the count alone
    hinge        losses in [0, 1]: never above Hoeffding-Bentkus, and as free of the order of the losses
    wsr          losses at most `upper`, no lower limit (so signed ones): a bet against H, loss by loss. It depends on the
                 order of the losses and on delta: shuffle once before looking; valid at every level, sharpest at delta
    hb           losses in [0, 1]: Hoeffding-Bentkus (Bates et al. 2021), for comparison
    hoeffding    losses in [0, 1]: exp(-2 n gap^2), for teaching
    clt          asymptotic: no guarantee at any n
    mcdiarmid    of a binned calibration error

Which one is fixed before the data are seen: binomial for 0/1, wsr for anything else. Never take the smallest of several.
Sources: Angelopoulos et al. 2021 (Learn then Test); Bates et al. 2021; Waudby-Smith & Ramdas 2024; Bentkus 2004;
Pelekis, Ramon & Wang 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm

Floats = NDArray[np.float64]


def binomial(errors: ArrayLike, n: int, alpha: float) -> Floats:
    """P(Bin(n, alpha) <= errors), exact. errors: integer counts, any shape.

    Raises ValueError for counts that are no integers: a rate times n floors one error too low half of the time.
    """
    counts = np.asarray(errors)
    if counts.dtype.kind not in "iu":
        raise ValueError(
            f"expected errors as integer counts, got {counts.dtype}: count them, do not multiply a rate by n"
        )
    if counts.size and not (counts.min() >= 0 and counts.max() <= n):
        raise ValueError(f"expected counts in 0..{n}, got {counts.min()}..{counts.max()}")
    return np.asarray(binom.cdf(counts, n, _level(alpha)), dtype=np.float64)


def hoeffding(total: ArrayLike, n: int, alpha: float) -> Floats:
    """exp(-2 n (alpha - mean)_+^2) (Hoeffding 1963, Theorem 1, its last bound). total: sums of n losses in [0, 1]."""
    gap = np.maximum(0.0, _level(alpha) - _totals(total, n) / n)
    return np.asarray(np.exp(-2 * n * gap**2))


def hoeffding_kl(total: ArrayLike, n: int, alpha: float) -> Floats:
    """exp(-n h1(min(mean, alpha), alpha)), h1 the Bernoulli divergence (Hoeffding 1963, Theorem 1)."""
    mean = np.minimum(_totals(total, n) / n, _level(alpha))
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(mean > 0, mean * np.log(mean / alpha), 0.0)
    return np.asarray(np.exp(-n * (low + (1 - mean) * np.log((1 - mean) / (1 - alpha)))))


def bentkus(total: ArrayLike, n: int, alpha: float) -> Floats:
    """e P(Bin(n, alpha) <= ceil(total)), capped at 1 (Bentkus 2004)."""
    return np.asarray(np.minimum(1.0, math.e * binom.cdf(np.ceil(_totals(total, n)), n, _level(alpha))))


def hb(total: ArrayLike, n: int, alpha: float) -> Floats:
    """Hoeffding-Bentkus: the smaller of the two, which is valid as both come from one tail bound (Bates et al. 2021)."""
    return np.minimum(hoeffding_kl(total, n, alpha), bentkus(total, n, alpha))


def hinge(total: ArrayLike, n: int, alpha: float) -> Floats:
    """min over whole a in (S, n] of E(a - B)_+ / (a - S), B ~ Bin(n, alpha), S = total; capped at 1.

    For losses in [0, 1] of mean alpha or more, E(a - sum)_+ <= E(a - B)_+ (Hoeffding's convex order), so Markov gives the
    bound for every a; the ratio is linear-fractional between whole a, so these suffice. E(a - B)_+ is the sum
    of F_n(b) over b < a. Bentkus' factor e and Hoeffding's exponential are relaxations of it (Bentkus 2004; Pelekis et al. 2015).
    """
    sums, a = _totals(total, n), np.arange(1, n + 1)
    expected = binom.cdf(a - 1, n, _level(alpha)).cumsum()
    result = np.ones(sums.size)
    for place, s in enumerate(sums.ravel()):
        first = math.floor(s)
        if first < n:
            result[place] = min(1.0, float((expected[first:] / (a[first:] - s)).min()))
    return result.reshape(sums.shape)


def wsr(losses: ArrayLike, alpha: float, delta: float, upper: float = 1.0) -> Floats:
    """1 / max_i K_i, K_i = prod_{j <= i} (1 - nu_j (L_j - alpha)), capped at 1. losses: `(..., n)` in order; returns `(...)`.

    With L and alpha in units of `upper`: nu_i = min(1, sqrt(2 ln(1 / delta) / (n s_{i-1}^2))), s_i^2 and the mean m_i
    running, (1/4 + sum (L_j - m_j)^2) / (1 + i) and (1/2 + sum L_j) / (1 + i) (Waudby-Smith & Ramdas 2024, as in Bates et
    al. 2021). Each factor is positive, and of mean at most 1 under H: Ville's inequality. One-sided: a mean above alpha
    never pays. Raises ValueError for a loss above `upper`.
    """
    scaled, level = _scaled(losses, alpha, upper)
    n = scaled.shape[-1]
    return _capped(_wealth(scaled, level, np.full(n, n), delta).max(-1))


def wsr_path(losses: ArrayLike, alpha: float, delta: float, upper: float = 1.0) -> Floats:
    """ln K_i `(..., n)` of an e-process: may be looked at after every loss, and stopped at any.

    As `wsr`, with i ln(1 + i) for the n that is not known yet (Waudby-Smith & Ramdas 2024, their predictable plug-in).
    Reject where it reaches ln(1 / delta); e-values of independent batches multiply.
    """
    scaled, level = _scaled(losses, alpha, upper)
    i = np.arange(1, scaled.shape[-1] + 1)
    return _wealth(scaled, level, i * np.log1p(i), delta)


def clt(losses: ArrayLike, alpha: float, *, asymptotic: bool = False) -> Floats:
    """Phi(sqrt(n) (mean - alpha) / sd). losses `(..., n)`. No finite-sample guarantee, and it says so: asymptotic=True."""
    if not asymptotic:
        raise ValueError("expected asymptotic=True for the CLT p-value: it promises nothing at finite n; use wsr")
    x = np.asarray(losses, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = math.sqrt(x.shape[-1]) * (x.mean(-1) - alpha) / x.std(-1, ddof=1)
    return np.asarray(np.where(np.isfinite(z), norm.cdf(z), 1.0))


def mcdiarmid(ece: ArrayLike, n: int, alpha: float) -> Floats:
    """exp(-n (alpha - ECE)_+^2 / 2) for H: binned calibration error > alpha.

    Bins fixed beforehand. The plug-in ECE over-estimates in mean (Jensen) and one example moves it by at most 2 / n
    (McDiarmid 1989). It certifies the binned error, which is at most the true one.
    """
    gap = np.maximum(0.0, _level(alpha) - np.asarray(ece, dtype=np.float64))
    return np.asarray(np.exp(-0.5 * n * gap**2))


def selective(errors: ArrayLike, accepted: ArrayLike, alpha: float, least: int = 25) -> Floats:
    """`binomial` among the accepted examples, for H: P(error | accepted) > alpha; 1 where fewer than `least` are accepted.

    Given who is accepted, errors are binomial (Angelopoulos et al. 2021, selective classification). errors, accepted:
    integer counts.
    """
    wrong, taken = np.broadcast_arrays(np.asarray(errors), np.asarray(accepted))
    if wrong.dtype.kind not in "iu" or taken.dtype.kind not in "iu" or not ((wrong >= 0) & (wrong <= taken)).all():
        raise ValueError("expected errors and accepted as integer counts, no more errors than accepted")
    pairs = zip(wrong.ravel(), taken.ravel(), strict=True)
    found = [float(binomial(k, int(n), alpha)) if n >= least else 1.0 for k, n in pairs]
    return np.array(found).reshape(wrong.shape)


def smallest_n(alpha: float, delta: float) -> int:
    """Fewest examples that certify a predictor without an error: ceil(ln delta / ln(1 - alpha))."""
    return math.ceil(math.log(_level(delta, "delta")) / math.log1p(-_level(alpha)))


OF_SUMS: dict[str, Callable[[ArrayLike, int, float], Floats]] = {"hinge": hinge, "hb": hb, "hoeffding": hoeffding}
"""Those that need the sum of losses in [0, 1] alone."""


def _wealth(scaled: Floats, level: float, horizon: NDArray[np.integer] | Floats, delta: float) -> Floats:
    """ln K_i of losses and level in units of their upper bound."""
    _level(delta, "delta")
    i = np.arange(1, scaled.shape[-1] + 1)
    mean = (0.5 + scaled.cumsum(-1)) / (1 + i)
    variance = (0.25 + ((scaled - mean) ** 2).cumsum(-1)) / (1 + i)
    before = np.concatenate([np.full((*scaled.shape[:-1], 1), 0.25), variance[..., :-1]], -1)
    bet = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (horizon * before)))
    return np.asarray(np.log1p(-bet * (scaled - level)).cumsum(-1))


def _capped(log_wealth: Floats) -> Floats:
    return np.asarray(np.exp(-np.maximum(0.0, log_wealth)))


def _scaled(losses: ArrayLike, alpha: float, upper: float) -> tuple[Floats, float]:
    x = np.asarray(losses, dtype=np.float64)
    if x.ndim == 0 or not x.shape[-1]:
        raise ValueError(f"expected losses (..., n), got shape {x.shape}")
    if not x.max() <= upper * (1 + 1e-12):
        raise ValueError(f"expected losses of at most {upper:g}, got {x.max():g}: name their upper bound")
    if not 0 < alpha < upper:
        raise ValueError(f"expected alpha in (0, {upper:g}), got {alpha:g}")
    return x / upper, alpha / upper


def _totals(total: ArrayLike, n: int) -> Floats:
    sums = np.asarray(total, dtype=np.float64)
    if sums.size and not (sums.min() >= 0 and sums.max() <= n * (1 + 1e-12)):
        raise ValueError(f"expected sums of {n} losses in [0, 1], got {sums.min():g}..{sums.max():g}")
    return np.minimum(sums, n)


def _level(alpha: float, name: str = "alpha") -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"expected {name} in (0, 1), got {alpha:g}")
    return alpha
