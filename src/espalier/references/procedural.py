"""Frequentist intervals for any deterministic inference: the procedural-noise-correcting (PNC) predictor and two intervals
around it (Huang, Lam & Zhang 2023, "Efficient uncertainty quantification and reduction for over-parameterized neural networks").

What a training starts from, b (the network's initial weights, the first topology M and all random streams: one model and one
seed), is noise of the procedure and not of the data. With f_b trained on the labels y_i, and g_b from the same b on s(x_i),

    PNC(x) = f_b(x) - g_b(x) + s(x).

Where training is linear in its labels (SGD on the squared error of a linear model; of a network so wide that it is one, the
lazy regime of the paper's theorems) f_b - g_b is what training makes of the labels y_i - s(x_i), and the initial weights cancel
whatever s is, after any number of steps; Adam's steps are not linear. With s the mean over b of the untrained network's output,
the paper's choice, PNC is the mean over initial weights of f_b: what an infinite deep ensemble says. The rest of b is shared and
does not cancel: what is left is the predictor of the kernel under M, and of this order of the batches. A network that learns
features, or whose topology moves by what is learned, has no such theorem, and the correction may add noise instead.

Both intervals are for the predictor that training would find with the data's noise averaged out, the mean function where it is
without bias: not for a new y, whose own noise is not in them, and blind to bias, which all replicates share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from espalier import nested
from espalier.contracts import PARTS, Data, Rows, Split
from espalier.data.streamed import selected
from espalier.likelihoods import one_column
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit, How
from espalier.prediction.predict import output_of
from espalier.randomness import seeded
from espalier.sparse import scatter
from espalier.topology import initial

LEVEL = 0.95

Expected = Callable[[Rows], Tensor]
"""s: from rows to `(n,)`, in the units that the network is trained in."""


def zero(x: Rows) -> Tensor:
    """s = 0: exactly the untrained networks' mean where the last layer's weights and bias have mean zero and do not depend on
    the layers below, as torch draws every Linear; a random topology changes nothing in that."""
    return torch.zeros(len(x), dtype=torch.float64)


class Procedure(NamedTuple):
    """All that decides a predictor but the data. b is `model`'s initial weights and `seed`: every network that is trained has it.

    infer: `infer(model, data, seed=seed)`, a program of the shelf with its options bound: `partial(rigl.infer, sparsity=0.9)`.
    The data's size may shrink (batching), so say the prior by its weight_decay, which is per datum, and not by prior_scale.
    how: the way to predict; the mean of its draws. expected: s.
    """

    infer: Callable[..., Fit]
    model: BayesianNetwork
    seed: int = 0
    how: How = "ticket"
    expected: Expected = zero


class Interval(NamedTuple):
    """Of n rows: float64, `(n,)` each, in the units of the data."""

    centre: Tensor
    low: Tensor
    high: Tensor


def corrected(procedure: Procedure, data: Data, x: Rows) -> Tensor:
    """PNC(x) `(n,)` in the units of the data, for rows x as the network takes them. Two networks are trained.

    Raises ValueError for class labels, several targets, or a likelihood whose own parameters are learned: on other labels they
    would be learned to other values, and f and g would be trained at different rates.
    """
    return _corrected(procedure, data, x, [torch.arange(len(data.train.y))])[0]


def batching(procedure: Procedure, data: Data, x: Rows, *, parts: int = 4, level: float = LEVEL, seed: int = 0) -> Interval:
    """`batching_interval` of PNC on `parts` disjoint random parts of the training rows: 2 `parts` networks, each on few rows.

    seed: of the parts, apart from the procedure's.
    """
    count = len(data.train.y)
    if not 2 <= parts <= count:
        raise ValueError(f"expected 2 parts or more, and no more than the {count} training rows, got {parts}")
    _check_level(level)
    order = torch.from_numpy(_rng(seed).permutation(count))
    return batching_interval(_corrected(procedure, data, x, order.tensor_split(parts)), level)


def cheap_bootstrap(
    procedure: Procedure, data: Data, x: Rows, *, replicates: int = 1, level: float = LEVEL, seed: int = 0
) -> Interval:
    """`cheap_bootstrap_interval` of PNC on the training rows and on `replicates` resamples: 2 (1 + `replicates`) networks.

    A resample's f and g see the same rows (the released code draws rows for each, so that initial weights do not cancel there).
    seed: of the resamples, apart from the procedure's.
    """
    if replicates < 1:
        raise ValueError(f"expected 1 replicate or more, got {replicates}")
    _check_level(level)
    count, rng = len(data.train.y), _rng(seed)
    resamples = (torch.from_numpy(rng.integers(count, size=count)) for _ in range(replicates))
    whole, *others = _corrected(procedure, data, x, [torch.arange(count), *resamples])
    return cheap_bootstrap_interval(whole, torch.stack(others), level)


def batching_interval(parts: Tensor, level: float = LEVEL) -> Interval:
    """mean +- t_{m-1} sd / sqrt(m) of predictions `(m, n)` of m independent parts of the data, m >= 2 (alg. 2)."""
    _check_level(level)
    count = len(parts)
    if count < 2:
        raise ValueError(f"expected predictions of 2 parts or more, got {count}: one has no spread")
    return _around(parts.mean(0), _quantile(level, count - 1) * parts.std(0) / count**0.5)


def cheap_bootstrap_interval(whole: Tensor, replicates: Tensor, level: float = LEVEL) -> Interval:
    """whole +- t_R sqrt(mean over r of (replicate_r - whole)^2), of predictions `(n,)` from all the data and `(R, n)` from R
    resamples of it, R >= 1 (alg. 3; Lam 2022, "A cheap bootstrap method for fast inference")."""
    _check_level(level)
    if not len(replicates):
        raise ValueError("expected predictions of 1 replicate or more, got none")
    return _around(whole, _quantile(level, len(replicates)) * (replicates - whole).square().mean(0).sqrt())


def untrained(
    build: Callable[[], BayesianNetwork], *, count: int = 1000, sparsity: float = 0.0, allocation: str = "erk", seed: int = 0
) -> Expected:
    """s where it is not 0: the mean output of `count` untrained networks, each under a random topology of its own.

    build: a fresh network from torch's default stream, `lambda: mlp.model(data.shape, 1, likelihood="normal")`. Its error of
    order 1 / sqrt(count) moves PNC away from that ensemble and lets initial weights cancel all the same: it is one s.
    """
    if count < 1:
        raise ValueError(f"expected 1 untrained network or more, got {count}")

    def mean(x: Rows) -> Tensor:
        total = zero(x)
        with seeded(seed):
            for _ in range(count):
                model = build()
                positions = initial(model.shapes, sparsity, allocation).positions
                weights = scatter(model.initial[positions], positions, model.num_weights)
                total += one_column(output_of(model, weights, x))
        return total / count

    return mean


def _corrected(procedure: Procedure, data: Data, x: Rows, subsets: Iterable[Tensor]) -> Tensor:
    """PNC `(m, n)` from each of m choices of training rows, all from one b."""
    _check(procedure, data, x)
    auxiliary = _relabelled(data, procedure.expected)
    centre, found = data.in_units(procedure.expected(x)), []
    for rows in subsets:
        f, g = (_prediction(procedure, _subset(each, rows), x) for each in (data, auxiliary))
        found.append(f - g + centre)
    return torch.stack(found)


def _prediction(procedure: Procedure, data: Data, x: Rows) -> Tensor:
    fit = procedure.infer(procedure.model, data, seed=procedure.seed)
    return fit.predict(x, procedure.how)[..., 0].mean(0)


def _relabelled(data: Data, expected: Expected) -> Data:
    """The same rows with the labels s(x): in all parts, as an inference may look at validation rows."""
    parts: dict[str, Any] = {}
    for part in PARTS:
        x, y = getattr(data, part)
        parts[part] = Split(x, expected(x).to(y.dtype) if len(y) else y)
    return data._replace(name=f"{data.name}, untrained labels", **parts, hashes={}, rows={})


def _subset(data: Data, rows: Tensor) -> Data:
    """Trained on some of its rows, or on some of them twice."""
    train = Split(selected(data.train.x, rows), data.train.y[rows])
    return data._replace(train=train, hashes={}, rows={})


def _check(procedure: Procedure, data: Data, x: Any) -> None:
    """Raises ValueError, in one sentence, before anything is trained."""
    likelihood = procedure.model.likelihood
    if not callable(procedure.infer):
        raise ValueError(f"expected an inference such as rigl.infer, got {type(procedure.infer).__name__}: its `infer` is meant")
    if data.num_classes is not None:
        raise ValueError(f"expected real-valued targets, but {data.name} has {data.num_classes} classes")
    if data.train.y.dim() > 1:
        raise ValueError(f"expected one target per example, got {tuple(data.train.y.shape)}: correct each column by itself")
    if isinstance(likelihood, nn.Module) and any(own.requires_grad for own in likelihood.parameters()):
        raise ValueError(
            "expected a likelihood whose parameters are fixed, or f and g are trained at different rates: "
            "likelihoods.Normal(precision, learn=False), or learn_precision=False of a model of the shelf"
        )
    own, given = (nested.shape_of(each[torch.arange(1)]) if len(each) else "no rows" for each in (data.train.x, x))
    if own != given:
        raise ValueError(f"expected rows of shape {own} to predict, got {given}")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"expected a level in (0, 1), got {level}")


def _quantile(level: float, degrees: int) -> float:
    return float(stats.t.ppf((1 + level) / 2, degrees))


def _around(centre: Tensor, half: Tensor) -> Interval:
    return Interval(centre, centre - half, centre + half)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 1])  # not the one that cut the data by this seed
