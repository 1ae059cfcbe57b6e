"""Percentile bootstrap of statistics that are no means: areas under curves, thresholds, whatever depends on a sorted order.

A statistic is a function of how often each example is in a resample, so ties and repeated examples are one case: `tied`
groups equal scores once, and every resample is sums over those groups. No sort per resample, and two methods that share
the counts are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from espalier.calibration.scores import LEVEL, NUM_RESAMPLES, SEED, Floats, Interval, Ints, array, require

_BLOCK = 1_000_000  # counts held at once: 8 MiB, and a few times that within a statistic


class Estimate(NamedTuple):
    """A number and its confidence interval."""

    value: float
    interval: Interval


class Ties(NamedTuple):
    """Scores in ascending order: `order` `(n,)` sorts them, `starts` `(G,)` are where each group of equal ones begins."""

    order: Ints
    starts: Ints


def vector(values: ArrayLike, name: str) -> Floats:
    """`values` as float64 `(n,)`, finite and not empty, or a ValueError that calls them `name`."""
    x: Floats = array(values, np.float64)
    fits = x.ndim == 1 and x.size > 0 and bool(np.isfinite(x).all())
    require(fits, f"finite {name} of shape (n,)", f"shape {x.shape}, or nan", "pass one number per example")
    return x


def tied(scores: Floats) -> Ties:
    """The groups of equal scores, ascending."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    return Ties(order, np.flatnonzero(np.concatenate([[True], ranked[1:] > ranked[:-1]])))


def sums(weights: Floats, ties: Ties) -> Floats:
    """Sums of `weights` `(R, n)` over the groups of `ties`, `(R, G)`."""
    return np.asarray(np.add.reduceat(weights[:, ties.order], ties.starts, axis=1))


def counts(rng: np.random.Generator, num_examples: int, num_resamples: int) -> Floats:
    """How often each example is in each resample of all, with replacement, `(R, n)`."""
    drawn = rng.integers(num_examples, size=(num_resamples, num_examples))
    drawn += num_examples * np.arange(num_resamples)[:, None]
    found = np.bincount(drawn.ravel(), minlength=num_examples * num_resamples)
    return found.reshape(num_resamples, num_examples).astype(np.float64)


def resampled(
    statistic: Callable[..., Floats], sizes: tuple[int, ...], num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> Floats:
    """`statistic` of every resample, `(R, ...)`. It takes counts `(r, n)` of each sample, one for each of `sizes`, which are
    resampled each for itself, and gives `(r, ...)`."""
    rng, found, step = np.random.default_rng(seed), [], max(1, _BLOCK // max(sizes))
    for start in range(0, num_resamples, step):
        rows = min(step, num_resamples - start)
        found.append(statistic(*(counts(rng, size, rows) for size in sizes)))
    return np.concatenate(found)


def drawn(statistic: Callable[[Floats], Floats], probs: Floats, num_draws: int = NUM_RESAMPLES, seed: int = SEED) -> Floats:
    """`statistic` of Bernoulli draws `(r, n)` of these probabilities `(n,)`, `(R,)`."""
    rng, found, step = np.random.default_rng(seed), [], max(1, _BLOCK // len(probs))
    for start in range(0, num_draws, step):
        found.append(statistic((rng.random((min(step, num_draws - start), len(probs))) < probs).astype(np.float64)))
    return np.concatenate(found)


def estimates(
    statistic: Callable[..., Floats], sizes: tuple[int, ...], level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES, seed: int = SEED,
) -> list[Estimate]:  # fmt: skip
    """The K numbers of `statistic` `(r, K)` on all examples, each with its percentile interval (Efron 1979)."""
    require(0 < level < 1, "level between 0 and 1", level, f"use {LEVEL}")
    values = statistic(*(np.ones((1, size)) for size in sizes))[0]
    ends = np.quantile(resampled(statistic, sizes, num_resamples, seed), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Estimate(float(v), (float(lo), float(hi))) for v, lo, hi in zip(values, *ends, strict=True)]
