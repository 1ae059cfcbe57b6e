"""Temperature: one number that sharpens or softens, of predictions and of the draws that are averaged into one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize_scalar
from scipy.special import softmax

from espalier.calibration.scores import Floats, array, classification, probabilities, smallest
from espalier.calibration.uncertainty import class_draws

HOTTEST = 100.0
"""Temperatures are sought between 1 / HOTTEST and HOTTEST: labels that are all right, or unrelated, have no optimum."""


def fit_temperature(probs: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T that minimises the mean of -log q_i,y_i, q = `apply_temperature(probs, T)` (Guo et al. 2017).

    In 1 / T the mean is convex with derivative mean_i(E_q[log p_i] - log p_i,y_i), whose zero is found. Where it has none
    within the limits, T is the limit: `HOTTEST` for confidence that is worth nothing, its inverse where no label is wrong.
    Raises ValueError for arrays that do not fit together.
    """
    _, y = classification(probs, labels)
    logs = log_probs(probs)
    said = logs[np.arange(len(y)), y].mean()

    def slope(log_temperature: float) -> float:
        """Of the mean in 1 / T: grows with 1 / T."""
        q = softmax(logs * np.exp(-log_temperature), axis=1)
        return float((q * logs).sum(1).mean() - said)

    hottest, coldest = np.log(HOTTEST), -np.log(HOTTEST)
    if slope(hottest) >= 0:
        return HOTTEST
    if slope(coldest) <= 0:
        return 1 / HOTTEST
    return float(np.exp(brentq(slope, coldest, hottest, xtol=1e-12)))


def apply_temperature(probs: ArrayLike, temperature: float) -> Floats:
    """p^(1/T) / sum_c p_c^(1/T), `(n, C)`: softmax(z / T) where p = softmax(z) (Guo et al. 2017, sec. 4.2). For an average
    over draws it is the averaged probabilities that are tempered. Raises ValueError for a temperature not above 0."""
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    return np.asarray(softmax(log_probs(probs) / temperature, axis=1), dtype=np.float64)


def log_probs(probs: ArrayLike) -> Floats:
    """log p `(n, C)`, a zero taken for the smallest number that the dtype of `probs` can tell from it."""
    return np.asarray(np.log(np.maximum(probabilities(probs), smallest(probs))))


def search(loss: Callable[[float], float]) -> float:
    """The x in [1 / HOTTEST, HOTTEST] of the lowest loss, to 1e-8 relative: the best of 41 on a logarithmic grid, refined
    between its neighbours (Brent 1973), since a mixture's loss may have several valleys."""
    grid = np.linspace(-np.log(HOTTEST), np.log(HOTTEST), 41)
    best = int(np.argmin([loss(float(np.exp(x))) for x in grid]))
    ends = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 40)])
    found = minimize_scalar(lambda x: loss(float(np.exp(x))), bounds=ends, method="bounded", options={"xatol": 1e-8})
    kept = float(np.exp(found.x))
    limit = float(np.exp(grid[best]))
    return kept if best not in (0, 40) or loss(kept) < loss(limit) else limit


def fit_draws_temperature(draws: ArrayLike, labels: ArrayLike) -> float:
    """The T that minimises the mean NLL of the mixture, -log of `apply_draws_temperature(draws, T)` at the label (Rahaman &
    Thiery 2021: an ensemble is pooled first or tempered first, and the two differ).

    draws `(S, n, C)`, labels `(n,)`. Not convex: searched between the limits of `fit_temperature`."""
    p = class_draws(draws)
    _, y = classification(p.mean(0), labels)
    logs = np.stack([log_probs(each) for each in array(draws)])
    at = np.arange(len(y))
    return search(lambda t: float(-np.log(np.maximum(_tempered_mean(logs, t)[at, y], smallest(p))).mean()))


def apply_draws_temperature(draws: ArrayLike, temperature: float) -> Floats:
    """1/S sum_s softmax(log p_s / T), `(n, C)`: each draw tempered, then averaged. Raises ValueError for T not above 0."""
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    class_draws(draws)
    return _tempered_mean(np.stack([log_probs(each) for each in array(draws)]), temperature)


def _tempered_mean(logs: Floats, temperature: float) -> Floats:
    return np.asarray(softmax(logs / temperature, axis=-1).mean(0))
