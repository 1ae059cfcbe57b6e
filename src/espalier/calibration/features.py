"""What a single network does not know, from its features: scores that are fitted on training rows and give `(n,)` for new ones,
larger where less is known. NumPy and SciPy.

`score.fit(features, y)`, then `fitted.uncertainties(features)`. Features are `(n, D)`, what the last layer is given, say;
`prediction.features_of` takes them from a fit.

NeighbourScore       Nadaraya and Watson's posterior of the classes near a row (NUQ, Kotelevskii et al. 2022)
DensityScore         a Gaussian of every class (DDU, Mukhoti et al. 2023; Lee et al. 2018 with one covariance)
LaplaceScore         a Gaussian posterior of the last layer (Kristiadi et al. 2020), which wants the layer's weights too
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_solve, solve_triangular
from scipy.special import log_softmax, logsumexp, softmax

from espalier.calibration.scores import Floats, Ints, array, require
from espalier.calibration.uncertainty import mutual_information

NEIGHBOURS, GRID, FOLDS, JUDGED = 20, 20, 5, 2000
"""Training rows that have a say; bandwidths that are tried, on how many parts of the training rows, and rows of these in all."""
MOST_WEIGHTS = 3000
"""Of a last layer whose whole precision is held."""
_HELD = 20_000_000  # float64 numbers held at once


def _matrix(features: ArrayLike, columns: int | None = None) -> Floats:
    x: Floats = array(features, np.float64)
    fits = x.ndim == 2 and x.size > 0 and bool(np.isfinite(x).all()) and columns in (None, x.shape[-1])
    require(fits, f"finite features (n, {columns or 'D'})", f"shape {x.shape}, or nan", "pass one row per example")
    return x


def _labels(y: ArrayLike, rows: int) -> Ints:
    given = array(y)
    labels: Ints = given.astype(np.int64)
    fits = labels.shape == (rows,) and bool((labels >= 0).all() and (labels == given).all())
    require(fits, f"a label of 0, 1, ... for each of {rows} rows", f"{given.dtype} {labels.shape}", "pass those of the features")
    return labels


def _nearest(x: Floats, among: Floats, count: int) -> Iterator[tuple[Floats, Ints]]:
    """Squared distances `(b, count)` and places of the nearest of `among`, for one block of x after the other."""
    squares = np.einsum("ij,ij->i", among, among)
    for block in np.array_split(x, max(1, len(x) * len(among) // _HELD)):
        distances = np.maximum(np.einsum("ij,ij->i", block, block)[:, None] + squares - 2 * block @ among.T, 0.0)
        place = np.argpartition(distances, min(count, len(among)) - 1, axis=1)[:, :count]
        yield np.take_along_axis(distances, place, 1), place


class NeighbourScore(NamedTuple):
    """NUQ: with K_i = exp(-|x - x_i|^2 / 2h^2) over the nearest training rows, D = sum K_i + N0 and class frequencies pi,

        p_c = (sum of K_i in class c + N0 pi_c) / D,    aleatoric 1 - max p,    epistemic tau^2 = p (1 - p) / D,  p = max p_c,

    and total 1 - max p + 2 sqrt(2 / pi) tau, all in logs: far from every row D is N0, and p are the frequencies.
    """

    features: Floats
    labels: Ints
    frequencies: Floats
    bandwidth: float
    smoothing: float = 1.0
    neighbours: int = NEIGHBOURS

    @classmethod
    def fit(
        cls, features: ArrayLike, y: ArrayLike, *, bandwidth: float | None = None, smoothing: float = 1.0,
        neighbours: int = NEIGHBOURS,
    ) -> NeighbourScore:  # fmt: skip
        """bandwidth: h; None is the one of `GRID` between the least and the largest distance of a neighbour under which rows that
        are left out, a fifth at a time, have the likeliest labels."""
        x = _matrix(features)
        labels = _labels(y, len(x))
        counts = np.bincount(labels)
        require(len(x) >= 2 and smoothing > 0, "two rows or more and a smoothing above 0", (len(x), smoothing), "give more")
        known = cls(x, labels, counts / counts.sum(), bandwidth or 1.0, smoothing, min(neighbours, len(x)))
        if bandwidth is not None:
            require(bandwidth > 0, "a bandwidth above 0", bandwidth, "leave it out to have it chosen")
            return known
        return known._replace(bandwidth=known._chosen())

    def _chosen(self) -> float:
        """The bandwidth: labels of at most `JUDGED` rows by those of the other folds. Distances know no bandwidth: they are taken
        once for all tries."""
        found, count = list[tuple[Floats, Ints, Ints]](), len(self.features)
        for fold in range(FOLDS):
            out = np.flatnonzero(np.arange(count) % FOLDS == fold)[: JUDGED // FOLDS]
            rest = np.flatnonzero(np.arange(count) % FOLDS != fold)
            if len(out) and len(rest):
                near = list(_nearest(self.features[out], self.features[rest], min(self.neighbours, len(rest))))
                squares, place = (np.concatenate(each) for each in zip(*near, strict=True))
                found.append((squares, self.labels[rest][place], self.labels[out]))
        distances = np.sqrt(np.concatenate([squares.ravel() for squares, _, _ in found]))
        distances = distances[distances > 0] if distances.any() else np.ones(1)

        def likelihood(bandwidth: float) -> float:
            logs = [(self._posterior(squares, near, bandwidth)[0], own) for squares, near, own in found]
            return float(np.mean(np.concatenate([np.take_along_axis(log, own[:, None], 1) for log, own in logs])))

        return float(max(np.geomspace(distances.min(), distances.max(), GRID), key=likelihood))

    def _posterior(self, squares: Floats, labels: Ints, bandwidth: float) -> tuple[Floats, Floats]:
        """Of squared distances to neighbours and their labels, `(n, neighbours)` each."""
        prior = np.log(self.smoothing) + np.log(np.maximum(self.frequencies, np.finfo(float).tiny))
        kernel = -squares / (2 * bandwidth**2)
        of_class = labels[:, :, None] == np.arange(len(prior))
        with np.errstate(divide="ignore"):  # of a class without a neighbour
            inside = logsumexp(np.where(of_class, kernel[:, :, None], -np.inf), axis=1)
        total = np.logaddexp(logsumexp(kernel, axis=1), np.log(self.smoothing))
        return np.logaddexp(inside, prior) - total[:, None], total

    def log_posterior(self, features: ArrayLike) -> tuple[Floats, Floats]:
        """log p `(n, C)` and log D `(n,)`."""
        near = _nearest(_matrix(features, self.features.shape[1]), self.features, self.neighbours)
        found = [self._posterior(squares, self.labels[place], self.bandwidth) for squares, place in near]
        logs, totals = (np.concatenate(each) for each in zip(*found, strict=True))
        return logs, totals

    def uncertainties(self, features: ArrayLike) -> dict[str, Floats]:
        """`nuq_aleatoric`, `nuq_epistemic` (log tau^2) and `nuq_total`."""
        logs, total = self.log_posterior(features)
        best = logs.argmax(1)[:, None]
        top = np.take_along_axis(logs, best, 1)[:, 0]
        others = logs.copy()
        np.put_along_axis(others, best, -np.inf, 1)
        rest = logsumexp(others, axis=1)  # log(1 - p), by what the others have: never the log of a difference
        variance = top + rest - total
        return {
            "nuq_aleatoric": np.exp(rest),
            "nuq_epistemic": variance,
            "nuq_total": np.exp(rest) + 2 * np.sqrt(2 / np.pi) * np.exp(variance / 2),
        }


class NeighbourRegression(NamedTuple):
    """NUQ of a regression: mean and variance of targets near a row, smoothed towards those of all; epistemic variance / D."""

    features: Floats
    targets: Floats
    bandwidth: float
    smoothing: float = 1.0
    neighbours: int = NEIGHBOURS

    @classmethod
    def fit(
        cls, features: ArrayLike, y: ArrayLike, *, bandwidth: float, smoothing: float = 1.0, neighbours: int = NEIGHBOURS
    ) -> NeighbourRegression:
        x, targets = _matrix(features), np.asarray(array(y, np.float64))
        fits = targets.shape == (len(x),) and bool(np.isfinite(targets).all()) and bandwidth > 0 and smoothing > 0
        require(fits, f"a finite target for each of {len(x)} rows, bandwidth and smoothing above 0", targets.shape, "check them")
        return cls(x, targets, bandwidth, smoothing, min(neighbours, len(x)))

    def uncertainties(self, features: ArrayLike) -> dict[str, Floats]:
        """`nuq_aleatoric`, the variance of the targets; `nuq_epistemic`, that over D; both in squared units of the target."""
        x, parts = _matrix(features, self.features.shape[1]), []
        mean, variance = self.targets.mean(), self.targets.var()
        for squares, place in _nearest(x, self.features, self.neighbours):
            weight, near = np.exp(-squares / (2 * self.bandwidth**2)), self.targets[place]
            total = weight.sum(1) + self.smoothing
            centre = ((weight * near).sum(1) + self.smoothing * mean) / total
            spread = (weight * (near - centre[:, None]) ** 2).sum(1) + self.smoothing * (variance + (mean - centre) ** 2)
            parts.append((spread / total, spread / total**2))
        aleatoric, epistemic = (np.concatenate(each) for each in zip(*parts, strict=True))
        return {"nuq_aleatoric": aleatoric, "nuq_epistemic": epistemic}


class DensityScore(NamedTuple):
    """-log sum_c pi_c N(x; mu_c, Sigma_c), nats, of Gaussians fitted by class: one covariance each, or one for all (`shared`)."""

    means: Floats
    factors: Floats
    """Lower Cholesky factors `(C, D, D)`."""
    log_frequencies: Floats

    @classmethod
    def fit(cls, features: ArrayLike, y: ArrayLike, *, shared: bool = False, jitter: float = 1e-6) -> DensityScore:
        """jitter: of the mean variance, added to each covariance; tenfold, and again, until it has a Cholesky factor."""
        x = _matrix(features)
        labels = _labels(y, len(x))
        known = np.unique(labels)
        means = np.stack([x[labels == label].mean(0) for label in known])
        place = np.searchsorted(known, labels)
        centred = x - means[place]
        every = centred.T @ centred / len(x)
        scale = max(float(np.trace(every)) / len(every), np.finfo(float).tiny)
        each = [every if shared else centred[place == c].T @ centred[place == c] / (place == c).sum() for c in range(len(known))]
        factors = np.stack([_factor(own, jitter * scale) for own in each])
        return cls(means, factors, np.log(np.bincount(place) / len(x)))

    def log_density(self, features: ArrayLike) -> Floats:
        """`(n,)`."""
        x = _matrix(features, self.means.shape[1])
        logs = []
        for mean, factor, frequency in zip(self.means, self.factors, self.log_frequencies, strict=True):
            white = solve_triangular(factor, (x - mean).T, lower=True)
            constant = np.log(np.diag(factor)).sum() + 0.5 * len(mean) * np.log(2 * np.pi)
            logs.append(frequency - 0.5 * (white**2).sum(0) - constant)
        return np.asarray(logsumexp(np.stack(logs), axis=0))

    def uncertainties(self, features: ArrayLike) -> dict[str, Floats]:
        """`density`, -log p(x)."""
        return {"density": -self.log_density(features)}


def _factor(covariance: Floats, jitter: float) -> Floats:
    while True:
        try:
            return np.asarray(np.linalg.cholesky(covariance + jitter * np.eye(len(covariance))), np.float64)
        except np.linalg.LinAlgError:
            jitter *= 10


class LaplaceScore(NamedTuple):
    """The posterior of the last layer's weights as a Gaussian at their values, of precision
    1/s^2 + sum_n h_n h_n' (x) (diag p_n - p_n p_n'), the Gauss-Newton matrix: of logits linear in the weights it is the Hessian
    (Kristiadi et al. 2020; Daxberger et al. 2021).

    weights `(C, D)` and biases `(C,)`; factor: the Cholesky factor of the precision over weights, class after class, or, where
    there are more than `MOST_WEIGHTS`, its diagonal `(C * D,)`. Biases are points.
    """

    weights: Floats
    biases: Floats
    factor: Floats

    @classmethod
    def fit(cls, features: ArrayLike, weights: ArrayLike, biases: ArrayLike, *, prior_scale: float = 1.0) -> LaplaceScore:
        """features `(n, D)` of the training rows; labels have no say. prior_scale: s."""
        w, b = array(weights, np.float64), array(biases, np.float64)
        x = _matrix(features, w.shape[1])
        fits = b.shape == (len(w),) and prior_scale > 0
        require(fits, f"{len(w)} biases and a prior_scale above 0", (b.shape, prior_scale), "pass those of the last layer")
        p = softmax(x @ w.T + b, axis=1)
        if w.size > MOST_WEIGHTS:
            return cls(w, b, ((p * (1 - p)).T @ x**2).ravel() + prior_scale**-2)
        precision = np.zeros((w.size, w.size))
        size = w.shape[1]
        for c in range(len(w)):
            for d in range(c + 1):
                curvature = p[:, c] * ((c == d) - p[:, d])
                block = (x * curvature[:, None]).T @ x
                precision[c * size : (c + 1) * size, d * size : (d + 1) * size] = block
                precision[d * size : (d + 1) * size, c * size : (c + 1) * size] = block.T
        return cls(w, b, np.asarray(np.linalg.cholesky(precision + prior_scale**-2 * np.eye(w.size)), np.float64))

    def logits(self, features: ArrayLike) -> tuple[Floats, Floats]:
        """Mean `(n, C)` and covariance `(n, C, C)` of each row's logits."""
        x = _matrix(features, self.weights.shape[1])
        classes, size = self.weights.shape
        mean = x @ self.weights.T + self.biases
        if self.factor.ndim == 1:
            return mean, np.eye(classes) * self._variances(x)[:, :, None]
        covariance = cho_solve((self.factor, True), np.eye(classes * size)).reshape(classes, size, classes, size)
        found = np.empty((len(x), classes, classes))
        for c in range(classes):
            for d in range(c + 1):  # by matrix products, which a sum over all at once is not
                found[:, c, d] = found[:, d, c] = ((x @ covariance[c, :, d]) * x).sum(1)
        return mean, found

    def draws(self, features: ArrayLike, num_samples: int = 32, seed: int = 0) -> Floats:
        """Class probabilities `(S, n, C)` of logits drawn from the Gaussian, as a stack of networks would give them."""
        x, rng = _matrix(features, self.weights.shape[1]), np.random.default_rng(seed)
        if self.factor.ndim == 1:  # there is nothing to decompose
            mean = x @ self.weights.T + self.biases
            off = np.sqrt(self._variances(x)) * rng.normal(size=(num_samples, *mean.shape))
            return np.asarray(np.exp(log_softmax(mean + off, axis=-1)))
        mean, covariance = self.logits(x)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
        noise = rng.normal(size=(num_samples, *mean.shape))
        return np.asarray(np.exp(log_softmax(mean + np.einsum("ncd,snd->snc", root, noise), axis=-1)))

    def _variances(self, x: Floats) -> Floats:
        """Of each row's logits `(n, C)`, where only the diagonal is known."""
        return np.asarray(x**2 @ (1 / self.factor).reshape(self.weights.shape).T)

    def uncertainties(self, features: ArrayLike, num_samples: int = 32, seed: int = 0) -> dict[str, Floats]:
        """`laplace_mutual_information`, nats; some rows at a time, with noise of their own, as their covariances are large."""
        x, classes = _matrix(features, self.weights.shape[1]), len(self.weights)
        blocks = np.array_split(x, max(1, -(-len(x) * classes * (classes + num_samples) // _HELD)))
        found = [mutual_information(self.draws(block, num_samples, seed + place)) for place, block in enumerate(blocks)]
        return {"laplace_mutual_information": np.concatenate(found)}
