"""Temperature: one number that sharpens or softens, of predictions and of the draws that are averaged into one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import softmax

from espalier.calibration.scores import SEED, Floats, array, classification, probabilities, smallest
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
    return _where_zero(lambda inverse: _slope(logs, y, inverse))


def fit_dropped_temperature(
    probs: ArrayLike, labels: ArrayLike, *, drop_rate: float = 0.1, num_masks: int = 16, seed: int = SEED
) -> float:
    """The temperature that minimises the mean NLL of softmax(m z / T) over the rows and over random masks m in {0, 1}^C with
    P(m_c = 0) = drop_rate; z is log p less its mean over the classes, so that a dropped logit is one that says nothing. What
    is predicted is `apply_temperature` of the result, without a mask.

    A row that is sure and right is now and then asked without its largest logit, so that T does not follow how sure such rows
    are: it stays finite where no label is wrong. Ours, in the spirit of the masked temperature scaling of Zhu et al. 2023
    (ICCV), whose formulas were not at hand.

    num_masks: of each row; seed: theirs. Raises ValueError for arrays that do not fit together and a rate outside [0, 1).
    """
    if not 0 <= drop_rate < 1 or num_masks < 1:
        raise ValueError(f"expected a drop_rate in [0, 1) and num_masks of at least 1, got {drop_rate} and {num_masks}")
    _, y = classification(probs, labels)
    logs = log_probs(probs)
    z = logs - logs.mean(1, keepdims=True)

    def slope(inverse: float) -> float:
        draws = (np.random.default_rng([seed, index]).random(z.shape) >= drop_rate for index in range(num_masks))
        return float(np.mean([_slope(z * mask, y, inverse) for mask in draws]))

    return _where_zero(slope)


def _slope(logits: Floats, labels: NDArray[np.int64], inverse: float) -> float:
    """Derivative in 1 / T of the mean NLL of softmax(logits / T), at inverse = 1 / T; it grows."""
    q = softmax(logits * inverse, axis=1)
    return float((q * logits).sum(1).mean() - logits[np.arange(len(labels)), labels].mean())


def _where_zero(slope: Callable[[float], float]) -> float:
    """The T at whose inverse a growing slope is zero, or the limit of [1 / HOTTEST, HOTTEST] that it points to."""
    hottest, coldest = np.log(HOTTEST), -np.log(HOTTEST)
    if slope(1 / HOTTEST) >= 0:
        return HOTTEST
    if slope(HOTTEST) <= 0:
        return 1 / HOTTEST
    return float(np.exp(brentq(lambda log_t: slope(np.exp(-log_t)), coldest, hottest, xtol=1e-12)))


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
