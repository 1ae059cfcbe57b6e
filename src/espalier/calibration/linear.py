"""Linear maps of log-probabilities before a softmax: vector and matrix scaling, Dirichlet calibration.

    vector      softmax(w * z + b)     Guo et al. 2017, sec. 4.2
    matrix      softmax(W z + b)       Guo et al. 2017; ODIR, Kull et al. 2019
    dirichlet   softmax(W log p + b)   Kull et al. 2019, their linear parametrisation, with ODIR

Probabilities p tell logits up to a constant in each row, so z is log p less its mean over classes. A matrix of rows with
different sums would see that constant; Dirichlet calibration does see log p itself, and is the wider family. All three are
convex in their parameters, and are fitted by Newton steps to a gradient of `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from espalier.calibration.scores import SEED, Floats, Ints, classification, require
from espalier.calibration.temperature import fit_temperature, log_probs

Parameters = dict[str, Any]
"""Plain numbers, lists of them and lists of lists: ready for JSON."""
Objective = tuple[Callable[[Floats], tuple[float, Floats]], Callable[..., Floats]]
"""The value with its gradient, and the curvature: the Hessian, or its product with a vector."""

TOLERANCE, ROUGHLY = 1e-8, 1e-4
"""Norms of the gradient at which a fit ends, and one that is only compared with others."""
STRENGTHS = (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)
"""ODIR strengths that are tried, in this order, where none is given."""
NUM_FOLDS = 3


def centred(logs: Floats) -> Floats:
    """log p less its mean over classes: logits, up to the constant that probabilities have lost."""
    return np.asarray(logs - logs.mean(1, keepdims=True))


# --- Convex objectives --------------------------------------------------------------------------------------------
def vector_objective(z: Floats, labels: Ints) -> Objective:
    """The mean of -log softmax(w * z + b) at the label with its gradient, and its Hessian, of parameters w, b one after the
    other, `(2 C,)`."""
    n, classes = z.shape
    hot = np.eye(classes)[labels]

    def value(theta: Floats) -> tuple[float, Floats]:
        w, b = theta.reshape(2, classes)
        logs = log_softmax(w * z + b, axis=1)
        off = (np.exp(logs) - hot) / n
        return float(-(logs * hot).sum() / n), np.concatenate([(off * z).sum(0), off.sum(0)])

    def curvature(theta: Floats) -> Floats:
        w, b = theta.reshape(2, classes)
        q = softmax(w * z + b, axis=1)
        both, own = np.concatenate([q * z, q], axis=1), (q * z).sum(0)
        cross = np.block([[np.diag((q * z**2).sum(0)), np.diag(own)], [np.diag(own), np.diag(q.sum(0))]])
        return np.asarray((cross - both.T @ both) / n)

    return value, curvature


def matrix_objective(z: Floats, labels: Ints, strength: float) -> Objective:
    """The same of softmax(W z + b) with ODIR: + strength (mean of the off-diagonal squares of W + mean of the squares of b)
    (Kull et al. 2019, sec. 4, one strength for both); of the Hessian, its product with a vector. Parameters (W, b)
    `(C, C + 1)`, flat."""
    n, classes = z.shape
    hot, x = np.eye(classes)[labels], np.concatenate([z, np.ones((n, 1))], axis=1)
    weight = np.full((classes, classes + 1), strength / max(1, classes * (classes - 1)))
    weight[:, -1] = strength / classes
    np.fill_diagonal(weight[:, :-1], 0.0)

    def value(theta: Floats) -> tuple[float, Floats]:
        w = theta.reshape(weight.shape)
        logs = log_softmax(x @ w.T, axis=1)
        gradient = (np.exp(logs) - hot).T @ x / n + 2 * weight * w
        return float(-(logs * hot).sum() / n + (weight * w**2).sum()), gradient.ravel()

    def curvature(theta: Floats, towards: Floats) -> Floats:
        q, v = softmax(x @ theta.reshape(weight.shape).T, axis=1), towards.reshape(weight.shape)
        step = x @ v.T
        bent = q * (step - (q * step).sum(1, keepdims=True)) / n
        return np.asarray((bent.T @ x + 2 * weight * v).ravel())

    return value, curvature


def minimised(objective: Objective, start: Floats, tolerance: float = TOLERANCE) -> Floats:
    """Where a convex objective's gradient has a norm of at most `tolerance`, by Newton steps within a trust region (Nocedal &
    Wright 2006, ch. 4): `vector_objective` has its Hessian, steps for `matrix_objective` are by conjugate gradients. Where
    labels are separable no finite optimum exists: it stops where the slope is that small. C x C weights of a hundred classes
    take minutes."""
    value, curvature = objective
    options = {"gtol": tolerance, "maxiter": 2000}
    how = {"hess": curvature, "method": "trust-exact"} if start.ndim == 1 else {"hessp": curvature, "method": "trust-ncg"}
    return np.asarray(minimize(value, start.ravel(), jac=True, options=options, **how).x).reshape(start.shape)


# --- Fits ---------------------------------------------------------------------------------------------------------
def _start(probs: ArrayLike, labels: ArrayLike, classes: int) -> Floats:
    return np.concatenate([np.eye(classes) / fit_temperature(probs, labels), np.zeros((classes, 1))], axis=1)


def fit_vector(probs: ArrayLike, labels: ArrayLike) -> Parameters:
    """`weights` and `bias` `(C,)` of vector scaling, of the lowest mean NLL. probs `(n, C)`, labels `(n,)`. Raises ValueError
    for arrays that do not fit together."""
    p, y = classification(probs, labels)
    start = _start(probs, y, p.shape[1])
    theta = minimised(vector_objective(centred(log_probs(probs)), y), np.concatenate([np.diag(start), start[:, -1]]))
    w, b = theta.reshape(2, -1)
    return {"weights": w.tolist(), "bias": (b - b.mean()).tolist()}  # a constant in b is without effect


def apply_vector(probs: ArrayLike, parameters: Parameters) -> Floats:
    """softmax(w * z + b), `(n, C)`, z the centred log-probabilities."""
    z = centred(log_probs(probs))
    w, b = (np.asarray(parameters[name], dtype=np.float64) for name in ("weights", "bias"))
    _fits(w.shape == b.shape == z.shape[1:], z, w)
    return np.asarray(softmax(w * z + b, axis=1))


def _fits(holds: bool, z: Floats, weights: Floats) -> None:
    require(holds, f"parameters of {z.shape[1]} classes", weights.shape, "fit them on predictions of the same classes")


def strength_of(z: Floats, labels: Ints, start: Floats, seed: int = SEED) -> float:
    """The ODIR strength of `STRENGTHS` with the lowest NLL on held-out folds: `NUM_FOLDS` random parts of the examples that
    the calibrator is fitted on, and no others (Stone 1974). From the strongest down, until the NLL rises: weaker ones have
    more freedom yet, and cost the most."""
    fold = np.random.default_rng(seed).permutation(len(labels)) % min(NUM_FOLDS, len(labels))
    parts = [(fold != k, fold == k) for k in range(fold.max() + 1)]
    thetas, lowest, best = [start] * len(parts), np.inf, STRENGTHS[0]
    for strength in STRENGTHS:
        loss = 0.0
        for k, (own, other) in enumerate(parts):  # each starts where the stronger one ended
            thetas[k] = minimised(matrix_objective(z[own], labels[own], strength), thetas[k], ROUGHLY)
            loss += matrix_objective(z[other], labels[other], 0.0)[0](thetas[k])[0] * float(other.sum())
        if loss > lowest:
            break
        lowest, best = loss, strength
    return best


def _fit_matrix(z: Floats, probs: ArrayLike, labels: ArrayLike, strength: float | None) -> Parameters:
    p, y = classification(probs, labels)
    require(strength is None or strength > 0, "a strength above 0", strength, "leave it out to have it chosen")
    require(len(y) > 1 or strength is not None, "two examples or more", len(y), "a strength is chosen on held-out ones")
    start = _start(probs, y, p.shape[1])
    kept = strength_of(z, y, start) if strength is None else float(strength)
    theta = minimised(matrix_objective(z, y, kept), start)
    return {"weights": theta[:, :-1].tolist(), "bias": theta[:, -1].tolist(), "strength": kept}


def fit_matrix(probs: ArrayLike, labels: ArrayLike, strength: float | None = None) -> Parameters:
    """`weights` `(C, C)`, `bias` `(C,)` and `strength` of matrix scaling with ODIR. strength: chosen by `strength_of` where it
    is left out. Raises ValueError for arrays that do not fit together."""
    return _fit_matrix(centred(log_probs(probs)), probs, labels, strength)


def fit_dirichlet(probs: ArrayLike, labels: ArrayLike, strength: float | None = None) -> Parameters:
    """`fit_matrix` on log p itself: calibration that is exact if p is Dirichlet in each class (Kull et al. 2019, thm. 1)."""
    return _fit_matrix(log_probs(probs), probs, labels, strength)


def _apply(z: Floats, parameters: Parameters) -> Floats:
    w, b = (np.asarray(parameters[name], dtype=np.float64) for name in ("weights", "bias"))
    _fits(w.shape == (z.shape[1],) * 2 and b.shape == z.shape[1:], z, w)
    return np.asarray(softmax(z @ w.T + b, axis=1))


def apply_matrix(probs: ArrayLike, parameters: Parameters) -> Floats:
    """softmax(W z + b), `(n, C)`, z the centred log-probabilities."""
    return _apply(centred(log_probs(probs)), parameters)


def apply_dirichlet(probs: ArrayLike, parameters: Parameters) -> Floats:
    """softmax(W log p + b), `(n, C)`."""
    return _apply(log_probs(probs), parameters)
