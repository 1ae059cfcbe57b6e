"""Data whose truth is known: classes that are mixtures of Gaussians, with p(y | x) in closed form."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, logsumexp

from espalier.contracts import Data
from espalier.data.arrays import from_arrays

Floats = NDArray[np.float64]


class Mixture(NamedTuple):
    """p(x | y = c) = 1/K sum_k N(means[c, k], scale^2), all classes equally likely. means: `(C, K, d)`."""

    means: Floats
    scale: float

    def draw(self, n: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
        """n rows `(n, d)` and their labels `(n,)`."""
        rng, (classes, parts, features) = np.random.default_rng(seed), self.means.shape
        y = rng.integers(classes, size=n)
        return self.means[y, rng.integers(parts, size=n)] + self.scale * rng.standard_normal((n, features)), y

    def log_prob(self, x: ArrayLike) -> Floats:
        """log p(y = c | x) `(n, C)` at rows `(n, d)`, by Bayes' rule."""
        x = np.asarray(x, np.float64)
        gaps = ((x[:, None, None] - self.means) ** 2).sum(-1)
        return np.asarray(log_softmax(logsumexp(-gaps / (2 * self.scale**2), -1), -1))

    def data(self, n: int, n_test: int, seed: int = 0, *, validation: float = 0.1, calibration: float = 0.0) -> Data:
        """`n` rows to be cut, and a test split, as `Data`, standardised by its `input_scale`."""
        x, y = self.draw(n + n_test, seed)
        return from_arrays(
            x[:n], y[:n], x_test=x[n:], y_test=y[n:], classes=range(len(self.means)), name="mixture", split_seed=seed,
            validation=validation, calibration=calibration,
        )  # fmt: skip

    def truth(self, data: Data, split: str = "test") -> Floats:
        """p(y | x) `(n, C)` of a split's rows."""
        rows = getattr(data, split).x
        mean, sd = data.input_scale
        return np.exp(self.log_prob(rows[:].double().numpy() * sd.numpy() + mean.numpy()))


def mixture(num_classes: int, parts: int, features: int, *, scale: float = 1.0, seed: int = 0) -> Mixture:
    """Means drawn from N(0, 1) in each feature."""
    return Mixture(np.random.default_rng(seed).standard_normal((num_classes, parts, features)), scale)


def noisy(probs: ArrayLike, rate: float) -> Floats:
    """p(y | x) `(n, C)` of labels, of which a share `rate` is replaced by one of the others: (1 - r) p + r (1 - p) / (C - 1)."""
    p = np.asarray(probs, np.float64)
    return np.asarray((1 - rate) * p + rate * (1 - p) / (p.shape[1] - 1))
