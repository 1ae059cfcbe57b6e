"""What the data have to say for a weight: Bayes factors of leaving it out, read off the posterior of the net that has it.

Of a Gaussian factor q(w) = N(mu, tau^2) and a prior p(w). Nothing is trained again: with another prior in p's place the posterior
is q p' / p up to its constant, and that constant is the ratio of the evidences. All logs are natural.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_bayes_factor(mean: Tensor, scale: Tensor, log_prior_at_zero: float) -> Tensor:
    """log p(data | w = 0) / p(data) = log q(0) - log p(0) of each weight, any shape (Dickey 1971, Savage's ratio): above 0 the
    data are for leaving it out. Of a prior N(0, s^2) it is log s / tau - mu^2 / 2 tau^2.

    log_prior_at_zero: log p(0); `normal_at_zero` of a normal prior, of a mixture its own `log_density` there.
    """
    return -0.5 * math.log(2 * math.pi) - scale.log() - 0.5 * (mean / scale).square() - log_prior_at_zero


def normal_at_zero(prior_scale: float) -> float:
    """log N(0; 0, s^2)."""
    return -0.5 * math.log(2 * math.pi) - math.log(prior_scale)


def log_reduction(mean: Tensor, scale: Tensor, prior_scale: float, reduced_scale: float, reduced_mean: float = 0.0) -> Tensor:
    """log p'(data) / p(data) with the prior N(reduced_mean, reduced_scale^2) in the place of N(0, prior_scale^2): Bayesian model
    reduction (Friston & Penny 2011, eq. 12; for pruning Beckers et al. 2024). As reduced_scale -> 0 it is `log_bayes_factor`.

    -inf where the posterior that it implies is none, which a reduced prior no wider than the first does not do.
    """
    own, prior, reduced = scale.double() ** -2, prior_scale**-2, reduced_scale**-2
    precision = own + reduced - prior
    centre = (own * mean.double() + reduced * reduced_mean) / precision
    squares = own * mean.double().square() + reduced * reduced_mean**2 - precision * centre.square()
    logs = math.log(reduced) - math.log(prior) + own.log() - precision.clamp(min=torch.finfo(torch.float64).tiny).log()
    return torch.where(precision > 0, 0.5 * (logs - squares), -math.inf)


def of_blocks(log_factors: Tensor, block: Tensor, count: int) -> Tensor:
    """Of whole blocks, `(count,)`, where weight i lies in `block[i]`: sums, as the guide's factors are independent."""
    return torch.zeros(count, dtype=log_factors.dtype, device=log_factors.device).index_add(0, block, log_factors)


def curve(log_factors: Tensor) -> Tensor:
    """log p(data | those left out) / p(data), `(k + 1,)`, as 0, 1, ... k weights or blocks are left out, best first: it rises
    while the data are for it, and its top is where their log Bayes factors change sign."""
    ranked = log_factors.double().sort(descending=True).values
    return torch.cat([ranked.new_zeros(1), ranked.cumsum(0)])
