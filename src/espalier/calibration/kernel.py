"""Is the whole predicted distribution calibrated? The kernel calibration error with an exact test, and Spiegelhalter's z.

The null of both tests is strong calibration: given the predictions, labels are independent draws from them, P(y_i = c) =
p_ic. That null is simple once predictions are held fixed, so labels can be resampled from it (consistency resampling,
Bröcker & Smith 2007): the p-value of `skce_test` is exact at any number of examples, as a Monte Carlo test is (Dwass 1957).
That of `spiegelhalter` is asymptotic: a normal for a sum of independent terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist, pdist
from scipy.stats import norm

from espalier.calibration.scores import SEED, Floats, Ints, classification, require

BLOCK = 1000
"""Examples that are compared with each other; more than that are split, so that time grows with their number alone."""
NUM_DRAWS = 199
"""Redrawn labels of a Monte Carlo test: with the labels at hand 200, so that 5 % are a whole number of ranks."""
_HELD = 4_000_000  # float64 numbers held at once


class Evidence(NamedTuple):
    """A statistic and the probability of one as extreme where the null of its test holds: calibration, here."""

    statistic: float
    p_value: float


def _blocks(num_examples: int, block: int) -> list[slice]:
    require(block >= 2, "a block of at least 2 examples", block, f"use {BLOCK}")
    require(num_examples >= 2, "at least two examples", num_examples, "pairs of them are compared")
    count = min(-(-num_examples // block), num_examples // 2)
    return [slice(first, None, count) for first in range(count)]


def bandwidth_of(probs: Floats, block: int = BLOCK) -> float:
    """The median distance between two predictions of the first block, 1 where that is 0. It knows no labels, so the test
    stays exact. (Gretton et al. 2012, sec. 8, for the heuristic.)"""
    return float(np.median(pdist(probs[_blocks(len(probs), block)[0]]))) or 1.0


def _grams(p: Floats, bandwidth: float | None, block: int) -> Iterator[tuple[Floats, Floats]]:
    """Predictions `(m, C)` and kernel `(m, m)`, its diagonal 0, of each block."""
    require(bandwidth is None or bandwidth > 0, "a bandwidth above 0", bandwidth, "leave it out for the median distance")
    width = bandwidth or bandwidth_of(p, block)
    for rows in _blocks(len(p), block):
        gram = np.exp(-cdist(p[rows], p[rows]) / width)
        np.fill_diagonal(gram, 0.0)
        yield p[rows], gram


def _pairs(num_examples: int, block: int) -> int:
    sizes = [len(range(num_examples)[rows]) for rows in _blocks(num_examples, block)]
    return sum(m * (m - 1) for m in sizes)


def _totals(p: Floats, gram: Floats, labels: Ints) -> Floats:
    """sum over i and j of r_i . r_j k(p_i, p_j), r = one-hot label - p, for each row of `labels` `(B, m)`: `(B,)`."""
    (m, classes), found, step = p.shape, [], max(1, _HELD // p.size)
    for start in range(0, len(labels), step):
        own = labels[start : start + step]
        residual = np.broadcast_to(-p, (len(own), m, classes)).copy()
        residual[np.arange(len(own))[:, None], np.arange(m), own] += 1
        flat = residual.transpose(1, 0, 2).reshape(m, -1)
        found.append(((gram @ flat) * flat).sum(0).reshape(len(own), classes).sum(1))
    return np.concatenate(found)


def skce(probs: ArrayLike, labels: ArrayLike, bandwidth: float | None = None, block: int = BLOCK) -> float:
    """The squared kernel calibration error, its unbiased estimate: the mean over pairs i != j of (e_i - p_i) . (e_j - p_j)
    exp(-|p_i - p_j| / bandwidth), e the one-hot labels (Widmann et al. 2019, lemma 2, with a Laplacian kernel times the
    identity). 0 in expectation if and only if the predictions are calibrated in all classes; may be below 0.

    bandwidth: in units of probs (`bandwidth_of` if left out). block: pairs are taken within blocks of about as many
    examples, every k-th, which keeps it unbiased and loses some precision (Zaremba et al. 2013).
    """
    p, y = classification(probs, labels)
    rows = _blocks(len(p), block)
    grams = _grams(p, bandwidth, block)
    total = sum(float(_totals(*own, y[None, r])[0]) for own, r in zip(grams, rows, strict=True))
    return total / _pairs(len(p), block)


def skce_test(
    probs: ArrayLike, labels: ArrayLike, bandwidth: float | None = None, block: int = BLOCK, seed: int = SEED,
    num_draws: int = NUM_DRAWS,
) -> Evidence:  # fmt: skip
    """`skce` and the p-value of strong calibration, (1 + #{redrawn >= observed}) / (1 + num_draws): labels are redrawn from
    the predictions. Exact: P(p-value <= a) <= a for every a and n, with equality where a (1 + num_draws) is whole and no
    ties occur. One-sided: miscalibration makes the statistic large. Time n block C num_draws."""
    p, y = classification(probs, labels)
    rng, found = np.random.default_rng(seed), np.zeros(num_draws + 1)
    for (own, gram), rows in zip(_grams(p, bandwidth, block), _blocks(len(p), block), strict=True):
        uniform, edges = rng.random((num_draws, len(own))), own.cumsum(1) / own.sum(1, keepdims=True)
        drawn = sum((uniform > edge).astype(np.int64) for edge in edges.T[:-1])
        redrawn = np.broadcast_to(np.asarray(drawn, dtype=np.int64), uniform.shape)
        found += _totals(own, gram, np.concatenate([y[None, rows], redrawn]))
    # A redrawn set that equals the observed one is a tie, though it was summed in another order.
    as_large = found[1:] >= found[0] - 1e-12 * np.abs(found).max()
    return Evidence(float(found[0]) / _pairs(len(p), block), (1 + int(as_large.sum())) / (1 + num_draws))


def spiegelhalter(probs: ArrayLike, labels: ArrayLike) -> Evidence:
    """Is the Brier score what the predictions themselves expect? z = sum_i (|p_i|^2 - p_i,y_i) / sqrt(sum_i (sum_c p_ic^3 -
    |p_i|^4)), two-sided by the normal: Spiegelhalter 1986 for two classes, the same moments for more. Positive where the
    score is worse than expected: over-confidence. Only errors that move the Brier score are seen."""
    p, y = classification(probs, labels)
    square = (p**2).sum(1)
    surplus = float((square - p[np.arange(len(y)), y]).sum())
    variance = float(np.maximum((p**3).sum(1) - square**2, 0.0).sum())
    if variance <= 1e-15 * len(y):  # every prediction is certain, or even over its classes: one score is possible
        return Evidence(0.0, 1.0) if abs(surplus) < 1e-9 * len(y) else Evidence(float(np.copysign(np.inf, surplus)), 0.0)
    z = surplus / variance**0.5
    return Evidence(z, float(2 * norm.sf(abs(z))))
