"""Calibrators: maps of predicted probabilities, fitted on examples that the network was not trained on.

Each is a pair of pure functions over NumPy arrays: `fit(probs, labels) -> parameter` and `apply(probs, parameter) -> probs`,
with `probs` `(n, C)`, rows that sum to 1, and integer `labels` `(n,)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from espalier.calibration.scores import classification, probabilities, smallest

Floats = NDArray[np.float64]

HOTTEST = 100.0
"""Temperatures are sought between 1 / HOTTEST and HOTTEST: labels that are all right, or unrelated, have no optimum."""


class Calibrator(NamedTuple):
    """How a calibrator is fitted and applied; `parameter` is what the fitted number is called."""

    parameter: str
    fit: Callable[[ArrayLike, ArrayLike], float]
    apply: Callable[[ArrayLike, float], Floats]


def fit_temperature(probs: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T that minimises the mean of -log q_i,y_i, q = `apply_temperature(probs, T)` (Guo et al. 2017).

    In 1 / T the mean is convex with derivative mean_i(E_q[log p_i] - log p_i,y_i), whose zero is found. Where it has none
    within the limits, T is the limit: `HOTTEST` for confidence that is worth nothing, its inverse where no label is wrong.
    Raises ValueError for arrays that do not fit together.
    """
    _, y = classification(probs, labels)
    log_probs = _log(probs)
    said = log_probs[np.arange(len(y)), y].mean()

    def slope(log_temperature: float) -> float:
        """Of the mean in 1 / T: grows with 1 / T."""
        q = softmax(log_probs * np.exp(-log_temperature), axis=1)
        return float((q * log_probs).sum(1).mean() - said)

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
    return np.asarray(softmax(_log(probs) / temperature, axis=1), dtype=np.float64)


def _log(probs: ArrayLike) -> Floats:
    return np.asarray(np.log(np.maximum(probabilities(probs), smallest(probs))))


CALIBRATORS = {"temperature": Calibrator("temperature", fit_temperature, apply_temperature)}
"""By the name that a grid file calls them."""
