"""Monotone maps of a single probability: isotonic regression and beta calibration, for two classes.

For more, each class is mapped against the rest and rows are divided by their sums (Zadrozny & Elkan 2002). Two classes
need one map: that of the other is its mirror image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from espalier.calibration.linear import Parameters
from espalier.calibration.scores import Floats, classification, probabilities, require, smallest

TOLERANCE = 1e-9
Fit = Callable[[Floats, Floats], dict[str, list[float]]]
"""From log p and log(1 - p), `(n, 2)`, and hits `(n,)`, 0 or 1, to one map."""


def _logs(probs: ArrayLike, column: int) -> Floats:
    """log p_c and log of the sum of the others, `(n, 2)`: 1 - p_c would lose what is near 1."""
    p = probabilities(probs)
    rest = np.delete(p, column, axis=1).sum(1)
    return np.asarray(np.log(np.maximum(np.stack([p[:, column], rest], axis=1), smallest(probs))))


def _fitted(fit: Fit, probs: ArrayLike, labels: ArrayLike) -> Parameters:
    p, y = classification(probs, labels)
    classes = p.shape[1]
    require(classes > 1, "at least two classes", classes, "one class is always right")
    columns = [1] if classes == 2 else range(classes)
    return {"classes": classes, "maps": [fit(_logs(probs, c), (y == c).astype(np.float64)) for c in columns]}


def _applied(apply: Callable[[Floats, dict[str, list[float]]], Floats], probs: ArrayLike, parameters: Parameters) -> Floats:
    classes, maps = probabilities(probs).shape[1], parameters["maps"]
    fits = parameters["classes"] == classes
    require(fits, f"parameters of {classes} classes", parameters["classes"], "fit them on predictions of the same classes")
    if classes == 2:
        return apply(_logs(probs, 1), maps[0])
    each = np.stack([apply(_logs(probs, c), own)[:, 1] for c, own in enumerate(maps)], axis=1)
    total = each.sum(1, keepdims=True)
    return np.where(total > 0, each / np.where(total > 0, total, 1), 1 / classes)


# --- Isotonic regression ------------------------------------------------------------------------------------------
def isotonic_map(logs: Floats, hit: Floats) -> dict[str, list[float]]:
    """The non-decreasing function of p with the smallest squared error to `hit` (Ayer et al. 1955: pool adjacent violators),
    by its corners: `at`, probabilities in ascending order, and `value` there."""
    at, place = np.unique(_stable(logs), return_inverse=True)
    count = np.bincount(place)
    value = isotonic_regression(np.bincount(place, hit) / count, weights=count).x
    inner = (np.diff(value, prepend=np.nan) == 0) & (np.diff(value, append=np.nan) == 0)
    return {"at": at[~inner].tolist(), "value": np.clip(value[~inner], 0, 1).tolist()}


def _stable(logs: Floats) -> Floats:
    """p / (p + rest): equal for equal predictions, and symmetric in the two classes."""
    return np.asarray(expit(logs[:, 0] - logs[:, 1]))


def _isotonic(logs: Floats, own: dict[str, list[float]]) -> Floats:
    """Of the others and of the class, `(n, 2)`."""
    q = np.interp(_stable(logs), own["at"], own["value"])
    return np.stack([1 - q, q], axis=1)


def fit_isotonic(probs: ArrayLike, labels: ArrayLike) -> Parameters:
    """`isotonic_map`s: one of the second class for two classes, one a class for more (Zadrozny & Elkan 2002). It may say 0 or
    1, and an NLL of what it says be a surprise of hundreds of nats. Raises ValueError for arrays that do not fit."""
    return _fitted(isotonic_map, probs, labels)


def apply_isotonic(probs: ArrayLike, parameters: Parameters) -> Floats:
    """Linear between the corners and constant beyond them, `(n, C)`; a row that every map takes to 0 becomes even."""
    return _applied(_isotonic, probs, parameters)


# --- Beta calibration ---------------------------------------------------------------------------------------------
def beta_objective(logs: Floats, hit: Floats) -> Callable[[Floats], tuple[float, Floats]]:
    """The mean NLL of expit(a log p - b log(1 - p) + c) and its gradient in (a, b, c): convex."""
    x = np.stack([logs[:, 0], -logs[:, 1], np.ones(len(hit))], axis=1)

    def value(theta: Floats) -> tuple[float, Floats]:
        score = x @ theta
        loss = np.logaddexp(0, score) - hit * score
        return float(loss.mean()), x.T @ (expit(score) - hit) / len(hit)

    return value


def beta_map(logs: Floats, hit: Floats) -> dict[str, list[float]]:
    """`abc`: a, b >= 0 and c of beta calibration, of the lowest mean NLL. Kull et al. 2017 drop a term whose slope comes out
    below 0; here the bound is part of the fit, whose optimum is the constrained one (Byrd et al. 1995, L-BFGS-B)."""
    options = {"ftol": 0.0, "gtol": TOLERANCE, "maxiter": 5000, "maxfun": 20_000}
    bounds = [(0.0, None), (0.0, None), (None, None)]
    start = np.array([1.0, 1.0, 0.0])
    found = minimize(beta_objective(logs, hit), start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return {"abc": found.x.tolist()}


def _beta(logs: Floats, own: dict[str, list[float]]) -> Floats:
    """Of the others and of the class, `(n, 2)`, each in its own digits: 1 - q would lose what is near 1."""
    a, b, c = own["abc"]
    score = a * logs[:, 0] - b * logs[:, 1] + c
    return np.stack([expit(-score), expit(score)], axis=1)


def calibrated(confidence: Floats, hit: Floats) -> Floats:
    """The rate of hits at each confidence `(n,)` in [0, 1], by the `beta_map` of both."""
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log(np.stack([confidence, 1 - confidence], 1)), -30.0, 0.0)
    return _beta(logs, beta_map(logs, hit))[:, 1]


def fit_beta(probs: ArrayLike, labels: ArrayLike) -> Parameters:
    """`beta_map`s (Kull et al. 2017): the map that calibrates p if it is Beta distributed in either class. Raises ValueError
    for arrays that do not fit."""
    return _fitted(beta_map, probs, labels)


def apply_beta(probs: ArrayLike, parameters: Parameters) -> Floats:
    """expit(a log p - b log(1 - p) + c) of the second class of two, or of each class and then divided by the sums, `(n, C)`."""
    return _applied(_beta, probs, parameters)
