"""What one network says of its own ignorance, in one pass: by the level of its logits, which the softmax does not look at.

`energy` is -log sum_c exp z_c, nats (Liu et al. 2020, *Energy-based out-of-distribution detection*, eq. 4 at temperature 1).
What the masked networks that taught a distilled one disagree by, their mutual information I(x) = E_Z KL(p_Z, E p_Z), is read
off it by two numbers:

    log I(x) = a + b energy(x),        (a, b) least in  mean_n ( I_n / I(x_n) + log I(x_n) )

the quasi-likelihood of a gamma regression with log link (McCullagh & Nelder 1989, ch. 8), whose optimum is the mean of I given
the energy however I scatters. They are fitted when the distillation ends, on training inputs, without labels. A head of
its own was tried and left: what it learns of the level costs the detection that the level is good for (RESULTS.md). Derived for
this project; compare Malinin et al. 2020, *Ensemble distribution distillation*, who let the level be a Dirichlet's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from espalier import nested
from espalier.calibration.uncertainty import mutual_information
from espalier.contracts import Rows
from espalier.likelihoods import Categorical
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit, How
from espalier.prediction.predict import output_of
from espalier.prediction.predictor import Inputs

ONE_NETWORK: tuple[How, ...] = ("ticket", "mean", "unmasked", "distilled")
LEAST = 1e-12
"""Nats, of a mutual information: rounding is no disagreement, and the log needs something."""


class Line(NamedTuple):
    """log I = intercept + slope * energy, nats; and the most that so many classes can disagree by, log C."""

    intercept: float
    slope: float
    most: float

    def at(self, energies: ArrayLike) -> NDArray[np.float64]:
        """Mutual information `(n,)`."""
        return np.exp(np.minimum(self.intercept + self.slope * np.asarray(energies, np.float64), np.log(self.most)))


def has_level(model: BayesianNetwork) -> bool:
    """Are its outputs logits of classes, of which the softmax passes over one number?"""
    return type(model.likelihood) is Categorical


def energy(fit: Fit, x: Rows | Inputs, way: How = "distilled") -> NDArray[np.float64]:
    """Of every row of x `(n,)`, nats: larger where less is known. way: one of a single network.

    Raises ValueError for a way of several networks, or a likelihood other than `categorical`.
    """
    if way not in ONE_NETWORK or not has_level(fit.model):
        raise ValueError(
            f"expected one network's logits of classes for an energy, got {way} of {type(fit.model.likelihood).__name__}: choose "
            f"{', '.join(ONE_NETWORK)} of a categorical likelihood"
        )
    weights, state = next(fit.weights(way))
    found: NDArray[np.float64] = -output_of(fit.model, weights, nested.rows_of(x), state).logsumexp(-1).numpy()
    return found


def fitted(energies: ArrayLike, draws: ArrayLike, *, sampled: bool = True) -> Line:
    """The line of rows whose energies are `(n, ...)` and whose masked class probabilities are `draws` `(S, n, ..., C)`. To first
    order the mutual information of S draws is S / (S - 1) times too small, which is put right, where they are `sampled`."""
    p, t = np.asarray(draws, np.float64), np.asarray(energies, np.float64).reshape(-1)
    p = p.reshape(len(p), len(t), -1)
    count, most = len(p), float(np.log(p.shape[-1]))
    told = mutual_information(p) * (count / (count - 1) if sampled else 1) + LEAST
    centre, spread = t.mean(), max(t.std(), LEAST)
    scaled = (t - centre) / spread

    def loss(line: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logs = line[0] + line[1] * scaled
        ratio = told * np.exp(-logs)
        return float((ratio + logs).mean()), np.array([(1 - ratio).mean(), ((1 - ratio) * scaled).mean()])

    a, b = minimize(loss, [np.log(told.mean()), 0.0], jac=True, method="BFGS").x
    return Line(float(a - b * centre / spread), float(b / spread), most)


def is_taught(fit: Fit) -> bool:
    """Has it a distilled network with such a line?"""
    return "information" in fit.record.get("distilled", {})


def information(fit: Fit, x: Rows | Inputs) -> NDArray[np.float64]:
    """Of every row of x `(n,)`, nats: what the masked networks that taught the distilled one would disagree by.

    Raises ValueError for a fit without a distilled network of classes.
    """
    if not is_taught(fit):
        raise ValueError("expected a fit with a distilled network of classes, got none: train it by --inference distilled")
    return Line(*fit.record["distilled"]["information"]).at(energy(fit, x, "distilled"))
