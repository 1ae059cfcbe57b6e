"""Calibration by group and by class: who pays for a good average?

`groups` `(n,)` are names of any kind, words or numbers, one per example. `largest_gap` takes any score per example, so that
it serves regression too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.stats import norm
from scipy.stats import t as student

from espalier.calibration.kernel import Evidence
from espalier.calibration.monotone import calibrated
from espalier.calibration.resampling import Estimate, drawn, resampled, vector
from espalier.calibration.scores import (
    LEVEL,
    NUM_BINS,
    NUM_RESAMPLES,
    SEED,
    Floats,
    Interval,
    Reliability,
    Summary,
    array,
    classification,
    equal_mass,
    reliability,
    require,
    top_label,
)
from espalier.calibration.summaries import bootstrap_interval, classification_summary, wilson

NUM_PERMUTATIONS = 999
"""Of a test: with the order at hand 1000."""
_HELD = 4_000_000  # permuted scores held at once
_MANY = 2_000  # examples of which a mean is normal enough


class Gap(NamedTuple):
    """The largest difference between two groups' means: the group with the `highest`, that with the `lowest`, the difference
    and its confidence interval."""

    highest: str
    lowest: str
    value: float
    interval: Interval


def _members(groups: ArrayLike, num_examples: int) -> dict[str, NDArray[Any]]:
    """Name -> the positions of its examples, in the order of the names."""
    g = array(groups)
    fits = g.shape == (num_examples,) and not (g.dtype.kind == "f" and np.isnan(g).any())
    require(fits, f"groups of shape ({num_examples},), none nan", f"{g.dtype} {g.shape}", "name a group per example")
    require(g.dtype.kind != "O" or len({type(one) for one in g.flat}) == 1, "groups of one kind", "words beside others, or None",
            "name each in words")  # fmt: skip
    names, place = np.unique(g, return_inverse=True)
    return {str(name): np.flatnonzero(place == k) for k, name in enumerate(names)}


def by_group(
    probs: ArrayLike, labels: ArrayLike, groups: ArrayLike, *, level: float = LEVEL, seed: int = SEED
) -> dict[str, Summary]:
    """`classification_summary` of each group by its name: every score with its interval, from that group's examples alone.
    The intervals hold one by one; for all at once pass the level 1 - (1 - level) / number of groups (Bonferroni)."""
    _, y = classification(probs, labels)
    members = _members(groups, len(y))
    given = array(probs)
    return {name: classification_summary(given[own], y[own], level=level, seed=seed) for name, own in members.items()}


def means_by_group(
    scores: ArrayLike, groups: ArrayLike, level: float = LEVEL, seed: int = SEED
) -> dict[str, Estimate]:
    """The mean of `scores` `(n,)` in each group, with `bootstrap_interval`s; of scores that are all 0 or 1 with Wilson's."""
    x = vector(scores, "scores")
    members, shares = _members(groups, len(x)), bool(np.isin(x, (0, 1)).all())
    found = {}
    for name, own in members.items():
        interval = wilson(x[own], level) if shares else bootstrap_interval(x[own], level, seed=seed)
        found[name] = Estimate(float(x[own].mean()), interval)
    return found


def largest_gap(
    scores: ArrayLike, groups: ArrayLike, level: float = LEVEL, seed: int = SEED, num_resamples: int = NUM_RESAMPLES
) -> Gap:
    """The highest group mean of `scores` `(n,)` less the lowest, in units of the score, and an interval for the population's.

    The largest of several noisy differences is biased upwards: equal groups show a gap. The range of a vector is a
    seminorm, so the gap is off by at most the range of the means' deviations; the interval is the gap +- the `level`
    quantile of that range, cut at 0 [derived]. It covers a true 0 and is conservative where few groups carry the gap. Of
    scores that are 0 or 1 the deviations are those of binomials with two more of each, as a group without an error shows no
    spread (Agresti & Coull 1998); of others, of resamples within groups, widened by sqrt(n / (n - 1)) and by Student's t
    over the normal's, as a bootstrap of few is too narrow (Hesterberg 2015), and no narrower than if every group
    had the spread of all examples about their groups' means: of skewed scores one of a hundred may lack the rare large ones,
    and with them its spread. Raises ValueError for a single group, or one of a single example, which shows no spread.
    """
    x = vector(scores, "scores")
    members = _members(groups, len(x))
    require(len(members) > 1, "two groups or more", len(members), "a gap is between two")
    few = [name for name, own in members.items() if len(own) < 2]
    require(not few, "two examples or more in every group", f"one in {few[:3]}", "join small groups")
    require(0 < level < 1, "level between 0 and 1", level, f"use {LEVEL}")
    own = [x[rows] for rows in members.values()]
    means = np.array([each.mean() for each in own])

    sizes, tail = np.array([len(each) for each in own]), (1 + level) / 2
    if np.isin(x, (0, 1)).all():
        rates = (means * sizes + 2) / (sizes + 4)
        off = np.random.default_rng(seed).binomial(sizes, rates, (num_resamples, len(sizes))) / sizes - rates
        spread = np.ptp(off, axis=1)
    else:
        wider = np.sqrt(sizes / (sizes - 1)) * student.ppf(tail, sizes - 1) / norm.ppf(tail)

        def deviation(*counts: Floats) -> Floats:
            found = [w * ((c - 1) @ each) / len(each) for w, c, each in zip(wider, counts, own, strict=True)]
            return np.asarray(np.ptp(np.stack(found, axis=1), axis=1))

        spread = resampled(deviation, tuple(sizes.tolist()), num_resamples, seed)
        pooled = np.concatenate([each - mean for each, mean in zip(own, means, strict=True)])
        alike = []
        for place, each in enumerate(own, 1):
            alike.append(_means_of(pooled, len(each), num_resamples, seed + place))
        spread = np.maximum(np.sort(spread), np.sort(np.ptp(np.stack(alike, axis=1), axis=1)))
    half = float(np.quantile(spread, level))
    names, value = list(members), float(np.ptp(means))
    return Gap(names[means.argmax()], names[means.argmin()], value, (max(0.0, value - half), value + half))


