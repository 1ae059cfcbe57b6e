"""How far is a prediction from the truth, where that is known?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr

from espalier.calibration.scores import Floats, probabilities, require, smallest


def divergence_scores(truth: ArrayLike, probs: ArrayLike) -> Floats:
    """KL(p(y | x_i) || p_i) = sum_c t_ic log(t_ic / p_ic), `(n,)`, nats (Kullback & Leibler 1951): what NLL has, on average over
    labels, above the entropy of the truth, its floor. truth, probs: `(n, C)`; a zero of `probs` counts as in `nll_scores`."""
    t, p = probabilities(truth), probabilities(probs)
    require(t.shape == p.shape, f"truth like probs, {p.shape}", t.shape, "give the truth of the same rows")
    return np.asarray(rel_entr(t, np.maximum(p, smallest(probs))).sum(1))


def divergence(truth: ArrayLike, probs: ArrayLike) -> float:
    """Mean over examples of KL(p(y | x_i) || p_i), nats."""
    return float(divergence_scores(truth, probs).mean())
