"""Calibration without bins: the smooth ECE of Blasiok & Nakkiran 2023, its interval, and the curve that belongs to it.

Residuals hit - confidence are smoothed by a Gaussian that is reflected at 0 and 1. Reflection makes the kernel the heat
kernel of the unit interval, K(f, t) = 1 + 2 sum_k exp(-(pi k sigma)^2 / 2) cos(pi k f) cos(pi k t), so smoothing multiplies
cosine coefficients: two cosine transforms on a grid of `GRID` steps, whatever the bandwidth and the number of examples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.fft import dct
from scipy.optimize import brentq
from scipy.sparse import csr_array

from espalier.calibration.resampling import Estimate, drawn, resampled, vector
from espalier.calibration.scores import LEVEL, NUM_RESAMPLES, SEED, Floats, classification, require, top_label

GRID, POINTS = 2000, 200
NARROWEST = 2 / GRID
"""Bandwidths are sought from here to 1: a narrower kernel falls between the points of the grid."""


class SmoothReliability(NamedTuple):
    """A reliability diagram without bins: at `confidence` `(POINTS + 1,)` the smoothed rate of hits, `accuracy`, nan where no
    example is near, and the `density` of confidences, whose mean is 1; and the `bandwidth` of all three."""

    confidence: Floats
    accuracy: Floats
    density: Floats
    bandwidth: float


def _gridded(weights: Floats, places: Floats) -> Floats:
    """Masses `weights` `(R, n)` at `places` `(n,)` in [0, 1], each shared linearly by the two next points: `(R, GRID + 1)`."""
    n, left = len(places), np.minimum((places * GRID).astype(int), GRID - 1)
    part, rows = places * GRID - left, np.arange(n)
    values, columns = np.concatenate([1 - part, part]), np.concatenate([left, left + 1])
    return np.asarray(weights @ csr_array((values, (np.tile(rows, 2), columns)), shape=(n, GRID + 1)))


def _smoothed(masses: Floats, bandwidth: float) -> Floats:
    """Masses on the grid, `(R, GRID + 1)`, smoothed: a density on the grid."""
    inner = masses.copy()
    inner[:, 1:-1] /= 2
    factor = np.exp(-0.5 * (np.pi * bandwidth * np.arange(GRID + 1)) ** 2)
    return np.asarray(dct(factor * dct(inner, type=1), type=1))


def _norm(density: Floats) -> Floats:
    """The integral of |density| over [0, 1], by trapezoids, `(R,)`."""
    size = np.abs(density)
    return np.asarray((size.sum(1) - (size[:, 0] + size[:, -1]) / 2) / GRID)


def _fixed_point(masses: Floats) -> float:
    """The bandwidth at which the norm of the smoothed `masses` `(1, GRID + 1)` equals it. The norm falls as the bandwidth
    grows, so there is one; if it lies below `NARROWEST`, that is it."""

    def excess(bandwidth: float) -> float:
        return float(_norm(_smoothed(masses, bandwidth))[0]) - bandwidth

    if excess(1.0) >= 0:  # by rounding, where all are certain and wrong
        return 1.0
    return NARROWEST if excess(NARROWEST) <= 0 else float(brentq(excess, NARROWEST, 1.0, xtol=1e-9))


def _pair(confidence: ArrayLike, hit: ArrayLike) -> tuple[Floats, Floats]:
    c, h = vector(confidence, "confidence"), vector(hit, "hit")
    require(c.shape == h.shape, "confidence and hit of one shape", (c.shape, h.shape), "pass one of each per example")
    inside = bool(((c >= 0) & (c <= 1) & np.isin(h, (0, 1))).all())
    require(inside, "confidence in [0, 1] and hit 0 or 1", "values outside", "clamp the one, compare for the other")
    return c, h


def smooth_error(confidence: ArrayLike, hit: ArrayLike, bandwidth: float | None = None) -> float:
    """smECE_sigma = integral over t of |1/n sum_i (hit_i - confidence_i) K_sigma(confidence_i, t)|, in [0, 1] (Blasiok &
    Nakkiran 2023, def. 6), of any confidences and hits `(n,)`: a class's probability, too.

    bandwidth: sigma. Left out, it is the one that equals the error, which needs no choice (their def. 7); the error is then
    within a constant factor of the distance to the nearest calibrated predictor (their thm. 8)."""
    c, h = _pair(confidence, hit)
    masses = _gridded((h - c)[None] / len(c), c)
    require(bandwidth is None or bandwidth > 0, "a bandwidth above 0", bandwidth, "leave it out for the fixed point")
    return min(1.0, float(_norm(_smoothed(masses, bandwidth or _fixed_point(masses)))[0]))


def smooth_error_interval(
    confidence: ArrayLike, hit: ArrayLike, level: float = LEVEL, seed: int = SEED, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """`smooth_error` and a confidence interval for the population's, its value +- q, cut at 0 and 1.

    q is the `level` quantile of the bootstrapped norm of the smoothed difference between a resample and the sample. The
    norm obeys the triangle inequality, so the error at a bandwidth is off by at most the norm of the deviation; and since
    it falls in the bandwidth, so is the fixed point [derived]. A sample without an error has no spread, so q is at least that
    quantile of the norm where the confidences are right, of hits drawn from them (Broecker & Smith 2007, consistency
    resampling). The interval is asymptotic, covers a true 0, where percentiles of resampled errors never do (`test_smooth.py`
    shows both), and is conservative elsewhere."""
    c, h = _pair(confidence, hit)
    require(0 < level < 1, "level between 0 and 1", level, f"use {LEVEL}")
    residual = (h - c) / len(c)
    masses = _gridded(residual[None], c)
    bandwidth = _fixed_point(masses)
    value = min(1.0, float(_norm(_smoothed(masses, bandwidth))[0]))

    def deviation(counts: Floats) -> Floats:
        return _norm(_smoothed(_gridded((counts - 1) * residual, c), bandwidth))

    def consistent(hits: Floats) -> Floats:
        return _norm(_smoothed(_gridded((hits - c) / len(c), c), bandwidth))

    draws = (resampled(deviation, (len(c),), num_resamples, seed), drawn(consistent, c, num_resamples, seed))
    half = max(float(np.quantile(each, level)) for each in draws)
    return Estimate(value, (max(0.0, value - half), min(1.0, value + half)))


def smooth_ece(probs: ArrayLike, labels: ArrayLike) -> float:
    """`smooth_error` of the top label, `probs` `(n, C)` and `labels` `(n,)`: a consistent neighbour of `ece` without bins."""
    return smooth_error(*top_label(*classification(probs, labels)))


def smooth_ece_interval(
    probs: ArrayLike, labels: ArrayLike, level: float = LEVEL, seed: int = SEED, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """`smooth_error_interval` of the top label."""
    return smooth_error_interval(*top_label(*classification(probs, labels)), level, seed, num_resamples)


def smooth_reliability(confidence: ArrayLike, hit: ArrayLike, bandwidth: float | None = None) -> SmoothReliability:
    """The smoothed rate of hits, sum_i hit_i K(confidence_i, t) / sum_i K(confidence_i, t) (Nadaraya 1964; Watson 1964), with
    the bandwidth of `smooth_error` unless one is given (Blasiok & Nakkiran 2023, sec. 3)."""
    c, h = _pair(confidence, hit)
    require(bandwidth is None or bandwidth > 0, "a bandwidth above 0", bandwidth, "leave it out for the fixed point")
    sigma = bandwidth or _fixed_point(_gridded((h - c)[None] / len(c), c))
    density, hits = _smoothed(_gridded(np.stack([np.ones_like(h), h]) / len(c), c), sigma)[:, :: GRID // POINTS]
    near = density > 1e-6
    rate = np.divide(hits, density, out=np.full_like(density, np.nan), where=near)
    return SmoothReliability(np.arange(POINTS + 1) / POINTS, np.clip(rate, 0, 1), np.maximum(density, 0), sigma)
