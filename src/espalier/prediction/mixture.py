"""The posterior predictive of any likelihood: the mixture, over draws, of the likelihood's own distributions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.calibration.scores import LEVEL, SEED, Summary, summary_of
from espalier.prediction.predict import moment

NUM_DRAWS = 2048
"""Of each example, for scores that have no closed form; fewer, down to 256, where there are more than 10,000 examples."""
HELD = 20_000_000
"""Draws held at once."""


class Mixture:
    """1/S sum_s p(y_i | draw s) for n rows, float64. `distributions`: S of them, of batch shape `(n,)`, in the units that the
    network was trained in; targets and results are in the user's: target * scale + shift.
    """

    def __init__(self, distributions: Sequence[dist.TorchDistribution], shift: float = 0.0, scale: float = 1.0) -> None:
        self.distributions, self.shift, self.scale = list(distributions), shift, scale

    def log_probs(self, y: Tensor) -> Tensor:
        """log p(y_i | draw s), `(S, n)`, nats per unit of the target (or of counts). Raises ValueError for a target outside
        the likelihood's support."""
        inner = self._inner(y)
        for distribution in self.distributions[:1]:
            check_support(distribution, inner, y)
        return torch.stack([each.log_prob(inner) for each in self.distributions]) - self._log_scale()

    def log_prob(self, y: Tensor) -> Tensor:
        """Of the mixture, `(n,)`."""
        pointwise = self.log_probs(y)
        return torch.logsumexp(pointwise, 0) - float(np.log(len(pointwise)))

    @torch.no_grad()
    def sample(self, count: int, seed: int = SEED) -> Tensor:
        """`(S * ceil(count / S), n)` draws of y, equally many of every component; torch's default stream does not move."""
        each = -(-count // len(self.distributions))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            drawn = torch.cat([distribution.sample(torch.Size([each])) for distribution in self.distributions])
        return drawn.double() * self.scale + self.shift

    def draws(self, seed: int = SEED) -> Tensor:
        """One y of every component, `(S, n)`: posterior predictive draws."""
        return self.sample(len(self.distributions), seed)

    def summary(self, y: Tensor, *, level: float = LEVEL, seed: int = SEED) -> Summary:
        """What a record keeps of a regression: nll, exact; rmse of the mean, or of the median where there is no mean; crps and
        `coverage_95` by `NUM_DRAWS` draws of each example. All in units of the target, with intervals."""
        target, log_prob = y.double().numpy(), self.log_prob(y).numpy()
        count = int(np.clip(HELD // len(target), 256, NUM_DRAWS))
        drawn = np.sort(self.sample(count, seed).numpy(), axis=0)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        scores = {"rmse": (target - self.centre(drawn)) ** 2, "nll": -log_prob, "crps": crps_of_draws(drawn, target)}
        return summary_of(scores, ((low <= target) & (target <= high)).astype(np.float64), level=level, seed=seed)

    def centre(self, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean `(n,)`; the median of sorted draws where a component has no finite mean (Cauchy)."""
        means = torch.stack([moment(distribution, "mean") for distribution in self.distributions])
        found = (means * self.scale + self.shift).mean(0).numpy()
        return np.where(np.isfinite(found), found, np.median(drawn, axis=0))

    def _inner(self, y: Tensor) -> Tensor:
        return y.double() if (self.shift, self.scale) == (0.0, 1.0) else (y.double() - self.shift) / self.scale

    def _log_scale(self) -> float:
        return float(np.log(self.scale))


def check_support(distribution: dist.TorchDistribution, inner: Tensor, y: Tensor) -> None:
    """Raises ValueError where a target `(n,)` cannot come from the likelihood; `inner` is what the network was trained on."""
    try:
        support = distribution.support
        outside = ~support.check(inner)
    except (NotImplementedError, RuntimeError):  # it says no support, or one of a shape of its own
        return
    while outside.dim() > 1:
        outside = outside.any(-1)
    if outside.any():
        row = int(outside.double().argmax())
        was = "" if torch.equal(inner.double(), y.double()) else f", standardised to {float(inner.flatten()[row]):.4g}"
        raise ValueError(
            f"expected targets in the support of the {type(distribution).__name__} likelihood ({support}), got "
            f"{float(y.flatten()[row]):.4g}{was} in row {row}: choose another likelihood, or keep targets as they are with "
            "standardise inputs"
        )


def crps_of_draws(drawn: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """E|Y - y_i| - 1/2 E|Y - Y'|, `(n,)` (Gneiting & Raftery 2007, eq. 21), from sorted draws `(K, n)`: unbiased for
    independent draws (Zamo & Naveau 2018, eq. PWM)."""
    count = len(drawn)
    weights = (2 * np.arange(1, count + 1) - count - 1)[:, None] / (count * (count - 1))
    return np.asarray(np.abs(drawn - target).mean(0) - (weights * drawn).sum(0))
