"""The last look at a drop rate that was found on the way, where the training is over: at more validation rows, and without masks.

A rule of small steps ends within their noise of the rate that predicts best at the last weights, and in that neighbourhood
confidence changes quickly. The predictive by `moments` is a smooth function of the rate, and a pass of rows for each value is
cheap. So every layer's phi, r = sin^2 phi, is turned by one factor e^l, l the minimum of

    -(1/n) sum_i log p(y_i | x_i; phi e^l)  +  l^2 / (2 s^2 n),

of n validation rows and l ~ N(0, s^2) before they are looked at: of few rows the rule's rate is believed. A cubic through its
value at four l has the minimum: it is smooth there, steeper towards high rates, and a parabola's would be too low. The factors
of `moments`, which hardly depend on the rate, are those of the rule's, before and after. Derived for this project; measured in
`examples/benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier.contracts import Data
from espalier.data.streamed import selected, some
from espalier.distributions.masked import LEVELS, KeepProb, effective_keep_prob
from espalier.prediction import propagation
from espalier.prediction.fit import Fit
from espalier.prediction.mixture import Mixture
from espalier.training import distributed

ROWS, POINTS = 4000, 4
"""Validation rows that are looked at, and draws of `moments`, each of several outputs."""
TURNS, WIDEST, SPREAD = (-0.15, -0.05, 0.05, 0.15), 0.2, 0.1
"""The l that are tried, the most that it may be, and s."""
LOWEST, HIGHEST = 1 / LEVELS, 0.5
"""Of a rate, from the least that can be drawn."""


@torch.no_grad()
def look(fit: Fit, data: Data, phis: Sequence[float], stream: torch.Generator) -> tuple[int, int]:
    """Turn the fit's rates, of angles `phis`, one or one a layer, to where validation rows are predicted best. Returns how many
    rows were looked at, and forward passes of one row; none of a network that has no `moments`."""
    propagation.equip(fit, data)
    if "moments" not in fit.ways:
        return 0, 0
    rows = some(len(data.validation.y), ROWS, stream)
    x, y = selected(data.validation.x, rows), data.validation.y[rows]
    losses = []
    try:
        for turn in TURNS:
            turned(fit, [phi * math.exp(turn) for phi in phis])
            losses.append(float(-log_probs(fit, x, y).mean()) + turn**2 / (2 * SPREAD**2 * len(y)))
    except Exception:  # moments that overflow, a network that goes by the number of rows: the training is over, and stays
        losses = [math.nan]
    turn = float(distributed.mean(torch.tensor(lowest(losses), dtype=torch.float64)))
    turned(fit, [phi * math.exp(turn) for phi in phis])
    return len(y), len(TURNS) * len(y) * propagation.products(fit)


def lowest(losses: Sequence[float]) -> float:
    """Where the cubic through the losses at `TURNS` is lowest, within `WIDEST`; where one is no number, the rule's rate."""
    if not np.isfinite(losses).all():
        return 0.0
    grid = np.linspace(-WIDEST, WIDEST, 801)
    return float(grid[np.polynomial.Polynomial.fit(TURNS, losses, 3)(grid).argmin()])


def turned(fit: Fit, phis: Sequence[float]) -> None:
    """Give a fit other rates, of all layers or each its own, and the mean network its batch-norm statistics anew."""
    each = tuple(effective_keep_prob(1 - min(max(math.sin(phi) ** 2, LOWEST), HIGHEST)) for phi in phis)
    given: KeepProb = each if len(each) > 1 else each[0]
    fit.keep_prob = given
    fit.record["keep_prob"] = given
    fit.statistics["mean"] = fit.statistics_of("mean")


def log_probs(fit: Fit, x: Any, y: Tensor) -> Tensor:
    """log p(y_i | x_i) by `moments`, `(n,)`, in the units that the network is trained in."""
    return Mixture([*fit.outcomes(x, "moments", num_samples=POINTS)]).log_prob(y)
