"""Calibrators by name: maps of predictions, fitted on examples that the network was not trained on.

Each is a pair of pure functions over NumPy arrays, `fit(*predictions, labels) -> parameters` and `apply(*predictions,
parameters) -> predictions`. Parameters are a number, or a dict of numbers and lists, ready for JSON.

    CALIBRATORS              probs `(n, C)`, labels `(n,)`      temperature, dropped-logit, vector, matrix,
                                                                dirichlet, isotonic, beta
    DRAW_CALIBRATORS         draws `(S, n, C)`, labels `(n,)`   temperature of each draw, averaged after
    REGRESSION_CALIBRATORS   mean, scale `(S, n)`, target       variance

Yours is one more entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from espalier.calibration.linear import (
    apply_dirichlet,
    apply_matrix,
    apply_vector,
    fit_dirichlet,
    fit_matrix,
    fit_vector,
)
from espalier.calibration.monotone import apply_beta, apply_isotonic, fit_beta, fit_isotonic
from espalier.calibration.spread import apply_variance, fit_variance
from espalier.calibration.temperature import HOTTEST as HOTTEST
from espalier.calibration.temperature import apply_draws_temperature, fit_draws_temperature
from espalier.calibration.temperature import apply_temperature as apply_temperature
from espalier.calibration.temperature import fit_dropped_temperature as fit_dropped_temperature
from espalier.calibration.temperature import fit_temperature as fit_temperature


class Calibrator(NamedTuple):
    """How a calibrator is fitted and applied; `parameter` is what the fitted number, or the whole of them, is called."""

    parameter: str
    fit: Callable[..., Any]
    apply: Callable[..., Any]


CALIBRATORS = {
    "temperature": Calibrator("temperature", fit_temperature, apply_temperature),
    "dropped-logit": Calibrator("temperature", fit_dropped_temperature, apply_temperature),
    "vector": Calibrator("vector", fit_vector, apply_vector),
    "matrix": Calibrator("matrix", fit_matrix, apply_matrix),
    "dirichlet": Calibrator("dirichlet", fit_dirichlet, apply_dirichlet),
    "isotonic": Calibrator("isotonic", fit_isotonic, apply_isotonic),
    "beta": Calibrator("beta", fit_beta, apply_beta),
}
"""Of class probabilities, by the name that a grid file calls them."""

DRAW_CALIBRATORS = {"temperature": Calibrator("temperature", fit_draws_temperature, apply_draws_temperature)}
"""Of the draws of class probabilities, which they average."""

REGRESSION_CALIBRATORS = {"variance": Calibrator("variance_factor", fit_variance, apply_variance)}
"""Of the draws of a regression."""
