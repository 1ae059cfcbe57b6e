"""The posterior predictive of any likelihood: the mixture, over draws, of the likelihood's own distributions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.calibration.scores import LEVEL, SEED, Floats, Summary
from espalier.calibration.summaries import summary_of
from espalier.likelihoods import matched
from espalier.prediction.predict import moment
from espalier.randomness import seeded

NUM_DRAWS = 2048
"""Of each example, for scores that have no closed form; fewer, down to 256, where there are more than 10,000 examples."""
HELD = 20_000_000
"""Draws held at once."""


class Mixture:
    """1/S sum_s p(y_i | draw s) for n rows, float64. `distributions`: S of them, of shape `(n, ...)`, in the units that the
    network was trained in; targets and results are in the user's: target * scale + shift, numbers or one for each column.

    Where an example has several targets (or labels), they belong together: a draw is one of all of them, and their
    probability is that of them jointly.
    """

    def __init__(
        self,
        distributions: Sequence[dist.TorchDistribution],
        shift: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        self.distributions = list(distributions)
        self.shift, self.scale = (torch.as_tensor(value, dtype=torch.float64) for value in (shift, scale))

    def log_probs(self, y: Tensor) -> Tensor:
        """log p(y_i | draw s), `(S, n)`, nats per unit of the target (or of counts); of several targets jointly. Raises
        ValueError for a target outside the likelihood's support."""
        plain = (y.double() - self.shift) / self.scale
        inner = matched(y if isinstance(self.distributions[0], dist.Categorical) else plain, self.distributions[0])
        check_support(self.distributions[0], inner, y)
        pointwise = [each.log_prob(inner) for each in self.distributions]
        logs = torch.stack([own.flatten(1).sum(1) if own.dim() > 1 else own for own in pointwise])
        return logs - self.scale.log().expand(y.shape[1:]).sum()

    def log_prob(self, y: Tensor) -> Tensor:
        """Of the mixture, `(n,)`."""
        pointwise = self.log_probs(y)
        return torch.logsumexp(pointwise, 0) - float(np.log(len(pointwise)))

    @torch.no_grad()
    def sample(self, count: int, seed: int = SEED) -> Tensor:
        """`(S * ceil(count / S), n, ...)` draws of y, equally many of every component; torch's default stream does not move."""
        each = -(-count // len(self.distributions))
        with seeded(seed):
            drawn = torch.cat([distribution.sample(torch.Size([each])) for distribution in self.distributions])
        return self._flat(drawn).double() * self.scale + self.shift

    def draws(self, seed: int = SEED) -> Tensor:
        """One y of every component, `(S, n, ...)`: posterior predictive draws."""
        return self.sample(len(self.distributions), seed)

    def interval(self, *, level: float = LEVEL, seed: int = SEED) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Low and high `(n, ...)` of the central `level` of y given each row, in units of the target, by `NUM_DRAWS` draws."""
        return _central(self.sample(NUM_DRAWS, seed).numpy(), level)

    def summary(self, y: Tensor, *, level: float = LEVEL, seed: int = SEED) -> Summary:
        """What a record keeps of a regression: nll, exact; rmse of the mean, or of the median where there is no mean; crps and
        `coverage_95` by `NUM_DRAWS` draws of each example. All in units of the target, with intervals over examples.

        Of targets `(n, d)` each is the mean over the d, the nll that of all jointly divided by d, and `rmse_by_output`,
        `crps_by_output` and `coverage_95_by_output` are the columns' own.
        """
        target = y.double().numpy()
        own, covered = self.scores(y, level=level, seed=seed)
        found = summary_of(*by_row(own, covered), level=level, seed=seed)
        if target.ndim == 1:
            return found
        names = ("rmse_by_output", "crps_by_output", f"coverage_{100 * level:g}_by_output")
        error, crps, hit = (each.reshape(len(target), -1).mean(0) for each in (own["rmse"], own["crps"], covered))
        return found | {name: column.tolist() for name, column in zip(names, (np.sqrt(error), crps, hit), strict=True)}

    def scores(self, y: Tensor, *, level: float = LEVEL, seed: int = SEED) -> tuple[dict[str, Floats], Floats]:
        """What that is made of: `rmse` (squared errors) and `crps` `(n, ...)`, `nll` `(n,)`; and is the target within the central
        `level`, `(n, ...)`?"""
        target, log_prob = y.double().numpy(), self.log_prob(y).numpy()
        count = int(np.clip(HELD // target.size, 256, NUM_DRAWS))
        drawn = np.sort(self.sample(count, seed).numpy(), axis=0)
        low, high = _central(drawn, level)
        error, crps = (target - self.centre(drawn)) ** 2, crps_of_draws(drawn, target)
        covered = ((low <= target) & (target <= high)).astype(np.float64)
        return {"rmse": error, "nll": -log_prob, "crps": crps}, covered

    def centre(self, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean `(n, ...)`; the median of sorted draws where a component has no finite mean (Cauchy)."""
        means = torch.stack([moment(distribution, "mean") for distribution in self.distributions])
        found = (self._flat(means) * self.scale + self.shift).mean(0).numpy()
        return np.where(np.isfinite(found), found, np.median(drawn, axis=0))

    def spread(self) -> NDArray[np.float64]:
        """The standard deviation `(n, ...)`, by the law of total variance; NaN where a component has no finite one."""
        means, own = (torch.stack([moment(each, name) for each in self.distributions]) for name in ("mean", "stddev"))
        found = (self._flat(own).square().mean(0) + self._flat(means).var(0, correction=0)).sqrt() * self.scale
        return torch.where(found.isfinite(), found, torch.nan).numpy()

    def _flat(self, drawn: Tensor) -> Tensor:
        """`(S, n, 1)` of a likelihood that keeps a last column -> `(S, n)`, unless that is what its scales are of."""
        return drawn.squeeze(-1) if drawn.dim() == 3 and drawn.shape[-1] == 1 and not self.scale.dim() else drawn


def _central(drawn: NDArray[np.float64], level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Between two of K draws that have j between them lies j / (K + 1) of the distribution (Weibull's plotting positions)."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return low, high


def by_row(scores: dict[str, Floats], covered: Floats) -> tuple[dict[str, Floats], Floats]:
    """What `Mixture.scores` gives, one number an example `(n,)`: of targets `(n, d)` the mean over the d, and the NLL of all
    jointly divided by d."""
    error, crps, hit = (each.reshape(len(each), -1) for each in (scores["rmse"], scores["crps"], covered))
    return {"rmse": error.mean(1), "nll": scores["nll"] / error.shape[1], "crps": crps.mean(1)}, hit.mean(1)


def check_support(distribution: dist.TorchDistribution, inner: Tensor, y: Tensor) -> None:
    """Raises ValueError where a target `(n, ...)` cannot come from the likelihood; `inner` is what the network sees."""
    try:
        support = distribution.support
        inside = support.check(inner)
    except (NotImplementedError, RuntimeError):  # it says no support, or one of a shape of its own
        return
    if not inside.all():
        place = (~inside).nonzero()[0].tolist()
        row, worst = place[0], y[tuple(place[: y.dim()])].flatten()[0]
        was = inner[tuple(place[: inner.dim()])].flatten()[0]
        became = "" if float(was) == float(worst) else f", standardised to {float(was):.4g}"
        raise ValueError(
            f"expected targets in the support of the {type(distribution).__name__} likelihood ({support}), got "
            f"{float(worst):.4g}{became} in row {row}: choose another likelihood, or keep targets as they are with "
            "standardise inputs"
        )


def crps_of_draws(drawn: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """E|Y - y_i| - 1/2 E|Y - Y'|, one for each target `(n, ...)` (Gneiting & Raftery 2007, eq. 21), from sorted draws
    `(K, n, ...)`: unbiased for independent draws (Zamo & Naveau 2018, eq. PWM)."""
    count = len(drawn)
    weights = (2 * np.arange(1, count + 1) - count - 1) / (count * (count - 1))
    return np.asarray(np.abs(drawn - target).mean(0) - np.tensordot(weights, drawn, 1))
