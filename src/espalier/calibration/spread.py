"""The width of a regression's predictions: one factor of all variances, fitted on validation targets."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from espalier.calibration.scores import Floats, array, gaussian_nll
from espalier.calibration.temperature import search


def fit_variance(mean: ArrayLike, scale: ArrayLike, target: ArrayLike) -> float:
    """The factor s that minimises `gaussian_nll(*apply_variance(mean, scale, s), target)`: mean, scale `(S, n)`, target `(n,)`.

    For a single draw it is 1/n sum_i ((target_i - mean_i) / scale_i)^2 (Levi et al. 2022, who scale the deviation by its
    root; Laves et al. 2020). A mixture's has no closed form and is searched, its root between the limits of a temperature.
    Raises ValueError for arrays that do not fit together, and for targets that are met exactly, whose factor would be 0.
    """
    value = gaussian_nll(mean, scale, target)  # the door
    m, s, t = (array(a, np.float64) for a in (mean, scale, target))
    if len(m) == 1:
        found = float((((t - m[0]) / s[0]) ** 2).mean())
    else:
        found = search(lambda root: gaussian_nll(*apply_variance(m, s, root**2), t)) ** 2
    if not found > 0:
        raise ValueError(f"expected targets that differ from the mean, got NLL {value:.3g} with no error; pass validation ones")
    return found


def apply_variance(mean: ArrayLike, scale: ArrayLike, factor: float) -> tuple[Floats, Floats]:
    """Draws `(S, n)` whose mixture has the same mean and `factor` times the variance, aleatoric and epistemic alike: deviations
    from the mean over draws, and scales, times its root. Raises ValueError for a factor not above 0."""
    if not factor > 0:
        raise ValueError(f"expected a factor above 0, got {factor}")
    m, s = array(mean, np.float64), array(scale, np.float64)
    centre = m.mean(0)
    return centre + (m - centre) * factor**0.5, s * factor**0.5