def _means_of(x: Floats, size: int, num_resamples: int, seed: int) -> Floats:
    """Means of `size` draws from x, `(R,)`; of very many, normal."""
    rng = np.random.default_rng(seed)
    if size > _MANY:
        return np.asarray(rng.normal(x.mean(), x.std() / np.sqrt(size), num_resamples))
    rows = max(1, _HELD // size)
    blocks = [min(rows, num_resamples - start) for start in range(0, num_resamples, rows)]
    return np.concatenate([x[rng.integers(len(x), size=(block, size))].mean(1) for block in blocks])


def groups_differ(
    scores: ArrayLike, groups: ArrayLike, strata: ArrayLike | None = None, *, num_permutations: int = NUM_PERMUTATIONS,
    seed: int = SEED,
) -> Evidence:  # fmt: skip
    """Do `scores` `(n,)` depend on the group? A permutation test for any sizes of groups, one of a single example too.

    The statistic is the variance between groups, sum_g n_g (mean_g - mean)^2, as in an analysis of variance, of the scores less
    the means of their strata. Under the null that scores and groups are independent, given the stratum where `strata` `(n,)`
    are given, every exchange of scores within a stratum is as probable, so the p-value (1 + those at least as large) /
    (1 + permutations) is exact at any number of examples (Pitman 1937; Dwass 1957). Of scores that are 0 or 1 that is the null of
    equal means; of others a difference in spread breaks it too.

    Raises ValueError for a single group.
    """
    x = vector(scores, "scores")
    members = _members(groups, len(x))
    require(len(members) > 1, "two groups or more", len(members), "a difference is between two")
    require(num_permutations >= 1, "one permutation or more", num_permutations, f"use {NUM_PERMUTATIONS}")
    layer = np.zeros(len(x), np.int64) if strata is None else np.unique(array(strata), return_inverse=True)[1]
    require(layer.shape == x.shape, f"strata of shape ({len(x)},)", layer.shape, "name one per example")
    rest, belongs = _less_means(x[None], layer)[0], _belongs(members, len(x))
    order, rng = np.argsort(layer, kind="stable"), np.random.default_rng(seed)
    found, belongs = float(((rest @ belongs) ** 2).sum()), belongs[order]

    statistics, step = [], max(1, _HELD // len(x))
    for start in range(0, num_permutations, step):
        moved = np.argsort(layer + rng.random((min(step, num_permutations - start), len(x))), axis=1)
        statistics.append(((rest[moved] @ belongs) ** 2).sum(1))
    return _evidence(found, np.concatenate(statistics))


def _belongs(members: dict[str, NDArray[Any]], num_examples: int) -> Floats:
    """`(n, G)`: an example's weight in its group, such that a square is n_g times a squared mean."""
    found = np.zeros((num_examples, len(members)))
    for place, own in enumerate(members.values()):
        found[own, place] = 1 / np.sqrt(len(own))
    return found


def _less_means(x: Floats, layer: NDArray[Any]) -> Floats:
    """x `(R, n)` less the means of its strata `(n,)`."""
    inside = csr_array((np.ones(len(layer)), (np.arange(len(layer)), layer)))
    return np.asarray(x - (x @ inside / np.maximum(np.bincount(layer), 1))[:, layer])


def _evidence(found: float, under_null: Floats) -> Evidence:
    """The share of statistics `(R,)` that are as large as the one that was found."""
    as_large = int((under_null >= found * (1 - 1e-9)).sum())  # equal ones, but for the order of the sum
    return Evidence(found, (1 + as_large) / (1 + len(under_null)))


def calibration_differs(
    probs: ArrayLike, labels: ArrayLike, groups: ArrayLike, num_bins: int = NUM_BINS, *, seed: int = SEED
) -> Evidence:
    """Is a confidence worth the same in every group? The statistic of `groups_differ` for hit - confidence, in equal-mass bins of
    confidence, among hits that are drawn anew from one calibration map for all groups.

    A group that is harder, and knows it, is none that differs: accuracies may, and the ECEs' biases do, as they grow where groups
    are small. The statistic sees a group that is more, or less, over-confident than the others at the same confidence. The map is
    Kull et al. 2017's beta calibration of all examples: a parametric bootstrap (Davison & Hinkley 1997, sec. 4.2.3), since within
    a bin hits of unequal confidence may not be exchanged between groups whose confidences differ. Raises ValueError for a single
    group.
    """
    confidence, hit = top_label(*classification(probs, labels))
    members = _members(groups, len(hit))
    require(len(members) > 1, "two groups or more", len(members), "a difference is between two")
    rate = calibrated(confidence, hit)
    layer, belongs = equal_mass(confidence, num_bins), _belongs(members, len(hit))

    def parted(hits: Floats) -> Floats:
        return np.asarray(((_less_means(hits - confidence, layer) @ belongs) ** 2).sum(1))

    found = float(parted(hit[None].astype(np.float64))[0])
    return _evidence(found, drawn(parted, rate, NUM_PERMUTATIONS, seed))


def class_reliability(probs: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> tuple[Reliability, ...]:
    """One against the rest: a `reliability` diagram of each class's probability, C of them. The mean over classes of their
    binned errors is `classwise_ece` (Nixon et al. 2019)."""
    p, y = classification(probs, labels)
    return tuple(reliability(p[:, c], y == c, num_bins) for c in range(p.shape[1]))
