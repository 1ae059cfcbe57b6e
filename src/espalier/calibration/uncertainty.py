"""Which uncertainty? Scores of one form: `score(draws) -> (n,)`, larger where less is known. Float64; entropies in nats.

Classification takes `draws` `(S, n, C)`, class probabilities of S networks or masks; regression `(S, n, 2)`, the mean and
the standard deviation that each says. What the draws share is aleatoric, what they differ in epistemic; where there is a
single draw, or an average, the latter is 0. `UNCERTAINTIES` and `REGRESSION_UNCERTAINTIES` hold them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, rel_entr

from espalier.calibration.scores import Floats, array, probabilities, require

Score = Callable[[ArrayLike], Floats]


def class_draws(draws: ArrayLike) -> Floats:
    """The one door: `draws` as float64 `(S, n, C)` in [0, 1], rows that sum to 1 (see `scores.probabilities`)."""
    p = array(draws)
    require(p.ndim == 3 and p.size > 0, "draws of shape (S, n, C)", p.shape, "put the draws first, with no mean taken")
    return probabilities(p.reshape(-1, p.shape[-1])).reshape(p.shape)


def mean_of(draws: Floats) -> Floats:
    """Over the draws `(S, ...)`; of equal ones that number itself, to the last digit, so that they differ in nothing."""
    return np.asarray(draws[0] + (draws - draws[0]).mean(0))


def _regression_draws(draws: ArrayLike) -> tuple[Floats, Floats]:
    """Means and standard deviations `(S, n)` of `draws` `(S, n, 2)`, or a ValueError."""
    d: Floats = array(draws, np.float64)
    fits = d.ndim == 3 and d.size > 0 and d.shape[-1] == 2
    require(fits, "draws of shape (S, n, 2)", d.shape, "stack the mean and the sd of each draw in the last place")
    sound = bool(np.isfinite(d).all() and (d[..., 1] >= 0).all())
    require(sound, "finite means and standard deviations of at least 0", "others", "look for a diverged fit")
    return d[..., 0], d[..., 1]


# --- Classification -----------------------------------------------------------------------------------------------
def predictive_entropy(draws: ArrayLike) -> Floats:
    """H(1/S sum_s p_s), `(n,)` in [0, log C]: the total (Shannon 1948; Depeweg et al. 2018, eq. 5)."""
    return np.asarray(entr(np.clip(mean_of(class_draws(draws)), 0, 1)).sum(-1))


def expected_entropy(draws: ArrayLike) -> Floats:
    """1/S sum_s H(p_s), `(n,)` in [0, log C]: the aleatoric part (Depeweg et al. 2018, eq. 5)."""
    return np.asarray(entr(class_draws(draws)).sum(-1).mean(0))


def mutual_information(draws: ArrayLike) -> Floats:
    """H(mean) - mean H = 1/S sum_s KL(p_s, mean), `(n,)` in [0, log min(S, C)]: the epistemic part (Houlsby et al. 2011,
    BALD). Computed as the latter, which cancels nothing and is never below 0; of equal draws 0, whatever their mean rounds to."""
    p = class_draws(draws)
    return np.asarray(np.maximum(rel_entr(p, np.clip(mean_of(p), 0, 1)).sum(-1).mean(0), 0.0))


def variation_ratio(draws: ArrayLike) -> Floats:
    """1 - the share of draws that vote for the class most voted for, `(n,)` in [0, 1) (Freeman 1965; Gal 2016, sec. 3.3).
    A draw votes for its largest probability, the lowest class in a tie."""
    p = class_draws(draws)
    votes = (p.argmax(-1)[..., None] == np.arange(p.shape[-1])).mean(0)
    return np.asarray(1 - votes.max(-1))


def max_probability(draws: ArrayLike) -> Floats:
    """1 - max_c of the mean, `(n,)` in [0, 1 - 1/C] (Hendrycks & Gimpel 2017)."""
    return np.asarray(1 - mean_of(class_draws(draws)).max(-1))


def margin(draws: ArrayLike) -> Floats:
    """1 - (largest - second largest of the mean), `(n,)` in [0, 1] (Scheffer et al. 2001). Raises ValueError for one class."""
    p = mean_of(class_draws(draws))
    require(p.shape[-1] > 1, "at least two classes", p.shape[-1], "a margin is between the first and the second")
    top = np.partition(p, -2, axis=-1)
    return np.asarray(1 - (top[:, -1] - top[:, -2]))


# --- Regression ---------------------------------------------------------------------------------------------------
def aleatoric_variance(draws: ArrayLike) -> Floats:
    """1/S sum_s sd_s^2, `(n,)`, in squared units of the target (Kendall & Gal 2017, eq. 9, its last term)."""
    return np.asarray((_regression_draws(draws)[1] ** 2).mean(0))


def epistemic_variance(draws: ArrayLike) -> Floats:
    """1/S sum_s (mean_s - mean)^2, `(n,)`, in squared units: that of the draws' means (Kendall & Gal 2017, eq. 9). Divided
    by S, so that the parts add up to the variance of the mixture."""
    return np.asarray(_regression_draws(draws)[0].var(0))


def total_variance(draws: ArrayLike) -> Floats:
    """The variance of 1/S sum_s Normal(mean_s, sd_s), `(n,)`: aleatoric + epistemic (law of total variance)."""
    mean, scale = _regression_draws(draws)
    return np.asarray((scale**2).mean(0) + mean.var(0))


UNCERTAINTIES: Mapping[str, Score] = {
    "predictive_entropy": predictive_entropy,
    "expected_entropy": expected_entropy,
    "mutual_information": mutual_information,
    "variation_ratio": variation_ratio,
    "max_probability": max_probability,
    "margin": margin,
}
"""Of classification, by name."""

REGRESSION_UNCERTAINTIES: Mapping[str, Score] = {
    "aleatoric_variance": aleatoric_variance,
    "epistemic_variance": epistemic_variance,
    "total_variance": total_variance,
}
"""Of regression, by name."""
