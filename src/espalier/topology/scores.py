"""Which active weights go first: drop scores of a move of the topology.

Of a Gaussian guide's weight w ~ N(mu, sigma^2) they are SSVI's criteria (Li et al. 2024, sec. 4.2), moments of |w|, the folded
normal, and of e^|w|; and the log Bayes factor of Savage and Dickey.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from espalier.contracts import Evidence

DropScore = Callable[[Evidence], Tensor]
"""`(k,)`, one score per active weight: the smallest are dropped."""
TINY = torch.finfo(torch.float64).tiny


def magnitude(evidence: Evidence) -> Tensor:
    """|u|: ranked on the unmasked value, so that a weight is not dropped for having been masked at this step."""
    return evidence.values.abs()


def snr(evidence: Evidence) -> Tensor:
    """|mu| / sigma of a Gaussian guide's weight (Graves 2011; Blundell et al. 2015). Raises ValueError without sigma."""
    return evidence.values.abs() / scales_of(evidence)


def mean_of_magnitude(evidence: Evidence) -> Tensor:
    """E|w| = sigma sqrt(2 / pi) e^(-mu^2 / 2 sigma^2) + mu erf(mu / sigma sqrt 2)."""
    mu, sigma = _moments(evidence)
    ratio = mu / sigma
    return sigma * math.sqrt(2 / math.pi) * torch.exp(-ratio.square() / 2) + mu * torch.erf(ratio / math.sqrt(2))


def snr_of_magnitude(evidence: Evidence) -> Tensor:
    """E|w| / sd|w|, SSVI's own choice."""
    mu, sigma = _moments(evidence)
    mean = mean_of_magnitude(evidence)
    return mean / (mu.square() + sigma.square() - mean.square()).clamp(min=TINY).sqrt()


def mean_of_exponential(evidence: Evidence) -> Tensor:
    """log E e^|w|: as the mean ranks, without overflow."""
    return _log_exponential(evidence, 1)


def snr_of_exponential(evidence: Evidence) -> Tensor:
    """E e^|w| / sd e^|w|, by the logs of both moments."""
    excess = _log_exponential(evidence, 2) - 2 * _log_exponential(evidence, 1)  # log of E e^2|w| / (E e^|w|)^2
    return torch.expm1(excess).clamp(min=TINY).rsqrt()


def bayes_factor(evidence: Evidence) -> Tensor:
    """-log of the Bayes factor for w = 0, log(s / sigma) - mu^2 / 2 sigma^2 (Savage and Dickey), up to log s, which all weights
    share: those that the data have the least against leaving out go first."""
    mu, sigma = _moments(evidence)
    return sigma.log() + (mu / sigma).square() / 2


def _log_exponential(evidence: Evidence, power: int) -> Tensor:
    """log E e^(p|w|) = p^2 sigma^2 / 2 + log(e^(p mu) Phi(mu / sigma + p sigma) + e^(-p mu) Phi(-mu / sigma + p sigma))."""
    mu, sigma = _moments(evidence)
    sides = [power * sign * mu + torch.special.log_ndtr(sign * mu / sigma + power * sigma) for sign in (1, -1)]
    return power**2 * sigma.square() / 2 + torch.logaddexp(*sides)


def _moments(evidence: Evidence) -> tuple[Tensor, Tensor]:
    """|mu| and sigma, in float64."""
    return evidence.values.abs().double(), scales_of(evidence).double()


def scales_of(evidence: Evidence) -> Tensor:
    """sigma `(k,)`. Raises ValueError where the guide learns none."""
    if evidence.scales is None:
        raise ValueError(
            "expected a guide that learns standard deviations for this score: use mean_field, or magnitude"
        )
    return evidence.scales


DROP_SCORES: dict[str, DropScore] = {
    "magnitude": magnitude, "mean-magnitude": mean_of_magnitude, "snr": snr, "snr-magnitude": snr_of_magnitude,
    "mean-exponential": mean_of_exponential, "snr-exponential": snr_of_exponential, "bayes-factor": bayes_factor,
}  # fmt: skip


def drop_score(name: str) -> DropScore:
    """The one of that name. Raises ValueError for another."""
    if name not in DROP_SCORES:
        raise ValueError(f"expected a drop_score of {', '.join(DROP_SCORES)}, got {name!r}")
    return DROP_SCORES[name]
