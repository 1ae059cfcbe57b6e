"""What can be asked of whatever predicts: one fit, or an ensemble of several. Everything follows from its outcomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor

from espalier.contracts import Data, Rows
from espalier.prediction.mixture import Mixture
from espalier.prediction.predict import fetched, in_units

if TYPE_CHECKING:
    from espalier.prediction.fit import Fit, How

Inputs = tuple[Any, ...] | dict[str, Any]
"""Of a network that takes several."""


class Predictor(ABC):
    """Something with ways to predict. record: what was run, JSON-able; of several fits what they have in common."""

    record: dict[str, Any]

    @property
    @abstractmethod
    def fits(self) -> tuple[Fit, ...]:
        """The fits that it is made of."""

    @property
    @abstractmethod
    def ways(self) -> tuple[How, ...]:
        """The ways to predict that it has."""

    @property
    def posterior(self) -> How:
        """The way whose draws are the posterior's: `redraw`; `pairs` of a chain (`sghmc`), which has no masks to draw anew."""
        chain = "pairs" in self.ways and all(fit.record.get("temperature") and fit.is_one("redraw") for fit in self.fits)
        return "pairs" if chain else "redraw"

    @abstractmethod
    def to(self, device: str | torch.device) -> Self:
        """The same on another device, moved in place."""

    @abstractmethod
    def look_at(self, data: Data) -> None:
        """Take the training inputs that batch-norm statistics are estimated on, where there are none yet."""

    @abstractmethod
    def alike(self, ways: Sequence[How]) -> Mapping[How, How]:
        """By way the first of `ways` whose network is the same, bit for bit, in tensors; itself where there is none."""

    @abstractmethod
    def outcomes(
        self, x: Rows | Inputs, how: How = "ticket", *, num_samples: int = 16, seed: int = 0, on_device: bool = False
    ) -> Iterator[dist.TorchDistribution]:
        """The distribution of y given every row of x, one draw of the network at a time: float64, on the CPU, or left on the GPU
        (`on_device`); of a regression in the units that the network was trained in. Raises ValueError as `predict` does."""

    def predict(self, x: Rows | Inputs, how: How = "ticket", *, num_samples: int = 16, seed: int = 0) -> Tensor:
        """Predictive draws `(S, n, C)` of class probabilities, on the CPU; average over the first dimension.

        For regression `(S, n, 2)`: mean and standard deviation in the units of the data. S is 1 for `ticket`, `mean`, `unmasked`
        and `distilled`, the number of collected pairs for `pairs`, `num_samples` for `redraw`, eight times that for `moments`,
        whose draws are of outputs and cost no pass; of an ensemble as many of each member. Raises ValueError for an unknown
        `how`, or for rows that the network does not take.
        """
        return torch.stack(list(self.draws(x, how, num_samples=num_samples, seed=seed)))

    def draws(self, x: Rows | Inputs, how: How = "ticket", *, num_samples: int = 16, seed: int = 0) -> Iterator[Tensor]:
        """`predict`, one draw `(n, C)` at a time: nothing of size S is held."""
        shift, scale = self.record.get("target", (0.0, 1.0))
        for parameters in fetched(self.outcomes(x, how, num_samples=num_samples, seed=seed, on_device=True)):
            yield in_units(parameters, shift, scale) if self.record.get("task") == "regression" else parameters

    def mixture(self, x: Rows | Inputs, how: How = "pairs", *, num_samples: int = 16, seed: int = 0) -> Mixture:
        """The posterior predictive of rows x: a mixture of the likelihood's own distributions, in the data's units."""
        shift, scale = self.record.get("target", (0.0, 1.0))
        return Mixture(list(self.outcomes(x, how, num_samples=num_samples, seed=seed)), shift, scale)
